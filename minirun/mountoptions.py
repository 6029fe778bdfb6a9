"""Mount options by name (config.md, "Linux mount options"): one table row per option.

To add an option, add a row to the table of its kind; parsing, the plan and `features` follow.
"""

from __future__ import annotations

import errno
import os

from minirun.errors import ConfigError
from minirun.kernel import mount as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.spec import Mount

# Attributes of the mount: option → (bits to set, bits to clear). Access-time modes exclude each
# other, so each clears the whole field (mount_setattr(2)).
ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (m.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, m.MOUNT_ATTR_RDONLY),
    "nosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, m.MOUNT_ATTR_NOSUID),
    "nodev": (m.MOUNT_ATTR_NODEV, 0),
    "dev": (0, m.MOUNT_ATTR_NODEV),
    "noexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, m.MOUNT_ATTR_NOEXEC),
    "noatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "atime": (0, m.MOUNT_ATTR__ATIME),
    "relatime": (0, m.MOUNT_ATTR__ATIME),
    "norelatime": (0, m.MOUNT_ATTR__ATIME),
    "strictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "nostrictatime": (0, m.MOUNT_ATTR__ATIME),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
}

# What the options about access times ask for, or take back.
_TIMES = {
    "noatime": ("noatime", True), "atime": ("noatime", False),
    "relatime": ("relatime", True), "norelatime": ("relatime", False),
    "strictatime": ("strictatime", True), "nostrictatime": ("strictatime", False),
    "nodiratime": ("nodiratime", True), "diratime": ("nodiratime", False),
}  # fmt: skip

# The same for the mount and all below it: `rro`, `rnosuid` …
RECURSIVE = {f"r{name}": bits for name, bits in ATTRIBUTES.items()}

PROPAGATION = {
    "private": m.MS_PRIVATE,
    "slave": m.MS_SLAVE,
    "shared": m.MS_SHARED,
    "unbindable": m.MS_UNBINDABLE,
    "rprivate": m.MS_PRIVATE | m.MS_REC,
    "rslave": m.MS_SLAVE | m.MS_REC,
    "rshared": m.MS_SHARED | m.MS_REC,
    "runbindable": m.MS_UNBINDABLE | m.MS_REC,
}

# Flags of the file system (super block), which fsconfig(2) takes by name, and their opposites.
SUPERBLOCK = {
    "sync": True,
    "dirsync": True,
    "lazytime": True,
    "mand": True,
    "async": False,
    "nolazytime": False,
    "nomand": False,
}

# What a bind with options has of its source only if it asks for it; access times are kept.
_REPLACED = (
    m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
    | m.MOUNT_ATTR_NOSYMFOLLOW
)  # fmt: skip
_ATIME = m.MOUNT_ATTR__ATIME | m.MOUNT_ATTR_NODIRATIME

# include/linux/statfs.h
_ST_NOATIME, _ST_RELATIME = 0x400, 0x1000
_STATVFS = (
    (0x1, m.MOUNT_ATTR_RDONLY),
    (0x2, m.MOUNT_ATTR_NOSUID),
    (0x4, m.MOUNT_ATTR_NODEV),
    (0x8, m.MOUNT_ATTR_NOEXEC),
    (_ST_NOATIME, m.MOUNT_ATTR_NOATIME),
    (0x800, m.MOUNT_ATTR_NODIRATIME),
    (0x2000, m.MOUNT_ATTR_NOSYMFOLLOW),
)

BIND = {"bind": False, "rbind": True}
IDMAP = {"idmap": False, "ridmap": True}
IGNORED = ("defaults", "loud", "silent", "iversion", "noiversion", "acl", "noacl")
# What is done besides mounting, each an attribute of `Options`.
ACTIONS = {
    "tmpcopyup": "copy_up",
    "copy-symlink": "copy_link",
    "src-nofollow": "keep_source_link",
    "dest-nofollow": "keep_target_link",
    "remount": "remount",
}

KNOWN = sorted(
    {*ATTRIBUTES, *RECURSIVE, *PROPAGATION, *SUPERBLOCK, *BIND, *IDMAP, *IGNORED, *ACTIONS}
)


class Options:
    """The options of one mount, sorted by what carries them out."""

    def __init__(self) -> None:
        self.bind = False
        self.recursive_bind = False
        self.given = False  # whether any of ATTRIBUTES is among them
        self.set = 0  # MOUNT_ATTR_* of this mount
        self.clear = 0
        self.times: set[str] = set()  # the access-time modes that are asked for
        self.recursive_set = 0  # … of it and all below
        self.recursive_clear = 0
        self.propagation: list[int] = []
        self.superblock: list[str] = []
        self.idmap = False
        self.recursive_idmap = False
        self.copy_up = False  # a tmpfs begins with what lies below it
        self.copy_link = False  # a source that is a symbolic link is made again, not bound
        self.keep_source_link = False  # … is mounted itself, not what it leads to
        self.keep_target_link = False  # a destination that is one is mounted over itself
        self.remount = False  # what is mounted there is changed
        self.data: list[tuple[str, str | None]] = []  # the file system's own parameters


def parse(entry: Mount, path: str) -> Options:
    """Sort a mount's options; `path` is the JSON path for errors.

    Raises ConfigError for an option that does not go with the mount.
    """
    found = Options()
    if entry.type == "bind":
        found.bind = True
    for option in entry.options:
        _sort(option, found, f"{path}.options")
    if entry.uid_mappings or entry.gid_mappings:
        found.idmap = True
    _check_actions(entry, found, f"{path}.options")
    if found.idmap and not found.bind:
        raise ConfigError(f"{path}.options", "id mappings need a bind mount")
    if found.bind:
        found.superblock.clear()  # the file system keeps its own, as with mount(2) and in runc
    if found.bind and found.data:
        names = ", ".join(key for key, _ in found.data)
        raise ConfigError(
            f"{path}.options",
            f"bind mounts cannot have any filesystem-specific options applied: {names}",
        )
    return found


def _check_actions(entry: Mount, found: Options, path: str) -> None:
    if found.copy_up and (entry.type != "tmpfs" or found.bind or found.remount):
        raise ConfigError(path, "tmpcopyup is for a new tmpfs")
    if found.copy_link and (not found.bind or found.remount):
        raise ConfigError(path, "copy-symlink is for bind mounts")
    keeps = found.keep_source_link or found.keep_target_link
    if keeps and (not found.bind or found.remount):
        raise ConfigError(path, "src-nofollow and dest-nofollow are for bind mounts")
    if keeps and found.copy_link:
        raise ConfigError(path, "copy-symlink excludes src-nofollow and dest-nofollow")
    if found.remount and found.idmap:
        raise ConfigError(path, "id mappings cannot be changed by remount")


def _sort(option: str, found: Options, path: str) -> None:
    if option in ATTRIBUTES:
        found.given = True
        found.set, found.clear = _merge(found.set, found.clear, ATTRIBUTES[option])
        if option in _TIMES:
            name, asked = _TIMES[option]
            (found.times.add if asked else found.times.discard)(name)
    elif option in RECURSIVE:
        found.recursive_set, found.recursive_clear = _merge(
            found.recursive_set, found.recursive_clear, RECURSIVE[option]
        )
    elif option in PROPAGATION:
        found.propagation.append(PROPAGATION[option])
    elif option in BIND:
        found.bind = True
        found.recursive_bind = BIND[option]
    elif option in SUPERBLOCK:
        if SUPERBLOCK[option]:
            found.superblock.append(option)
    elif option in IDMAP:
        found.idmap = True
        found.recursive_idmap = IDMAP[option]
    elif option in ACTIONS:
        setattr(found, ACTIONS[option], True)
    elif option not in IGNORED:
        key, equals, value = option.partition("=")
        if not key:
            raise ConfigError(path, f"{option!r} is not an option")
        found.data.append((key, value if equals else None))


def _merge(set_: int, clear: int, bits: tuple[int, int]) -> tuple[int, int]:
    """Apply one more option: the last one wins for the bits that it names."""
    add, remove = bits
    return (set_ & ~remove) | add, (clear & ~add) | remove


def of_bind(found: Options, held: int | None) -> tuple[int, int]:
    """Return what a bind's options set and clear of the attributes that its source had.

    As with mount(8): a bind without such options keeps them all; one with any has those that are
    asked for and no others, but for access times, kept unless asked. `held` is what the source has,
    MOUNT_ATTR_*, where the kernel keeps a user namespace from less (MNT_LOCKED,
    mount_namespaces(7)): that stays. Raises PermissionError where an option says otherwise.
    """
    if not found.given:
        return 0, 0
    set_ = found.set & _REPLACED
    clear = _REPLACED & ~set_
    if found.times:
        set_ |= _times(found)
        clear |= _ATIME & ~(set_ & m.MOUNT_ATTR_NODIRATIME)
    if held is None:
        return set_, clear
    locked = held & _REPLACED & ~m.MOUNT_ATTR_NOSYMFOLLOW
    refused = locked & found.clear or (found.times and set_ & _ATIME != held & _ATIME)
    if refused:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "mount_setattr")
    return set_ | locked, clear & ~locked


def _times(found: Options) -> int:
    """Return the access-time mode of several as mount(2) has it: strictatime, noatime, relatime."""
    mode = m.MOUNT_ATTR_NODIRATIME if "nodiratime" in found.times else 0
    if "strictatime" in found.times:
        return mode | m.MOUNT_ATTR_STRICTATIME
    return mode | (m.MOUNT_ATTR_NOATIME if "noatime" in found.times else 0)


def held_by(flags: int) -> int:
    """Translate the flags of statvfs(3) to MOUNT_ATTR_*."""
    held = sum(attribute for flag, attribute in _STATVFS if flags & flag)
    # Neither flag: access times are always written.
    return held | (0 if flags & (_ST_NOATIME | _ST_RELATIME) else m.MOUNT_ATTR_STRICTATIME)
