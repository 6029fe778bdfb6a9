"""Reading an archive that may be hostile: compression, bounds, digest, and the end of it.

Nothing here writes. The chain is: file -> `_Source` (counts, hashes) -> decompressor -> `Archive`,
a forward-only file for tarfile, which bounds what tarfile does not: the size of a header (a pax
header may claim gigabytes), of the whole, and it notices when tarfile takes damage for the end.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tarfile
import zlib

from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CHUNK = 1 << 20
_HEADER_MAX = 256 << 10  # of one entry, with its long names and extended attributes
_GLOBAL_MAX = 4 << 10  # of what pax headers say for all entries to come: git's has 52 bytes
_XZ_MEMORY = 256 << 20  # a dictionary may claim 4 GiB
_BLOCK = 512
_PATH_MAX = 4096
_DEPTH_MAX = 256

_NOT_ARCHIVES = {
    b"PK\x03\x04": "a zip file",
    b"hsqs": "a squashfs image",
    b"QFI\xfb": "a qcow2 disk image",
    b"\x7fELF": "a program",
    b"!<arch>\n": "an ar archive (a .deb file?)",
    b"070701": "a cpio archive",
    b"070707": "a cpio archive",
    b"<": "a web page",
}

# What the decompressors and tarfile raise for damage; of OSError only what carries no errno.
_DAMAGE = (
    tarfile.TarError, EOFError, zlib.error, lzma.LZMAError,
    ValueError, OverflowError, RecursionError, IndexError, KeyError,
)  # fmt: skip


class ArchiveError(MinirunError):
    """The archive is damaged, too large, or holds what is refused."""


class _Source:
    """The file as it is, counted and hashed as it is read."""

    def __init__(self, fd: int, progress: Callable[[int], None]) -> None:
        self.fd = fd
        self.progress = progress
        self.hash = hashlib.sha256()
        self.count = 0
        self.ahead = b""

    def peek(self, size: int) -> bytes:
        """Look at the first `size` bytes; fewer only if there are no more."""
        while len(self.ahead) < size and (chunk := self._fetch(size - len(self.ahead))):
            self.ahead += chunk
        return self.ahead[:size]

    def read(self, size: int) -> bytes:
        if self.ahead:
            taken, self.ahead = self.ahead[:size], self.ahead[size:]
            return taken
        return self._fetch(min(size, _CHUNK))

    def _fetch(self, size: int) -> bytes:
        chunk = os.read(self.fd, size)
        self.hash.update(chunk)
        self.count += len(chunk)
        self.progress(self.count)
        return chunk


class _Decompressed:
    """What the one-shot decompressors of bz2, lzma, zstd and zlib have in common, as a file."""

    def __init__(self, source: _Source, make: Callable[[], Any]) -> None:
        self.source = source
        self.make = make
        self.engine = make()
        self.pending = b""

    def read(self, size: int) -> bytes:
        while True:
            if self.engine.eof:
                self.pending = self.engine.unused_data
                if not self._next_stream():
                    return b""
            if not self.pending and self.engine.needs_input:
                self.pending = self.source.read(_CHUNK)
                if not self.pending:
                    raise EOFError("compressed data ends before its end mark")
            given, self.pending = self.pending, b""
            data: bytes = self.engine.decompress(given, size)
            if data:
                return data

    def _next_stream(self) -> bool:
        """Start on the stream that follows the last, skipping padding; False if none does."""
        while True:
            self.pending = self.pending.lstrip(b"\0")
            if self.pending:
                break
            self.pending = self.source.read(_CHUNK)
            if not self.pending:
                return False
        self.engine = self.make()
        return True


class _Gzip:
    """zlib's decompressor with the face of the others."""

    def __init__(self) -> None:
        self.engine = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self.engine.eof

    @property
    def needs_input(self) -> bool:
        return not self.engine.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self.engine.unused_data

    def decompress(self, data: bytes, size: int) -> bytes:
        return self.engine.decompress(self.engine.unconsumed_tail + data, size)


def _bzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _xz() -> Any:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _zstandard() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        raise ArchiveError(
            "zstd archives cannot be read by this Python",
            cause="Python reads them since 3.14",
            fix="zstd -dc FILE | sudo minirun rootfs import - --name NAME",
        ) from None
    return zstd.ZstdDecompressor()


_COMPRESSIONS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", _Gzip),
    (b"\xfd7zXZ\x00", _xz),
    (b"BZh", _bzip2),
    (b"\x28\xb5\x2f\xfd", _zstandard),
)


class Archive:
    """A tar archive read once from start to end: call `next_entry` until None, then `finish`.

    `fd` stays the caller's. `limit` bounds the bytes after decompression; `progress` is told how
    many bytes of the file were read. All methods raise ArchiveError for damage and OSError if the
    file itself cannot be read.
    """

    def __init__(
        self, fd: int, limit: int, progress: Callable[[int], None] = lambda count: None
    ) -> None:
        self.source = _Source(fd, progress)
        self.limit = limit
        self.position = 0
        self.budget = _HEADER_MAX
        self.last = b""
        start = self.source.peek(len(b"\xfd7zXZ\x00") + 2)
        made = next((make for magic, make in _COMPRESSIONS if start.startswith(magic)), None)
        self.stream = _Decompressed(self.source, made) if made else self.source
        self._recognise(start)
        self.tar: tarfile.TarFile = self._guard(
            tarfile.TarFile, fileobj=self, mode="r", encoding="utf-8", errors="surrogateescape"
        )

    def _recognise(self, start: bytes) -> None:
        if not start:
            raise ArchiveError("the archive is empty")
        for magic, what in _NOT_ARCHIVES.items():
            if start.startswith(magic):
                raise ArchiveError(
                    f"not a tar archive but {what}",
                    fix="root filesystems come as .tar, .tar.gz, .tar.xz, .tar.bz2 or .tar.zst",
                )

    def next_entry(self) -> tarfile.TarInfo | None:
        """Read the next header, or None at the end mark; a missing end mark is damage."""
        self.budget = _HEADER_MAX
        entry: tarfile.TarInfo | None = self._guard(self.tar.next)
        # tarfile keeps every header: a million of them are gigabytes.
        self.tar.members = []  # type: ignore[attr-defined]
        # It keeps these too, and gives a copy to every entry.
        if sum(len(key) + len(value) for key, value in self.tar.pax_headers.items()) > _GLOBAL_MAX:
            raise self._damaged(f"global headers are larger than {_GLOBAL_MAX >> 10} KiB")
        if entry is None and self.last != bytes(_BLOCK):
            # tarfile takes a damaged or missing header for the end of the archive.
            raise ArchiveError(f"the archive is cut short or damaged at byte {self.position}")
        return entry

    def content(self, entry: tarfile.TarInfo, write: Callable[[int, bytes], None]) -> None:
        """Give the data of a regular file to `write(offset, chunk)`; holes are left out."""
        if entry.size < 0:
            raise ArchiveError(f"{entry.name!r} has a negative size")
        sparse: Any = entry.sparse
        extents = [(0, entry.size)] if sparse is None else sparse
        self._guard(self.seek, entry.offset_data)
        end = 0
        for offset, length in extents:
            if not end <= offset <= offset + length <= entry.size:
                raise ArchiveError(f"{entry.name!r} has a sparse map that makes no sense")
            end = offset + length
            self._guard(self._copy, offset, end, write)

    def finish(self) -> str:
        """Read to the end of the file, which checks the compression's own checksum.

        Returns the hexadecimal SHA-256 digest of the file as it was given.
        """
        while self._guard(self._take, _CHUNK):
            pass
        while self.source.read(_CHUNK):
            pass
        return str(self.source.hash.hexdigest())

    def _copy(self, offset: int, end: int, write: Callable[[int, bytes], None]) -> None:
        while offset < end:
            chunk = self._take(min(_CHUNK, end - offset))
            if not chunk:
                raise EOFError("the data of a file is cut short")
            write(offset, chunk)
            offset += len(chunk)

    def _take(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.position += len(data)
        if self.position > self.limit:
            raise ArchiveError(
                f"the archive unpacks to more than {self.limit} bytes",
                fix="if you trust it, allow more with --max-size",
            )
        return data

    def _guard(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except _DAMAGE as error:
            detail = str(error) or type(error).__name__
            raise self._damaged(detail) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damaged(str(error)) from None

    def _damaged(self, detail: str) -> ArchiveError:
        what = "not a tar archive" if self.position <= _BLOCK else "the archive is damaged or cut"
        return ArchiveError(f"{what}: {detail[:200]} (at byte {self.position})")

    # The file that tarfile sees.

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise ValueError("an entry overlaps the one before it")
        while self.position < position:
            if not self._take(min(_CHUNK, position - self.position)):
                raise EOFError("unexpected end of data")

    def read(self, size: int) -> bytes:
        """Read a header: `size` bytes, or fewer at the end of the data."""
        self.budget -= size
        if size < 0 or self.budget < 0:
            raise ValueError(f"a header is larger than {_HEADER_MAX >> 10} KiB")
        parts = []
        left = size
        while left and (chunk := self._take(left)):
            parts.append(chunk)
            left -= len(chunk)
        self.last = b"".join(parts)
        return self.last


def split(name: str, what: str) -> list[str]:
    """Split a name of the archive; a leading slash means the tree's root, `..` is refused."""
    if "\0" in name:
        raise ArchiveError(f"{what} {name!r} holds a NUL byte")
    if len(name) > _PATH_MAX:
        raise ArchiveError(f"{what} {name[:80]!r}... has a name longer than {_PATH_MAX}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError(f"{what} {name!r} leads out of the directory")
    if len(parts) > _DEPTH_MAX:
        raise ArchiveError(f"{what} {name[:80]!r}... is deeper than {_DEPTH_MAX} directories")
    return parts


def open_archive(path: str) -> int:
    """Open an archive for reading; only regular files and pipes are taken, links are followed.

    Raises MinirunError with the reason and, for a directory, the way to pack it.
    """
    if "\0" in path:
        raise MinirunError("the name of an archive holds a NUL byte")
    try:
        # Looked at first: opening a device may wait, or rewind a tape.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise MinirunError(f"cannot open archive {path!r}: {reason}") from None
    fix = ""
    if stat.S_ISDIR(mode):
        fix = (
            f"use it as it is: minirun run --rootfs {path} ... or pack it: "
            f"sudo tar -C {path} -c . | sudo minirun rootfs import - --name NAME"
        )
    raise MinirunError(f"{path!r} is not an archive", fix=fix)
