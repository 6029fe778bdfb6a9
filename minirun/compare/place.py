"""The directory of one comparison and everything that runs in it: all of it goes with it."""

from __future__ import annotations

import os
import shutil
import signal

from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from minirun.compare.contained import Container
    from minirun.compare.machine import Machine

    _Side = TypeVar("_Side", Container, Machine)

RUN = "/run"


class Place:
    """A context: at its end what was started is ended, and the directory removed.

    Signals wait meanwhile: a second Ctrl-C would leave a machine running.
    """

    def __init__(self, base: str = RUN) -> None:
        self.base = base
        self.started: list[Container | Machine] = []
        self.claimed: list[str] = []
        self.count = 0
        self.path = ""

    def __enter__(self) -> Place:
        self.path = self.claim(self.base)
        return self

    def claim(self, base: str) -> str:
        """Make a directory in `base` that goes with the place; return its path."""
        path = f"{base}/minirun-compare-{os.urandom(6).hex()}"
        with _Undisturbed():
            try:
                os.mkdir(path, 0o700)
            except OSError as error:
                raise MinirunError(f"{path}: {(error.strerror or '').lower()}") from None
            self.claimed.append(path)
        return path

    def name(self, kind: str) -> str:
        """Return a name that was not used here yet, and fits a container."""
        self.count += 1
        return f"compare-{os.path.basename(self.path)[-12:]}-{kind}{self.count}"

    def file(self, name: str) -> str:
        """Return the path of a file here."""
        return f"{self.path}/{name}"

    def start(self, make: Callable[[], _Side]) -> _Side:
        """Start something and let it run; what fails or is interrupted from then on ends with it.

        Raises what starting it raises.
        """
        with _Undisturbed():
            one = make()
            self.started.append(one)
        one.go()
        return one

    def release(self, one: Container | Machine) -> None:
        """End something before the place ends."""
        with _Undisturbed():
            one.end()
            self.started.remove(one)

    def __exit__(self, *_error: object) -> None:
        with _Undisturbed():
            while self.started:
                self.started.pop().end()
            for path in self.claimed:
                shutil.rmtree(path)


class _Undisturbed:
    """A context in which signals that end this process wait."""

    def __enter__(self) -> None:
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)

    def __exit__(self, *_error: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
