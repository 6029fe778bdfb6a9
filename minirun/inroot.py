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
_MAX_LINKS = 40  # as many as the kernel follows in a path: path_resolution(7)


def open_path(rootfd: int, path: str, flags: int = os.O_PATH, *, links: bool = True) -> int:
    """Open `path` inside the root, following links there; `links=False` refuses any link.

    Raises OSError: ENOENT, ELOOP for a magic link or where links are refused.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (0 if links else RESOLVE_NO_SYMLINKS)
    return openat2(rootfd, path or ".", flags, resolve=resolve)


def parts_of(path: str) -> list[str]:
    """Split a path; empty and `.` components fall away, `..` stays for the kernel to bound."""
    return [part for part in path.split("/") if part not in ("", ".")]


def make_directory(rootfd: int, path: str, mode: int = 0o755, links: int = _MAX_LINKS) -> int:
    """Open the directory `path`, making what is missing with `mode`; return an O_PATH descriptor.

    A link on the way is followed inside the root, also to where nothing is yet, as images have it
    of /etc/resolv.conf; at most `links` of those. Raises OSError.
    """
    current = os.dup(rootfd)
    done = ""
    for part in parts_of(path):
        above, done = done, f"{done}/{part}"
        try:
            found = _descend(rootfd, current, part, done, mode)
            if found < 0:
                target = _target(current, part, above, links)
                found = make_directory(rootfd, target, mode, links - 1)
        finally:
            os.close(current)
        current = found
    return current


def _descend(rootfd: int, parent: int, part: str, done: str, mode: int) -> int:
    """Open or make the directory `done`; -1 if it is a link that leads nowhere."""
    directory = os.O_PATH | os.O_DIRECTORY
    for attempt in range(2):
        try:
            # From the root each time: only so do links and `..` on the way stay bounded by it.
            return open_path(rootfd, done, directory)
        except FileNotFoundError:
            if part == "..":
                raise
        try:
            if not attempt:
                os.mkdir(part, mode, dir_fd=parent)
        except FileExistsError:
            # A link that leads nowhere, or a racing mkdir: the second look tells.
            continue
    return -1


def _target(parent: int, name: str, above: str, links: int) -> str:
    """Tell where the link `name` of the directory `above` leads, as a path inside the root."""
    if links <= 0:
        raise failure(errno.ELOOP, f"readlinkat({parent}, {quote(name)})")
    text = os.readlink(name, dir_fd=parent)
    return text if text.startswith("/") else f"{above}/{text}"


def make_file(rootfd: int, path: str, mode: int = 0o644, links: int = _MAX_LINKS) -> int:
    """Open the file `path`, making an empty one (and its directories) where nothing is.

    What exists is opened with O_PATH whatever its type. Never writes or truncates. Links are
    followed as by `make_directory`. Raises OSError.
    """
    try:
        return open_path(rootfd, path)
    except FileNotFoundError:
        pass
    *directories, name = parts_of(path) or ["."]
    above = "/".join(directories)
    parent = make_directory(rootfd, above, links=links)
    try:
        # O_EXCL never follows a link in the last component: open(2).
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(name, flags, mode, dir_fd=parent))
        return open_path(parent, name, links=False)
    except FileExistsError:
        target = _target(parent, name, above, links)
    finally:
        os.close(parent)
    return make_file(rootfd, target, mode, links - 1)


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
