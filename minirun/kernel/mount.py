"""The mount system calls, old and new (mount(2), fsopen(2), open_tree(2), mount_setattr(2))."""

from __future__ import annotations

from minirun.kernel.c import (
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    words,
)
from minirun.kernel.libc import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    at,
    call,
    encode,
    flags,
    function,
    quote,
    syscall,
)

# include/uapi/linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MS_NAMES = {name: value for name, value in list(globals().items()) if name.startswith("MS_")}

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

_UMOUNT_NAMES = {
    "MNT_FORCE": MNT_FORCE,
    "MNT_DETACH": MNT_DETACH,
    "MNT_EXPIRE": MNT_EXPIRE,
    "UMOUNT_NOFOLLOW": UMOUNT_NOFOLLOW,
}

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000

_OPEN_TREE_NAMES = {
    "OPEN_TREE_CLONE": OPEN_TREE_CLONE,
    "OPEN_TREE_CLOEXEC": OPEN_TREE_CLOEXEC,
    "AT_EMPTY_PATH": AT_EMPTY_PATH,
    "AT_RECURSIVE": AT_RECURSIVE,
    "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW,
}

MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

_MOVE_MOUNT_NAMES = {
    "MOVE_MOUNT_F_EMPTY_PATH": MOVE_MOUNT_F_EMPTY_PATH,
    "MOVE_MOUNT_T_EMPTY_PATH": MOVE_MOUNT_T_EMPTY_PATH,
}

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7

MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR__ATIME = 0x00000070
MOUNT_ATTR_RELATIME = 0x00000000
MOUNT_ATTR_NOATIME = 0x00000010
MOUNT_ATTR_STRICTATIME = 0x00000020
MOUNT_ATTR_NODIRATIME = 0x00000080
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

MOUNT_ATTR_NAMES = {
    name: value
    for name, value in list(globals().items())
    if name.startswith("MOUNT_ATTR_") and value and name != "MOUNT_ATTR__ATIME"
}
_CLEAR_NAMES = {"MOUNT_ATTR__ATIME": MOUNT_ATTR__ATIME, **MOUNT_ATTR_NAMES}


_mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = function("umount2", c_char_p, c_int)
_pivot_root = syscall({"x86_64": 155, "aarch64": 41}, c_char_p, c_char_p)
_open_tree = syscall(428, c_int, c_char_p, c_uint)
_move_mount = syscall(429, c_int, c_char_p, c_int, c_char_p, c_uint)
_fsopen = syscall(430, c_char_p, c_uint)
_fsconfig = syscall(431, c_int, c_uint, c_char_p, c_void_p, c_int)
_fsmount = syscall(432, c_int, c_uint, c_uint)
_fspick = syscall(433, c_int, c_char_p, c_uint)
_mount_setattr = syscall(442, c_int, c_char_p, c_uint, c_void_p, c_size_t)


def mount(
    source: str | None, target: str, fstype: str | None, flags_: int, data: str | None = None
) -> None:
    """Mount, bind, remount or change propagation, as the flags say. Source: mount(2)."""
    call(
        _mount,
        (encode(source), encode(target), encode(fstype), flags_, encode(data)),
        lambda: (
            f"mount({quote(source)}, {quote(target)}, {quote(fstype)}, "
            f"{flags(flags_, MS_NAMES)}, {quote(data)})"
        ),
    )


def umount2(target: str, flags_: int = 0) -> None:
    """Unmount what is mounted at `target`. Source: umount2(2)."""
    call(
        _umount2,
        (encode(target), flags_),
        lambda: f"umount2({quote(target)}, {flags(flags_, _UMOUNT_NAMES)})",
    )


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root mount, the former one appears at `put_old`. pivot_root(2)."""
    call(
        _pivot_root,
        (encode(new_root), encode(put_old)),
        lambda: f"pivot_root({quote(new_root)}, {quote(put_old)})",
    )


def open_tree(dirfd: int, path: str, flags_: int) -> int:
    """Open a mount point, or with OPEN_TREE_CLONE a detached copy of the mount; CLOEXEC is set.

    The copy is private, attached nowhere, and gone when the descriptor is closed, unless
    `move_mount` attaches it. Source: open_tree(2), Linux 5.2.
    """
    flags_ |= OPEN_TREE_CLOEXEC
    return call(
        _open_tree,
        (dirfd, encode(path), flags_),
        lambda: f"open_tree({at(dirfd)}, {quote(path)}, {flags(flags_, _OPEN_TREE_NAMES)})",
    )


def move_mount(fd: int, target_dirfd: int, target: str = "") -> None:
    """Attach the mount that `fd` holds at `target` below `target_dirfd`, or on that descriptor.

    Source: move_mount(2), Linux 5.2.
    """
    how = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    call(
        _move_mount,
        (fd, b"", target_dirfd, encode(target), how),
        lambda: (
            f'move_mount({fd}, "", {at(target_dirfd)}, {quote(target)}, '
            f"{flags(how, _MOVE_MOUNT_NAMES)})"
        ),
    )


def fsopen(fstype: str) -> int:
    """Begin the configuration of a new file system; return its descriptor. fsopen(2)."""
    return call(
        _fsopen,
        (encode(fstype), FSOPEN_CLOEXEC),
        lambda: f"fsopen({quote(fstype)}, FSOPEN_CLOEXEC)",
    )


def fsconfig_flag(fd: int, key: str) -> None:
    """Set a parameter that has no value, such as `ro`. Source: fsconfig(2)."""
    call(
        _fsconfig,
        (fd, _FSCONFIG_SET_FLAG, encode(key), None, 0),
        lambda: f"fsconfig({fd}, FSCONFIG_SET_FLAG, {quote(key)}, NULL, 0)",
    )


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """Set a parameter; commas and colons in `value` are not separators here."""
    call(
        _fsconfig,
        (fd, _FSCONFIG_SET_STRING, encode(key), encode(value), 0),
        lambda: f"fsconfig({fd}, FSCONFIG_SET_STRING, {quote(key)}, {quote(value)}, 0)",
    )


def fsconfig_create(fd: int) -> None:
    """Make the file system as configured."""
    call(
        _fsconfig,
        (fd, _FSCONFIG_CMD_CREATE, None, None, 0),
        lambda: f"fsconfig({fd}, FSCONFIG_CMD_CREATE, NULL, NULL, 0)",
    )


def fspick(fd: int) -> int:
    """Begin to change the file system of the mount that `fd` holds. Source: fspick(2), 5.2."""
    return call(
        _fspick,
        (fd, b"", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH),
        lambda: f'fspick({fd}, "", FSPICK_CLOEXEC|FSPICK_EMPTY_PATH)',
    )


def fsconfig_reconfigure(fd: int) -> None:
    """Change the file system that `fspick` chose, as configured."""
    call(
        _fsconfig,
        (fd, _FSCONFIG_CMD_RECONFIGURE, None, None, 0),
        lambda: f"fsconfig({fd}, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0)",
    )


def fsmount(fd: int, attributes: int = 0) -> int:
    """Make a detached mount of a created file system; return its descriptor. Source: fsmount(2)."""
    return call(
        _fsmount,
        (fd, FSMOUNT_CLOEXEC, attributes),
        lambda: f"fsmount({fd}, FSMOUNT_CLOEXEC, {flags(attributes, MOUNT_ATTR_NAMES)})",
    )


def mount_setattr(
    dirfd: int,
    path: str = "",
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """Change a mount's attributes, propagation (MS_PRIVATE …) or id mapping, perhaps recursively.

    An empty `path` means the mount that `dirfd` holds. To set an access-time mode,
    MOUNT_ATTR__ATIME must be in `clear`. MOUNT_ATTR_IDMAP needs a file system that knows it.
    Source: mount_setattr(2), Linux 5.12.
    """
    attr = words(set_, clear, propagation, userns_fd)  # struct mount_attr
    how = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    call(
        _mount_setattr,
        (dirfd, encode(path), how, attr, len(attr)),
        lambda: (
            f"mount_setattr({at(dirfd)}, {quote(path)}, {flags(how, _OPEN_TREE_NAMES)}, "
            f"{{attr_set={flags(set_, MOUNT_ATTR_NAMES)}, "
            f"attr_clr={flags(clear, _CLEAR_NAMES)}, "
            f"propagation={flags(propagation, MS_NAMES)}, userns_fd={userns_fd}}})"
        ),
    )
