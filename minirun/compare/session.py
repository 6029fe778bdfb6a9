"""What a side said, with the times at which it came: read until what was awaited is there."""

from __future__ import annotations

import time

from minirun.compare.child import Silent
from minirun.compare.jobs import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.compare.child import Child


class Session:
    """The marks of one container or virtual machine, in monotonic seconds.

    `marks` has each word's first time (init, up, idle, done); `facts` what it told of itself;
    `times` each workload's durations, `results` its results, `lacks` the tool that is missing.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.facts: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}
        self.results: dict[str, set[str]] = {}
        self.lacks: dict[str, str] = {}
        self.noise: list[str] = []
        self._begun: dict[str, float] = {}

    def take(self, when: float, line: str) -> None:
        """Take in one line. What is no mark is kept as noise, for an error's text."""
        at = line.find(MARK)
        if at < 0:
            if line.strip():
                self.noise = [*self.noise[-9:], line.strip()]
            return
        word, *rest = line[at + len(MARK) :].split(None, 2) or [""]
        name, value = (*rest, "", "")[:2]
        if word == "begin":
            self._begun[name] = when
        elif word == "end":
            if name in self._begun:
                self.times.setdefault(name, []).append(when - self._begun.pop(name))
        elif word == "result":
            found = self.results.setdefault(name, set())
            if value:
                found.add(value)
        elif word == "lacks":
            self.lacks[name] = value
        elif word == "fact":
            self.facts[name] = value
        elif word == "failed":
            self.noise = [*self.noise[-9:], f"failed: {name} {value}"]
        else:
            self.marks.setdefault(word, when)

    def listen(self, child: Child, until: str, deadline: float) -> None:
        """Read from `child` until the mark `until`. Raises Silent if it does not come."""
        while until not in self.marks:
            try:
                line = child.line(deadline)
            except Silent as error:
                raise Silent(f"{error.message}{self._heard()}") from None
            if line is None:
                child.wait(1)
                raise Silent(
                    f"{child.name} ended before it was ready{child.last_words()}{self._heard()}"
                )
            self.take(*line)

    def _heard(self) -> str:
        return f"; it said: {self.noise[-1][:200]}" if self.noise else ""


class Talking:
    """What is measured, container or machine: a child whose lines are a session's."""

    session: Session
    child: Child

    def listen(self, until: str, seconds: float) -> None:
        """Read what it says until the mark `until`; raises Silent after so many seconds."""
        self.session.listen(self.child, until, time.monotonic() + seconds)

    def finish(self, seconds: float) -> bool:
        """Wait until it ends by itself; tell whether it did."""
        deadline = time.monotonic() + seconds
        try:
            while (line := self.child.line(deadline)) is not None:
                self.session.take(*line)
        except Silent:
            return False
        return self.child.wait(deadline - time.monotonic())
