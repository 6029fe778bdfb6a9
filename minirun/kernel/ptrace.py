"""Reading the system call filters of another process: ptrace(2), PTRACE_SECCOMP_GET_FILTER.

Needs CAP_SYS_ADMIN, a caller without a filter of its own, and CONFIG_CHECKPOINT_RESTORE.
"""

from __future__ import annotations

import errno
import os

from minirun.kernel.c import c_int, c_long, c_void_p, create_string_buffer
from minirun.kernel.libc import call, syscall

REQUESTS = {
    "PTRACE_DETACH": 17,
    "PTRACE_SEIZE": 0x4206,
    "PTRACE_INTERRUPT": 0x4207,
    "PTRACE_SECCOMP_GET_FILTER": 0x420C,
}
_WALL = 0x40000000  # wait for threads that are no children as well: wait(2)
_INSTRUCTION = 8  # bytes of a struct sock_filter

_ptrace = syscall({"x86_64": 101, "aarch64": 117}, c_int, c_int, c_long, c_void_p)


def _request(name: str, pid: int, address: int = 0, data: object = None) -> int:
    shown = "NULL" if data is None else "…"
    args = (REQUESTS[name], pid, address, data)
    return call(_ptrace, args, lambda: f"ptrace({name}, {pid}, {address}, {shown})")


def seccomp_filters(pid: int) -> list[bytes]:
    """Return the filters of a process's first thread, the newest first, as BPF instructions.

    It is stopped for a moment. Raises OSError: ESRCH, EPERM, EACCES (the caller has a filter), EIO
    (this kernel cannot tell). Source: ptrace(2), seccomp(2).
    """
    _request("PTRACE_SEIZE", pid)
    try:
        _request("PTRACE_INTERRUPT", pid)
        os.waitpid(pid, _WALL)
        found: list[bytes] = []
        while (one := _filter(pid, len(found))) is not None:
            found.append(one)
    finally:
        _request("PTRACE_DETACH", pid)
    return found


def _filter(pid: int, number: int) -> bytes | None:
    try:
        count = _request("PTRACE_SECCOMP_GET_FILTER", pid, number)
        program = create_string_buffer(count * _INSTRUCTION)
        _request("PTRACE_SECCOMP_GET_FILTER", pid, number, program)
    except OSError as error:
        # ENOENT: there are no more; EINVAL: it has none at all.
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    return bytes(program)
