"""Limits that the kernel enforces; in a machine of its own, since they push it to its bounds.

The witness is what happens to processes and what cgroupfs says, read by path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import LIMIT, started, until

from minirun import blockdev
from minirun.cgroups import limits, stats
from minirun.cgroups.cgroupfs import create, discard, ensure
from minirun.cgroups.group import Group, open_group
from minirun.cgroups.hierarchy import MOUNT_POINT, Hierarchy, blocked_at, hierarchy
from minirun.cgroups.resources import controllers, writes
from minirun.errors import MinirunError, Unsupported
from minirun.kernel.process import clone3
from minirun.spec import Resources

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits")]

TOP = f"/minirun-limits-{os.getpid()}"
MIB = 1 << 20


@pytest.fixture
def tree() -> Hierarchy:
    return hierarchy()


@pytest.fixture
def top(tree: Hierarchy) -> Iterator[str]:
    yield TOP
    left = open_group(tree, TOP)
    if left is not None:
        with left:
            left.kill()
            left.remove()
    assert not at(TOP).exists()


def at(path: str) -> Path:
    return Path(MOUNT_POINT + path)


def resources(**values: Any) -> Resources:
    return Resources.decode(values)


def limited(tree: Hierarchy, path: str, **values: Any) -> Group:
    asked = resources(**values)
    made = create(tree, path, controllers(writes(asked)))
    try:
        limits.apply(made, asked)
    except BaseException:
        made.close()
        raise
    return made


def text(path: str, file: str) -> str:
    return (at(path) / file).read_text().strip()


def run_in(group: Group, code: str) -> int:
    """Run Python `code` as a child born in `group`; return its exit code, -n for signal n."""
    pid, pidfd = clone3(0, cgroup=group.dirfd)
    if pid == 0:
        try:
            os.execv(sys.executable, [sys.executable, "-ISc", code])
        finally:
            os._exit(99)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_limit_stands_in_its_file(tree: Hierarchy, top: str) -> None:
    with limited(
        tree,
        f"{top}/a/b",
        memory={"limit": 64 * MIB, "swap": 96 * MIB, "reservation": MIB},
        cpu={"shares": 512, "quota": 50000, "period": 100000, "burst": 1000, "cpus": "0"},
        pids={"limit": 64},
        unified={"memory.high": str(32 * MIB)},
    ):
        path = f"{top}/a/b"
        assert text(path, "memory.max") == str(64 * MIB)
        assert text(path, "memory.swap.max") == str(32 * MIB)
        assert text(path, "memory.low") == str(MIB)
        assert text(path, "memory.high") == str(32 * MIB)
        assert text(path, "cpu.weight") == "59"
        assert text(path, "cpu.max") == "50000 100000"
        assert text(path, "cpu.max.burst") == "1000"
        assert text(path, "cpuset.cpus") == "0"
        assert text(path, "pids.max") == "64"


def test_more_memory_than_allowed_is_the_end(tree: Hierarchy, top: str) -> None:
    with limited(tree, f"{top}/a", memory={"limit": 32 * MIB, "swap": 32 * MIB}) as made:
        watch = stats.Watch(made)
        assert run_in(made, "bytearray(4 << 20)") == 0
        assert run_in(made, "bytearray(64 << 20)") == -signal.SIGKILL
        assert "oom_kill 1" in text(f"{top}/a", "memory.events").split("\n")
        assert watch.wait(0) == ["oom", "empty"]
        assert watch.wait(0) == ["empty"]
        watch.close()
        used = stats.summary(made)["memory"]
        assert used["limit"] == 32 * MIB
        assert used["peak"] is None or 0 < used["peak"] <= 32 * MIB


FORK = """
import os
made = []
try:
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            os.read(0, 1) if False else __import__("time").sleep(600)
            os._exit(0)
        made.append(pid)
except BlockingIOError:
    pass
for pid in made:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
os._exit(len(made))
"""


def test_no_more_processes_than_allowed(tree: Hierarchy, top: str) -> None:
    with limited(tree, f"{top}/a", pids={"limit": 5}) as made:
        assert run_in(made, FORK) == 4
        assert "max 1" in text(f"{top}/a", "pids.events").split("\n")


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_a_fork_bomb_is_killed(tree: Hierarchy, top: str) -> None:
    with limited(tree, f"{top}/a", pids={"limit": 50}) as made:
        pid, pidfd = clone3(0, cgroup=made.dirfd)
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-ISc", BOMB])
        os.close(pidfd)
        until(lambda: stats.usage(made)["pids"]["current"] >= 50)
        made.kill()
        os.waitpid(pid, 0)
        assert "populated 0" in text(f"{top}/a", "cgroup.events").split("\n")
        discard(made)
    assert not at(top).exists()


SPIN = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


def test_cpu_time_is_rationed(tree: Hierarchy, top: str) -> None:
    with limited(tree, f"{top}/a", cpu={"quota": 20000, "period": 100000}) as made:
        assert run_in(made, SPIN) == 0
        used = stats.usage(made)["cpu"]
        assert used["throttling"]["throttledPeriods"] > 0
        assert used["throttling"]["throttledTime"] > 0
        assert used["usage"]["total"] >= 500_000_000


def test_a_disk_is_throttled(tree: Hierarchy, top: str, tmp_path: Path) -> None:
    disk = blockdev.whole_disk("/")
    device = {"major": disk.major, "minor": disk.minor}
    with limited(
        tree,
        f"{top}/a",
        blockIO={
            "throttleWriteBpsDevice": [{**device, "rate": MIB}],
            "throttleReadIOPSDevice": [{**device, "rate": 100}],
        },
    ) as made:
        assert text(f"{top}/a", "io.max") == f"{disk} rbps=max wbps={MIB} riops=100 wiops=max"
        file = tmp_path / "written"
        with started(
            ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=3", "oflag=direct"],
            stderr=subprocess.PIPE,
            preexec_fn=lambda: made.add(os.getpid()),
        ) as process:
            assert process.wait(LIMIT) == 0
        assert stats.summary(made)["io"]["written"] >= 3 * MIB
        assert stats.pressure(text(f"{top}/a", "io.pressure")) is not None


def test_a_disk_that_is_not_there_is_explained(tree: Hierarchy, top: str) -> None:
    nowhere = {"throttleReadBpsDevice": [{"major": 4095, "minor": 1, "rate": 1}]}
    with pytest.raises(MinirunError, match=r"cannot set io\.max to '4095:1 rbps=1'") as caught:
        limited(tree, f"{top}/a", blockIO=nowhere)
    assert "whole disk" in caught.value.cause


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cpu": {"quota": 10, "period": 100000}}, "at least"),
        ({"cpu": {"cpus": "4000"}}, "CPU"),
        ({"cpu": {"cpus": "0-"}}, "CPU"),
    ],
)
def test_what_the_kernel_refuses_is_explained(
    tree: Hierarchy, top: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(MinirunError, match="cannot set cpu") as caught:
        limited(tree, f"{top}/a", **values)
    assert words in caught.value.cause


def test_huge_pages_of_a_size_that_is_not_there(tree: Hierarchy, top: str) -> None:
    with pytest.raises(Unsupported, match=r"hugetlb\.7KB\.max"):
        limited(tree, f"{top}/a", hugepageLimits=[{"pageSize": "7KB", "limit": 0}])


def test_processes_in_an_inner_group_are_named(tree: Hierarchy, top: str) -> None:
    """The kernel's rule of no inner processes, with the pids that break it; none is moved."""
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        with create(tree, f"{top}/a", (), ()) as made:
            made.add(stranger.pid)
        with pytest.raises(MinirunError, match="cannot enable controller memory below") as caught:
            create(tree, f"{top}/a/b", ("memory",))
        assert str(stranger.pid) in caught.value.cause
        assert not at(f"{top}/a/b").exists()
        assert f"0::{top}/a" in Path(f"/proc/{stranger.pid}/cgroup").read_text().split("\n")
        # Without a limit it may go there; cpu and pids must not make the upper one threaded.
        create(tree, f"{top}/a/b").close()
        assert text(f"{top}/a", "cgroup.type") == "domain"
    finally:
        stranger.kill()
        stranger.wait(LIMIT)


def test_the_level_where_a_controller_stops_is_named(tree: Hierarchy, top: str) -> None:
    create(tree, f"{top}/a/b", (), ()).close()
    assert f"{top.lstrip('/')} has no memory" in blocked_at(tree, f"{top}/a/b", "memory") or (
        "does not pass it on" in blocked_at(tree, f"{top}/a/b", "memory")
    )
    found = open_group(tree, f"{top}/a/b")
    assert found is not None
    with found:
        with pytest.raises(Unsupported, match="controller memory is not available"):
            limits.apply(found, resources(memory={"limit": MIB}))
        ensure(tree, f"{top}/a/b", ("memory",))
        limits.apply(found, resources(memory={"limit": MIB}))
    assert text(f"{top}/a/b", "memory.max") == str(MIB)


def test_update_changes_what_is_given(tree: Hierarchy, top: str) -> None:
    path = f"{top}/a"
    stored = resources(
        memory={"limit": 64 * MIB, "swap": 96 * MIB},
        cpu={"quota": 50000, "period": 100000},
        pids={"limit": 9},
    )
    with limited(tree, path, **stored.encode()) as made:
        stored = limits.update(made, resources(memory={"limit": 80 * MIB}), stored)
        assert (text(path, "memory.max"), text(path, "memory.swap.max")) == (
            str(80 * MIB),
            str(16 * MIB),
        )
        stored = limits.update(made, resources(cpu={"quota": 20000, "burst": 20000}), stored)
        assert text(path, "cpu.max") == "20000 100000"
        stored = limits.update(made, resources(cpu={"quota": 5000, "burst": 1000}), stored)
        assert (text(path, "cpu.max"), text(path, "cpu.max.burst")) == ("5000 100000", "1000")
        stored = limits.update(made, resources(cpu={"period": 50000}), stored)
        assert text(path, "cpu.max") == "5000 50000"
        stored = limits.update(made, resources(memory={"limit": -1}), stored)
        assert (text(path, "memory.max"), text(path, "memory.swap.max")) == ("max", "max")
        assert text(path, "pids.max") == "9"


def test_idle_and_shares(tree: Hierarchy, top: str) -> None:
    with limited(tree, f"{top}/a", cpu={"shares": 2048}) as made:
        assert text(f"{top}/a", "cpu.weight") == "174"
        limits.update(made, resources(cpu={"idle": 1, "shares": 512}))
        assert text(f"{top}/a", "cpu.idle") == "1"
        with pytest.raises(MinirunError, match=r"cpu\.weight") as caught:
            limits.update(made, resources(cpu={"shares": 512}))
        assert "idle" in caught.value.cause
        limits.update(made, resources(cpu={"idle": 0, "shares": 512}))
        assert text(f"{top}/a", "cpu.weight") == "59"


def test_a_failed_update_changes_nothing(tree: Hierarchy, top: str) -> None:
    path = f"{top}/a"
    with limited(tree, path, pids={"limit": 9}, memory={"limit": 64 * MIB}) as made:
        changes = resources(
            pids={"limit": 7}, memory={"limit": 32 * MIB}, cpu={"quota": 1, "period": 1000}
        )
        with pytest.raises(MinirunError, match=r"cpu\.max"):
            limits.update(made, changes)
    assert (text(path, "pids.max"), text(path, "memory.max")) == ("9", str(64 * MIB))


def test_lowering_below_the_usage_can_be_refused(tree: Hierarchy, top: str) -> None:
    path = f"{top}/a"
    with limited(tree, path, memory={"limit": 128 * MIB}) as made:
        holder = subprocess.Popen(
            [sys.executable, "-ISc", "x = b'x' * (32 << 20); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: made.add(os.getpid()),  # noqa: PLW1509
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(MinirunError, match="rejecting limit"):
            limits.update(made, resources(memory={"limit": 16 * MIB, "checkBeforeUpdate": True}))
        assert holder.poll() is None
        assert text(path, "memory.max") == str(128 * MIB)
        holder.communicate(b"\n")


def test_strangers_keep_their_controllers(tree: Hierarchy, top: str) -> None:
    """What a group above passes on already is not written again, let alone taken away."""
    before = text("/", "cgroup.subtree_control").split()
    limited(tree, f"{top}/a", memory={"limit": MIB}).close()
    assert set(before) <= set(text("/", "cgroup.subtree_control").split())
