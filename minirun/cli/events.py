"""events: one JSON object per line, once or until the container ends."""

from __future__ import annotations

from minirun import container, jsontext
from minirun.cli import write
from minirun.cli.place import container_id, state_root
from minirun.errors import MinirunError
from minirun.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.grammar import Options


def events(options: Options) -> int:
    """`minirun events`."""
    root, cid = state_root(options), container_id(options)
    interval = interval_of(options.interval)
    if options.stats:
        return _show(container.statistics(root, cid))
    for event in container.events(root, cid, interval):
        _show(event)
    return 0


def interval_of(text: str) -> float:
    """Read --interval, a duration as Go writes it, as seconds. Raises UsageError, MinirunError."""
    nanoseconds = parse_duration(text.removeprefix("-"))
    if nanoseconds <= 0 or text.startswith("-"):
        raise MinirunError("duration interval must be greater than 0")
    return nanoseconds / 1e9


def _show(event: dict[str, Any]) -> int:
    return write(jsontext.dumps(event) + "\n")
