"""What is asked of the network, and what it puts into the bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.errors import MinirunError, UsageError
from minirun.network import address, plan
from minirun.network.plan import Publish, Request


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", "127.0.0.1::80/tcp"),
        (":80", "127.0.0.1::80/tcp"),
        ("8080:80", "127.0.0.1:8080:80/tcp"),
        ("8080:80/udp", "127.0.0.1:8080:80/udp"),
        ("0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"),
        ("192.0.2.7::80", "192.0.2.7::80/tcp"),
        ("::80", "127.0.0.1::80/tcp"),
        ("8000-8005:80-85", "127.0.0.1:8000-8005:80-85/tcp"),
        ("80-82", "127.0.0.1::80-82/tcp"),
        ("1:65535", "127.0.0.1:1:65535/tcp"),
    ],
)
def test_publish_as_docker_writes_it(text: str, expected: str) -> None:
    assert str(plan.parse_publish(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "::", "a:80", "80:", "0:80", "8080:0", "8080:65536", "-1:80", "+1:80", " 1:80",
        "٣:80", "1_0:80", "8080:80/sctp", "8080:80/", "8080:80/tcp/udp", "[::1]:80:80", "1:2:3:4",
        "300.0.0.1:80:80", "127.1:80:80", "010.0.0.1:80:80", "8000-8005:80", "8005-8000:80-85",
        "80:80-81", "1-2-3:1-3", "80\n:80", "80:80\0", "99999999999999999999:80",
    ],
)  # fmt: skip
def test_publish_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan.parse_publish(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_publish_never_breaks(text: str) -> None:
    try:
        found = plan.parse_publish(text)
    except UsageError:
        return
    assert plan.parse_publish(str(found)) == found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("80:80", "80:81", True),
        ("80:80", "81:80", False),
        ("80:80", "80:80/udp", False),
        ("0.0.0.0:80:80", "80:80", True),
        ("192.0.2.1:80:80", "192.0.2.2:80:80", False),
        ("80-89:80-89", "85:1", True),
        ("80-89:80-89", "90:1", False),
        ("80", "81", False),
    ],
)
def test_conflict(one: str, other: str, expected: bool) -> None:
    first, second = plan.parse_publish(one), plan.parse_publish(other)
    assert plan.conflict(first, second) is expected
    assert plan.conflict(second, first) is expected


@pytest.mark.parametrize(
    "request_",
    [
        Request(network="../x"),
        Request(network=""),
        Request(network="a/b"),
        Request(network="thirteen_long"),
        Request(network="a;b"),
        Request(network="é"),
        Request(network=".hidden"),
        Request(bridge="../x"),
        Request(bridge="eth0;x"),
        Request(bridge="sixteen_letters_"),
        Request(bridge="all"),
        Request(bridge="lo"),
        Request(subnet="10.42.0.1/16"),
        Request(subnet="10.42.0.0/31"),
        Request(subnet="10.42.0.0/4"),
        Request(subnet="10.42.0.0"),
        Request(address="10.42.0"),
        Request(hostname="a b"),
        Request(hostname="a\nb"),
        Request(hostname="x" * 254),
        Request(container="../x"),
        Request(container=".."),
        Request(container="a\nb"),
        Request(dns=("8.8.8.8\nsearch evil",)),
        Request(dns=("::1",)),
        Request(dns_search=("a b",)),
        Request(dns_options=("#x",)),
        Request(extra_hosts=("a",)),
        Request(extra_hosts=("a:b",)),
        Request(extra_hosts=("a\tb:1.2.3.4",)),
        Request(mtu=100),
        Request(publish=(Publish(container_port=80, protocol="sctp"),)),
        Request(publish=(Publish(container_port=80, address="x"),)),
        Request(publish=(Publish(container_port=65535, count=2),)),
        Request(publish=(plan.parse_publish("80:80"), plan.parse_publish("0.0.0.0:80:81"))),
    ],
)
def test_request_refused(request_: Request) -> None:
    with pytest.raises(UsageError):
        plan.check(request_)


def test_hooks_carry_the_request() -> None:
    asked = Request(
        network="web",
        container="c1",
        hostname="h1",
        publish=(plan.parse_publish("8080:80"), plan.parse_publish("53:53/udp")),
        dns=("192.0.2.53",),
        extra_hosts=("db:192.0.2.9",),
        mtu=1400,
    )
    hooks = plan.hooks(asked, "/usr/bin/minirun", "/run/x")
    [attach], [detach] = hooks["createRuntime"], hooks["poststop"]
    assert attach["path"] == detach["path"] == "/usr/bin/minirun"
    assert attach["args"][:5] == ["minirun", "network", "attach", "--state-dir", "/run/x"]
    assert plan.decode(attach["args"][5]) == plan.check(asked)
    assert detach["args"] == ["minirun", "network", "detach", "--state-dir", "/run/x", "web"]
    json.dumps(hooks)


def test_hooks_need_an_absolute_program() -> None:
    with pytest.raises(UsageError, match="absolute"):
        plan.hooks(Request(), "minirun")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"mtu":"x"}', '{"publish":[{}]}', '{"mtu":-1}'])
def test_decode_refuses(text: str) -> None:
    with pytest.raises(MinirunError):
        plan.decode(text)


def test_files_are_written_and_mounted(tmp_path: Path) -> None:
    os.umask(old := os.umask(0o077))
    mounts = plan.files(
        Request(container="c1", hostname="web", dns=("192.0.2.53",), extra_hosts=("db:192.0.2.9",)),
        str(tmp_path),
    )
    os.umask(old)
    assert (tmp_path / "hostname").read_text() == "web\n"
    assert "nameserver 192.0.2.53\n" in (tmp_path / "resolv.conf").read_text()
    assert "192.0.2.9\tdb\n" in (tmp_path / "hosts").read_text()
    assert [mount["destination"] for mount in mounts] == [
        "/etc/resolv.conf", "/etc/hosts", "/etc/hostname",
    ]  # fmt: skip
    for mount in mounts:
        assert set(mount["options"]) == {"bind", "ro", "nosuid", "nodev", "noexec"}
        assert os.stat(mount["source"]).st_mode & 0o777 == 0o644


def test_files_refuse_a_link_in_their_place(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "hosts").symlink_to(victim)
    with pytest.raises(MinirunError):
        plan.files(Request(container="c"), str(bundle))
    assert victim.read_text() == "untouched"


@given(st.integers(0, 0xFFFFFFFF))
def test_addresses_round_trip(value: int) -> None:
    assert address.parse(address.show(value)) == value


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("10.42.0.0/16", "10.42.7.0/24", True),
        ("10.42.7.0/24", "10.42.0.0/16", True),
        ("10.42.0.0/16", "10.43.0.0/16", False),
        ("10.0.0.0/8", "10.42.0.0/16", True),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert address.overlap(address.parse_subnet(one), address.parse_subnet(other)) is expected


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_link_names_fit_the_kernel(network: str, container: str) -> None:
    name = address.link_name(network, container)
    assert len(name) == 14 and name.isascii() and name.isalnum()


def test_the_plan_is_light() -> None:
    """`run` imports it: neither pyroute2 nor what the engine verbs may not load."""
    code = (
        "import sys; import minirun.network.plan; "
        "print(*(set(sys.modules) & {'pyroute2', 'subprocess', 'socket', 'click', 'json', 're', "
        "'hashlib', 'ipaddress', 'dataclasses', 'typing', 'logging', 'pathlib', 'enum'}))"
    )
    root = str(Path(plan.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-ISBc", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []
