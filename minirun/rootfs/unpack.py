"""Unpacking a tar archive into a directory, as root, without trusting the archive.

tarfile only reads; every path is resolved here, below a descriptor of the tree, so that no name,
link or device leads out of it. What later entries do to earlier ones follows tar: they replace
them, never write through them. Devices are left out: a container's /dev is made by the runtime,
and a character device 0:0 would be a whiteout to the overlay above.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from minirun.errors import MinirunError
from minirun.kernel.path import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from minirun.rootfs.archive import Archive, ArchiveError, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ID_MAX = (1 << 32) - 2  # chown(2) takes 2**32-1 for "leave as it is", which here would be root
_NAMES_MAX = 64 << 20  # of directories and devices; a whole distribution has 2 MiB of them
_TIME_MAX = 1 << 34  # what ext4 can store
_XATTR = "SCHILY.xattr."
_WITHIN = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_NO_LINKS = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

MAX_BYTES = 16 << 30
MAX_ENTRIES = 1_000_000


class Unpacked:
    """What was unpacked.

    `digest` is the archive's SHA-256 in hex, `size` the bytes of its files; `devices` and
    `attributes` are how many of these were left out; `top` are the names at the top.
    """

    def __init__(self) -> None:
        self.digest = ""
        self.size = 0
        self.entries = 0
        self.devices = 0
        self.attributes = 0
        self.top: set[str] = set()


def unpack(
    archive_fd: int,
    tree_fd: int,
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    progress: Callable[[int], None] = lambda count: None,
) -> Unpacked:
    """Unpack the archive that `archive_fd` gives into the empty directory `tree_fd`, as root.

    `progress` is told how many bytes of the archive were read.
    Owners, modes with set-uid bits, times, `security.capability` and `user.*` attributes are kept.
    The caller owns both descriptors and throws the tree away if this raises: ArchiveError for what
    is refused, MinirunError naming the entry where the kernel refused.
    """
    archive = Archive(archive_fd, max_bytes, progress)
    unpacker = _Unpacker(archive, tree_fd, max_entries)
    try:
        while (entry := archive.next_entry()) is not None:
            unpacker.add(entry)
        unpacker.set_directory_times()
    finally:
        unpacker.close()
    unpacker.done.digest = archive.finish()
    if not unpacker.done.entries:
        raise ArchiveError("the archive holds nothing")
    return unpacker.done


class _Unpacker:
    """The tree being filled. `parent_fd` is that of the last entry's directory: most share it."""

    def __init__(self, archive: Archive, tree: int, max_entries: int) -> None:
        self.archive = archive
        self.tree = tree
        self.left = max_entries
        self.done = Unpacked()
        self.parent_parts: list[str] | None = None
        self.parent_fd = -1
        self.names_left = _NAMES_MAX
        self.directories: dict[str, int] = {}
        self.skipped: set[str] = set()

    def add(self, entry: tarfile.TarInfo) -> None:
        """Unpack one entry, its data included."""
        try:
            self._count()
            self._add(entry)
        except ArchiveError:
            raise
        except (OSError, ValueError) as error:
            raise _failure(entry.name, error) from None

    def _add(self, entry: tarfile.TarInfo) -> None:
        parts = split(entry.name, "entry")
        _check_ids(entry)
        self.done.entries += 1
        if not parts:
            if not entry.isdir():
                raise ArchiveError(f"entry {entry.name!r} would replace the root directory")
            self._finish(self.tree, entry)
            self.directories["."] = _nanoseconds(entry)
            return
        if parts[0] not in self.done.top:
            self.done.top.add(self._remember(parts[:1]))
        if entry.type in _DEVICES:
            self.done.devices += 1
            self.skipped.add(self._remember(parts))
            return
        maker = _MAKERS.get(entry.type)
        if maker is None:
            raise ArchiveError(f"entry {entry.name!r} has the unknown type {entry.type!r}")
        maker(self, self._parent(parts[:-1]), parts, entry)

    def _file(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> None:
        self._clear_place(parent, parts)
        fd = os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=parent)
        try:
            self.archive.content(entry, lambda offset, chunk: _write(fd, offset, chunk))
            if entry.sparse is not None:
                os.ftruncate(fd, entry.size)
            self.done.size += entry.size
            self._finish(fd, entry)
            os.utime(fd, ns=(_nanoseconds(entry),) * 2)
        finally:
            os.close(fd)

    def _directory(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> None:
        status = _look(parent, parts[-1])
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._clear_place(parent, parts)
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        fd = os.open(parts[-1], _DIRECTORY, dir_fd=parent)
        try:
            self._finish(fd, entry)
        finally:
            os.close(fd)
        # Its time is set at the end: what is put into it changes it.
        self.directories[self._remember(parts)] = _nanoseconds(entry)

    def _symlink(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> None:
        self._clear_place(parent, parts)
        name = parts[-1]
        os.symlink(entry.linkname, name, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        times = (_nanoseconds(entry),) * 2
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> None:
        target = split(entry.linkname, "hard link target")
        if not target:
            raise ArchiveError(f"hard link {entry.name!r} points to the root directory")
        if "/".join(target) in self.skipped:
            self.skipped.add(self._remember(parts))
            return
        source = self._open_directory(target[:-1], _NO_LINKS)
        try:
            status = _look(source, target[-1])
            if status is None:
                raise ArchiveError(
                    f"hard link {entry.name!r} points to {entry.linkname!r}, which is not there"
                )
            existing = _look(parent, parts[-1])
            if existing is not None and _same(existing, status):
                return
            self._clear_place(parent, parts)
            os.link(
                target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
            )
        finally:
            os.close(source)

    def _fifo(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> None:
        self._clear_place(parent, parts)
        os.mkfifo(parts[-1], 0o600, dir_fd=parent)
        # O_RDWR does not wait for another end: fifo(7).
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(parts[-1], flags, dir_fd=parent)
        try:
            self._finish(fd, entry)
            os.utime(fd, ns=(_nanoseconds(entry),) * 2)
        finally:
            os.close(fd)

    def _finish(self, fd: int, entry: tarfile.TarInfo) -> None:
        """Set owner, mode and attributes, in this order: chown(2) clears set-uid and file caps."""
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & 0o7777)
        for name, value in _attributes(entry):
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.E2BIG, errno.ENOSPC):
                    raise
                self.done.attributes += 1

    def _parent(self, parts: list[str]) -> int:
        """Give a descriptor of the directory `parts`, made as needed; it stays ours."""
        if parts != self.parent_parts:
            self._forget_parent()
            self.parent_fd = self._make_directories(parts)
            self.parent_parts = parts
        return self.parent_fd

    def _forget_parent(self) -> None:
        if self.parent_fd >= 0:
            os.close(self.parent_fd)
        self.parent_fd = -1
        self.parent_parts = None

    def _make_directories(self, parts: list[str]) -> int:
        try:
            return self._open_directory(parts)
        except FileNotFoundError:
            pass
        fd = self._open_directory([])
        try:
            for depth in range(1, len(parts) + 1):
                fd = self._step(fd, parts[:depth])
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _step(self, above: int, parts: list[str]) -> int:
        """Open `parts`, whose parent is `above`, making it if it is missing; closes `above`."""
        try:
            fd = self._open_directory(parts)
        except FileNotFoundError:
            if _look(above, parts[-1]) is not None:
                raise ArchiveError(
                    f"an entry lies below {'/'.join(parts)!r}, a link that leads nowhere"
                ) from None
            self._count()
            os.mkdir(parts[-1], 0o755, dir_fd=above)
            os.chmod(parts[-1], 0o755, dir_fd=above)  # whatever the umask
            fd = self._open_directory(parts)
        os.close(above)
        return fd

    def _open_directory(self, parts: list[str], resolve: int = _WITHIN) -> int:
        """Open a directory of the tree; links on the way are followed as if the tree were `/`."""
        try:
            return openat2(
                self.tree, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY, 0, resolve
            )
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise
            raise ArchiveError(
                f"{'/'.join(parts)!r} is used as a directory but is none"
                if error.errno == errno.ENOTDIR
                else f"{'/'.join(parts)!r} is reached through a link that is not followed"
            ) from None

    def _clear_place(self, parent: int, parts: list[str]) -> None:
        """Remove what an entry replaces, without following it; only empty directories go."""
        status = _look(parent, parts[-1])
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(parts[-1], dir_fd=parent)
            return
        try:
            os.rmdir(parts[-1], dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            name = "/".join(parts)
            raise ArchiveError(f"{name!r} would replace a directory that is not empty") from None

    def _count(self) -> None:
        if self.left <= 0:
            raise ArchiveError(
                "the archive has too many entries",
                fix="if you trust it, allow more with --max-entries",
            )
        self.left -= 1

    def _remember(self, parts: list[str]) -> str:
        """Give a name that is kept to the end. A million long ones would take all memory."""
        name = "/".join(parts)
        self.names_left -= len(name)
        if self.names_left < 0:
            raise ArchiveError(f"the names in the archive are longer than {_NAMES_MAX >> 20} MiB")
        return name

    def set_directory_times(self) -> None:
        """Set the times of the directories, which filling them has changed."""
        for name, time in self.directories.items():
            try:
                fd = openat2(self.tree, name, os.O_RDONLY | os.O_DIRECTORY, 0, _NO_LINKS)
            except OSError as error:
                # Replaced by a later entry.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                    raise
                continue
            os.utime(fd, ns=(time, time))
            os.close(fd)

    def close(self) -> None:
        """Close what is open."""
        self._forget_parent()


_MAKERS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), _Unpacker._file),
    tarfile.GNUTYPE_SPARSE: _Unpacker._file,
    tarfile.DIRTYPE: _Unpacker._directory,
    tarfile.SYMTYPE: _Unpacker._symlink,
    tarfile.LNKTYPE: _Unpacker._hard_link,
    tarfile.FIFOTYPE: _Unpacker._fifo,
}


def _check_ids(entry: tarfile.TarInfo) -> None:
    for what, value in (("owner", entry.uid), ("group", entry.gid)):
        if type(value) is not int or not 0 <= value <= _ID_MAX:
            raise ArchiveError(f"entry {entry.name!r} has the {what} {value!r}, which cannot be")


def _nanoseconds(entry: tarfile.TarInfo) -> int:
    seconds = entry.mtime
    if not 0 <= seconds <= _TIME_MAX:  # false for NaN too, which a pax header may hold
        return 0
    return int(seconds * 1_000_000_000)


def _attributes(entry: tarfile.TarInfo) -> list[tuple[str, bytes]]:
    """List the extended attributes to keep. user.overlay.* would steer an overlay: left out."""
    found = []
    for key, value in entry.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if name == key or "\0" in name or name.startswith("user.overlay."):
            continue
        allowed = entry.isreg() and name == "security.capability"
        if allowed or (name.startswith("user.") and (entry.isreg() or entry.isdir())):
            found.append((name, value.encode("utf-8", "surrogateescape")))
    return found


def _look(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _write(fd: int, offset: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _failure(name: str, error: OSError | ValueError) -> MinirunError:
    """Say at which entry the kernel refused; a full disk is told apart from a bad archive."""
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    if isinstance(error, OSError) and error.errno in _FULL:
        return MinirunError(
            f"cannot unpack {name!r}: {reason}",
            cause="the disk, the quota or the file size limit of the data directory is used up",
            fix="make room, or use another data directory with --data",
        )
    return ArchiveError(f"cannot unpack {name!r}: {reason}")
