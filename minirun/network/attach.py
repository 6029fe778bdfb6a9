"""Attach a container to a bridge network, and take it away again.

`release` undoes whatever a lease says, from a failed or killed attach as well as at the end. So
an attach writes its lease first, and every later one begins by releasing what was left behind.
"""

from __future__ import annotations

from minirun.errors import AlreadyExists, MinirunError
from minirun.network import address, firewall, leases, names, netns, ports, sysctl, veth
from minirun.network.leases import Book, Lease, Network, State
from minirun.network.plan import DEFAULT_STATE_DIR, Request, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

INNER = "eth0"  # the link's name in the container
_MTU = 1500
_AUTO_SUBNETS = 256  # 10.43.N.0/24 for networks that name none


class Host:
    """The host's network while its leases are locked; `state` is what the file says."""

    def __init__(self, state_dir: str) -> None:
        self._book = Book(state_dir)

    def __enter__(self) -> Self:
        self._book.__enter__()
        try:
            self.state = _of_here(self._book.load())
            self.ip: Any = veth.connect()
        except BaseException:
            self._book.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.ip.close()
        self._book.__exit__()

    def save(self, state: State) -> None:
        """Write the state down."""
        self.state = state  # even if that fails: it may have failed after the file was replaced
        self._book.save(state)

    def network(self, name: str) -> Network:
        """Give a network that is known to be there."""
        network = self.state.find(name)
        assert network is not None
        return network


def _of_here(state: State) -> State:
    """Refuse leases of another network namespace; forget those of a boot or a namespace gone."""
    boot, here = netns.boot_id(), netns.here()
    if (state.boot, state.netns) == (boot, here):
        return state
    everyone = [lease for network in state.networks for lease in network.leases]
    if state.boot == boot and any(_lives(lease) for lease in everyone):
        raise MinirunError(
            f"the networks belong to another network namespace (net:[{state.netns}])",
            fix="run minirun there, or give it a --state-dir of its own here",
        )
    return State(boot=boot, netns=here)


def _lives(lease: Lease) -> bool:
    return netns.start_time(lease.pid) == lease.start


def attach(
    container: str, pid: int, bundle: str, request: Request, state_dir: str = DEFAULT_STATE_DIR
) -> Lease:
    """Give the container its link, address, route, names and published ports; return its lease.

    `pid` is a process in the container's network namespace. Raises MinirunError; the host is then
    as it was.
    """
    request = check(request)
    address.check_container(container)
    firewall.find_nft()
    with netns.of_process(pid) as target, Host(state_dir) as host:
        sweep(host)
        network = _choose_network(host, request)
        lease = _choose_lease(host, network, request, container, target)
        lease = _with_hosts(lease, bundle, request)
        network = network.with_lease(lease).replace(last=lease.address)
        state = _with_uplinks(host.ip, host.state.with_network(network))
        try:
            host.save(state)
            return _make(host, network, lease, target, request.mtu)
        except BaseException:
            release(host, network.name, lease)
            raise


def _choose_network(host: Host, request: Request) -> Network:
    """Find the network, or make up its record."""
    network = host.state.find(request.network)
    if network is None:
        bridge = address.check_bridge(request.bridge or address.bridge_of(request.network))
        if other := next((one for one in host.state.networks if one.bridge == bridge), None):
            raise AlreadyExists(f"bridge {bridge} belongs to network {other.name}")
        return Network(
            name=request.network, bridge=bridge, subnet=_choose_subnet(host, request, bridge)
        )
    for key, wanted, has in (
        ("bridge", request.bridge, network.bridge),
        ("subnet", request.subnet, network.subnet),
    ):
        if wanted not in ("", has):
            raise AlreadyExists(
                f"network {network.name} has {key} {has}, not {wanted}",
                fix=f"leave the {key} out, or delete the network's containers first",
            )
    return network


def _choose_subnet(host: Host, request: Request, bridge: str) -> str:
    """Take the subnet asked for, or the first free one; what the host routes is not taken."""
    own = veth.find(host.ip, bridge)
    used = [
        (f"{destination}/{prefix}", (address.parse(destination), prefix))
        for destination, prefix, index in veth.routes(host.ip)
        if prefix and (own is None or index != own.index)
    ]
    used += [
        (f"network {one.name}", address.parse_subnet(one.subnet)) for one in host.state.networks
    ]
    fixed = request.subnet
    if not fixed and request.network == address.DEFAULT_NETWORK:
        fixed = address.DEFAULT_SUBNET
    for subnet in [fixed] if fixed else [f"10.43.{n}.0/24" for n in range(_AUTO_SUBNETS)]:
        clash = [who for who, net in used if address.overlap(address.parse_subnet(subnet), net)]
        if not clash:
            return subnet
    raise MinirunError(
        f"subnet {fixed or '10.43.0.0/16'} overlaps {clash[0]}, which the host routes",
        fix="choose another with --subnet",
    )


def _choose_lease(
    host: Host, network: Network, request: Request, container: str, target: netns.Target
) -> Lease:
    everyone = [(one.name, lease) for one in host.state.networks for lease in one.leases]
    for name, lease in everyone:
        if lease.id == container:
            raise AlreadyExists(f"container {container} is already attached to network {name}")
        if lease.netns == target.inode:
            raise AlreadyExists(
                f"the network namespace of {container} is attached as container {lease.id}"
            )
    held = [(lease.id, publish) for _, lease in everyone for publish in lease.publish]
    return Lease(
        id=container,
        hostname=request.hostname or container,
        address=leases.free_address(network, request.address),
        link=address.link_name(network.name, container),
        mac=address.random_mac(),
        netns=target.inode,
        pid=target.pid,
        start=target.start,
        publish=ports.choose(request.publish, held),
        metadata=request.metadata,
        extra_hosts=request.extra_hosts,
    )


def _with_hosts(lease: Lease, bundle: str, request: Request) -> Lease:
    """Add the bundle's hosts file, unless it has none."""
    path = f"{bundle}/hosts"
    try:
        device, inode = names.identity(path)
    except (FileNotFoundError, NotADirectoryError):
        return lease
    return lease.replace(hosts=path, hosts_device=device, hosts_inode=inode)


def _with_uplinks(ip: Any, state: State) -> State:
    """Note which interfaces need IPv4 forwarding: those of the default routes that lack it.

    Only these, never net.ipv4.ip_forward, which would make the host a router between all its
    networks; the firewall keeps what comes in there to minirun's bridges. Where it meanwhile was
    switched on for all, somebody wants it, and minirun steps back.
    """
    if sysctl.get("ipv4", "all", "forwarding") == "1":
        return state.replace(opened=())
    names_of = {link.index: link.name for link in veth.links(ip)}
    defaults = [names_of.get(index, "") for _, prefix, index in veth.routes(ip) if prefix == 0]
    opened = [name for name in state.opened if name in names_of.values()]
    opened += [name for name in defaults if address.is_hostname(name) and _closed(name)]
    return state.replace(opened=tuple(dict.fromkeys(opened)))


def _closed(interface: str) -> bool:
    return sysctl.get("ipv4", interface, "forwarding") == "0"


def _make(host: Host, network: Network, lease: Lease, target: netns.Target, mtu: int) -> Lease:
    """Make all that the lease says, which is written down already."""
    gateway = address.show(address.gateway(address.parse_subnet(network.subnet)))
    prefix = address.parse_subnet(network.subnet)[1]
    bridge = _make_bridge(host.ip, network, gateway, prefix)
    host.state = host.state.replace(guarded=firewall.apply(host.state))
    _open(host.state, network.bridge, lease)
    inner = (INNER, address.mac(address.parse(lease.address)))
    link = veth.make_pair(
        host.ip,
        lease.link,
        lease.mac,
        bridge=bridge,
        netns=target.fd,
        inner=inner,
        mtu=mtu or _default_mtu(host.ip),
    )
    lease = lease.replace(ifindex=link.index)
    host.save(host.state.with_network(host.network(network.name).with_lease(lease)))
    sysctl.put("ipv6", lease.link, "disable_ipv6", "1")
    veth.label(host.ip, link.index, f"minirun:{network.name}:{lease.id}"[:255])
    _configure_inside(target.fd, lease.address, prefix, gateway)
    lease = lease.replace(attached=True)
    host.save(host.state.with_network(host.network(network.name).with_lease(lease)))
    tell_names(host.network(network.name))
    return lease


def _open(state: State, bridge: str, lease: Lease) -> None:
    """Let the kernel do what the firewall's guards, which stand by now, keep within bounds."""
    for uplink in state.opened:
        sysctl.put("ipv4", uplink, "forwarding", "1")
    # The host's own connection to 127.0.0.1:PORT leaves by the bridge with a loopback address, and
    # its answer comes in with one: martians, unless route_localnet says so (ip-sysctl.rst). On our
    # bridge only, and only when needed; chain `early` takes from containers what it gives them.
    if any(publish.address.startswith(("127.", "0.0.0.0")) for publish in lease.publish):
        sysctl.put("ipv4", bridge, "route_localnet", "1")


def _make_bridge(ip: Any, network: Network, gateway: str, prefix: int) -> int:
    """Have the bridge up; return its index."""
    mac = address.mac(address.parse(gateway))
    link = veth.make_bridge(ip, network.bridge, mac, f"minirun:{network.name}")
    # No IPv6 is leased, so none is spoken: a container's router advertisement must not reach the
    # host (CVE-2020-13401), nor the host's link-local address a container, past the firewall.
    sysctl.put("ipv6", network.bridge, "accept_ra", "0")
    sysctl.put("ipv6", network.bridge, "disable_ipv6", "1")
    sysctl.put("ipv4", network.bridge, "forwarding", "1")
    veth.set_up(ip, link.index, network.bridge, gateway, prefix)
    return link.index


def _default_mtu(ip: Any) -> int:
    """Give the MTU of the default route's link, at most 1500: on some clouds it is 1450."""
    uplinks = [index for _, prefix, index in veth.routes(ip) if prefix == 0]
    return min([_MTU] + [link.mtu for link in veth.links(ip) if link.index in uplinks])


def _configure_inside(fd: int, own: str, prefix: int, gateway: str) -> None:
    """Give the container's end its address and route, and bring loopback up."""

    def connect() -> Any:
        for key, value in (("accept_ra", "0"), ("disable_ipv6", "1")):
            sysctl.put("ipv6", INNER, key, value)
        return veth.connect()

    ip = netns.inside(fd, connect)
    try:
        for name, value, length in (("lo", "127.0.0.1", 8), (INNER, own, prefix)):
            link = veth.find(ip, name)
            if link is None:
                raise MinirunError(f"link {name} vanished from the container")
            veth.set_up(ip, link.index, name, value, length)
        veth.add_default_route(ip, gateway)
    finally:
        ip.close()


def tell_names(network: Network) -> None:
    """Write everybody's hosts file anew."""
    gateway = address.show(address.gateway(address.parse_subnet(network.subnet)))
    known = [lease for lease in network.leases if lease.attached]
    for lease in known:
        if lease.hosts:
            others = [(one.address, one.hostname, one.id) for one in known if one.id != lease.id]
            text = names.hosts_text(
                lease.address,
                lease.hostname,
                lease.id,
                extra=lease.extra_hosts,
                others=others,
                gateway=gateway,
            )
            names.rewrite(lease.hosts, (lease.hosts_device, lease.hosts_inode), text)


def detach(
    container: str, network: str, state_dir: str = DEFAULT_STATE_DIR, bundle: str = ""
) -> bool:
    """Remove all that attach made for the container; tell whether there was anything.

    Nothing is removed of a container of that ID with another `bundle`: it is in another state
    directory, and for the sake of it attach has refused this one, whose poststop hooks run now.
    """
    with Host(state_dir) as host:
        found = host.state.find(network)
        lease = found.find(container) if found else None
        if lease is None or (bundle and lease.hosts not in ("", f"{bundle}/hosts")):
            return False
        release(host, network, lease)
        return True


def release(host: Host, name: str, lease: Lease) -> None:
    """Undo a lease, however much of it was made; with the last one its network goes too.

    Can be repeated: the lease is forgotten only after what it says is gone. If nft fails, all else
    is done, and the next change of the table mends it.
    """
    _remove_link(host.ip, lease)
    network = host.network(name).without(lease.id)
    state = host.state.with_network(network)
    if not network.leases:
        _remove_bridge(host.ip, network)
        state = state.without(name)
    if not state.networks:
        for uplink in state.opened:
            sysctl.put("ipv4", uplink, "forwarding", "0")
        state = state.replace(opened=())
    try:
        firewall.apply(state)
        if any(publish.protocol == "udp" for publish in lease.publish):
            veth.forget_udp(lease.address)
    finally:
        host.save(state)
        tell_names(network)


def _remove_link(ip: Any, lease: Lease) -> None:
    link = veth.find(ip, lease.link)
    if link is not None and veth.is_ours(link, "veth", lease.mac, lease.ifindex):
        veth.remove(ip, link)


def _remove_bridge(ip: Any, network: Network) -> None:
    """Delete the bridge, unless somebody else hung a link on it."""
    link = veth.find(ip, network.bridge)
    mac = address.mac(address.gateway(address.parse_subnet(network.subnet)))
    if link is None or not veth.is_ours(link, "bridge", mac):
        return
    if not any(other.master == link.index for other in veth.links(ip)):
        veth.remove(ip, link)


def sweep(host: Host, dry_run: bool = False) -> list[str]:
    """Release what nobody will: leases of killed hooks, and of containers that are gone.

    A container is gone if its process is and its link too: that vanishes with its namespace, which
    something else in it may keep. Returns a sentence for each.
    """
    present = {link.name: link for link in veth.links(host.ip)}
    done = []
    for network in host.state.networks:
        for lease in network.leases:
            link = present.get(lease.link)
            there = link is not None and veth.is_ours(link, "veth", lease.mac, lease.ifindex)
            if lease.attached and (there or _lives(lease)):
                continue
            why = "its process is gone" if lease.attached else "its attach was not finished"
            done.append(f"{network.name}: {lease.id} ({lease.address}): {why}")
            if not dry_run:
                release(host, network.name, lease)
    return done


def gc(state_dir: str = DEFAULT_STATE_DIR, dry_run: bool = False) -> list[str]:
    """Sweep, and put the firewall's table right; returns a sentence for each lease released."""
    with Host(state_dir) as host:
        done = sweep(host, dry_run)
        if not dry_run:
            state = _with_uplinks(host.ip, host.state) if host.state.networks else host.state
            host.save(state.replace(guarded=firewall.apply(state)))
        return done
