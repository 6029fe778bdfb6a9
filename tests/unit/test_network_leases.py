"""Addresses, and the file that knows who has them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.jsontext import JSONError
from minirun.network import address, leases
from minirun.network.leases import Book, Lease, Network, State
from minirun.network.plan import parse_publish


def _lease(ident: str, value: str) -> Lease:
    return Lease(
        id=ident, address=value, link="mrx", mac="02:6e:00:00:00:00", netns=1, pid=1, start=1,
        publish=(parse_publish("8080:80"),),
    )  # fmt: skip


def _network(subnet: str, *taken: str, last: str = "") -> Network:
    held = tuple(_lease(f"c{number}", value) for number, value in enumerate(taken))
    return Network(name="n", bridge="b", subnet=subnet, last=last, leases=held)


def test_the_first_address_is_after_the_gateway() -> None:
    assert leases.free_address(_network("10.42.0.0/16")) == "10.42.0.2"


def test_an_address_given_back_is_given_last() -> None:
    network = _network("10.42.0.0/29", "10.42.0.2", last="10.42.0.3")
    given_ = []
    for _ in range(3):
        found = leases.free_address(network)
        given_.append(found)
        network = network.with_lease(_lease(found, found)).replace(last=found)
    assert given_ == ["10.42.0.4", "10.42.0.5", "10.42.0.6"]
    assert leases.free_address(network) == "10.42.0.3"


def test_a_full_network_says_so() -> None:
    network = _network("10.42.0.0/30", "10.42.0.2")
    with pytest.raises(MinirunError, match="no free address in network n"):
        leases.free_address(network)


@pytest.mark.parametrize("wanted", ["10.42.0.0", "10.42.0.1", "10.42.0.7", "10.43.0.2"])
def test_addresses_that_are_not_for_containers(wanted: str) -> None:
    with pytest.raises(MinirunError, match="is not for containers"):
        leases.free_address(_network("10.42.0.0/29"), wanted)


def test_a_wanted_address_that_is_taken_names_the_holder() -> None:
    with pytest.raises(MinirunError, match="taken by container c0"):
        leases.free_address(_network("10.42.0.0/29", "10.42.0.2"), "10.42.0.2")


@given(st.integers(24, 30), st.sets(st.integers(2, 254)), st.integers(0, 255))
def test_a_free_address_is_free_and_in_the_subnet(prefix: int, used: set[int], last: int) -> None:
    size = 1 << 32 - prefix
    taken = [f"10.9.8.{n}" for n in used if n < size - 1]
    before = f"10.9.8.{last % size}" if 2 <= last % size < size - 1 else ""
    network = _network(f"10.9.8.0/{prefix}", *taken, last=before)
    if len(taken) == size - 3:
        with pytest.raises(MinirunError):
            leases.free_address(network)
        return
    found = leases.free_address(network)
    assert found not in taken
    assert 2 <= address.parse(found) - address.parse("10.9.8.0") < size - 1


def test_the_state_survives(tmp_path: Path) -> None:
    state = State(
        boot="b", netns=7, opened=("eth0",), networks=(_network("10.0.0.0/24", "10.0.0.2"),)
    )
    directory = str(tmp_path / "a" / "state")
    with Book(directory) as book:
        assert book.load() == State()
        book.save(state)
        assert book.load() == state
    assert leases.peek(directory) == state
    info = os.stat(directory)
    assert info.st_mode & 0o777 == 0o700
    assert os.stat(f"{directory}/state.json").st_mode & 0o777 == 0o600
    with Book(directory) as book:
        book.save(State(boot="b", netns=7))
    assert os.listdir(directory) == []


def test_the_lock_is_held(tmp_path: Path) -> None:
    with Book(str(tmp_path / "s")):
        fd = os.open(tmp_path / "s", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_a_lock_that_does_not_come_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LOCK_TIMEOUT", 0.05)
    with Book(str(tmp_path / "s")):
        with pytest.raises(MinirunError, match="lock is held"):
            with Book(str(tmp_path / "s")):
                pass


def test_a_directory_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.mkdir(mode=0o700)
    path.chmod(0o777)
    with pytest.raises(Unsupported, match="written by others"):
        with Book(str(path)):
            pass


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "s").symlink_to(tmp_path / "real")
    with pytest.raises(Unsupported):
        with Book(str(tmp_path / "s")):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"networks":[{}]}', '{"netns":-1}'])
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    tmp_path.chmod(0o700)
    with Book(str(tmp_path)) as book:
        with pytest.raises((JSONError, ConfigError)):
            book.load()
