"""Publishing files: renameat2(2) (Linux 3.15) and syncfs(2)."""

from __future__ import annotations

from minirun.kernel.c import c_char_p, c_int, c_uint
from minirun.kernel.libc import at, call, encode, flags, function, quote

# include/uapi/linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_RENAME_NAMES = {
    "RENAME_NOREPLACE": RENAME_NOREPLACE,
    "RENAME_EXCHANGE": RENAME_EXCHANGE,
    "RENAME_WHITEOUT": RENAME_WHITEOUT,
}

_renameat2 = function("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_syncfs = function("syncfs", c_int)


def renameat2(olddirfd: int, old: str, newdirfd: int, new: str, flags_: int = 0) -> None:
    """Rename `old` to `new`, or exchange the two (RENAME_EXCHANGE), in one step.

    Raises OSError: EEXIST with RENAME_NOREPLACE when `new` is there. Source: renameat2(2).
    """
    call(
        _renameat2,
        (olddirfd, encode(old, "path"), newdirfd, encode(new, "path"), flags_),
        lambda: (
            f"renameat2({at(olddirfd)}, {quote(old)}, {at(newdirfd)}, {quote(new)}, "
            f"{flags(flags_, _RENAME_NAMES)})"
        ),
    )


def syncfs(fd: int) -> None:
    """Write everything that the file system of `fd` still holds in memory to its disk.

    Raises OSError: EIO, ENOSPC, EDQUOT for a write that failed since `fd` was opened. syncfs(2).
    """
    call(_syncfs, (fd,), lambda: f"syncfs({fd})")
