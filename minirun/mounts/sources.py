"""The sources of bind mounts and masks, opened before anything of the container exists."""

from __future__ import annotations

import errno
import os
import stat

from minirun import mountoptions
from minirun.errors import ConfigError
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD, AT_RECURSIVE, failure
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.mountoptions import Options
    from minirun.setup import Setup
    from minirun.spec import Mount


def _sources(setup: Setup) -> bool:
    return bool(setup.spec.mounts or setup.spec.linux.masked_paths)


@step(
    lambda setup: _sources(setup) and not setup.unprivileged,
    why="a source is looked up before anything of the container exists that could lead it astray",
)
def open_sources(setup: Setup) -> None:
    """Open the sources of bind mounts as detached copies"""
    _open_all(setup)


@step(
    lambda setup: _sources(setup) and setup.unprivileged,
    why="a user may copy the mounts of a mount namespace of his own only",
)
def open_sources_inside(setup: Setup) -> None:
    """Open the sources of bind mounts, from a user's own mount namespace"""
    _open_all(setup)


def _open_all(setup: Setup) -> None:
    for number, entry in enumerate(setup.spec.mounts):
        options = mountoptions.parse(entry, f"mounts[{number}]")
        if options.remount:
            continue
        link = _link_at(setup, entry) if options.copy_link else None
        if link is not None:
            setup.links[number] = link
        elif options.bind:
            setup.sources[number] = _open_source(setup, number, entry, options)
    if setup.spec.linux.masked_paths:
        setup.null_source = m.open_tree(AT_FDCWD, "/dev/null", m.OPEN_TREE_CLONE)
        _check_null(setup.null_source)
        # Read-only, or root of a container without a user namespace could chmod the host's node;
        # writing to a device is not writing to its file system.
        m.mount_setattr(
            setup.null_source,
            set_=m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NOEXEC,
            propagation=m.MS_PRIVATE,  # else a second mask on it appears on the host's
        )


def _link_at(setup: Setup, entry: Mount) -> str | None:
    """Return where the source leads if it is a symbolic link."""
    try:
        return os.readlink(os.path.join(setup.bundle, entry.source or ""))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _open_source(setup: Setup, number: int, entry: Mount, options: Options) -> int:
    if not entry.source:
        raise ConfigError(f"mounts[{number}].source", "is required for a bind mount")
    path = os.path.join(setup.bundle, entry.source)
    how = m.OPEN_TREE_CLONE | (AT_RECURSIVE if options.recursive_bind else 0)
    fd = m.open_tree(AT_FDCWD, path, how)
    if not _propagates(setup, options):
        # A copy of a shared mount is its peer, and what is mounted on it appears at the source.
        m.mount_setattr(fd, propagation=m.MS_SLAVE, recursive=True)
    if options.idmap:
        _map_ids(setup, number, entry, fd, options)
    return fd


def _propagates(setup: Setup, options: Options) -> bool:
    """Whether mounts of the container shall reach the host: asked of the root and of the mount."""
    return bool(
        mountoptions.PROPAGATION.get(setup.spec.linux.rootfs_propagation or "", 0) & m.MS_SHARED
        and any(flag & m.MS_SHARED for flag in options.propagation)
    )


def _map_ids(setup: Setup, number: int, entry: Mount, fd: int, options: Options) -> None:
    from minirun import idmap

    joined = setup.namespaces.get("user", -1)
    if joined >= 0 and not entry.uid_mappings:
        # The mappings of the namespace that the container joins.
        m.mount_setattr(
            fd, set_=m.MOUNT_ATTR_IDMAP, userns_fd=joined, recursive=options.recursive_idmap
        )
        return
    uids = entry.uid_mappings or setup.spec.linux.uid_mappings
    gids = entry.gid_mappings or setup.spec.linux.gid_mappings
    if not uids or not gids:
        raise ConfigError(f"mounts[{number}].uidMappings", "an id-mapped mount needs mappings")
    userns = idmap.user_namespace(uids, gids)
    try:
        m.mount_setattr(
            fd, set_=m.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive=options.recursive_idmap
        )
    finally:
        os.close(userns)


def _check_null(fd: int) -> None:
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        raise failure(errno.ENODEV, 'open_tree("/dev/null") which is not character device 1:3')
