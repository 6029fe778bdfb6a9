"""Removing a tree: never through a link, never across a mount.

shutil.rmtree follows no links but walks into what is mounted below; and it recurses.
"""

from __future__ import annotations

import errno
import fcntl
import os

from minirun.errors import MinirunError
from minirun.kernel.path import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_WITHIN = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS

# include/uapi/linux/fs.h: ioctl_iflags(2)
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_PROTECTED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


class _Level:
    """A directory on the way down: its name, its identity, its sub-directories still to do."""

    def __init__(self, fd: int, name: str) -> None:
        _unprotect(fd, ".")
        status = os.fstat(fd)
        self.name = name
        self.identity = (status.st_dev, status.st_ino)
        self.left = _empty_of_files(fd)


def remove_tree(dirfd: int, name: str) -> None:
    """Remove the directory `name` of `dirfd` and all below it; gone already is as good.

    One descriptor is open at a time, so depth is not limited. Raises MinirunError at a mount point
    (nothing behind it is touched), OSError if the kernel refuses.
    """
    try:
        fd = _descend(dirfd, name)
    except FileNotFoundError:
        return
    stack = [_Level(fd, name)]
    try:
        while True:
            level = stack[-1]
            if level.left:
                child = level.left.pop()
                fd = _replace(fd, _descend(fd, child))
                stack.append(_Level(fd, child))
                continue
            stack.pop()
            if not stack:
                break
            fd = _replace(fd, _ascend(fd, stack[-1].identity))
            os.rmdir(level.name, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)


def _unlink(dirfd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=dirfd)
    except PermissionError:
        if not _unprotect(dirfd, name):
            raise
        os.unlink(name, dir_fd=dirfd)


def _unprotect(dirfd: int, name: str) -> bool:
    """Take the flags away that keep a file from being removed; False if it has none.

    A container could set them with CAP_LINUX_IMMUTABLE, on tmpfs since Linux 6.6.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError:
        return False
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)), "little")
        if flags & _PROTECTED:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags & ~_PROTECTED).to_bytes(8, "little"))
        return bool(flags & _PROTECTED)
    except OSError:
        return False  # a file system without them
    finally:
        os.close(fd)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _descend(dirfd: int, name: str) -> int:
    try:
        return openat2(dirfd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, 0, _WITHIN)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise MinirunError(
            f"a file system is mounted on {name!r}", fix="unmount it, then try again"
        ) from None


def _ascend(fd: int, identity: tuple[int, int]) -> int:
    above = openat2(fd, "..", os.O_RDONLY | os.O_DIRECTORY, 0, _WITHIN)
    status = os.fstat(above)
    if (status.st_dev, status.st_ino) != identity:
        os.close(above)
        raise MinirunError("the tree was moved while it was being removed")
    return above


def _empty_of_files(fd: int) -> list[str]:
    """Unlink all but the directories in `fd`; return their names."""
    with os.scandir(fd) as scan:
        entries = list(scan)  # readdir(3) may skip names when others vanish under it
    directories = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            _unlink(fd, entry.name)
    return directories
