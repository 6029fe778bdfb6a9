"""Leases of user ID ranges; places below the data directory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from minirun.engine import bundle, idrange, overlay, places
from minirun.errors import AlreadyExists, MinirunError, Unsupported, UsageError


@pytest.fixture(autouse=True)
def undelegated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idrange, "_delegated", lambda _path: [])
    monkeypatch.setattr(idrange, "_own_map", lambda _kind: [(0, 1 << 32)])


def lease(directory: Path, cid: str, *dead: str) -> int:
    return idrange.lease(str(directory), cid, lambda owner: owner not in dead)


def test_ranges_do_not_overlap_and_come_back(tmp_path: Path) -> None:
    where = tmp_path / "idranges"
    assert [lease(where, name) for name in "abc"] == [524288, 589824, 655360]
    idrange.release(str(where), "b")
    idrange.release(str(where), "b")
    assert lease(where, "d") == 589824
    assert sorted(os.listdir(where)) == ["524288", "589824", "655360"]
    assert (where / "589824").read_text() == "d"
    assert (where / "589824").stat().st_mode & 0o777 == 0o600


def test_a_lease_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    assert lease(tmp_path, "a") == lease(tmp_path, "b", "a")
    assert (tmp_path / "524288").read_text() == "b"


def test_delegated_ranges_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idrange, "_delegated", lambda path: [(524288, 1), (655359, 2)])
    assert lease(tmp_path, "a") == 720896


def test_only_what_is_mapped_here_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idrange, "_own_map", lambda _kind: [(0, 65536)])
    with pytest.raises(Unsupported, match="no range"):
        lease(tmp_path, "a")
    assert os.listdir(tmp_path) == []


def test_threads_never_share_a_range(tmp_path: Path) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=number: found.append(lease(tmp_path, f"c{n}")))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8


def test_subuid_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "subuid").write_text("a:100000:65536\n#c\nb:1_0:5\nb:-1:5\nb:5\n\nd:7:9\n")
    assert idrange._delegated(str(tmp_path / "subuid")) == [(100000, 65536), (7, 9)]
    assert idrange._delegated(str(tmp_path / "absent")) == []


def test_other_files_among_the_leases_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "README").touch()
    assert lease(tmp_path, "a") == 524288
    idrange.release(str(tmp_path), "a")
    assert os.listdir(tmp_path) == ["README"]


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("umask", [0, 0o077])
def test_directories_have_their_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    data = str(tmp_path / "a" / "data")
    former = os.umask(umask)
    try:
        places.make(data)
        made = places.make_bundle(data, "web")
    finally:
        os.umask(former)
    assert os.stat(data).st_mode & 0o7777 == 0o711
    assert os.stat(f"{data}/containers").st_mode & 0o7777 == 0o711
    assert os.stat(made).st_mode & 0o7777 == 0o700
    with pytest.raises(AlreadyExists, match="container with given ID already exists"):
        places.make_bundle(data, "web")


def test_a_data_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    with pytest.raises(MinirunError, match="refusing data directory"):
        places.make(str(data))


def test_a_bundle_of_an_earlier_boot_is_known(tmp_path: Path) -> None:
    data = str(tmp_path)
    places.make(data)
    made = places.make_bundle(data, "web")
    assert not places.survived_boot(made)
    Path(made, "boot").write_text("another\n/run/x\n")
    assert places.survived_boot(made)
    Path(made, "boot").unlink()
    assert not places.survived_boot(made)


def test_a_bundle_of_another_state_directory_is_known(tmp_path: Path) -> None:
    data = str(tmp_path)
    places.make(data)
    default = places.make_bundle(data, "default")
    other = places.make_bundle(data, "other", "/run/other/")
    assert places.belongs(default, None)
    assert not places.belongs(default, "/run/other")
    assert places.belongs(other, "/run/other")
    assert not places.belongs(other, None)
    Path(other, "boot").unlink()
    assert places.belongs(other, None)


@pytest.mark.parametrize(
    "cid", ["", ".", "..", "a/b", "../x", "a\0b", "a\n", "a b", "é", "a" * 129]
)
def test_an_id_that_is_no_name_is_refused(cid: str) -> None:
    with pytest.raises(UsageError, match="invalid container ID format"):
        places.check_id(cid)


def test_only_our_own_place_is_ever_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRUN_DATA", str(tmp_path / "data"))
    (tmp_path / "foreign" / "rootfs").mkdir(parents=True)
    (tmp_path / "data" / "containers").mkdir(parents=True)
    (tmp_path / "data" / "containers" / "link").symlink_to(tmp_path / "foreign")
    claims = {"run.minirun.managed": "true"}
    for path in (
        tmp_path / "foreign",
        tmp_path / "data" / "containers" / "link",
        tmp_path / "data" / "containers" / "..",
        tmp_path / "data" / "containers",
        tmp_path / "data" / "containers" / "absent",
        tmp_path / "data" / "containers" / ".." / ".." / "foreign",
    ):
        assert not bundle.managed(claims, str(path))
        assert not bundle.discard(str(path))
    assert (tmp_path / "foreign" / "rootfs").is_dir()
    own = tmp_path / "data" / "containers" / "web"
    own.mkdir()
    assert bundle.managed(claims, str(own))
    assert not bundle.managed({}, str(own))
    assert not bundle.managed({"run.minirun.managed": "false"}, str(own))


def test_writing_never_follows_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("host")
    (tmp_path / "link").symlink_to("host")
    with pytest.raises(FileExistsError):
        places.write(str(tmp_path / "link"), "container")
    assert (tmp_path / "host").read_text() == "host"


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.1.0-18-amd64", (6, 1)), ("5.10.0", (5, 10)), ("6.18-rc1", (6, 18)), ("7.0+", (7, 0))],
)
def test_kernel_releases(release: str, numbers: tuple[int, int]) -> None:
    if "-rc" not in release:
        assert overlay.kernel_release(release) == numbers
    else:
        assert overlay.kernel_release(release)[0] == numbers[0]
