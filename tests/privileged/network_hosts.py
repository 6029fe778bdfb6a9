"""Network namespaces of the tests' own that stand for host, outside and containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from runtime import LIMIT, until

import minirun

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
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", int(sys.argv[5])))
try:
    s.connect((address, port))
    if kind == "udp":
        s.send(b"x")
    print(s.recv(5000).decode(), end="")
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
        until(self._is_apart)
        # A new namespace has the machine's setting, which Docker, for one, has changed.
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=0")

    def _is_apart(self) -> bool:
        apart = os.stat(f"/proc/{self.pid}/ns/net").st_ino != MACHINE
        return apart and Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n"

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
            self.command(*argv), input=text, capture_output=True, text=True, timeout=LIMIT,
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

    def ask(
        self, where: str, port: int, kind: str = "tcp", *, timeout: float = 30, source: int = 0
    ) -> str:
        """Connect, from port `source`, and return the server's `PORT PEER`, or `no: REASON`."""
        numbers = (str(timeout), str(source))
        argv = (sys.executable, "-ISc", CLIENT, where, str(port), kind, *numbers)
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
        assert not [table for table in self.tables() if table[1] == "minirun"]
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
        # The kernel sees that there is a carrier in its own time.
        until(lambda: host.links()["up0"]["operstate"] == "UP")
        host.before = (host.links(), host.settings())
        yield made
