"""Where root filesystems are kept, and how one is found by its name.

    DATA/                    0711
      rootfs/                0700: set-uid files below are out of other users' reach
        NAME/                one root filesystem
          rootfs/            its tree, shared read-only by every container that uses it
          meta.json          what it is and where it came from: RootFS
        .NAME.tmp-XXXX/      one in the making or being removed; locked by its maker (`change`)
        .lock                held for the moment in which names change

This module is on the engine's path and imports little; what changes the store is in `change`.
"""

from __future__ import annotations

import os
import stat

from minirun import jsontext
from minirun.errors import MinirunError, UsageError
from minirun.record import INT64, Record, integer, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = "/var/lib/minirun"
DATA_VARIABLE = "MINIRUN_DATA"

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("._-")
_NAME_MAX = 63


class RootFS(Record):
    """One root filesystem. `path` is the absolute path of its tree.

    `digest` is `sha256:HEX` of what it was made from, `source` says in words what that was;
    `created` is in seconds since 1970, `size` the bytes of its files, `entries` their number.
    """

    name: str = string(required=True)
    path: str = string(default="")
    digest: str = string(default="")
    source: str = string(default="")
    version: str = string(default="")
    architecture: str = string(default="")
    created: int = integer(0, INT64, default=0)
    size: int = integer(0, INT64, default=0)
    entries: int = integer(0, INT64, default=0)


def data_directory(option: str | None, environ: Mapping[str, str]) -> str:
    """Give the absolute data directory: the option, else $MINIRUN_DATA, else /var/lib/minirun."""
    chosen = option or environ.get(DATA_VARIABLE) or DATA
    if "\0" in chosen:
        raise UsageError("data directory holds a NUL byte")
    return os.path.abspath(chosen)


def check_name(name: str) -> str:
    """Return `name` if a root filesystem may be called so; raises UsageError.

    1 to 63 of a-z 0-9 . _ - and a letter or digit first, so it is never a path, hidden, an option.
    """
    if 0 < len(name) <= _NAME_MAX and name[0] in _FIRST and _REST.issuperset(name):
        return name
    raise UsageError(
        f"invalid root filesystem name {name!r}",
        cause="a name has 1 to 63 characters out of a-z 0-9 . _ - and starts with one of a-z 0-9",
    )


def stored_name(reference: str) -> str:
    """Give the name under which IMAGE[:VERSION] is stored: alpine, alpine-3.20; raises UsageError.

    `:latest` is the same as no version.
    """
    image, _, version = reference.partition(":")
    if not version:
        return check_name(reference)
    return check_name(image if version == "latest" else f"{image}-{version}")


def find(data: str, name_or_dir: str) -> RootFS:
    """Find a root filesystem by its name in the data directory `data`, or by a directory's path.

    What has a slash in it, `.` and `..` are directories, never names. Raises MinirunError if there
    is none, UsageError for what can be no name.
    """
    if "/" in name_or_dir or name_or_dir in (".", ".."):
        return _given_directory(name_or_dir)
    name = stored_name(name_or_dir)
    base = base_directory(data)
    try:
        check_trusted(base)
        return read(base, name)
    except FileNotFoundError:
        raise missing(base, name) from None
    except PermissionError as error:
        raise no_permission(error, base) from None


def read(base: str, name: str) -> RootFS:
    """Read the entry `name` of the store's directory `base`.

    Raises FileNotFoundError if there is none, MinirunError if it is damaged.
    """
    place = f"{base}/{name}"
    damaged = None
    os.lstat(place)
    for path in (place, f"{place}/rootfs"):
        # lstat: a link put in the place of either would lead the mount elsewhere.
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                damaged = f"{path} is not a directory"
        except FileNotFoundError:
            damaged = f"{path} is missing"
    try:
        found = RootFS.decode(jsontext.read(f"{place}/meta.json", "meta.json"))
    except FileNotFoundError:
        damaged = damaged or f"{place}/meta.json is missing"
    except MinirunError as error:
        damaged = damaged or error.message
    if damaged:
        raise MinirunError(
            f"root filesystem {name} is damaged: {damaged}",
            fix=f"remove it and get it again: sudo minirun rootfs rm {name}",
        )
    return found.replace(name=name, path=f"{place}/rootfs")


def base_directory(data: str) -> str:
    """Give the directory of the data directory in which the root filesystems are."""
    return os.path.join(os.path.abspath(data), "rootfs")


def names(base: str) -> list[str]:
    """List the names in the store's directory `base`, sorted; none if it does not exist."""
    try:
        found = os.listdir(base)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise no_permission(error, base) from None
    return sorted(name for name in found if name[0] in _FIRST and _REST.issuperset(name))


def check_trusted(path: str) -> None:
    """Refuse a directory that someone else could replace or fill.

    It and all above it belong to root or to the caller, and nobody else may write to them, but
    for sticky ones such as /tmp. Raises MinirunError, or OSError if it cannot be opened.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    below = None
    try:
        while (status := os.fstat(fd)) and (status.st_dev, status.st_ino) != below:
            _check_owner(status, path, top=below is None)
            below = (status.st_dev, status.st_ino)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = above
    finally:
        os.close(fd)


def _check_owner(status: os.stat_result, path: str, *, top: bool) -> None:
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others and (top or not status.st_mode & stat.S_ISVTX):
        what = f"may be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
    elif status.st_uid not in (0, os.geteuid()):
        what = f"belongs to user {status.st_uid}"
    else:
        return
    where = "it" if top else "a directory above it"
    raise MinirunError(
        f"refusing data directory {path}: {where} {what}",
        cause="whoever can write there decides what runs as root in the containers",
        fix="choose another one with --data, or correct its owner and mode",
    )


def no_permission(error: OSError, base: str) -> MinirunError:
    """Say that the store needs root."""
    return MinirunError(
        f"cannot read {error.filename or base}: permission denied",
        fix="run it as root: root filesystems hold set-uid files and are closed to other users",
    )


def _given_directory(path: str) -> RootFS:
    if "\0" in path:
        raise UsageError("root filesystem path holds a NUL byte")
    absolute = os.path.abspath(path)
    try:
        status = os.stat(absolute)
    except (FileNotFoundError, NotADirectoryError):
        raise MinirunError(f"root filesystem directory {path!r} does not exist") from None
    except OSError as error:
        raise MinirunError(f"cannot use {path!r}: {(error.strerror or '').lower()}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MinirunError(
            f"{path!r} is not a directory",
            fix=f"if it is an archive, import it first: sudo minirun rootfs import {path}",
        )
    return RootFS(name=os.path.basename(absolute) or "root", path=absolute, source="directory")


def missing(base: str, name: str, *, wanted: bool = True) -> MinirunError:
    """Say that there is no root filesystem `name`, which there are, and how to get it if wanted."""
    present = names(base)
    near = [other for other in present if is_near(name, other)]
    cause, ways = "", []
    if near:
        ways.append(f"say {' or '.join(near[:3])}")
    elif present:
        cause = f"there are: {', '.join(present[:8])}{' ...' if len(present) > 8 else ''}"
    if os.path.isdir(name):
        cause = f"a directory of that name is here: say ./{name} to use it"
    # Of a slip of the pen there is no archive.
    if wanted and not (near and _way_to(name).endswith(f"--name {name}")):
        ways.append(f"get it: {_way_to(name)}")
    return MinirunError(
        f"root filesystem {name} does not exist", cause=cause, fix=", or ".join(ways)
    )


def _way_to(name: str) -> str:
    if name.startswith("alpine"):
        return f"sudo minirun rootfs pull {name.replace('alpine-', 'alpine:', 1)}"
    if name.startswith("busybox"):
        return "sudo minirun rootfs build busybox"
    return f"sudo minirun rootfs import FILE.tar.gz --name {name}"


def is_near(one: str, other: str) -> bool:
    """Tell whether two names are a prefix or two slips of the pen apart."""
    return other.startswith(one) or one.startswith(other) or _distance(one, other) <= 2


def _distance(one: str, other: str) -> int:
    """Count the insertions, deletions and substitutions between two names (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]
