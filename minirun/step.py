"""Steps: how the one list of the recipe is followed, told and timed.

A step is a plain function of the set-up record. The first line of its docstring is the sentence
that the plan prints. The decorator adds what the plan needs to know beforehand: `when` tells from
the configuration whether there is anything to do, `details` lists the single operations, and
`shell` gives the lines of the equivalent script. Execution asks the same `when`.
"""

from __future__ import annotations

import time

from minirun.errors import StepFailed
from minirun.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from minirun.setup import Setup

    Step = Callable[[Setup], None]
    Details = Callable[[Setup], Sequence[str]]


def step(
    when: Callable[[Setup], Any] | None = None,
    *,
    details: Details | None = None,
    shell: Details | None = None,
    why: str = "",
) -> Callable[[Step], Step]:
    """Mark a function as a step of the recipe; `why` is the reason that --explain adds."""

    def mark(function: Step) -> Step:
        function.when = when  # type: ignore[attr-defined]
        function.details = details  # type: ignore[attr-defined]
        function.shell = shell  # type: ignore[attr-defined]
        function.why = why  # type: ignore[attr-defined]
        return function

    return mark


def quoted(text: str) -> str:
    """Write a word for a line of `shell`, in quotes unless it is plain: it may be anything."""
    if text and all(char.isascii() and (char.isalnum() or char in "/._-") for char in text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"


def name_of(function: Step) -> str:
    """Name a step as errors and plans do, by its facility: `mounts.pivot_root`."""
    facility = function.__module__.removeprefix("minirun.").partition(".")[0]
    return f"{facility}.{function.__name__}"


def sentence_of(function: Step) -> str:
    """Return the first line of the step's docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0]


def wanted(function: Step, setup: Setup) -> bool:
    """Tell whether the configuration asks anything of this step."""
    when = getattr(function, "when", None)
    return when is None or bool(when(setup))


class Event:
    """What a step did: its name, microseconds, and each system call with result and errno."""

    def __init__(self, stage: str, function: Step) -> None:
        self.stage = stage
        self.name = name_of(function)
        self.what = sentence_of(function)
        self.why = getattr(function, "why", "")
        self.calls: list[list[object]] = []
        self.microseconds = 0

    def encode(self) -> dict[str, object]:
        """Return the event as a JSON object."""
        return {
            "stage": self.stage,
            "step": self.name,
            "what": self.what,
            "why": self.why,
            "calls": self.calls,
            "us": self.microseconds,
        }


def follow(stage: str, steps: Sequence[Step], setup: Setup) -> None:
    """Take the steps in their order; what fails is raised as StepFailed with the step's name."""
    for function in steps:
        if not wanted(function, setup):
            continue
        if setup.events is None:
            _take(function, setup)
        else:
            _observe(Event(stage, function), function, setup)


def _take(function: Step, setup: Setup) -> None:
    setup.current = name_of(function)
    try:
        function(setup)
    except StepFailed:
        raise
    except (OSError, ValueError) as error:
        raise StepFailed(setup.current, error) from error


def _observe(event: Event, function: Step, setup: Setup) -> None:
    assert setup.events is not None
    setup.events.append(event)
    former = libc.set_tracer(
        lambda text, result, number: event.calls.append([text, result, number])
    )
    start = time.perf_counter_ns()
    try:
        _take(function, setup)
    finally:
        event.microseconds = (time.perf_counter_ns() - start) // 1000
        libc.set_tracer(former)
        if setup.tell is not None:
            setup.tell(event.encode())
