"""capget(2), capset(2) and the capabilities by name (capabilities(7))."""

from __future__ import annotations

from minirun.kernel.c import Structure, byref, c_int, c_uint32, c_void_p
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

_VERSION_3 = 0x20080522


class _header(Structure):
    _fields_ = (("version", c_uint32), ("pid", c_int))


class _data(Structure):
    _fields_ = (
        ("effective", c_uint32),
        ("permitted", c_uint32),
        ("inheritable", c_uint32),
    )


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
    header = _header(_VERSION_3, 0)
    data = (_data * 2)()
    call(_capget, (byref(header), byref(data)), lambda: "capget(0)")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three masks of this thread. Source: capset(2)."""
    header = _header(_VERSION_3, 0)
    data = (_data * 2)()
    for half, shift in ((data[0], 0), (data[1], 32)):
        half.effective = effective >> shift & 0xFFFFFFFF
        half.permitted = permitted >> shift & 0xFFFFFFFF
        half.inheritable = inheritable >> shift & 0xFFFFFFFF
    call(
        _capset,
        (byref(header), byref(data)),
        lambda: (
            f"capset({{effective={effective:#x}, permitted={permitted:#x}, "
            f"inheritable={inheritable:#x}}})"
        ),
    )
