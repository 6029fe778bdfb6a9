"""capget(2), capset(2) and the capabilities by name (capabilities(7))."""

from __future__ import annotations

import struct

from minirun.kernel.c import c_void_p, create_string_buffer
from minirun.kernel.libc import call, syscall

# include/uapi/linux/capability.h, in the order of their numbers; 40 came with Linux 5.9.
NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

NUMBERS = {name: number for number, name in enumerate(NAMES)}

CAP_SYS_ADMIN = NUMBERS["CAP_SYS_ADMIN"]

# include/uapi/linux/prctl.h, of PR_CAP_AMBIENT
AMBIENT_RAISE = 2
AMBIENT_LOWER = 3
AMBIENT_CLEAR_ALL = 4

_VERSION_3 = 0x20080522
_HEADER = struct.pack("=Ii", _VERSION_3, 0)  # of this thread


_capget = syscall({"x86_64": 125, "aarch64": 90}, c_void_p, c_void_p)
_capset = syscall({"x86_64": 126, "aarch64": 91}, c_void_p, c_void_p)


def mask(numbers: list[int]) -> int:
    """Make a bit mask of capability numbers."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def names(bits: int) -> list[str]:
    """Name the capabilities of a mask; those newer than this table by number."""
    return [
        NAMES[number] if number < len(NAMES) else str(number)
        for number in range(64)
        if bits >> number & 1
    ]


def capget() -> tuple[int, int, int]:
    """Return the masks (effective, permitted, inheritable) of this thread."""
    data = create_string_buffer(24)
    call(_capget, (_HEADER, data), lambda: "capget(0)")
    low, high = struct.unpack("=3I", data.raw[:12]), struct.unpack("=3I", data.raw[12:])
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def arguments(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """Make the two structures of capset(2), for this thread."""
    masks = (effective, permitted, inheritable)
    low, high = [mask & 0xFFFFFFFF for mask in masks], [mask >> 32 for mask in masks]
    return _HEADER, struct.pack("=6I", *low, *high)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three masks of this thread. Source: capset(2)."""
    call(
        _capset,
        arguments(effective, permitted, inheritable),
        lambda: (
            f"capset({{effective={effective:#x}, permitted={permitted:#x}, "
            f"inheritable={inheritable:#x}}})"
        ),
    )
