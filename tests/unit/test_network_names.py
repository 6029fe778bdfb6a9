"""resolv.conf and hosts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.network import names

STUB = "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n"


def _conf(tmp_path: Path, *texts: str) -> list[str]:
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"resolv{number}"
        path.write_text(text)
        paths.append(str(path))
    return paths


def test_the_stub_is_looked_behind(tmp_path: Path) -> None:
    sources = _conf(tmp_path, STUB, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
    assert names.resolv_conf(sources=sources) == (
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch corp.example\n"
    )


def test_servers_out_of_reach_are_left_out(tmp_path: Path) -> None:
    text = "nameserver ::1\nnameserver fe80::1%eth0\nnameserver 127.0.0.1\nnameserver 192.0.2.1\n"
    assert names.resolv_conf(sources=_conf(tmp_path, text)) == "nameserver 192.0.2.1\n"


def test_in_the_hosts_network_its_stub_is_reached(tmp_path: Path) -> None:
    sources = _conf(tmp_path, STUB, "nameserver 192.0.2.1\n")
    text = names.resolv_conf(sources=sources, shares_host=True)
    assert text.startswith("nameserver 127.0.0.53\n") and "192.0.2.1" not in text


def test_no_server_is_no_public_one(tmp_path: Path) -> None:
    text = names.resolv_conf(sources=[*_conf(tmp_path, STUB), "/nonexistent"])
    assert "nameserver" not in text
    assert "--dns" in text.splitlines()[0] and text.startswith("#")


def test_what_is_asked_comes_in_place_of_the_hosts(tmp_path: Path) -> None:
    sources = _conf(tmp_path, "nameserver 192.0.2.1\nsearch a.example\noptions ndots:5\n")
    assert names.resolv_conf(["192.0.2.9"], sources=sources) == (
        "nameserver 192.0.2.9\nsearch a.example\noptions ndots:5\n"
    )
    assert names.resolv_conf(search=["."], options=["rotate"], sources=sources) == (
        "nameserver 192.0.2.1\noptions rotate\n"
    )


@given(st.text(max_size=300))
def test_a_hosts_resolv_conf_cannot_add_lines(text: str) -> None:
    servers, search, options = names.parse_resolv_conf(text)
    for word in servers + search + options:
        assert word.isascii() and word.isprintable() and " " not in word


def test_hosts_knows_the_others_and_keeps_its_own_first() -> None:
    text = names.hosts_text(
        "10.42.0.2", "web", "c1",
        extra=["db:192.0.2.9"],
        others=[
            ("10.42.0.3", "db", "c2"),
            ("10.42.0.4", "localhost", "c3"),
            ("10.42.0.5", "Web", "c1"),
            ("10.42.0.6", "a b", "x+y"),
        ],
        gateway="10.42.0.1",
    )  # fmt: skip
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.42.0.2\tweb c1",
        "192.0.2.9\tdb",
        "10.42.0.1\thost.minirun.internal",
        "10.42.0.3\tc2",
        "10.42.0.4\tc3",
    ]


def test_rewrite_keeps_the_inode(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a long first text\n")
    known = names.identity(str(path))
    assert names.rewrite(str(path), known, "short\n")
    assert path.read_text() == "short\n"
    assert names.identity(str(path)) == known


@pytest.mark.parametrize(
    "kind", ["symlink", "other file", "hard link", "fifo", "gone", "directory"]
)
def test_rewrite_leaves_what_was_put_in_its_place(tmp_path: Path, kind: str) -> None:
    path, victim = tmp_path / "hosts", tmp_path / "victim"
    victim.write_text("untouched")
    path.write_text("mine")
    known = names.identity(str(path))
    path.rename(tmp_path / "moved")  # the inode stays in use
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "other file":
        path.write_text("untouched")
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert not names.rewrite(str(path), known, "overwritten")
    assert victim.read_text() == "untouched"
    if kind == "other file":
        assert path.read_text() == "untouched"
