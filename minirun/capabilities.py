"""Credentials of the payload: capabilities, user, groups, no_new_privs (capabilities(7)).

One file, because the order binds them: what setuid(2) clears, capset(2) must restore, and what
setgroups(2) needs, the bounding set must not have lost yet.
"""

from __future__ import annotations

import os

from minirun import log
from minirun.errors import MinirunError
from minirun.kernel import capability, libc, process
from minirun.spec import Capabilities
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.setup import Setup

_ADMIN = 1 << capability.CAP_SYS_ADMIN
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


class Masks:
    """The five sets as bit masks."""

    def __init__(self, wanted: Capabilities, available: int) -> None:
        self.bounding = _mask(wanted.bounding) & available
        self.permitted = _mask(wanted.permitted) & available
        self.effective = _mask(wanted.effective) & self.permitted
        self.inheritable = _mask(wanted.inheritable) & available
        self.ambient = _mask(wanted.ambient) & self.permitted & self.inheritable


def _mask(names: Sequence[str]) -> int:
    """Make a mask; a name that is not known grants nothing (`ungranted` tells of it)."""
    known = [capability.NUMBERS[name] for name in names if name in capability.NUMBERS]
    return capability.mask(known)


def ungranted(wanted: Capabilities | None, available: int) -> list[str]:
    """List the asked-for capabilities that cannot be given: unknown, or not ours to give."""
    if wanted is None:
        return []
    names = {name for kind in _SETS for name in getattr(wanted, kind)}
    return sorted(name for name in names if not _mask([name]) & available)


def unraisable(wanted: Capabilities | None) -> list[str]:
    """List the ambient capabilities that are not inheritable and permitted: capabilities(7)."""
    if wanted is None:
        return []
    able = _mask(wanted.inheritable) & _mask(wanted.permitted)
    return [name for name in wanted.ambient if _mask([name]) & ~able]


def _describe(setup: Setup) -> list[str]:
    wanted = setup.process.capabilities or Capabilities()
    return [f"{kind}: {' '.join(getattr(wanted, kind)) or 'none'}" for kind in _SETS]


def _shell(setup: Setup) -> list[str]:
    wanted = setup.process.capabilities or Capabilities()

    def listed(names: Sequence[str]) -> str:
        words = ["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in names)]
        return quoted(",".join(words))

    # kernel: an ambient capability must be inheritable too.
    ambient = [name for name in wanted.ambient if name in wanted.inheritable]
    user = setup.process.user
    ids = f"--reuid {user.uid} --regid {user.gid} --clear-groups"
    nnp = " --no-new-privs" if setup.process.no_new_privileges else ""
    return [
        f"setpriv {ids} --bounding-set={listed(wanted.bounding)} "
        f"--inh-caps={listed(wanted.inheritable)} --ambient-caps={listed(ambient)}{nnp}"
    ]


@step(lambda setup: setup.process.no_new_privileges, why="a set-user-id program gains nothing")
def set_no_new_privs(_setup: Setup) -> None:
    """Forbid new privileges"""
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)


@step()
def look(setup: Setup) -> None:
    """Read which capabilities the kernel knows"""
    for name in unraisable(setup.process.capabilities):
        text = f"can't raise ambient capability {name}: operation not permitted"
        log.warning(text, shown=True)
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        setup.last_cap = int(file.read(8))


def _hold_admin(setup: Setup, masks: Masks) -> None:
    """Keep CAP_SYS_ADMIN for the filter, which needs it without no_new_privs: seccomp(2).

    Where `payload` loads it, that is over the execve of its program, by the inheritable and the
    ambient set; the program takes it out of those before it waits for anything (`setup.last_caps`),
    so that no execve hands it on.
    """
    profile = setup.spec.linux.seccomp
    if profile is None or setup.process.no_new_privileges:
        return
    if not profile.notifies:
        # kernel: what execve leaves root, and another user.
        root = 0 if setup.process.user.uid else masks.bounding | masks.inheritable
        left = masks.ambient | root
        setup.last_caps = (left | _ADMIN, masks.inheritable, not masks.ambient & _ADMIN)
        masks.inheritable |= _ADMIN
        masks.ambient |= _ADMIN
        effective, permitted, inheritable = capability.capget()
        # kernel: nothing becomes inheritable that the bounding set has lost.
        capability.capset(effective, permitted, inheritable | _ADMIN)
    masks.permitted |= _ADMIN
    masks.effective |= _ADMIN


@step(details=_describe, shell=_shell)
def drop(setup: Setup) -> None:
    """Take the payload's user, groups and capabilities"""
    last = setup.last_cap
    _, available, _ = capability.capget()
    wanted = setup.process.capabilities or Capabilities()
    setup.notes += [f"capability {name} cannot be granted" for name in ungranted(wanted, available)]
    masks = Masks(wanted, available)
    if available & _ADMIN:
        _hold_admin(setup, masks)
    # kernel: PR_CAPBSET_DROP needs CAP_SETPCAP, so while all are still there.
    process.prctl(process.PR_SET_SECUREBITS, 0)
    for number in range(last + 1):
        if not masks.bounding >> number & 1:
            process.prctl(process.PR_CAPBSET_DROP, number)
    # kernel: without it, leaving uid 0 clears the permitted set.
    process.prctl(process.PR_SET_KEEPCAPS, 1)
    _switch_user(setup)
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    # kernel: a change of user sets it to fs.suid_dumpable, which may allow tracing.
    process.prctl(process.PR_SET_DUMPABLE, 0)
    capability.capset(masks.effective, masks.permitted, masks.inheritable)
    _set_ambient(masks.ambient, last)
    _verify(setup, masks)


def _switch_user(setup: Setup) -> None:
    user = setup.process.user
    if not _keeps_groups(setup) and (user.additional_gids or not setup.setgroups_denied):
        groups = list(dict.fromkeys(user.additional_gids))  # Docker names the first one twice
        _named(f"setgroups({groups})", os.setgroups, groups)
    _named(f"setresgid({user.gid})", os.setresgid, user.gid, user.gid, user.gid)
    _named(f"setresuid({user.uid})", os.setresuid, user.uid, user.uid, user.uid)


def _keeps_groups(setup: Setup) -> bool:
    """Tell whether the caller's groups stay; of those a user has no other way to keep any.

    Podman's `keep-groups`, which crun brought up (crun(1)).
    """
    return "run.oci.keep_original_groups" in setup.spec.annotations


def _named(text: str, function: object, *args: object) -> None:
    try:
        function(*args)  # type: ignore[operator]
    except OSError as error:
        raise libc.failure(error.errno or 0, text) from None
    libc.trace(lambda: text)


def _set_ambient(ambient: int, last: int) -> None:
    process.prctl(process.PR_CAP_AMBIENT, capability.AMBIENT_CLEAR_ALL)
    for number in range(last + 1):
        if ambient >> number & 1:
            process.prctl(process.PR_CAP_AMBIENT, capability.AMBIENT_RAISE, number)


def _verify(setup: Setup, masks: Masks) -> None:
    """Compare what the kernel has with what was asked: a silent no-op must not pass."""
    user = setup.process.user
    expected = (user.uid, user.uid, user.uid), (user.gid, user.gid, user.gid)
    if (os.getresuid(), os.getresgid()) != expected:
        raise MinirunError("the user could not be switched")
    if capability.capget() != (masks.effective, masks.permitted, masks.inheritable):
        raise MinirunError("the capabilities could not be set")
    groups = set(os.getgroups()) - {user.gid}
    ours = not setup.setgroups_denied and not _keeps_groups(setup)
    if ours and groups != set(user.additional_gids) - {user.gid}:
        raise MinirunError("the groups could not be set")
