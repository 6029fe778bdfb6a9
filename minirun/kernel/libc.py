"""The one door to the C library: typed functions, errno read at once, one text per call.

A binding is three lines: `function` or `syscall` looks the entry up once, `call` invokes it with a
thunk that renders the call as strace would. The text is made only when somebody wants it: for the
error of a failed call (`OSError.call`) or for the tracer: --debug, --explain, tests.

No module in this package holds policy, and none imports more than os, sys, errno and ctypes: they
are used where the host's file system is already gone.
"""

from __future__ import annotations

import errno
import os

from minirun.kernel import c
from minirun.kernel.c import c_int, c_long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Text = Callable[[], str]
    Tracer = Callable[[str, int, int], None]

# As at the start: a container's execution domain (personality(2)) changes what uname(2) says.
MACHINE = os.uname().machine

# Called after every system call of a binding with its text, its result and its errno (0: success).
# None costs nothing: the text is not made. Set by `traced`.
_tracer: Tracer | None = None

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100


def function(name: str, *argtypes: Any, restype: Any = c_int) -> Any:
    """Look up a C library function; `argtypes` are set once, here."""
    return c.function(name, argtypes, restype)


def syscall(number: int | Mapping[str, int], *argtypes: Any) -> Any:
    """Make a function of a system call that the C library may lack.

    `number` is one number where all architectures agree (since 424, pidfd_send_signal), else a
    mapping from `uname -m` to the number. An architecture that is not in it gives ENOSYS.
    """
    chosen = number if isinstance(number, int) else number.get(MACHINE, -1)
    raw = c.function("syscall", (c_long, *argtypes), c_long)

    def invoke(*args: Any) -> int:
        return int(raw(chosen, *args))

    return invoke


def call(entry: Any, args: tuple[Any, ...], text: Text) -> int:
    """Invoke `entry`; return its result, or raise OSError with `call` set to the rendered call.

    Every system call of minirun passes here. EINTR is not retried: see `retry`.
    """
    c.set_errno(0)
    result: int = entry(*args)
    number = c.get_errno() if result == -1 else 0
    if _tracer is not None:
        _tracer(text(), result, number)
    if result == -1:
        raise failure(number, text())
    return result


def failure(number: int, text: str) -> OSError:
    """Make the error of a failed call: an OSError of the class that fits, `call` telling which."""
    # A subclass of OSError would lose Python's mapping of errno to FileNotFoundError and its kin.
    error = OSError(number, os.strerror(number))
    error.call = text  # type: ignore[attr-defined]
    return error


def retry(entry: Any, args: tuple[Any, ...], text: Text, attempts: int = 128) -> int:
    """Like `call`, but repeat while the kernel says EINTR or EAGAIN, at most `attempts` times."""
    for _ in range(attempts - 1):
        try:
            return call(entry, args, text)
        except (InterruptedError, BlockingIOError):
            continue
    return call(entry, args, text)


def trace(text: Text, result: int = 0, number: int = 0) -> None:
    """Tell the tracer of a call that was not made through `call`, such as one of the os module."""
    if _tracer is not None:
        _tracer(text(), result, number)


def write_once(path: str, text: str) -> None:
    """Write to a file of /proc in one write(2), traced, and named in the error. Raises OSError."""

    def shown() -> str:
        return f"write({quote(path)}, {quote(text)})"

    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise failure(error.errno or 0, shown()) from None
    finally:
        os.close(fd)
    trace(shown)


def set_tracer(tracer: Tracer | None) -> Tracer | None:
    """Have `tracer(text, result, errno)` called for each call; return the former tracer."""
    global _tracer
    former, _tracer = _tracer, tracer
    return former


def encode(value: str | bytes | None, what: str = "string") -> bytes | None:
    """Encode a C string; refuse NUL, at which C would cut it (ctypes does so silently)."""
    if value is None:
        return None
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError(f"{what} holds a NUL byte: {value!r}")
    return raw


def uint(value: int, bits: int, what: str) -> int:
    """Check an unsigned integer; ctypes would wrap 2**32 to 0, and 0 is root."""
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"{what} is not an unsigned {bits}-bit integer: {value!r}")
    return value


def quote(value: str | bytes | None) -> str:
    """Render a string argument: quoted and escaped, NULL for None, long ones cut."""
    if value is None:
        return "NULL"
    shown = value if isinstance(value, str) else os.fsdecode(value)
    if len(shown) > 300:
        shown = shown[:297] + "..."
    body = "".join(_escape(one) if one in '"\\' or not one.isprintable() else one for one in shown)
    return f'"{body}"'


def _escape(char: str) -> str:
    return "\\" + char if char in '"\\' else f"\\x{ord(char):02x}"


def flags(value: int, names: Mapping[str, int], zero: str = "0") -> str:
    """Render a flag word by name, what has no name in hex: `MS_NOSUID|MS_NODEV|0x40000000`."""
    if value == 0:
        return zero
    shown, left = [], value
    for name, bit in names.items():
        if bit and value & bit == bit and left & bit:
            shown.append(name)
            left &= ~bit
    if left:
        shown.append(hex(left))
    return "|".join(shown)


def at(dirfd: int) -> str:
    """Render a directory descriptor: AT_FDCWD by name."""
    return "AT_FDCWD" if dirfd == AT_FDCWD else str(dirfd)


def absent(error: OSError) -> bool:
    """Tell whether the kernel lacks the call (or its flag) rather than refusing it."""
    return error.errno in (errno.ENOSYS, errno.EOPNOTSUPP)
