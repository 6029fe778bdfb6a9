"""openat2(2): open a path with bounds on where resolution may lead (Linux 5.6)."""

from __future__ import annotations

import os

from minirun.kernel.c import (
    Structure,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_long,
    c_size_t,
    c_uint64,
    c_void_p,
    sizeof,
)
from minirun.kernel.libc import at, call, encode, flags, function, quote, retry, syscall

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


class open_how(Structure):
    _fields_ = (
        ("flags", c_uint64),
        ("mode", c_uint64),
        ("resolve", c_uint64),
    )


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
    how = open_how(flags_ | os.O_CLOEXEC, mode, resolve)
    return retry(
        _openat2,
        (dirfd, encode(path, "path"), byref(how), sizeof(how)),
        lambda: (
            f"openat2({at(dirfd)}, {quote(path)}, {{flags={open_flags(int(how.flags))}, "
            f"mode={mode:#o}, resolve={flags(resolve, _RESOLVE_NAMES)}}})"
        ),
    )


# include/uapi/linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
CGROUP2_SUPER_MAGIC = 0x63677270
NSFS_MAGIC = 0x6E736673
DEVPTS_SUPER_MAGIC = 0x1CD1


class _statfs_buffer(Structure):
    # The first member of struct statfs is f_type on 64-bit machines; the rest is not looked at.
    _fields_ = (("f_type", c_long), ("rest", c_char * 248))


_fstatfs = function("fstatfs", c_int, c_void_p)


def fstatfs_type(fd: int) -> int:
    """Return the magic number of the file system that `fd` is on. Source: fstatfs(2)."""
    buffer = _statfs_buffer()
    call(_fstatfs, (fd, byref(buffer)), lambda: f"fstatfs({fd})")
    return int(buffer.f_type)
