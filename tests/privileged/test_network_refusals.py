"""What the bridge network does not let through, and what it refuses without leaving anything."""

from __future__ import annotations

import os
import sys

import network_hosts
import pytest
from network_hosts import Host, Namespace
from runtime import until

from minirun.errors import NotRunning
from minirun.network import address, netns

host = network_hosts.host
outside = network_hosts.outside
pytestmark = pytest.mark.requires("root", "netns", "nft")

# ---- what must not work ----


def test_the_hosts_loopback_stays_the_hosts(host: Host) -> None:
    host.serve(7777, "127.0.0.1")
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    assert host.sysctl("ipv4/conf/minirun0/route_localnet") == "1"
    assert host.sysctl("ipv4/conf/all/route_localnet") == "0"
    # A container that is root of its network sends packets for 127.0.0.1 to the gateway.
    web.run("sysctl", "-q", "net.ipv4.conf.eth0.route_localnet=1")
    web.run("ip", "rule", "add", "pref", "0", "to", "127.0.0.0/8", "lookup", "100")
    web.run("ip", "rule", "add", "pref", "10", "lookup", "local")
    web.run("ip", "route", "add", "127.0.0.0/8", "via", "10.42.0.1", "table", "100")
    web.run("ip", "rule", "del", "pref", "0", "lookup", "local")
    assert web.refused("127.0.0.1", 7777)
    # The same without the guard gets through: it is the guard that refuses.
    host.run("nft", "flush", "chain", "ip", "minirun", "early")
    assert web.ask("127.0.0.1", 7777) == f"7777 {web.ip}"


def test_route_localnet_only_when_a_port_needs_it(host: Host, outside: Namespace) -> None:
    host.attached("web", publish=[{"address": "192.0.2.2", "hostPort": 80, "containerPort": 80}])
    assert host.sysctl("ipv4/conf/minirun0/route_localnet") == "0"


def test_foreign_source_addresses_are_dropped(host: Host) -> None:
    web = host.attached("web")
    host.run("ip", "route", "add", "203.0.113.0/24", "dev", "minirun0")
    host.serve(5000, kind="udp")
    web.run("ip", "address", "add", "203.0.113.7/24", "dev", "eth0")
    web.run("ip", "route", "replace", "10.42.0.1", "dev", "eth0", "src", "203.0.113.7")
    assert web.refused("10.42.0.1", 5000, "udp"), "both tables refuse it"
    host.run("nft", "delete", "table", "bridge", "minirun")
    assert web.refused("10.42.0.1", 5000, "udp"), "and each alone"
    host.run("nft", "flush", "chain", "ip", "minirun", "early")
    assert web.ask("10.42.0.1", 5000, "udp") == "5000 203.0.113.7"


FORGE = """
import socket, struct, sys
claimed, target_mac, own_mac = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0806)
s.bind(("eth0", 0x0806))
arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + own_mac + socket.inet_aton(claimed)
s.send(target_mac + own_mac + b"\\x08\\x06" + arp + target_mac + socket.inet_aton(sys.argv[4]))
"""


def _neighbour(of: Namespace, value: str) -> str:
    [entry] = of.json("ip", "-j", "neigh", "show", value)
    return str(entry["lladdr"])


def test_a_neighbours_address_cannot_be_forged(host: Host) -> None:
    victim, other, forger = host.attached("victim"), host.attached("other"), host.attached("forger")
    other.serve(80)
    victim.run("sysctl", "-q", "net.ipv4.neigh.eth0.locktime=0")
    assert victim.ask(other.ip, 80).startswith("80 ")
    macs = {one.name: one.links()["eth0"]["address"] for one in (victim, other, forger)}
    assert _neighbour(victim, other.ip) == macs["other"]
    plain = [macs[name].replace(":", "") for name in ("victim", "forger")]
    forge = (sys.executable, "-ISc", FORGE, other.ip, *plain, victim.ip)
    forger.run(*forge)
    assert _neighbour(victim, other.ip) == macs["other"]
    # Without the table the same frame is believed.
    host.run("nft", "delete", "table", "bridge", "minirun")
    forger.run(*forge)
    until(lambda: _neighbour(victim, other.ip) == macs["forger"])  # else the frame proves nothing


def test_cloud_metadata_is_a_switch(host: Host) -> None:
    host.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
    host.serve(80, "169.254.169.254")
    host.serve(53, "169.254.169.254", "udp")
    kept, allowed = host.attached("kept"), host.attached("allowed", metadata=True)
    assert kept.ask("169.254.169.254", 80).startswith("no: [Errno 113]"), "refused, not silent"
    assert kept.ask("169.254.169.254", 53, "udp") == f"53 {kept.ip}"
    assert allowed.ask("169.254.169.254", 80) == f"80 {allowed.ip}"


@pytest.mark.parametrize(
    ("address", "port", "other"),
    [("100.100.100.200", 80, 53), ("168.63.129.16", 32526, 443)],
    ids=["Alibaba", "Azure"],
)
def test_of_every_cloud(host: Host, address: str, port: int, other: int) -> None:
    host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    for one in (port, other):
        host.serve(one, address)
    kept, allowed = host.attached("kept"), host.attached("allowed", metadata=True)
    assert kept.ask(address, port).startswith("no: [Errno 113]")
    assert kept.ask(address, other) == f"{other} {kept.ip}"
    assert allowed.ask(address, port) == f"{port} {allowed.ip}"


def test_no_ipv6_on_either_side(host: Host) -> None:
    web = host.attached("web")
    [end] = [link for link in host.links() if link.startswith("mr")]
    assert host.sysctl("ipv6/conf/minirun0/accept_ra") == "0"
    for link in ("minirun0", end):
        assert host.sysctl(f"ipv6/conf/{link}/disable_ipv6") == "1"
    assert web.sysctl("ipv6/conf/eth0/disable_ipv6") == "1"
    assert web.sysctl("ipv6/conf/eth0/accept_ra") == "0"


def test_tables_of_others_are_left_alone(host: Host) -> None:
    host.run("nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c accept")
    before = host.run("nft", "list", "table", "inet", "theirs").stdout
    web = host.attached("web")
    web.detach()
    assert host.tables() == [("inet", "theirs")]
    assert host.run("nft", "list", "table", "inet", "theirs").stdout == before


# ---- refusals leave nothing ----


def test_a_container_in_the_hosts_network_is_refused(host: Host) -> None:
    web = host.container("web")
    done = host.hook("attach", "{}", web.state(pid=host.pid))
    assert done.returncode == 1
    assert "the container is in the host's network namespace" in done.stderr
    host.assert_as_before()


def test_a_process_that_is_gone_is_refused(host: Host) -> None:
    web = host.container("web")
    web.kill()
    done = web.attach()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is gone" in done.stderr
    host.assert_as_before()


def test_a_process_that_goes_while_it_is_looked_at(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid may be another's by the time that /proc/PID is opened."""
    web = host.container("web")
    real = netns._open_of

    def late(pid: int) -> int:
        fd = real(pid)
        web.kill()  # and reaped: from now on the pid is free
        return fd

    monkeypatch.setattr(netns, "_open_of", late)
    monkeypatch.setattr(netns, "start_time", lambda _pid: 1)  # as of who has the pid now
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NotRunning):
        netns.of_process(web.pid)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ('{"network":"../x"}', "invalid network name '../x'"),
        ('{"bridge":"sixteen_letters_"}', "invalid bridge name"),
        ('{"subnet":"10.42.0.0/31"}', "prefix length"),
        ('{"mtu":"x"}', "mtu: must be an integer"),
        ('{"publish":[{"containerPort":80,"address":"::1"}]}', "not an IPv4 address"),
        ("{", "network request"),
    ],
)
def test_bad_requests(host: Host, argument: str, words: str) -> None:
    done = host.hook("attach", argument, host.container("web").state())
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr
    host.assert_as_before()


@pytest.mark.parametrize(
    "state", ["", "{", "[]", '{"id":"../x","pid":1}', '{"pid":1}', '{"id":"a"}']
)
def test_bad_states(host: Host, state: str) -> None:
    done = host.hook("attach", "{}", state)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("minirun: network attach")
    host.assert_as_before()


def test_the_same_container_twice(host: Host) -> None:
    web, again = host.attached("web"), host.container("again")
    assert "already attached to network default" in web.attach().stderr
    again.name = "web"
    assert "already attached to network default" in again.attach().stderr
    assert "eth0" not in again.links()
    web.name = "other"
    assert "is attached as container web" in web.attach().stderr
    assert host.inspect("web")["address"] == web.ip


def test_a_full_network(host: Host) -> None:
    host.attached("one", subnet="10.9.0.0/30")
    two = host.container("two")
    done = two.attach()
    assert "no free address in network default (10.9.0.0/30)" in done.stderr
    assert "eth0" not in two.links()
    assert "10.9.0.0/30, not 10.8.0.0/24" in two.attach(subnet="10.8.0.0/24").stderr


def test_links_of_others_are_neither_used_nor_deleted(host: Host) -> None:
    host.run("ip", "link", "add", "minirun0", "type", "bridge")
    web = host.container("web")
    done = web.attach()
    assert "link minirun0 already exists and was not made by minirun" in done.stderr
    assert "minirun0" in host.links() and "eth0" not in web.links()
    host.run("ip", "link", "delete", "minirun0")
    name = address.link_name("default", "web")
    host.run("ip", "link", "add", name, "type", "bridge")
    assert f"link {name} already exists" in web.attach().stderr
    assert host.links()[name]["linkinfo"]["info_kind"] == "bridge"
    host.run("ip", "link", "delete", name)
    host.assert_as_before()


def test_a_link_that_took_the_name_of_ours_is_not_deleted(host: Host) -> None:
    web = host.attached("web")
    name = address.link_name("default", "web")
    host.run("ip", "link", "delete", name)
    host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "theirs")
    assert web.detach().returncode == 0
    assert name in host.links()
    assert "minirun0" not in host.links()


def test_a_bridge_with_others_on_it_stays(host: Host) -> None:
    web = host.attached("web")
    host.run("ip", "link", "add", "tap7", "type", "veth", "peer", "name", "tap8")
    host.run("ip", "link", "set", "tap7", "master", "minirun0")
    web.detach()
    assert host.links()["tap7"]["master"] == "minirun0"
    assert host.attached("next").ip == "10.42.0.2", "and is used again"


def test_a_subnet_that_the_host_routes(host: Host, outside: Namespace) -> None:
    host.run("ip", "route", "add", "10.42.7.0/24", "via", "192.0.2.1")
    web = host.container("web")
    done = web.attach()
    assert "subnet 10.42.0.0/16 overlaps 10.42.7.0/24, which the host routes" in done.stderr
    host.run("ip", "route", "del", "10.42.7.0/24")
    host.run("ip", "route", "add", "10.43.0.0/24", "via", "192.0.2.1")
    assert web.attach(network="auto").returncode == 0
    assert web.ip == "10.43.1.2"


def test_an_interface_of_that_name_in_the_container(host: Host) -> None:
    web = host.container("web")
    web.run("ip", "link", "add", "eth0", "type", "bridge")
    done = web.attach()
    assert done.returncode == 1 and "eth0 in the container" in done.stderr
    assert web.links()["eth0"]["linkinfo"]["info_kind"] == "bridge"
    host.assert_as_before()
