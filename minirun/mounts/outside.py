"""The root filesystem of a container in the host's mount namespace, and that nothing of it is left.

All of the container's mounts are below one: the root filesystem bound on itself. They are the
host's to see, and end with that one: a single umount2(2) of the very mount, known by its number.
"""

from __future__ import annotations

import os

from minirun import state
from minirun.errors import ConfigError, DoesNotExist, StateError
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD, AT_RECURSIVE
from minirun.kernel.statfs import mount_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def bind(setup: Setup) -> None:
    """Bind the root filesystem on itself, and have that undone should the creation fail."""
    assert setup.container is not None
    _refuse_taken(setup)
    fd = m.open_tree(AT_FDCWD, setup.root_path, m.OPEN_TREE_CLONE | AT_RECURSIVE)
    number = mount_id(fd)
    setup.container.save(root_mount=number)  # a create that is killed is undone by delete
    setup.undo.append(lambda: unbind(setup.root_path, number))
    m.move_mount(fd, AT_FDCWD, setup.root_path)
    # kernel: below a shared mount it has become shared itself, move_mount(2); what the container
    # mounts is the host's business, but not that of every namespace which follows the host.
    m.mount_setattr(fd, propagation=m.MS_PRIVATE, recursive=True)
    setup.rootfd = fd


def _refuse_taken(setup: Setup) -> None:
    """Refuse a root filesystem that another such container is using: its end would be ours too."""
    assert setup.container is not None
    fd = os.open(setup.root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number = mount_id(fd)
    finally:
        os.close(fd)
    for name in state.names(setup.container.root):
        try:
            with state.find(setup.container.root, name) as other:
                other.read()
                taken = other.saved.root_mount == number and name != setup.cid
        except (DoesNotExist, StateError):
            continue
        if taken:
            raise ConfigError(
                "root.path",
                f"is the root filesystem of container {name}, in the same mount namespace",
                fix="give each a mount namespace in linux.namespaces, or a root filesystem",
            )


def unbind(path: str, number: int) -> None:
    """Unmount that bind and all that is below it, unless it is no longer what is mounted there."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if mount_id(fd) == number:
            # By descriptor: no other mount can come into its place.
            m.umount2(f"/proc/self/fd/{fd}", m.MNT_DETACH)
    finally:
        os.close(fd)
