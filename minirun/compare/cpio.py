"""A root filesystem as a cpio archive in the format "newc", which the kernel unpacks at its start.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. The format has no
extended attributes (file capabilities among them) and no files of 4 GiB; sockets make no sense.
"""

from __future__ import annotations

import os
import stat

from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_MAGIC = b"070701"
_END = "TRAILER!!!"
_LARGEST = 0xFFFFFFFF
_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Archive:
    """Writes entries to a file that is open for writing; `end` completes it.

    `names` are the entries so far; the size is the file's.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.inodes: dict[tuple[int, int], int] = {}
        self.count = 0
        self.names: set[str] = set()

    def add(
        self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add an entry that is made here, root's: `data` is a file's bytes or a link's target."""
        self.count += 1
        self._header(name, self.count, mode, size=len(data), device=device)
        self.file.write(data)
        self._pad(len(data))

    def add_tree(self, root: int) -> None:
        """Add all that is below the directory `root` is a descriptor of, on its file system.

        No link is followed. Raises MinirunError for a file that is too large, OSError.
        """
        top = os.fstat(root).st_dev
        for directory, name, relative in _walk(root):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if status.st_dev == top and not stat.S_ISSOCK(status.st_mode):
                self._add_one(directory, name, relative, status)

    def _add_one(self, directory: int, name: str, relative: str, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        known = key in self.inodes and not stat.S_ISDIR(status.st_mode)
        if not known:
            self.count += 1
            self.inodes[key] = self.count
        number = self.inodes[key]
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=directory))
            self._header(relative, number, status.st_mode, status, size=len(target))
            self.file.write(target)
            self._pad(len(target))
        elif stat.S_ISREG(status.st_mode) and not known:
            self._add_file(directory, name, relative, number)
        else:
            # Of a hard link the data went with the first name: the kernel joins them by number.
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            self._header(relative, number, status.st_mode, status, device=device)

    def _add_file(self, directory: int, name: str, relative: str, number: int) -> None:
        with open(os.open(name, _FILE, dir_fd=directory), "rb") as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise MinirunError(f"{relative} changed while it was read")
            if status.st_size > _LARGEST:
                raise MinirunError(f"{relative} is too large for a cpio archive: 4 GiB or more")
            self._header(relative, number, status.st_mode, status, size=status.st_size)
            left = status.st_size
            while left:
                data = source.read(min(left, _CHUNK))
                if not data:
                    raise MinirunError(f"{relative} became shorter while it was read")
                self.file.write(data)
                left -= len(data)
        self._pad(status.st_size)

    def end(self) -> None:
        """Write the entry that ends an archive."""
        self._header(_END, 0, 0)

    def _header(
        self,
        name: str,
        number: int,
        mode: int,
        status: os.stat_result | None = None,
        *,
        size: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        encoded = os.fsencode(name) + b"\0"
        uid, gid, links, time = 0, 0, 1, 0
        if status is not None:
            uid, gid, links = status.st_uid, status.st_gid, status.st_nlink
            time = min(max(int(status.st_mtime), 0), _LARGEST)
        fields = (number, mode, uid, gid, links, time, size, 0, 0, *device, len(encoded), 0)
        self.file.write(_MAGIC + b"".join(b"%08X" % field for field in fields) + encoded)
        self._pad(len(_MAGIC) + 8 * len(fields) + len(encoded))
        self.names.add(name)

    def _pad(self, written: int) -> None:
        self.file.write(b"\0" * (-written % 4))


def _walk(root: int) -> Iterator[tuple[int, str, str]]:
    """Give (descriptor of the directory, name in it, path) of all entries, parents first."""
    for path, directories, files, descriptor in os.fwalk(".", dir_fd=root, follow_symlinks=False):
        directories.sort()
        prefix = path.removeprefix(".").removeprefix("/")
        for name in sorted([*directories, *files]):
            yield descriptor, name, f"{prefix}/{name}".removeprefix("/")
