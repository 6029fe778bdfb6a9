"""The option tmpcopyup: a new tmpfs begins with what the image has at its place (config.md).

Both sides are descriptors, and every name is opened below its directory without following links:
the image may be hostile, and what it names must not lead out of it.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun.errors import MinirunError

_CHUNK = 1 << 20
_DEEPEST = 200  # directories, of which each level holds two open
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int, depth: int = 0) -> None:
    """Copy what is in the directory `source` into `target`, an empty one.

    Owners, modes, times and extended attributes are kept; hard links become files of their own.
    Raises OSError: ENOSPC when the target is too small, EPERM for devices in a user namespace;
    MinirunError for directories that are nested more than 200 deep.
    """
    if depth > _DEEPEST:
        raise MinirunError(f"tmpcopyup: directories are nested more than {_DEEPEST} deep")
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            _copy_directory(source, target, name, depth)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name)
        else:
            _copy_other(source, target, name, status)


def _copy_directory(source: int, target: int, name: str, depth: int) -> None:
    os.mkdir(name, 0o700, dir_fd=target)
    flags = _READ | os.O_DIRECTORY
    from_fd = os.open(name, flags, dir_fd=source)
    to_fd = os.open(name, flags, dir_fd=target)
    try:
        copy_tree(from_fd, to_fd, depth + 1)
        _keep(from_fd, to_fd)
    finally:
        os.close(from_fd)
        os.close(to_fd)


def _copy_file(source: int, target: int, name: str) -> None:
    # Who shares the image may have exchanged it: a FIFO must not hang, nor a terminal become ours.
    from_fd = os.open(name, _READ | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=source)
    try:
        if not stat.S_ISREG(os.fstat(from_fd).st_mode):
            raise MinirunError(f"tmpcopyup: {name[:80]!a} became something else meanwhile")
        to_fd = os.open(name, _CREATE, 0o600, dir_fd=target)
        try:
            while os.sendfile(to_fd, from_fd, None, _CHUNK):
                pass
            _keep(from_fd, to_fd)
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)


def _copy_other(source: int, target: int, name: str, status: os.stat_result) -> None:
    """Copy a link, FIFO, socket or device, without opening it."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)  # the umask took from it
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _keep(source: int, target: int) -> None:
    """Give a file or directory the owner, mode, attributes and times of another."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    # kernel: chown(2) clears set-user-ID and file capabilities, so they come after it.
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _copy_attributes(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            # A tmpfs has no user.* before Linux 6.6; others are not ours in a user namespace.
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
