"""What mount options do beyond flags: copies, links, changes, id mappings, propagation."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from runtime import good, mounts_of, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")


# ---------------------------------------------------------------- tmpfs: mode, tmpcopyup


@pytest.mark.parametrize(
    ("options", "mode"), [((), "1750"), (("mode=0700",), "700"), (("tmpcopyup",), "1750")]
)
def test_a_tmpfs_has_the_mode_of_what_it_covers(
    box: Box, options: tuple[str, ...], mode: str
) -> None:
    (box.rootfs / "vol").chmod(0o1750)
    box.mount("/vol", "tmpfs", *options, kind="tmpfs")
    assert box.sh("stat -c %a /vol") == mode


def test_a_tmpfs_where_nothing_was(box: Box) -> None:
    box.mount("/nothing", "tmpfs", kind="tmpfs")
    assert box.sh("stat -c %a /nothing") == "1777"


def fill(place: Path) -> None:
    """Make one of each kind of file, with owners, modes, times and attributes."""
    (place / "inner/deep").mkdir(parents=True)
    (place / "inner").chmod(0o2751)
    (place / "inner/deep/file").write_bytes(os.urandom(3 << 20))
    (place / "program").write_text("x")
    os.chown(place / "program", 7, 8)
    (place / "program").chmod(0o4755)
    os.utime(place / "program", (1, 2))
    os.setxattr(place / "program", "trusted.colour", b"red")
    (place / "link").symlink_to("/etc/passwd")
    (place / "dangling").symlink_to("nowhere")
    os.mkfifo(place / "pipe", 0o640)
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def looked_at(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        kept = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
        times = status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0
        attributes = {} if path.is_symlink() else {n: os.getxattr(path, n) for n in _names(path)}
        found[str(path.relative_to(place))] = (*kept, times, content, tuple(attributes.items()))
    return found


def _names(path: Path) -> list[str]:
    return [] if stat.S_ISFIFO(path.lstat().st_mode) else os.listxattr(path)


def test_tmpcopyup(box: Box, tmp_path: Path) -> None:
    """What was there is there again, and what is written does not reach the image."""
    fill(box.rootfs / "vol")
    box.mount("/vol", "tmpfs", "tmpcopyup", "size=8m", kind="tmpfs")
    pid = box.up()
    inside = f"/proc/{pid}/root/vol"
    assert mounts_of(read(f"/proc/{pid}/mountinfo"))["/vol"].type == "tmpfs"
    copied = tmp_path / "copied"
    subprocess.run(["cp", "-a", inside, copied], check=True)
    assert looked_at(copied) == looked_at(box.rootfs / "vol")
    shutil.rmtree(f"{inside}/inner")
    assert (box.rootfs / "vol/inner/deep/file").exists()


def test_tmpcopyup_read_only(box: Box) -> None:
    (box.rootfs / "vol/file").write_text("x")
    box.mount("/vol", "tmpfs", "tmpcopyup", "ro", kind="tmpfs")
    assert box.sh("cat /vol/file; ! touch /vol/other 2>/dev/null") == "x"


def test_tmpcopyup_without_room(box: Box) -> None:
    (box.rootfs / "vol/file").write_bytes(b"x" * 100_000)
    box.mount("/vol", "tmpfs", "tmpcopyup", "size=16k", kind="tmpfs")
    assert "o space left" in box.refused()


def test_tmpcopyup_does_not_leave_the_image(box: Box, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (box.rootfs / "vol").rmdir()
    (box.rootfs / "vol").symlink_to(tmp_path)
    box.mount("/vol", "tmpfs", "tmpcopyup", kind="tmpfs")
    done = box.confined()
    assert "secret" not in done.out


def test_tmpcopyup_keeps_file_capabilities(box: Box) -> None:
    """Which chown(2) clears: a program that had them in the image has them in the copy."""
    (box.rootfs / "vol/program").write_bytes(b"x")
    (box.rootfs / "vol/program").chmod(0o4755)
    net_raw = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(box.rootfs / "vol/program", "security.capability", net_raw)
    box.mount("/vol", "tmpfs", "tmpcopyup", kind="tmpfs")
    program = f"/proc/{box.up()}/root/vol/program"
    assert os.getxattr(program, "security.capability") == net_raw
    assert stat.S_IMODE(os.stat(program).st_mode) == 0o4755


def test_tmpcopyup_of_a_bottomless_image(box: Box) -> None:
    """Its depth is the image's to choose: no recursion without end, no descriptors without end."""
    place = os.open(box.rootfs / "vol", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        place, above = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)
    box.mount("/vol", "tmpfs", "tmpcopyup", kind="tmpfs")
    try:
        assert "nested more than 200 deep" in box.refused()
    finally:
        subprocess.run(["rm", "-r", box.rootfs / "vol"], check=True)  # shutil's would not end well


def test_tmpcopyup_is_for_a_tmpfs(box: Box) -> None:
    box.mount("/vol", str(box.place), "bind", "tmpcopyup")
    assert "tmpcopyup is for a new tmpfs" in box.refused()


# ---------------------------------------------------------------- copy-symlink


def test_a_link_is_made_again(box: Box) -> None:
    link = box.place / "link"
    link.symlink_to("/usr/share/zoneinfo/UTC")
    box.mount("/etc/localtime", str(link), "bind", "copy-symlink")
    assert box.sh("readlink /etc/localtime; grep -c localtime /proc/self/mountinfo || true") == (
        "/usr/share/zoneinfo/UTC\n0"
    )
    box.sh("true")  # once more, where it is already


def test_a_link_where_something_else_is(box: Box) -> None:
    link = box.place / "link"
    link.symlink_to("/nowhere")
    box.mount("/etc/passwd", str(link), "bind", "copy-symlink")
    assert "ile exists" in box.refused()


def test_a_source_that_is_no_link_is_bound(box: Box) -> None:
    (box.place / "file").write_text("of the host\n")
    box.mount("/etc/motd", str(box.place / "file"), "bind", "copy-symlink")
    assert box.sh("cat /etc/motd") == "of the host"


# ---------------------------------------------------------------- src-nofollow, dest-nofollow


@pytest.mark.parametrize("inside", [False, True], ids=["", "in the root"])
@pytest.mark.parametrize("user", [False, True], ids=["", "user"])
@pytest.mark.requires("userns")
def test_a_link_is_mounted(box: Box, inside: bool, user: bool) -> None:
    """As in crun: not what it leads to, which need not be there."""
    if user:
        box.user_namespace()
    link = (box.rootfs / "vol" if inside else box.place) / "link"
    link.symlink_to("/nowhere")
    box.mount("/etc/motd", str(link), "bind", "ro", "src-nofollow")
    assert box.sh("readlink /etc/motd") == "/nowhere"
    assert "ro" in box.probe().mounts["/etc/motd"].options


def test_a_link_is_mounted_over(box: Box) -> None:
    (box.place / "file").write_text("of the host\n")
    (box.place / "link").symlink_to("file")
    for name in ("a", "b", "c"):
        (box.rootfs / "vol" / name).symlink_to("/etc/passwd")
    box.mount("/vol/a", str(box.place / "file"), "bind", "dest-nofollow")
    box.mount("/vol/b", str(box.place / "link"), "bind", "dest-nofollow")
    box.mount("/vol/c", str(box.place / "link"), "bind", "src-nofollow", "dest-nofollow")
    assert box.sh("cat /vol/a /vol/b; readlink /vol/c; head -n1 /etc/passwd").splitlines() == [
        "of the host", "of the host", "file", "root:x:0:0:root:/root:/bin/sh",
    ]  # fmt: skip
    assert os.readlink(box.rootfs / "vol/a") == "/etc/passwd"


def test_a_mount_over_a_link_that_is_not_there(box: Box) -> None:
    box.mount("/vol/none", str(box.place), "bind", "dest-nofollow")
    assert "no such file or directory" in box.refused()
    assert not (box.rootfs / "vol/none").exists()


def test_no_mount_over_a_link_of_proc(box: Box) -> None:
    box.mount("/proc/self", str(box.place), "bind", "dest-nofollow")
    assert "inside /proc" in box.refused()


def test_links_to_keep_are_of_binds(box: Box) -> None:
    box.mount("/vol", "tmpfs", "dest-nofollow", kind="tmpfs")
    assert "src-nofollow and dest-nofollow are for bind mounts" in box.refused()
    box.unmount("/vol")
    box.mount("/vol", str(box.place), "bind", "src-nofollow", "copy-symlink")
    assert "copy-symlink excludes src-nofollow" in box.refused()


# ---------------------------------------------------------------- remount


def test_remount_changes_what_is_mounted(box: Box) -> None:
    box.mount("/vol", "tmpfs", "nosuid", "size=64k", kind="tmpfs")
    box.mount("/vol", "tmpfs", "remount", "ro", "noexec", "size=128k", kind="tmpfs")
    found = box.probe().mounts["/vol"]
    assert {"ro", "noexec", "nosuid"} <= found.options
    assert "size=128k" in found.super


def test_remount_of_a_bind(box: Box) -> None:
    (box.place / "shared").mkdir()
    box.mount("/vol", str(box.place / "shared"), "bind", "ro")
    box.mount("/vol", "", "bind", "remount", "rw", "nodev")
    report = box.probe()
    assert {"rw", "nodev"} <= report.mounts["/vol"].options
    assert len([line for line in report["mountinfo"].splitlines() if " /vol " in line]) == 1


def test_remount_where_nothing_is_mounted(box: Box) -> None:
    box.mount("/vol", "tmpfs", "remount", "ro", kind="tmpfs")
    assert "mount_setattr" in box.refused()


# ---------------------------------------------------------------- recursive attributes


@pytest.fixture
def tree(box: Box) -> Iterator[Path]:
    """A directory of the host with a file system mounted below it."""
    place = box.place / "tree"
    (place / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "exec,suid", "t", place / "sub"], check=True)
    yield place
    subprocess.run(["umount", "-l", place / "sub"], check=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["rro"], {"ro"}),
        (["rro", "rrw"], {"rw"}),
        (["rnosuid", "rnodev", "rnoexec"], {"nosuid", "nodev", "noexec"}),
        (["rnoatime"], {"noatime"}),
        (["rnodiratime"], {"nodiratime"}),
        (["rnosymfollow"], {"nosymfollow"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_recursive_attributes(box: Box, tree: Path, options: list[str], expected: set[str]) -> None:
    box.mount("/vol", str(tree), "rbind", *options)
    mounts = box.probe().mounts
    assert expected <= mounts["/vol"].options
    assert expected <= mounts["/vol/sub"].options


def test_an_attribute_that_is_not_recursive(box: Box, tree: Path) -> None:
    box.mount("/vol", str(tree), "rbind", "ro", "rnoexec")
    mounts = box.probe().mounts
    assert {"ro", "noexec"} <= mounts["/vol"].options
    assert {"rw", "noexec"} <= mounts["/vol/sub"].options


# ---------------------------------------------------------------- id mappings


MAPPED = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def test_an_idmapped_mount(box: Box, tree: Path) -> None:
    """What 0 owns belongs to 100000 in the mount, and the other way round."""
    (tree / "file").write_text("x")
    os.chown(tree / "file", 0, 5)
    box.mount("/vol", str(tree), "rbind", "idmap")
    box.config["mounts"][-1].update(uidMappings=MAPPED, gidMappings=MAPPED)
    assert box.sh("stat -c %u:%g /vol/file; touch /vol/sub/new") == "100000:100005"
    assert (tree / "sub/new").stat().st_uid == 0  # not recursive: the mount below is as it was


def test_a_recursively_idmapped_mount(box: Box) -> None:
    place, below = box.place / "over", box.place / "below"
    (place / "sub").mkdir(parents=True)
    below.mkdir()
    (below / "file").write_text("x")
    # kernel: a tmpfs can be mapped since 6.3 only; what the tests' files lie on, since 5.12.
    subprocess.run(["mount", "--bind", below, place / "sub"], check=True)
    try:
        box.mount("/vol", str(place), "rbind", "ridmap")
        box.config["mounts"][-1].update(uidMappings=MAPPED, gidMappings=MAPPED)
        assert box.sh("stat -c %u /vol/sub/file") == "100000"
    finally:
        subprocess.run(["umount", "-l", place / "sub"], check=True)


@pytest.mark.requires("userns")
def test_idmap_by_the_containers_own_mappings(box: Box, tree: Path) -> None:
    (tree / "file").write_text("x")
    os.chown(tree / "file", 0, 0)
    for path in (box.place, tree):
        path.chmod(0o755)
    box.user_namespace()
    box.mount("/vol", str(tree), "bind", "idmap")
    assert box.sh("stat -c %u:%g /vol/file") == "0:0"


def test_idmap_needs_mappings(box: Box, tree: Path) -> None:
    box.mount("/vol", str(tree), "bind", "idmap")
    assert "needs mappings" in box.refused()


# ---------------------------------------------------------------- destinations


def test_a_relative_destination(box: Box) -> None:
    box.mount("vol/../vol/./here", "tmpfs", kind="tmpfs")
    assert "/vol/here" in box.probe().mounts


# ---------------------------------------------------------------- rootfsPropagation


@pytest.fixture
def shared_root(box: Box) -> Iterator[Path]:
    """The root filesystem as a shared mount of the host."""
    subprocess.run(["mount", "--bind", box.rootfs, box.rootfs], check=True)
    subprocess.run(["mount", "--make-shared", box.rootfs], check=True)
    yield box.rootfs
    subprocess.run(["umount", "-R", "-l", box.rootfs], check=True)


@pytest.mark.parametrize(
    ("kind", "tags", "comes"),
    [
        ("private", set(), False),
        ("rprivate", set(), False),
        ("slave", {"master"}, True),
        ("rslave", {"master"}, True),
        ("shared", {"shared"}, False),
        ("rshared", {"shared"}, False),
        ("unbindable", {"unbindable"}, False),
        ("runbindable", {"unbindable"}, False),
        (None, set(), False),
    ],
)
def test_propagation_of_the_root(
    box: Box, shared_root: Path, kind: str | None, tags: set[str], comes: bool
) -> None:
    """Where a mount that the host makes later is seen, and that none goes the other way."""
    if kind:
        box.linux["rootfsPropagation"] = kind
    pid = box.up()
    found = mounts_of(read(f"/proc/{pid}/mountinfo"))
    assert found["/"].tags == tags
    subprocess.run(["mount", "-t", "tmpfs", "late", shared_root / "vol"], check=True)
    assert ("/vol" in mounts_of(read(f"/proc/{pid}/mountinfo"))) is comes


def test_a_slave_sends_nothing_back(box: Box, shared_root: Path) -> None:
    box.linux["rootfsPropagation"] = "rslave"
    box.mount("/vol", "tmpfs", kind="tmpfs")
    pid = box.up()
    assert "/vol" in mounts_of(read(f"/proc/{pid}/mountinfo"))
    assert str(shared_root / "vol") not in mounts_of(read("/proc/self/mountinfo"))


def test_within_a_shared_root_mounts_propagate(box: Box) -> None:
    """As nested containers have it, and the specification's own suite asks."""
    box.linux["rootfsPropagation"] = "shared"
    box.process["capabilities"] = {
        kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")
    }
    script = "mount -o bind / /vol; mount -t tmpfs t /tmp; touch /tmp/x; stat /vol/tmp/x"
    box.process["args"] = ["/bin/sh", "-c", script]
    good(box.run())
    box.linux["rootfsPropagation"] = "unbindable"
    box.process["args"] = ["/bin/sh", "-c", "! mount -o bind / /vol"]
    good(box.run())


# ---------------------------------------------------------------- cgroups that are given away


@pytest.mark.requires("cgroup2", "userns")
@pytest.mark.parametrize(
    ("source", "options", "uid", "owner"),
    [
        ("cgroup", ["rw"], 0, 100000),
        ("cgroup", ["nosuid"], 5, 100005),
        ("cgroup", ["ro"], 0, 0),
        ("other", [], 0, 0),
    ],
)
def test_whose_the_cgroup_is(
    box: Box, source: str, options: list[str], uid: int, owner: int
) -> None:
    """config-linux.md, "Cgroup ownership"."""
    box.user_namespace()
    box.namespace("cgroup")
    box.process["user"] = {"uid": uid, "gid": 0}
    box.mount("/sys/fs/cgroup", source, *options, kind="cgroup")
    pid = box.up()
    group = read(f"/proc/{pid}/cgroup").strip().rpartition("0::")[2]
    place = f"/sys/fs/cgroup{group}"
    listed = read("/sys/kernel/cgroup/delegate").split()
    for name in os.listdir(place):
        expected = owner if name in listed else 0
        assert os.stat(f"{place}/{name}").st_uid == expected, name
    assert os.stat(place).st_uid == owner
    done = box.exec("/bin/mkdir", "/sys/fs/cgroup/inner")
    assert (done.code == 0) is (owner != 0), done


@pytest.mark.requires("cgroup2", "userns")
def test_without_a_namespace_of_its_own_the_cgroup_stays_ours(box: Box) -> None:
    box.user_namespace()
    box.mount("/sys/fs/cgroup", "cgroup", "rw", kind="cgroup")
    pid = box.up()
    group = read(f"/proc/{pid}/cgroup").strip().rpartition("0::")[2]
    assert os.stat(f"/sys/fs/cgroup{group}").st_uid == 0
