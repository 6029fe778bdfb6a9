"""Unix sockets that carry descriptors: the console, a pidfd, the listener of a filter (unix(7)).

The C part of `socket` only, loaded when it is called for: 1 ms instead of 12.
"""

from __future__ import annotations

import os

from minirun.errors import MinirunError
from minirun.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SUN_PATH_MAX = 107


def connect(path: str) -> Any:
    """Connect to a Unix stream socket by path; return the `_socket.socket`.

    Raises MinirunError for a path that is too long for sun_path, OSError (unix(7)).
    """
    import _socket

    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise MinirunError(f"socket path is longer than {_SUN_PATH_MAX} bytes: {path}")
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        raise libc.failure(error.errno or 0, f"connect({libc.quote(path)})") from None
    return sock


def send_fd(socket_fd: int, fd: int, payload: bytes) -> None:
    """Send one descriptor with a payload over a connected Unix socket (SCM_RIGHTS)."""
    import _socket

    sock = _socket.socket(fileno=os.dup(socket_fd))
    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))
        sent = sock.sendmsg([payload], [rights])
        if sent < len(payload):
            sock.sendall(payload[sent:])
    finally:
        sock.close()


def refuse_stranger(sock: Any) -> None:
    """Refuse a connected Unix socket whose listener is neither root nor the caller.

    Of a socket that systemd listens at for another, that is systemd: unix(7), SO_PEERCRED. Raises
    MinirunError.
    """
    import _socket

    ucred = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # pid, uid, gid
    uid = int.from_bytes(ucred[4:8], "little")
    if uid not in (0, os.geteuid()):
        raise MinirunError(
            f"socket {sock.getpeername()!a} is not trusted: uid {uid} listens there",
            cause="what it is told, and answers, is for root and the caller alone",
        )


def pair() -> tuple[int, int]:
    """Make two connected sockets, close-on-exec; return their descriptors."""
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return ours.detach(), theirs.detach()


def adopt_fd(socket_fd: int) -> int:
    """Receive one descriptor, close-on-exec, over the socket that `socket_fd` is."""
    import _socket

    sock = _socket.socket(fileno=os.dup(socket_fd))
    try:
        return receive_fd(sock)
    finally:
        sock.close()


def receive_fd(sock: Any) -> int:
    """Receive one descriptor, close-on-exec, from a connected Unix socket."""
    import _socket

    data, ancillary, _flags, _address = sock.recvmsg(
        4096, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            return int.from_bytes(content[:4], "little")
    raise MinirunError(f"no descriptor came over the socket ({len(data)} bytes)")
