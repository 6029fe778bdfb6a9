"""fstatfs(2): which kind of file system a descriptor lies on."""

from __future__ import annotations

import sys

from minirun.kernel.c import c_int, c_void_p, create_string_buffer
from minirun.kernel.libc import call, function

# include/uapi/linux/magic.h
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
TMPFS_MAGIC = 0x01021994
PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1
SELINUX_MAGIC = 0xF97CFF8C

_fstatfs = function("fstatfs", c_int, c_void_p)


def fstatfs_type(fd: int) -> int:
    """Return the magic number of the file system that `fd` (O_PATH is enough) lies on.

    Source: statfs(2).
    """
    buffer = create_string_buffer(256)  # struct statfs is 120 bytes on 64-bit Linux
    call(_fstatfs, (fd, buffer), lambda: f"fstatfs({fd})")
    return int.from_bytes(buffer.raw[:8], sys.byteorder)  # f_type
