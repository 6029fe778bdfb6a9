"""What a container asks of the network, and what that puts into its bundle.

Light enough for `run`: no pyroute2, no processes. The work itself is done by the hooks.
"""

from __future__ import annotations

import os

from minirun.errors import ConfigError, MinirunError, UsageError
from minirun.jsontext import dumps
from minirun.network import address, names
from minirun.record import Record, boolean, integer, many, string, strings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Beside the containers' state, under a name that no container may have.
DEFAULT_STATE_DIR = "/run/minirun/.network"
PUBLISH_ADDRESS = "127.0.0.1"  # unless asked otherwise
PORT_MAX = 65535
PROTOCOLS = ("tcp", "udp")
HOOK_TIMEOUT = 120  # seconds; the lock alone may take LOCK_TIMEOUT of them


class Publish(Record):
    """Ports of the host that lead to ports of the container: `count` ones from each number on.

    `host_port` 0 asks for free ones, which need not be consecutive.
    """

    address: str = string(default=PUBLISH_ADDRESS)
    host_port: int = integer(0, PORT_MAX, default=0)
    container_port: int = integer(1, PORT_MAX, required=True)
    count: int = integer(1, PORT_MAX, default=1)
    protocol: str = string(default="tcp")

    def __str__(self) -> str:
        more = self.count - 1
        there = f"{self.host_port}" + (f"-{self.host_port + more}" if more else "")
        here = f"{self.container_port}" + (f"-{self.container_port + more}" if more else "")
        return f"{self.address}:{there if self.host_port else ''}:{here}/{self.protocol}"


class Request(Record):
    """What one container wants of one bridge network.

    network       its name; the bridge and subnet belong to it and hold for all who join
    bridge        "" for the network's own: minirun0, or mr-NAME
    subnet        such as 10.42.0.0/16; "" for the network's own, else a free one
    address       a fixed IPv4 address; "" for the next free one
    container     the ID under which the others know it besides its hostname
    hostname      "" for the container's ID
    publish       the published ports
    dns, dns_search, dns_options  for resolv.conf in place of the host's; () keeps the host's
    extra_hosts   `name:address`, for the hosts file
    mtu           bytes; 0 for that of the host's default route, at most 1500
    metadata      let it reach where clouds serve credentials: 169.254.0.0/16 and others
    """

    network: str = string(default=address.DEFAULT_NETWORK)
    bridge: str = string(default="")
    subnet: str = string(default="")
    address: str = string(default="")
    container: str = string(default="")
    hostname: str = string(default="")
    publish: tuple[Publish, ...] = many(Publish)
    dns: tuple[str, ...] = strings()
    dns_search: tuple[str, ...] = strings()
    dns_options: tuple[str, ...] = strings()
    extra_hosts: tuple[str, ...] = strings()
    mtu: int = integer(0, 65535, default=0)
    metadata: bool = boolean(default=False)


def check(request: Request) -> Request:
    """Return the request, its hostname filled in, or raise UsageError."""
    address.check_network(request.network)
    if request.container:
        address.check_container(request.container)
    if request.hostname and not address.is_hostname(request.hostname):
        raise UsageError(f"invalid hostname {request.hostname!r}")
    if request.subnet:
        address.parse_subnet(request.subnet)
    if request.address:
        address.parse(request.address)
    if request.mtu and request.mtu < 576:
        raise UsageError(f"mtu {request.mtu} is below 576, the least that IPv4 hosts must take")
    for publish in request.publish:
        check_publish(publish)
    for index, one in enumerate(request.publish):
        for other in request.publish[:index]:
            if conflict(one, other):
                raise UsageError(f"port {one} is published twice")
    strange = [server for server in request.dns if not address.is_ipv4(server)]
    if strange:
        raise UsageError(f"the name server {strange[0]!r} is not an IPv4 address")
    for entry in request.extra_hosts:
        names.split_extra(entry)
    names.check_words(request.dns_search + request.dns_options)
    if request.bridge:
        address.check_bridge(request.bridge)
    return request.replace(hostname=request.hostname or request.container)


def check_publish(publish: Publish) -> None:
    """Raise UsageError unless the numbers fit together; the decoder has seen each alone."""
    address.parse(publish.address)
    if publish.protocol not in PROTOCOLS:
        raise UsageError(f"invalid protocol {publish.protocol!r} of a published port: tcp or udp")
    last = max(publish.host_port, publish.container_port) + publish.count - 1
    if last > PORT_MAX:
        raise UsageError(f"published port {publish}: beyond {PORT_MAX}")


def conflict(one: Publish, other: Publish) -> bool:
    """Tell whether both want the same port of the host; 0.0.0.0 is every address."""
    if one.protocol != other.protocol or not one.host_port or not other.host_port:
        return False
    if one.address != other.address and "0.0.0.0" not in (one.address, other.address):
        return False
    return (
        one.host_port < other.host_port + other.count
        and other.host_port < one.host_port + one.count
    )


def parse_publish(text: str) -> Publish:
    """Read docker's `-p`: `[IP:][HOSTPORT]:CONTAINERPORT[/tcp|udp]`, or CONTAINERPORT alone.

    Ports may be ranges of one length, `8000-8005:80-85`. Without IP the port is bound to 127.0.0.1
    (docker: to all addresses); without HOSTPORT a free one is chosen. Raises UsageError.
    """
    if "[" in text or text.count(":") > 2:
        raise UsageError(f"cannot publish {text!r}: the network has no IPv6")
    ports, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise UsageError(f"invalid protocol {protocol!r} in {text!r}: tcp or udp")
    *left, inside = ports.split(":")
    low, high = _range(inside, text)
    outside = left.pop() if left else ""
    host_low, host_high = _range(outside, text) if outside else (0, high - low)
    if host_high - host_low != high - low:
        raise UsageError(f"the port ranges in {text!r} differ in length")
    publish = Publish(
        address=left[0] if left and left[0] else PUBLISH_ADDRESS,
        host_port=host_low,
        container_port=low,
        count=high - low + 1,
        protocol=protocol or "tcp",
    )
    check_publish(publish)
    return publish


def _range(text: str, whole: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    what, fix = f"port in {whole!r}", "write HOST:CONTAINER, as 8080:80 or 127.0.0.1:8080:80/tcp"
    low = address.number(first, 1, PORT_MAX, what, fix)
    high = address.number(last, 1, PORT_MAX, what, fix) if dash else low
    if high < low:
        raise UsageError(f"the port range {text!r} runs backwards")
    return low, high


def hooks(
    request: Request, executable: str, state_dir: str = DEFAULT_STATE_DIR
) -> dict[str, list[dict[str, Any]]]:
    """Give the `hooks` object of config.json that attaches and detaches the container.

    `executable` is the absolute path of minirun. Raises UsageError for a request that cannot be.
    """
    if not os.path.isabs(executable):
        raise UsageError(f"the path of a hook must be absolute: {executable!r}")
    request = check(request)
    # minirun's own verbs come first so that `ps` shows what runs.
    attach = ["minirun", "network", "attach", "--state-dir", state_dir, dumps(request.encode())]
    detach = ["minirun", "network", "detach", "--state-dir", state_dir, request.network]
    return {
        "createRuntime": [{"path": executable, "args": attach, "timeout": HOOK_TIMEOUT}],
        "poststop": [{"path": executable, "args": detach, "timeout": HOOK_TIMEOUT}],
    }


def decode(text: str) -> Request:
    """Read a request out of a hook's arguments; the bundle may have been edited since."""
    from minirun.jsontext import loads

    try:
        return check(Request.decode(loads(text, "network request"), "request"))
    except ConfigError as error:
        raise UsageError(f"network request: {error.path}: {error.problem}") from None


def files(request: Request, bundle_dir: str, *, shares_host: bool = False) -> list[dict[str, Any]]:
    """Write resolv.conf, hosts and hostname into the bundle; give their mounts for config.json.

    The mounts are read-only: attach rewrites hosts in place when others come and go. With
    `shares_host` (no network of its own) the host's name servers are kept as they are. Raises
    UsageError for a request that cannot be, MinirunError if a file cannot be written.
    """
    request = check(request)
    bundle = os.path.realpath(bundle_dir)
    content = {
        "resolv.conf": names.resolv_conf(
            request.dns, request.dns_search, request.dns_options, shares_host=shares_host
        ),
        "hosts": names.hosts_text(
            "", request.hostname, request.container, extra=request.extra_hosts
        ),
        "hostname": request.hostname + "\n",
    }
    mounts = []
    for name, text in content.items():
        path = os.path.join(bundle, name)
        try:
            names.write_new(path, text)
        except OSError as error:
            raise MinirunError(f"cannot write {path}: {(error.strerror or '').lower()}") from error
        options = ["bind", "ro", "nosuid", "nodev", "noexec"]
        mounts.append(
            {"destination": f"/etc/{name}", "type": "bind", "source": path, "options": options}
        )
    return mounts
