"""Mounts, and root filesystems that would lead them astray. T-FS1 to T-FS19."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from runtime import (
    Mountpoint,
    call,
    flipping,
    good,
    host_same,
    mounts_of,
    read,
    report_of,
    traced,
)

if TYPE_CHECKING:
    from pathlib import Path

    from runtime import Box, Done, Report

pytestmark = pytest.mark.requires("root", "programs")

NODES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
    "tty": (5, 0),
}  # fmt: skip


def replace(path: Path, kind: str, target: Path | str = "") -> None:
    """Put something else where a directory, file or nothing of the root filesystem is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    if kind == "link":
        path.symlink_to(target)
    elif kind == "file":
        path.write_text("a file\n")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()


def climbing(rootfs: Path, target: Path) -> str:
    """Return a relative link from the top of the root filesystem to a place of the host."""
    return os.path.relpath(target, rootfs)


# ---------------------------------------------------------------- what is mounted


@pytest.mark.parametrize(
    ("options", "expected", "absent"),
    [
        (["ro"], {"ro"}, {"rw"}),
        (["ro", "rw"], {"rw"}, {"ro"}),
        (["nosuid", "nodev", "noexec"], {"rw", "nosuid", "nodev", "noexec"}, set()),
        (["noexec", "exec"], {"rw"}, {"noexec"}),
        (["noatime"], {"noatime"}, {"relatime"}),
        (["strictatime"], set(), {"noatime", "relatime"}),
        (["nodiratime"], {"nodiratime"}, set()),
        (["nosymfollow"], {"nosymfollow"}, set()),
        (["ro", "noexec", "defaults", "size=4k"], {"ro", "noexec"}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_options(
    box: Box, kind: str, options: list[str], expected: set[str], absent: set[str]
) -> None:
    """T-FS17: exactly those of config.json, as mountinfo has them."""
    if kind == "bind":
        options = [option for option in options if "=" not in option]
    source = box.place / "source"
    source.mkdir()
    box.mount("/vol", str(source), *(["bind"] if kind == "bind" else []), *options, kind=kind)
    found = box.probe().mounts["/vol"].options
    assert expected <= found
    assert not absent & found


def nested(box: Box) -> Path:
    """Make a source on the host with another mount below it; gone with its mount namespace."""
    source = box.place / "source"
    (source / "sub").mkdir(parents=True)
    box.command = [
        "unshare", "--mount", "sh", "-c",
        'mount -t tmpfs -o nodev tmpfs "$0"/sub && exec "$@"', str(source), *box.command,
    ]  # fmt: skip
    return source


@pytest.mark.parametrize(
    ("options", "above", "below"),
    [
        (["rbind", "ro"], "ro", "rw"),
        (["rbind", "rro"], "ro", "ro"),
        (["rbind", "rro", "rnoexec"], "noexec", "noexec"),
        (["rbind", "rnosuid", "nodev"], "nosuid", "nosuid"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_recursive_options(box: Box, options: list[str], above: str, below: str) -> None:
    box.mount("/vol", str(nested(box)), *options)
    mounts = box.probe().mounts
    assert above in mounts["/vol"].options
    assert below in mounts["/vol/sub"].options
    assert mounts["/vol/sub"].type == "tmpfs"


def test_a_plain_bind_is_one_mount(box: Box) -> None:
    box.mount("/vol", str(nested(box)), "bind")
    assert "/vol/sub" not in box.probe().mounts


@pytest.mark.parametrize(
    "options", [["bind", "size=4k"], ["bind", "nonsense"], ["bind", "mode=755"]]
)
def test_a_bind_has_no_options_of_a_file_system(box: Box, options: list[str]) -> None:
    box.mount("/vol", str(box.place), *options)
    box.refused("/vol", "mounts[")


@pytest.mark.parametrize("options", [["nonsense"], ["=x"], ["uid=1\0,gid=2"]])
def test_options_that_do_not_exist(box: Box, options: list[str]) -> None:
    box.mount("/vol", "tmpfs", *options, kind="tmpfs")
    box.refused()


def test_sources(box: Box) -> None:
    """Files, directories, sources relative to the bundle, and mount points that are made."""
    (box.bundle / "file").write_text("relative")
    (box.place / "file").write_text("absolute")
    (box.place / "dir").mkdir()
    box.mount("/made/here/file", "file", "bind")
    box.mount("/made/there", str(box.place / "file"), "bind", "ro")
    box.mount("made/dir/", str(box.place / "dir"), "rbind", kind="none")
    told = box.sh("cat /made/here/file /made/there; echo x > /made/dir/written")
    assert told == "relativeabsolute"
    assert (box.place / "dir/written").read_text() == "x\n"
    assert stat.S_IMODE((box.rootfs / "made").stat().st_mode) == 0o755


@pytest.mark.parametrize("source", ["", "/nonexistent", "/nonexistent/x\0y"])
def test_a_source_that_is_not_there(box: Box, source: str) -> None:
    box.mount("/vol/new", source, "bind")
    box.refused()
    assert not (box.rootfs / "vol/new").exists()


def test_mounts_are_made_in_their_order(box: Box) -> None:
    for name in ("one", "two"):
        (box.place / name).mkdir()
        (box.place / name / name).write_text("")
    box.mount("/vol", str(box.place / "one"), "bind")
    box.mount("/vol", str(box.place / "two"), "bind")
    box.mount("/vol/below", "tmpfs", kind="tmpfs")
    assert box.sh("ls /vol").split() == ["below", "two"]


def test_many_mounts(box: Box) -> None:
    """More than there may be descriptors, each its own: T-FS16."""
    (box.place / "many").mkdir()
    for number in range(120):
        (box.place / f"many/{number}").write_text(f"{number} ")
        box.mount(f"/vol/{number}", str(box.place / f"many/{number}"), "bind")
    told = box.sh("n=0; while [ $n -lt 120 ]; do cat /vol/$n; n=$((n+1)); done")
    assert told.split() == [str(number) for number in range(120)]


@pytest.mark.parametrize("verb", ["create", "run"])
def test_more_mounts_than_descriptors(box: Box, verb: str) -> None:
    """T-FS16: what cannot be opened is told, and what was made is undone with what is left."""
    for number in range(60):
        box.mount(f"/vol/{number}", str(box.place), "bind")
    box.process["args"] = ["/bin/true"]
    box.write()
    words = box.words(verb, "--bundle", str(box.bundle), box.id)
    done = call(["prlimit", "--nofile=48:48", *words])
    assert done.code == 1
    assert "too many open files" in done.err
    assert box.left() == []


def test_an_idmapped_mount(box: Box) -> None:
    source = box.place / "source"
    source.mkdir()
    (source / "file").write_text("")
    os.chown(source / "file", 0, 5)
    box.mount("/vol", str(source), "bind", "idmap")
    box.config["mounts"][-1] |= {
        kind: [{"containerID": 0, "hostID": 1000, "size": 100}]
        for kind in ("uidMappings", "gidMappings")
    }
    assert box.sh("stat -c %u:%g /vol/file") == "1000:1005"


@pytest.mark.requires("cgroup2")
def test_the_cgroup_file_system(box: Box) -> None:
    """Its own group only, and not to be written where config.json says so: T-CG1."""
    box.namespace("cgroup")
    safe = ("nosuid", "noexec", "nodev", "relatime", "ro")
    box.mount("/sys/fs/cgroup", "cgroup", *safe, kind="cgroup")
    mounted = box.probe().mounts["/sys/fs/cgroup"]
    assert (mounted.type, mounted.root) == ("cgroup2", "/")
    assert {"ro", "nosuid", "noexec", "nodev"} <= mounted.options
    assert box.sh("cat /sys/fs/cgroup/cgroup.procs").split()[0] == "1"
    assert box.sh("mkdir /sys/fs/cgroup/x 2>&- || echo refused") == "refused"


# ---------------------------------------------------------------- propagation, the old root


@pytest.mark.parametrize(
    ("kind", "tags"),
    [
        ("private", set()), ("rprivate", set()), ("shared", {"shared"}), ("rshared", {"shared"}),
        ("unbindable", {"unbindable"}),
    ],
)  # fmt: skip
def test_propagation_of_the_root(box: Box, kind: str, tags: set[str]) -> None:
    box.linux["rootfsPropagation"] = kind
    assert box.probe().mounts["/"].tags == tags


@pytest.mark.parametrize(
    ("option", "tags"), [("shared", {"shared"}), ("private", set()), ("rslave", set())]
)
def test_propagation_of_a_mount(box: Box, option: str, tags: set[str]) -> None:
    (box.place / "source").mkdir()
    box.mount("/vol", str(box.place / "source"), "bind", option)
    if option != "private" and host_shares(box.place):
        tags = {*tags, "master"}  # it follows what it was copied from, as every bind does
    assert box.probe().mounts["/vol"].tags == tags


def host_shares(place: Path) -> bool:
    """Whether the mount that a directory lies on is shared, as systemd has it."""
    words = ["findmnt", "--noheadings", "--output", "PROPAGATION", "--target", str(place)]
    return subprocess.check_output(words, text=True).strip() == "shared"


def seen_by_a_sharing_host(box: Box) -> set[str]:
    """Run where all mounts of the host are shared; return what it has mounted more after that.

    A mount that has propagated stays when the container's namespace goes.
    """
    box.process["args"] = ["/bin/true"]
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    script = (
        'mount --make-rshared /; cat /proc/self/mountinfo > "$0"/before; '
        '"$@" && cat /proc/self/mountinfo > "$0"/after'
    )
    host = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(box.place)]
    good(call([*host, *words]))
    before, after = (mounts_of(read(box.place / name)) for name in ("before", "after"))
    return {os.path.relpath(point, box.place) for point in set(after) - set(before)}


@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_nothing_reaches_a_host_whose_mounts_are_shared(box: Box, userns: bool) -> None:
    """T-FS18: neither what is mounted in a source, nor on a node, nor twice on one place."""
    (box.place / "source/deep").mkdir(parents=True)
    (box.place / "file").write_text("")
    box.mount("/vol", str(box.place / "source"), "rbind")
    box.mount("/vol/deep", "tmpfs", kind="tmpfs")
    box.mount("/tmp/file", str(box.place / "file"), "bind")
    box.mount("/tmp/file", str(box.place / "file"), "bind")
    box.linux["maskedPaths"] += ["/proc/timer_list", "/dev/null", "/dev/zero", "/tmp/file"]
    box.linux["readonlyPaths"] += ["/dev/full", "/vol", "/vol", "/tmp/file"]
    if userns:
        box.user_namespace()
    assert seen_by_a_sharing_host(box) == set()


def test_what_shall_reach_the_host_does(box: Box) -> None:
    """As Kubernetes has it for storage drivers: "Bidirectional"."""
    for name in ("shared", "not"):
        (box.place / name).mkdir()
        (box.place / name / "deep").mkdir()
    box.linux["rootfsPropagation"] = "rshared"
    box.mount("/vol", str(box.place / "shared"), "rbind", "rshared")
    box.mount("/tmp", str(box.place / "not"), "rbind")
    box.mount("/vol/deep", "tmpfs", kind="tmpfs")
    box.mount("/tmp/deep", "tmpfs", kind="tmpfs")
    assert seen_by_a_sharing_host(box) == {"shared/deep"}


def test_the_old_root_is_gone(box: Box) -> None:
    """T-FS19."""
    (box.place / "marker").write_text("")
    report = box.probe()
    assert [one for one in report.mounts if "/tmp/mr-" in one] == []
    assert report.mounts["/"].point == "/"
    assert box.sh("ls -d /../../../vol /proc/1/root/vol").split() == [
        "/../../../vol", "/proc/1/root/vol",
    ]  # fmt: skip


def test_a_chroot_cannot_be_left_for_the_host(box: Box) -> None:
    box.process["capabilities"]["bounding"] += ["CAP_SYS_CHROOT"]
    box.process["capabilities"]["permitted"] += ["CAP_SYS_CHROOT"]
    report = box.probe("breakout")
    inside = box.rootfs.stat()
    assert report["errno"] == 0
    assert (report["ino"], report["dev"]) == (inside.st_ino, inside.st_dev)


def test_no_file_by_its_handle(box: Box) -> None:
    assert box.probe("handle")["errno"] == 1  # EPERM


def test_no_pivot(box: Box) -> None:
    """--no-pivot: less tight, but neither /proc nor the host's mounts stay reachable."""
    report = box.probe(flags=["--no-pivot"])
    assert report.mounts["/"].root.endswith("/rootfs")
    assert [one for one in report.mounts.values() if one.type == "proc"] != []
    masked = report.mounts["/proc/timer_list"]
    assert masked.root == "/null" or masked.type == "devtmpfs"


# ---------------------------------------------------------------- read-only, masked


def test_a_read_only_root(box: Box) -> None:
    box.config["root"]["readonly"] = True
    box.mount("/vol", "tmpfs", kind="tmpfs")
    report = box.probe("try", "create:/x", "create:/etc/x", "mkdir:/x", "create:/vol/x")
    assert report == {"create:/x": 30, "create:/etc/x": 30, "mkdir:/x": 30, "create:/vol/x": 0}


def test_read_only_paths(box: Box) -> None:
    """T-FS14."""
    (box.rootfs / "vol/dir").mkdir()
    (box.rootfs / "vol/file").write_text("")
    (box.rootfs / "vol/link").symlink_to("/etc")
    box.mount("/vol/dir", "tmpfs", kind="tmpfs")
    box.linux["readonlyPaths"] = ["/vol", "/vol/file", "/vol/link", "/nowhere", "/proc/sys", "/vol"]
    report = box.probe(
        "try", "create:/vol/x", "create:/vol/dir/x", "write:/vol/file", "create:/etc/x",
        "write:/proc/sys/kernel/hostname", "write:/proc/sys/kernel/core_pattern", "create:/x",
    )  # fmt: skip
    assert report.pop("create:/x") == 0
    assert set(report.values()) == {30}  # EROFS


@pytest.mark.parametrize("path", ["/", "/etc/link"])
def test_the_root_as_a_read_only_path(box: Box, path: str) -> None:
    """As in runc what is mounted below it stays as it is."""
    (box.rootfs / "etc/link").symlink_to("/")
    box.mount("/vol", "tmpfs", kind="tmpfs")
    box.linux["readonlyPaths"] = [path, "/proc/sys"]
    report = box.probe("try", "create:/x", "create:/etc/x", "create:/vol/x")
    assert report == {"create:/x": 30, "create:/etc/x": 30, "create:/vol/x": 0}


def test_masked_paths(box: Box) -> None:
    """T-FS3 C and E: files read as empty, directories are empty and stay so."""
    (box.rootfs / "vol/dir/below").mkdir(parents=True)
    for name in ("secret", "dir/secret", "file"):
        (box.rootfs / "vol" / name).write_text("secret")
    (box.rootfs / "vol/link").symlink_to("/vol/secret")
    os.mkfifo(box.rootfs / "vol/fifo")
    box.process["capabilities"] = {
        kind: ["CAP_DAC_OVERRIDE"] for kind in ("bounding", "effective", "permitted")
    }
    box.linux["maskedPaths"] = [
        "/vol/file", "/vol/dir", "/vol/link", "/vol/fifo", "/nowhere", "/vol/file/below",
        "/vol/dir/below", "/vol/file", "/vol/dir",
    ]  # fmt: skip
    box.process["args"] = ["/probe"]
    script = "cat /vol/file /vol/secret /vol/fifo; ls /vol/dir; stat -c %F /vol/file /vol/dir"
    assert box.sh(script) == "character special file\ndirectory"
    report = box.probe("try", "create:/vol/dir/x", "mkdir:/vol/dir/x", "stat:/vol/dir/below")
    assert report == {"create:/vol/dir/x": 30, "mkdir:/vol/dir/x": 30, "stat:/vol/dir/below": 2}
    mounts = box.probe().mounts
    assert mounts["/vol/dir"].type == "tmpfs"
    assert mounts["/vol/file"].root == "/null"


@pytest.mark.parametrize("what", ["link", "file", "nothing", "directory", "zero"])
def test_the_containers_null_masks_nothing(box: Box, what: str) -> None:
    """T-FS3 A and B; CVE-2025-31133: runc 1.1.5 binds what the container calls /dev/null."""
    fake = box.place / "dev"
    fake.mkdir()
    if what == "link":
        (fake / "null").symlink_to("/proc/sys/kernel/core_pattern")
    elif what == "zero":
        os.mknod(fake / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    else:
        replace(fake / "null", what)
    box.unmount("/dev")
    box.mount("/dev", str(fake), "bind")
    box.linux["maskedPaths"] = ["/proc/timer_list", "/proc/keys"]
    done = box.confined()
    if done.code == 0:
        box.process["args"] = ["/bin/cat", "/proc/timer_list", "/proc/keys"]
        assert good(box.run()).out == ""
        masks(box)


def masks(box: Box) -> None:
    """Assert that the masks are mounts of a null device or of an empty directory."""
    for point, one in box.probe().mounts.items():
        if point in box.linux["maskedPaths"]:
            assert one.type != "proc", point
            assert one.root in ("/null", "/"), point


@pytest.mark.requires("strace")
@pytest.mark.parametrize("name", ["move_mount", "mount_setattr", "open_tree", "openat2", "fsopen"])
def test_a_mask_that_fails_ends_it(box: Box, name: str) -> None:
    """T-FS3 D: the last of these calls are those of masks and read-only paths."""
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    log = box.place / "trace"
    good(call_traced(words, f"trace={name}", log=str(log)))
    made = [line.split()[0] for line in log.read_text().splitlines() if f" {name}(" in line]
    count = made.count(made[-1])  # strace counts for each process
    assert count >= 2
    for number in range(max(1, count - 2), count + 1):
        done = call_traced(words, f"trace={name}", f"inject={name}:error=EPERM:when={number}")
        assert (done.code != 0, done.out) == (True, ""), number
        if name == "openat2":  # its last ones in the parent are those of tidying up
            good(box.delete("--force"))
        assert box.left() == []


def call_traced(words: list[str], *rules: str, log: str = "/dev/null") -> Done:
    return call(traced(words, *rules, log=log))


# ---------------------------------------------------------------- hostile /dev: T-FS1


HOSTILE_DEV = ["absolute", "climbing", "inside", "entries", "file", "fifo"]


def make_hostile_dev(box: Box, canary: Path, shape: str) -> None:
    dev = box.rootfs / "dev"
    if shape == "absolute":
        replace(dev, "link", canary)
    elif shape == "climbing":
        replace(dev, "link", climbing(box.rootfs, canary))
    elif shape == "inside":
        replace(dev, "link", "/tmp")
    elif shape == "entries":
        for name in ("pts", "shm", "net", "fd", "console", "null", "ptmx", "mqueue"):
            (dev / name).symlink_to(canary / ("empty" if name in ("pts", "net") else name))
    else:
        replace(dev, shape)


@pytest.mark.parametrize("shape", HOSTILE_DEV)
@pytest.mark.parametrize("mounted", [True, False], ids=["tmpfs", "bare"])
@pytest.mark.parametrize("extra", [False, True], ids=["", "tun"])
def test_a_hostile_dev(box: Box, canary: Path, shape: str, mounted: bool, extra: bool) -> None:
    """CVE-2026-41579, CVE-2026-47766: runc 1.1.5 writes into the host's directory."""
    make_hostile_dev(box, canary, shape)
    if not mounted:
        box.unmount("/dev")
    if extra:
        tun = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}
        box.linux["devices"] = [tun]
    with host_same(canary, "/dev/null", "/dev/zero", "/dev/tty"):
        done = box.confined()
    if done.code == 0:
        check_nodes(box)


def check_nodes(box: Box) -> None:
    script = "; ".join(f"stat -c '%F %t:%T %a' /dev/{name}" for name in NODES)
    expected = [f"character special file {a:x}:{b:x} 666" for a, b in NODES.values()]
    assert box.sh(script).splitlines() == expected


@pytest.mark.parametrize("shape", HOSTILE_DEV)
def test_a_hostile_dev_between_create_and_start(box: Box, canary: Path, shape: str) -> None:
    make_hostile_dev(box, canary, shape)
    box.unmount("/dev")
    box.write()
    with host_same(canary):
        if box.call("create", "--bundle", str(box.bundle), box.id).code == 0:
            box.start()
            box.delete("--force")


def test_nodes(box: Box) -> None:
    """T-DV2: whatever the caller's umask."""
    box.command = ["sh", "-c", 'umask 077; exec "$0" "$@"', *box.command]
    check_nodes(box)
    links = box.sh("cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done").split()
    fd = "/proc/self/fd"
    assert links == [fd, f"{fd}/0", f"{fd}/1", f"{fd}/2", "pts/ptmx"]


@pytest.mark.parametrize(
    "device",
    [
        {"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3},
        {"path": "relative", "type": "c", "major": 1, "minor": 3},
        {"path": "/vol/x/..", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/null", "type": "b", "major": 1, "minor": 3},
        {"path": "/proc/x", "type": "c", "major": 1, "minor": 3},
        {"path": "/vol/x", "type": "c", "major": -1, "minor": 3},
        {"path": "/vol/x", "type": "c", "major": 1 << 21, "minor": 1 << 33},
        {"path": "/vol/x", "type": "q", "major": 1, "minor": 3},
        {"path": "/vol/x\0y", "type": "c", "major": 1, "minor": 3},
    ],
    ids=lambda device: f"{device['path']} {device['type']} {device['major']}"[:30],
)
def test_devices_that_cannot_be(box: Box, device: dict[str, Any]) -> None:
    """T-DV3: runc 1.1.5 keeps quiet about a file that is in the way."""
    if device == {"path": "/dev/null", "type": "b", "major": 1, "minor": 3}:
        box.unmount("/dev")
        os.mknod(box.rootfs / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    box.linux["devices"] = [device]
    box.refused()


def test_devices_of_its_own(box: Box) -> None:
    entry = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}
    pipe = {"path": "/vol/pipe", "type": "p", "fileMode": 0o600, "uid": 7}
    box.linux["devices"] = [{**entry, "fileMode": 0o640, "uid": 5, "gid": 6}, pipe]
    told = box.sh("stat -c '%F %t:%T %a %u:%g' /dev/net/tun; stat -c '%F %a %u' /vol/pipe")
    assert told == "character special file a:c8 640 5:6\nfifo 600 7"


# ---------------------------------------------------------------- /proc and /sys: T-FS2, T-FS9


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("shape", ["inside", "climbing", "absolute", "itself", "file", "fifo"])
def test_a_link_where_proc_belongs(box: Box, canary: Path, name: str, shape: str) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2025-54867."""
    targets: dict[str, Any] = {
        "inside": "/tmp", "climbing": climbing(box.rootfs, canary / "empty"),
        "absolute": canary / "empty", "itself": name,
    }  # fmt: skip
    replace(box.rootfs / name, "link" if shape in targets else shape, targets.get(shape, ""))
    with host_same(canary):
        box.refused(f"/{name}")


def test_a_link_above_where_proc_belongs(box: Box, canary: Path) -> None:
    (box.rootfs / "a").symlink_to(canary)
    box.config["mounts"].append({"destination": "/a/proc", "type": "proc", "source": "proc"})
    with host_same(canary):
        box.refused("/a/proc")


@pytest.mark.parametrize("shape", ["absolute", "climbing"])
@pytest.mark.requires("cgroup2")
def test_a_link_where_the_cgroups_belong(box: Box, canary: Path, shape: str) -> None:
    box.unmount("/sys")
    (box.rootfs / "sys/fs").mkdir()
    target = canary / "empty"
    place = box.rootfs / "sys/fs/cgroup"
    place.symlink_to(target if shape == "absolute" else climbing(place.parent, target))
    box.mount("/sys/fs/cgroup", "cgroup", "ro", kind="cgroup")
    with host_same(canary):
        box.confined()


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
@pytest.mark.parametrize(
    "destination",
    [
        "/proc", "/proc/", "/proc/self", "/proc/self/attr", "/proc/sys", "/proc/sysrq-trigger",
        "/./proc//self/../self/attr", "/tmp/../proc/1", "/p/self/attr", "/p", "/proc/net/dev",
    ],
)  # fmt: skip
def test_nothing_is_mounted_in_proc(box: Box, kind: str, destination: str) -> None:
    """CVE-2019-16884: what stands in for /proc would get the labels that are written there."""
    (box.rootfs / "p").symlink_to("/proc")
    (box.place / "source").mkdir()
    box.mount(destination, str(box.place / "source"), *(["bind"] * (kind == "bind")), kind=kind)
    box.refused("proc", destination)


def test_what_may_be_mounted_in_proc(box: Box) -> None:
    (box.place / "file").write_text("served")
    for name in ("cpuinfo", "meminfo", "stat", "uptime", "loadavg"):
        box.mount(f"/proc/{name}", str(box.place / "file"), "bind")
    assert box.sh("cat /proc/meminfo /proc/uptime") == "servedserved"


def test_a_real_proc_may_be_bound(box: Box) -> None:
    box.share("pid")
    box.unmount("/proc")
    box.mount("/proc", "/proc", "rbind")
    assert box.probe().mounts["/proc"].type == "proc"


# ---------------------------------------------------------------- links on the way: T-FS8


@pytest.mark.parametrize("target", ["absolute", "climbing"])
def test_links_on_the_way_stay_inside(box: Box, canary: Path, target: str) -> None:
    """Absolute or climbing, a link of the root filesystem is one inside it."""
    for name in ("etc", "run", "a"):
        goal = climbing(box.rootfs, canary) if target == "climbing" else str(canary)
        replace(box.rootfs / name, "link", goal)
    (box.place / "file").write_text("mounted")
    (box.place / "dir").mkdir()
    box.mount("/etc/resolv.conf", str(box.place / "file"), "bind")
    box.mount("/run/x", "tmpfs", kind="tmpfs")
    box.mount("/a/b/c", str(box.place / "dir"), "bind")
    with host_same(canary):
        box.confined()
    # Where the links lead, inside: there it is taken.
    (box.rootfs / str(canary).lstrip("/")).mkdir(parents=True, exist_ok=True)
    if target == "absolute":
        with host_same(canary):
            assert box.sh("cat /etc/resolv.conf") == "mounted"


@pytest.mark.parametrize(
    "make",
    [
        lambda root: (root / "x").symlink_to("/nowhere/at/all"),
        lambda root: (root / "x").symlink_to("x"),
        lambda root: [(root / f"x{n or ''}").symlink_to(f"x{n + 1}") for n in range(60)],
        lambda root: (root / "x").symlink_to("/proc/self/root"),
        lambda root: (root / "x").symlink_to("/proc/1/cwd"),
        lambda root: (root / "x").symlink_to("../../../../../../../.."),
        lambda root: (root / "x").write_text("a file"),
        lambda root: os.mkfifo(root / "x"),
    ],
    ids=["dangling", "loop", "many", "magic", "cwd", "up", "file", "fifo"],
)
@pytest.mark.parametrize("destination", ["/x", "/x/y"])
def test_odd_mount_points(box: Box, make: Any, destination: str) -> None:
    make(box.rootfs)
    box.mount(destination, "tmpfs", kind="tmpfs")
    box.confined()
    assert not os.path.lexists("/y")


@pytest.mark.parametrize(
    "destination",
    ["/" + "d" * 255, "/" + "a/" * 300 + "b", "/" + "x" * 256, "/" + "y/" * 2100, "/"],
)
def test_long_mount_points(box: Box, destination: str) -> None:
    """A component has 255 bytes, a path 4096; beyond is an error, never a traceback."""
    box.mount(destination, "tmpfs", kind="tmpfs")
    done = box.confined()
    if len(destination) in (256, 602):
        assert done.code == 0, done


def test_a_root_that_is_a_link(box: Box) -> None:
    (box.bundle / "link").symlink_to("rootfs")
    box.config["root"]["path"] = "link"
    box.process["args"] = ["/bin/true"]
    good(box.run())


@pytest.mark.parametrize("path", ["nowhere", "config.json", "", "rootfs/bin/sh", "/proc/self/fd/0"])
def test_what_is_no_root(box: Box, path: str) -> None:
    box.config["root"]["path"] = path
    box.refused()


# ---------------------------------------------------------------- races: T-FS6, T-FS7, T-FS2


def race(box: Box, one: Path, other: Path, calls: str, rounds: int) -> None:
    """Run while two paths are exchanged all the time, and certain calls of the runtime are slow."""
    box.process["args"] = ["/bin/true"]
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    for _ in range(rounds):
        with flipping(one, other):
            done = call_traced(words, f"trace={calls}", f"inject={calls}:delay_enter=2000")
        assert done.code == 0 or done.err, done
        assert box.left() == []


@pytest.mark.slow
@pytest.mark.requires("strace")
@pytest.mark.parametrize("kind", ["tmpfs", "file"])
def test_a_mount_point_that_changes_while_it_is_made(box: Box, canary: Path, kind: str) -> None:
    """CVE-2024-45310: runc 1.1.5 makes a directory on the host within seven rounds."""
    (box.rootfs / "vol/x").mkdir()
    (box.rootfs / "vol/y").symlink_to(canary / "empty")
    (box.place / "file").write_text("")
    if kind == "tmpfs":
        box.mount("/vol/x/n1/n2", "tmpfs", kind="tmpfs")
    else:
        box.mount("/vol/x/n1/f", str(box.place / "file"), "bind")
    with host_same(canary):
        race(box, box.rootfs / "vol/x", box.rootfs / "vol/y", "mkdirat,openat,openat2,mknodat", 8)


@pytest.mark.slow
@pytest.mark.requires("strace")
def test_a_mount_point_that_is_exchanged(box: Box, canary: Path) -> None:
    """CVE-2021-30465: what is mounted lands below the root, as a hook sees it before pivot_root."""
    (box.rootfs / "vol/x").mkdir()
    (box.rootfs / "vol/y").symlink_to("/")
    source = box.place / "source"
    (source / "sub").mkdir(parents=True)
    box.mount("/vol/x", str(source), "bind")
    box.mount("/vol/z", str(source / "sub"), "bind")
    seen = box.place / "seen"
    box.hook("createContainer", f"cat /proc/self/mountinfo >> {seen}")
    before = mounts_of(read("/proc/self/mountinfo"))
    race(box, box.rootfs / "vol/x", box.rootfs / "vol/y", "move_mount,openat2,open_tree", 6)
    found = [Mountpoint(line) for line in read(seen).splitlines()]
    outside = {one.point for one in found} - set(before)
    assert outside
    assert {point for point in outside if not point.startswith(str(box.rootfs))} == set()


@pytest.mark.slow
@pytest.mark.requires("strace")
def test_a_proc_that_is_exchanged(box: Box, canary: Path) -> None:
    (box.rootfs / "evil").symlink_to(canary / "empty")
    seen = box.place / "seen"
    box.hook("createContainer", f"cat /proc/self/mountinfo >> {seen}")
    with host_same(canary):
        race(box, box.rootfs / "proc", box.rootfs / "evil", "fsmount,openat2,move_mount", 6)
    points = (
        [one.point for one in map(Mountpoint, read(seen).splitlines())] if seen.exists() else []
    )
    assert not [point for point in points if point.startswith(str(canary))]


@pytest.fixture
def fake_proc(box: Box) -> Path:
    """A tree of plain files that looks like /proc, where a payload's root could have it."""
    place = box.rootfs / "tmp/fp"
    for name in ("self/attr/exec", "self/attr/apparmor/exec", "self/attr/keycreate",
                 "thread-self/attr/exec", "self/oom_score_adj", "self/setgroups", "sysrq-trigger",
                 "sys/net/ipv4/ip_forward", "sys/kernel/domainname"):  # fmt: skip
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("fake")
    return place


def written(box: Box) -> tuple[str, str]:
    """Read what should have been written to /proc for a container, by the host's /proc."""
    inside = ["nsenter", f"--net=/proc/{box.pid}/ns/net", "cat", "/proc/sys/net/ipv4/ip_forward"]
    return good(call(inside)).out.strip(), read(f"/proc/{box.pid}/oom_score_adj").strip()


@pytest.mark.slow
@pytest.mark.requires("strace")
@pytest.mark.parametrize("shared", [False, True], ids=["root", "volume"])
def test_what_is_written_to_proc_is_written_to_the_real_one(
    box: Box, canary: Path, fake_proc: Path, shared: bool
) -> None:
    """T-FS10 b and c: CVE-2019-16884, CVE-2019-19921, CVE-2025-52881; never a file that looks so.

    In the container's root, or in a volume in which another container exchanges the names.
    """
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.process.update(args=["/bin/sleep", "600"], oomScoreAdj=77)
    if shared:
        volume = box.place / "volume"
        (volume / "x/proc").mkdir(parents=True)
        (volume / "y").symlink_to("/tmp/fp/..")
        box.mount("/vol", str(volume), "bind")
        box.mount("/vol/x/proc", "proc", kind="proc")
        one, other = volume / "x", volume / "y"
    else:
        one, other = box.rootfs / "proc", box.rootfs / "evil"
        other.symlink_to("/tmp/fp")
    calls = "openat2,fsmount,move_mount,write"
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    slow = (f"trace={calls}", f"inject={calls}:delay_enter=2000")
    made = 0
    with host_same(canary, fake_proc):
        for _ in range(6):
            with flipping(one, other), open(os.devnull, "w") as null:
                done = call(traced(words, *slow, apart=True), stdout=null)
            if done.code == 0:
                made += 1
                assert written(box) == ("1", "77")
                good(box.delete("--force"))
            assert box.left() == []
    # And undisturbed: what was asked for is what is written.
    for path, kind in ((one, "directory"), (other, "link")):
        if path.is_symlink() or path.exists():
            replace(path, "nothing")
        replace(path, kind, "/tmp/fp")
    if shared:
        (one / "proc").mkdir()
    box.create()
    assert written(box) == ("1", "77")


@pytest.mark.parametrize("locked", ["/proc", "/link", "//proc/.", "/proc/self/.."])
def test_masks_in_what_is_read_only_as_a_whole(box: Box, locked: str) -> None:
    """The read-only one is a mount of its own, over the other."""
    (box.rootfs / "link").symlink_to("/proc")
    box.linux["readonlyPaths"] = [locked]
    test = "echo x > /proc/self/comm || echo ro"
    out = box.sh(f"wc -c < /proc/timer_list; ls -A /sys/firmware; {test}")
    assert out.split() == ["0", "ro"]


@pytest.mark.slow
@pytest.mark.requires("strace")
@pytest.mark.parametrize("name", ["proc", "sys"])
def test_what_shall_be_hidden_is_hidden_wherever_it_goes(box: Box, name: str) -> None:
    """A directory that is renamed takes its mount along: a mask must not miss it and be left out.

    Who shares the root filesystem could rename it for the moment in which the masks are made.
    """
    hidden = {"proc": ["timer_list", "keys"], "sys": ["kernel", "module"]}[name]
    box.linux["maskedPaths"] = [f"/{name}/{one}" for one in hidden]
    box.linux["readonlyPaths"] = [f"/{name}/fs"]
    box.process["args"] = ["/bin/sleep", "600"]
    (box.rootfs / "evil").mkdir()
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    slow = ("trace=openat2,open_tree,move_mount", "inject=openat2:delay_enter=1000")
    for _ in range(12):
        with flipping(box.rootfs / name, box.rootfs / "evil"), open(os.devnull, "w") as null:
            done = call(traced(words, *slow, apart=True), stdout=null)
        if done.code == 0:
            made = mounts_of(read(f"/proc/{box.pid}/mountinfo"))
            covered = {point.rpartition("/")[2] for point in made}
            assert covered >= {*hidden, "fs"}, sorted(made)
            good(box.delete("--force"))
        assert box.left() == []


# ---------------------------------------------------------------- working directory: T-FS11, T-FS12


@pytest.mark.parametrize("number", [*range(3, 12), 64])
def test_no_working_directory_by_a_descriptor(box: Box, number: int) -> None:
    """CVE-2024-21626: a directory of the host that the caller has open, or we do."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.dup2(fd, 64)
        box.process["cwd"] = f"/proc/self/fd/{number}"
        box.refused(pass_fds=(fd, 64))
    finally:
        os.close(fd)
        os.close(64)


def test_nor_by_one_that_is_passed_on(box: Box) -> None:
    """Not even by a directory that the caller passes on purpose."""
    box.up()
    box.command = ["sh", "-c", 'exec 3</; exec "$0" "$@"', *box.command]
    done = box.exec("/bin/ls", flags=["--preserve-fds", "1", "--cwd", "/proc/self/fd/3"])
    assert (done.code, done.out) == (255, "")


@pytest.mark.parametrize("cwd", ["/proc/1/cwd", "/proc/self/root/../..", "/dev/fd/9", "/link"])
def test_working_directories_that_lead_out(box: Box, cwd: str) -> None:
    (box.rootfs / "link").symlink_to("/proc/self/fd/9")
    box.process["cwd"] = cwd
    done = box.confined()
    if done.code == 0:
        report = box.probe()
        assert report["cwd"].startswith("/")
        inside = box.rootfs.stat()
        assert box.sh("stat -c %i ../../../../..") == str(inside.st_ino)


def test_exec_with_a_working_directory_that_leads_out(box: Box) -> None:
    (box.rootfs / "w").symlink_to("/proc/self/fd/9")
    box.up()
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for cwd in ("/w", "/proc/self/fd/9", "/proc/self/fd/3", "/proc/self/fd/4"):
            done = box.exec("/bin/ls", flags=["--cwd", cwd], pass_fds=(fd,))
            assert done.code == 255
            assert done.out == ""
    finally:
        os.close(fd)


@pytest.mark.parametrize("cwd", ["relative", "x\0y", "./x", ".."])
def test_a_working_directory_is_absolute(box: Box, cwd: str) -> None:
    box.process["cwd"] = cwd
    box.refused()


def test_a_working_directory_is_made(box: Box) -> None:
    box.process["cwd"] = "/srv/made/here"
    box.process["user"] = {"uid": 1000, "gid": 1000}
    assert box.probe()["cwd"] == "/srv/made/here"
    status = (box.rootfs / "srv/made/here").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o755)


@pytest.mark.parametrize("goal", ["canary", "nowhere", "file"])
def test_a_working_directory_in_the_way_of_links(box: Box, canary: Path, goal: str) -> None:
    targets = {"canary": str(canary), "nowhere": "/nowhere", "file": "/etc/passwd"}
    (box.rootfs / "srv").symlink_to(targets[goal])
    box.process["cwd"] = "/srv/new"
    with host_same(canary, box.rootfs / "etc"):
        box.confined()


def test_a_working_directory_of_the_user_alone(box: Box) -> None:
    (box.rootfs / "home").mkdir(mode=0o700)
    os.chown(box.rootfs / "home", 1000, 1000)
    box.process.update(cwd="/home", user={"uid": 1000, "gid": 1000})
    assert box.probe()["cwd"] == "/home"


# ---------------------------------------------------------------- what is left: T-FS15


def test_nothing_of_the_host_is_removed(box: Box, canary: Path) -> None:
    """A mount of the host's in the root filesystem, and a link in place of what was made."""
    (box.place / "file").write_text("")
    box.mount("/vol/made", str(box.place / "file"), "bind")
    box.up()
    (box.rootfs / "vol/made2").symlink_to(canary / "sub/file")
    with host_same(canary):
        good(box.delete("--force"))
    assert (box.rootfs / "vol/made2").is_symlink()


def test_the_report_of_a_plain_container(box: Box) -> None:
    """No host path in mountinfo but that of the root, no device, nothing writable of the kernel."""
    report: Report = box.probe()
    for point, one in report.mounts.items():
        assert not one.source.startswith("/dev/") or point == "/", point
        if one.type in ("sysfs", "cgroup2", "securityfs"):
            assert "ro" in one.options, point
        if point != "/":
            assert one.root in ("/", "/null", "/sys", "/sysrq-trigger"), point


# ---------------------------------------------------------------- found beside runc


@pytest.mark.parametrize("option", ["sync", "dirsync", "mand", "lazytime"])
def test_a_bind_keeps_the_file_systems_own_flags(box: Box, option: str) -> None:
    """mount(2) takes no notice of them, and so does runc."""
    box.mount("/vol", str(box.place), "bind", option)
    assert option not in box.probe().mounts["/vol"].super


def test_a_read_only_tmpfs_may_hold_mounts(box: Box) -> None:
    """It becomes read-only when all is mounted, as in runc."""
    box.mount("/vol", "tmpfs", "ro", kind="tmpfs")
    box.mount("/vol/below", "tmpfs", kind="tmpfs")
    box.process["args"] = ["/probe", "try", "create:/vol/x", "create:/vol/below/x"]
    found = report_of(good(box.run()).out)
    assert (found["create:/vol/x"], found["create:/vol/below/x"]) == (errno.EROFS, 0)


def test_read_only_is_the_file_system_too(box: Box) -> None:
    """Else the journal of a disk that shall only be read would be played."""
    box.unmount("/sys")
    box.mount("/sys", "sysfs", "ro", kind="sysfs")
    found = box.probe().mounts["/sys"]
    assert "ro" in found.options
    assert "ro" in found.super


@pytest.mark.parametrize("target", ["../run/systemd/resolve/stub.conf", "/run/there", "there"])
def test_mounts_on_links_that_lead_nowhere_yet(box: Box, target: str) -> None:
    """Images have /etc/resolv.conf as a link to what only a running system makes."""
    (box.rootfs / "etc/resolv.conf").symlink_to(target)
    (box.rootfs / "srv").symlink_to(f"{target}-d/deep")
    (box.place / "file").write_text("mounted")
    box.mount("/etc/resolv.conf", str(box.place / "file"), "bind")
    box.mount("/srv/below", "tmpfs", kind="tmpfs")
    outside = ("/run/there", "/run/there-d", "/there-d")
    assert box.sh("cat /etc/resolv.conf; [ -d /srv/below ] && echo ' too'") == "mounted too"
    assert (box.rootfs / "etc/resolv.conf").is_symlink()
    assert not any(os.path.lexists(path) for path in outside)


def test_a_device_with_a_slash_too_many(box: Box) -> None:
    box.linux["devices"] = [{"path": "/dev/odd/", "type": "c", "major": 1, "minor": 3}]
    assert box.sh("stat -c %F /dev/odd") == "character special file"
