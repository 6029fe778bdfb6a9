"""What a process must satisfy: that of config.json, and those that `exec` adds."""

from __future__ import annotations

from minirun import ranges
from minirun.kernel.capability import NUMBERS as CAPABILITIES
from minirun.kernel.process import IOPRIO_CLASSES, SCHED_FLAGS, SCHED_POLICIES
from minirun.kernel.resource import RLIMITS
from minirun.refuse import absolute, refuse_unless
from minirun.scheduling import IO_LEVELS
from minirun.spec import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Notes = list[str]
    ProcessCheck = Callable[[Process, Notes], None]


def validate_process(process: Process) -> list[str]:
    """Refuse a process that cannot be run, as `exec` gets it; return notes. Raises ConfigError."""
    notes: list[str] = []
    for check in PROCESS_CHECKS:
        check(process, notes)
    return notes


def arguments(proc: Process, _notes: Notes) -> None:
    """Refuse a process without arguments or with a relative working directory."""
    refuse_unless(proc.args, "process.args", "must not be empty")
    absolute(proc.cwd, "process.cwd")


def environment(proc: Process, _notes: Notes) -> None:
    """Refuse variables that are not NAME=VALUE."""
    for number, entry in enumerate(proc.env):
        # Only the name: a value may be a secret, and this text ends in logs.
        name, equals, _ = entry.partition("=")
        where = f"process.env[{number}]"
        refuse_unless(equals, where, "must be NAME=VALUE")
        refuse_unless(name, where, "the name must not be empty")


def user(proc: Process, _notes: Notes) -> None:
    """Refuse a mask that is none."""
    mask = proc.user.umask
    refuse_unless(mask is None or mask <= 0o7777, "process.user.umask", "must be at most 07777")


def capabilities(proc: Process, notes: Notes) -> None:
    """Note the capabilities that are not known: the specification wants a warning."""
    if proc.capabilities is None:
        return
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    names = {name for kind in kinds for name in getattr(proc.capabilities, kind)}
    unknown = sorted(names - CAPABILITIES.keys())
    if unknown:
        notes.append(f"ignoring unknown capabilities: {', '.join(unknown)}"[:500])


def rlimits(proc: Process, _notes: Notes) -> None:
    """Refuse limits that are unknown, doubled, or above their maximum."""
    seen: set[str] = set()
    for number, limit in enumerate(proc.rlimits):
        where = f"process.rlimits[{number}]"
        refuse_unless(limit.type in RLIMITS, f"{where}.type", f"unknown limit {limit.type!r}")
        refuse_unless(limit.type not in seen, f"{where}.type", f"{limit.type} appears twice")
        refuse_unless(limit.soft <= limit.hard, f"{where}.soft", "must not exceed the hard limit")
        seen.add(limit.type)


def oom_score(proc: Process, _notes: Notes) -> None:
    """Refuse a score that the kernel does not have (proc_pid_oom_score_adj(5))."""
    score = proc.oom_score_adj
    refuse_unless(
        score is None or -1000 <= score <= 1000,
        "process.oomScoreAdj",
        f"must be from -1000 to 1000, not {score}",
    )


def scheduler(proc: Process, _notes: Notes) -> None:
    """Refuse policies and flags that are unknown, and what does not go with the policy."""
    asked, where = proc.scheduler, "process.scheduler"
    if asked is None:
        return
    policy = asked.policy
    refuse_unless(policy in SCHED_POLICIES, f"{where}.policy", f"unknown policy {policy!r}")
    for number, name in enumerate(asked.flags):
        refuse_unless(name in SCHED_FLAGS, f"{where}.flags[{number}]", f"unknown flag {name!r}")
    refuse_unless(
        policy not in ("SCHED_OTHER", "SCHED_BATCH") or -20 <= asked.nice <= 19,
        f"{where}.nice",
        f"must be from -20 to 19, not {asked.nice}",
    )
    refuse_unless(
        not asked.priority or policy in ("SCHED_FIFO", "SCHED_RR"),
        f"{where}.priority",
        "goes with SCHED_FIFO and SCHED_RR only",
    )
    for name in ("runtime", "deadline", "period"):
        refuse_unless(
            not getattr(asked, name) or policy == "SCHED_DEADLINE",
            f"{where}.{name}",
            "goes with SCHED_DEADLINE only",
        )


def io_priority(proc: Process, _notes: Notes) -> None:
    """Refuse classes and levels that the kernel does not have."""
    asked, where = proc.io_priority, "process.ioPriority"
    if asked is None:
        return
    refuse_unless(asked.cls in IOPRIO_CLASSES, f"{where}.class", f"unknown class {asked.cls!r}")
    good = 0 <= asked.priority < IO_LEVELS
    refuse_unless(
        good, f"{where}.priority", f"must be from 0 to {IO_LEVELS - 1}, not {asked.priority}"
    )


def exec_affinity(proc: Process, _notes: Notes) -> None:
    """Refuse what is no list of CPUs."""
    asked = proc.exec_cpu_affinity
    if asked is None:
        return
    for name in ("initial", "final"):
        text = getattr(asked, name)
        if text:
            where = f"process.execCPUAffinity.{name}"
            refuse_unless(ranges.parse(text, where), where, "names no CPU")


PROCESS_CHECKS: tuple[ProcessCheck, ...] = (
    arguments,
    environment,
    user,
    capabilities,
    rlimits,
    oom_score,
    scheduler,
    io_priority,
    exec_affinity,
)
