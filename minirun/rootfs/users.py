"""Who uses a tree: overlays over it and binds of it, in every mount namespace there is.

A container's overlay is mounted in its own mount namespace, which /proc/self/mountinfo does not
show; so the mountinfo of one process of each namespace is read. Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import re

# A process may vanish, be a zombie, or be hidden from us between the look and the read.
_GONE = (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM)
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount:
    """One line of mountinfo: device, root within it, mount point, the file system's options."""

    def __init__(self, line: bytes) -> None:
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        self.id = fields[0]
        self.device = fields[2]
        self.root = unescape(fields[3])
        self.point = unescape(fields[4])
        self.options = after.split(b" ")[2] if after.count(b" ") >= 2 else b""

    def lower_directories(self) -> list[str]:
        """List an overlay's lower directories, as they were given to mount(2)."""
        found = []
        for option in self.options.split(b","):
            key, _, value = option.partition(b"=")
            if key in (b"lowerdir", b"lowerdir+", b"datadir+"):
                parts = re.split(rb"(?<!\\):+", os.fsencode(unescape(value)))
                found += [os.fsdecode(re.sub(rb"\\(.)", rb"\1", part)) for part in parts]
        return found


def unescape(text: bytes) -> str:
    """Undo the octal escapes of mountinfo."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), text))


def users(tree: str) -> list[str]:
    """Say in words what uses the directory `tree` or what is in it: one line per mount."""
    real = os.path.realpath(tree)
    device, within = _place_in_file_system(real)
    found = []
    for pid, mounts in _every_namespace():
        for mount in mounts:
            what = ""
            if any(_lies_in(lower, real) for lower in mount.lower_directories()):
                what = "an overlay of it is"
            elif mount.device == device and _inside(mount.root, within):
                what = "it is"
            elif _inside(mount.point, real):
                what = "a file system inside it is"
            if what:
                found.append(f"{what} mounted on {mount.point!r} (seen by process {pid})")
    return found


def _lies_in(lower: str, real: str) -> bool:
    # The text is what was given to mount(2): it may name the place by way of a link.
    return lower.startswith("/") and _inside(os.path.realpath(lower), real)


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _place_in_file_system(real: str) -> tuple[bytes, str]:
    """Give the device of `real` and its path within that file system, which binds of it show."""
    best = None
    for mount in _mounts("self"):
        if _inside(real, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:  # the mount point is out of our root: nothing to compare
        return b"", "/"
    rest = os.path.relpath(real, best.point)
    return best.device, os.path.normpath(os.path.join(best.root, rest))


def _every_namespace() -> list[tuple[str, list[Mount]]]:
    seen = set()
    found = []
    for pid in ["self", *filter(str.isdecimal, os.listdir("/proc"))]:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                found.append((str(os.getpid()) if pid == "self" else pid, _mounts(pid)))
                seen.add(namespace)
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return found


def _mounts(pid: str) -> list[Mount]:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return [Mount(line.rstrip(b"\n")) for line in file if line.count(b" ") >= 9]
