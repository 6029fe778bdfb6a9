"""KVM's ioctls (Documentation/virt/kvm/api.rst), as far as a report and a small guest need them.

Every function takes a descriptor and plain values, and raises OSError with `call` set. The
structures go in and out as bytes: their layouts, of include/uapi/linux/kvm.h, stand beside the
calls.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct

from minirun.kernel import c, libc

# exit_reason of struct kvm_run
EXIT_NAMES = {
    0: "UNKNOWN",
    1: "EXCEPTION",
    2: "IO",
    3: "HYPERCALL",
    4: "DEBUG",
    5: "HLT",
    6: "MMIO",
    7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN",
    9: "FAIL_ENTRY",
    10: "INTR",
    17: "INTERNAL_ERROR",
}

# The numbers hold for x86 and arm64; powerpc and mips put the direction's bits elsewhere.
_NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_RUN": 0xAE80,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_STATS_FD": 0xAECE,
}
# Without an argument; _IO() has no direction there either, but its type bits differ from none.
_PLAIN_ON_POWER = 0x20000000

SREGS_SIZE = 312
_CPUID_ENTRY = 40
_MOST_ENTRIES = 4096


def _ioctl(fd: int, name: str, argument: int | bytes | bytearray = 0) -> int:
    number = _NUMBERS[name]
    if number < 1 << 16 and os.uname().machine.startswith(("ppc", "mips")):
        number |= _PLAIN_ON_POWER
    shown = argument if isinstance(argument, int) else "{…}"

    def text() -> str:
        return f"ioctl({fd}, {name}, {shown})"

    try:
        if isinstance(argument, bytearray):
            result = fcntl.ioctl(fd, number, argument, True)
        else:
            result = fcntl.ioctl(fd, number, argument)
    except OSError as error:
        libc.trace(text, -1, error.errno or 0)
        raise libc.failure(error.errno or errno.EIO, text()) from None
    libc.trace(text)
    return result if isinstance(result, int) else 0


def open_device(path: str = "/dev/kvm") -> int:
    """Open the device for reading and writing; what access(2) says is about the real user only.

    Raises OSError: ENOENT, EACCES, EPERM (a device cgroup), ENODEV and ENXIO (no driver behind it).
    """
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def api_version(fd: int) -> int:
    """Return the version of the API: 12."""
    return _ioctl(fd, "KVM_GET_API_VERSION")


def check_extension(fd: int, number: int) -> int:
    """Return what the kernel says of an extension: 0 is no, else yes or a number of its own."""
    return _ioctl(fd, "KVM_CHECK_EXTENSION", number)


def vcpu_mmap_size(fd: int) -> int:
    """Return the size of struct kvm_run and what follows it, in bytes."""
    return _ioctl(fd, "KVM_GET_VCPU_MMAP_SIZE")


def create_vm(fd: int) -> int:
    """Make a machine of the default type; return its descriptor, not inherited by programs.

    Raises OSError: EBUSY where another hypervisor holds the CPU's extension.
    """
    return _ioctl(fd, "KVM_CREATE_VM")


def create_vcpu(vm: int) -> int:
    """Make the first virtual CPU of a machine; return its descriptor."""
    return _ioctl(vm, "KVM_CREATE_VCPU")


def supported_cpuid(fd: int) -> bytes:
    """Return the entries of what KVM gives its guests: 40 bytes each (struct kvm_cpuid_entry2)."""
    count = 128
    while True:
        # Above 1 KiB fcntl passes the buffer itself on, and the kernel's answer comes back in it.
        buffer = bytearray(struct.pack("=II", count, 0) + bytes(count * _CPUID_ENTRY))
        try:
            _ioctl(fd, "KVM_GET_SUPPORTED_CPUID", buffer)
        except OSError as error:
            if error.errno != errno.E2BIG or count >= _MOST_ENTRIES:
                raise
            count *= 2
            continue
        found = int.from_bytes(buffer[:4], "little")
        return bytes(buffer[8 : 8 + found * _CPUID_ENTRY])


def feature_msrs(fd: int) -> dict[int, int]:
    """Return the feature MSRs (KVM_CAP_GET_MSR_FEATURES, 4.17) that can be read, and their values.

    They are read through the device, so that no msr driver and no root is needed.
    """
    buffer = bytearray(struct.pack("=I", 511) + bytes(511 * 4))
    _ioctl(fd, "KVM_GET_MSR_FEATURE_INDEX_LIST", buffer)
    count = min(int.from_bytes(buffer[:4], "little"), 511)
    values = {}
    for index in struct.unpack_from(f"={count}I", buffer, 4):
        one = bytearray(struct.pack("=IIIIQ", 1, 0, index, 0, 0))
        if _ioctl(fd, "KVM_GET_MSRS", one) == 1:
            values[index] = struct.unpack_from("=Q", one, 16)[0]
    return values


def set_memory(vm: int, size: int, address: int) -> None:
    """Give the guest `size` bytes from its address 0: the caller's memory at `address`."""
    region = struct.pack("=IIQQQ", 0, 0, 0, size, address)
    _ioctl(vm, "KVM_SET_USER_MEMORY_REGION", region)


def set_tss_address(vm: int, address: int) -> None:
    """Reserve three pages for Intel's real mode, below 4 GiB and outside the guest's memory."""
    _ioctl(vm, "KVM_SET_TSS_ADDR", address)


def set_cpuid(vcpu: int, entries: bytes) -> None:
    """Give the virtual CPU the features of `entries`, as `supported_cpuid` returned them."""
    count = len(entries) // _CPUID_ENTRY
    _ioctl(vcpu, "KVM_SET_CPUID2", bytearray(struct.pack("=II", count, 0) + entries))


def get_sregs(vcpu: int) -> bytearray:
    """Return struct kvm_sregs: 8 segments of 24 bytes, 2 tables of 16, 7 registers, a bitmap."""
    registers = bytearray(SREGS_SIZE)
    _ioctl(vcpu, "KVM_GET_SREGS", registers)
    return registers


def set_sregs(vcpu: int, registers: bytes | bytearray) -> None:
    """Set struct kvm_sregs; the kernel checks it at the next entry, not here."""
    _ioctl(vcpu, "KVM_SET_SREGS", bytes(registers))


def set_regs(vcpu: int, *, rip: int, rax: int = 0, rcx: int = 0, rsi: int = 0) -> None:
    """Set struct kvm_regs; the flags to their reset value, what is not named to 0."""
    values = [0] * 18
    values[0], values[2], values[4], values[16], values[17] = rax, rcx, rsi, rip, 2
    _ioctl(vcpu, "KVM_SET_REGS", struct.pack("=18Q", *values))


def run(vcpu: int) -> None:
    """Run the guest until it needs the caller. No timeout: who calls this must be killable."""
    _ioctl(vcpu, "KVM_RUN")


def stats(vcpu: int) -> dict[str, int]:
    """Return the kernel's counters of a virtual CPU by name (KVM_CAP_BINARY_STATS_FD, 5.15)."""
    fd = _ioctl(vcpu, "KVM_GET_STATS_FD")
    try:
        _flags, name_size, count, _id, where, data = struct.unpack("=6I", os.pread(fd, 24, 0))
        rows = os.pread(fd, count * (16 + name_size), where)
        found = {}
        for at in range(0, len(rows), 16 + name_size):
            _kind, _exponent, size, offset, _bucket = struct.unpack_from("=IhHII", rows, at)
            name = (
                rows[at + 16 : at + 16 + name_size].partition(b"\0")[0].decode("ascii", "replace")
            )
            if size == 1:
                found[name] = int.from_bytes(os.pread(fd, 8, data + offset), "little")
        return found
    finally:
        os.close(fd)


class Memory:
    """Zeroed memory of this process that a guest can use: `view` and `address`."""

    def __init__(self, size: int) -> None:
        self.view = mmap.mmap(-1, size)
        self.size = size
        self._anchor = c.c_char.from_buffer(self.view)
        self.address = c.addressof(self._anchor)


def map_run(vcpu: int, size: int) -> mmap.mmap:
    """Map struct kvm_run: exit_reason at byte 8, the exit's own data at 32."""
    return mmap.mmap(vcpu, size)
