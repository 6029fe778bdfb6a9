"""Compiled seccomp filters on disk, found by the digest of what they were made of.

Compiling a profile of 400 system calls takes 10 ms and more, reading it back less than one. An
entry is used only if this user owns it and nobody else can write it, and if its own digest fits. A
cache that cannot be used is no error: the filter is compiled.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

_MAGIC = b"mrscmp1\n"
_HEADER = struct.Struct("<8sIII")  # magic, flags for seccomp(2), bytes of program, bytes of names
_SEAL = 16
_MAX_BYTES = 1 << 20
_MAX_ENTRIES = 128
# What makes a cache unusable without making the container impossible.
_TOLERATED = (
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENXIO,
    errno.EISDIR,
)


class Entry:
    """What is stored: the program, the flags for seccomp(2), the names that were skipped."""

    def __init__(self, program: bytes, flags: int, skipped: tuple[str, ...]) -> None:
        self.program = program
        self.flags = flags
        self.skipped = skipped


def _hash(data: bytes, size: int) -> bytes:
    try:
        from _blake2 import blake2b  # built in; hashlib costs 5 ms, OpenSSL being most of it
    except ImportError:
        from hashlib import blake2b
    return bytes(blake2b(data, digest_size=size).digest())


def digest(data: bytes) -> str:
    """Return the name under which a filter made of `data` is kept."""
    return _hash(data, 32).hex()


def read(directory: str, key: str) -> Entry | None:
    """Return the entry of `key`; None if there is none that can be trusted."""
    try:
        dirfd = _open_directory(directory)
        if dirfd is None:
            return None
        try:
            data = _read_file(dirfd, key)
        finally:
            os.close(dirfd)
    except OSError as error:
        if error.errno not in _TOLERATED:
            raise
        return None
    return _decode(data)


def write(directory: str, key: str, entry: Entry) -> bool:
    """Keep an entry; tell whether it was kept. The directory is made when absent."""
    try:
        if not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
        dirfd = _open_directory(directory)
        if dirfd is None:
            return False
        try:
            _prune(dirfd)
            _replace(dirfd, key, _encode(entry))
        finally:
            os.close(dirfd)
    except OSError as error:
        if error.errno not in _TOLERATED:
            raise
        return False
    return True


def _private(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _open_directory(directory: str) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    dirfd = os.open(directory, flags)
    if _private(os.fstat(dirfd)):
        return dirfd
    os.close(dirfd)
    return None


def _read_file(dirfd: int, key: str) -> bytes:
    # O_NONBLOCK: a FIFO put in the file's place must not hang.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(key, flags, dir_fd=dirfd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not _private(found) or found.st_size > _MAX_BYTES:
            return b""
        return os.pread(fd, _MAX_BYTES, 0)
    finally:
        os.close(fd)


def _replace(dirfd: int, key: str, data: bytes) -> None:
    temporary = f".{key}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=dirfd)
    try:
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key)
        # No fsync: what a crash leaves of the file does not fit its digest.
        os.rename(temporary, key, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except BaseException:
        os.unlink(temporary, dir_fd=dirfd)
        raise


def _prune(dirfd: int) -> None:
    """Empty a cache that grew too large; what is in use is compiled once more."""
    names = os.listdir(dirfd)
    if len(names) < _MAX_ENTRIES:
        return
    for name in names:
        os.unlink(name, dir_fd=dirfd)


def _encode(entry: Entry) -> bytes:
    names = "\0".join(entry.skipped).encode()
    header = _HEADER.pack(_MAGIC, entry.flags, len(entry.program), len(names))
    body = header + entry.program + names
    return body + _hash(body, _SEAL)


def _decode(data: bytes) -> Entry | None:
    body, seal = data[:-_SEAL], data[-_SEAL:]
    if len(body) < _HEADER.size or _hash(body, _SEAL) != seal:
        return None
    magic, flags, size, names_size = _HEADER.unpack_from(body)
    rest = body[_HEADER.size :]
    if magic != _MAGIC or len(rest) != size + names_size:
        return None
    names = rest[size:].decode()
    return Entry(rest[:size], flags, tuple(names.split("\0")) if names else ())
