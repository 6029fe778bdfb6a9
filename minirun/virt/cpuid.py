"""The CPU's own word: CPUID, by the instruction, the kernel's device or the C library.

The instruction is executed in a child, for where it is trapped it faults. What it answers is what
the hypervisor lets be seen, which /proc/cpuinfo, edited by the kernel, may deny.
"""

from __future__ import annotations

import os
import struct
import time

from minirun.kernel import machinecode
from minirun.virt import child
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Look = Callable[[int, int], tuple[int, int, int, int]]
    Registers = list[int]

HYPERVISOR_BIT = 31  # of leaf 1, ECX
_BASES = range(0x40000000, 0x40010000, 0x100)  # where the kernel looks: hypervisor_cpuid_base()
_PER_BASE = 0xD
_ROUNDS, _ROUND = 5, 20


def read() -> dict[str, Any]:
    """Read all leaves that matter, by the best way there is.

    {"how": "memfd|mprotect|device|glibc", "leaves": {"1.0": [EAX, EBX, ECX, EDX], …}, "ns": cost of
    one CPUID or None, "refused": why a better way did not work}. Raises Unknown when none did.
    """
    refused: list[str] = []
    for way in (_by_instruction, _by_device, _by_glibc):
        try:
            return {**way(), "refused": "; ".join(refused)}
        except (OSError, Unknown) as error:
            refused.append(f"{way.__name__.removeprefix('_by_')}: {error}")
    raise Unknown("CPUID: " + "; ".join(refused))


def _by_instruction() -> dict[str, Any]:
    if not machinecode.supported():
        raise Unknown("no such instruction on this architecture")
    found = child.run([_execute], limit=2)
    if "leaves" not in found:
        raise Unknown(found.get("error") or f"the process {found.get('ended', 'said nothing')}")
    return {"how": found["how"], "leaves": found["leaves"], "ns": found.get("ns")}


def _execute(tell: child.Tell) -> None:
    """In the child: pinned to one CPU, for those of a hybrid processor differ."""
    code = machinecode.Code()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tell({"how": code.how, "leaves": leaves(code.cpuid)})
    best = min(_timed(code) for _ in range(_ROUNDS))
    tell({"ns": best})


def _timed(code: machinecode.Code) -> int:
    began = time.thread_time_ns()
    code.cpuid_again(_ROUND)
    return (time.thread_time_ns() - began) // _ROUND


def _by_device() -> dict[str, Any]:
    fd = os.open("/dev/cpu/0/cpuid", os.O_RDONLY | os.O_CLOEXEC)
    try:

        def look(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
            one, two, three, four = struct.unpack("=4I", os.pread(fd, 16, leaf | subleaf << 32))
            return one, two, three, four

        return {"how": "device", "leaves": leaves(look), "ns": None}
    finally:
        os.close(fd)


def _by_glibc() -> dict[str, Any]:
    found = {
        name: list(machinecode.glibc_leaf(index))
        for index, name in enumerate(("1.0", "7.0", "80000001.0"))
    }
    return {"how": "glibc", "leaves": found, "ns": None}


def leaves(look: Look) -> dict[str, Registers]:
    """Read the leaves that matter: vendor, features, encryption, and all hypervisors' leaves."""
    found: dict[str, Registers] = {}

    def keep(leaf: int, subleaf: int = 0) -> Registers:
        registers = list(look(leaf, subleaf))
        found[f"{leaf:x}.{subleaf:x}"] = registers
        return registers

    highest = keep(0)[0]
    features = keep(1)[2]
    for leaf in (7, 0x12, 0x21):
        if leaf <= highest:
            keep(leaf)
    top = keep(0x80000000)[0]
    for leaf in (0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x8000000A, 0x8000001F):
        if 0x80000000 <= leaf <= top < 0x80010000:
            keep(leaf)
    # Without a hypervisor Intel's answer there is that of the highest leaf: no signature.
    if features >> HYPERVISOR_BIT & 1:
        for base in _BASES:
            first = list(look(base, 0))
            if base <= first[0] < base + 0x100 and signature(first):
                found[f"{base:x}.0"] = first
                for leaf in range(base + 1, min(first[0], base + _PER_BASE) + 1):
                    keep(leaf)
    return found


def signature(registers: Registers) -> str:
    """Return the signature in EBX, ECX, EDX; "" if it is not text."""
    raw = struct.pack("=3I", *registers[1:4]).rstrip(b"\0")
    return raw.decode("ascii") if raw.isascii() and raw.decode("ascii").isprintable() else ""
