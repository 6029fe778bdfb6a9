"""libseccomp: the library that turns rules about system calls into classic BPF.

It is loaded by its fixed name, and only when `load` is called: a container without a filter needs
it neither at run time nor installed. Failed calls raise OSError with `call` set, as elsewhere here.
"""

from __future__ import annotations

import os

from minirun.kernel import c
from minirun.kernel.c import c_char_p, c_int, c_uint, c_uint32, c_uint64, c_void_p
from minirun.kernel.libc import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    Comparison = tuple[int, int, int, int]

SONAME = "libseccomp.so.2"

# enum scmp_compare (seccomp.h)
SCMP_CMP_NE = 1
SCMP_CMP_LT = 2
SCMP_CMP_LE = 3
SCMP_CMP_EQ = 4
SCMP_CMP_GE = 5
SCMP_CMP_GT = 6
SCMP_CMP_MASKED_EQ = 7

# enum scmp_filter_attr (seccomp.h)
SCMP_FLTATR_CTL_OPTIMIZE = 8

_UNKNOWN = -1  # __NR_SCMP_ERROR
_EEXIST = 17


class scmp_arg_cmp(c.Structure):
    _fields_ = (
        ("arg", c_uint),
        ("op", c_int),
        ("datum_a", c_uint64),
        ("datum_b", c_uint64),
    )


class Library:
    """The loaded library. Raises OSError when it is not installed."""

    def __init__(self) -> None:
        self._library = c.Library(SONAME)
        self._functions: dict[str, Any] = {}
        address = self._function("seccomp_version", restype=c_void_p)()
        major, minor, micro = (c_uint * 3).from_address(address)  # struct scmp_version
        self.version = (int(major), int(minor), int(micro))

    def _function(self, name: str, *argtypes: Any, restype: Any = c_int) -> Any:
        found = self._functions.get(name)
        if found is None:
            found = c.function(name, argtypes, restype, self._library)
            self._functions[name] = found
        return found

    def native_arch(self) -> int:
        """Return the token of the architecture that the library was built for."""
        return int(self._function("seccomp_arch_native", restype=c_uint32)())

    def arch(self, name: str) -> int:
        """Return the token of an architecture by libseccomp's name (`x86_64`), 0 if unknown."""
        entry = self._function("seccomp_arch_resolve_name", c_char_p, restype=c_uint32)
        return int(entry(os.fsencode(name)))

    def syscall(self, name: str, arch: int | None = None) -> int | None:
        """Return the number of a system call, None if the library does not know the name.

        A call that only other architectures have gives a negative number.
        """
        if arch is None:
            entry = self._function("seccomp_syscall_resolve_name", c_char_p)
            number = entry(os.fsencode(name))
        else:
            entry = self._function("seccomp_syscall_resolve_name_arch", c_uint32, c_char_p)
            number = entry(arch, os.fsencode(name))
        return None if number == _UNKNOWN else int(number)

    def filter(self, default_action: int) -> FilterContext:
        """Begin a filter for the native architecture; to be used as a context manager."""
        context = self._function("seccomp_init", c_uint32, restype=c_void_p)(default_action)
        if not context:
            raise failure(22, f"seccomp_init({default_action:#x})")
        return FilterContext(self, context)


class FilterContext:
    """A filter being built: scmp_filter_ctx (seccomp_init(3)), released at the end of `with`."""

    def __init__(self, library: Library, context: int) -> None:
        self._function = library._function
        self._context = context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._function("seccomp_release", c_void_p, restype=None)(self._context)

    def add_arch(self, token: int) -> None:
        """Let the filter hold for another architecture too; twice is once (seccomp_arch_add(3))."""
        result = self._function("seccomp_arch_add", c_void_p, c_uint32)(self._context, token)
        if result != -_EEXIST:
            _check(result, f"seccomp_arch_add({token:#x})")

    def set_attribute(self, attribute: int, value: int) -> None:
        """Set an attribute (seccomp_attr_set(3))."""
        entry = self._function("seccomp_attr_set", c_void_p, c_int, c_uint32)
        _check(entry(self._context, attribute, value), f"seccomp_attr_set({attribute}, {value})")

    def add_rule(self, action: int, number: int, conditions: Sequence[Comparison] = ()) -> None:
        """Add a rule; all `conditions` (argument, operator, datum, datum) must hold.

        What an architecture cannot express is left out for it (seccomp_rule_add(3)).
        """
        array = (scmp_arg_cmp * len(conditions))(*[scmp_arg_cmp(*one) for one in conditions])
        entry = self._function(
            "seccomp_rule_add_array", c_void_p, c_uint32, c_int, c_uint, c_void_p
        )
        result = entry(self._context, action, number, len(conditions), array)
        _check(result, f"seccomp_rule_add({action:#x}, {number}, {len(conditions)})")

    def export(self) -> bytes:
        """Return the program, an array of struct sock_filter (seccomp_export_bpf(3))."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            entry = self._function("seccomp_export_bpf", c_void_p, c_int)
            _check(entry(self._context, fd), "seccomp_export_bpf")
            size = os.fstat(fd).st_size
            program = os.pread(fd, size, 0)
        finally:
            os.close(fd)
        if len(program) != size:
            raise failure(5, "seccomp_export_bpf")
        return program


def _check(result: int, text: str) -> None:
    if result < 0:
        raise failure(-result, text)
