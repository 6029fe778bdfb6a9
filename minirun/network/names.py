"""resolv.conf and hosts: what a container knows of names."""

from __future__ import annotations

import errno
import os
import stat

from minirun.errors import UsageError
from minirun.network import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HOST_RESOLV_CONF = "/etc/resolv.conf"
# What systemd-resolved knows behind its stub at 127.0.0.53: systemd-resolved.service(8).
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
_READ_MAX = 64 << 10
_NOT_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES)
_GATEWAY_NAME = "host.minirun.internal"


def check_words(words: Iterable[str]) -> None:
    """Raise UsageError for a word that would be more than one in resolv.conf."""
    for word in words:
        if not word or not all("!" <= char <= "~" for char in word) or word[0] in "#;":
            raise UsageError(f"invalid word for resolv.conf: {word!r}")


def resolv_conf(
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    sources: Sequence[str] = (HOST_RESOLV_CONF, RESOLVED_CONF),
    shares_host: bool = False,
) -> str:
    """Give a container's resolv.conf: the host's, with what is given in its place.

    Servers that a container cannot reach are left out: loopback ones, which are stubs of the
    host's, and IPv6 ones. If the first of `sources` has no other, the next is asked. `search` of
    (".",) means none. With `shares_host` the container is in the host's network and can reach all.
    """
    found = (
        _reachable(sources, shares_host) if not (servers and search and options) else ([], [], [])
    )
    used = list(servers) or found[0]
    domains = [name for name in (list(search) or found[1]) if name != "."]
    lines = [f"nameserver {server}" for server in used]
    if not used:
        lines.append(
            "# no name server of the host can be reached from here; run with --dns ADDRESS"
        )
    if domains:
        lines.append("search " + " ".join(domains))
    if chosen := (list(options) or found[2]):
        lines.append("options " + " ".join(chosen))
    return "".join(line + "\n" for line in lines)


def _reachable(sources: Sequence[str], everything: bool) -> tuple[list[str], list[str], list[str]]:
    first: tuple[list[str], list[str], list[str]] | None = None
    for path in sources:
        found = parse_resolv_conf(_read(path), everything)
        if found[0]:
            # The stub's file holds the same search list, and options of its own (edns0 trust-ad).
            return found if first is None else (found[0], found[1] or first[1], found[2])
        first = first or found
    return first or ([], [], [])


def parse_resolv_conf(
    text: str, everything: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """Read (servers that a container can reach, search list, options). Source: resolv.conf(5).

    `everything` keeps the other servers too.
    """
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = [word for word in line.split() if all("!" <= char <= "~" for char in word)]
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and words[1] not in servers:
            servers += [words[1]] if everything or _can_reach(words[1]) else []
        elif words[0] in ("search", "domain"):
            search = words[1:]  # the last one wins
        elif words[0] == "options":
            options += words[1:]
    return servers, search, options


def _can_reach(server: str) -> bool:
    if not address.is_ipv4(server):
        return False
    value = address.parse(server)
    return value != 0 and not address.contains(address.LOOPBACK, value)


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""  # a host without it has no name servers to pass on
    try:
        return os.read(fd, _READ_MAX).decode("ascii", "replace")
    finally:
        os.close(fd)


def split_extra(entry: str) -> tuple[str, str]:
    """Read `name:address` of --add-host; raises UsageError."""
    name, colon, value = entry.partition(":")
    if not colon or not address.is_hostname(name) or not address.is_ipv4(value):
        raise UsageError(f"invalid extra host {entry!r}: must be NAME:IPV4ADDRESS")
    return name, value


def hosts_text(
    own: str,
    hostname: str,
    container: str,
    *,
    extra: Iterable[str] = (),
    others: Iterable[tuple[str, str, str]] = (),
    gateway: str = "",
) -> str:
    """Give a hosts file: localhost, the container, `extra`, then `others` as (address, hostname,
    ID), the first line of a name being the one that counts. `own` is "" before there is an address.
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    taken = {"localhost", "ip6-localhost", "ip6-loopback"}
    entries = [(own, hostname, container)] if own else []
    entries += [(value, name, "") for name, value in map(split_extra, extra)]
    entries += [(gateway, _GATEWAY_NAME, "")] if gateway else []
    for value, *names in [*entries, *others]:
        new = [name for name in dict.fromkeys(names) if _new_name(name, taken)]
        taken.update(name.lower() for name in new)
        if new:
            lines.append(value + "\t" + " ".join(new))
    return "".join(line + "\n" for line in lines)


def _new_name(name: str, taken: set[str]) -> bool:
    return address.is_hostname(name) and name.lower() not in taken


def write_new(path: str, text: str) -> None:
    """Write a file of the bundle, 0644; a link or anything but a file in its place is refused."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o644)
    try:
        _replace(fd, text)
        os.fchmod(fd, 0o644)  # the umask may have taken the bits that the payload's user needs
    finally:
        os.close(fd)


def identity(path: str) -> tuple[int, int]:
    """Give (device, inode) of a regular file with one name; raises OSError if there is none."""
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise FileNotFoundError(2, "not a regular file with one name", path)
    return info.st_dev, info.st_ino


def rewrite(path: str, known: tuple[int, int], text: str) -> bool:
    """Write a file in place, keeping its inode, which is mounted; tell whether it was there.

    Nothing is written unless it still is the file that was `known`: the bundle is not ours, and
    somebody may have put a link to another file in its place.
    """
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in _NOT_THE_FILE:  # the bundle is gone or changed: there is nobody to tell
            return False
        raise
    try:
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != known or info.st_nlink != 1:
            return False
        _replace(fd, text)
        return True
    finally:
        os.close(fd)


def _replace(fd: int, text: str) -> None:
    """Overwrite, then cut: a reader in between sees the new text and perhaps old lines after it."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise FileExistsError(17, "not a regular file")
    raw = text.encode("ascii")
    if os.pwrite(fd, raw, 0) != len(raw):
        raise OSError(28, "written only in part")
    os.ftruncate(fd, len(raw))
