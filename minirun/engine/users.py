"""Who `-u` means: `uid[:gid]` or `name[:group]`, looked up in a hostile root filesystem.

A number is always that number, whatever the root filesystem's /etc/passwd calls itself
(CVE-2016-3697). Only the root filesystem's files are read, never the host's, so the pwd and grp
modules are not for this.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun import inroot
from minirun.errors import UsageError
from minirun.spec import ID_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FILE = 1 << 20  # CVE-2026-47262: a giant /etc/group must not fill the memory
_MAX_LINE = 64 << 10
_MAX_HOME = 4096 - 1
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_DIGITS = frozenset("0123456789")
_LINK_ERRORS = (errno.ELOOP, errno.ENAMETOOLONG)  # a hostile chain of links


class Account:
    """A user as the kernel knows it: numbers, and the home directory inside the container."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = (), home: str = "/") -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


class _User:
    def __init__(self, name: str, uid: int, gid: int, home: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home


def resolve(text: str | None, rootfd: int) -> Account:
    """Resolve what `-u` was given (None: root) against the root filesystem `rootfd`.

    A number without a group has the primary group of the first account with that number, or 0.
    The groups that list the user as a member are added unless a group was named. Raises UsageError
    for anything outside the grammar, a number above 4294967294, and an unknown name.
    """
    user, group = split("0" if text is None else text)
    users = list(_users(rootfd))
    number = parse_id(user)
    found = next(
        (
            entry
            for entry in users
            if (entry.name == user if number is None else entry.uid == number)
        ),
        None,
    )
    if found is None and number is None:
        raise _unknown("user", user, "/etc/passwd")
    uid = found.uid if found is not None else number or 0
    home = found.home if found is not None else "/"
    if group is not None:
        return Account(uid, _group(group, rootfd), (), home)
    if found is None:
        return Account(uid, 0, (), home)
    groups = [gid for name, gid, members in _groups(rootfd) if found.name in members]
    return Account(uid, found.gid, _unique(groups, found.gid), home)


def split(text: str) -> tuple[str, str | None]:
    """Split `user[:group]`; each part is a number in plain decimal or a name.

    Raises UsageError for empty parts, signs, blanks, leading zeros and other notations of numbers.
    """
    parts = text.split(":")
    if len(parts) > 2 or not all(_is_number(part) or _is_name(part) for part in parts):
        raise UsageError(
            f"invalid user {text!r}: want uid[:gid] or name[:group]",
            fix="write numbers in plain decimal, such as --user 1000:1000",
        )
    return parts[0], parts[1] if len(parts) == 2 else None


def parse_id(text: str) -> int | None:
    """Return the number that `text` is, or None for a name; UsageError when it is too large."""
    if not _is_number(text):
        return None
    if len(text) > 10 or int(text) > ID_MAX:
        # 2**32 - 1 means "leave unchanged" to setresuid(2): the process would stay root.
        raise UsageError(f"invalid user or group {text[:20]!r}: must be at most {ID_MAX}")
    return int(text)


def _is_number(text: str) -> bool:
    return bool(text) and _DIGITS.issuperset(text) and (text == "0" or text[0] != "0")


def _is_name(text: str) -> bool:
    return (
        bool(text) and len(text) <= 256 and _NAME.issuperset(text) and text[0] not in "0123456789.-"
    )


def _group(text: str, rootfd: int) -> int:
    number = parse_id(text)
    if number is not None:
        return number
    for name, gid, _members in _groups(rootfd):
        if name == text:
            return gid
    raise _unknown("group", text, "/etc/group")


def _unknown(what: str, name: str, path: str) -> UsageError:
    return UsageError(
        f"unable to find {what} {name}: no matching entries in {path[5:]} file",
        cause=f"{path} of the root filesystem has no such line, or is not a small regular file",
        fix=f"give the {what}'s number",
    )


def _unique(gids: list[int], primary: int) -> tuple[int, ...]:
    return tuple([gid for gid in dict.fromkeys(gids) if gid != primary])


def _users(rootfd: int) -> Iterator[_User]:
    for fields in _lines(rootfd, "etc/passwd", 7):
        uid, gid = _entry_id(fields[2]), _entry_id(fields[3])
        if _is_name(fields[0]) and uid is not None and gid is not None:
            yield _User(fields[0], uid, gid, _home(fields[5]))


def _groups(rootfd: int) -> Iterator[tuple[str, int, list[str]]]:
    for fields in _lines(rootfd, "etc/group", 4):
        gid = _entry_id(fields[2])
        if _is_name(fields[0]) and gid is not None:
            yield fields[0], gid, fields[3].split(",")


def _entry_id(text: str) -> int | None:
    if not _is_number(text) or len(text) > 10 or int(text) > ID_MAX:
        return None
    return int(text)


def _home(text: str) -> str:
    """Give a home directory that can stand in the environment and in files line by line."""
    fit = text.startswith("/") and len(text) <= _MAX_HOME and text.isprintable()
    return text if fit else "/"


def _lines(rootfd: int, path: str, count: int) -> Iterator[list[str]]:
    for line in _read(rootfd, path).split(b"\n"):
        if len(line) > _MAX_LINE or line.startswith(b"#") or line.count(b":") != count - 1:
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            continue
        yield text.split(":")


def _read(rootfd: int, path: str) -> bytes:
    """Read a regular file of at most 1 MiB inside the root; anything else counts as empty."""
    try:
        fd = inroot.open_path(rootfd, path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return b""
    except OSError as error:
        if error.errno in _LINK_ERRORS:
            return b""
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE:
            return b""
        # Only now is it opened for reading: to open a FIFO hangs, to open a device may act.
        opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(fd)
    try:
        data = b""
        while len(data) <= _MAX_FILE and (chunk := os.read(opened, 65536)):
            data += chunk
    finally:
        os.close(opened)
    return data if len(data) <= _MAX_FILE else b""
