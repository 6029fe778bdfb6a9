"""Namespaces: unshare(2), setns(2), and the flags that name them (namespaces(7))."""

from __future__ import annotations

from minirun.kernel.c import c_int
from minirun.kernel.libc import call, flags, function

# include/uapi/linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

CLONE_NAMES = {name: value for name, value in list(globals().items()) if name.startswith("CLONE_")}

# include/uapi/linux/nsfs.h: ioctl_ns(2)
NS_GET_NSTYPE = 0xB703

_unshare = function("unshare", c_int)
_setns = function("setns", c_int, c_int)


def unshare(flags_: int) -> None:
    """Move this process to new namespaces; NEWPID and NEWTIME only concern children."""
    call(_unshare, (flags_,), lambda: f"unshare({flags(flags_, CLONE_NAMES)})")


def setns(fd: int, nstype: int) -> None:
    """Join the namespace that `fd` refers to, or with a pidfd all that `nstype` names.

    A non-zero `nstype` makes the kernel check the type. Source: setns(2); pidfd since Linux 5.8.
    """
    call(_setns, (fd, nstype), lambda: f"setns({fd}, {flags(nstype, CLONE_NAMES)})")
