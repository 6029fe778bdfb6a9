"""A process that may hang, fault or be killed, and tells what it found until then.

What it finds is merged from JSON objects, one a line, each written when it is known.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import time
from signal import SIG_DFL, alarm, signal

from minirun import tether
from minirun.jsontext import JSONError, dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Tell = Callable[[dict[str, Any]], None]
    Step = Callable[[Tell], None]

LIMIT = 5  # seconds; quiet, all guests take 0.02, and half a second where everything is emulated
_SIGILL, _SIGBUS, _SIGKILL, _SIGSEGV, _SIGALRM = 4, 7, 9, 11, 14
_NAMES = {_SIGILL: "SIGILL", _SIGBUS: "SIGBUS", _SIGSEGV: "SIGSEGV"}


def run(steps: Iterable[Step], limit: float = LIMIT) -> dict[str, Any]:
    """Run `steps` one after the other in a child; return what they told, merged.

    `ended` in it says how the child ended if not by itself.
    """
    readable, writable = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(parent, writable, steps, limit)
    os.close(writable)
    try:
        said, late = _listen(readable, limit)
    finally:
        os.close(readable)
        os.kill(pid, _SIGKILL)  # nothing happens to one that has ended: it is still ours to reap
        _, status = os.waitpid(pid, 0)
    found = _merge(said)
    if late:
        found["ended"] = f"was killed after {limit:g} s"
    elif os.WIFSIGNALED(status) and not found.pop("done", False):
        number = os.WTERMSIG(status)
        found["ended"] = f"was ended by {_NAMES.get(number, f'signal {number}')}"
    found.pop("done", None)
    return found


def _be_child(parent: int, writable: int, steps: Iterable[Step], limit: float) -> None:
    # Whoever closed the standard streams gave the pipe their numbers, which become /dev/null.
    writable = fcntl.fcntl(writable, fcntl.F_DUPFD_CLOEXEC, 3)

    def tell(found: dict[str, Any]) -> None:
        os.write(writable, (dumps(found) + "\n").encode())

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a fault is an answer, not a crash
        for number in (_SIGILL, _SIGBUS, _SIGSEGV, _SIGALRM):
            signal(number, SIG_DFL)  # no handler of our caller's tells of it first
        if not tether.tie(parent, "minirun:virt"):
            alarm(int(limit) + 2)  # it ends even if its parent has been killed
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for step in steps:
            step(tell)
        tell({"done": True})
    except BaseException as error:  # noqa: BLE001 - what went wrong is the answer
        tell({"error": f"{type(error).__name__}: {error}", "done": True})
    finally:
        os._exit(0)


def _listen(readable: int, limit: float) -> tuple[bytes, bool]:
    """Read until the end or the limit; return what was read, and whether it was the limit."""
    deadline = time.monotonic() + limit
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    said = b""
    # What is there is read, however late: the machine may have stood still, and the child with it.
    while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        part = os.read(readable, 1 << 16)
        if not part:
            return said, False
        said += part
    return said, True


def _merge(said: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in said.split(b"\n"):
        try:
            _add(found, loads(line, "answer"))
        except JSONError:
            continue  # cut off by its end, or the empty one after the last
    return found


def _add(found: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            _add(found[name], value)
        else:
            found[name] = value
