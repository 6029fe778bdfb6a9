"""From an archive to a named root filesystem: what `import` and `pull` share."""

from __future__ import annotations

import hashlib
import os
import re
import stat

from minirun.errors import MinirunError, UsageError
from minirun.rootfs import change, store
from minirun.rootfs.archive import ArchiveError, open_archive
from minirun.rootfs.unpack import MAX_BYTES, MAX_ENTRIES, Unpacked, unpack

_CHUNK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"(\.tar(\.(gz|xz|bz2|zst))?|\.t(gz|xz|bz2|zst))$", re.IGNORECASE)
# One of these at the top makes a root filesystem; the others tell an image archive.
_ROOT_SIGNS = ("bin", "etc", "usr", "sbin", "lib")
_IMAGE_SIGNS = ("manifest.json", "oci-layout", "index.json")


class Listener:
    """Whom an operation tells how it goes; this one listens to nothing."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something that may be wrong or dangerous."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes; total 0 if it is not known."""

    def close(self) -> None:
        """The operation is over, well or not."""


class Order:
    """How a root filesystem is to be made: its name, whether it may replace one, the bounds.

    `sha256` is the digest that its archive must have, empty if none is demanded.
    """

    def __init__(
        self,
        data: str,
        name: str,
        *,
        replace: bool = False,
        sha256: str = "",
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
        listener: Listener | None = None,
    ) -> None:
        self.data = data
        self.name = store.check_name(name)
        self.replace = replace
        self.sha256 = check_sha256(sha256)
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.listener = listener or Listener()


def check_sha256(text: str) -> str:
    """Return a SHA-256 digest in lower case, with or without `sha256:`; raises UsageError."""
    digest = text.lower().removeprefix("sha256:")
    if digest and not _HEX.fullmatch(digest):
        raise UsageError(f"invalid SHA-256 digest {text!r}", cause="it has 64 hexadecimal digits")
    return digest


def name_from_file(path: str) -> str:
    """Make a root filesystem's name of a file's; raises UsageError if none can be made."""
    name = _SUFFIX.sub("", os.path.basename(path)).lower()
    try:
        return store.check_name(name)
    except UsageError:
        raise UsageError(f"no name can be made of {path!r}", fix="give one with --name") from None


def present(order: Order) -> store.RootFS | None:
    """Return what has the name already, or None; a damaged one counts only as taken."""
    base = store.base_directory(order.data)
    if order.name not in store.names(base):
        return None
    store.check_trusted(base)
    try:
        return store.read(base, order.name)
    except MinirunError:
        return store.RootFS(name=order.name)


def up_to_date(order: Order, sha256: str) -> store.RootFS | None:
    """Return what has the name already if it was made of the archive with this digest.

    Raises MinirunError if the name is taken by another. None if there is nothing, or if it is to
    be replaced.
    """
    there = None if order.replace else present(order)
    if there is not None and not (sha256 and there.digest == f"sha256:{sha256}"):
        raise change.taken(order.name)
    return there


def import_file(path: str, order: Order) -> store.RootFS:
    """Make a root filesystem of the archive `path`; `-` is standard input.

    Raises MinirunError for whatever is wrong, and then leaves nothing behind.
    """
    change.require_root()
    if path == "-":
        if os.isatty(0):
            raise UsageError("standard input is a terminal, not an archive")
        return install(0, order, source="standard input")
    fd = open_archive(path)
    try:
        return install(fd, order, source=os.path.abspath(path))
    finally:
        os.close(fd)


def install(
    fd: int, order: Order, *, source: str, version: str = "", arch: str = ""
) -> store.RootFS:
    """Unpack the archive `fd` and publish it under the order's name."""
    if order.sha256 and stat.S_ISREG(os.fstat(fd).st_mode):
        check_digest(_digest(fd), order.sha256, source)
    if not order.replace and present(order) is not None:
        raise change.taken(order.name)
    total = os.fstat(fd).st_size  # 0 for a pipe
    with change.Stage(order.data, order.name) as stage:
        try:
            done = unpack(
                fd,
                stage.tree,
                max_bytes=order.max_bytes,
                max_entries=order.max_entries,
                progress=lambda count: order.listener.progress("unpacking", count, total),
            )
        except ArchiveError as error:
            raise MinirunError(
                f"{source}: {error.message}", cause=error.cause, fix=error.fix
            ) from None
        if order.sha256:
            check_digest(done.digest, order.sha256, source)
        _judge(done, order.listener)
        about = store.RootFS(
            name=order.name, source=source, version=version, architecture=arch,
            digest=f"sha256:{done.digest}", size=done.size, entries=done.entries,
        )  # fmt: skip
        return stage.publish(about, replace=order.replace)


def check_digest(found: str, wanted: str, what: str) -> None:
    """Refuse an archive whose digest is not the one demanded."""
    if found != wanted:
        raise MinirunError(
            f"{what}: checksum mismatch",
            cause=f"its digest is {found}, expected was {wanted}",
            fix="the file is damaged, or not the one you mean: get it again",
        )


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
    os.lseek(fd, 0, os.SEEK_SET)
    return digest.hexdigest()


def _judge(done: Unpacked, listener: Listener) -> None:
    """Refuse an image archive, doubt what looks like no root filesystem, tell what was left out."""
    if not done.top.intersection(_ROOT_SIGNS):
        if done.top.intersection(_IMAGE_SIGNS):
            raise MinirunError(
                "this is an image archive, not a root filesystem",
                cause="it holds layers, as `docker save` writes them",
                fix="export a container of it: docker export CONTAINER | "
                "sudo minirun rootfs import - --name NAME",
            )
        shown = ", ".join(repr(name) for name in sorted(done.top)[:5])
        listener.warn(f"this does not look like a root filesystem: at its top is {shown}")
    if done.devices:
        listener.note(f"{done.devices} device nodes left out: minirun makes a container's /dev")
    if done.attributes:
        listener.warn(
            f"{done.attributes} extended attributes lost: the data directory's file system "
            "cannot keep them"
        )
