"""run --explain: what was done to make the container, step by step, as it really happened."""

from __future__ import annotations

from minirun.log import STDERR, printable
from minirun.plan import HEADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def show(events: Sequence[dict[str, Any]]) -> None:
    """Write the steps to stderr: sentence, name, microseconds, and each system call."""
    import os

    data = render(events).encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(STDERR, data) :]


def render(events: Sequence[dict[str, Any]]) -> str:
    """Lay out the events of the steps; see `minirun.step.Event.encode` for their shape."""
    lines: list[str] = []
    stage = ""
    for event in events:
        if event["stage"] != stage:
            stage = event["stage"]
            lines += ["", f"{HEADS.get(stage, stage)}:"]
        lines.append(f"  {event['what']:<58} {event['us']:>7} us  {event['step']}")
        if event["why"]:
            lines.append(f"      because {event['why']}")
        lines += [f"      {printable(_call(*call))}" for call in event["calls"]]
    total = sum(event["us"] for event in events)
    lines += ["", f"{len(events)} steps, {total / 1000:.1f} ms", ""]
    return "\n".join(lines[1:])


def _call(text: str, result: int, number: int) -> str:
    if not number:
        return f"{text} = {result}"
    import errno
    import os

    return f"{text} = -1 {errno.errorcode.get(number, number)} ({os.strerror(number)})"
