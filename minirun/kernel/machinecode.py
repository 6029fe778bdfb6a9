"""Instructions that Python has no words for, run from a page that is never writable and executable.

x86-64 only; elsewhere ENOSYS. The page is a memfd's (Linux 3.17) mapped for reading and executing;
where policy forbids that (vm.memfd_noexec, SELinux execmem, PR_SET_MDWE) an anonymous page is tried
that is written first and made executable then. An instruction may fault all the same: CPUID does
where it is trapped (arch_prctl(2), ARCH_SET_CPUID). So call these in a process that may die.
"""

from __future__ import annotations

import errno
import os

from minirun.kernel import c, libc
from minirun.kernel.c import c_int, c_long, c_size_t, c_uint32, c_uint64, c_void_p

_PAGE = 4096
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS = 0x02, 0x20
_MFD_EXEC = 0x10  # since 6.3; EINVAL before
_SLOT = 64

# Each begins with endbr64, and keeps rbx, which CPUID overwrites and its caller owns.
_CODE = (
    # void cpuid(edi leaf, esi subleaf, rdx result[4])
    "f30f1efa 53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3",
    # void again(rdi count): CPUID of leaf 0, count times
    "f30f1efa 53 4989f8 31c0 31c9 0fa2 49ffc8 75f5 5b c3",
    # void spin(edi count): dec edi; jnz
    "f30f1efa ffcf 75fc c3",
)

_mmap = libc.function("mmap", c_void_p, c_size_t, c_int, c_int, c_int, c_long, restype=c.c_long)
_mprotect = libc.function("mprotect", c_void_p, c_size_t, c_int)
_memmove = libc.function("memmove", c_void_p, c.c_char_p, c_size_t, restype=c_void_p)


def supported() -> bool:
    """Tell whether there is code for this machine."""
    return os.uname().machine == "x86_64"


class Code:
    """The code, mapped. `how` says by which way: "memfd" or "mprotect"."""

    def __init__(self) -> None:
        """Map it. Raises OSError: ENOSYS off x86-64, EACCES or EPERM where policy forbids it."""
        if not supported():
            raise libc.failure(errno.ENOSYS, "mmap(PROT_EXEC)")
        body = b"".join(bytes.fromhex(one).ljust(_SLOT, b"\xcc") for one in _CODE)
        body = body.ljust(_PAGE, b"\xcc")
        try:
            self.how, base = "memfd", _from_memfd(body)
        except OSError:
            self.how, base = "mprotect", _from_anonymous(body)
        void = (None,)
        self._cpuid = c.function_at(base, (c_uint32, c_uint32, c_void_p), *void)
        self._again = c.function_at(base + _SLOT, (c_uint64,), *void)
        self._spin = c.function_at(base + 2 * _SLOT, (c_uint32,), *void)
        self._registers = (c_uint32 * 4)()

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Execute CPUID on whatever CPU this runs on; return EAX, EBX, ECX and EDX."""
        self._cpuid(leaf, subleaf, c.addressof(self._registers))
        one, two, three, four = self._registers
        return one, two, three, four

    def cpuid_again(self, count: int) -> None:
        """Execute CPUID `count` times, to be timed by the caller."""
        self._again(count)

    def spin(self, count: int) -> None:
        """Go round a loop of two instructions `count` times, to be timed by the caller."""
        self._spin(count)


def _from_memfd(body: bytes) -> int:
    try:
        fd = os.memfd_create("minirun-code", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("minirun-code", os.MFD_CLOEXEC)
    try:
        os.write(fd, body)
        return _map(_PROT_READ | _PROT_EXEC, _MAP_PRIVATE, fd)
    finally:
        os.close(fd)


def _from_anonymous(body: bytes) -> int:
    base = _map(_PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1)
    _memmove(base, body, len(body))
    protection = _PROT_READ | _PROT_EXEC
    libc.call(
        _mprotect,
        (base, _PAGE, protection),
        lambda: f"mprotect({base:#x}, {_PAGE}, PROT_READ|PROT_EXEC)",
    )
    return base


def _map(protection: int, flags: int, fd: int) -> int:
    return libc.call(
        _mmap,
        (None, _PAGE, protection, flags, fd, 0),
        lambda: f"mmap(NULL, {_PAGE}, {protection:#x}, {flags:#x}, {fd}, 0)",
    )


def glibc_leaf(index: int) -> tuple[int, int, int, int]:
    """Return CPUID as glibc read it when the process started (2.33, <sys/platform/x86.h>).

    `index` 0 is leaf 1, 1 leaf 7, 2 leaf 0x80000001. Needs no executable page. Raises OSError:
    ENOSYS where the C library has none.
    """
    try:
        look = c.function("__x86_get_cpuid_feature_leaf", (c_uint32,), c_void_p)
    except AttributeError:
        raise libc.failure(errno.ENOSYS, "__x86_get_cpuid_feature_leaf()") from None
    address = look(index)
    if not address:
        raise libc.failure(errno.EINVAL, f"__x86_get_cpuid_feature_leaf({index})")
    one, two, three, four = (c_uint32 * 4).from_address(address)
    return one, two, three, four
