"""The little of netdevice(7) that a new network namespace needs before anything else."""

from __future__ import annotations

import fcntl
import os

from minirun.kernel.c import c_int
from minirun.kernel.libc import call, failure, function, quote, trace

_AF_INET = 2
_SOCK_DGRAM = 2
_SOCK_CLOEXEC = 0o2000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_socket = function("socket", c_int, c_int, c_int)


def set_up(interface: str) -> None:
    """Bring a network interface of this namespace up. Source: netdevice(7), SIOCSIFFLAGS."""
    fd = call(
        _socket,
        (_AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0),
        lambda: "socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC, 0)",
    )
    text = f"ioctl({fd}, SIOCSIFFLAGS, {{{quote(interface)}, IFF_UP}})"
    try:
        # struct ifreq: 16 bytes of name, then the flags as a short, padded to 40 bytes.
        request = interface.encode().ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little")
        fcntl.ioctl(fd, _SIOCSIFFLAGS, request.ljust(40, b"\0"))
    except OSError as error:
        raise failure(error.errno or 0, text) from None
    finally:
        os.close(fd)
    trace(lambda: text)
