"""How the payload is scheduled: policy, I/O priority, CPUs (sched(7), ioprio_set(2)).

All of it is set from outside and late: the host's rights are needed for what rises above the
ordinary, whatever the container's user namespace, and the set-up itself must not run under it
(a process with SCHED_DEADLINE cannot even fork).
"""

from __future__ import annotations

import os

from minirun import ranges
from minirun.errors import MinirunError
from minirun.kernel import process
from minirun.kernel.libc import failure, trace
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from minirun.setup import Setup

IO_LEVELS = 8


def _scheduler(setup: Setup) -> list[str]:
    found = setup.process.scheduler
    return [] if found is None else [repr(found).removeprefix("Scheduler")]


@step(_scheduler, details=_scheduler)
def set_scheduler(setup: Setup) -> None:
    """Set the scheduling policy"""
    asked = setup.process.scheduler
    assert asked is not None
    bits = 0
    for name in asked.flags:
        bits |= process.SCHED_FLAGS[name]
    try:
        process.sched_setattr(
            setup.pid,
            process.SCHED_POLICIES[asked.policy],
            flags_=bits,
            nice=asked.nice,
            priority=asked.priority,
            runtime=asked.runtime,
            deadline=asked.deadline,
            period=asked.period,
        )
    except PermissionError as error:
        limits = setup.spec.linux.resources
        if limits is None or limits.cpu is None or not limits.cpu.cpus:
            raise
        raise MinirunError(
            "process scheduler can't be used together with AllowedCPUs",
            cause="SCHED_DEADLINE needs all CPUs of the system: sched_setattr(2)",
            fix="leave out linux.resources.cpu.cpus, or process.scheduler",
        ) from error


def _io_priority(setup: Setup) -> list[str]:
    found = setup.process.io_priority
    return [] if found is None else [f"{found.cls} {found.priority}"]


@step(_io_priority, details=_io_priority)
def set_io_priority(setup: Setup) -> None:
    """Set the I/O priority"""
    asked = setup.process.io_priority
    assert asked is not None
    value = process.IOPRIO_CLASSES[asked.cls] << process.IOPRIO_CLASS_SHIFT | asked.priority
    process.ioprio_set(process.IOPRIO_WHO_PROCESS, setup.pid, value)


@step(
    lambda setup: setup.group is not None,
    why="the caller's CPUs say nothing of the container's, which its cgroup bounds",
)
def reset_affinity(setup: Setup) -> None:
    """Let the container run on all the CPUs of its cgroup"""
    _set_affinity(setup.pid, _all())


@step(
    lambda setup: setup.process.exec_cpu_affinity and setup.process.exec_cpu_affinity.initial,
    details=lambda setup: [str(setup.process.exec_cpu_affinity)],
)
def set_initial_affinity(setup: Setup) -> None:
    """Run on the CPUs that are asked for while the process is made"""
    asked = setup.process.exec_cpu_affinity
    assert asked is not None
    _set_affinity(0, ranges.parse(asked.initial or "", "process.execCPUAffinity.initial"))


@step(
    lambda setup: setup.process.exec_cpu_affinity or setup.exec_group is not None,
    details=lambda setup: [str(setup.process.exec_cpu_affinity)],
)
def set_final_affinity(setup: Setup) -> None:
    """Set the CPUs of the process: those that are asked for, else all of the cgroup"""
    asked = setup.process.exec_cpu_affinity
    final = asked.final if asked else None
    if final:
        _set_affinity(setup.pid, ranges.parse(final, "process.execCPUAffinity.final"))
    elif setup.exec_group is not None:
        _set_affinity(setup.pid, _all())


def _all() -> range:
    # As many as there can be: what the cgroup does not have the kernel leaves out.
    return range(os.sysconf("SC_NPROCESSORS_CONF"))


def _set_affinity(pid: int, cpus: Iterable[int]) -> None:
    numbers = sorted(cpus)
    text = f"sched_setaffinity({pid}, {numbers})"
    try:
        os.sched_setaffinity(pid, numbers)
    except OSError as error:
        raise failure(error.errno or 0, text) from None
    trace(lambda: text)
