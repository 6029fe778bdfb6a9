"""linux.resources.devices: which devices the container may open or make (config-linux.md).

cgroup v2 has no list of devices: a program of type BPF_PROG_TYPE_CGROUP_DEVICE is asked at every
open(2) and mknod(2) of a process in the group or below it (Documentation/admin-guide/cgroup-v2.rst,
"Device controller"). `policy` reads the rules as cgroup v1 did and runc does: a rule for all
devices sets the default and forgets what stood before, the others are exceptions from it. Where
runc opens more than the rule says, the narrower reading is taken:

* to allow type `a` with numbers or with a part of `rwm` allows that, not everything;
* a denial also takes back what earlier rules allowed to single devices that it covers;
* under a default of allowing, asking for two kinds of access is refused if one of them is.
"""

from __future__ import annotations

import errno
import os
import struct

from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.errors import describe as describe_error
from minirun.kernel import bpf
from minirun.spec import Device, DeviceRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    # type (c or b), major, minor; None stands for any number
    Which = tuple[str, int | None, int | None]

PROGRAM_NAME = "minirun_device"  # how ours is told from what systemd attached to the same group

_PATH = "linux.resources.devices"
_UINT32 = (1 << 32) - 1

# include/uapi/linux/bpf.h: BPF_DEVCG_*
_MKNOD, _READ, _WRITE = 1, 2, 4
_ALL = _MKNOD | _READ | _WRITE
_ACCESS = {"m": _MKNOD, "r": _READ, "w": _WRITE}
_TYPES = {"b": 1, "c": 2}


def _allow(kind: str, major: int | None, minor: int | None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)


# What every container gets, with the path whose own entry in linux.devices replaces the rule. As in
# runc since 1.2, without /dev/net/tun. A node may be made of any device, since to open it is
# another matter.
DEFAULT_RULES: tuple[tuple[str | None, DeviceRule], ...] = (
    (None, _allow("c", None, None, "m")),
    (None, _allow("b", None, None, "m")),
    ("/dev/null", _allow("c", 1, 3)),
    ("/dev/random", _allow("c", 1, 8)),
    ("/dev/full", _allow("c", 1, 7)),
    ("/dev/tty", _allow("c", 5, 0)),
    ("/dev/zero", _allow("c", 1, 5)),
    ("/dev/urandom", _allow("c", 1, 9)),
    (None, _allow("c", 136, None)),  # /dev/pts/*
    (None, _allow("c", 5, 2)),  # /dev/ptmx
)


class Policy:
    """What the rules come to: the default, and exceptions from it.

    `exceptions` maps devices to the access bits in which the default does not hold.
    """

    def __init__(self, allow: bool = False, exceptions: dict[Which, int] | None = None) -> None:
        self.allow = allow
        self.exceptions = exceptions or {}

    @property
    def allows_all(self) -> bool:
        """Whether nothing is forbidden, so that no program is needed."""
        return self.allow and not self.exceptions


def effective(rules: Sequence[DeviceRule], devices: Iterable[Device] = ()) -> list[DeviceRule]:
    """Return the rules of a config followed by the default ones, in the order in which they hold.

    A default rule falls away where `linux.devices` has an entry of its path; like in runc, the
    entry itself allows nothing.
    """
    return [*rules, *_defaults(devices)]


def _defaults(devices: Iterable[Device]) -> list[DeviceRule]:
    paths = {device.path for device in devices}
    return [rule for path, rule in DEFAULT_RULES if path is None or path not in paths]


def policy(rules: Sequence[DeviceRule], devices: Iterable[Device] = ()) -> Policy:
    """Read the rules of a config and the default ones after them, see `effective`.

    Raises ConfigError naming the rule that is malformed, or that would make a hole in a wider one:
    that is refused by runc also.
    """
    found = Policy()
    for number, rule in enumerate(rules):
        _apply(found, rule, f"{_PATH}[{number}]")
    for rule in _defaults(devices):
        _apply(found, rule, _PATH)
    return found


def program(rules: Sequence[DeviceRule], devices: Iterable[Device] = ()) -> bytes:
    """Return the instructions (struct bpf_insn, 8 bytes each) for the rules of a config."""
    return assemble(policy(rules, devices))


def _apply(found: Policy, rule: DeviceRule, path: str) -> None:
    kind = rule.type or "a"
    if kind not in "abcu" or len(kind) != 1:
        raise ConfigError(f"{path}.type", f"unknown device type {rule.type!r}")
    major, minor = _number(rule.major, f"{path}.major"), _number(rule.minor, f"{path}.minor")
    access = _access(rule, path)
    if kind == "a":
        if not rule.allow or (major is None and minor is None and access == _ALL):
            found.allow = rule.allow
            found.exceptions.clear()
            return
        for one in ("b", "c"):
            _except(found, rule, (one, major, minor), access, path)
    else:
        _except(found, rule, ("c" if kind == "u" else kind, major, minor), access, path)


def _number(value: int | None, path: str) -> int | None:
    if value is None or value == -1:
        return None
    if value > _UINT32:
        raise ConfigError(path, f"must be from -1 to {_UINT32}, not {value}")
    return value


def _access(rule: DeviceRule, path: str) -> int:
    bits = 0
    for letter in rule.access or "":
        bits |= _ACCESS.get(letter, 0)  # runc ignores what it does not know
    if not bits:
        raise ConfigError(f"{path}.access", "cannot be empty")
    return bits


def _except(found: Policy, rule: DeviceRule, which: Which, access: int, path: str) -> None:
    exceptions = found.exceptions
    if rule.allow != found.allow:
        exceptions[which] = exceptions.get(which, 0) | access
        return
    for other, bits in exceptions.items():
        # Two that only cross, such as *:0 and 0:*, would leave what is denied open where they do.
        crossed = not rule.allow and _meet(other, which) and not _covers(which, other)
        if other != which and bits & access and (crossed or _covers(other, which)):
            raise ConfigError(
                path,
                f"cannot except {_show(which, access)} from the earlier rule {_show(other, bits)}",
                fix="name the devices singly in the earlier rule",
            )
    for other in list(exceptions):
        if other == which or (not rule.allow and _covers(which, other)):
            left = exceptions[other] & ~access
            if left:
                exceptions[other] = left
            else:
                del exceptions[other]


def _meet(one: Which, other: Which) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a == b or None in (a, b) for a, b in pairs)


def _covers(wide: Which, narrow: Which) -> bool:
    return wide[0] == narrow[0] and wide[1] in (None, narrow[1]) and wide[2] in (None, narrow[2])


# The program. Instructions are (code, registers, offset, constant); the codes are those of
# include/uapi/linux/bpf_common.h and bpf.h. Comparisons are BPF_JMP32 (Linux 5.1): the constant of
# a 64-bit one would be sign-extended.

_LOAD32, _MOV, _MOV_REGISTER, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0xBF, 0x57, 0x77
_JUMP, _UNEQUAL, _ANY_BIT, _EXIT = 0x05, 0x56, 0x46, 0x95
_RESULT, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhI", code, source << 4 | to, offset, value)


# struct bpf_cgroup_dev_ctx: access_type (access in the upper half, type in the lower), major, minor
_PRELUDE = (
    _instruction(_LOAD32, _TYPE, _CONTEXT, 0),
    _instruction(_MOV_REGISTER, _WANTED, _TYPE),
    _instruction(_AND, _TYPE, value=0xFFFF),
    _instruction(_SHIFT_RIGHT, _WANTED, value=16),
    _instruction(_LOAD32, _MAJOR, _CONTEXT, 4),
    _instruction(_LOAD32, _MINOR, _CONTEXT, 8),
)


def assemble(found: Policy) -> bytes:
    """Return the instructions (struct bpf_insn, 8 bytes each) that decide as the policy says."""
    code = list(_PRELUDE)
    for which in sorted(found.exceptions, key=_order):
        code += _test(which, found.exceptions[which], found.allow)
    code += _answer(found.allow)
    return b"".join(code)


def _order(which: Which) -> tuple[str, int, int]:
    kind, major, minor = which
    return kind, -1 if major is None else major, -1 if minor is None else minor


def _answer(allow: bool) -> list[bytes]:
    return [_instruction(_MOV, _RESULT, value=int(allow)), _instruction(_EXIT)]


def _test(which: Which, access: int, allowed: bool) -> list[bytes]:
    """Answer the opposite of the default for a device; others go on behind this."""
    kind, major, minor = which
    unequal = [(_TYPE, _TYPES[kind]), (_MAJOR, major), (_MINOR, minor)]
    tests = [(_UNEQUAL, to, value) for to, value in unequal if value is not None]
    found: list[bytes] = []
    if access != _ALL and not allowed:
        tests.append((_ANY_BIT, _WANTED, _ALL & ~access))  # wants more than the exception gives
    elif access != _ALL:
        # Wants nothing of what the exception takes: over the jump if it does.
        found = [_instruction(_ANY_BIT, _WANTED, offset=1, value=access)]
        found += [_instruction(_JUMP, offset=2)]
    found += _answer(not allowed)
    for code, to, value in reversed(tests):
        found.insert(0, _instruction(code, to, offset=len(found), value=value))
    return found


def attach(cgroup: int, wanted: Policy) -> None:
    """Put a cgroup (a directory descriptor) under the policy, in place of a former one of ours.

    The change is atomic; programs of others, such as systemd's, stay and must allow a device too.
    Under a policy that allows everything no program is left.

    Raises Unsupported when the kernel refuses: a container never runs without the filter that it
    asks for. Linux 5.6.
    """
    try:
        former = _ours(cgroup)
    except OSError as error:
        if wanted.allows_all:
            return  # where programs cannot be listed, none was attached either
        raise _refused("read the device filters of", error) from error
    try:
        left = former
        if not wanted.allows_all:
            _put(cgroup, assemble(wanted), former[0] if former else None)
            left = former[1:]
        for fd in left:
            bpf.detach_device_program(cgroup, fd)
    finally:
        for fd in former:
            os.close(fd)


def _put(cgroup: int, code: bytes, replaced: int | None) -> None:
    fd = _load(code)
    try:
        bpf.attach_device_program(cgroup, fd, replaced)
    except OSError as error:
        raise _refused("attach the device filter to", error) from error
    finally:
        os.close(fd)


def _ours(cgroup: int) -> list[int]:
    """Open the programs of ours that are attached to the group."""
    found: list[int] = []
    try:
        for identity in bpf.query_device_programs(cgroup):
            fd = _open(identity)
            if fd is not None:
                found.append(fd)
        others = [fd for fd in found if bpf.program_name(fd) != PROGRAM_NAME]
    except OSError:
        for fd in found:
            os.close(fd)
        raise
    for fd in others:
        found.remove(fd)
        os.close(fd)
    return found


def _open(identity: int) -> int | None:
    try:
        return bpf.open_program(identity)
    except OSError as error:
        # Hidden by a security module: then it is none of ours. Gone since: no matter.
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT):
            return None
        raise


def _load(code: bytes) -> int:
    try:
        return _load_with_memory(code)
    except OSError as error:
        log = ""
        if error.errno in (errno.EINVAL, errno.EACCES):
            log = bpf.verifier_log(code, PROGRAM_NAME)
        raise _refused("load the device filter for", error, log) from error


def _load_with_memory(code: bytes) -> int:
    try:
        return bpf.load_device_program(code, PROGRAM_NAME)
    except PermissionError:
        # Before Linux 5.11 programs count against RLIMIT_MEMLOCK, by default 64 KiB.
        import resource

        limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if not _unlimited(limits[0]):
            raise
        try:
            return bpf.load_device_program(code, PROGRAM_NAME)
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)


def _unlimited(soft: int) -> bool:
    """Lift RLIMIT_MEMLOCK; tell whether that made a difference."""
    import resource

    if soft == resource.RLIM_INFINITY:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    except (ValueError, PermissionError):
        return False
    return True


def _refused(what: str, error: OSError, log: str = "") -> MinirunError:
    message = f"cannot {what} the cgroup: {describe_error(error)}"
    if error.errno in (errno.EPERM, errno.EACCES) and not log:
        return Unsupported(
            message,
            cause="bpf(2) needs CAP_BPF and CAP_NET_ADMIN (before Linux 5.8: CAP_SYS_ADMIN) in the "
            "first user namespace, and no group above may forbid programs below it",
            fix="run as root, or allow all devices in linux.resources.devices",
        )
    if error.errno == errno.EBADF:
        return Unsupported(message, cause="device filters exist on cgroup v2 only")
    return Unsupported(
        message,
        cause=f"the verifier says: {log.strip()}" if log.strip() else "",
        fix="the kernel needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, Linux 5.6 or later",
    )


def _show(which: Which, access: int) -> str:
    kind, major, minor = which
    numbers = ":".join("*" if one is None else str(one) for one in (major, minor))
    letters = "".join(letter for letter in "rwm" if access & _ACCESS[letter])
    return f"{kind} {numbers} {letters}"


def describe(found: Policy) -> str:
    """Say in one line what the policy does, for the plan and --explain."""
    if found.allows_all:
        return "devices: all allowed, no filter"
    shown = [_show(one, found.exceptions[one]) for one in sorted(found.exceptions, key=_order)]
    if found.allow:
        return f"devices: all allowed but {', '.join(shown)}"
    return f"devices: none allowed but {', '.join(shown)}" if shown else "devices: none allowed"
