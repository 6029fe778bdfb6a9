"""The container's network namespace, held by descriptor, and who lives in it."""

from __future__ import annotations

import fcntl
import os
import select

from minirun.errors import MinirunError, NotRunning, Unsupported
from minirun.kernel.process import pidfd_open
from minirun.kernel.unshare import CLONE_NEWNET, NS_GET_NSTYPE, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_HERE = "/proc/self/ns/net"


def start_time(pid: int) -> int:
    """Give when a process started, in clock ticks after boot; -1 if it is gone or a zombie.

    With the pid it names a process for good: pids are given again. Source: proc_pid_stat(5).
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return -1
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return -1
    finally:
        os.close(fd)
    return -1 if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


def here() -> int:
    """Give the inode of this process's network namespace: the host's."""
    return os.stat(_HERE).st_ino


def boot_id() -> str:
    """Give what names this boot; inodes of namespaces and pids start anew with it."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode("ascii").strip()
    finally:
        os.close(fd)


class Target:
    """A container's network namespace: its descriptor, inode, and the process it was taken of."""

    def __init__(self, fd: int, pid: int, start: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.pid = pid
        self.start = start

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.fd)


def of_process(pid: int) -> Target:
    """Open the network namespace of a process that is surely the one meant, and not the host's.

    Raises NotRunning if the process is gone, Unsupported if it shares the host's network.
    """
    try:
        pidfd = pidfd_open(pid)
    except OSError as error:
        raise NotRunning(f"process {pid} of the container is gone") from error
    try:
        fd = _open_of(pid)
        try:
            start = start_time(pid)
            # Were it gone by now, `pid` could have been given to another before we opened.
            if select.select([pidfd], [], [], 0)[0] or start < 0:
                raise NotRunning(f"process {pid} of the container is gone")
            _check(fd)
            return Target(fd, pid, start)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(pidfd)


def _open_of(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotRunning(f"process {pid} of the container is gone") from error
    except OSError as error:
        raise MinirunError(
            f"cannot open the network namespace of process {pid}: {(error.strerror or '').lower()}"
        ) from error


def _check(fd: int) -> None:
    if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
        raise Unsupported("the container's network namespace is of another kind")
    mine, its = os.stat(_HERE), os.fstat(fd)
    if (mine.st_dev, mine.st_ino) == (its.st_dev, its.st_ino):
        raise Unsupported(
            "the container is in the host's network namespace",
            cause="the bundle has the hooks of a bridge network, but asks for no namespace",
            fix='add {"type": "network"} to linux.namespaces of its config.json',
        )


def inside(fd: int, function: Callable[[], T]) -> T:
    """Call `function` in the namespace `fd`, and come back whatever happens.

    A netlink socket stays in the namespace where it was made, and /proc/sys/net shows that of who
    reads it. Only for a process with one thread.
    """
    home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
        try:
            return function()
        finally:
            _return(home)
    finally:
        os.close(home)


def _return(home: int) -> None:
    try:
        setns(home, CLONE_NEWNET)
    except OSError:
        # Everything that follows would be done to the container's network in place of the host's.
        os._exit(125)
