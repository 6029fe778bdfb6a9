"""What a system call filter answers: its classic BPF, run by hand.

Source: the kernel's Documentation/networking/filter.rst and userspace-api/seccomp_filter.rst. Only
what seccomp permits is known: words of struct seccomp_data, arithmetic, jumps, scratch memory.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_ALLOW, _LOG = 0x7FFF0000, 0x7FFC0000
_MASK = 0xFFFFFFFF
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# The numbers that have a system call in Linux 6.12, as spans: first, last.
NUMBERS = {"x86_64": ((0, 334), (424, 462)), "aarch64": ((0, 243), (260, 294), (424, 462))}


class Unreadable(Exception):
    """A filter has an instruction that is not known here."""


def allowed(filters: Sequence[bytes], architecture: str) -> tuple[int, int]:
    """Return how many system calls all filters allow with arguments of 0, and of how many.

    Raises Unreadable.
    """
    numbers = [n for first, last in NUMBERS[architecture] for n in range(first, last + 1)]
    programs = [list(struct.iter_unpack("=HBBI", one)) for one in filters]
    passed = 0
    for number in numbers:
        data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[architecture], 0, *[0] * 6)
        answers = [run(program, data) & 0xFFFF0000 for program in programs]
        passed += all(answer in (_ALLOW, _LOG) for answer in answers)
    return passed, len(numbers)


def run(program: Sequence[tuple[int, int, int, int]], data: bytes) -> int:
    """Run a filter on one struct seccomp_data; return its answer (SECCOMP_RET_*)."""
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, yes, no, k = program[at]
        at += 1
        kind, mode, source = code & 0x07, code & 0xF0, x if code & 0x08 else k
        if code in (0x20, 0x28, 0x30):  # BPF_LD | BPF_ABS: seccomp permits words only
            a = int(struct.unpack_from("=I", data, k)[0])
        elif code in (0x00, 0x80):  # an immediate; the length
            a = k if code == 0x00 else len(data)
        elif code in (0x01, 0x81):
            x = k if code == 0x01 else len(data)
        elif code in (0x60, 0x61):
            a, x = (memory[k], x) if code == 0x60 else (a, memory[k])
        elif code in (0x02, 0x03):
            memory[k] = a if code == 0x02 else x
        elif kind == 0x04:
            a = _arithmetic(mode, a, source)
        elif kind == 0x05:
            at += k if mode == 0 else yes if _jumps(mode, a, source) else no
        elif kind == 0x06:
            return a if code & 0x18 == 0x10 else k
        elif code in (0x07, 0x87):
            a, x = (a, a) if code == 0x07 else (x, x)
        else:
            raise Unreadable(f"instruction {code:#x}")


def _arithmetic(mode: int, a: int, source: int) -> int:
    operations = {
        0x00: lambda: a + source,
        0x10: lambda: a - source,
        0x20: lambda: a * source,
        0x30: lambda: a // source if source else 0,
        0x40: lambda: a | source,
        0x50: lambda: a & source,
        0x60: lambda: a << (source & 31),
        0x70: lambda: a >> (source & 31),
        0x80: lambda: -a,
        0xA0: lambda: a ^ source,
    }
    if mode not in operations:
        raise Unreadable(f"arithmetic {mode:#x}")
    return operations[mode]() & _MASK


def _jumps(mode: int, a: int, source: int) -> bool:
    if mode == 0x10:
        return a == source
    if mode == 0x20:
        return a > source
    if mode == 0x30:
        return a >= source
    if mode == 0x40:
        return bool(a & source)
    raise Unreadable(f"jump {mode:#x}")
