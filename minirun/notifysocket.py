"""The proxy of $NOTIFY_SOCKET: a service in a container tells its manager that it is ready.

The manager's own socket never enters the container: there is one of the container's, below its
state directory and bound on /run/notify, and of what arrives there READY and STATUS alone are
passed on, with the number by which the manager knows the process. Whatever else a container says
would be taken as our word, and so as root's: MAINPID any process of the host, which the manager
then ends with the service. Sources: sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import os
import select

from minirun.errors import MinirunError, describe
from minirun.spec import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.setup import Setup
    from minirun.state import Container

DIRECTORY = "notify"
_NAME = "notify.sock"
_INSIDE = "/run/notify"
_LARGEST = 4096  # bytes of a message: what systemd takes
_READY = b"READY=1"
_STATUS = b"STATUS="
_BARRIER = 30_000  # milliseconds for the manager to have read what was sent


def prepare(container: Container, setup: Setup) -> None:
    """Give a container that is to be created a socket, if our caller has one for us."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    os.mkdir(DIRECTORY, dir_fd=container.dirfd)
    # For every user of the container, whatever our own mask.
    os.chmod(DIRECTORY, 0o755, dir_fd=container.dirfd)
    mount = Mount(
        destination=_INSIDE,
        source=os.path.join(container.path, DIRECTORY),
        type="bind",
        options=("bind", "nosuid", "noexec", "nodev", "ro"),
    )
    setup.spec = setup.spec.replace(mounts=(*setup.spec.mounts, mount))
    variable = f"NOTIFY_SOCKET={_INSIDE}/{_NAME}"
    setup.process = setup.process.replace(env=(*setup.process.env, variable))


def open_proxy(container: Container) -> Proxy | None:
    """Listen in place of the manager; None if there is none, or create did not know of one."""
    host = os.environ.get("NOTIFY_SOCKET")
    if not host or not container.has(DIRECTORY):
        return None
    import _socket

    directory = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY, dir_fd=container.dirfd)
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        # Born with its mode: a chmod(2) by name could be led to another file by who is inside.
        mask = os.umask(0)
        try:
            # By the descriptor: the path may be longer than the 107 bytes that unix(7) has for it.
            sock.bind(f"/proc/self/fd/{directory}/{_NAME}")
        finally:
            os.umask(mask)
    except OSError as error:
        raise MinirunError(f"cannot make the notify socket: {describe(error)}") from None
    finally:
        os.close(directory)
    return Proxy(sock, host)


class Proxy:
    """The container's socket and the manager's."""

    def __init__(self, sock: Any, host: str) -> None:
        self._sock = sock
        self._host = "\0" + host[1:] if host.startswith("@") else host
        self._named = False

    def fileno(self) -> int:
        """The descriptor that is readable when the container has said something."""
        return int(self._sock.fileno())

    def take(self, pid: int) -> bool:
        """Read a message, and pass the first READY on, with MAINPID; tell whether it was that."""
        lines = self._sock.recv(_LARGEST).split(b"\n")
        if self._named or _READY not in lines:
            return False  # once: the manager has more to do than to hear a container out
        status = [line for line in lines if line.startswith(_STATUS)]
        self._send(b"\n".join([_READY, *status, b""]))
        self._send(f"MAINPID={pid}\n".encode())
        self._named = True
        return True

    def wait(self, pid: int, pidfd: int) -> None:
        """Stay until the service is ready or has ended, and the manager has noticed."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self.fileno() in ready and self.take(pid):
                self._await_manager()
                return
            if pidfd in ready:
                return

    def _send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        import _socket

        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little")) for fd in fds]
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sock.sendmsg([data], rights, 0, self._host)
        except OSError as error:
            raise MinirunError(f"cannot notify {self._host[:200]!a}: {describe(error)}") from None
        finally:
            sock.close()

    def _await_manager(self) -> None:
        """Wait until our messages are read: who sent them must be there then (sd_notify(3))."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._send(b"BARRIER=1", (writer,))
        finally:
            os.close(writer)
        poller = select.poll()
        poller.register(reader, 0)  # the end of the last descriptor of the other end
        poller.poll(_BARRIER)
        os.close(reader)
