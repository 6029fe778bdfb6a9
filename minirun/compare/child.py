"""The programs that are measured: started, listened to, and ended whatever happens."""

from __future__ import annotations

import os
import select
import signal
import time

from minirun import tether
from minirun.errors import MinirunError
from minirun.kernel import process
from minirun.launcher import clean_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST = 1 << 16  # bytes of a line that are kept


class Silent(MinirunError):
    """A program said nothing more in time, or ended before it had."""


class Child:
    """A program in a process group of its own (Ctrl-C at the terminal is not its), and its output.

    `started` is the monotonic time just before the fork. It is killed when this process dies.
    """

    def __init__(self, argv: Sequence[str], log: str, keep: Sequence[int] = ()) -> None:
        self.name = os.path.basename(argv[0])
        self.log = log
        self.output, theirs = os.pipe2(os.O_CLOEXEC)
        self.rest = b""
        self.since = 0.0
        self.lines: list[tuple[float, str]] = []
        self.cpu: float | None = None
        self.status = 0
        self.ended = 0.0
        parent = os.getpid()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(parent, argv, log, theirs, keep)
        os.close(theirs)
        self.pidfd = os.pidfd_open(self.pid)

    def line(self, deadline: float) -> tuple[float, str] | None:
        """Return the next line and when its first byte came; None at the end. Raises Silent."""
        while not self.lines:
            poll = select.poll()
            poll.register(self.output, select.POLLIN)
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Silent(f"{self.name} said nothing more in time{self.last_words()}")
            data = os.read(self.output, 65536)
            if not data:
                return None
            self._take(data, time.monotonic())
        return self.lines.pop(0)

    def _take(self, data: bytes, now: float) -> None:
        *lines, rest = (self.rest + data).split(b"\n")
        for number, line in enumerate(lines):
            began = self.since if number == 0 and self.rest else now
            self.lines.append((began, line.decode("utf-8", "replace").strip("\r")))
        if rest and (lines or not self.rest):
            self.since = now
        self.rest = rest[-_LONGEST:]

    def wait(self, seconds: float) -> bool:
        """Wait for its end; then `cpu` is the seconds of CPU that it and its waited-for used."""
        if self.cpu is not None:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(max(seconds, 0) * 1000):
            return False
        _, status, usage = os.wait4(self.pid, 0)
        self.ended = time.monotonic()
        self.status = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        return True

    def end(self) -> None:
        """Kill it and its group if it runs, wait, and close what is its. May be called again."""
        if self.pidfd < 0:
            return
        if self.cpu is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            try:
                os.killpg(self.pid, signal.SIGKILL)  # what it has started in its group
            except ProcessLookupError:
                pass  # it had not come to make one
            self.wait(3600)
        os.close(self.pidfd)
        os.close(self.output)
        self.pidfd = -1

    def last_words(self) -> str:
        """Return what it complained of last, as the end of an error's line; "" for nothing."""
        try:
            with open(self.log, errors="replace") as file:
                said = [line.strip() for line in file if line.strip()]
        except FileNotFoundError:
            said = []
        return f": {said[-1]}" if said else ""


def _become(parent: int, argv: Sequence[str], log: str, output: int, keep: Sequence[int]) -> None:
    """Turn the forked process into the program; does not return."""
    try:
        tether.tie(parent, "minirun:compare")
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDONLY)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number, source in enumerate((null, output, errors)):
            os.dup2(source, number)
        process.close_all_but([0, 1, 2, *keep])
        for descriptor in keep:
            os.set_inheritable(descriptor, True)
        process.reset_signals()
        os.execve(argv[0], list(argv), clean_environment(os.environ))
    except OSError as error:
        os.write(2, f"{argv[0]}: {(error.strerror or '').lower()}\n".encode())
    finally:
        os._exit(127)
