"""From a path to the disk that carries it, as io.max wants it: a whole disk, never a partition.

A partition counts as its disk. Device mapper, RAID and loop devices are disks of their own and are
given as they are: io.max throttles at the device it names, before the request is passed on below.
"""

from __future__ import annotations

import os
import stat

from minirun.errors import UsageError

_DEPTH = 8  # overlays upon overlays

# Why nothing below can be throttled, by type of file system.
_MEMORY = ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs")
_MADE_UP = ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "tracefs", "bpf")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs", "glusterfs", "lustre")


class Disk:
    """A block device: `major`:`minor` and its kernel `name`, such as sda, nvme0n1 or dm-0."""

    def __init__(self, major: int, minor: int, name: str) -> None:
        self.major = major
        self.minor = minor
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Disk) and str(self) == str(other) and self.name == other.name

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"

    def __repr__(self) -> str:
        return f"Disk({self.major}, {self.minor}, {self.name!r})"


class Mounted:
    """A line of mountinfo, unescaped (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        self.number = fields[0]
        self.device = fields[2]
        self.point = unescape(fields[4])
        self.fstype = rest[0]
        self.source = unescape(rest[1])
        self.options = rest[2].split(",") if len(rest) > 2 else []

    def option(self, name: str) -> str | None:
        """Give the value of a super block option, such as overlay's upperdir."""
        for option in self.options:
            key, equals, value = option.partition("=")
            if equals and key == name:
                return unescape(value)
        return None


def unescape(text: str) -> str:
    """Undo mountinfo's octal escapes: \\040 is a space."""
    if "\\" not in text:
        return text
    parts = text.split("\\")
    done = os.fsencode(parts[0])
    for part in parts[1:]:
        code = part[:3]
        if len(code) == 3 and all(char in "01234567" for char in code):
            done += bytes([int(code, 8) & 0xFF]) + os.fsencode(part[3:])
        else:
            done += b"\\" + os.fsencode(part)
    return os.fsdecode(done)


def whole_disk(path: str, sysfs: str = "/sys", proc: str = "/proc") -> Disk:
    """Find the disk behind `path`: a disk, a partition, a mount point, or any file or directory.

    For an overlay it is the disk of the upper layer, where writes go. Raises UsageError, saying
    why, when no single local disk carries the path.
    """
    return _find(path, sysfs, proc, _DEPTH)


def _find(path: str, sysfs: str, proc: str, depth: int) -> Disk:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot find the disk of {path!r}: {_reason(error)}") from error
    try:
        found = os.fstat(fd)
        mount_id = _mount_id(fd, proc)
    finally:
        os.close(fd)
    if stat.S_ISBLK(found.st_mode):
        return disk_of(os.major(found.st_rdev), os.minor(found.st_rdev), sysfs)
    if stat.S_ISCHR(found.st_mode):
        raise UsageError(f"{path} is a character device, not a disk")
    if os.major(found.st_dev):
        return disk_of(os.major(found.st_dev), os.minor(found.st_dev), sysfs)
    return _below(path, _mounted(mount_id, proc), sysfs, proc, depth)


def _reason(error: Exception) -> str:
    return str(error.strerror).lower() if isinstance(error, OSError) else str(error)


def _mount_id(fd: int, proc: str) -> str:
    """Give the number of the mount that `fd` was found on: st_dev of btrfs is not mountinfo's."""
    for line in _read(f"{proc}/self/fdinfo/{fd}").splitlines():
        if line.startswith("mnt_id:"):
            return line.split()[1]
    return ""


def _mounted(mount_id: str, proc: str) -> Mounted | None:
    for line in filter(None, _read(f"{proc}/self/mountinfo").split("\n")):
        if line.split(" ", 1)[0] == mount_id:
            return Mounted(line)
    return None


def _below(path: str, mount: Mounted | None, sysfs: str, proc: str, depth: int) -> Disk:
    """Look below a file system that has no device number of its own."""
    if mount is None:
        raise UsageError(f"cannot find the disk of {path!r}: its mount is not in this namespace")
    if mount.fstype == "overlay" and depth:
        # Writes go to the upper layer; a read-only overlay has none.
        lower = (mount.option("lowerdir+") or mount.option("lowerdir") or "").split(":")[0]
        layer = mount.option("upperdir") or lower
        if layer.startswith("/"):
            return _find(layer, sysfs, proc, depth - 1)
    if mount.source.startswith("/dev/") and depth:
        return _find(mount.source, sysfs, proc, 0)  # btrfs: the first of its devices
    raise UsageError(f"{path} is on {mount.fstype}, {_why(mount.fstype)}")


def _why(fstype: str) -> str:
    if fstype in _MADE_UP:
        return "which the kernel makes up: no disk is behind it"
    if fstype in _MEMORY:
        return "which no block device carries: its writes cannot be throttled"
    if fstype in _NETWORK:
        return "which lies on another machine or the host: its traffic is not disk traffic"
    if fstype.startswith("fuse"):
        return "which a program of the user's serves: name the disk that this program writes to"
    return "which does not tell its disk: name the device itself"


def disk_of(major: int, minor: int, sysfs: str = "/sys") -> Disk:
    """Give the whole disk of a device number; a partition's is the device that holds it.

    Raises UsageError when no block device has this number.
    """
    link = f"{sysfs}/dev/block/{major}:{minor}"
    if not os.path.isdir(link):
        raise UsageError(f"no block device has the number {major}:{minor}")
    place = os.path.realpath(link)
    if os.path.exists(f"{place}/partition"):
        place = os.path.dirname(place)
    numbers = _read(f"{place}/dev").strip().split(":")
    if len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):
        raise UsageError(f"cannot tell the disk of {major}:{minor}")
    return Disk(int(numbers[0]), int(numbers[1]), os.path.basename(place))


def _read(path: str) -> str:
    with open(path, "rb", 0) as file:
        return os.fsdecode(file.readall())
