"""What config.json mounts, made detached and attached inside the root, in its order."""

from __future__ import annotations

import errno
import os
import stat

from minirun import inroot, mountoptions
from minirun.errors import ConfigError, MinirunError
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD, AT_RECURSIVE, failure, quote
from minirun.kernel.statfs import PROC_SUPER_MAGIC, fstatfs_type
from minirun.mounts.entries import describe, place, shell_mount
from minirun.mounts.sources import inner_link, open_inner
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.mountoptions import Options
    from minirun.setup import Setup
    from minirun.spec import Mount

# What may be mounted below /proc: files that tools such as lxcfs serve. runc's list.
_PROC_ALLOWED = (
    "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps",
    "/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
)  # fmt: skip

# They have labels of their own, or none. runc's list.
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup2")


@step(
    lambda setup: bool(setup.spec.mounts),
    details=lambda setup: [describe(entry) for entry in setup.spec.mounts],
    shell=lambda setup: [shell_mount(entry, setup.root_path) for entry in setup.spec.mounts],
)
def mount_all(setup: Setup) -> None:
    """Mount what config.json lists, in its order"""
    # spec: "The runtime MUST mount entries in the listed order."
    for number, entry in enumerate(setup.spec.mounts):
        try:
            _mount_one(setup, number, entry)
        except MinirunError:
            raise
        except OSError as error:
            error.call = (  # type: ignore[attr-defined]
                f"mount {entry.source or entry.type} on {quote(entry.destination)}: "
                f"{getattr(error, 'call', error.filename or '?')}"
            )
            raise


def _mount_one(setup: Setup, number: int, entry: Mount) -> None:
    options = mountoptions.parse(entry, f"mounts[{number}]")
    destination = place(setup.root_path, entry)
    if options.remount:
        _remount(setup, entry, options)
        return
    inner = number in setup.inner_sources
    link = inner_link(setup, number) if inner and options.copy_link else setup.links.get(number)
    if link is not None:
        _make_link(setup.rootfd, destination, link)
        return
    if inner:
        fd = open_inner(setup, number, entry, options)
    else:
        fd = setup.sources[number] if options.bind else _new_mount(setup, entry, options)
    try:
        target = _open_target(setup, entry, destination, fd, links=not options.keep_target_link)
        try:
            _check_proc(entry, destination, target, fd)
            if options.copy_up:
                _copy_up(target, fd)
            if options.bind:
                _replace_attributes(setup, fd, options)
            _set_attributes(fd, options, late_ro=_locked_late(setup, entry, options))
            m.move_mount(fd, target)
        finally:
            os.close(target)
        _keep(setup, destination, fd)
        if _locked_late(setup, entry, options):
            setup.to_lock.append(os.dup(fd))
        _set_propagation(fd, options)
    finally:
        os.close(fd)


def _keep(setup: Setup, destination: str, fd: int) -> None:
    """Keep /proc and /sys at hand, of which parts are hidden and locked in the end.

    By their names that could miss: a directory that somebody renames takes its mount along.
    """
    for known in list(setup.kernel_mounts):
        if known == destination or known.startswith(f"{destination}/"):
            os.close(setup.kernel_mounts.pop(known))
    if destination in ("/proc", "/sys"):
        setup.kernel_mounts[destination] = os.dup(fd)


def _make_link(rootfd: int, destination: str, link: str) -> None:
    """Make a symbolic link in the root; one that leads to the same place may be there."""
    above, name = os.path.split(destination)
    parent = inroot.make_directory(rootfd, above)
    try:
        os.symlink(link, name, dir_fd=parent)
    except FileExistsError:
        try:
            same = os.readlink(name, dir_fd=parent) == link
        except OSError:  # EINVAL: no link
            same = False
        if not same:
            raise failure(errno.EEXIST, f"symlinkat({quote(link)}, {quote(name)})") from None
    finally:
        os.close(parent)


def _locked_late(setup: Setup, entry: Mount, options: Options) -> bool:
    """Whether a mount becomes read-only last: other mounts, and nodes, have their places in it."""
    ours = place(setup.root_path, entry) == "/dev" or entry.type == "tmpfs"
    return ours and bool(options.set & m.MOUNT_ATTR_RDONLY)


def _remount(setup: Setup, entry: Mount, options: Options) -> None:
    """Change a mount of the container; without `bind` its file system's own options too."""
    target = inroot.open_path(setup.rootfd, place(setup.root_path, entry))
    try:
        late = _locked_late(setup, entry, options)
        _set_attributes(target, options, late_ro=late)
        if late:
            setup.to_lock.append(os.dup(target))
        if options.superblock or options.data:
            config = m.fspick(target)
            try:
                _set_parameters(config, options)
                m.fsconfig_reconfigure(config)
            finally:
                os.close(config)
        _set_propagation(target, options)
    finally:
        os.close(target)


def _set_propagation(fd: int, options: Options) -> None:
    for flag in options.propagation:
        m.mount_setattr(fd, propagation=flag & ~m.MS_REC, recursive=bool(flag & m.MS_REC))


def _copy_up(target: int, fd: int) -> None:
    from minirun import copyup  # loaded by child.lock_down

    source = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
    try:
        copyup.copy_tree(source, fd)
    finally:
        os.close(source)


def _new_mount(setup: Setup, entry: Mount, options: Options) -> int:
    """Make a file system of the entry's type, attached nowhere yet."""
    kind = "cgroup2" if entry.type == "cgroup" else entry.type
    if not kind:
        raise ConfigError("mounts", f"{entry.destination}: type is required")
    if kind == "cgroup2":
        if not setup.needs_private("cgroup"):
            return _own_group(setup)
        return _new_cgroup(setup, entry, options)
    if kind == "sysfs" and (setup.unprivileged or setup.needs_private("user")):
        try:
            return _new_file_system(setup, entry, kind, options)
        except PermissionError:
            return _host_sysfs(setup, options)
    return _new_file_system(setup, entry, kind, options)


def _host_sysfs(setup: Setup, options: Options) -> int:
    """Bind the host's /sys, read-only.

    The kernel has a new sysfs only for who owns the network namespace that it shows.
    """
    fd = m.open_tree(AT_FDCWD, "/sys", m.OPEN_TREE_CLONE | AT_RECURSIVE)
    # Writable, a user's cgroups would be so too (CVE-2023-25809).
    m.mount_setattr(fd, set_=m.MOUNT_ATTR_RDONLY, propagation=m.MS_SLAVE, recursive=True)
    options.clear &= ~m.MOUNT_ATTR_RDONLY
    options.recursive_clear &= ~m.MOUNT_ATTR_RDONLY
    setup.notes.append("/sys is the host's, read-only: there is no network namespace of its own")
    return fd


def _new_file_system(setup: Setup, entry: Mount, kind: str, options: Options) -> int:
    config = m.fsopen(kind)
    try:
        if entry.source:
            m.fsconfig_string(config, "source", entry.source)
        if kind == "tmpfs":
            _take_mode(setup.rootfd, place(setup.root_path, entry), config)
        if setup.selinux and setup.spec.linux.mount_label and kind not in _UNLABELLED:
            m.fsconfig_string(config, "context", setup.spec.linux.mount_label)
        if options.set & m.MOUNT_ATTR_RDONLY and kind != "tmpfs":
            # Else a disk would be opened for writing, its journal played; a tmpfs is filled first.
            m.fsconfig_flag(config, "ro")
        return _configure(config, options)
    finally:
        os.close(config)


def _take_mode(rootfd: int, destination: str, config: int) -> None:
    """Give a tmpfs the mode of the directory that it covers; an option says otherwise later."""
    try:
        fd = inroot.open_path(rootfd, destination, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return  # as the file system has it: 1777
        raise
    m.fsconfig_string(config, "mode", f"{stat.S_IMODE(os.fstat(fd).st_mode):04o}")
    os.close(fd)


def _set_parameters(config: int, options: Options) -> None:
    for name in options.superblock:
        m.fsconfig_flag(config, name)
    for key, value in options.data:
        if value is None:
            m.fsconfig_flag(config, key)
        else:
            m.fsconfig_string(config, key, value)


def _configure(config: int, options: Options) -> int:
    _set_parameters(config, options)
    m.fsconfig_create(config)
    return m.fsmount(config, 0)


def _new_cgroup(setup: Setup, entry: Mount, options: Options) -> int:
    """Mount cgroup2; where that is refused, bind the container's own group of the host's tree."""
    config = m.fsopen("cgroup2")
    try:
        m.fsconfig_string(config, "source", entry.source or "cgroup")
        return _configure(config, options)
    except OSError as error:
        # EPERM: a user namespace whose cgroup namespace is the host's. EBUSY: no second instance.
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
    finally:
        os.close(config)
    return _own_group(setup)


def _own_group(setup: Setup) -> int:
    """Bind the container's own group, read-only.

    A new mount in the host's cgroup namespace would change the flags of the host's tree, and show
    it whole (CVE-2023-25809).
    """
    path = "/sys/fs/cgroup" + (setup.group.path if setup.group is not None else "")
    fd = m.open_tree(AT_FDCWD, path, m.OPEN_TREE_CLONE | AT_RECURSIVE)
    m.mount_setattr(fd, set_=m.MOUNT_ATTR_RDONLY, recursive=True)
    return fd


def _open_target(
    setup: Setup, entry: Mount, destination: str, fd: int, *, links: bool = True
) -> int:
    """Open, or make, the mount point inside the root, of the source's type.

    Without `links` one that is a symbolic link is not followed; it must be there, as in crun.
    """
    if destination == "/":
        raise ConfigError("mounts", f"{entry.destination}: cannot mount over the root filesystem")
    directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if entry.type in ("proc", "sysfs"):
        return _ordinary_directory(setup.rootfd, destination)
    if not links:
        return inroot.open_path(setup.rootfd, destination, os.O_PATH | os.O_NOFOLLOW)
    if directory:
        return inroot.make_directory(setup.rootfd, destination)
    target = inroot.make_file(setup.rootfd, destination)
    if stat.S_ISDIR(os.fstat(target).st_mode):
        os.close(target)
        # What mount(2) says of it; move_mount(2) has EINVAL for this and much else.
        raise failure(errno.ENOTDIR, f"move_mount(, {quote(destination)})")
    return target


def _ordinary_directory(rootfd: int, destination: str) -> int:
    """Open the target of /proc or /sys: no link anywhere on the way (CVE-2019-19921)."""
    os.close(_guard(rootfd, destination))
    return inroot.open_path(rootfd, destination, os.O_PATH | os.O_DIRECTORY, links=False)


def _guard(rootfd: int, destination: str) -> int:
    try:
        return inroot.open_path(rootfd, destination, os.O_PATH | os.O_DIRECTORY, links=False)
    except FileNotFoundError:
        return inroot.make_directory(rootfd, destination)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    raise MinirunError(f"{destination} must be mounted on ordinary directory")


def _check_proc(entry: Mount, destination: str, target: int, source: int) -> None:
    """Refuse mounts at or below /proc that could stand in for its files (CVE-2019-16884)."""
    if destination == "/proc":
        if fstatfs_type(source) != PROC_SUPER_MAGIC or os.fstat(source).st_ino != 1:
            raise MinirunError(f"{entry.destination}: only a procfs can be mounted there")
        return
    below = destination.startswith("/proc/") or fstatfs_type(target) == PROC_SUPER_MAGIC
    if below and destination not in _PROC_ALLOWED:
        raise MinirunError(f"{entry.destination} cannot be mounted because it is inside /proc")


def _replace_attributes(setup: Setup, fd: int, options: Options) -> None:
    """Find what the options of a bind make of what its source had.

    The copy that is attached was made outside of the user namespace, so nothing is locked in it;
    it is treated as if it were, as with runc, which makes it inside.
    """
    inside = setup.unprivileged or setup.needs_private("user")
    held = mountoptions.held_by(os.fstatvfs(fd).f_flag) if inside and options.given else None
    options.set, options.clear = mountoptions.of_bind(options, held)


def _set_attributes(fd: int, options: Options, *, late_ro: bool) -> None:
    set_ = options.set & ~(m.MOUNT_ATTR_RDONLY if late_ro else 0)
    if set_ or options.clear:
        m.mount_setattr(fd, set_=set_, clear=options.clear)
    if options.recursive_set or options.recursive_clear:
        m.mount_setattr(
            fd, set_=options.recursive_set, clear=options.recursive_clear, recursive=True
        )
