"""The host's user and group IDs that a container's user namespace is given: 65536 of its own.

A range is leased by making `DATA/idranges/START`, a file that holds the container's ID, under a
lock on that directory. Ranges come from the part of the ID space that systemd sets aside for
containers (systemd.io/UIDS-GIDS), above every range that /etc/subuid and /etc/subgid give to users.
"""

from __future__ import annotations

import fcntl
import os

from minirun import idmap
from minirun.errors import Unsupported
from minirun.spec import IDMapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 65536
FIRST = 524288
LAST = 1878982656  # the start of the last range that systemd leaves to containers

_MAX_FILE = 1 << 20


def lease(directory: str, cid: str, alive: Callable[[str], bool]) -> int:
    """Give the container `cid` a range of its own; return the first host ID in it.

    `directory` holds the leases. A lease is taken over when `alive(owner)` is false: its holder
    died before it could give it back. Raises Unsupported when no range is left or this process may
    not map any, being in a user namespace itself.
    """
    taken = _delegated("/etc/subuid") + _delegated("/etc/subgid")
    mapped = (_own_map("uid"), _own_map("gid"))
    with _Locked(directory) as dirfd:
        leased = {name for name in os.listdir(dirfd) if _number(name) is not None}
        for start in range(FIRST, LAST + 1, SIZE):
            if not all(_inside(start, ranges) for ranges in mapped) or _overlaps(start, taken):
                continue
            if str(start) in leased:
                if alive(_owner(dirfd, str(start))):
                    continue
                os.unlink(str(start), dir_fd=dirfd)
            _write(dirfd, str(start), cid)
            return start
    raise Unsupported(
        "no range of user ids is left for a user namespace",
        cause=f"{SIZE} ids are needed from {FIRST} on that neither a container nor /etc/subuid has",
        fix="delete containers that are not used, or pass --userns host",
    )


def release(directory: str, cid: str) -> None:
    """Give back every range that `cid` holds; holding none is fine."""
    if not os.path.isdir(directory):
        return
    with _Locked(directory) as dirfd:
        for name in os.listdir(dirfd):
            if _number(name) is not None and _owner(dirfd, name) == cid:
                os.unlink(name, dir_fd=dirfd)


def mapping(start: int) -> list[dict[str, int]]:
    """Give the mapping of a leased range, as config.json has it."""
    return [{"containerID": 0, "hostID": start, "size": SIZE}]


def namespace(start: int) -> int:
    """Return a descriptor of a new user namespace that maps a leased range; see `idmap`."""
    one = (IDMapping(container_id=0, host_id=start, size=SIZE),)
    return idmap.user_namespace(one, one)


class _Locked:
    """The directory of leases, made if missing, under its lock."""

    def __init__(self, directory: str) -> None:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __enter__(self) -> int:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self._fd

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


def _write(dirfd: int, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=dirfd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _owner(dirfd: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dirfd)
    try:
        return os.fsdecode(os.read(fd, 4096))
    finally:
        os.close(fd)


def _delegated(path: str) -> list[tuple[int, int]]:
    """Read the `name:start:count` lines of subuid(5); what cannot be read delegates nothing."""
    ranges = []
    for line in _read(path).split("\n"):
        fields = line.split(":")
        start, count = [_number(field) for field in fields[1:]] if len(fields) == 3 else (None, 0)
        if start is not None and count:
            ranges.append((start, count))
    return ranges


def _own_map(kind: str) -> list[tuple[int, int]]:
    ranges = []
    for line in _read(f"/proc/self/{kind}_map").split("\n"):
        fields = line.split()
        if len(fields) == 3:
            ranges.append((int(fields[0]), int(fields[2])))
    return ranges


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return ""
    try:
        data = b""
        while len(data) < _MAX_FILE and (chunk := os.read(fd, 65536)):
            data += chunk
    finally:
        os.close(fd)
    return os.fsdecode(data)


def _number(text: str) -> int | None:
    ascii_digits = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if ascii_digits else None


def _inside(start: int, ranges: list[tuple[int, int]]) -> bool:
    return any(low <= start and start + SIZE <= low + count for low, count in ranges)


def _overlaps(start: int, ranges: list[tuple[int, int]]) -> bool:
    return any(start < low + count and low < start + SIZE for low, count in ranges)
