"""exec: entering the namespaces of a container that runs."""

from __future__ import annotations

import os

from minirun.kernel import process, unshare
from minirun.namespaces import FILES, FLAGS
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def differing(pid: int) -> int:
    """Return the CLONE_NEW* flags of the namespaces in which `pid` is and we are not."""
    bits = 0
    for kind, name in FILES.items():
        try:
            theirs = os.stat(f"/proc/{pid}/ns/{name}")
        except FileNotFoundError:
            continue  # a kernel without this kind
        ours = os.stat(f"/proc/self/ns/{name}")
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            bits |= FLAGS[kind]
    return bits


@step(why="all at once by the process's descriptor, so that no recycled pid can stand in for it")
def join_all(setup: Setup) -> None:
    """Join the container's namespaces"""
    if not (setup.own_mounts and setup.join_flags & unshare.CLONE_NEWNS):
        setup.rootfd = _root_of(setup)
    unshare.setns(setup.target_pidfd, setup.join_flags)
    os.close(setup.target_pidfd)
    if setup.join_flags & unshare.CLONE_NEWUSER:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _root_of(setup: Setup) -> int:
    """Open the root of a container that is in the host's mount namespace, or in ours.

    The root of that namespace, where setns(2) leads, is not its own.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(f"/proc/{setup.target_pid}/root", flags)
    process.pidfd_send_signal(setup.target_pidfd, 0)  # the pid was not another's meanwhile
    return fd


@step()
def open_root(setup: Setup) -> None:
    """Open the container's root"""
    if setup.rootfd >= 0:
        os.fchdir(setup.rootfd)
        os.chroot(".")
        os.close(setup.rootfd)
    os.chdir("/")
    setup.rootfd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
