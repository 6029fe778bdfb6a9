"""fstatfs(2): which kind of file system a descriptor lies on."""

from __future__ import annotations

from minirun.kernel.c import Structure, byref, c_byte, c_int, c_long, c_void_p
from minirun.kernel.libc import call, function

# include/uapi/linux/magic.h
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
TMPFS_MAGIC = 0x01021994
PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1

_fstatfs = function("fstatfs", c_int, c_void_p)


class statfs_head(Structure):
    """The first field, alike on all 64-bit Linux; the whole structure is 120 bytes there."""

    _fields_ = (("f_type", c_long), ("rest", c_byte * 248))


def fstatfs_type(fd: int) -> int:
    """Return the magic number of the file system that `fd` (O_PATH is enough) lies on.

    Source: statfs(2).
    """
    head = statfs_head()
    call(_fstatfs, (fd, byref(head)), lambda: f"fstatfs({fd})")
    return int(head.f_type)
