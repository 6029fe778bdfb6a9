"""openat2(2): open a path with bounds on where resolution may lead (Linux 5.6)."""

from __future__ import annotations

import os

from minirun.kernel.c import c_char_p, c_int, c_size_t, c_void_p, words
from minirun.kernel.libc import at, encode, flags, quote, retry, syscall

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

_RESOLVE_NAMES = {
    "RESOLVE_NO_XDEV": RESOLVE_NO_XDEV,
    "RESOLVE_NO_MAGICLINKS": RESOLVE_NO_MAGICLINKS,
    "RESOLVE_NO_SYMLINKS": RESOLVE_NO_SYMLINKS,
    "RESOLVE_BENEATH": RESOLVE_BENEATH,
    "RESOLVE_IN_ROOT": RESOLVE_IN_ROOT,
    "RESOLVE_CACHED": RESOLVE_CACHED,
}
# os.O_RDONLY is 0 and O_SYNC, O_TMPFILE hold other bits: the names that minirun uses, widest first.
_OPEN_NAMES = {
    "O_PATH": os.O_PATH,
    "O_WRONLY": os.O_WRONLY,
    "O_RDWR": os.O_RDWR,
    "O_CREAT": os.O_CREAT,
    "O_EXCL": os.O_EXCL,
    "O_NOCTTY": os.O_NOCTTY,
    "O_TRUNC": os.O_TRUNC,
    "O_APPEND": os.O_APPEND,
    "O_NONBLOCK": os.O_NONBLOCK,
    "O_DIRECTORY": os.O_DIRECTORY,
    "O_NOFOLLOW": os.O_NOFOLLOW,
    "O_CLOEXEC": os.O_CLOEXEC,
}


_openat2 = syscall(437, c_int, c_char_p, c_void_p, c_size_t)


def open_flags(value: int) -> str:
    """Render open(2) flags by name."""
    if value & (os.O_PATH | os.O_WRONLY | os.O_RDWR):
        return flags(value, _OPEN_NAMES)
    return flags(value, _OPEN_NAMES, "O_RDONLY") if value == 0 else (
        "O_RDONLY|" + flags(value, _OPEN_NAMES)
    )  # fmt: skip


def openat2(dirfd: int, path: str | bytes, flags_: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` relative to `dirfd`, resolution limited by `resolve`; O_CLOEXEC is always set.

    With RESOLVE_IN_ROOT `dirfd` is the root for absolute names and links and for `..`. EAGAIN,
    which tells of a rename while `..` was resolved, is retried a bounded number of times.
    Raises OSError: ELOOP (a link that is not allowed), EXDEV (would leave). Source: openat2(2).
    """
    flags_ |= os.O_CLOEXEC
    how = words(flags_, mode, resolve)  # struct open_how
    return retry(
        _openat2,
        (dirfd, encode(path, "path"), how, len(how)),
        lambda: (
            f"openat2({at(dirfd)}, {quote(path)}, {{flags={open_flags(flags_)}, "
            f"mode={mode:#o}, resolve={flags(resolve, _RESOLVE_NAMES)}}})"
        ),
    )
