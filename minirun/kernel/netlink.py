"""rtnetlink(7), as far as it takes to move a network device: find, change, and its addresses."""

from __future__ import annotations

import os
import struct
import sys

from minirun.kernel.c import c_int
from minirun.kernel.libc import call, failure, function, quote, trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    Message = tuple[int, bytes]
    Attributes = dict[int, bytes]

_AF_NETLINK, _SOCK_RAW, _SOCK_CLOEXEC = 16, 3, 0o2000000
_BUFFER = 1 << 17

# include/uapi/linux/netlink.h, rtnetlink.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_CREATE, _NLM_F_EXCL = 0x400, 0x200
_RTM_GETLINK, _RTM_SETLINK = 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg

# include/uapi/linux/if_link.h, if_addr.h, net/if.h
IFLA_IFNAME, IFLA_NET_NS_FD = 3, 28
IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 3, 6, 8
IFA_F_PERMANENT = 0x80
RT_SCOPE_UNIVERSE = 0
IFF_UP = 0x1

_socket = function("socket", c_int, c_int, c_int)


class Address:
    """An address of an interface: `attributes` by IFA_*, `flags` are IFA_F_*."""

    def __init__(self, family: int, prefix: int, scope: int, attributes: Attributes) -> None:
        self.family = family
        self.prefix = prefix
        self.scope = scope
        self.attributes = attributes

    @property
    def flags(self) -> int:
        """IFA_F_* bits."""
        return int.from_bytes(self.attributes.get(IFA_FLAGS, b""), sys.byteorder)


class Route:
    """A rtnetlink socket of the network namespace in which it was made. A context manager."""

    def __init__(self) -> None:
        self.fd = call(
            _socket,
            (_AF_NETLINK, _SOCK_RAW | _SOCK_CLOEXEC, 0),
            lambda: "socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE)",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)

    def find(self, name: str) -> tuple[int, int] | None:
        """Return index and flags (IFF_*) of an interface; None if there is none."""
        try:
            found = self._ask(
                _RTM_GETLINK,
                _LINK.pack(0, 0, 0, 0, 0) + _packed({IFLA_IFNAME: _name(name)}),
                f"RTM_GETLINK {quote(name)}",
            )
        except OSError as error:
            if error.errno == 19:  # ENODEV
                return None
            raise
        _family, _kind, index, flags, _change = _LINK.unpack_from(found[0][1])
        return index, flags

    def move(self, index: int, name: str, netns: int) -> None:
        """Move an interface to the namespace of descriptor `netns`, where it is called `name`."""
        attributes = {
            IFLA_NET_NS_FD: netns.to_bytes(4, sys.byteorder),
            IFLA_IFNAME: _name(name),
        }
        self._ask(
            _RTM_SETLINK,
            _LINK.pack(0, 0, index, 0, 0) + _packed(attributes),
            f"RTM_SETLINK {{index={index}, IFLA_NET_NS_FD={netns}, IFLA_IFNAME={quote(name)}}}",
        )

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        self._ask(
            _RTM_SETLINK,
            _LINK.pack(0, 0, index, IFF_UP, IFF_UP),
            f"RTM_SETLINK {{index={index}, IFF_UP}}",
        )

    def addresses(self, index: int) -> list[Address]:
        """List the addresses of an interface."""
        found = []
        messages = self._ask(_RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0), "RTM_GETADDR", dump=True)
        for kind, body in messages:
            if kind != _RTM_NEWADDR:
                continue
            family, prefix, flags, scope, owner = _ADDRESS.unpack_from(body)
            attributes = _unpacked(body[_ADDRESS.size :])
            attributes.setdefault(IFA_FLAGS, flags.to_bytes(4, sys.byteorder))
            if owner == index:
                found.append(Address(family, prefix, scope, attributes))
        return found

    def add(self, index: int, address: Address) -> None:
        """Give an interface an address."""
        head = _ADDRESS.pack(address.family, address.prefix, 0, address.scope, index)
        self._ask(
            _RTM_NEWADDR,
            head + _packed(address.attributes),
            f"RTM_NEWADDR {{index={index}, prefixlen={address.prefix}}}",
            _NLM_F_CREATE | _NLM_F_EXCL,
        )

    def _ask(
        self, kind: int, body: bytes, text: str, more: int = 0, *, dump: bool = False
    ) -> list[Message]:
        flags = _NLM_F_REQUEST | more | (_NLM_F_DUMP if dump else _NLM_F_ACK)
        os.write(self.fd, _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        found: list[Message] = []
        while True:
            for reply, content in _messages(os.read(self.fd, _BUFFER)):
                if reply == _NLMSG_ERROR:
                    error = -int.from_bytes(content[:4], sys.byteorder, signed=True)
                    if error:
                        raise failure(error, text)
                if reply in (_NLMSG_ERROR, _NLMSG_DONE):
                    trace(lambda: text)
                    return found
                found.append((reply, content))


def _messages(data: bytes) -> list[Message]:
    found = []
    while len(data) >= _HEADER.size:
        size, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
        found.append((kind, data[_HEADER.size : size]))
        data = data[max(size + 3 & ~3, _HEADER.size) :]
    return found


def _name(name: str) -> bytes:
    return os.fsencode(name) + b"\0"


def _packed(attributes: Attributes) -> bytes:
    data = b""
    for kind, value in attributes.items():
        data += struct.pack("=HH", len(value) + 4, kind) + value
        data += b"\0" * (-len(data) % 4)
    return data


def _unpacked(data: bytes) -> Attributes:
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:size]
        data = data[max(size + 3 & ~3, 4) :]
    return found
