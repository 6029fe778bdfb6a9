"""linux.netDevices: the host's network devices that move into the container (config-linux.md).

Moving takes addresses away and the device down, so they are read before and given again. If the
creation fails the devices come back as they were; when the container ends, the kernel returns
physical ones to the host under their new names, and removes virtual ones: network_namespaces(7).
"""

from __future__ import annotations

import errno
import os

from minirun.errors import MinirunError
from minirun.kernel import netlink, unshare
from minirun.kernel.netlink import IFA_CACHEINFO, IFA_FLAGS, IFA_LABEL, Route
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.kernel.netlink import Address
    from minirun.setup import Setup

_KEPT_FLAGS = 0x02 | 0x200  # IFA_F_NODAD, IFA_F_NOPREFIXROUTE: what was asked for, not a state


def _describe(setup: Setup) -> list[str]:
    return [
        name if not device.name or device.name == name else f"{name} as {device.name}"
        for name, device in setup.spec.linux.net_devices.items()
    ]


@step(_describe, details=_describe)
def move(setup: Setup) -> None:
    """Move network devices of the host into the container"""
    setup.netns = os.open(f"/proc/{setup.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    setup.undo.append(lambda: _close(setup))
    for name, device in setup.spec.linux.net_devices.items():
        _move(setup, name, device.name or name)


@step(_describe)
def settle(setup: Setup) -> None:
    """Let go of the container's network namespace"""
    # Held until nothing can fail any more: a namespace that ends takes virtual devices along.
    _close(setup)


def _close(setup: Setup) -> None:
    if setup.netns >= 0:
        os.close(setup.netns)
        setup.netns = -1


def _move(setup: Setup, name: str, inside: str) -> None:
    with Route() as here, _route_in(setup.netns) as there:
        found = here.find(name)
        if found is None:
            raise _refused(name, "no such network device", errno.ENODEV)
        if there.find(inside) is not None:
            # Looked at before: the kernel would move it first and then fail to rename it.
            raise _refused(name, f"the container has a network device {inside}", errno.EEXIST)
        index, flags = found
        addresses = here.addresses(index)
        here.move(index, inside, setup.netns)
        setup.undo.append(lambda: _bring_back(setup, inside, name, flags, addresses))
        _configure(there, inside, _wanted(addresses, renamed=inside != name), up=True)


def _refused(name: str, problem: str, number: int) -> MinirunError:
    # Not "no such file": engines would take it for a missing program.
    return MinirunError(
        f"linux.netDevices.{name}: {problem}", cause=f"rtnetlink(7) says {os.strerror(number)}"
    )


def _wanted(addresses: list[Address], *, renamed: bool) -> list[Address]:
    """Choose the addresses that move too: permanent ones of global scope, as the spec says."""
    found = []
    for one in addresses:
        if one.scope != netlink.RT_SCOPE_UNIVERSE or not one.flags & netlink.IFA_F_PERMANENT:
            continue
        kept = {kind: value for kind, value in one.attributes.items() if kind != IFA_CACHEINFO}
        kept[IFA_FLAGS] = (one.flags & _KEPT_FLAGS).to_bytes(4, "little")
        if renamed:
            kept.pop(IFA_LABEL, None)  # kernel: it must begin with the device's name
        found.append(netlink.Address(one.family, one.prefix, one.scope, kept))
    return found


def _configure(route: Route, name: str, addresses: list[Address], *, up: bool) -> None:
    found = route.find(name)
    assert found is not None
    for one in addresses:
        route.add(found[0], one)
    if up:
        route.set_up(found[0])


def _bring_back(setup: Setup, inside: str, name: str, flags: int, addresses: list[Address]) -> None:
    with Route() as here, _route_in(setup.netns) as there:
        found = there.find(inside)
        if found is None:
            return
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there.move(found[0], name, own)
        finally:
            os.close(own)
        _configure(here, name, _wanted(addresses, renamed=False), up=bool(flags & netlink.IFF_UP))


def _route_in(netns: int) -> Route:
    """Make a socket of another network namespace; this process is there for that moment only."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare.setns(netns, unshare.CLONE_NEWNET)
        try:
            return Route()
        finally:
            unshare.setns(own, unshare.CLONE_NEWNET)
    finally:
        os.close(own)
