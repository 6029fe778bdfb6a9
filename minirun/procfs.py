"""The runtime's own /proc: a mount of its own that no container process can reach or cover.

A write to a path below the container's /proc could be led to another file of the same kind
(CVE-2019-16884, CVE-2025-52881), so every read and write of the runtime goes through a descriptor
of a private procfs, without crossing mounts or following links.
"""

from __future__ import annotations

import errno
import os

from minirun.kernel import libc, mount
from minirun.kernel.path import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from minirun.kernel.statfs import PROC_SUPER_MAGIC, fstatfs_type
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


@step(why="writes to /proc must not be led elsewhere by a mount of the container")
def open_private(setup: Setup) -> None:
    """Mount a private /proc that only the runtime holds"""
    setup.procfd = private_mount()


def private_mount() -> int:
    """Return a descriptor of a procfs that is attached nowhere, else of the verified /proc.

    In a user namespace the kernel refuses a new procfs where the visible one is partly covered
    (mount_too_revealing(), EPERM); then /proc itself is taken, and checked to be a procfs root.
    """
    try:
        config = mount.fsopen("proc")
        try:
            mount.fsconfig_create(config)
            return mount.fsmount(
                config,
                mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC,
            )
        finally:
            os.close(config)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if fstatfs_type(fd) != PROC_SUPER_MAGIC or os.fstat(fd).st_ino != 1:
        os.close(fd)
        raise libc.failure(errno.EXDEV, 'open("/proc") which is not a procfs root')
    return fd


def open_file(procfd: int, path: str, flags: int) -> int:
    """Open a file below the private /proc; links to other objects and mounts over it are refused.

    `self` and `thread-self` are ordinary links of procfs and are followed.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS
    fd = openat2(procfd, path, flags | os.O_NOFOLLOW, resolve=resolve)
    if fstatfs_type(fd) != PROC_SUPER_MAGIC:
        os.close(fd)
        raise libc.failure(errno.EXDEV, f"open({libc.quote('/proc/' + path)})")
    return fd


def write(procfd: int, path: str, value: str) -> None:
    """Write one value to a file of /proc in a single write(2), as sysctl and attr files need it."""
    fd = open_file(procfd, path, os.O_WRONLY)
    try:
        write_fd(fd, f"/proc/{path}", value)
    finally:
        os.close(fd)


def write_fd(fd: int, name: str, value: str) -> None:
    """Write `value` at once; the error names the file and the value."""
    text = f"write({libc.quote(name)}, {libc.quote(value)})"
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise libc.failure(error.errno or errno.EIO, text) from None
    libc.trace(lambda: text)
