"""exec: entering the namespaces of a container that runs."""

from __future__ import annotations

import os

from minirun.kernel import unshare
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
    unshare.setns(setup.target_pidfd, setup.join_flags)
    os.close(setup.target_pidfd)
    if setup.join_flags & unshare.CLONE_NEWUSER:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


@step()
def open_root(setup: Setup) -> None:
    """Open the container's root"""
    os.chdir("/")
    setup.rootfd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
