"""Mounts: the root filesystem, what config.json mounts in it, and the change of root.

Only the mount API of descriptors is used (fsopen, open_tree, mount_setattr, move_mount): a mount is
made and given its attributes while it is attached nowhere, then attached to a descriptor that was
resolved inside the root. Sources of binds are opened before the first mount, outside the container.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun import copyup, inroot, mountoptions
from minirun.errors import ConfigError, MinirunError
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, failure, quote
from minirun.kernel.statfs import PROC_SUPER_MAGIC, fstatfs_type
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


def clean(path: str) -> str:
    """Make a destination absolute and plain: `a//b/./c/..` is `/a/b` (path.Clean in Go)."""
    done: list[str] = []
    for part in inroot.parts_of(path):
        if part == "..":
            if done:
                done.pop()
        else:
            done.append(part)
    return "/" + "/".join(done)


def describe(entry: Mount) -> str:
    """Say a mount in a line, as the plan shows it."""
    options = f" ({','.join(entry.options)})" if entry.options else ""
    kind = "bind" if is_bind(entry) else entry.type or "?"
    source = f" {entry.source}" if entry.source and entry.source != entry.type else ""
    return f"{kind}{source} on {clean(entry.destination)}{options}"


def is_bind(entry: Mount) -> bool:
    """Whether an entry binds something that is there already."""
    return entry.type == "bind" or any(option in mountoptions.BIND for option in entry.options)


def _shell_mount(entry: Mount) -> str:
    target = f'"$root"{clean(entry.destination)}'
    if "remount" in entry.options:
        words = [option for option in entry.options if option != "remount"]
        return f"mount -o {_sh(','.join(['remount', *words]))} {target}"
    if "copy-symlink" in entry.options and os.path.islink(entry.source or ""):
        return f'mkdir -p "$(dirname {target})" && cp -Pn {_sh(entry.source or "")} {target}'
    if "tmpcopyup" in entry.options:
        # The copy waits aside while the new mount covers where it comes from.
        plain = [option for option in entry.options if option != "tmpcopyup"]
        return (
            f'up=$(mktemp -d) && cp -a {target}/. "$up" && '
            f"{_shell_mount(entry.replace(options=tuple(plain)))} && "
            f'cp -a "$up"/. {target} && rm -r "$up"'
        )
    options = ",".join(entry.options)
    if is_bind(entry):
        how = "--rbind" if "rbind" in entry.options else "--bind"
        source = entry.source or ""
        rest = ",".join(o for o in entry.options if o in mountoptions.ATTRIBUTES)
        remount = f" && mount -o remount,bind,{rest} {target}" if rest else ""
        make = "mkdir -p" if os.path.isdir(source) else f'mkdir -p "$(dirname {target})" && touch'
        return f"{make} {target} && mount {how} {_sh(source)} {target}{remount}"
    kind = "cgroup2" if entry.type == "cgroup" else entry.type or ""
    keep = ",".join(o for o in options.split(",") if (o and not o.startswith("r")) or o == "ro")
    how = f" -o {_sh(keep)}" if keep else ""
    source = _sh(entry.source or kind)
    return f"mkdir -p {target} && mount -t {kind}{how} {source} {target}"


def _sh(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---------------------------------------------------------------- outside: sources


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


# ---------------------------------------------------------------- inside: the root


@step(
    shell=lambda _setup: ["mount --make-rslave /"],
    why="else a mount of the container would appear on the host: mount_namespaces(7)",
)
def stop_propagation(setup: Setup) -> None:
    """Keep mounts from propagating to the host"""
    # kernel: before the first mount of ours.
    m.mount(None, "/", None, m.MS_SLAVE | m.MS_REC)


@step(
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
    lambda setup: bool(setup.spec.mounts),
    details=lambda setup: [describe(entry) for entry in setup.spec.mounts],
    shell=lambda setup: [_shell_mount(entry) for entry in setup.spec.mounts],
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
    destination = clean(entry.destination)
    if number in setup.links:
        _make_link(setup.rootfd, destination, setup.links[number])
        return
    if options.remount:
        _remount(setup.rootfd, destination, options)
        return
    fd = setup.sources[number] if options.bind else _new_mount(setup, entry, options)
    try:
        target = _open_target(setup, entry, destination, fd)
        try:
            _check_proc(entry, destination, target, fd)
            if options.copy_up:
                _copy_up(target, fd)
            _set_attributes(fd, options, late_ro=destination == "/dev")
            m.move_mount(fd, target)
        finally:
            os.close(target)
        _set_propagation(fd, options)
    finally:
        os.close(fd)


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


def _remount(rootfd: int, destination: str, options: Options) -> None:
    """Change a mount of the container; without `bind` its file system's own options too."""
    target = inroot.open_path(rootfd, destination)
    try:
        _set_attributes(target, options, late_ro=destination == "/dev")
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
    config = m.fsopen(kind)
    try:
        if entry.source:
            m.fsconfig_string(config, "source", entry.source)
        if kind == "tmpfs":
            _take_mode(setup.rootfd, clean(entry.destination), config)
        if setup.selinux and setup.spec.linux.mount_label and kind not in _UNLABELLED:
            m.fsconfig_string(config, "context", setup.spec.linux.mount_label)
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


def _open_target(setup: Setup, entry: Mount, destination: str, fd: int) -> int:
    """Open, or make, the mount point inside the root, of the source's type."""
    if destination == "/":
        raise ConfigError("mounts", f"{entry.destination}: cannot mount over the root filesystem")
    directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if entry.type in ("proc", "sysfs"):
        return _ordinary_directory(setup.rootfd, destination)
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


def _set_attributes(fd: int, options: Options, *, late_ro: bool) -> None:
    set_ = options.set & ~(m.MOUNT_ATTR_RDONLY if late_ro else 0)
    if set_ or options.clear:
        m.mount_setattr(fd, set_=set_, clear=options.clear)
    if options.recursive_set or options.recursive_clear:
        m.mount_setattr(
            fd, set_=options.recursive_set, clear=options.recursive_clear, recursive=True
        )


# ---------------------------------------------------------------- inside: the change of root


@step(
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


# ---------------------------------------------------------------- inside: after the change of root


@step(
    lambda setup: any(
        clean(entry.destination) == "/dev" and "ro" in entry.options for entry in setup.spec.mounts
    )
)
def lock_dev(setup: Setup) -> None:
    """Make /dev read-only, now that its nodes are there"""
    fd = inroot.open_path(setup.rootfd, "/dev")
    m.mount_setattr(fd, set_=m.MOUNT_ATTR_RDONLY)
    os.close(fd)


@step(
    lambda setup: setup.spec.root is not None and setup.spec.root.readonly,
    shell=lambda _setup: ["mount -o remount,bind,ro /"],
)
def lock_root(setup: Setup) -> None:
    """Make the root filesystem read-only"""
    m.mount_setattr(setup.rootfd, set_=m.MOUNT_ATTR_RDONLY)


@step(
    lambda setup: bool(setup.spec.linux.readonly_paths),
    details=lambda setup: setup.spec.linux.readonly_paths,
    shell=lambda setup: [
        f"[ ! -e {_sh(path)} ] || {{ mount --bind {_sh(path)} {_sh(path)}"
        f" && mount -o remount,bind,ro {_sh(path)}; }}"
        for path in setup.spec.linux.readonly_paths
    ],
)
def lock_paths(setup: Setup) -> None:
    """Make the read-only paths read-only"""
    for path in setup.spec.linux.readonly_paths:
        target = _existing(setup.rootfd, path)
        if target is None:
            continue
        copy = m.open_tree(target, "", m.OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE)
        m.mount_setattr(copy, set_=m.MOUNT_ATTR_RDONLY, recursive=True)
        m.move_mount(copy, target)
        os.close(copy)
        os.close(target)


@step(
    lambda setup: bool(setup.spec.linux.masked_paths),
    details=lambda setup: setup.spec.linux.masked_paths,
    shell=lambda setup: [
        f"if [ -d {_sh(path)} ]; then mount -t tmpfs -o ro,size=0 tmpfs {_sh(path)}; "
        f"elif [ -e {_sh(path)} ]; then mount --bind /dev/null {_sh(path)}; fi"
        for path in setup.spec.linux.masked_paths
    ],
    why="files that tell of the host or reach into it read as empty",
)
def mask_paths(setup: Setup) -> None:
    """Hide the masked paths"""
    null, empty = setup.null_source, -1
    null_placed = empty_placed = False
    for path in setup.spec.linux.masked_paths:
        target = _existing(setup.rootfd, path)
        if target is None:
            continue
        if stat.S_ISDIR(os.fstat(target).st_mode):
            if empty < 0:
                empty = _empty_directory()
            _place(empty, target, again=empty_placed)
            empty_placed = True
        else:
            _place(null, target, again=null_placed)
            null_placed = True
        os.close(target)


def _empty_directory() -> int:
    config = m.fsopen("tmpfs")
    try:
        for key, value in (
            ("source", "tmpfs"),
            ("size", "4k"),
            ("nr_inodes", "2"),
            ("mode", "555"),
        ):
            m.fsconfig_string(config, key, value)
        m.fsconfig_flag(config, "ro")
        m.fsconfig_create(config)
        return m.fsmount(
            config,
            m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC,
        )
    finally:
        os.close(config)


def _place(source: int, target: int, *, again: bool) -> None:
    """Attach a mount, or a copy of it once it is attached: a detached one cannot be cloned."""
    if not again:
        m.move_mount(source, target)
        return
    copy = m.open_tree(source, "", m.OPEN_TREE_CLONE | AT_EMPTY_PATH)
    m.move_mount(copy, target)
    os.close(copy)


def _existing(rootfd: int, path: str) -> int | None:
    """Open a path to hide or lock; None only if there is nothing (CVE-2025-31133)."""
    try:
        return inroot.open_path(rootfd, path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
