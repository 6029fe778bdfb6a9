"""A program of some system calls: the last stretch to execve without an interpreter.

`/proc/self/exe` of a process that executes a container's file is the file that it ran before. Were
that the host's Python, a hostile program interpreter could open it for writing (CVE-2019-5736).
So the last thing that Python does is to become an ELF image made here, in a sealed memfd: a loop
of some instructions over a table of system calls, ending in execve. Nothing of the host is in it;
the calls between seccomp(2) and execve(2) are exactly those of the table; a container that waits to
be started is one page, not an interpreter; and where the process must not be seen by others of the
container's pid namespace before it is harmless, the table holds the clone(2) that enters it.

A row of the table: kind, number, six arguments, the address where to store the result (or 0). A
failed call is reported as 24 bytes, {-1, kind, -errno}, to the report descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from minirun.kernel.c import c_char_p, c_int, c_void_p
from minirun.kernel.libc import call, failure, syscall

REPORT_SIZE = 24

_ROW = struct.Struct("<9Q")
_BASE = 0x400000
_HEADERS = 64 + 56  # Elf64_Ehdr, Elf64_Phdr
_AT_EMPTY_PATH = 0x1000
_TABLE, _REPORT = b"\x11" * 8, b"\x22" * 8  # where the code holds the two addresses

# The loop, assembled: load number and arguments of the row, call, report if the result is above
# -4096, store it if asked, report a clone's parent, next row. The report: kind and result behind
# the mark, write(2), exit_group(127).
_CODE = {
    "x86_64": bytes.fromhex(
        "48bb1111111111111111 49bc2222222222222222"  # mov rbx, table; mov r12, report
        "488b4308 488b7b10 488b7318 488b5320"  # next: mov rax,[rbx+8]; rdi, rsi, rdx
        "4c8b5328 4c8b4330 4c8b4b38 0f05"  # r10, r8, r9; syscall
        "483d01f0ffff 731d"  # cmp rax, -4095; jae report
        "488b4b40 4885c9 7403 488901"  # mov rcx,[rbx+64]; if set: mov [rcx], rax
        "48833b00 7505 4885c0 7506"  # kind 0 and rax set: report
        "4883c348 ebbd"  # add rbx, 72; jmp next
        "488b0b 49894c2408 4989442410"  # report: kind and result into the buffer
        "b801000000 498b3c24 49c70424ffffffff"  # write: the descriptor, then the mark
        "498d3424 ba18000000 0f05"  # rsi = buffer, rdx = 24; syscall
        "b8e7000000 bf7f000000 0f05 0f0b"  # exit_group(127); ud2
    ),
    "aarch64": bytes.fromhex(
        "d3030058 f4030058"  # ldr x19, table; ldr x20, report
        "680640f9 600641a9 620e42a9 641643a9 010000d4"  # next: x8, x0..x5 of the row; svc
        "1ffc3fb1 22010054"  # cmn x0, 4095; b.hs report
        "692240f9 490000b4 200100f9"  # ldr x9,[x19,64]; if set: str x0,[x9]
        "690240f9 490000b5 600000b5"  # kind 0 and x0 set: report
        "73220191 f2ffff17"  # add x19, x19, 72; b next
        "690240f9 898200a9 800240f9"  # report: kind and result; the descriptor
        "09008092 890200f9 e10314aa"  # the mark; x1 = buffer
        "020380d2 080880d2 010000d4"  # write 24 bytes
        "c80b80d2 e00f80d2 010000d4 00000000"  # exit_group(127); udf
        "1111111111111111 2222222222222222"
    ),
}
# A handler of signals: exit_group(128 + signal).
_END = {
    "x86_64": bytes.fromhex("8dbf80000000 b8e7000000 0f05 0f0b"),  # lea edi, [rdi+128]; …; ud2
    "aarch64": bytes.fromhex("00000211 c80b80d2 010000d4 00000000"),  # add w0, w0, 128; …; udf
}
_SA_RESTORER = 0x04000000  # x86-64 makes no frame without it; what it names is never reached
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}

# System call numbers by architecture, where they differ.
_NAMES = (
    "read", "write", "close", "ioctl", "clone", "execve", "fcntl", "setsid", "prctl",
    "rt_sigprocmask", "openat2", "seccomp", "prlimit64", "capset", "rt_sigaction",
)  # fmt: skip
_X86_64 = (0, 1, 3, 16, 56, 59, 72, 112, 157, 14, 437, 317, 302, 126, 13)
_AARCH64 = (63, 64, 57, 29, 220, 221, 25, 157, 167, 135, 437, 277, 261, 91, 134)
NUMBERS = {
    "x86_64": dict(zip(_NAMES, _X86_64, strict=True)),
    "aarch64": dict(zip(_NAMES, _AARCH64, strict=True)),
}

# The kinds of the rows, for reports. Clone must be 0: the code has its parent report the child's
# pid and end.
KINDS = ("clone", *(name for name in _NAMES if name != "clone"))

_execveat = syscall({"x86_64": 322, "aarch64": 281}, c_int, c_char_p, c_void_p, c_void_p, c_int)


class Data:
    """An argument that is the address of bytes, which the image will hold."""

    def __init__(self, content: bytes) -> None:
        self.content = content


class Vector:
    """An argument that is the address of an array of addresses of strings, ended by NULL."""

    def __init__(self, strings: list[bytes]) -> None:
        self.strings = strings


class Filter:
    """An argument that is the address of a struct sock_fprog of this program."""

    def __init__(self, program: bytes) -> None:
        self.program = program


class Result:
    """An argument that is the result of an earlier call: the index of its row."""

    def __init__(self, row: int) -> None:
        self.row = row


class Ending:
    """An argument that is the address of a struct sigaction: exit with 128 and the number."""


class _Image:
    """The bytes of the image from its base, growing."""

    def __init__(self, machine: str, rows: int) -> None:
        self.code = _CODE[machine] + _END[machine]
        self.end = _BASE + _HEADERS + len(_CODE[machine])
        self.body = bytearray()
        # Behind headers and code: the report buffer, then the rows, then what they refer to.
        self.report = _align(_HEADERS + len(self.code))
        self.table = self.report + REPORT_SIZE
        self.start = self.table + rows * _ROW.size

    def place(self, content: bytes) -> int:
        """Append bytes, aligned for pointers; return their address."""
        self.body += b"\0" * (_align(len(self.body)) - len(self.body))
        address = _BASE + self.start + len(self.body)
        self.body += content
        return address

    def address(self, argument: object) -> int:
        if isinstance(argument, int):
            return argument & (1 << 64) - 1
        if isinstance(argument, Data):
            return self.place(argument.content)
        if isinstance(argument, Vector):
            pointers = [self.place(string + b"\0") for string in argument.strings]
            return self.place(struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0))
        if isinstance(argument, Filter):
            code = self.place(argument.program)
            return self.place(struct.pack("<HxxxxxxQ", len(argument.program) // 8, code))
        if isinstance(argument, Ending):
            return self.place(struct.pack("<QQQQ", self.end, _SA_RESTORER, self.end, 0))
        return 0


def _align(offset: int) -> int:
    return offset + 15 & ~15


def build(machine: str, calls: list[tuple[object, ...]], report_fd: int) -> bytes:
    """Make the ELF image of a table of calls: (name, argument, …), the last one an execve.

    Raises KeyError for an architecture without code, ValueError for a vector with a NUL byte.
    """
    image = _Image(machine, len(calls))
    rows = [[0] * 9 for _ in calls]
    for number, (name, *arguments) in enumerate(calls):
        rows[number][0] = KINDS.index(str(name))
        rows[number][1] = NUMBERS[machine][str(name)]
        for position, argument in enumerate(arguments):
            rows[number][2 + position] = image.address(argument)
            if isinstance(argument, Result):
                slot = image.table + number * _ROW.size + 8 * (2 + position)
                rows[argument.row][8] = _BASE + slot
    code = image.code.replace(_TABLE, struct.pack("<Q", _BASE + image.table))
    code = code.replace(_REPORT, struct.pack("<Q", _BASE + image.report))
    size = image.start + len(image.body)
    head = _headers(machine, size) + code
    head += b"\0" * (image.report - len(head)) + struct.pack("<Q16x", report_fd)
    return head + b"".join(_ROW.pack(*row) for row in rows) + bytes(image.body)


def _headers(machine: str, size: int) -> bytes:
    """An ELF header and one segment that is loaded whole (elf(5))."""
    entry = _BASE + _HEADERS
    kind = (2, _ELF_MACHINE[machine], 1)  # ET_EXEC, EV_CURRENT
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    header = ident + struct.pack("<HHIQQQIHHHHHH", *kind, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # PT_LOAD, read, write and execute: the table is written to, and there is nothing to protect
    # in a process that holds nothing but this.
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 0x1000)


def sealed(image: bytes) -> int:
    """Return a descriptor of a memfd with the image that nobody can change any more.

    Raises OSError: EACCES where vm.memfd_noexec forbids executable ones (Linux 6.3).
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("minirun", flags | 0x10)  # MFD_EXEC, since 6.3
    except OSError:
        fd = os.memfd_create("minirun", flags)
    try:
        # A limit on the size of files would cut the image, and what is cut reads as zeros.
        if os.write(fd, image) != len(image):
            raise failure(errno.EFBIG, f"write(memfd, {len(image)} bytes)")
    except BaseException:
        os.close(fd)
        raise
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)  # SEAL, SHRINK, GROW, WRITE
    return fd


def become(fd: int) -> None:
    """Replace this process by the image; returns only by raising. Source: execveat(2).

    Never by a name below /proc: that could be a file which the container chose.
    """
    empty = (c_char_p * 1)(None)
    named = (c_char_p * 2)(b"minirun", None)
    call(
        _execveat,
        (fd, b"", named, empty, _AT_EMPTY_PATH),
        lambda: f'execveat({fd}, "", ["minirun"], [], AT_EMPTY_PATH)',
    )


def read_report(data: bytes) -> tuple[str, int]:
    """Decode what follows the mark of a report: the kind of the call and its result or -errno."""
    kind, result = struct.unpack("<Qq", data)
    if kind >= len(KINDS) or not -4096 < result < 1 << 22:
        raise ValueError("malformed report of the container's process")
    return KINDS[kind], result
