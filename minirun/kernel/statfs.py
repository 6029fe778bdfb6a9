"""fstatfs(2), statx(2): which file system, and which mount, a descriptor lies on."""

from __future__ import annotations

import sys

from minirun.kernel.c import c_char_p, c_int, c_uint, c_void_p, create_string_buffer
from minirun.kernel.libc import AT_EMPTY_PATH, call, function, syscall

# include/uapi/linux/magic.h
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1
SELINUX_MAGIC = 0xF97CFF8C

# include/uapi/linux/stat.h
STATX_MNT_ID = 0x1000
STATX_MNT_ID_UNIQUE = 0x4000
_STX_MNT_ID = 144  # its offset in struct statx

_fstatfs = function("fstatfs", c_int, c_void_p)
_statx = syscall({"x86_64": 332, "aarch64": 291}, c_int, c_char_p, c_int, c_uint, c_void_p)


def fstatfs_type(fd: int) -> int:
    """Return the magic number of the file system that `fd` (O_PATH is enough) lies on.

    Source: statfs(2).
    """
    buffer = create_string_buffer(256)  # struct statfs is 120 bytes on 64-bit Linux
    call(_fstatfs, (fd, buffer), lambda: f"fstatfs({fd})")
    return int.from_bytes(buffer.raw[:8], sys.byteorder)  # f_type


def mount_id(fd: int) -> int:
    """Return the number of the mount that `fd` lies on: never another's since Linux 6.8.

    Before, that of /proc/self/mountinfo, which a later mount may be given. Source: statx(2), 5.8.
    """
    buffer = create_string_buffer(256)
    mask = STATX_MNT_ID | STATX_MNT_ID_UNIQUE
    call(
        _statx,
        (fd, b"", AT_EMPTY_PATH, mask, buffer),
        lambda: f'statx({fd}, "", AT_EMPTY_PATH, STATX_MNT_ID|STATX_MNT_ID_UNIQUE)',
    )
    return int.from_bytes(buffer.raw[_STX_MNT_ID : _STX_MNT_ID + 8], sys.byteorder)
