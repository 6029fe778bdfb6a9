"""signalfd(2): signals as something to read."""

from __future__ import annotations

import os

from minirun.kernel.c import byref, c_int, c_size_t, c_uint64, c_void_p
from minirun.kernel.libc import call, syscall

_SFD_CLOEXEC = 0o2000000
_SFD_NONBLOCK = 0o4000
_RECORD = 128  # sizeof(struct signalfd_siginfo); its first member is the number

_signalfd4 = syscall({"x86_64": 289, "aarch64": 74}, c_int, c_void_p, c_size_t, c_int)


def signalfd(mask: int) -> int:
    """Return a descriptor from which the blocked signals of `mask` (bit n-1: n) can be read."""
    bits = c_uint64(mask)
    return call(
        _signalfd4,
        (-1, byref(bits), 8, _SFD_CLOEXEC | _SFD_NONBLOCK),
        lambda: f"signalfd4(-1, {mask:#x}, 8, SFD_CLOEXEC|SFD_NONBLOCK)",
    )


def read_signals(fd: int) -> list[int]:
    """Return the numbers of the signals that have come since."""
    try:
        data = os.read(fd, _RECORD * 32)
    except BlockingIOError:
        return []
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), _RECORD)]


def catches(pid: int, number: int) -> bool:
    """Tell whether a process handles a signal itself; False if it is gone.

    Source: proc_pid_status(5), SigCgt.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False
