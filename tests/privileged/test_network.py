"""The bridge network works: names, published ports, the way out.

Containers are sleepers in fresh namespaces; the hooks run as a runtime calls them. What is true is
asked of the kernel: ip -j, nft -j, /proc/sys, and connections between the namespaces.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import network_hosts
import pytest
from network_hosts import Container, Host, Namespace

from minirun.network import address

if TYPE_CHECKING:
    from pathlib import Path

host = network_hosts.host
outside = network_hosts.outside
pytestmark = pytest.mark.requires("root", "netns", "nft")

# ---- what works ----


def test_two_containers_reach_each_other_and_the_host(host: Host) -> None:
    web, db = host.attached("web"), host.attached("db", hostname="database")
    host.serve(7000)
    web.serve(80)
    db.serve(5432, kind="udp")
    assert db.ask(db.names()["web"], 80) == f"80 {db.ip}"
    assert web.ask(web.names()["database"], 5432, "udp") == f"5432 {web.ip}"
    assert web.ask(web.names()["host.minirun.internal"], 7000) == f"7000 {web.ip}"
    assert host.ask(web.ip, 80) == "80 10.42.0.1"
    assert web.names()["db"] == db.ip and web.names()["web"] == web.ip
    web.serve(90, "127.0.0.1")
    assert web.ask("127.0.0.1", 90) == "90 127.0.0.1"


def test_the_kernel_shows_what_was_asked(host: Host) -> None:
    web = host.attached("web", mtu=1400)
    links = host.links()
    assert host.addresses("minirun0") == ["10.42.0.1/16"]
    [link] = [one for one in links.values() if one.get("master") == "minirun0"]
    assert link["ifalias"] == "minirun:default:web"
    assert "UP" in link["flags"] and link["mtu"] == 1400
    assert links["minirun0"]["mtu"] == 1400
    assert web.addresses("eth0") == ["10.42.0.2/16"]
    assert web.links()["eth0"]["address"] == address.mac(address.parse("10.42.0.2"))
    [route] = web.json("ip", "-j", "route", "show", "default")
    assert (route["gateway"], route["dev"]) == ("10.42.0.1", "eth0")
    assert sorted(host.tables()) == [("bridge", "minirun"), ("ip", "minirun")]


def test_everything_is_gone_after_delete(host: Host, outside: Namespace) -> None:
    web = host.attached("web", publish=[{"containerPort": 80}])
    db = host.attached("db")
    assert web.names()["db"] == db.ip
    assert db.detach().returncode == 0
    assert "db" not in web.names()
    assert len(host.links()) == 4  # lo, the uplink, the bridge, one end
    assert web.detach().returncode == 0
    host.assert_as_before()
    assert web.detach().returncode == 0, "detach can be repeated"
    assert "eth0" not in web.links()


def test_one_of_the_same_id_is_left_alone(host: Host, tmp_path: Path) -> None:
    """IDs are a state root's: the other's creation fails, and poststop hooks undo that."""
    web, other = host.attached("web"), Container(host, "web", tmp_path / "another")
    with other:
        assert "already attached" in other.attach().stderr
        assert other.detach().returncode == 0
    assert "eth0" in web.links()
    assert "minirun0" in host.links()
    assert web.detach().returncode == 0
    host.assert_as_before()


def test_the_bridge_keeps_its_hardware_address(host: Host) -> None:
    host.attached("a")
    before = host.links()["minirun0"]["address"]
    for name in "bcd":
        host.attached(name)
        assert host.links()["minirun0"]["address"] == before


def test_networks_are_apart(host: Host) -> None:
    one, two = host.attached("one"), host.attached("two", network="other")
    one.serve(80)
    two.serve(80)
    assert host.addresses("mr-other") == ["10.43.0.1/24"]
    assert one.refused(two.ip, 80) and two.refused(one.ip, 80)
    assert host.ask(two.ip, 80) == "80 10.43.0.1"
    assert "two" not in one.names()
    assert one.detach().returncode == two.detach("other").returncode == 0
    host.assert_as_before()


# ---- published ports ----


def test_a_published_port_answers_the_host_and_nobody_else(host: Host, outside: Namespace) -> None:
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    other = host.attached("other")
    web.serve(80)
    assert host.ask("127.0.0.1", 8080) == "80 10.42.0.1"
    assert host.refused("192.0.2.2", 8080)
    assert outside.refused("192.0.2.2", 8080)
    assert other.refused("10.42.0.1", 8080)
    # Who routes to the host gets no further than who asks its own address.
    outside.run("ip", "route", "add", "10.42.0.0/16", "via", "192.0.2.2")
    assert outside.refused(web.ip, 80)
    web.detach()
    assert host.refused("127.0.0.1", 8080)


def test_a_port_published_on_all_addresses(host: Host, outside: Namespace) -> None:
    publish = {"address": "0.0.0.0", "hostPort": 8080, "containerPort": 80}
    web, other = host.attached("web", publish=[publish]), host.attached("other")
    web.serve(80)
    assert outside.ask("192.0.2.2", 8080) == "80 192.0.2.1", "its source is not hidden"
    assert host.ask("127.0.0.1", 8080) == "80 10.42.0.1"
    assert host.ask("192.0.2.2", 8080).startswith("80 ")
    assert other.ask("192.0.2.2", 8080) == "80 10.42.0.1"
    assert other.ask("10.42.0.1", 8080) == "80 10.42.0.1"


def test_ranges_udp_and_a_free_choice(host: Host) -> None:
    web = host.attached(
        "web",
        publish=[
            {"hostPort": 8000, "containerPort": 80, "count": 3},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
            {"containerPort": 99},
        ],
    )
    for port in (80, 82, 99):
        web.serve(port)
    web.serve(53, kind="udp")
    assert host.ask("127.0.0.1", 8000).startswith("80 ")
    assert host.ask("127.0.0.1", 8002).startswith("82 ")
    assert host.ask("127.0.0.1", 5353, "udp").startswith("53 ")
    [chosen] = [one for one in host.inspect("web")["ports"] if one["containerPort"] == 99]
    assert chosen["hostAddress"] == "127.0.0.1" and chosen["hostPort"] > 1023
    assert host.ask("127.0.0.1", chosen["hostPort"]).startswith("99 ")


def test_a_taken_port_names_its_holder(host: Host) -> None:
    host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    second = host.container("second")
    done = second.attach(publish=[{"address": "0.0.0.0", "hostPort": 8080, "containerPort": 80}])
    assert (done.returncode, done.stderr) == (1, (
        "minirun: network attach second: "
        "port 0.0.0.0:8080:80/tcp is already published by container web\n"
    ))  # fmt: skip
    host.serve(9090)
    done = second.attach(publish=[{"hostPort": 9090, "containerPort": 80}])
    assert done.returncode == 1
    assert "port 127.0.0.1:9090/tcp is already in use by process" in done.stderr
    assert "(python" in done.stderr
    done = second.attach(publish=[{"address": "203.0.113.9", "hostPort": 1, "containerPort": 1}])
    assert "203.0.113.9 is not an address of this host" in done.stderr
    assert len(host.inspect("default")["containers"]) == 1
    assert second.attach().returncode == 0


def test_a_udp_client_that_goes_on_reaches_the_next_container(host: Host) -> None:
    first = host.attached("first", publish=[_udp(5353, 53)])
    first.serve(53, kind="udp")
    host.attached("keeps-the-network")
    assert host.ask("127.0.0.1", 5353, "udp", source=4444).startswith("53 ")
    assert first.detach().returncode == 0
    second = host.attached("second", publish=[_udp(5353, 54)])
    second.serve(54, kind="udp")
    assert host.ask("127.0.0.1", 5353, "udp", source=4444).startswith("54 ")


def _udp(outside_: int, inside: int) -> dict[str, object]:
    return {"hostPort": outside_, "containerPort": inside, "protocol": "udp"}


# ---- the way out ----


def test_nat_opens_the_uplink_for_the_bridge_only(host: Host, outside: Namespace) -> None:
    outside.serve(80)
    web = host.attached("web")
    assert web.ask("192.0.2.1", 80) == "80 192.0.2.2"
    assert host.sysctl("ipv4/ip_forward") == "0"
    assert host.sysctl("ipv4/conf/up0/forwarding") == "1"
    with Namespace() as third:
        host.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "far1")
        host.run("ip", "link", "set", "far1", "netns", str(third.pid))
        host.run("ip", "address", "add", "198.51.100.2/24", "dev", "lan0")
        host.run("ip", "link", "set", "lan0", "up")
        third.run("ip", "address", "add", "198.51.100.1/24", "dev", "far1")
        third.run("ip", "link", "set", "far1", "up")
        third.run("ip", "route", "add", "default", "via", "198.51.100.2")
        third.serve(80)
        outside.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
        # Only the answer's direction lacks forwarding: with udp one way would be enough.
        host.run("sysctl", "-q", "net.ipv4.conf.lan0.forwarding=1")
        assert outside.refused("198.51.100.1", 80), "the host became a router"
        host.run("nft", "flush", "chain", "ip", "minirun", "forward")
        assert outside.ask("198.51.100.1", 80).startswith("80 "), "the guard is what refuses"
        host.run("ip", "link", "delete", "lan0")
    web.detach()
    host.assert_as_before()


def test_forwarding_that_was_on_stays_on(host: Host, outside: Namespace) -> None:
    host.run("sysctl", "-q", "net.ipv4.ip_forward=1")
    host.before = (host.links(), host.settings())
    web = host.attached("web")
    assert "unasked" not in host.run("nft", "list", "ruleset").stdout
    web.detach()
    host.assert_as_before()
    assert host.sysctl("ipv4/conf/up0/forwarding") == "1"


def test_forwarding_switched_on_later_is_left_to_who_did(host: Host, outside: Namespace) -> None:
    web = host.attached("web")
    assert "unasked" in host.run("nft", "list", "ruleset").stdout
    host.run("sysctl", "-q", "net.ipv4.ip_forward=1")
    host.gc()
    assert "unasked" not in host.run("nft", "list", "ruleset").stdout
    web.detach()
    assert host.sysctl("ipv4/conf/up0/forwarding") == "1"


def test_the_mtu_is_the_uplinks(host: Host, outside: Namespace) -> None:
    host.run("ip", "link", "set", "up0", "mtu", "1450")
    assert host.attached("web").links()["eth0"]["mtu"] == 1450


def test_inspect_says_who_else_drops(host: Host) -> None:
    host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    argv = (sys.executable, "-m", "minirun", "network", "inspect", "--state-dir", host.state_dir)
    said = host.run(*argv, "web").stdout
    assert "127.0.0.1:8080:80/tcp (from this host only)" in said
    assert "note:" not in said
    chain = "FORWARD { type filter hook forward priority 0; policy %s; }"
    host.run("nft", f"add table ip filter; add chain ip filter {chain % 'accept'}")
    assert "note:" not in host.run(*argv, "web").stdout
    host.run("nft", f"add chain ip filter {chain % 'drop'}")
    assert "note: nft chain ip filter FORWARD drops" in host.run(*argv, "web").stdout
