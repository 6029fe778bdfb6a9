"""The bridge network, in network namespaces of the tests' own that stand for host and outside.

Containers are sleepers in fresh namespaces; the hooks run as a runtime calls them. What is true is
asked of the kernel: ip -j, nft -j, /proc/sys, and connections between the namespaces.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

import minirun
from minirun.network import address

pytestmark = pytest.mark.requires("root", "netns", "nft")

ROOT = str(Path(minirun.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"}
HOOK = "import sys; from minirun.network.hook import main; sys.exit(main(sys.argv[1:]))"
MACHINE = os.stat("/proc/self/ns/net").st_ino

# Says who asks, and hears nothing: enough to tell which address a connection came from.
SERVER = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((address, port))
if kind == "tcp":
    s.listen(8)
print("ready", flush=True)
while True:
    if kind == "udp":
        peer = s.recvfrom(100)[1]
        s.sendto(f"{port} {peer[0]}".encode(), peer)
    else:
        c, peer = s.accept()
        c.sendall(f"{port} {peer[0]}".encode())
        c.close()
"""
CLIENT = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
s.settimeout(float(sys.argv[4]))
try:
    s.connect((address, port))
    if kind == "udp":
        s.send(b"x")
    print(s.recv(100).decode(), end="")
except OSError as error:
    print("no:", error, end="")
"""


class Namespace:
    """A process in a network namespace of its own, and what is run in there."""

    def __init__(self) -> None:
        # Everything is started with it as parent's child, and dies with the test.
        self.process = subprocess.Popen(["unshare", "--net", "sleep", "600"], text=True)
        self.pid = self.process.pid
        self._servers: list[subprocess.Popen[str]] = []
        for _ in range(500):
            if os.stat(f"/proc/{self.pid}/ns/net").st_ino != MACHINE and self._comm() == "sleep":
                return
            time.sleep(0.01)
        raise AssertionError("no namespace was made")

    def _comm(self) -> str:
        return Path(f"/proc/{self.pid}/comm").read_text().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def kill(self) -> None:
        for process in [*self._servers, self.process]:
            process.kill()
            process.communicate()

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def run(
        self, *argv: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*argv), input=text, capture_output=True, text=True, timeout=60,
            check=False, env=ENVIRONMENT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv).stdout or "[]")

    def links(self) -> dict[str, Any]:
        return {link["ifname"]: link for link in self.json("ip", "-j", "-d", "link")}

    def addresses(self, link: str) -> list[str]:
        [found] = self.json("ip", "-j", "address", "show", "dev", link)
        return [f"{one['local']}/{one['prefixlen']}" for one in found["addr_info"]]

    def tables(self) -> list[tuple[str, str]]:
        found = self.json("nft", "-j", "list", "tables")["nftables"]
        return [(one["table"]["family"], one["table"]["name"]) for one in found if "table" in one]

    def sysctl(self, key: str) -> str:
        return self.run("cat", "/proc/sys/net/" + key).stdout.strip()

    def serve(self, port: int, where: str = "0.0.0.0", kind: str = "tcp") -> None:
        process = subprocess.Popen(
            self.command(sys.executable, "-ISc", SERVER, where, str(port), kind),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._servers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def ask(self, where: str, port: int, kind: str = "tcp", timeout: float = 5) -> str:
        """Connect and return the server's `PORT PEER`, or `no: REASON`."""
        argv = (sys.executable, "-ISc", CLIENT, where, str(port), kind, str(timeout))
        return self.run(*argv).stdout

    def refused(self, where: str, port: int, kind: str = "tcp") -> bool:
        return self.ask(where, port, kind, timeout=0.7).startswith("no:")


class Container(Namespace):
    """What a runtime made, up to where it calls the hooks."""

    def __init__(self, host: Host, name: str, bundle: Path) -> None:
        super().__init__()
        self.host = host
        self.name = name
        self.bundle = bundle
        self.bundle.mkdir(exist_ok=True)
        (self.bundle / "hosts").write_text("")

    def state(self, **changed: Any) -> str:
        state = {
            "ociVersion": "1.2.0", "id": self.name, "status": "created", "pid": self.pid,
            "bundle": str(self.bundle), **changed,
        }  # fmt: skip
        return json.dumps(state)

    def attach(self, **request: Any) -> subprocess.CompletedProcess[str]:
        return self.host.hook("attach", json.dumps(request), self.state())

    def detach(self, network: str = "default") -> subprocess.CompletedProcess[str]:
        return self.host.hook("detach", network, self.state(pid=0, status="stopped"))

    def names(self) -> dict[str, str]:
        lines = (self.bundle / "hosts").read_text().splitlines()
        return {name: line.split()[0] for line in lines for name in line.split()[1:]}

    @property
    def ip(self) -> str:
        [found] = self.addresses("eth0")
        return found.partition("/")[0]


class Host(Namespace):
    """The namespace in which bridge and table are made, and the directory of the leases."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.state_dir = str(directory / "state")
        self.stack = ExitStack()
        self.run("ip", "link", "set", "lo", "up")
        self.before = (self.links(), self.settings())

    def kill(self) -> None:
        self.stack.close()
        super().kill()

    def hook(
        self, verb: str, argument: str, state: str, code: str = HOOK
    ) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-c", code, verb, "--state-dir", self.state_dir, argument)
        return self.run(*argv, text=state, check=False)

    def container(self, name: str) -> Container:
        return self.stack.enter_context(Container(self, name, self.directory / name))

    def attached(self, name: str, **request: Any) -> Container:
        container = self.container(name)
        done = container.attach(**request)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return container

    def gc(self, *flags: str) -> str:
        argv = ("-m", "minirun", "network", "gc", "--state-dir", self.state_dir, *flags)
        return self.run(sys.executable, *argv).stdout

    def inspect(self, name: str) -> Any:
        argv = ("-m", "minirun", "network", "inspect", "--json", "--state-dir", self.state_dir)
        return self.json(sys.executable, *argv, name)

    def settings(self) -> str:
        return self.run("sysctl", "-a", "--pattern", r"^net\.ipv[46]\.(conf|ip_forward)").stdout

    def assert_as_before(self) -> None:
        """Nothing of ours is left: links, table, settings, leases."""
        assert (self.links(), self.settings()) == self.before
        assert ("ip", "minirun") not in self.tables()
        assert not os.path.exists(self.state_dir) or os.listdir(self.state_dir) == []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as made:
        yield made
    assert os.stat("/proc/self/ns/net").st_ino == MACHINE


@pytest.fixture
def outside(host: Host) -> Iterator[Namespace]:
    """Another machine at the host's uplink: 192.0.2.1, the host being 192.0.2.2."""
    with Namespace() as made:
        host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        host.run("ip", "link", "set", "far0", "netns", str(made.pid))
        host.run("ip", "address", "add", "192.0.2.2/24", "dev", "up0")
        host.run("ip", "link", "set", "up0", "up")
        made.run("ip", "address", "add", "192.0.2.1/24", "dev", "far0")
        made.run("ip", "link", "set", "far0", "up")
        made.run("ip", "link", "set", "lo", "up")
        host.run("ip", "route", "add", "default", "via", "192.0.2.1")
        host.before = (host.links(), host.settings())
        yield made


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
    assert host.tables() == [("ip", "minirun")]


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
    assert web.refused("10.42.0.1", 5000, "udp")
    host.run("nft", "flush", "chain", "ip", "minirun", "early")
    assert web.ask("10.42.0.1", 5000, "udp") == "5000 203.0.113.7"


def test_cloud_metadata_is_a_switch(host: Host) -> None:
    host.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
    host.serve(80, "169.254.169.254")
    host.serve(53, "169.254.169.254", "udp")
    kept, allowed = host.attached("kept"), host.attached("allowed", metadata=True)
    assert kept.ask("169.254.169.254", 80).startswith("no: [Errno 113]"), "refused, not silent"
    assert kept.ask("169.254.169.254", 53, "udp") == f"53 {kept.ip}"
    assert allowed.ask("169.254.169.254", 80) == f"80 {allowed.ip}"


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


# ---- crashes ----

# Every place where the kernel or the file has just been, or is about to be, changed.
STEPS = (
    "leases.Book.save", "veth.make_bridge", "veth.set_up", "firewall.apply", "veth.make_pair",
    "veth.label", "veth.add_default_route", "names.rewrite", "sysctl.put",
)  # fmt: skip
CRASH = """
import os, sys
from minirun.network import firewall, leases, names, sysctl, veth
from minirun.network.hook import main
step, when, action = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
module, _, name = step.rpartition(".")
owner = eval(module)
real = getattr(owner, name)
calls = 0
def wrapped(*args, **kw):
    global calls
    calls += 1
    if calls > 1 and action == "raise":
        return real(*args, **kw)
    if when == "after":
        real(*args, **kw)
    if action == "kill":
        os.kill(os.getpid(), 9)
    raise OSError(5, "made to fail")
setattr(owner, name, wrapped)
sys.exit(main(sys.argv[1:]))
"""


def _broken(host: Host, container: Container, *how: str, verb: str = "attach") -> int:
    argument = (
        '{"publish":[{"hostPort":8080,"containerPort":80}]}' if verb == "attach" else "default"
    )
    argv = (sys.executable, "-c", CRASH, *how, verb, "--state-dir", host.state_dir, argument)
    return host.run(*argv, text=container.state(), check=False).returncode


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_attach_is_undone_by_the_next(host: Host, step: str, when: str) -> None:
    web = host.container("web")
    assert _broken(host, web, step, when, "kill") == -signal.SIGKILL
    done = web.attach(publish=[{"hostPort": 8080, "containerPort": 80}])
    if step == "names.rewrite":  # all was done but the telling
        assert "already attached" in done.stderr
        host.attached("next").detach()
    else:
        assert (done.returncode, done.stderr) == (0, "")
    web.serve(80)
    assert host.ask("127.0.0.1", 8080) == "80 10.42.0.1"
    assert web.names()["web"] == web.ip
    assert len([one for one in host.links().values() if one.get("master") == "minirun0"]) == 1
    web.detach()
    host.assert_as_before()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_attach_leaves_nothing(host: Host, step: str, when: str) -> None:
    web = host.container("web")
    assert _broken(host, web, step, when, "raise") == 1
    host.assert_as_before()
    assert "eth0" not in web.links()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["veth.remove", "firewall.apply", "leases.Book.save"])
def test_a_killed_detach_can_be_repeated(host: Host, step: str, when: str) -> None:
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    assert _broken(host, web, step, when, "kill", verb="detach") == -signal.SIGKILL
    assert web.detach().returncode == 0
    host.assert_as_before()


def test_containers_that_died_are_swept(host: Host) -> None:
    dead, web = host.attached("dead"), host.attached("web")
    value = dead.ip
    dead.kill()
    for _ in range(500):  # the kernel takes the namespace down in its own time
        if address.link_name("default", "dead") not in host.links():
            break
        time.sleep(0.01)
    expected = f"default: dead ({value}): its process is gone\n"
    assert host.gc("--dry-run") == "would release " + expected
    assert host.gc() == "released " + expected
    assert "dead" not in web.names()
    assert host.gc() == ""
    web.detach()
    host.assert_as_before()


def test_a_flushed_ruleset_is_put_back(host: Host) -> None:
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    web.serve(80)
    host.run("nft", "flush", "ruleset")
    assert host.refused("127.0.0.1", 8080)
    host.gc()
    assert host.ask("127.0.0.1", 8080).startswith("80 ")


def test_another_host_does_not_touch_what_is_not_there(host: Host, tmp_path: Path) -> None:
    web = host.attached("web")
    with Host(tmp_path) as other:
        done = other.hook("detach", "default", web.state())
        assert "the networks belong to another network namespace" in done.stderr
    assert host.inspect("web")["address"] == web.ip
    assert web.detach().returncode == 0
    host.assert_as_before()


def test_eight_at_once_get_addresses_of_their_own(host: Host) -> None:
    names = [f"c{number}" for number in range(8)]
    containers = [host.container(name) for name in names]
    argv = [sys.executable, "-c", HOOK, "attach", "--state-dir", host.state_dir]
    request = '{"publish":[{"containerPort":80}]}'

    def started(words: Sequence[str]) -> list[subprocess.Popen[str]]:
        made = []
        for container in containers:
            process = subprocess.Popen(
                host.command(*words), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=ENVIRONMENT,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(container.state())
            process.stdin.close()
            process.stdin = None
            made.append(process)
        return made

    running = started([*argv, request])
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 8
    addresses = {container.ip for container in containers}
    ports = {host.inspect(name)["ports"][0]["hostPort"] for name in names}
    assert len(addresses) == len(ports) == 8
    assert set(names) <= set(containers[0].names())
    running = started([*argv[:3], "detach", *argv[4:], "default"])
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 8
    host.assert_as_before()


def test_the_hosts_file_is_rewritten_in_place(host: Host) -> None:
    web = host.container("web")
    before = os.stat(web.bundle / "hosts").st_ino
    web.attach()
    host.attached("db")
    assert os.stat(web.bundle / "hosts").st_ino == before
    victim = host.directory / "victim"
    victim.write_text("untouched")
    (web.bundle / "hosts").unlink()
    (web.bundle / "hosts").symlink_to(victim)
    host.attached("third")
    assert victim.read_text() == "untouched"
