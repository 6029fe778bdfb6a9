"""linux.seccomp: which system calls the container may make.

`compile` turns the rules into a program of classic BPF by libseccomp, or takes it from the cache;
`prepare` makes the function that the child calls as its last act before execve.

In front of libseccomp's program stands a short one of our own, see `enosys`. It is left out where
the default is to allow, log or trace, and where the default is ENOSYS anyway.
"""

from __future__ import annotations

import errno
import os

from minirun import enosys, filtercache
from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.kernel import libseccomp
from minirun.kernel import seccomp as kernel
from minirun.spec import Seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minirun.kernel.libseccomp import Comparison, Library
    from minirun.spec import SeccompArg, SeccompRule

_PATH = "linux.seccomp"
_FORMAT = 1  # of what `compile` makes; part of the cache's key

ACTIONS = {
    "SCMP_ACT_KILL": kernel.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": kernel.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": kernel.SECCOMP_RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": kernel.SECCOMP_RET_TRAP,
    "SCMP_ACT_ERRNO": kernel.SECCOMP_RET_ERRNO,
    "SCMP_ACT_TRACE": kernel.SECCOMP_RET_TRACE,
    "SCMP_ACT_ALLOW": kernel.SECCOMP_RET_ALLOW,
    "SCMP_ACT_LOG": kernel.SECCOMP_RET_LOG,
    "SCMP_ACT_NOTIFY": kernel.SECCOMP_RET_USER_NOTIF,
}
# The greatest errnoRet: libseccomp stays below the kernel's MAX_ERRNO, 4095; a tracer's message has
# 16 bits.
_DATA_LIMIT = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")

OPERATORS = {
    "SCMP_CMP_NE": libseccomp.SCMP_CMP_NE,
    "SCMP_CMP_LT": libseccomp.SCMP_CMP_LT,
    "SCMP_CMP_LE": libseccomp.SCMP_CMP_LE,
    "SCMP_CMP_EQ": libseccomp.SCMP_CMP_EQ,
    "SCMP_CMP_GE": libseccomp.SCMP_CMP_GE,
    "SCMP_CMP_GT": libseccomp.SCMP_CMP_GT,
    "SCMP_CMP_MASKED_EQ": libseccomp.SCMP_CMP_MASKED_EQ,
}
FLAGS = {
    name: kernel.FILTER_FLAG_NAMES[name]
    for name in (
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    )
}
# The names that the specification lists; libseccomp tells which of them it was built with.
ARCHITECTURES = (
    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
)  # fmt: skip

_ARGUMENTS = 6
# libseccomp 2.5 builds a wrong tree when it is empty; below this many calls a list is as fast.
_TREE_FROM = 32


class Filter:
    """A compiled filter. `program` is an array of struct sock_filter, `flags` for seccomp(2).

    `notify` tells that the kernel returns a listener, which somebody must serve. `skipped` are the
    names of system calls that libseccomp does not know.
    """

    def __init__(
        self, source: Seccomp, program: bytes, flags: int, skipped: tuple[str, ...] = ()
    ) -> None:
        self.source = source
        self.program = program
        self.flags = flags
        self.skipped = skipped

    @property
    def notify(self) -> bool:
        """Whether a rule hands system calls to a listener (SCMP_ACT_NOTIFY)."""
        return bool(self.flags & kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER)

    @property
    def instructions(self) -> int:
        """Length of the program; the kernel takes 4096."""
        return len(self.program) // kernel.INSTRUCTION_SIZE

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people: rules that are missing where they would have been the stricter.

        Under a strict default a skipped name is the ordinary case of a profile that is newer than
        libseccomp: the call is refused.
        """
        if not self.skipped or self.source.default_action not in _PERMISSIVE:
            return ()
        names = ", ".join(self.skipped)
        return (f"libseccomp does not know these system calls, so no rule holds for them: {names}",)


class _Rule:
    """A rule of the profile after the checks; `alternatives` are OR'ed, each is AND'ed."""

    def __init__(
        self, path: str, names: Sequence[str], action: int, alternatives: list[list[Comparison]]
    ) -> None:
        self.path = path
        self.names = names
        self.action = action
        self.alternatives = alternatives


def compile(seccomp: Seccomp, cache_dir: str | None = None) -> Filter:
    """Compile the filter of `linux.seccomp`.

    `cache_dir` is a directory for compiled filters, made when absent (mode 0700); None compiles
    anew. A cache that cannot be used, or whose entry is damaged, costs the time only.

    Raises ConfigError naming the field for what the specification forbids or libseccomp refuses,
    Unsupported when libseccomp is not installed. A system call that libseccomp does not know is
    skipped and told in `notes` (config-linux.md, "Seccomp").
    """
    library = _load()
    if cache_dir is None:
        return _compile(seccomp, library)
    key = filtercache.digest(
        f"{_FORMAT} {library.version} {os.uname().machine} {seccomp!r}".encode()
    )
    entry = filtercache.read(cache_dir, key)
    if entry is not None:
        return Filter(seccomp, entry.program, entry.flags, entry.skipped)
    made = _compile(seccomp, library)
    filtercache.write(cache_dir, key, filtercache.Entry(made.program, made.flags, made.skipped))
    return made


def prepare(compiled: Filter) -> Callable[[], int]:
    """Return a function that installs the filter by exactly one system call.

    It returns 0, or the listener's descriptor when `compiled.notify`. Everything is allocated now:
    under a strict filter even the interpreter's own brk(2) would be fatal. Raises OSError.
    """
    return kernel.prepare(compiled.program, compiled.flags)


def check(seccomp: Seccomp) -> None:
    """Refuse what the specification forbids, without libseccomp. Raises ConfigError."""
    _default_action(seccomp)
    _flags(seccomp)
    _rules(seccomp)
    _check_listener(seccomp)
    for number, name in enumerate(seccomp.architectures):
        if name not in ARCHITECTURES:
            raise ConfigError(f"{_PATH}.architectures[{number}]", f"unknown architecture {name!r}")


def _load() -> Library:
    try:
        return libseccomp.Library()
    except OSError as error:
        raise Unsupported(
            f"seccomp: cannot load {libseccomp.SONAME}",
            cause=f"the configuration has linux.seccomp, and the dynamic linker says: {error}",
            fix="install libseccomp (Debian: libseccomp2), version 2.5 or later",
        ) from None


def _compile(seccomp: Seccomp, library: Library) -> Filter:
    check(seccomp)
    default = _default_action(seccomp)
    rules = [rule for rule in _rules(seccomp) if rule.action != default]
    tokens = _tokens(seccomp, library)
    skipped: dict[str, None] = {}
    added = 0
    with library.filter(default) as context:
        _add_architectures(context, seccomp, tokens)
        for rule in rules:
            for name in rule.names:
                number = library.syscall(name)
                if number is None:
                    skipped[name] = None
                    continue
                for conditions in rule.alternatives:
                    _add(context, rule, name, number, conditions)
                added += 1
        if added > _TREE_FROM:
            context.set_attribute(libseccomp.SCMP_FLTATR_CTL_OPTIMIZE, 2)
        program = context.export()
    if seccomp.default_action not in _PERMISSIVE and seccomp.default_errno_ret != errno.ENOSYS:
        names = [name for rule in seccomp.syscalls for name in rule.names]
        program = enosys.prologue(library, names, tokens) + program
    count = len(program) // kernel.INSTRUCTION_SIZE
    if count > kernel.BPF_MAXINSNS:
        raise ConfigError(
            _PATH, f"the filter has {count} instructions, the kernel takes {kernel.BPF_MAXINSNS}"
        )
    return Filter(seccomp, program, _flags(seccomp), tuple(skipped))


def _add_architectures(
    context: libseccomp.FilterContext, seccomp: Seccomp, tokens: Sequence[int]
) -> None:
    for token in tokens:
        try:
            context.add_arch(token)
        except OSError as error:
            raise ConfigError(
                f"{_PATH}.architectures",
                f"libseccomp refuses architecture {token:#x}: {(error.strerror or '').lower()}",
                cause="architectures of different byte order cannot share a filter"
                if error.errno in (errno.EDOM, errno.EEXIST)
                else "",
            ) from None


def _add(
    context: libseccomp.FilterContext,
    rule: _Rule,
    name: str,
    number: int,
    conditions: list[Comparison],
) -> None:
    try:
        context.add_rule(rule.action, number, conditions)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise ConfigError(
                rule.path,
                f"system call {name} has a rule with another action",
                cause="two rules match the same calls; on x86, rules for socket calls also count "
                "as rules for socketcall, without their arguments",
            ) from None
        if error.errno == errno.ENOMEM:
            raise MinirunError("seccomp: libseccomp is out of memory") from None
        reason = (error.strerror or "").lower()
        raise ConfigError(rule.path, f"libseccomp refuses the rule for {name}: {reason}") from None


def _tokens(seccomp: Seccomp, library: Library) -> list[int]:
    """The architectures' tokens; the native one is always among them, as libseccomp has it."""
    tokens = [library.native_arch()]
    for number, name in enumerate(seccomp.architectures):
        token = library.arch(name.removeprefix("SCMP_ARCH_").lower())
        if token == 0:
            version = ".".join(map(str, library.version))
            raise ConfigError(
                f"{_PATH}.architectures[{number}]", f"libseccomp {version} does not know {name}"
            )
        if token not in tokens:
            tokens.append(token)
    return tokens


def _default_action(seccomp: Seccomp) -> int:
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        raise ConfigError(f"{_PATH}.defaultAction", "SCMP_ACT_NOTIFY cannot be the default action")
    return _action(
        seccomp.default_action,
        seccomp.default_errno_ret,
        f"{_PATH}.defaultAction",
        f"{_PATH}.defaultErrnoRet",
    )


def _action(name: str, data: int | None, path: str, data_path: str) -> int:
    action = ACTIONS.get(name)
    if action is None:
        raise ConfigError(path, f"unknown action {name!r}")
    limit = _DATA_LIMIT.get(name)
    if limit is None:
        if data is not None:
            raise ConfigError(data_path, f"{name} takes no errno")  # spec: MUST fail
        return action
    value = errno.EPERM if data is None else data
    if value > limit:
        raise ConfigError(data_path, f"must be from 0 to {limit}, not {value}")
    return action | value


def _flags(seccomp: Seccomp) -> int:
    if seccomp.flags is None:
        # As runc: without it, kernels before 5.16 slow the container by disabling speculation.
        word = kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW
    else:
        word = 0
        for number, name in enumerate(seccomp.flags):
            if name not in FLAGS:
                raise ConfigError(f"{_PATH}.flags[{number}]", f"unknown flag {name!r}")
            word |= FLAGS[name]
    if seccomp.notifies:
        word |= kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER
        if word & kernel.SECCOMP_FILTER_FLAG_TSYNC:
            # Else one result would stand for a thread and for a descriptor: seccomp(2).
            word |= kernel.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    elif word & kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        raise ConfigError(
            f"{_PATH}.flags",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY",
        )
    return word


def _check_listener(seccomp: Seccomp) -> None:
    if seccomp.listener_metadata is not None and not seccomp.listener_path:
        raise ConfigError(f"{_PATH}.listenerMetadata", "needs listenerPath")
    for number, rule in enumerate(seccomp.syscalls):
        if rule.action != "SCMP_ACT_NOTIFY":
            continue
        path = f"{_PATH}.syscalls[{number}]"
        if not seccomp.listener_path:
            raise ConfigError(f"{path}.action", "SCMP_ACT_NOTIFY needs listenerPath")
        if "write" in rule.names:
            # The listener is announced by a write under the filter: nobody would answer it.
            raise ConfigError(
                f"{path}.names", "SCMP_ACT_NOTIFY cannot be used for the write syscall"
            )


def _rules(seccomp: Seccomp) -> list[_Rule]:
    return [
        _rule(rule, f"{_PATH}.syscalls[{number}]") for number, rule in enumerate(seccomp.syscalls)
    ]


def _rule(rule: SeccompRule, path: str) -> _Rule:
    if not all(rule.names):
        raise ConfigError(f"{path}.names", "a system call without a name")
    action = _action(rule.action, rule.errno_ret, f"{path}.action", f"{path}.errnoRet")
    conditions = [
        _comparison(arg, f"{path}.args[{number}]") for number, arg in enumerate(rule.args)
    ]
    # libseccomp compares an argument once per rule; as in runc, several conditions on one argument
    # make each condition a rule of its own.
    if len({index for index, *_ in conditions}) < len(conditions):
        return _Rule(path, rule.names, action, [[condition] for condition in conditions])
    return _Rule(path, rule.names, action, [conditions])


def _comparison(arg: SeccompArg, path: str) -> Comparison:
    if arg.index >= _ARGUMENTS:
        raise ConfigError(f"{path}.index", f"must be from 0 to {_ARGUMENTS - 1}, not {arg.index}")
    if arg.op not in OPERATORS:
        raise ConfigError(f"{path}.op", f"unknown operator {arg.op!r}")
    return arg.index, OPERATORS[arg.op], arg.value, arg.value_two


def describe(compiled: Filter) -> str:
    """Say in one line what the filter does, for the plan and --explain."""
    source = compiled.source
    names: dict[str, dict[str, None]] = {}
    for rule in source.syscalls:
        verdict = _verdict(rule.action, rule.errno_ret)
        known = (name for name in rule.names if name not in compiled.skipped)
        names.setdefault(verdict, {}).update(dict.fromkeys(known))
    parts = [f"{len(found)} {verdict}" for verdict, found in names.items() if found]
    parts.append(f"the rest {_verdict(source.default_action, source.default_errno_ret)}")
    return f"system calls: {', '.join(parts)} ({compiled.instructions} instructions)"


def _verdict(action: str, data: int | None) -> str:
    if action == "SCMP_ACT_ERRNO":
        number = errno.EPERM if data is None else data
        return f"refused with {errno.errorcode.get(number, number)}"
    return {
        "SCMP_ACT_ALLOW": "allowed",
        "SCMP_ACT_LOG": "allowed and logged",
        "SCMP_ACT_TRAP": "answered with SIGSYS",
        "SCMP_ACT_TRACE": "handed to the tracer",
        "SCMP_ACT_NOTIFY": "handed to the listener",
    }.get(action, "fatal")
