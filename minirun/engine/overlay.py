"""The root filesystem of a container: a shared lower layer, and an upper one of its own.

    BUNDLE/lower    the shared tree, read-only, perhaps with its owners mapped
    BUNDLE/layer    upper and work, which only root may enter
    BUNDLE/rootfs   the overlay of both: what config.json names as root

Each parameter is handed to the kernel by itself (fsconfig), so no comma in a path becomes an
option. Both mounts are in the host's mount namespace, where any runtime finds them.
"""

from __future__ import annotations

import errno
import os

from minirun.errors import MinirunError, Unsupported
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_FDCWD

_LOWER = "lower"
_MERGED = "rootfs"
_UPPER = "layer/upper"
_WORK = "layer/work"

# Overlays do not take lower layers with mapped owners before Linux 5.19.
_IDMAPPED_LAYERS = (5, 19)
_NO_IDMAP = (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NOT_MOUNTED = (errno.EINVAL, errno.ENOENT)
_DEPTH = 64


def kernel_release(release: str | None = None) -> tuple[int, int]:
    """Return the kernel's version as two numbers: 6.1.0-18-amd64 is (6, 1)."""
    major, minor = (release or os.uname().release).split(".")[:2]
    return int(major), int("".join([c for c in minor if "0" <= c <= "9"]) or "0")


def open_lower(path: str, userns: int | None = None) -> int:
    """Return the tree at `path` as a detached read-only mount, owners mapped by `userns`.

    Raises Unsupported when the kernel or the file system cannot map owners.
    """
    fd = m.open_tree(AT_FDCWD, path, m.OPEN_TREE_CLONE)
    try:
        flags = m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV
        m.mount_setattr(fd, set_=flags, propagation=m.MS_PRIVATE)
        if userns is not None:
            map_owners(fd, userns, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_owners(fd: int, userns: int, path: str) -> None:
    """Map the owners of files in the detached mount `fd` of `path` by a user namespace.

    Raises Unsupported when the kernel or the file system cannot.
    """
    if kernel_release() < _IDMAPPED_LAYERS:
        raise Unsupported(f"Linux {os.uname().release} has no overlay on id-mapped mounts (5.19)")
    try:
        m.mount_setattr(fd, set_=m.MOUNT_ATTR_IDMAP, userns_fd=userns)
    except OSError as error:
        if error.errno not in _NO_IDMAP:
            raise
        raise Unsupported(
            f"the file system of {path} cannot map the owners of its files",
            cause=f"mount_setattr(MOUNT_ATTR_IDMAP): {os.strerror(error.errno or 0).lower()}",
        ) from None


def mount(bundle: str, lower: int, owner: int) -> None:
    """Mount the detached tree `lower` and the overlay in `bundle`; files of root are `owner`'s.

    Makes the directories that it needs. On an error the mounts are undone, the directories stay
    for whoever removes the bundle. Raises MinirunError.
    """
    _make_directories(bundle, owner)
    try:
        m.move_mount(lower, AT_FDCWD, f"{bundle}/{_LOWER}")
        # Attached below a shared mount it became shared itself: what is mounted in it stays here.
        m.mount_setattr(lower, propagation=m.MS_PRIVATE)
        merged = _overlay(bundle)
        try:
            m.move_mount(merged, AT_FDCWD, f"{bundle}/{_MERGED}")
            m.mount_setattr(merged, propagation=m.MS_PRIVATE)
        finally:
            os.close(merged)
    except BaseException:
        unmount(bundle)
        raise


def _make_directories(bundle: str, owner: int) -> None:
    for name, mode in (
        (_LOWER, 0o700),
        (_MERGED, 0o700),
        ("layer", 0o700),
        (_UPPER, 0o755),
        (_WORK, 0o700),
    ):
        os.mkdir(f"{bundle}/{name}", 0o700)
        os.chmod(f"{bundle}/{name}", mode)
    # The upper directory itself is what the container sees as its root directory.
    os.chown(f"{bundle}/{_UPPER}", owner, owner)


def _overlay(bundle: str) -> int:
    if "," not in bundle:
        return _overlay_of(bundle, _escape(bundle))
    # kernel: overlays take no comma before Linux 6.5 (legacy_parse_param in fs/fs_context.c).
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _overlay_of(bundle, f"/proc/self/fd/{directory}")
    finally:
        os.close(directory)


def _overlay_of(bundle: str, place: str) -> int:
    fd = m.fsopen("overlay")
    try:
        m.fsconfig_string(fd, "source", "minirun")
        m.fsconfig_string(fd, "lowerdir", f"{place}/{_LOWER}")
        m.fsconfig_string(fd, "upperdir", f"{place}/{_UPPER}")
        m.fsconfig_string(fd, "workdir", f"{place}/{_WORK}")
        # No inode index and no redirects: the lower layer is shared, and may be hostile.
        for key, value in (("index", "off"), ("xino", "off"), ("metacopy", "off")):
            m.fsconfig_string(fd, key, value)
        m.fsconfig_create(fd)
        return m.fsmount(fd, m.MOUNT_ATTR_NODEV)
    except OSError as error:
        raise _refused(error, bundle, _kernel_log(fd)) from None
    finally:
        os.close(fd)


def _refused(error: OSError, bundle: str, log: str) -> MinirunError:
    kind = Unsupported if error.errno in (errno.ENODEV, errno.EINVAL) else MinirunError
    return kind(
        f"cannot mount the overlay of {bundle}: {(error.strerror or '').lower()}",
        cause=log or getattr(error, "call", ""),
        fix="overlayfs must be in the kernel, and the data directory on ext4, xfs, btrfs or tmpfs",
    )


def _kernel_log(fd: int) -> str:
    """Read what the kernel says of a refused configuration (fsopen(2): the context's log)."""
    lines = []
    for _ in range(16):
        try:
            lines.append(os.fsdecode(os.read(fd, 4096)).strip()[2:])
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EINVAL):
                raise
            break
    return "; ".join(lines)


def _escape(path: str) -> str:
    """Escape a layer's path: overlayfs splits at colons and reads backslashes (overlayfs.rst)."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def unmount(bundle: str) -> None:
    """Detach what `mount` mounted, as often as it is mounted; nothing there is fine."""
    for name in (_MERGED, _LOWER):
        for _ in range(_DEPTH):
            try:
                m.umount2(f"{bundle}/{name}", m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno not in _NOT_MOUNTED:
                    raise
                break
