"""bpf(2), as far as a cgroup's device program needs it: load, attach, detach, find.

Every command takes one `union bpf_attr`; the structures here are its parts, zero beyond what is set
(include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char, c_int, c_uint, c_uint32, c_uint64, c_void_p

from minirun.kernel.libc import call, flags, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
_MAX_ATTACHED = 64  # kernel/bpf/cgroup.c: BPF_CGROUP_MAX_PROGS


class _load(ctypes.Structure):
    _fields_ = (
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_uint64),
        ("license", c_uint64),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * _NAME_SIZE),
    )


class _attach(ctypes.Structure):
    _fields_ = (
        ("target_fd", c_uint32),
        ("attach_bpf_fd", c_uint32),
        ("attach_type", c_uint32),
        ("attach_flags", c_uint32),
        ("replace_bpf_fd", c_uint32),
    )


class _query(ctypes.Structure):
    _fields_ = (
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("prog_cnt", c_uint32),
        ("padding", c_uint32),
    )


class _get_id(ctypes.Structure):
    _fields_ = (("id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32))


class _info(ctypes.Structure):
    _fields_ = (("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64))


class bpf_prog_info(ctypes.Structure):
    """The beginning, up to the name (Linux 4.15)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * _NAME_SIZE),
    )


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


def _command(number: int, attr: ctypes.Structure, text: str) -> int:
    args = (number, ctypes.addressof(attr), ctypes.sizeof(attr))
    return call(_bpf, args, lambda: f"bpf({text})")


def load_device_program(instructions: bytes, name: str, license_text: str = "MIT") -> int:
    """Load a program of type BPF_PROG_TYPE_CGROUP_DEVICE; return its descriptor (O_CLOEXEC).

    `name` has at most 15 of A-Z a-z 0-9 _ and dot. Raises OSError: EPERM without CAP_BPF (before
    5.8 CAP_SYS_ADMIN) or, before 5.11, beyond RLIMIT_MEMLOCK; EINVAL or EACCES when the verifier
    refuses the program, see `verifier_log`.
    """
    attr, _memory = _load_attr(instructions, name, license_text)
    return _command(BPF_PROG_LOAD, attr, _load_text(instructions, name))


def verifier_log(instructions: bytes, name: str, license_text: str = "MIT") -> str:
    """Load a program that was refused once more, and return what the verifier says of it."""
    log = ctypes.create_string_buffer(1 << 16)
    attr, _memory = _load_attr(instructions, name, license_text)
    attr.log_level, attr.log_size, attr.log_buf = 1, len(log), ctypes.addressof(log)
    try:
        os.close(_command(BPF_PROG_LOAD, attr, _load_text(instructions, name)))
    except OSError:
        pass
    return log.value.decode("ascii", "replace")


def _load_text(instructions: bytes, name: str) -> str:
    count = len(instructions) // INSTRUCTION_SIZE
    return f"BPF_PROG_LOAD, {{BPF_PROG_TYPE_CGROUP_DEVICE, insn_cnt={count}, {name!r}}}"


def _load_attr(instructions: bytes, name: str, license_text: str) -> tuple[_load, object]:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(license_text.encode("ascii"))
    attr = _load(
        prog_type=BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(instructions) // INSTRUCTION_SIZE,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(text),
        prog_name=name.encode("ascii"),
    )
    return attr, (code, text)


def attach_device_program(cgroup: int, program: int, replaced: int | None = None) -> None:
    """Attach a program to a cgroup (a directory descriptor), beside others (BPF_F_ALLOW_MULTI).

    `replaced` is the descriptor of an attached program that gives way to it in the same instant
    (BPF_F_REPLACE, Linux 5.6). Raises OSError: EBADF when `cgroup` is not a cgroup v2 directory,
    EPERM when a group above allows no program below it, ENOENT when `replaced` is not attached.
    """
    word = BPF_F_ALLOW_MULTI | (0 if replaced is None else BPF_F_REPLACE)
    attr = _attach(cgroup, program, BPF_CGROUP_DEVICE, word, replaced or 0)
    named = flags(word, _ATTACH_NAMES)
    text = f"BPF_PROG_ATTACH, {{{cgroup}, {program}, BPF_CGROUP_DEVICE, {named}"
    _command(BPF_PROG_ATTACH, attr, f"{text}, {replaced}}}" if replaced is not None else text + "}")


def detach_device_program(cgroup: int, program: int) -> None:
    """Detach a program from a cgroup. Raises OSError: ENOENT when it is not attached."""
    attr = _attach(cgroup, program, BPF_CGROUP_DEVICE)
    _command(BPF_PROG_DETACH, attr, f"BPF_PROG_DETACH, {{{cgroup}, {program}, BPF_CGROUP_DEVICE}}")


def query_device_programs(cgroup: int) -> Sequence[int]:
    """Return the ids of the device programs attached to this cgroup itself. Raises OSError."""
    ids = (c_uint32 * _MAX_ATTACHED)()
    attr = _query(
        target_fd=cgroup,
        attach_type=BPF_CGROUP_DEVICE,
        prog_ids=ctypes.addressof(ids),
        prog_cnt=len(ids),
    )
    _command(BPF_PROG_QUERY, attr, f"BPF_PROG_QUERY, {{{cgroup}, BPF_CGROUP_DEVICE}}")
    return list(ids)[: attr.prog_cnt]


def open_program(identity: int) -> int:
    """Return a descriptor (O_CLOEXEC) of a loaded program.

    Raises OSError: ENOENT when it is gone, EPERM or EACCES when a policy hides it.
    """
    return _command(
        BPF_PROG_GET_FD_BY_ID, _get_id(id=identity), f"BPF_PROG_GET_FD_BY_ID, {identity}"
    )


def program_name(program: int) -> str:
    """Return the name that a program was loaded with."""
    found = bpf_prog_info()
    attr = _info(program, ctypes.sizeof(found), ctypes.addressof(found))
    _command(BPF_OBJ_GET_INFO_BY_FD, attr, f"BPF_OBJ_GET_INFO_BY_FD, {program}")
    return bytes(found.name).decode("ascii", "replace")
