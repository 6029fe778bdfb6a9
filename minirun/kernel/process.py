"""Processes: clone3(2), pidfds, close_range(2), and what a process is told about itself."""

from __future__ import annotations

import os
import struct
import sys

from minirun.kernel.c import (
    Array,
    addressof,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    create_string_buffer,
    interpreter_hook,
    words,
)
from minirun.kernel.libc import call, encode, flags, function, quote, syscall, trace
from minirun.kernel.unshare import CLONE_NAMES

# include/uapi/linux/sched.h
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

_CLONE_NAMES = {
    **CLONE_NAMES,
    "CLONE_PIDFD": CLONE_PIDFD,
    "CLONE_PARENT": CLONE_PARENT,
    "CLONE_CLEAR_SIGHAND": CLONE_CLEAR_SIGHAND,
    "CLONE_INTO_CGROUP": CLONE_INTO_CGROUP,
}

CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

# include/uapi/linux/sched.h; the kernel has reserved 4 and refuses it.
SCHED_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}

# include/uapi/linux/ioprio.h
IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
IOPRIO_CLASS_SHIFT = 13

# include/uapi/linux/mempolicy.h
MPOL_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,  # Linux 5.15
    "MPOL_WEIGHTED_INTERLEAVE": 6,  # Linux 6.9
}
MPOL_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}

PR_NAMES = {name: value for name, value in list(globals().items()) if name.startswith("PR_")}


_clone3 = syscall(435, c_void_p, c_size_t)
_pidfd_send_signal = syscall(424, c_int, c_int, c_void_p, c_uint)
_pidfd_open = syscall(434, c_int, c_uint)
_pidfd_getfd = syscall(438, c_int, c_int, c_uint)
_close_range = syscall(436, c_uint, c_uint, c_uint)
_prctl = function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_sethostname = function("sethostname", c_char_p, c_size_t)
_setdomainname = function("setdomainname", c_char_p, c_size_t)
_personality = function("personality", c_ulong)
_sched_setattr = syscall({"x86_64": 314, "aarch64": 274}, c_int, c_void_p, c_uint)
_ioprio_set = syscall({"x86_64": 251, "aarch64": 30}, c_int, c_int, c_int)
_set_mempolicy = syscall({"x86_64": 238, "aarch64": 237}, c_int, c_void_p, c_ulong)
_rt_sigaction = syscall({"x86_64": 13, "aarch64": 134}, c_int, c_void_p, c_void_p, c_size_t)
_rt_sigprocmask = syscall({"x86_64": 14, "aarch64": 135}, c_int, c_void_p, c_void_p, c_size_t)
_execve = function("execve", c_char_p, c_void_p, c_void_p)

_before_fork = interpreter_hook("PyOS_BeforeFork")
_after_fork_parent = interpreter_hook("PyOS_AfterFork_Parent")
_after_fork_child = interpreter_hook("PyOS_AfterFork_Child")


def clone3(flags_: int, exit_signal: int = 17, cgroup: int | None = None) -> tuple[int, int]:
    """Make a child that goes on from here as after fork(2); return (pid, pidfd), (0, -1) in it.

    `flags_` are CLONE_* bits without CLONE_VM; `cgroup` is the directory of the cgroup v2 group in
    which the child starts (CLONE_INTO_CGROUP, Linux 5.7). With CLONE_PARENT the child's parent is
    ours and `exit_signal` is not used. The interpreter is told as os.fork tells it, so this is safe
    where no other thread runs. Source: clone3(2), Linux 5.3.
    """
    pidfd = c_int(-1)
    flags_ |= CLONE_PIDFD | (0 if cgroup is None else CLONE_INTO_CGROUP)
    signal = 0 if flags_ & CLONE_PARENT else exit_signal
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size, cgroup
    args = words(flags_, addressof(pidfd), 0, 0, signal, 0, 0, 0, 0, 0, cgroup or 0)
    _before_fork()
    pid = -1
    try:
        pid = call(
            _clone3,
            (args, len(args)),
            lambda: (
                f"clone3({{flags={flags(flags_, _CLONE_NAMES)}"
                + ("" if cgroup is None else f", cgroup={cgroup}")
                + "})"
            ),
        )
    finally:
        if pid == 0:
            _after_fork_child()
        else:
            _after_fork_parent()
    return pid, (-1 if pid == 0 else int(pidfd.value))


def pidfd_open(pid: int, flags_: int = 0) -> int:
    """Return a descriptor that stands for the process `pid`. Source: pidfd_open(2), Linux 5.3."""
    return call(_pidfd_open, (pid, flags_), lambda: f"pidfd_open({pid}, {flags_:#x})")


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal a process by descriptor: never one that was given a recycled pid.

    Raises ProcessLookupError if it is gone. Source: pidfd_send_signal(2), Linux 5.1.
    """
    call(
        _pidfd_send_signal,
        (pidfd, signal, None, 0),
        lambda: f"pidfd_send_signal({pidfd}, {signal}, NULL, 0)",
    )


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a copy, close-on-exec, of another process's descriptor `number`.

    Raises PermissionError without the right to trace that process. Source: pidfd_getfd(2),
    Linux 5.6.
    """
    return call(_pidfd_getfd, (pidfd, number, 0), lambda: f"pidfd_getfd({pidfd}, {number}, 0)")


def close_range(first: int, last: int = 0xFFFFFFFF, flags_: int = 0) -> None:
    """Close descriptors, or with CLOSE_RANGE_CLOEXEC mark them. Source: close_range(2), 5.9."""
    names = {"CLOSE_RANGE_UNSHARE": CLOSE_RANGE_UNSHARE, "CLOSE_RANGE_CLOEXEC": CLOSE_RANGE_CLOEXEC}
    call(
        _close_range,
        (first, last, flags_),
        lambda: f"close_range({first}, {last}, {flags(flags_, names)})",
    )


def close_all_but(keep: list[int]) -> None:
    """Close every descriptor that is not listed."""
    first = 0
    for fd in sorted({fd for fd in keep if fd >= 0}):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def prctl(option: int, *args: int) -> int:
    """Call prctl(2); return its result."""
    full = (*args, 0, 0, 0, 0)[:4]
    name = next((name for name, value in PR_NAMES.items() if value == option), str(option))
    return call(_prctl, (option, *full), lambda: f"prctl({', '.join([name, *map(str, args)])})")


def set_name(name: str) -> None:
    """Set the name by which ps shows this process, at most 15 bytes (PR_SET_NAME)."""
    buffer = create_string_buffer((encode(name) or b"")[:15])
    prctl(PR_SET_NAME, addressof(buffer))


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace. Source: sethostname(2)."""
    raw = encode(name) or b""
    call(_sethostname, (raw, len(raw)), lambda: f"sethostname({quote(name)}, {len(raw)})")


def setdomainname(name: str) -> None:
    """Set the NIS domain name of this UTS namespace. Source: setdomainname(2)."""
    raw = encode(name) or b""
    call(_setdomainname, (raw, len(raw)), lambda: f"setdomainname({quote(name)}, {len(raw)})")


def personality(persona: int) -> int:
    """Set the execution domain; return the former one. Source: personality(2)."""
    return call(_personality, (persona,), lambda: f"personality({persona:#x})")


def sched_setattr(
    pid: int,
    policy: int,
    *,
    flags_: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> None:
    """Set scheduling policy and parameters of `pid` (0: this thread). Source: sched_setattr(2)."""
    fields = (policy, flags_, nice, priority, runtime, deadline, period)
    # struct sched_attr as of Linux 5.3: its size first, the utilization clamps last.
    attr = struct.pack("=IIQiIQQQII", 56, *fields, 0, 0)
    names = ("nice", "priority", "runtime", "deadline", "period")
    call(
        _sched_setattr,
        (pid, attr, 0),
        lambda: (
            f"sched_setattr({pid}, {{policy={_name_of(policy, SCHED_POLICIES)}, "
            f"flags={flags(flags_, SCHED_FLAGS)}"
            + "".join(f", {n}={v}" for n, v in zip(names, fields[2:], strict=True) if v)
            + "}, 0)"
        ),
    )


def _name_of(value: int, names: dict[str, int]) -> str:
    return next((name for name, number in names.items() if number == value), str(value))


def ioprio_set(which: int, who: int, priority: int) -> None:
    """Set the I/O class and priority (IOPRIO_PRIO_VALUE) of a process. Source: ioprio_set(2)."""
    call(
        _ioprio_set,
        (which, who, priority),
        lambda: (
            f"ioprio_set({'IOPRIO_WHO_PROCESS' if which == IOPRIO_WHO_PROCESS else which}, {who}, "
            f"{_name_of(priority >> IOPRIO_CLASS_SHIFT, IOPRIO_CLASSES)}"
            f"|{priority & (1 << IOPRIO_CLASS_SHIFT) - 1})"
        ),
    )


def set_mempolicy(mode: int, nodes: int) -> None:
    """Set the NUMA policy of this thread; `nodes` is a bit mask. Source: set_mempolicy(2)."""
    size = max(1, (nodes.bit_length() + 63) // 64) * 8
    mask = nodes.to_bytes(size, sys.byteorder)
    call(
        _set_mempolicy,
        (mode, mask, size * 8 + 1),
        lambda: (
            f"set_mempolicy({_name_of(mode & 0xFFF, MPOL_MODES)}"
            + (f"|{flags(mode & ~0xFFF, MPOL_FLAGS)}" if mode & ~0xFFF else "")
            + f", {nodes:#x}, {size * 8 + 1})"
        ),
    )


ENDING = (1, 2, 3, 15)  # SIGHUP, SIGINT, SIGQUIT, SIGTERM: what asks a process to end


def reset_signals() -> None:
    """Give all 64 signals their default action and unblock them.

    Python ignores SIGPIPE and SIGXFSZ, and ignored signals stay so across execve(2): signal(7).
    """
    default = bytes(32)  # the kernel's struct sigaction: handler, flags, restorer, mask
    for number in range(1, 65):
        if number not in (9, 19):
            _rt_sigaction(number, default, None, 8)
    trace(lambda: "rt_sigaction(1..64, SIG_DFL)")
    call(
        _rt_sigprocmask,
        (2, bytes(8), None, 8),
        lambda: "rt_sigprocmask(SIG_SETMASK, [], NULL, 8)",
    )


def run(argv: list[bytes], limit: int = 4096) -> tuple[int, str]:
    """Run a program of the host with nothing but PATH in its environment, and wait for it.

    Return its exit status (128 and the number for a signal) and the beginning of what it printed.
    """
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        pid, pidfd = clone3(0)
        if pid == 0:
            try:
                null = os.open("/dev/null", os.O_RDONLY)
                for fd, source in ((0, null), (1, output), (2, output)):
                    os.dup2(source, fd)
                reset_signals()
                close_range(3)
                execve(argv[0], string_array(argv), string_array([b"PATH=/usr/sbin:/usr/bin:/bin"]))
            except OSError as error:
                os.write(2, (error.strerror or "").lower().encode())
            finally:
                os._exit(127)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = os.pread(output, limit, 0).decode("utf-8", "replace").strip()
    finally:
        os.close(output)
    return (code if code >= 0 else 128 - code), said


def string_array(values: list[bytes]) -> Array[c_char_p]:
    """Make a C `char *[]` that ends with NULL; refuse NUL bytes in the values."""
    for value in values:
        encode(value)
    return (c_char_p * (len(values) + 1))(*values, None)


def execve(path: bytes, argv: Array[c_char_p], envp: Array[c_char_p]) -> None:
    """Run the program at `path` in this process; returns only by raising. Source: execve(2).

    Unlike os.execve it takes prepared arrays: the environment is a list with an order, and nothing
    is allocated here, where a seccomp filter may already forbid it.
    """
    call(_execve, (path, argv, envp), lambda: f"execve({quote(path)})")
