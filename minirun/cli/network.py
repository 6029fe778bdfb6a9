"""network: what the bridge networks hold, and cleaning up what crashes left."""

from __future__ import annotations

import copy
import sys

import click

from minirun.errors import MinirunError, StateError
from minirun.jsontext import dumps
from minirun.network import address
from minirun.network.leases import Lease, Network, State, peek
from minirun.network.plan import DEFAULT_STATE_DIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_PADDING = 3


@click.group()
def network() -> None:
    """List and clean up networks, addresses and ports."""


command = network


def _state_dir(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state-dir",
        default=DEFAULT_STATE_DIR,
        show_default=True,
        metavar="DIR",
        help="where the leases are kept",
    )(function)


def _json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="print JSON")(function)


@network.command("list")
@_state_dir
@_json
def list_(state_dir: str, as_json: bool) -> None:
    """List the networks that have containers."""
    networks = peek(state_dir).networks
    if as_json:
        click.echo(dumps([_network(one) for one in networks]))
        return
    rows = [("NETWORK", "BRIDGE", "SUBNET", "CONTAINERS")]
    rows += [(one.name, one.bridge, one.subnet, str(len(one.leases))) for one in networks]
    click.echo(_table(rows), nl=False)


@network.command()
@click.argument("name")
@_state_dir
@_json
def inspect(name: str, state_dir: str, as_json: bool) -> None:
    """Show a network or a container, and from where its ports are reached."""
    state = peek(state_dir)
    networks = state.networks
    found = [one for one in networks if one.name == name]
    chosen = [(one, lease) for one in found for lease in one.leases] or [
        (one, lease) for one in networks for lease in one.leases if lease.id == name
    ]
    if not chosen:
        raise StateError(
            f"no network or container {name} is attached",
            fix="minirun network list shows the networks",
        )
    if as_json:
        shown = _network(found[0]) if found else _lease(*chosen[0])
        click.echo(dumps(shown, "  "))
        return
    rows = [("CONTAINER", "ADDRESS", "LINK", "PORTS")]
    rows += [(lease.id, lease.address, lease.link, _ports(lease)) for _, lease in chosen]
    click.echo(_table(rows), nl=False)
    for line in _notes(state):
        click.echo("note: " + line)


_alias = copy.copy(inspect)
_alias.hidden = True
network.add_command(_alias, "show")


@network.command()
@_state_dir
@click.option("--dry-run", is_flag=True, help="say what would be released, and change nothing")
def gc(state_dir: str, dry_run: bool) -> None:
    """Release what dead containers left."""
    from minirun.network.attach import gc as collect  # pyroute2: 190 ms

    for sentence in collect(state_dir, dry_run):
        click.echo(("would release " if dry_run else "released ") + sentence)


def _hook(verb: str) -> click.Command:
    """Make a hook's command. Runtimes call it; it reads its arguments itself."""

    @click.pass_context
    def run(ctx: click.Context, arguments: Sequence[str]) -> None:
        from minirun.network import hook

        ctx.exit(hook.main([verb, *arguments]))

    return click.Command(
        verb,
        callback=run,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        hidden=True,
    )


network.add_command(_hook("attach"))
network.add_command(_hook("detach"))


def _network(one: Network) -> dict[str, Any]:
    gateway = address.show(address.gateway(address.parse_subnet(one.subnet)))
    return {
        "name": one.name,
        "bridge": one.bridge,
        "subnet": one.subnet,
        "gateway": gateway,
        "containers": [_lease(one, lease) for lease in one.leases],
    }


def _lease(one: Network, lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "hostname": lease.hostname,
        "network": one.name,
        "address": lease.address,
        "mac": address.mac(address.parse(lease.address)),
        "link": lease.link,
        "attached": lease.attached,
        "ports": [
            {
                "protocol": publish.protocol,
                "hostAddress": publish.address,
                "hostPort": publish.host_port + step,
                "containerPort": publish.container_port + step,
            }
            for publish in lease.publish
            for step in range(publish.count)
        ],
    }


def _ports(lease: Lease) -> str:
    """Say from where each port is reached, which surprises people more than anything else."""
    said = []
    for publish in lease.publish:
        where = "this host only"
        if publish.address == "0.0.0.0":
            where = "everywhere"
        elif not publish.address.startswith("127."):
            where = f"whoever reaches {publish.address}"
        said.append(f"{publish} (from {where})")
    return ", ".join(said) or "-"


def _notes(state: State) -> list[str]:
    notes = []
    if state.opened:
        notes.append(
            f"IPv4 forwarding was switched on for {', '.join(state.opened)}; "
            "what comes in there is kept to minirun's bridges"
        )
    if not state.guarded:
        notes.append(
            "containers with NET_RAW can forge their neighbours' addresses: "
            "the kernel lacks nf_tables for bridges"
        )
    notes += [
        f"nft chain {chain} drops forwarded packets by its policy; allow the bridge in it, with "
        "Docker by: iptables -I DOCKER-USER -i minirun0 -j ACCEPT, and the same with -o"
        for chain in _foreign_drops()
    ]
    return notes


def _foreign_drops() -> list[str]:
    from minirun.network import firewall

    try:
        return firewall.foreign_drops()
    except MinirunError:
        return []  # the notes are an extra; not everybody may ask nft


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    shown = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in shown) + _PADDING for n in range(len(rows[0]))]
    lines = ("".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in shown)
    return "".join(line.rstrip() + "\n" for line in lines)


def _printable(text: str) -> str:
    """Keep a terminal from obeying what a state file says."""
    return text if not sys.stdout.isatty() else "".join(c if c.isprintable() else "?" for c in text)
