"""Names, finding and reading root filesystems; what mounts use a tree. No privilege needed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from minirun.errors import MinirunError, UsageError
from minirun.remove import remove_tree
from minirun.rootfs import store, users


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "rootfs").mkdir(mode=0o700)
    return str(tmp_path)


def make(data: str, name: str, **about: object) -> Path:
    place = Path(data, "rootfs", name)
    (place / "rootfs").mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"name": name, **about}))
    return place


@pytest.mark.parametrize("name", ["a", "0", "alpine-3.20", "a.b_c-d", "a" * 63, "a..b"])
def test_names_that_are_taken(name: str) -> None:
    assert store.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", ".a", "_a", "A", "a/b", "a\n", "a\0", "a b", "é", "٣", "a" * 64, "a:b"],
)
def test_names_that_are_refused(name: str, data: str) -> None:
    with pytest.raises(UsageError, match="invalid root filesystem name"):
        store.check_name(name)


def test_a_version_is_part_of_the_name() -> None:
    assert store.stored_name("alpine:3.20") == "alpine-3.20"
    assert store.stored_name("alpine:latest") == store.stored_name("alpine") == "alpine"
    for reference in ("alpine:", ":3", "alpine:../x"):
        with pytest.raises(UsageError):
            store.stored_name(reference)


def test_the_data_directory_is_the_option_then_the_variable_then_the_default() -> None:
    environ = {"MINIRUN_DATA": "/srv/x"}
    assert store.data_directory("/srv/y", environ) == "/srv/y"
    assert store.data_directory(None, environ) == "/srv/x"
    assert store.data_directory("", {"MINIRUN_DATA": ""}) == "/var/lib/minirun"
    assert store.data_directory("d", {}) == os.path.join(os.getcwd(), "d")


def test_a_name_finds_its_tree(data: str) -> None:
    place = make(data, "alpine-3.20", digest="sha256:ab", version="3.20.3", source="here")
    for wanted in ("alpine-3.20", "alpine:3.20"):
        found = store.find(data, wanted)
        assert found.path == str(place / "rootfs")
        assert (found.name, found.digest, found.source) == ("alpine-3.20", "sha256:ab", "here")


def test_a_path_finds_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path)
    for given in ("./tree", "tree/", str(tmp_path / "tree"), "tree/../tree"):
        assert store.find("/nowhere", given).path == str(tmp_path / "tree")
    assert store.find("/nowhere", ".").path == str(tmp_path)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("")
    with pytest.raises(MinirunError, match="is not a directory") as caught:
        store.find("/nowhere", str(tmp_path / "x.tar"))
    assert "rootfs import" in caught.value.fix
    with pytest.raises(MinirunError, match="does not exist"):
        store.find("/nowhere", "./nowhere")


def test_a_missing_name_says_what_there_is_and_how_to_get_it(data: str) -> None:
    make(data, "alpine")
    with pytest.raises(MinirunError, match=r"^root filesystem alpin does not exist$") as caught:
        store.find(data, "alpin")
    assert caught.value.fix == "say alpine", "of a slip of the pen there is no archive"
    assert store.missing(store.base_directory(data), "x", wanted=False).fix == ""
    with pytest.raises(MinirunError) as caught:
        store.find(data, "alpine:3.20")
    assert "sudo minirun rootfs pull alpine:3.20" in caught.value.fix
    with pytest.raises(MinirunError) as caught:
        store.find(data, "debian")
    assert (caught.value.cause, caught.value.fix) == (
        "there are: alpine", "get it: sudo minirun rootfs import FILE.tar.gz --name debian",
    )  # fmt: skip
    with pytest.raises(MinirunError, match="busybox does not exist") as caught:
        store.find("/nowhere", "busybox")
    assert "rootfs build busybox" in caught.value.fix


def test_a_directory_of_that_name_here_is_hinted_at(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MinirunError) as caught:
        store.find(data, "tree")
    assert "./tree" in caught.value.cause


@pytest.mark.parametrize("damage", ["no meta", "bad meta", "no tree", "a link", "a file"])
def test_a_damaged_one_is_refused(data: str, damage: str) -> None:
    place = make(data, "alpine")
    if damage == "no meta":
        (place / "meta.json").unlink()
    elif damage == "bad meta":
        (place / "meta.json").write_text("{")
    else:
        (place / "rootfs").rmdir()
        if damage == "a link":
            (place / "rootfs").symlink_to("/")
        elif damage == "a file":
            (place / "rootfs").write_text("")
    with pytest.raises(MinirunError, match="root filesystem alpine is damaged") as caught:
        store.find(data, "alpine")
    assert "rootfs rm alpine" in caught.value.fix


def test_the_names_are_sorted_and_hide_what_is_in_the_making(data: str) -> None:
    for name in ("b", "a", ".a.tmp-0123", ".lock"):
        Path(data, "rootfs", name).mkdir()
    assert store.names(store.base_directory(data)) == ["a", "b"]
    assert store.names("/nowhere") == []


@pytest.mark.parametrize("where", [".", "rootfs"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_data_directory_that_others_may_write_to_is_refused(
    data: str, where: str, mode: int
) -> None:
    make(data, "alpine")
    Path(data, where).chmod(mode)
    if mode == 0o1777 and where == ".":
        store.find(data, "alpine")  # sticky: others cannot rename what is in it, as in /tmp
        return
    with pytest.raises(MinirunError, match="may be written to by others"):
        store.find(data, "alpine")


def test_finding_loads_nothing_heavy() -> None:
    code = "import sys, minirun.remove; from minirun.rootfs import store; print(*sys.modules)"
    command = [
        sys.executable,
        "-ISB",
        "-c",
        f"import sys; sys.path.append({os.getcwd()!r}); {code}",
    ]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"re", "json", "typing", "enum", "contextlib", "collections", "hashlib", "subprocess"}
    assert "minirun.rootfs.store" in loaded and not heavy.intersection(loaded)


def test_removing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/file").write_text("")
    for number in range(3):
        (tmp_path / f"tree/{number}/x").mkdir(parents=True)
        (tmp_path / f"tree/{number}/x/link").symlink_to("../../../keep")
    top = os.open(tmp_path, os.O_RDONLY)
    remove_tree(top, "tree")
    remove_tree(top, "tree")  # gone already
    os.close(top)
    assert sorted(os.listdir(tmp_path)) == ["keep"]
    assert os.listdir(tmp_path / "keep") == ["file"]


def test_removing_does_not_mind_depth(tmp_path: Path) -> None:
    # Not too deep for pytest to clean up; deep enough for a descriptor or a frame per level.
    deep = tmp_path / "tree" / "/".join("d" * 300)
    deep.mkdir(parents=True)
    top = os.open(tmp_path, os.O_RDONLY)
    limit, depth = resource.getrlimit(resource.RLIMIT_NOFILE), sys.getrecursionlimit()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 20, limit[1]))
        sys.setrecursionlimit(200)
        remove_tree(top, "tree")
    finally:
        sys.setrecursionlimit(depth)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        os.close(top)
    assert os.listdir(tmp_path) == []


def test_lower_directories_of_overlays_are_read_as_the_kernel_writes_them() -> None:
    line = (
        rb"100 30 0:50 / /run/web\040one rw shared:5 - overlay overlay "
        rb"rw,lowerdir=/a\134:b:/c\040d:/e,upperdir=/u,workdir=/w"
    )
    mount = users.Mount(line)
    assert mount.point == "/run/web one"
    assert mount.lower_directories() == ["/a:b", "/c d", "/e"]
    newer = users.Mount(b"1 2 0:3 / /m rw - overlay none rw,lowerdir+=/a,lowerdir+=/b,upperdir=/u")
    assert newer.lower_directories() == ["/a", "/b"]
    assert users.Mount(b"1 2 8:1 / / rw - ext4 /dev/sda rw,errors=ro").lower_directories() == []
