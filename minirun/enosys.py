"""A short seccomp program that answers unknown system calls with ENOSYS.

A system call that is newer than all that a profile names is answered with ENOSYS and not with the
error of the profile's default action: the C library falls back on an older call at ENOSYS only, and
a new one would break every program under an old profile. runc does it since 1.0.0-rc93. Nothing is
permitted by it: a call that it answers does not happen, all others are left to the filter behind.
"""

from __future__ import annotations

import errno
import struct

from minirun.kernel import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.kernel.libseccomp import Library

    Instruction = tuple[int, int, int, int]

# Instructions are (code, jump if true, jump if false, constant); the codes
# are those of include/uapi/linux/bpf_common.h, the offsets those of struct seccomp_data.

_LOAD, _JA, _JEQ, _JGT, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_NO_SUCH_CALL = (_RET, 0, 0, kernel.SECCOMP_RET_ERRNO | errno.ENOSYS)

_X86_64, _X32, _X32_BIT = 0xC000003E, 0x4000003E, 0x40000000
_ARM, _ARM_PRIVATE = 0x40000028, 0x0F0000  # arch/arm/include/uapi/asm/unistd.h: __ARM_NR_BASE
_S390 = (0x16, 0x80000016)


def prologue(library: Library, names: Sequence[str], tokens: Sequence[int]) -> bytes:
    """Return the program to put in front of a filter that names the system calls `names`.

    `tokens` are libseccomp's of the architectures that the filter is for; b"" if it names no call.
    """
    newest = {token: _newest(library, names, token) for token in tokens}
    sections = [
        (token, _section(token, newest)) for token in tokens if newest[token] and token != _X32
    ]
    program: list[Instruction] = []
    for token, body in reversed(sections):
        program = [(_JEQ, 0, len(body) + 1, token), *body, (_JA, 0, 0, len(program)), *program]
    if not program:
        return b""
    return b"".join(struct.pack("=HBBI", *one) for one in [(_LOAD, 0, 0, _ARCH), *program])


def _newest(library: Library, names: Sequence[str], token: int) -> int:
    """The highest number of a system call that the filter names, 0 if it names none."""
    numbers = [library.syscall(name, token) or 0 for name in names]
    if token == _ARM:
        # Calls of ARM's own stand far above the rest and would make everything known.
        numbers = [number for number in numbers if number < _ARM_PRIVATE]
    return max(numbers, default=0)


def _section(token: int, newest: dict[int, int]) -> list[Instruction]:
    """Answer what is newer than `newest`; fall off the end for what the filter is to judge."""
    unknown: list[Instruction] = [(_JGT, 0, 1, newest[token]), _NO_SUCH_CALL]
    load: Instruction = (_LOAD, 0, 0, _NUMBER)
    if token == _ARM:
        return [load, (_JGE, len(unknown), 0, _ARM_PRIVATE), *unknown]
    if token in _S390:
        # Number 0 is how the kernel sees a number that does not fit into the instruction.
        return [load, (_JEQ, 1, 0, 0), *unknown]
    if token != _X86_64:
        return [load, *unknown]
    if not newest.get(_X32):
        return [load, (_JSET, len(unknown), 0, _X32_BIT), *unknown]
    x32: list[Instruction] = [(_JGT, 0, 1, newest[_X32]), _NO_SUCH_CALL]
    return [
        load,
        (_JSET, len(unknown) + 1, 0, _X32_BIT),
        *unknown,
        (_JA, 0, 0, len(x32)),
        *x32,
    ]
