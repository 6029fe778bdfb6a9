"""linux.netDevices: devices of the host that move into the container, and come back."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from runtime import good, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs", "netns")

NAME = f"mrd{os.getpid() % 100000}"


def ip(*words: str, netns: int | None = None) -> Any:
    prefix = [] if netns is None else ["nsenter", f"--net=/proc/{netns}/ns/net"]
    done = subprocess.run([*prefix, "ip", "-j", *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def look(name: str, netns: int | None = None) -> dict[str, Any] | None:
    """Return flags and addresses of a device; None if it is not there."""
    found = [one for one in ip("addr", netns=netns) if one.get("ifname") == name]
    if not found:
        return None
    addresses = {
        f"{one['local']}/{one['prefixlen']}": one.get("label")
        for one in found[0]["addr_info"]
        if one["scope"] == "global"
    }
    return {"up": "UP" in found[0]["flags"], "addresses": addresses, "mtu": found[0]["mtu"]}


@pytest.fixture
def device() -> Iterator[str]:
    ip("link", "add", NAME, "mtu", "1400", "type", "veth", "peer", "name", f"{NAME}p")
    ip("addr", "add", "10.99.99.1/24", "brd", "+", "dev", NAME)
    ip("addr", "add", "10.99.99.2/32", "label", f"{NAME}:x", "dev", NAME)
    yield NAME
    # It may go on its own at any moment: with the namespace that its other end was in.
    subprocess.run(["ip", "link", "del", f"{NAME}p"], check=False, capture_output=True)


@pytest.mark.parametrize("userns", [False, True])
@pytest.mark.parametrize("name", ["", "eth7"])
def test_a_device_moves(box: Box, device: str, name: str, userns: bool) -> None:
    if userns:
        box.user_namespace()
    box.linux["netDevices"] = {device: {"name": name} if name else {}}
    pid = box.up()
    assert look(device) is None
    found = look(name or device, pid)
    assert found is not None
    assert found["up"]
    assert found["mtu"] == 1400
    assert set(found["addresses"]) == {"10.99.99.1/24", "10.99.99.2/32"}
    good(box.delete("--force"))


def test_addresses_of_ipv6(box: Box, device: str) -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6")
    ip("addr", "add", "fd00:99::1/64", "nodad", "dev", device)
    ip("link", "set", device, "up")
    box.linux["netDevices"] = {device: {}}
    pid = box.up()
    found = look(device, pid)
    assert found is not None
    assert "fd00:99::1/64" in found["addresses"]


def test_hooks_see_it_moved(box: Box, device: str) -> None:
    box.linux["netDevices"] = {device: {"name": "eth7"}}
    script = f"nsenter --net=/proc/self/ns/net ip link show {device} && exit 1; exit 0"
    box.hook("createRuntime", script, env=["PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
    box.up()


def test_a_device_that_is_not_there(box: Box) -> None:
    box.linux["netDevices"] = {"mrnone0": {}}
    error = box.refused()
    assert "linux.netDevices.mrnone0: no such network device" in error
    assert "no such file" not in error  # which engines take for a missing program


def test_a_name_that_the_container_has(box: Box, device: str) -> None:
    before = look(device)
    box.linux["netDevices"] = {device: {"name": "lo"}}
    assert "the container has a network device lo" in box.refused()
    assert look(device) == before


@pytest.mark.parametrize("name", ["eth%d", "../x", "a/b", "a:b", "a b", "x" * 16, ".."])
def test_a_name_that_no_device_can_have(box: Box, device: str, name: str) -> None:
    """A pattern would become another name, under which the device was not found again."""
    before = look(device)
    box.linux["netDevices"] = {device: {"name": name}}
    assert "is not the name of a network device" in box.refused()
    assert look(device) == before


@pytest.mark.parametrize("up", [True, False])
def test_it_comes_back_when_the_creation_fails(box: Box, device: str, up: bool) -> None:
    """With its name, addresses and labels: the namespace's end would have removed it."""
    if up:
        ip("link", "set", device, "up")
    before = look(device)
    box.linux["netDevices"] = {device: {"name": "eth7"}}
    box.hook("createContainer", "exit 1")
    box.refused()
    until(lambda: look(device) == before)


def test_the_first_comes_back_when_the_second_fails(box: Box, device: str) -> None:
    before = look(device)
    box.linux["netDevices"] = {device: {}, "mrnone0": {}}
    box.refused()
    assert look(device) == before


def test_the_namespace_ends_with_the_container(box: Box, device: str) -> None:
    """Nothing of the runtime holds it: a virtual device goes with it, as the kernel has it."""
    box.linux["netDevices"] = {device: {"name": "eth7"}}
    box.process["args"] = ["/bin/true"]
    good(box.run())
    until(lambda: look("eth7") is None and look(device) is None)
