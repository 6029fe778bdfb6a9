"""Scheduling, I/O priority, CPUs, execution domain and memory policy, as the kernel has them."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import call, good, read

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

IOPRIO_GET = {"x86_64": 252, "aarch64": 31}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)


def io_priority(pid: int) -> tuple[int, int]:
    value: int = _libc.syscall(IOPRIO_GET, 1, pid)
    return value >> 13, value & 0x1FFF


def cpus_of(pid: int) -> str:
    lines = read(f"/proc/{pid}/status").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:"))


def run_another(box: Box, place: Path, **fields: Any) -> int:
    """Add a process by `exec --process` that sleeps; return its number."""
    process = {"args": ["/bin/sleep", "600"], "cwd": "/", **fields}
    (place / "process.json").write_text(json.dumps(process))
    pid_file = place / "exec.pid"
    flags = ("--detach", "--pid-file", str(pid_file), "--process", str(place / "process.json"))
    good(box.call("exec", *flags, box.id))
    return int(pid_file.read_text())


SCHEDULERS = [
    ({"policy": "SCHED_OTHER", "nice": 7}, os.SCHED_OTHER, 7),
    ({"policy": "SCHED_BATCH", "nice": -5}, os.SCHED_BATCH, -5),
    ({"policy": "SCHED_IDLE"}, os.SCHED_IDLE, 0),
    (
        {"policy": "SCHED_OTHER", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        os.SCHED_OTHER | os.SCHED_RESET_ON_FORK,
        3,
    ),
]


@pytest.mark.parametrize(("scheduler", "policy", "nice"), SCHEDULERS)
def test_the_scheduler(box: Box, scheduler: dict[str, Any], policy: int, nice: int) -> None:
    box.process["scheduler"] = scheduler
    pid = box.up()
    assert os.sched_getscheduler(pid) == policy
    assert os.getpriority(os.PRIO_PROCESS, pid) == nice


@pytest.mark.vm
def test_a_deadline_needs_all_cpus(box: Box) -> None:
    box.process["scheduler"] = {
        "policy": "SCHED_DEADLINE",
        "runtime": 42000,
        "deadline": 1000000,
        "period": 1000000,
    }
    box.linux["resources"] = {"cpu": {"cpus": "0"}}
    done = box.run()
    assert done.code == 1
    assert "process scheduler can't be used together with AllowedCPUs" in done.err


def test_exec_is_scheduled_too(box: Box, tmp_path: Path) -> None:
    """By its own fields, else like the container's first process, as in runc."""
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 4}
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    box.up()
    other = run_another(
        box,
        tmp_path,
        scheduler={"policy": "SCHED_OTHER", "nice": 9},
        ioPriority={"class": "IOPRIO_CLASS_IDLE"},
    )
    assert (os.sched_getscheduler(other), io_priority(other)[0]) == (os.SCHED_OTHER, 3)
    assert os.getpriority(os.PRIO_PROCESS, other) == 9
    (tmp_path / "exec.pid").unlink()
    alike = run_another(box, tmp_path)
    assert (os.sched_getscheduler(alike), io_priority(alike)) == (os.SCHED_BATCH, (2, 6))


@pytest.mark.requires("userns")
def test_what_only_the_host_may_in_a_user_namespace(box: Box) -> None:
    box.user_namespace()
    box.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": -10}
    pid = box.up()
    assert os.getpriority(os.PRIO_PROCESS, pid) == -10


def test_what_the_kernel_refuses_is_named(box: Box) -> None:
    box.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 100}
    error = box.refused()
    assert "scheduling.set_scheduler: sched_setattr(" in error
    assert "invalid argument" in error


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [("RT", 3, (1, 3)), ("BE", 7, (2, 7)), ("IDLE", 0, (3, 0))],
)
def test_the_io_priority(box: Box, name: str, level: int, expected: tuple[int, int]) -> None:
    box.process["ioPriority"] = {"class": f"IOPRIO_CLASS_{name}", "priority": level}
    assert io_priority(box.up()) == expected


# ---------------------------------------------------------------- CPUs

two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")


@two_cpus
@pytest.mark.requires("cgroup2")
def test_the_callers_cpus_are_not_the_containers(box: Box) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    box.write()
    pinned = ["taskset", "-c", "0", *box.words("create", "--bundle", str(box.bundle), box.id)]
    good(call(pinned))
    assert cpus_of(box.pid) == cpus_of(os.getpid())


@two_cpus
@pytest.mark.parametrize(
    ("asked", "expected"),
    [({"final": "1"}, "1"), ({"initial": "0", "final": "0-1"}, "0-1"), ({"final": "0,1"}, "0-1")],
)
def test_the_cpus_of_exec(box: Box, tmp_path: Path, asked: dict[str, str], expected: str) -> None:
    box.up()
    assert cpus_of(run_another(box, tmp_path, execCPUAffinity=asked)) == expected


@two_cpus
@pytest.mark.requires("cgroup2")
def test_the_initial_cpus_end_with_the_start(box: Box, tmp_path: Path) -> None:
    box.process["execCPUAffinity"] = {"initial": "0"}
    assert cpus_of(box.up()) == cpus_of(os.getpid())  # of exec alone
    assert cpus_of(run_another(box, tmp_path)) == cpus_of(os.getpid())


@two_cpus
def test_the_containers_affinity_holds_for_exec(box: Box, tmp_path: Path) -> None:
    box.process["execCPUAffinity"] = {"final": "1"}
    box.up()
    assert cpus_of(run_another(box, tmp_path)) == "1"


def test_cpus_that_are_not_there(box: Box, tmp_path: Path) -> None:
    box.up()
    process = {"args": ["/bin/true"], "cwd": "/", "execCPUAffinity": {"final": "4000"}}
    (tmp_path / "p").write_text(json.dumps(process))
    done = box.call("exec", "--process", str(tmp_path / "p"), box.id)
    assert done.code == 255
    assert "sched_setaffinity" in done.err


# ---------------------------------------------------------------- linux.*


@pytest.mark.parametrize(("domain", "number"), [("LINUX", 0), ("LINUX32", 8)])
def test_the_execution_domain(box: Box, domain: str, number: int) -> None:
    box.linux["personality"] = {"domain": domain}
    pid = box.up()
    assert int(read(f"/proc/{pid}/personality"), 16) & 0xFF == number
    assert int(box.exec_probe()["personality"], 16) & 0xFF == number


numa = pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="no NUMA here")


@numa
@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, "bind:0"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "bind=static:0"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0"}, "interleave:0"),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, "prefer:0"),
        ({"mode": "MPOL_LOCAL"}, "local"),
        ({"mode": "MPOL_DEFAULT"}, "default"),
    ],
)
def test_the_memory_policy(box: Box, policy: dict[str, Any], shown: str) -> None:
    box.linux["memoryPolicy"] = policy
    box.process["args"] = ["/bin/cat", "/proc/self/numa_maps"]
    lines = good(box.run()).out.splitlines()
    assert {line.split()[1] for line in lines if "stack" in line or "heap" in line} == {shown}


@numa
def test_a_node_that_is_not_there(box: Box) -> None:
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "900"}
    assert "memorypolicy.apply: set_mempolicy(" in box.refused()
