"""The handover: from Python to the trampoline, and by its table to the container's program.

See `kernel.trampoline` for why no interpreter of the host may be what a container's file replaces.
"""

from __future__ import annotations

import os
import struct

from minirun import labels
from minirun.kernel import capability, process, trampoline
from minirun.kernel.libc import MACHINE
from minirun.kernel.path import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV
from minirun.kernel.resource import RLIMITS
from minirun.kernel.seccomp import SECCOMP_SET_MODE_FILTER
from minirun.kernel.trampoline import Data, Ending, Filter, Result, Vector
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup
    from minirun.spec import Seccomp

    Calls = list[tuple[object, ...]]

_F_SETFD, _FD_CLOEXEC = 2, 1
_TIOCSCTTY = 0x540E
_SIGCHLD = 17
_ALLOWING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")


def _describe(setup: Setup) -> list[str]:
    joining = setup.join_flags or setup.target_pidfd >= 0
    names = ["prctl(PR_SET_DUMPABLE, 0)"]
    if _filtered(setup) and not setup.process.no_new_privileges:
        names.append("capset(CAP_SYS_ADMIN for seccomp(2) alone)")
    names += ["clone(CLONE_PARENT)", "setsid()"] if joining else []
    if not joining and _may_handle(setup):
        names.append("rt_sigaction(SIGHUP, SIGINT, SIGQUIT, SIGTERM)")
    names += [] if setup.spec.hooks.start_container else ["read(the word of start)"]
    if setup.process.apparmor_profile:
        names.append(f"write(attr/apparmor/exec, {setup.process.apparmor_profile})")
    if setup.process.selinux_label:
        names.append(f"write(attr/exec, {setup.process.selinux_label})")
    names += [f"prlimit64({one.type}, {one.soft}, {one.hard})" for one in setup.process.rlimits]
    names.append("fcntl(F_SETFD, FD_CLOEXEC) on what is still open")
    if _filtered(setup):
        names.append("seccomp(SECCOMP_SET_MODE_FILTER)")
    return [*names, f"execve({setup.process.args[0]})"]


def _filtered(setup: Setup) -> bool:
    profile = setup.spec.linux.seccomp
    return profile is not None and not profile.notifies


def _may_handle(setup: Setup) -> bool:
    """Tell whether rt_sigaction(2) is sure to be allowed.

    A filter that notifies is in force already.
    """
    profile = setup.spec.linux.seccomp
    return profile is None or _filtered(setup) or _allows(profile, "rt_sigaction")


def _allows(profile: Seccomp, name: str) -> bool:
    """Tell whether a profile allows a system call whatever its arguments."""
    rules = [rule for rule in profile.syscalls if name in rule.names]
    actions = [rule.action for rule in rules] or [profile.default_action]
    return not any(rule.args for rule in rules) and {*actions} <= {*_ALLOWING}


@step(details=_describe, why="/proc/self/exe must never be the host's interpreter: CVE-2019-5736")
def prepare(setup: Setup) -> None:
    """Make the program that waits for start and becomes the payload"""
    image = trampoline.build(MACHINE, calls(setup), setup.report_to)
    setup.image = trampoline.sealed(image)


def calls(setup: Setup) -> Calls:
    """The table: what remains to be done, as system calls."""
    table: Calls = [("prctl", process.PR_SET_DUMPABLE, 0, 0, 0, 0), *_own(setup)]
    if setup.target_pidfd >= 0:
        table += _enter(setup)
    elif _may_handle(setup):
        # kernel: the first process of a pid namespace gets only signals that it handles, and a
        # container that is created and not started must end by them, as runc's does.
        table += [("rt_sigaction", number, Ending(), 0, 8) for number in process.ENDING]
    if setup.labelfd >= 0:
        table += _label(setup, len(table))
    if not setup.spec.hooks.start_container or setup.target_pidfd >= 0:
        table += _wait(setup, len(table))
    table += _limits(setup)
    for fd in (setup.waiting_on, setup.report_to):
        table.append(("fcntl", fd, _F_SETFD, _FD_CLOEXEC))
    if _filtered(setup):
        # kernel: what follows is subject to it.
        table.append(
            (
                "seccomp",
                SECCOMP_SET_MODE_FILTER,
                setup.filter.flags,
                Filter(setup.filter.program),
            )
        )
    argv = [os.fsencode(arg) for arg in setup.process.args]
    table.append(("execve", Data(setup.program + b"\0"), Vector(argv), Vector(setup.environment)))
    return table


def _own(setup: Setup) -> Calls:
    """Take out of the sets that execve hands on what is there for seccomp(2) alone."""
    if setup.last_caps is None:
        return []
    left, inheritable, lower = setup.last_caps
    header, masks = capability.arguments(left, left, inheritable)
    table: Calls = [("capset", Data(header), Data(masks))]
    if lower:
        which = (capability.AMBIENT_LOWER, capability.CAP_SYS_ADMIN)
        table.insert(0, ("prctl", process.PR_CAP_AMBIENT, *which, 0, 0))
    return table


def _limits(setup: Setup) -> Calls:
    """The resource limits, so late that they do not hinder the set-up.

    Those that rise above the hard limit `rlimits.raise_hard` has made possible from outside.
    """
    wanted = {"RLIMIT_CORE": setup.core_limit}
    wanted |= {one.type: (one.soft, one.hard) for one in setup.process.rlimits}
    return [
        ("prlimit64", 0, RLIMITS[kind], Data(struct.pack("<QQ", soft, hard)), 0)
        for kind, (soft, hard) in wanted.items()
    ]


def _enter(setup: Setup) -> Calls:
    """exec: make the process that is in the container's pid namespace, leader of its session.

    Until here nothing of this exec could be seen there (CVE-2016-9962).
    """
    table: Calls = [
        ("clone", process.CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0),
        ("setsid",),
    ]
    if setup.process.terminal:
        table.append(("ioctl", 0, _TIOCSCTTY, 0))
    return table


def _label(setup: Setup, row: int) -> Calls:
    """Write the labels of the security modules; by the process itself, as the kernel asks."""
    how = struct.pack(
        "<QQQ",
        os.O_WRONLY | os.O_CLOEXEC,
        0,
        RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS,
    )
    table: Calls = []
    for path, label in labels.writes(setup):
        value = label.encode()
        table += [
            ("openat2", setup.labelfd, Data(path.encode() + b"\0"), Data(how), len(how)),
            ("write", Result(row + len(table)), Data(value), len(value)),
        ]
    return [*table, ("close", setup.labelfd)]


def _wait(setup: Setup, row: int) -> Calls:
    return [
        ("read", setup.waiting_on, Data(b"\0" * 8), 8),
        # sizeof(sigset_t) is 8; after an end of file it would be 0, which is refused.
        ("rt_sigprocmask", 0, 0, 0, Result(row)),
    ]


@step()
def become(setup: Setup) -> None:
    """Become that program"""
    for fd in (setup.waiting_on, setup.report_to, setup.labelfd):
        if fd >= 0:
            os.set_inheritable(fd, True)
    for fd in setup.launch.passed_fds:
        os.set_inheritable(fd, True)
    trampoline.become(setup.image)
