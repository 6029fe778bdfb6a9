"""The container: `minirun run --rootfs`, as a user would type it."""

from __future__ import annotations

import os
import time

import psutil

from minirun import jsontext
from minirun.compare.child import Child
from minirun.compare.guest import SHELL
from minirun.compare.session import Session, Talking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT = 60.0  # seconds for any command of ours
_PATIENCE = 150  # fifths of a second until what does not end is killed


class Program:
    """How minirun is called: its words, a state directory of its own, the root filesystem."""

    def __init__(self, words: Sequence[str], state: str, rootfs: str) -> None:
        self.words, self.state, self.rootfs = list(words), state, rootfs

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Return the words of a command."""
        return [*self.words, "--root", self.state, verb, *arguments]

    def answer(self, log: str, verb: str, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its exit status and what it printed."""
        child = Child(self.command(verb, *arguments), log)
        deadline = time.monotonic() + _LIMIT
        lines = []
        try:
            while (line := child.line(deadline)) is not None:
                lines.append(line[1])
            child.wait(deadline - time.monotonic())
        finally:
            child.end()
        return child.status, "\n".join(lines)


class Container(Talking):
    """One container that runs a job, in the foreground: `child` is the runtime that waits."""

    def __init__(self, program: Program, name: str, job: str, log: str) -> None:
        self.program, self.name, self.log = program, name, log
        self.session = Session()
        arguments = ["--rootfs", program.rootfs, name, SHELL, "-c", job]
        self.child = Child(program.command("run", *arguments), log)

    def go(self) -> None:
        """Do nothing: it runs from the start."""

    @property
    def pids(self) -> list[int]:
        """The container's processes, without the runtime; [] once it has ended."""
        init = self.init
        try:
            below = psutil.Process(init).children(recursive=True) if init else []
        except psutil.NoSuchProcess:
            return []
        return [init, *(one.pid for one in below)] if init else []

    @property
    def init(self) -> int:
        """The process ID of its first process; 0 once it has ended."""
        status, text = self.program.answer(f"{self.log}.state", "state", self.name)
        return 0 if status else int(jsontext.loads(text).get("pid") or 0)

    def end(self) -> None:
        """Take it away, and all that it has, however far it has come."""
        for _ in range(_PATIENCE):
            # Never by a signal: one that comes while it is being made would leave half of it.
            self._delete()
            if self.child.wait(0.2):
                break
        self.child.end()
        self._delete()

    def _delete(self) -> None:
        if os.path.isdir(f"{self.program.state}/{self.name}"):
            self.program.answer(f"{self.log}.delete", "delete", "--force", self.name)
