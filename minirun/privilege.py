"""Which rights minirun itself has: root of the host, root of a user namespace, or a plain user.

Nothing is tried out here: what a caller may do follows from its ids and its namespaces.
"""

from __future__ import annotations

import os
import stat

from minirun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_WHOLE = (0, 0, 4294967295)


def own_map(kind: str = "uid") -> list[tuple[int, int, int]]:
    """Return the id map of the caller's user namespace: (inside, outside, size) per line."""
    with open(f"/proc/self/{kind}_map", "rb") as file:
        lines = [tuple(map(int, line.split())) for line in file]
    return [(inside, outside, size) for inside, outside, size in lines]


def in_user_namespace() -> bool:
    """Tell whether the caller's ids are not the host's, as in `podman unshare`."""
    return own_map() != [_WHOLE]


def setgroups_denied() -> bool:
    """Tell whether setgroups(2) was given up for the id map of the caller's user namespace."""
    with open("/proc/self/setgroups", "rb") as file:
        return file.read(4) == b"deny"


def host_root() -> bool:
    """Tell whether the caller is root of the host, who needs no user namespace for anything."""
    return os.geteuid() == 0 and not in_user_namespace()


def others_may_change(directory: os.stat_result) -> bool:
    """Tell whether others than root may rename what is in a directory.

    Who became root by sudo(8), whose variables root alone sets for us, is not another.
    """
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if directory.st_uid != 0 and str(directory.st_uid) != user:
        return True
    writable = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    own_group = writable == stat.S_IWGRP and str(directory.st_gid) == group
    return bool(writable) and not own_group and not directory.st_mode & stat.S_ISVTX


def rootless(flag: str) -> bool:
    """Read `--rootless`: whether cgroup permissions are a user's. Raises UsageError.

    `auto` asks whether the caller is root of the host, as runc does.
    """
    if flag in ("auto", ""):
        return not host_root()
    from minirun.grammar import boolean

    try:
        return boolean(flag, "rootless")
    except UsageError:
        raise UsageError(
            f"invalid value for --rootless: {flag!r} is not true, false or auto"
        ) from None


def user_manager() -> bool:
    """Tell whether the systemd to ask is the user's own, not that of the system.

    Root of a user namespace has a system manager where systemd is the container's own init.
    """
    return not host_root() and not os.access("/run/systemd/private", os.W_OK)


def owner_of(uid: int) -> str:
    """Name a user as the host's /etc/passwd does; the number where it does not."""
    try:
        with open("/etc/passwd", "rb") as file:
            for line in file:
                fields = line.split(b":")
                if len(fields) > 2 and fields[2] == str(uid).encode():
                    return os.fsdecode(fields[0])
    except FileNotFoundError:
        pass
    return str(uid)


def needs_helper(mappings: Sequence[tuple[int, int, int]], own: int) -> bool:
    """Tell whether only newuidmap(1) or newgidmap(1) can write this map for a user of id `own`.

    The kernel lets everybody map his own id, and that alone: user_namespaces(7).
    """
    return not (len(mappings) == 1 and mappings[0][1:] == (own, 1))
