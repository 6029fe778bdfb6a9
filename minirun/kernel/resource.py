"""prlimit(2): resource limits of a process."""

from __future__ import annotations

from minirun.kernel.c import Structure, byref, c_int, c_uint64, c_void_p
from minirun.kernel.libc import call, syscall, uint

# include/uapi/asm-generic/resource.h; the same on x86-64 and arm64.
RLIMITS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


class rlimit64(Structure):
    _fields_ = (("rlim_cur", c_uint64), ("rlim_max", c_uint64))


_prlimit64 = syscall({"x86_64": 302, "aarch64": 261}, c_int, c_int, c_void_p, c_void_p)


def prlimit(pid: int, kind: str, soft: int, hard: int) -> None:
    """Set a limit of the process `pid` (0: this one); 2**64-1 is RLIM_INFINITY. prlimit(2)."""
    limit = rlimit64(uint(soft, 64, kind), uint(hard, 64, kind))
    call(
        _prlimit64,
        (pid, RLIMITS[kind], byref(limit), None),
        lambda: f"prlimit64({pid}, {kind}, {{{soft}, {hard}}}, NULL)",
    )


def limits(kind: str) -> tuple[int, int]:
    """Return this process's soft and hard limit."""
    limit = rlimit64()
    call(
        _prlimit64,
        (0, RLIMITS[kind], None, byref(limit)),
        lambda: f"prlimit64(0, {kind}, NULL, …)",
    )
    return int(limit.rlim_cur), int(limit.rlim_max)
