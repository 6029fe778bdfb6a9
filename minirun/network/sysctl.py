"""Settings of single interfaces below /proc/sys/net, of the namespace that the caller is in."""

from __future__ import annotations

import errno
import os

from minirun.errors import MinirunError


def _path(family: str, interface: str, key: str) -> str:
    if "/" in interface or interface in ("", ".", ".."):
        raise ValueError(f"not an interface: {interface!r}")
    return f"/proc/sys/net/{family}/conf/{interface}/{key}"


def get(family: str, interface: str, key: str) -> str:
    """Read a setting; "" if the kernel or the interface lacks it."""
    try:
        fd = os.open(_path(family, interface, key), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 64).decode("ascii").strip()
    finally:
        os.close(fd)


def put(family: str, interface: str, key: str, value: str) -> bool:
    """Write a setting unless it is so already; tell whether it was written.

    A kernel without the family (IPv6) has nothing to set. Raises MinirunError if it is refused.
    """
    if get(family, interface, key) in ("", value):
        return False
    path = _path(family, interface, key)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.ENOENT:  # the interface went in between
            return False
        raise MinirunError(
            f"cannot write {value} to {path}: {os.strerror(error.errno or 0)}",
            cause="/proc/sys is mounted read-only" if error.errno == errno.EROFS else "",
        ) from error
    return True
