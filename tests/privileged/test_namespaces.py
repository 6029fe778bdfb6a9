"""Namespaces: the eight kinds made, left out, joined; maps and offsets. T-US*, T-TM1, T-SY*."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, good, host_same, read, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

# The type in config.json → its file below /proc/PID/ns.
KINDS = {
    "pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt", "user": "user",
    "cgroup": "cgroup", "time": "time",
}  # fmt: skip
OPTIONS = {"network": "--net"}  # of unshare(1), where it is not the type's name


def own(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{KINDS[kind]}")


@contextlib.contextmanager
def holder(kind: str) -> Iterator[int]:
    """A process in a namespace of its own, to be joined by path; it gives its process ID."""
    words = ["unshare", OPTIONS.get(kind, f"--{kind}"), "--fork", "sleep", "600"]
    with started(words) as parent:
        child = until(lambda: read(f"/proc/{parent.pid}/task/{parent.pid}/children").split())[0]
        try:
            until(lambda: read(f"/proc/{child}/comm") == "sleep\n")
            yield int(child)
        finally:
            os.kill(int(child), signal.SIGKILL)  # unshare then ends as well
            parent.wait(LIMIT)


# ---------------------------------------------------------------- made, or the host's


@pytest.mark.requires("timens", "cgroup2")
def test_all_eight_are_new(box: Box) -> None:
    box.user_namespace()
    box.namespace("cgroup")
    box.namespace("time")
    found = box.probe()["ns"]
    assert {kind for kind, name in KINDS.items() if found[name] == own(kind)} == set()


def test_none_is_new_but_the_mounts(box: Box) -> None:
    box.linux["namespaces"] = [{"type": "mount"}]
    del box.config["hostname"]
    found = box.probe()["ns"]
    assert {kind for kind, name in KINDS.items() if found[name] != own(kind)} == {"mount"}


@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup", "time"])
def test_one_is_joined_by_path(box: Box, kind: str) -> None:
    if kind in ("uts", "network"):
        del box.config["hostname"]
    if kind == "network":  # the owner of /sys must be that of the network namespace
        box.unmount("/sys")
    with holder(kind) as pid:
        box.namespace(kind, f"/proc/{pid}/ns/{KINDS[kind]}")
        found = box.probe()["ns"]
        assert found[KINDS[kind]] == own(kind, pid) != own(kind)
        assert found["mnt"] != own("mount")


def test_a_container_joins_another(box: Box) -> None:
    """A pod: all but mounts shared with the container that holds the namespaces."""
    pid = box.up()
    other = box.another()
    del other.config["hostname"]
    for kind in ("pid", "network", "ipc", "uts"):
        other.namespace(kind, f"/proc/{pid}/ns/{KINDS[kind]}")
    report = other.probe()
    for kind in ("pid", "network", "ipc", "uts"):
        assert report["ns"][KINDS[kind]] == own(kind, pid)
    assert report["ns"]["mnt"] not in (own("mount"), own("mount", pid))
    assert report["hostname"] == "box"


def test_a_user_namespace_is_joined(box: Box) -> None:
    box.user_namespace()
    pid = box.up()
    other = box.another()
    other.user_namespace()
    for kind in ("uidMappings", "gidMappings"):
        del other.linux[kind]
    other.namespace("user", f"/proc/{pid}/ns/user")
    report = other.probe()
    assert report["ns"]["user"] == own("user", pid)
    assert report.ids[0] == "0 0 0 0"
    assert report["uid_map"].split() == ["0", "100000", "65536"]


@pytest.mark.parametrize("kind", ["network", "ipc", "uts"])
def test_a_user_namespace_is_joined_with_what_it_does_not_own(box: Box, kind: str) -> None:
    box.user_namespace()
    pid = box.up()
    other = box.another()
    other.user_namespace()
    for name in ("uidMappings", "gidMappings"):
        del other.linux[name]
    del other.config["hostname"]
    other.unmount("/sys", "/dev/mqueue")  # they are for who owns the namespace
    other.namespace("user", f"/proc/{pid}/ns/user")
    with holder(kind) as outside:
        other.namespace(kind, f"/proc/{outside}/ns/{KINDS[kind]}")
        other.process["args"] = ["/bin/sleep", "600"]
        other.create()
        other.start()
        report = other.exec_probe()
        assert report["ns"]["user"] == own("user", pid)
        assert report["ns"][KINDS[kind]] == own(kind, outside)
        assert report["uid_map"].split() == ["0", "100000", "65536"]


@pytest.mark.parametrize("what", ["another kind", "fifo", "file", "directory", "nothing", "device"])
def test_what_cannot_be_joined(box: Box, what: str) -> None:
    """T-US4: at once, and before anything is made."""
    odd = box.place / "odd"
    if what == "fifo":
        os.mkfifo(odd)
    elif what == "file":
        odd.write_text("")
    elif what == "directory":
        odd.mkdir()
    elif what == "device":
        odd.symlink_to("/dev/zero")
    box.namespace("network", "/proc/self/ns/uts" if what == "another kind" else str(odd))
    box.unmount("/sys")
    box.refused("odd", "/proc/self/ns/uts")


def test_a_kind_stands_once(box: Box) -> None:
    box.linux["namespaces"] += [{"type": "pid"}]
    box.refused("pid")


# ---------------------------------------------------------------- pid, uts, network, cgroup


def test_the_payload_is_process_one(box: Box) -> None:
    report = box.probe()
    assert (report["pid"], report["ppid"]) == (1, 0)


def test_nothing_else_is_to_be_seen(box: Box) -> None:
    assert box.sh("echo /proc/[0-9]*") == "/proc/1"


def test_names(box: Box) -> None:
    box.config["domainname"] = "example.org"
    before = os.uname().nodename
    report = box.probe()
    assert (report["hostname"], report["domainname"]) == ("box", "example.org")
    assert os.uname().nodename == before


def test_an_empty_name_is_none(box: Box) -> None:
    """As in runc, which does not know "" from absent."""
    box.config["hostname"] = box.config["domainname"] = ""
    assert box.probe()["hostname"] == os.uname().nodename


def test_a_name_needs_a_namespace(box: Box) -> None:
    before = os.uname().nodename
    box.share("uts")
    box.refused("uts")
    box.namespace("uts", "/proc/self/ns/uts")
    box.confined()
    assert os.uname().nodename == before


def test_loopback_is_up(box: Box) -> None:
    assert box.sh("cat /sys/class/net/lo/flags") == "0x9"  # IFF_UP | IFF_LOOPBACK
    assert box.sh("ls /sys/class/net") == "lo"


@pytest.mark.requires("cgroup2")
def test_its_own_group_is_the_root(box: Box) -> None:
    box.namespace("cgroup")
    assert box.probe()["cgroup"].splitlines()[-1] == "0::/"
    box.share("cgroup")
    assert box.id in box.probe()["cgroup"].splitlines()[-1]


# ---------------------------------------------------------------- user


def test_id_maps(box: Box) -> None:
    box.user_namespace()
    first = {"containerID": 0, "hostID": 100000, "size": 1000}
    other = {"containerID": 1000, "hostID": 200000, "size": 1}
    box.linux["uidMappings"] = [first, other]
    box.process["user"] = {"uid": 1000, "gid": 7, "additionalGids": [8]}
    report = box.probe()
    assert report["uid_map"].split() == ["0", "100000", "1000", "1000", "200000", "1"]
    assert report["gid_map"].split() == ["0", "100000", "65536"]
    assert report["setgroups"] == "allow\n"
    assert report.ids == ("1000 1000 1000 1000", "7 7 7 7", "8")


def test_as_many_maps_as_the_kernel_takes(box: Box) -> None:
    """340 lines, in one write of less than a page: user_namespaces(7). T-US1."""
    box.user_namespace(first=1000)
    box.linux["uidMappings"] = [
        {"containerID": n, "hostID": 1000 + n, "size": 1} for n in range(340)
    ]
    assert len(box.probe()["uid_map"].splitlines()) == 340


@pytest.mark.parametrize(
    "maps",
    [
        [],
        [(0, 100000, 0)],
        [(0, 100000, 10), (5, 200000, 10)],
        [(0, 100000, 10), (10, 100005, 10)],
        [(0, 2**32 - 1, 2)],
        [(n, 100000 + n, 1) for n in range(341)],
    ],
    ids=["none", "empty", "overlap", "overlap outside", "beyond", "too many"],
)
def test_maps_that_cannot_be(box: Box, maps: list[tuple[int, int, int]]) -> None:
    box.user_namespace()
    keys = ("containerID", "hostID", "size")
    box.linux["uidMappings"] = [dict(zip(keys, one, strict=True)) for one in maps]
    box.refused()


@pytest.mark.parametrize("user", [{"uid": 5000, "gid": 0}, {"uid": 0, "gid": 70000}])
def test_an_id_without_a_map(box: Box, user: dict[str, int]) -> None:
    box.user_namespace(size=1000)
    box.process["user"] = user
    box.refused("invalid argument", "map")


def test_devices_of_a_user_namespace(box: Box) -> None:
    """T-DV2: the host's nodes, bound, since mknod(2) is refused."""
    box.user_namespace()
    script = "for n in null zero full random urandom tty; do stat -c '%n %t:%T' /dev/$n; done"
    script += "; echo x > /dev/null && head -c 4 /dev/zero | wc -c"
    with host_same("/dev/null", "/dev/zero", "/dev/tty"):
        told = box.sh(script).split("\n")
    assert told == [
        "/dev/null 1:3", "/dev/zero 1:5", "/dev/full 1:7", "/dev/random 1:8", "/dev/urandom 1:9",
        "/dev/tty 5:0", "4",
    ]  # fmt: skip
    null = box.probe().mounts["/dev/null"]
    assert {"nosuid", "noexec"} <= null.options


def test_masks_hold_in_a_user_namespace(box: Box) -> None:
    box.user_namespace()
    report = box.probe("try", "read:/proc/timer_list", "write:/proc/sys/kernel/core_pattern")
    assert report["write:/proc/sys/kernel/core_pattern"] != 0
    assert box.sh("wc -c < /proc/timer_list; ls /sys/firmware 2>&-; :") == "0"


def test_exec_into_a_user_namespace(box: Box) -> None:
    box.user_namespace()
    pid = box.up()
    report = box.exec_probe()
    assert report.ids[0] == "0 0 0 0"
    assert report["ns"]["user"] == own("user", pid)


# ---------------------------------------------------------------- time


@pytest.mark.requires("timens")
def test_time_offsets(box: Box) -> None:
    box.namespace("time")
    box.linux["timeOffsets"] = {
        "boottime": {"secs": 86400},
        "monotonic": {"secs": 1000, "nanosecs": 5},
    }
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    box.start()
    clocks = {"boottime": time.CLOCK_BOOTTIME, "monotonic": time.CLOCK_MONOTONIC}
    before = {name: time.clock_gettime(clock) for name, clock in clocks.items()}
    report = box.exec_probe()
    for name, offset in (("boottime", 86400), ("monotonic", 1000)):
        after = time.clock_gettime(clocks[name])
        assert before[name] - 1 <= report[name] - offset <= after + 1
    assert report["timens_offsets"].split() == ["monotonic", "1000", "5", "boottime", "86400", "0"]


@pytest.mark.requires("timens")
def test_offsets_need_a_namespace_of_ones_own(box: Box) -> None:
    box.linux["timeOffsets"] = {"boottime": {"secs": 1}}
    box.refused("time")
    box.namespace("time", "/proc/self/ns/time")
    box.refused("time")


# ---------------------------------------------------------------- sysctl


def test_sysctls_of_its_own_namespaces(box: Box) -> None:
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242"}
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"
    with unchanged("net/ipv4/ip_forward", "kernel/msgmax"):
        assert box.sh(script).split() == ["1", "4242"]


@contextlib.contextmanager
def unchanged(*names: str) -> Iterator[None]:
    def values() -> list[str]:
        return [read(f"/proc/sys/{name}") for name in names]

    before = values()
    yield
    assert values() == before


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern", "kernel.modprobe", "kernel.sysrq", "vm.overcommit_memory",
        "fs.file-max", "net/../kernel/core_pattern", "net.ipv4.ip_forward+kernel.core_pattern",
        "NET.ipv4.ip_forward", "net.ipv4.ip_forward\n", "net", "net.", "", "net..ipv4.ip_forward",
        "net.ipv4.ip_forward\0",
    ],
)  # fmt: skip
def test_sysctls_of_the_host(box: Box, key: str) -> None:
    """T-SY1; CVE-2022-0811 in CRI-O."""
    box.linux["sysctl"] = {key: "1"}
    with unchanged("kernel/core_pattern", "vm/overcommit_memory", "fs/file-max"):
        box.refused()


@pytest.mark.parametrize("value", ["1\nkernel.core_pattern=x", "1\0", 1])
def test_values_of_sysctls(box: Box, value: Any) -> None:
    box.linux["sysctl"] = {"net.ipv4.ip_forward": value}
    box.refused()


@pytest.mark.parametrize("path", [None, "/proc/self/ns/net", "/proc/1/ns/net"])
def test_sysctls_where_the_namespace_is_the_hosts(box: Box, path: str | None) -> None:
    """By omission or by name: T-SY2, CVE-2022-0532."""
    box.share("network")
    if path is not None:
        box.namespace("network", path)
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "net.ipv4.ip_default_ttl": "77"}
    with unchanged("net/ipv4/ip_forward", "net/ipv4/ip_default_ttl"):
        box.refused()


def test_exec_is_in_all_of_them(box: Box) -> None:
    box.user_namespace()
    box.namespace("cgroup")
    box.namespace("time")
    pid = box.up()
    found = box.exec_probe()["ns"]
    assert found == {name: own(kind, pid) for kind, name in KINDS.items()} | {
        "cgroup": found["cgroup"]
    }
    good(box.delete("--force"))


@pytest.mark.requires("userns")
@pytest.mark.parametrize("options", [["nosuid", "ro"], ["nosuid", "rw"], ["rrw"]], ids=",".join)
def test_sysfs_without_a_network_namespace(box: Box, options: list[str]) -> None:
    """The kernel has none for who does not own the network: the host's then, not to be changed."""
    box.user_namespace()
    box.share("network")
    box.unmount("/sys")
    box.mount("/sys", "sysfs", *options, kind="sysfs")
    mounts = box.probe().mounts
    found = {point: one for point, one in mounts.items() if f"{point}/".startswith("/sys/")}
    assert found["/sys"].type == "sysfs"
    assert found["/sys/firmware"].type == "tmpfs"
    assert [point for point, one in found.items() if "ro" not in one.options] == []
    assert ("nosuid" in found["/sys"].options) == ("nosuid" in options)
