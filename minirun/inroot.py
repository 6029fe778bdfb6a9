"""Paths inside a root filesystem, which may be hostile and may change while they are looked at.

Every path is resolved by the kernel with the root as its bound (openat2, RESOLVE_IN_ROOT and
RESOLVE_NO_MAGICLINKS) and used as the descriptor that came out, never as a string again
(CVE-2021-30465, CVE-2024-45310, CVE-2026-41579 in runc). Missing parts are made with mkdirat and
O_EXCL below such descriptors.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun.kernel.libc import failure, quote
from minirun.kernel.path import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

_MAX_FILE = 1 << 20


def open_path(rootfd: int, path: str, flags: int = os.O_PATH, *, links: bool = True) -> int:
    """Open `path` inside the root, following links there; `links=False` refuses any link.

    Raises OSError: ENOENT, ELOOP for a magic link or where links are refused.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (0 if links else RESOLVE_NO_SYMLINKS)
    return openat2(rootfd, path or ".", flags, resolve=resolve)


def parts_of(path: str) -> list[str]:
    """Split a path; empty and `.` components fall away, `..` stays for the kernel to bound."""
    return [part for part in path.split("/") if part not in ("", ".")]


def make_directory(rootfd: int, path: str, mode: int = 0o755) -> int:
    """Open the directory `path`, making what is missing with `mode`; return an O_PATH descriptor.

    A link on the way is followed inside the root; one that leads nowhere is refused, not created.
    """
    current = os.dup(rootfd)
    done = ""
    for part in parts_of(path):
        done = f"{done}/{part}"
        try:
            found = _descend(rootfd, current, part, done, mode)
        finally:
            os.close(current)
        current = found
    return current


def _descend(rootfd: int, parent: int, part: str, done: str, mode: int) -> int:
    directory = os.O_PATH | os.O_DIRECTORY
    for attempt in range(2):
        try:
            # From the root each time: only so do links and `..` on the way stay bounded by it.
            return open_path(rootfd, done, directory)
        except FileNotFoundError:
            if attempt or part == "..":
                raise
        try:
            os.mkdir(part, mode, dir_fd=parent)
        except FileExistsError:
            # A link that leads nowhere, or a racing mkdir: the second look tells.
            continue
    raise failure(errno.ENOENT, f"mkdirat({parent}, {quote(part)})")


def make_file(rootfd: int, path: str, mode: int = 0o644) -> int:
    """Open the file `path`, making an empty one (and its directories) where nothing is.

    What exists is opened with O_PATH whatever its type. Never writes, truncates or follows a link
    that leads nowhere.
    """
    try:
        return open_path(rootfd, path)
    except FileNotFoundError:
        pass
    *directories, name = parts_of(path) or ["."]
    parent = make_directory(rootfd, "/".join(directories))
    try:
        # O_EXCL never follows a link in the last component: open(2).
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(name, flags, mode, dir_fd=parent))
        return open_path(parent, name, links=False)
    finally:
        os.close(parent)


def read_file(rootfd: int, path: str, limit: int = _MAX_FILE) -> bytes | None:
    """Read a small regular file inside the root; None if it is absent, odd, or over `limit` bytes.

    A FIFO or device in its place does not hang or answer (CVE-2024-9676).
    """
    try:
        fd = open_path(rootfd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.ENXIO):
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return None
        data = b""
        while len(data) <= limit and (chunk := os.read(fd, limit + 1 - len(data))):
            data += chunk
        return data if len(data) <= limit else None
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL, errno.EPERM):
            return None  # a file of procfs: it says that it is regular, and reads otherwise
        raise
    finally:
        os.close(fd)
