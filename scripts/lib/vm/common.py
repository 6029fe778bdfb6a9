"""What the image and the machine share: where things are kept, failures, helpers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCRIPTS = Path(__file__).resolve().parents[2]


class Failure(Exception):
    """What failed, why, and what to do: one line, exit status 1."""


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    if given := os.environ.get("MINIRUN_VM_CACHE"):
        return Path(given).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "minirun" / "vm"
    if os.geteuid() == 0:
        return Path("/var/cache/minirun/vm")
    return Path.home() / ".cache" / "minirun" / "vm"


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def quietly(
    command: Sequence[str | Path], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of our own helpers: nothing in, and what it says kept for an error message."""
    path = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    # Files and not pipes: ssh -f stays in the background with what it was given.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=path,
            timeout=timeout,
            check=False,
        )
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, "", output.read())
