"""Links, addresses, routes and tracked connections: the one importer of pyroute2 (100 ms).

Mechanism only. A link is ours if its kind, name and hardware address are the recorded ones: the
hardware address is set in the message that makes the link, so a crash in between leaves no link
that could not be told.
"""

from __future__ import annotations

import errno
import os
import sys

from minirun.errors import AlreadyExists, MinirunError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyroute2 import IPRoute, NFCTSocket
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple


def _import_parts() -> tuple[Any, Any, Any, Any]:
    """Import the four classes that are used here.

    The package's __init__ loads all of pyroute2, its database and psutil with it, which takes twice
    as long as these modules: they are imported from a package without one, where they are found.
    """
    import importlib.util
    import types

    found = importlib.util.find_spec("pyroute2")
    if "pyroute2" not in sys.modules and found and found.submodule_search_locations:
        bare = types.ModuleType("pyroute2")
        bare.__path__ = list(found.submodule_search_locations)
        sys.modules["pyroute2"] = bare
        try:
            return _parts("pyroute2.iproute.linux", "pyroute2.netlink.nfnetlink.nfctsocket")
        except (ImportError, AttributeError):  # another release, with other modules
            for name in [one for one in sys.modules if one.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
    return _parts("pyroute2", "pyroute2")


def _parts(routes: str, tracking: str) -> tuple[Any, Any, Any, Any]:
    from importlib import import_module

    return (
        import_module(routes).IPRoute,
        import_module(tracking).NFCTSocket,
        import_module("pyroute2.netlink.nfnetlink.nfctsocket").NFCTAttrTuple,
        import_module("pyroute2.netlink.exceptions").NetlinkError,
    )


if not TYPE_CHECKING:
    IPRoute, NFCTSocket, NFCTAttrTuple, NetlinkError = _import_parts()

AF_INET = 2
_UDP = 17
_CONNECTIONS_MAX = 20_000  # reading one costs 0.1 ms
_TABLE_MAIN = 254


class Link:
    """What is known of a link; `master` is the index of its bridge or 0."""

    def __init__(self, message: Any) -> None:
        info = message.get_attr("IFLA_LINKINFO")
        self.index = int(message["index"])
        self.name = str(message.get_attr("IFLA_IFNAME"))
        self.mac = str(message.get_attr("IFLA_ADDRESS") or "")
        self.mtu = int(message.get_attr("IFLA_MTU") or 0)
        self.master = int(message.get_attr("IFLA_MASTER") or 0)
        self.alias = str(message.get_attr("IFLA_IFALIAS") or "")
        self.kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""


def connect() -> IPRoute:
    """Open a netlink socket in the namespace that the caller is in; it stays there."""
    return IPRoute()


def _failed(what: str, error: NetlinkError) -> MinirunError:
    number = int(error.code)
    text = f"cannot {what}: {os.strerror(number).lower()}"
    if number == errno.EOPNOTSUPP:
        return Unsupported(text, cause="the kernel has no such links", fix="modprobe bridge veth")
    if number in (errno.EPERM, errno.EACCES):
        return Unsupported(text, cause="links need CAP_NET_ADMIN over the host's network")
    return MinirunError(text)


def find(ip: IPRoute, name: str) -> Link | None:
    """Look a link up by name."""
    try:
        return next((Link(message) for message in ip.link("get", ifname=name)), None)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise _failed(f"look up link {name}", error) from error


def links(ip: IPRoute) -> list[Link]:
    """List all links."""
    return [Link(message) for message in ip.get_links()]


def is_ours(link: Link, kind: str, mac: str, ifindex: int = 0) -> bool:
    """Tell whether a link is the one that was made so; `ifindex` 0 is not known."""
    return link.kind == kind and link.mac == mac and ifindex in (0, link.index)


def make_bridge(ip: IPRoute, name: str, mac: str, alias: str) -> Link:
    """Make a bridge, down and without an address, or return ours of that name.

    Its hardware address is set and therefore stays: else it would follow that of its ports, and
    containers would hold stale ARP entries. Raises AlreadyExists for somebody else's link.
    """
    if (link := find(ip, name)) is None:
        try:
            ip.link("add", ifname=name, kind="bridge", address=mac)
            link = find(ip, name)
            if link is None:
                raise MinirunError(f"bridge {name} vanished")
            ip.link("set", index=link.index, ifalias=alias)
        except NetlinkError as error:
            raise _failed(f"make bridge {name}", error) from error
    elif not is_ours(link, "bridge", mac):
        raise AlreadyExists(
            f"link {name} already exists and was not made by minirun",
            fix=f"choose another bridge, or remove it: ip link delete {name}",
        )
    return link


def set_up(ip: IPRoute, index: int, name: str, address: str, prefix: int) -> None:
    """Give a link its address, if it has not got it, and bring it up."""
    try:
        ip.addr("add", index=index, address=address, prefixlen=prefix)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise _failed(f"give {name} the address {address}/{prefix}", error) from error
    try:
        ip.link("set", index=index, state="up")
    except NetlinkError as error:
        raise _failed(f"bring {name} up", error) from error


def make_pair(
    ip: IPRoute,
    name: str,
    mac: str,
    *,
    bridge: int,
    netns: int,
    inner: tuple[str, str],
    mtu: int,
) -> Link:
    """Make a veth pair, its far end at once in `netns` under `inner`'s (name, hardware address).

    One message: no end ever lies in the host's namespace under a name that others may take.
    """
    peer = {"ifname": inner[0], "address": inner[1], "net_ns_fd": netns, "mtu": mtu}
    try:
        ip.link("add", ifname=name, kind="veth", address=mac, mtu=mtu, master=bridge, peer=peer)
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            raise AlreadyExists(
                f"link {name} already exists on the host, or {inner[0]} in the container"
            ) from error
        raise _failed(f"make link {name}", error) from error
    link = find(ip, name)
    if link is None or not is_ours(link, "veth", mac):
        raise MinirunError(f"link {name} vanished")
    return link


def label(ip: IPRoute, index: int, alias: str) -> None:
    """Set a link's alias, which `ip link` shows, and bring it up."""
    try:
        ip.link("set", index=index, ifalias=alias, state="up")
    except NetlinkError as error:
        raise _failed(f"bring link {index} up", error) from error


def add_default_route(ip: IPRoute, gateway: str) -> None:
    """Send everything else to `gateway`."""
    try:
        ip.route("add", dst="default", gateway=gateway)
    except NetlinkError as error:
        raise _failed(f"route to {gateway}", error) from error


def remove(ip: IPRoute, link: Link) -> None:
    """Delete a link; that it went meanwhile is no error."""
    try:
        ip.link("del", index=link.index)
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.EINVAL):
            raise _failed(f"delete link {link.name}", error) from error


def routes(ip: IPRoute) -> list[tuple[str, int, int]]:
    """List the main table's IPv4 routes as (destination, prefix length, interface index)."""
    return [
        (
            str(message.get_attr("RTA_DST") or "0.0.0.0"),
            int(message["dst_len"]),
            int(message.get_attr("RTA_OIF") or 0),
        )
        for message in ip.get_routes(family=AF_INET)
        if message["table"] == _TABLE_MAIN
    ]


def forget_udp(address: str) -> None:
    """Have the kernel forget the UDP connections that are translated to `address`.

    A client that keeps its port would else be led to the container that was, however often the
    port is published anew. Where the kernel has no nf_conntrack_netlink, or far too many
    connections, they end by themselves once the client pauses for some minutes.
    """
    if _connections() > _CONNECTIONS_MAX:
        return
    tracker = NFCTSocket()
    try:
        for message in list(tracker.dump()):
            original, reply = (_tuple(message, f"CTA_TUPLE_{way}") for way in ("ORIG", "REPLY"))
            if original and reply and original["proto"] == _UDP and reply["saddr"] == address:
                tracker.entry("del", tuple_orig=NFCTAttrTuple(**original))
    except NetlinkError:
        return
    finally:
        tracker.close()


def _connections() -> int:
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def _tuple(message: Any, name: str) -> dict[str, Any]:
    """Read one direction of a connection; {} for what is not IPv4 or has no ports."""
    whole = message.get_attr(name)
    ip, proto = whole.get_attr("CTA_TUPLE_IP"), whole.get_attr("CTA_TUPLE_PROTO")
    found = {
        "saddr": ip.get_attr("CTA_IP_V4_SRC"),
        "daddr": ip.get_attr("CTA_IP_V4_DST"),
        "proto": proto.get_attr("CTA_PROTO_NUM"),
        "sport": proto.get_attr("CTA_PROTO_SRC_PORT"),
        "dport": proto.get_attr("CTA_PROTO_DST_PORT"),
    }
    return {} if None in found.values() else found
