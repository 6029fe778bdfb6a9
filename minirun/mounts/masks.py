"""What is made read-only or hidden once the root filesystem is the root."""

from __future__ import annotations

import os
import stat

from minirun import inroot
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_EMPTY_PATH, AT_RECURSIVE
from minirun.kernel.statfs import mount_id
from minirun.mounts.entries import clean
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


@step(lambda setup: any("ro" in entry.options for entry in setup.spec.mounts))
def lock_dev(setup: Setup) -> None:
    """Make /dev and tmpfs read-only where they shall be, now that all is in them"""
    for fd in setup.to_lock:
        m.mount_setattr(fd, set_=m.MOUNT_ATTR_RDONLY)
        os.close(fd)


@step(
    lambda setup: bool(setup.spec.linux.readonly_paths),
    details=lambda setup: setup.spec.linux.readonly_paths,
    shell=lambda setup: [_shell_lock(path) for path in setup.spec.linux.readonly_paths],
)
def lock_paths(setup: Setup) -> None:
    """Make the read-only paths read-only"""
    for path in setup.spec.linux.readonly_paths:
        target = _existing(setup, path)
        if target is None:
            continue
        if _is_root(setup, target):
            # kernel: nothing that is mounted over a process's own root is ever seen. As in runc,
            # what is mounted below stays as it is.
            m.mount_setattr(target, set_=m.MOUNT_ATTR_RDONLY)
            os.close(target)
            continue
        copy = m.open_tree(target, "", m.OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE)
        m.mount_setattr(copy, set_=m.MOUNT_ATTR_RDONLY, recursive=True)
        m.move_mount(copy, target)
        _cover(setup, clean(path), os.fstat(target), copy)
        os.close(copy)
        os.close(target)


def _is_root(setup: Setup, fd: int) -> bool:
    same = os.path.samestat(os.fstat(fd), os.fstat(setup.rootfd))
    return same and mount_id(fd) == mount_id(setup.rootfd)  # else another mount of the directory


def _shell_lock(path: str) -> str:
    if clean(path) == "/":
        return "mount -o remount,bind,ro /"
    here = quoted(path)
    lock = f"mount --bind {here} {here} && mount -o remount,bind,ro {here}"
    return f"[ ! -e {here} ] || {{ {lock}; }}"


def _cover(setup: Setup, path: str, status: os.stat_result, copy: int) -> None:
    """Take note that a copy hides /proc or /sys, by whatever name, or all from above them."""
    for top, fd in list(setup.kernel_mounts.items()):
        if os.path.samestat(os.fstat(fd), status):
            os.close(fd)
            setup.kernel_mounts[top] = os.dup(copy)
        elif top.startswith(f"{path.rstrip('/')}/"):
            os.close(setup.kernel_mounts.pop(top))


@step(
    lambda setup: bool(setup.spec.linux.masked_paths),
    details=lambda setup: setup.spec.linux.masked_paths,
    shell=lambda setup: [
        f"if [ -d {quoted(path)} ]; then mount -t tmpfs -o ro,size=0 tmpfs {quoted(path)}; "
        f"elif [ -e {quoted(path)} ]; then mount --bind /dev/null {quoted(path)}; fi"
        for path in setup.spec.linux.masked_paths
    ],
    why="files that tell of the host or reach into it read as empty",
)
def mask_paths(setup: Setup) -> None:
    """Hide the masked paths"""
    null, empty = setup.null_source, -1
    null_placed = empty_placed = False
    for path in setup.spec.linux.masked_paths:
        target = _existing(setup, path)
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


def _existing(setup: Setup, path: str) -> int | None:
    """Open a path to hide or lock; None only if there is nothing (CVE-2025-31133)."""
    fd, rest = setup.rootfd, clean(path)
    for top in setup.kernel_mounts:
        if f"{rest}/".startswith(f"{top}/"):
            fd, rest = setup.kernel_mounts[top], rest[len(top) :]
            break
    try:
        return inroot.open_path(fd, rest.lstrip("/"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
