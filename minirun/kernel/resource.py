"""prlimit(2): resource limits of a process."""

from __future__ import annotations

import struct

from minirun.kernel.c import c_int, c_void_p, create_string_buffer, words
from minirun.kernel.libc import call, syscall, uint

# include/uapi/asm-generic/resource.h; the same on x86-64 and arm64.
RLIMITS = {
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


_prlimit64 = syscall({"x86_64": 302, "aarch64": 261}, c_int, c_int, c_void_p, c_void_p)


def prlimit(pid: int, kind: str, soft: int, hard: int) -> None:
    """Set a limit of the process `pid` (0: this one); 2**64-1 is RLIM_INFINITY. prlimit(2)."""
    limit = words(uint(soft, 64, kind), uint(hard, 64, kind))
    call(
        _prlimit64,
        (pid, RLIMITS[kind], limit, None),
        lambda: f"prlimit64({pid}, {kind}, {{{soft}, {hard}}}, NULL)",
    )


def limits(kind: str) -> tuple[int, int]:
    """Return this process's soft and hard limit."""
    limit = create_string_buffer(16)
    call(
        _prlimit64,
        (0, RLIMITS[kind], None, limit),
        lambda: f"prlimit64(0, {kind}, NULL, …)",
    )
    soft, hard = struct.unpack("=QQ", limit)
    return soft, hard
