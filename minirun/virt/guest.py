"""Three tiny guests: real mode, ring 0 and ring 3 of long mode. Do they run, and natively?

Each goes round a loop and leaves by an exit that carries a known value: a write to a port, or to
memory that is not there. How many of its instructions the kernel emulated is told by the kernel's
own counter, insn_emulation (5.15); before that the time per round decides, against the same loop
here.

x86-64 only. It runs in a child (`minirun.virt.child`): KVM_RUN has no timeout.
"""

from __future__ import annotations

import os
import struct
import time

from minirun.kernel import kvm, machinecode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.child import Tell

MODES = ("real", "ring0", "ring3")

_MEMORY = 1 << 20
_ENTRY = 0x8000
_TABLES, _TSS = (0x2000, 0x3000, 0x4000), 0x5000
_NOWHERE = 0x20000000  # no memory there: a write is an exit
_TSS_ADDRESS = 0x0FFBD000
_MAGIC = 0x6D72
_PORT = 0x80

# dec ecx; jnz; then the exit.
_REAL = bytes.fromhex("6649 75fc b8726d e780 f4 ebfd")  # mov ax,0x6d72; out 0x80,ax; hlt; jmp
_LONG = bytes.fromhex("ffc9 75fc 8906 ebfc")  # mov [rsi],eax; jmp
_FEW, _MANY, _HOST = 500, 1_000_000, 1_000_000
_EXITS = 20
_SLOW = 50  # times the host's own pace: emulated, where the kernel does not count


def run_all(tell: Tell) -> None:
    """Run the guests and tell of each; nothing where /dev/kvm cannot be opened or used."""
    if not machinecode.supported():
        tell({"probe": {"skipped": "there is no guest for this architecture"}})
        return
    try:
        fd = kvm.open_device()
    except OSError as error:
        tell({"probe": {"skipped": f"/dev/kvm: {os.strerror(error.errno or 0).lower()}"}})
        return
    pace = _host_pace()
    tell({"probe": {"host_ns": pace, "modes": {}}})
    for mode in MODES:
        tell({"probe": {"modes": {mode: {"tried": True}}}})
        try:
            told = _Guest(fd, mode).report(pace)
        except OSError as error:
            told = {"error": f"{getattr(error, 'call', 'open')}: {os.strerror(error.errno or 0)}"}
        tell({"probe": {"modes": {mode: told}}})
    os.close(fd)


def _host_pace() -> float | None:
    """Nanoseconds of CPU time per round of the loop on this CPU; None where no code may be run."""
    try:
        code = machinecode.Code()
    except OSError:
        return None
    began = time.thread_time_ns()
    code.spin(_HOST)
    return round((time.thread_time_ns() - began) / _HOST, 3)


class _Guest:
    """One machine with one CPU, set to begin in a mode."""

    def __init__(self, fd: int, mode: str) -> None:
        self.mode = mode
        began = time.perf_counter_ns()
        vm = kvm.create_vm(fd)
        # Nothing is closed here: the process ends soon, and destroying a machine takes its time.
        kvm.set_tss_address(vm, _TSS_ADDRESS)
        self.memory = kvm.Memory(_MEMORY)
        kvm.set_memory(vm, _MEMORY, self.memory.address)
        self.cpu = kvm.create_vcpu(vm)
        self.state = kvm.map_run(self.cpu, kvm.vcpu_mmap_size(fd))
        kvm.set_cpuid(self.cpu, kvm.supported_cpuid(fd))
        code = _REAL if mode == "real" else _LONG
        self.memory.view[_ENTRY : _ENTRY + len(code)] = code
        sregs = kvm.get_sregs(self.cpu)
        if mode == "real":
            _real_mode(sregs)
        else:
            _page_tables(self.memory, user=mode == "ring3")
            _long_mode(sregs, ring=3 if mode == "ring3" else 0)
        kvm.set_sregs(self.cpu, sregs)
        self.setup_us = (time.perf_counter_ns() - began) // 1000

    def report(self, pace: float | None) -> dict[str, Any]:
        """Run it; `emulated` is the share of its instructions, None where nothing tells."""
        first = self.go(_FEW)
        told: dict[str, Any] = {"setup_us": self.setup_us, "exit": first["exit"]}
        if not first["right"]:
            return {**told, "ran": False}
        share, count = first["share"], first
        if share is None or share < 0.5:
            if share is not None or (pace and first["ns"] / _FEW < pace * _SLOW * 100):
                count = self.go(_MANY)
                share = count["share"]
            if share is None and pace:
                share = 1.0 if count["ns"] / count["rounds"] > pace * _SLOW else 0.0
        return {
            **told,
            "ran": True,
            "rounds": count["rounds"],
            "ns_per_round": round(count["ns"] / count["rounds"], 3),
            "insn_emulation": count["emulated"],
            "emulated": share,
            "exit_ns": self.exit_cost(),
        }

    def go(self, rounds: int) -> dict[str, Any]:
        """Run the loop once; tell the exit, whether it carried the value, and what was emulated."""
        kvm.set_regs(self.cpu, rip=_ENTRY, rax=_MAGIC, rcx=rounds, rsi=_NOWHERE)
        before = self.emulated()
        began = time.thread_time_ns()
        kvm.run(self.cpu)
        spent = time.thread_time_ns() - began
        reason, right = self.left()
        after = self.emulated()
        count = None if before is None or after is None else after - before
        share = None if count is None else round(min(count / (2 * rounds), 1.0), 4)
        return {"exit": reason, "right": right, "rounds": rounds, "ns": spent,
                "emulated": count, "share": share}  # fmt: skip

    def left(self) -> tuple[str, bool]:
        """By which exit it left, and whether that is the one that the program makes."""
        (number,) = struct.unpack_from("=I", self.state, 8)
        name = kvm.EXIT_NAMES.get(number, str(number))
        if name == "IO":
            out, size, port, _count, where = struct.unpack_from("=BBHIQ", self.state, 32)
            (value,) = struct.unpack_from("=H", self.state, where)
            return name, (out, size, port, value) == (1, 2, _PORT, _MAGIC)
        if name == "MMIO":
            address, data, size, write = struct.unpack_from("=QQIB", self.state, 32)
            return name, (address, data & 0xFFFF, size, write) == (_NOWHERE, _MAGIC, 4, 1)
        return name, False

    def emulated(self) -> int | None:
        """The kernel's count of emulated instructions; None where it has none."""
        try:
            return kvm.stats(self.cpu).get("insn_emulation")
        except OSError:
            return None  # before 5.15: the time tells instead

    def exit_cost(self) -> int:
        """CPU time of leaving the guest and coming back, in nanoseconds: the median of a few."""
        spent = []
        for _ in range(_EXITS):
            began = time.thread_time_ns()
            kvm.run(self.cpu)
            spent.append(time.thread_time_ns() - began)
        return sorted(spent)[_EXITS // 2]


def _segment(selector: int, kind: int, *, ring: int = 0, wide: int = 0, long: int = 0,
             base: int = 0, limit: int = 0xFFFF, system: bool = False) -> bytes:  # fmt: skip
    """A struct kvm_segment (include/uapi/asm/kvm.h)."""
    grain = 1 if limit == 0xFFFFFFFF else 0
    flags = (kind, 1, ring, wide, 0 if system else 1, long, grain, 0, 0, 0)
    return struct.pack("=QIH10B", base, limit, selector, *flags)


def _real_mode(sregs: bytearray) -> None:
    sregs[0:24] = _segment(0, 11)
    for number in range(1, 6):
        sregs[24 * number : 24 * number + 24] = _segment(0, 3)


def _page_tables(memory: kvm.Memory, *, user: bool) -> None:
    """Map the first gibibyte onto itself by pages of 2 MiB."""
    rights = 0x7 if user else 0x3  # present, writable, and for ring 3
    top, middle, low = _TABLES
    memory.view[top : top + 8] = struct.pack("=Q", middle | rights)
    memory.view[middle : middle + 8] = struct.pack("=Q", low | rights)
    entries = (number << 21 | 0x80 | rights for number in range(512))
    memory.view[low : low + 4096] = struct.pack("=512Q", *entries)


def _long_mode(sregs: bytearray, ring: int) -> None:
    """64-bit mode in a ring; there are no descriptor tables, for nothing loads a segment."""
    code, data = (0x33, 0x2B) if ring else (0x08, 0x10)
    sregs[0:24] = _segment(code, 11, ring=ring, long=1, limit=0xFFFFFFFF)
    for number in range(1, 6):
        at = 24 * number
        sregs[at : at + 24] = _segment(data, 3, ring=ring, wide=1, limit=0xFFFFFFFF)
    sregs[144:168] = _segment(0x40, 11, base=_TSS, limit=0x67, system=True)
    cr8, apic_base = struct.unpack_from("=Q8xQ", sregs, 256)
    # CR0: PE MP ET NE WP AM PG; CR4: PAE; EFER: LME LMA.
    control = (0x80050033, 0, _TABLES[0], 0x20, cr8, 0x500, apic_base)
    struct.pack_into("=7Q", sregs, 224, *control)
