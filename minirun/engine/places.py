"""The directories below the data directory that belong to containers made from flags.

    DATA                 /var/lib/minirun, or $MINIRUN_DATA; 0711
    DATA/containers/ID   the bundle of one container
    DATA/idranges        who holds which range of user IDs

Only root may enter a bundle, and the root of its own user namespace: a local user who could walk
into a root filesystem would find set-user-ID programs there (CVE-2021-41103).
"""

from __future__ import annotations

import errno
import os

from minirun.errors import AlreadyExists, MinirunError, UsageError
from minirun.remove import remove_tree
from minirun.rootfs.store import check_trusted, data_directory

_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
_ID_MAX = 128
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def data() -> str:
    """Return the data directory's path, absolute and without links."""
    return os.path.realpath(data_directory(None, os.environ))


def containers(data_: str) -> str:
    """Return the directory of the bundles."""
    return f"{data_}/containers"


def idranges(data_: str) -> str:
    """Return the directory of the leases of user IDs."""
    return f"{data_}/idranges"


def check_id(cid: str) -> str:
    """Return the container's ID; UsageError for one that is not fit to name a directory."""
    if not 0 < len(cid) <= _ID_MAX or not _ID.issuperset(cid) or cid in (".", ".."):
        raise UsageError(f"invalid container ID format: {cid!r}"[:300])
    return cid


def make(data_: str) -> None:
    """Make the data directory and that of the bundles.

    Raises MinirunError when somebody other than root could replace either: what lies there decides
    what root runs.
    """
    try:
        _make_parents(data_)
        make_directory(containers(data_), 0o711)
    except PermissionError as error:
        raise MinirunError(
            f"cannot make {error.filename}: permission denied",
            fix="run it as root: a container's files belong to many users",
        ) from None
    check_trusted(containers(data_))


def _make_parents(path: str) -> None:
    here = ""
    for part in path.split("/")[1:]:
        here += f"/{part}"
        # Traversable, not readable: the root of a user namespace must reach its root filesystem.
        make_directory(here, 0o711)


def make_directory(path: str, mode: int) -> None:
    """Make a directory with exactly `mode` whatever the umask; one that exists stays as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    os.chmod(path, mode)


def make_bundle(data_: str, cid: str, root: str | None = None) -> str:
    """Make the directory of a new container's bundle; return its path.

    `root` is the state directory that the container will be in, None for the default one. Raises
    AlreadyExists when the ID has a bundle since this boot.
    """
    path = f"{containers(data_)}/{cid}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise AlreadyExists(
            "container with given ID already exists",
            cause=f"{path} is there",
            fix=f"minirun delete --force {cid}, or choose another ID",
        ) from None
    write(f"{path}/boot", boot_id() + _root_line(root))
    return path


def _root_line(root: str | None) -> str:
    return os.path.abspath(root) + "\n" if root else ""


def survived_boot(path: str) -> bool:
    """Tell whether the bundle `path` was made before the machine's last start.

    State and mounts are gone then, so nothing of the container lives.
    """
    found = _origin(path)
    return bool(found) and not found.startswith(boot_id())


def belongs(path: str, root: str | None) -> bool:
    """Tell whether the bundle `path` was made for the state directory `root` (None: the default).

    One whose making was cut short before it could say so belongs to whoever asks.
    """
    found = _origin(path)
    return not found or found.partition("\n")[2] == _root_line(root)


def _origin(path: str) -> str:
    """Read in which boot, and for which state directory, a bundle was made; "" when not known."""
    try:
        fd = os.open(f"{path}/boot", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return ""
        raise
    try:
        return os.fsdecode(os.read(fd, 8192))
    finally:
        os.close(fd)


def identity(path: str) -> tuple[int, int, int] | None:
    """Tell one bundle from a later one at the same path; None where none is whole.

    Its file `boot` is written once. Inodes are given again at once, times are not.
    """
    try:
        status = os.stat(f"{path}/boot", follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def boot_id() -> str:
    """Return the kernel's random identity of this boot."""
    fd = os.open(_BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fsdecode(os.read(fd, 256))
    finally:
        os.close(fd)


def write(path: str, text: str, mode: int = 0o600) -> None:
    """Write a new file with exactly `mode`; anything in its place is an error, link or not."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        raw = text.encode()
        while raw:
            raw = raw[os.write(fd, raw) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove(data_: str, cid: str) -> None:
    """Delete a bundle's directory, never through a link or across a mount; none is fine."""
    where = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    dirfd = os.open(containers(data_), where)
    try:
        remove_tree(dirfd, cid)
    finally:
        os.close(dirfd)
