"""The root filesystem: its mount, the change of root, and what it is afterwards."""

from __future__ import annotations

import errno
import os

from minirun import mountoptions
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD, AT_RECURSIVE, trace
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def _own(setup: Setup) -> bool:
    return setup.own_mounts


def _hosts(setup: Setup) -> bool:
    return not setup.own_mounts


@step(
    _hosts,
    details=lambda setup: [f"bind {setup.root_path}"],
    why="in the host's mount namespace all mounts of the container lie below it, and go with it",
)
def bind_root_outside(setup: Setup) -> None:
    """Bind the root filesystem on itself, for the host too"""
    from minirun.mounts import outside  # for containers without a mount namespace only

    outside.bind(setup)


@step(
    _own,
    shell=lambda _setup: ["mount --make-rslave /"],
    why="else a mount of the container would appear on the host: mount_namespaces(7)",
)
def stop_propagation(setup: Setup) -> None:
    """Keep mounts from propagating to the host"""
    # kernel: before the first mount of ours.
    m.mount(None, "/", None, m.MS_SLAVE | m.MS_REC)


@step(
    _own,
    details=lambda setup: [f"bind {setup.root_path}"],
    shell=lambda setup: ['mount --rbind "$root" "$root"', 'mount --make-rprivate "$root"'],
    why="pivot_root(2) needs a mount point, and attributes of its own",
)
def bind_root(setup: Setup) -> None:
    """Bind the root filesystem on itself"""
    fd = m.open_tree(AT_FDCWD, setup.root_path, m.OPEN_TREE_CLONE | AT_RECURSIVE)
    kind = mountoptions.PROPAGATION.get(setup.spec.linux.rootfs_propagation or "", 0)
    # spec: a slave "receives propagation events from the host"; once private, it would not.
    follows = bool(kind & m.MS_SLAVE)
    m.mount_setattr(fd, propagation=m.MS_SLAVE if follows else m.MS_PRIVATE, recursive=True)
    m.move_mount(fd, AT_FDCWD, setup.root_path)
    setup.rootfd = fd


@step(
    _hosts,
    why="pivot_root would change the root of every process of the host",
)
def change_root(setup: Setup) -> None:
    """Make the root filesystem the root of this process alone"""
    os.fchdir(setup.rootfd)
    os.chroot(".")
    os.chdir("/")
    trace(lambda: f'fchdir({setup.rootfd}); chroot("."); chdir("/")')


@step(
    _own,
    shell=lambda _setup: [
        'cd "$root"',
        "pivot_root . .",
        "umount -l .",
        "cd /",
    ],
    why="chroot can be left with CAP_SYS_CHROOT; after this the host's mounts are not there at all",
)
def pivot_root(setup: Setup) -> None:
    """Make the root filesystem the root, and let go of the host's"""
    if setup.launch.no_pivot:
        _move_root(setup)
        return
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(setup.rootfd)
    # Old and new root may be the same directory: pivot_root(2), "pivot_root(".", ".")".
    m.pivot_root(".", ".")
    os.fchdir(old)
    # The old root must not send the unmount back to the host, where it may be shared.
    m.mount(None, ".", None, m.MS_SLAVE | m.MS_REC)
    m.umount2(".", m.MNT_DETACH)
    os.close(old)
    os.chdir("/")


def _move_root(setup: Setup) -> None:
    """Move the root's mount over /, for initramfs, where pivot_root cannot work (--no-pivot)."""
    os.fchdir(setup.rootfd)
    # A bare procfs or sysfs that stays reachable below would undo the masks.
    for path in ("/proc", "/sys"):
        try:
            m.umount2(path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.ENOENT):
                raise
    m.mount(".", "/", None, m.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


@step(lambda setup: bool(setup.spec.linux.rootfs_propagation))
def propagate_root(setup: Setup) -> None:
    """Set the propagation of the container's root mount"""
    kind = setup.spec.linux.rootfs_propagation or ""
    flag = mountoptions.PROPAGATION[kind]
    m.mount_setattr(setup.rootfd, propagation=flag & ~m.MS_REC, recursive=bool(flag & m.MS_REC))


@step(
    lambda setup: setup.spec.root is not None and setup.spec.root.readonly,
    shell=lambda _setup: ["mount -o remount,bind,ro /"],
)
def lock_root(setup: Setup) -> None:
    """Make the root filesystem read-only"""
    m.mount_setattr(setup.rootfd, set_=m.MOUNT_ATTR_RDONLY)
