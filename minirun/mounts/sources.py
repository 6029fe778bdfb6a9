"""The sources of bind mounts and masks, opened before anything of the container exists.

But for those that lie in the root filesystem itself: what is there depends on the mounts before, so
each is opened at its turn, by the kernel bounded by the root (openat2, RESOLVE_IN_ROOT). Where that
takes rights on the host that the container's process has not, the parent does it: it enters the
container's mount namespace for as long as that takes, and sends the mount over a socket.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun import inroot, mountoptions
from minirun.errors import ConfigError
from minirun.kernel import mount as m
from minirun.kernel import process, unshare
from minirun.kernel.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    failure,
)
from minirun.mounts.entries import below, is_bind
from minirun.step import step
from minirun.unixsocket import adopt_fd, pair, send_fd

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
        inner = below(setup.root_path, _path(setup, number, entry)) if options.bind else None
        link = _link_at(setup, entry) if options.copy_link and inner is None else None
        if link is not None:
            setup.links[number] = link
        elif inner is not None:
            setup.inner_sources[number] = inner
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


def _path(setup: Setup, number: int, entry: Mount) -> str:
    if not entry.source:
        raise ConfigError(f"mounts[{number}].source", "is required for a bind mount")
    return os.path.join(setup.bundle, entry.source)


def _open_source(setup: Setup, number: int, entry: Mount, options: Options) -> int:
    path = _path(setup, number, entry)
    fd = m.open_tree(AT_FDCWD, path, _how(options))
    status = os.fstat(fd)
    identity = status.st_dev, status.st_ino
    if setup.launch.sources.get(path, identity) != identity:
        # The path was judged, and leads elsewhere now: a link in a directory others can write to.
        os.close(fd)
        raise ConfigError(f"mounts[{number}].source", f"{path} is not what it was a moment ago")
    return _fitted(setup, number, entry, fd, options)


def _how(options: Options) -> int:
    links = AT_SYMLINK_NOFOLLOW if options.keep_source_link else 0
    return m.OPEN_TREE_CLONE | links | (AT_RECURSIVE if options.recursive_bind else 0)


def _fitted(setup: Setup, number: int, entry: Mount, fd: int, options: Options) -> int:
    """Give a copy of a source what the host's rights are needed for."""
    if not _propagates(setup, options):
        # A copy of a shared mount is its peer, and what is mounted on it appears at the source.
        m.mount_setattr(fd, propagation=m.MS_SLAVE, recursive=True)
    if options.idmap:
        _map_ids(setup, number, entry, fd, options)
    return fd


def inner_link(setup: Setup, number: int) -> str | None:
    """Return where a source in the root filesystem leads, if it is a symbolic link now."""
    flags = os.O_PATH | os.O_NOFOLLOW
    fd = inroot.open_path(setup.rootfd, setup.inner_sources[number], flags)
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def open_inner(setup: Setup, number: int, entry: Mount, options: Options) -> int:
    """Open a source in the root filesystem, as it is now, as a detached copy."""
    if not options.idmap:
        try:
            return _open_inner(setup, number, entry, options, setup.rootfd)
        except PermissionError:
            if setup.helper < 0:
                raise
            # Root of the container may not look there, root of the host may.
    assert setup.channel is not None
    setup.channel.send("source", {"mount": number, "root": setup.rootfd})
    return adopt_fd(setup.helper)


def _open_inner(setup: Setup, number: int, entry: Mount, options: Options, rootfd: int) -> int:
    links = os.O_NOFOLLOW if options.keep_source_link else 0
    fd = inroot.open_path(rootfd, setup.inner_sources[number], os.O_PATH | links)
    try:
        copy = m.open_tree(fd, "", _how(options) | AT_EMPTY_PATH)
    finally:
        os.close(fd)
    return _fitted(setup, number, entry, copy, options)


def _helped(setup: Setup) -> list[str]:
    """List the sources for which the container's process may need the parent."""
    if setup.unprivileged:
        return []
    user = setup.needs_private("user")
    return [
        entry.source
        for entry in setup.spec.mounts
        if entry.source
        and is_bind(entry)
        and (user or entry.uid_mappings or "idmap" in entry.options or "ridmap" in entry.options)
        and below(setup.root_path, os.path.join(setup.bundle, entry.source)) is not None
    ]


@step(
    _helped,
    details=_helped,
    why="root of a user namespace may not look everywhere, and ids are mapped outside",
)
def offer_help(setup: Setup) -> None:
    """Make a socket for mounts that only the parent can open"""
    setup.helping, setup.helper = pair()


def help_with(setup: Setup, number: int, root: int) -> None:
    """Open a source in the container's root filesystem, descriptor `root` of its process.

    The parent's part of `open_inner`.
    """
    if number not in setup.inner_sources:
        raise ConfigError(f"mounts[{number}].source", "is not in the root filesystem")
    entry = setup.spec.mounts[number]
    options = mountoptions.parse(entry, f"mounts[{number}]")
    ours = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc/self/ns/mnt", "/", ".")]
    rootfd = process.pidfd_getfd(setup.pidfd, root)
    try:
        # kernel: a mount is copied from one's own mount namespace only.
        unshare.setns(setup.pidfd, unshare.CLONE_NEWNS)
        try:
            fd = _open_inner(setup, number, entry, options, rootfd)
        finally:
            unshare.setns(ours[0], unshare.CLONE_NEWNS)
            os.fchdir(ours[1])
            os.chroot(".")
            os.fchdir(ours[2])
        send_fd(setup.helping, fd, b"mount")
        os.close(fd)
    finally:
        for each in (*ours, rootfd):
            os.close(each)


def withdraw_help(setup: Setup) -> None:
    """Close both ends: a parent in the foreground stays for as long as its container."""
    for fd in (setup.helping, setup.helper):
        if fd >= 0:
            os.close(fd)
    setup.helping = setup.helper = -1


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
