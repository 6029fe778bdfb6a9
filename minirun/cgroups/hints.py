"""What the kernel means when it refuses a write to cgroupfs: one errno of one file each."""

from __future__ import annotations

import errno

_ANY = ""

# (file, errno): what it means here. `_ANY` stands for files that are not named themselves.
_HINTS = {
    ("cgroup.procs", errno.EBUSY): (
        "the cgroup gives controllers to its children, so it may hold no process itself"
    ),
    ("cgroup.procs", errno.EOPNOTSUPP): "the cgroup is threaded or in an invalid domain",
    ("cgroup.procs", errno.EAGAIN): "a limit on processes above this cgroup is used up",
    ("cgroup.procs", errno.EACCES): (
        "moving a process needs write permission on cgroup.procs of the common ancestor too"
    ),
    ("cgroup.subtree_control", errno.EBUSY): (
        "a cgroup that holds processes cannot give controllers to its children"
    ),
    ("cgroup.subtree_control", errno.EINVAL): (
        "the cpu controller cannot be enabled while a realtime process lies below"
    ),
    ("cpu.max", errno.EINVAL): (
        "quota and period must be 1000 us at least, the period 1 s at most, burst at most the quota"
    ),
    ("cpu.max.burst", errno.EINVAL): "burst must not exceed the quota of cpu.max",
    ("cpu.weight", errno.EINVAL): "the group is idle (cpu.idle is 1) and so has no weight",
    ("cpu.weight", errno.ERANGE): "weights go from 1 to 10000",
    ("cpu.idle", errno.EINVAL): "idle is 0 or 1",
    ("cpuset.cpus", errno.EINVAL): "the list is malformed or names a CPU that does not exist",
    ("cpuset.mems", errno.EINVAL): "the list is malformed or names a node that does not exist",
    ("cpuset.cpus", errno.ERANGE): "the list names a CPU that this kernel cannot have",
    ("cpuset.mems", errno.ERANGE): "the list names a node that this kernel cannot have",
    ("cpuset.cpus", errno.ENODEV): "none of these CPUs is online or allowed by the parent",
    ("cpuset.mems", errno.ENODEV): "none of these nodes is online or allowed by the parent",
    ("io.max", errno.ENODEV): "no whole disk has this number; a partition cannot be throttled",
    ("io.weight", errno.ENODEV): "no whole disk has this number; a partition has no weight",
    ("io.bfq.weight", errno.ENODEV): "no whole disk has this number; a partition has no weight",
    ("io.weight", errno.EOPNOTSUPP): "the disk has no request queue that weights could order",
    ("io.bfq.weight", errno.EOPNOTSUPP): "the disk is not scheduled by BFQ",
    ("io.max", errno.ERANGE): "a rate must be above 0",
    ("rdma.max", errno.ENODEV): "no RDMA device has this name",
    ("rdma.max", errno.EINVAL): "no RDMA device has this name, or the limit is malformed",
    (_ANY, errno.EROFS): "cgroupfs is mounted read-only here, as in most containers",
    (_ANY, errno.EACCES): "this part of the cgroup tree was not delegated to the user",
    (_ANY, errno.EPERM): "this part of the cgroup tree was not delegated to the user",
    (_ANY, errno.ENODEV): "the cgroup was removed meanwhile",
    (_ANY, errno.EINVAL): "the kernel does not take this value",
    (_ANY, errno.ERANGE): "the value is out of range",
    (_ANY, errno.E2BIG): "a write to cgroupfs holds one page at most",
}


def hint(file: str, error: OSError) -> str:
    """Say for people why a write to `file` failed; "" when nothing is known."""
    number = error.errno or 0
    return _HINTS.get((file, number)) or _HINTS.get((_ANY, number), "")
