"""The nft tables `minirun`: NAT, published ports, and what containers may not reach or forge.

`ip minirun` is for what is routed, `bridge minirun` for frames between containers. Each is a
function of the leases and is replaced in one transaction, so nothing has to be found again to be
removed, a crash leaves nothing half done, and after somebody's `nft flush ruleset` the next
container puts it back. No other table is touched.
"""

from __future__ import annotations

import os
import subprocess

from minirun.errors import MinirunError, Unsupported
from minirun.jsontext import loads
from minirun.network import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.network.leases import Lease, Network, State
    from minirun.network.plan import Publish

# The first line of each makes the second succeed.
_FORGET = "table ip minirun\ndelete table ip minirun\n"
_FORGET_BRIDGE = "table bridge minirun\ndelete table bridge minirun\n"
_TIMEOUT = 30  # seconds
# Where clouds serve a machine's credentials: most, Alibaba, Azure's WireServer. At its address
# Azure's DNS is too, and from there its balancers look whether a published port answers.
_METADATA = (
    "ip daddr { 169.254.0.0/16, 100.100.100.200 }",
    "ip daddr 168.63.129.16 tcp dport { 80, 32526 }",
)
# nft's own order: raw -300 comes before connection tracking, which is at -200.
_CHAINS = (
    ("early", "type filter hook prerouting priority -300; policy accept;"),
    ("input", "type filter hook input priority 0; policy accept;"),
    ("forward", "type filter hook forward priority 0; policy accept;"),
    ("prerouting", "type nat hook prerouting priority -100; policy accept;"),
    ("output", "type nat hook output priority -100; policy accept;"),
    ("postrouting", "type nat hook postrouting priority 100; policy accept;"),
)


def render(state: State) -> str:
    """Give the nft script that makes the table of what is routed what the leases say."""
    if not state.networks:
        return _FORGET
    rules: dict[str, list[str]] = {name: [] for name, _ in _CHAINS}
    _guard_forwarding(rules, state)
    for network in state.networks:
        _guard(rules, network)
        _metadata(rules, network)
        _forward(rules, network)
        _masquerade(rules, network)
        for lease in network.leases:
            for publish in lease.publish:
                _publish(rules, lease, publish)
    lines = [_FORGET + "table ip minirun {"]
    for name, hook in _CHAINS:
        body = "".join(f"    {rule}\n" for rule in rules[name])
        lines.append(f"  chain {name} {{\n    {hook}\n{body}  }}")
    return "\n".join([*lines, "}", ""])


def render_bridge(state: State) -> str:
    """Give the nft script of the table that keeps a container from passing for another.

    Who may make raw sockets or change addresses could else answer ARP requests in place of its
    neighbours, or advertise itself as their router (CVE-2020-14386 and its kin).
    """
    if not state.networks:
        return _FORGET_BRIDGE
    lines = [
        _FORGET_BRIDGE + "table bridge minirun {\n  chain early {",
        "    type filter hook prerouting priority -300; policy accept;",
    ]
    for network in state.networks:
        for lease in network.leases:
            end, mac = f'iifname "{lease.link}"', address.mac(address.parse(lease.address))
            lines += [
                f'    {end} ether saddr != {mac} drop comment "minirun:{lease.id[:100]}"',
                f"    {end} ether type != {{ ip, arp }} drop",
                f"    {end} ip saddr != {lease.address} drop",
                f"    {end} arp saddr ip != {lease.address} drop",
                f"    {end} arp saddr ether != {mac} drop",
            ]
    return "\n".join([*lines, "  }", "}", ""])


def _guard_forwarding(rules: dict[str, list[str]], state: State) -> None:
    """Where minirun switched forwarding on, let it serve minirun's bridges and nothing else."""
    bridges = ", ".join(f'"{network.bridge}"' for network in state.networks)
    for interface in state.opened:
        rules["forward"].append(
            f'iifname "{interface}" oifname != {{ {bridges} }} drop comment "minirun: unasked"'
        )


def _guard(rules: dict[str, list[str]], network: Network) -> None:
    """Take from containers what `route_localnet` on the bridge would give them.

    With it the kernel no longer drops packets from or to 127.0.0.0/8 as martians. So these two
    rules stand before connection tracking, which rewrites the answers to the host's own.
    """
    bridge = f'iifname "{network.bridge}"'
    rules["early"] += [
        f'{bridge} ip daddr 127.0.0.0/8 drop comment "minirun: loopback is the host\'s own"',
        f'{bridge} ip saddr != {network.subnet} drop comment "minirun: not an address of theirs"',
    ]


def _metadata(rules: dict[str, list[str]], network: Network) -> None:
    """Keep the clouds' metadata from containers, unless allowed; some clouds' DNS is there too."""
    allowed = ", ".join(lease.address for lease in network.leases if lease.metadata)
    for chain in ("input", "forward"):
        for place in _METADATA:
            match = f'iifname "{network.bridge}" {place}'
            if "dport" not in place:
                rules[chain].append(f"{match} meta l4proto {{ tcp, udp }} th dport 53 accept")
            if allowed:
                rules[chain].append(f"{match} ip saddr {{ {allowed} }} accept")
            rules[chain].append(
                f'{match} reject with icmp type admin-prohibited comment "minirun: cloud metadata"'
            )


def _forward(rules: dict[str, list[str]], network: Network) -> None:
    """Let containers of a network reach each other and outside, and be reached where published."""
    bridge = network.bridge
    rules["forward"] += [
        f'oifname "{bridge}" iifname "{bridge}" accept',
        f'oifname "{bridge}" ct state established,related accept',
        f'oifname "{bridge}" ct status dnat accept',
        f'oifname "{bridge}" drop comment "minirun: not published"',
    ]


def _masquerade(rules: dict[str, list[str]], network: Network) -> None:
    bridge, subnet = network.bridge, network.subnet
    rules["postrouting"] += [
        f'ip saddr {subnet} oifname != "{bridge}" masquerade',
        # The host's own connection to 127.0.0.1:PORT: the container could not answer to 127.0.0.1.
        f'ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade',
        # A container's to a port published by its neighbour, who would answer directly.
        f'ip saddr {subnet} oifname "{bridge}" ct status dnat masquerade',
    ]


def _publish(rules: dict[str, list[str]], lease: Lease, publish: Publish) -> None:
    where = address.parse(publish.address)
    match = f"ip daddr {publish.address}" if where else "fib daddr type local"
    rule = (
        f"{match} {publish.protocol} dport {_ports(publish)} dnat to {_target(lease, publish)} "
        f'comment "minirun:{lease.id[:100]}"'
    )
    rules["output"].append(rule)
    if not address.contains(address.LOOPBACK, where):
        rules["prerouting"].append(rule)


def _ports(publish: Publish) -> str:
    last = publish.host_port + publish.count - 1
    return str(publish.host_port) + (f"-{last}" if publish.count > 1 else "")


def _target(lease: Lease, publish: Publish) -> str:
    """Give what `dnat to` takes; a range is mapped port by port: nft would choose any of them."""
    if publish.count == 1:
        return f"{lease.address}:{publish.container_port}"
    if publish.host_port == publish.container_port:
        return lease.address
    pairs = ", ".join(
        f"{publish.host_port + step} : {publish.container_port + step}"
        for step in range(publish.count)
    )
    return f"{lease.address}:{publish.protocol} dport map {{ {pairs} }}"


def find_nft() -> str:
    """Give nft's path, from fixed places: a hook may run without PATH, or with a user's."""
    for directory in ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"):
        path = f"{directory}/nft"
        if os.access(path, os.X_OK):
            return path
    raise Unsupported("nft is not installed", fix="apt install nftables (dnf, apk: the same name)")


def apply(state: State) -> bool:
    """Make the kernel's tables what the leases say; tell whether neighbours are guarded.

    They are not where the kernel lacks nf_tables for bridges: then only what is routed is
    filtered. Raises MinirunError with nft's own words.
    """
    routed = render(state)
    if not _nft(render_bridge(state) + routed):
        return True
    if words := _nft(routed):
        raise MinirunError(
            f"nft refused the table minirun: {words[:300]}",
            cause="the kernel may lack nf_tables or NAT",
            fix="modprobe nf_tables nft_chain_nat nft_masq",
        )
    return False


def _nft(script: str) -> str:
    """Run one transaction; return what nft has against it."""
    try:
        done = subprocess.run(
            [find_nft(), "-f", "-"],
            input=script.encode("ascii"),
            capture_output=True,
            timeout=_TIMEOUT,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MinirunError(f"nft did not answer within {_TIMEOUT} s") from None
    words = " ".join(done.stderr.decode("utf-8", "replace").split())
    return (words or f"exit status {done.returncode}") if done.returncode else ""


def foreign_drops() -> list[str]:
    """Name the chains of others that drop what is forwarded unless they allow it.

    A packet has to pass every table's chains: Docker's and ufw's policy drops what minirun's table
    lets through. Raises MinirunError if nft cannot be asked.
    """
    done = subprocess.run(
        [find_nft(), "-j", "list", "chains"],
        capture_output=True,
        timeout=_TIMEOUT,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        check=False,
    )
    if done.returncode:
        words = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise MinirunError(f"nft cannot list chains: {words[:300]}")
    chains = [entry.get("chain", {}) for entry in loads(done.stdout, "nft")["nftables"]]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain["family"] in ("ip", "inet")
    ]
