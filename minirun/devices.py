"""Device nodes and links of the container's /dev (config-linux.md, "Default Devices")."""

from __future__ import annotations

import errno
import os
import stat

from minirun import inroot
from minirun.errors import ConfigError, MinirunError
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD, failure, quote
from minirun.spec import Device
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

DEFAULT = tuple(
    Device(path=f"/dev/{name}", type="c", major=major, minor=minor, file_mode=0o666)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)

_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)

_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def listed(setup: Setup) -> list[Device]:
    """All nodes of the container: the defaults, overridden by those of config.json."""
    own = [_without_slash(device) for device in setup.spec.linux.devices]
    # The terminals are those of the container's own devpts: a link, whatever the config says.
    own = [device for device in own if device.path != "/dev/ptmx"]
    nodes = {device.path: device for device in (*DEFAULT, *own)}
    return list(nodes.values())


def _without_slash(device: Device) -> Device:
    """Take the path as runc and crun do, for whom /dev/x/ is /dev/x."""
    return device.replace(path=device.path.rstrip("/")) if device.path.endswith("/") else device


def own_dev(setup: Setup) -> bool:
    """Whether /dev is the container's to fill: not where the config binds one there."""
    return not any(
        entry.destination.rstrip("/") == "/dev"
        and (entry.type == "bind" or "bind" in entry.options or "rbind" in entry.options)
        for entry in setup.spec.mounts
    )


def _describe(setup: Setup) -> list[str]:
    return [f"{one.path} {one.type} {one.major}:{one.minor}" for one in listed(setup)]


def _shell(setup: Setup) -> list[str]:
    lines = [
        f'[ -e "$root"{quoted(one.path)} ] || '
        f'mknod -m {one.file_mode or 0o666:o} "$root"{quoted(one.path)} '
        + (one.type if one.type == "p" else f"{one.type} {one.major} {one.minor}")
        for one in listed(setup)
    ]
    return lines + [f'ln -sfn {target} "$root/dev/{name}"' for name, target in _LINKS]


def _bound(setup: Setup) -> bool:
    inside = any(one.type == "user" for one in setup.spec.linux.namespaces)
    return own_dev(setup) and (inside or setup.unprivileged)


@step(
    lambda setup: _bound(setup) and not setup.unprivileged,
    why="mknod(2) is refused in a user namespace, so the host's nodes are bound",
)
def open_nodes(setup: Setup) -> None:
    """Open the host's device nodes"""
    _open_all(setup)


@step(
    lambda setup: _bound(setup) and setup.unprivileged,
    why="a user may copy the mounts of a mount namespace of his own only",
)
def open_nodes_inside(setup: Setup) -> None:
    """Open the host's device nodes, from a user's own mount namespace"""
    _open_all(setup)


def _open_all(setup: Setup) -> None:
    for device in listed(setup):
        if device.type == "p":
            continue
        fd = m.open_tree(AT_FDCWD, device.path, m.OPEN_TREE_CLONE)
        _check_node(os.fstat(fd), device)
        # Private: what the container mounts on its node must not appear on the host's.
        attributes = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NOEXEC
        m.mount_setattr(fd, set_=attributes, propagation=m.MS_PRIVATE)
        setup.device_sources[device.path] = fd


def _check_node(status: os.stat_result, device: Device) -> None:
    kind = stat.S_IFMT(status.st_mode) == _TYPES[device.type]
    number = device.type == "p" or status.st_rdev == os.makedev(device.major, device.minor)
    if not kind or not number:
        raise MinirunError(
            f"{device.path} exists and is not device {device.type} {device.major}:{device.minor}"
        )


@step(own_dev, details=_describe, shell=_shell)
def create(setup: Setup) -> None:
    """Make the device nodes and links of /dev"""
    dev = _open_dev(setup.rootfd)
    try:
        for device in listed(setup):
            _create_node(setup, device)
        for name, target in _LINKS:
            _link(dev, name, target)
    finally:
        os.close(dev)


def _open_dev(rootfd: int) -> int:
    """Open /dev, which must be a directory and no link (CVE-2026-41579)."""
    try:
        return inroot.open_path(rootfd, "/dev", os.O_PATH | os.O_DIRECTORY, links=False)
    except FileNotFoundError:
        return inroot.make_directory(rootfd, "/dev")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise MinirunError("/dev of the root filesystem is not a directory") from None
        raise


def _create_node(setup: Setup, device: Device) -> None:
    directory, _, name = device.path.rpartition("/")
    if name in ("", ".", "..") or not device.path.startswith("/"):
        raise ConfigError("linux.devices", f"{device.path!r} is not an absolute path of a file")
    parent = _open_parent(setup.rootfd, directory)
    try:
        if device.path in setup.device_sources:
            _bind_node(setup.device_sources[device.path], parent, name)
        else:
            _make_node(setup.procfd, parent, name, device)
    finally:
        os.close(parent)


def _open_parent(rootfd: int, directory: str) -> int:
    fd = inroot.make_directory(rootfd, directory)
    os.close(fd)
    # Made or not, it is used only where no link is on the way.
    return inroot.open_path(rootfd, directory, os.O_PATH | os.O_DIRECTORY, links=False)


def _bind_node(source: int, parent: int, name: str) -> None:
    target = inroot.make_file(parent, name, 0o644, links=0)
    try:
        m.move_mount(source, target)
    finally:
        os.close(target)


def _make_node(procfd: int, parent: int, name: str, device: Device) -> None:
    mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
    number = 0 if device.type == "p" else os.makedev(device.major, device.minor)
    try:
        os.mknod(name, _TYPES[device.type] | mode, number, dir_fd=parent)
    except FileExistsError:
        # spec: "If a file already exists at this path that does not match …, MUST … error".
        _check_node(os.stat(name, dir_fd=parent, follow_symlinks=False), device)
        return
    except OSError as error:
        raise failure(error.errno or 0, f"mknodat({quote(device.path)})") from None
    fd = inroot.open_path(parent, name, os.O_PATH | os.O_NOFOLLOW, links=False)
    try:
        os.chmod(f"self/fd/{fd}", mode, dir_fd=procfd)  # what the umask took away
        os.chown(f"self/fd/{fd}", device.uid or 0, device.gid or 0, dir_fd=procfd)
    finally:
        os.close(fd)


def _link(dev: int, name: str, target: str) -> None:
    """Make a link of /dev; whatever is there is kept, except a plain ptmx, which would be stale."""
    try:
        os.symlink(target, name, dir_fd=dev)
    except FileExistsError:
        if name != "ptmx":
            return
        status = os.stat(name, dir_fd=dev, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=dev) == target:
            return
        if stat.S_ISDIR(status.st_mode):
            raise MinirunError("/dev/ptmx of the root filesystem is a directory") from None
        os.unlink(name, dir_fd=dev)
        os.symlink(target, name, dir_fd=dev)
