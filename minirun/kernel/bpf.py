"""bpf(2), as far as a cgroup's device program needs it: load, attach, detach, find.

Every command takes one `union bpf_attr` (include/uapi/linux/bpf.h). It is put together from its
fields as bytes: to declare its seven structures to ctypes takes 1.5 ms.
"""

from __future__ import annotations

import os
import sys

from minirun.kernel.c import addressof, c_int, c_uint, c_void_p, create_string_buffer
from minirun.kernel.libc import call, flags, quote, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_PROG_QUERY = 16

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6

BPF_F_ALLOW_OVERRIDE = 1 << 0
BPF_F_ALLOW_MULTI = 1 << 1
BPF_F_REPLACE = 1 << 2

_ATTACH_NAMES = {
    "BPF_F_ALLOW_OVERRIDE": BPF_F_ALLOW_OVERRIDE,
    "BPF_F_ALLOW_MULTI": BPF_F_ALLOW_MULTI,
    "BPF_F_REPLACE": BPF_F_REPLACE,
}

INSTRUCTION_SIZE = 8
_NAME_SIZE = 16  # BPF_OBJ_NAME_LEN, its NUL included
_INFO_NAME = 64  # offset of struct bpf_prog_info.name
_QUERY_COUNT = 24  # offset of bpf_attr.query.prog_cnt
_MAX_ATTACHED = 64  # kernel/bpf/cgroup.c: BPF_CGROUP_MAX_PROGS


_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "i686": 357,
    "armv7l": 386,
    "ppc64le": 361,
    "s390x": 351,
}
_bpf = syscall(_NUMBERS, c_int, c_void_p, c_uint)


def _u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, sys.byteorder) for value in values)


def _pointer(buffer: Any) -> bytes:
    return addressof(buffer).to_bytes(8, sys.byteorder)


def _command(number: int, fields: bytes, text: str) -> tuple[int, bytes]:
    """Make the call; return its result and the fields as the kernel left them."""
    attr = create_string_buffer(fields, len(fields))
    args = (number, addressof(attr), len(fields))
    return call(_bpf, args, lambda: f"bpf({text})"), attr.raw


def load_device_program(instructions: bytes, name: str, license_text: str = "MIT") -> int:
    """Load a program of type BPF_PROG_TYPE_CGROUP_DEVICE; return its descriptor (O_CLOEXEC).

    `name` has at most 15 of A-Z a-z 0-9 _ and dot. Raises OSError: EPERM without CAP_BPF (before
    5.8 CAP_SYS_ADMIN) or, before 5.11, beyond RLIMIT_MEMLOCK; EINVAL or EACCES when the verifier
    refuses the program, see `verifier_log`.
    """
    return _load(instructions, name, license_text, None)


def verifier_log(instructions: bytes, name: str, license_text: str = "MIT") -> str:
    """Load a program that was refused once more, and return what the verifier says of it."""
    log = create_string_buffer(1 << 16)
    try:
        os.close(_load(instructions, name, license_text, log))
    except OSError as error:
        # What it is refused for is in the log, or in the error of the first try.
        if not log.value:
            return error.strerror or ""
    return log.value.decode("ascii", "replace")


def _load(instructions: bytes, name: str, license_text: str, log: Any) -> int:
    count = len(instructions) // INSTRUCTION_SIZE
    code = create_string_buffer(instructions, len(instructions))
    text = create_string_buffer(license_text.encode("ascii"))
    fields = (
        _u32(BPF_PROG_TYPE_CGROUP_DEVICE, count)
        + _pointer(code)
        + _pointer(text)
        + (_u32(0, 0, 0, 0) if log is None else _u32(1, len(log)) + _pointer(log))
        + _u32(0, 0)  # kern_version, prog_flags
        + name.encode("ascii").ljust(_NAME_SIZE, b"\0")
    )
    shown = f"BPF_PROG_LOAD, {{BPF_PROG_TYPE_CGROUP_DEVICE, insn_cnt={count}, {quote(name)}}}"
    return _command(BPF_PROG_LOAD, fields, shown)[0]


def attach_device_program(cgroup: int, program: int, replaced: int | None = None) -> None:
    """Attach a program to a cgroup (a directory descriptor), beside others (BPF_F_ALLOW_MULTI).

    `replaced` is the descriptor of an attached program that gives way to it in the same instant
    (BPF_F_REPLACE, Linux 5.6). Raises OSError: EBADF when `cgroup` is not a cgroup v2 directory,
    EPERM when a group above allows no program below it, ENOENT when `replaced` is not attached.
    """
    word = BPF_F_ALLOW_MULTI | (0 if replaced is None else BPF_F_REPLACE)
    named = flags(word, _ATTACH_NAMES) + ("" if replaced is None else f", {replaced}")
    _command(
        BPF_PROG_ATTACH,
        _u32(cgroup, program, BPF_CGROUP_DEVICE, word, replaced or 0),
        f"BPF_PROG_ATTACH, {{{cgroup}, {program}, BPF_CGROUP_DEVICE, {named}}}",
    )


def detach_device_program(cgroup: int, program: int) -> None:
    """Detach a program from a cgroup. Raises OSError: ENOENT when it is not attached."""
    _command(
        BPF_PROG_DETACH,
        _u32(cgroup, program, BPF_CGROUP_DEVICE, 0),
        f"BPF_PROG_DETACH, {{{cgroup}, {program}, BPF_CGROUP_DEVICE}}",
    )


def query_device_programs(cgroup: int) -> Sequence[int]:
    """Return the ids of the device programs attached to this cgroup itself. Raises OSError."""
    ids = (c_uint * _MAX_ATTACHED)()
    fields = (
        _u32(cgroup, BPF_CGROUP_DEVICE, 0, 0)  # query_flags, attach_flags
        + _pointer(ids)
        + _u32(len(ids), 0)
    )
    _, left = _command(BPF_PROG_QUERY, fields, f"BPF_PROG_QUERY, {{{cgroup}, BPF_CGROUP_DEVICE}}")
    return list(ids)[: int.from_bytes(left[_QUERY_COUNT : _QUERY_COUNT + 4], sys.byteorder)]


def open_program(identity: int) -> int:
    """Return a descriptor (O_CLOEXEC) of a loaded program.

    Raises OSError: ENOENT when it is gone, EPERM or EACCES when a policy hides it.
    """
    fields = _u32(identity, 0, 0)  # next_id, open_flags
    return _command(BPF_PROG_GET_FD_BY_ID, fields, f"BPF_PROG_GET_FD_BY_ID, {identity}")[0]


def program_name(program: int) -> str:
    """Return the name that a program was loaded with."""
    info = create_string_buffer(_INFO_NAME + _NAME_SIZE)
    fields = _u32(program, len(info)) + _pointer(info)
    _command(BPF_OBJ_GET_INFO_BY_FD, fields, f"BPF_OBJ_GET_INFO_BY_FD, {program}")
    return info.raw[_INFO_NAME:].split(b"\0")[0].decode("ascii", "replace")
