"""The nft script, as a function of the leases."""

from __future__ import annotations

from minirun.network import firewall
from minirun.network.leases import Lease, Network, State
from minirun.network.plan import parse_publish


def _state(*publish: str, opened: tuple[str, ...] = (), metadata: bool = False) -> State:
    lease = Lease(
        id="web", address="10.42.0.2", link="mrx", mac="m", netns=1, pid=1, start=1,
        publish=tuple(parse_publish(text) for text in publish), metadata=metadata,
    )  # fmt: skip
    network = Network(name="n", bridge="br7", subnet="10.42.0.0/16", leases=(lease,))
    return State(opened=opened, networks=(network,))


def _chain(script: str, name: str) -> list[str]:
    body = script.split(f"chain {name} {{")[1].split("\n  }", maxsplit=1)[0]
    return [line.strip() for line in body.splitlines()[2:]]


def test_without_networks_the_table_goes() -> None:
    assert firewall.render(State()) == "table ip minirun\ndelete table ip minirun\n"


def test_a_loopback_port_is_only_for_the_host() -> None:
    script = firewall.render(_state("8080:80"))
    assert _chain(script, "output") == [
        'ip daddr 127.0.0.1 tcp dport 8080 dnat to 10.42.0.2:80 comment "minirun:web"'
    ]
    assert _chain(script, "prerouting") == []


def test_a_port_for_all_comes_from_everywhere() -> None:
    script = firewall.render(_state("0.0.0.0:53:53/udp"))
    rule = 'fib daddr type local udp dport 53 dnat to 10.42.0.2:53 comment "minirun:web"'
    assert _chain(script, "output") == _chain(script, "prerouting") == [rule]


def test_ranges_keep_their_order() -> None:
    script = firewall.render(_state("8000-8001:80-81", "90-91:90-91"))
    first, second = _chain(script, "output")
    assert "dport 8000-8001 dnat to 10.42.0.2:tcp dport map { 8000 : 80, 8001 : 81 }" in first
    assert "dport 90-91 dnat to 10.42.0.2 comment" in second


def test_loopback_is_guarded_before_connection_tracking() -> None:
    script = firewall.render(_state())
    assert "priority -300" in script.split("chain early {")[1].splitlines()[1]
    assert _chain(script, "early")[0].startswith('iifname "br7" ip daddr 127.0.0.0/8 drop')


def test_metadata_is_a_switch() -> None:
    assert "10.42.0.2 } accept" not in firewall.render(_state())
    assert "ip saddr { 10.42.0.2 } accept" in firewall.render(_state(metadata=True))


def test_an_opened_uplink_serves_only_the_bridges() -> None:
    assert "unasked" not in firewall.render(_state())
    first = _chain(firewall.render(_state(opened=("eth9",))), "forward")[0]
    assert first.startswith('iifname "eth9" oifname != { "br7" } drop')


def test_the_script_is_one_transaction_that_replaces() -> None:
    lines = firewall.render(_state()).splitlines()
    assert lines[:3] == ["table ip minirun", "delete table ip minirun", "table ip minirun {"]
    assert "flush ruleset" not in lines


def test_a_container_has_one_address_on_the_bridge() -> None:
    script = firewall.render_bridge(_state())
    assert 'iifname "mrx" ether saddr != 02:6d:0a:2a:00:02 drop' in script
    assert 'iifname "mrx" arp saddr ip != 10.42.0.2 drop' in script
    assert firewall.render_bridge(State()).count("\n") == 2
