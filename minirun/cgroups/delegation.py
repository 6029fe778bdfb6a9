"""A user's cgroups: what has been delegated to him, and what to say where nothing has.

A user may make groups where the directory is his, and move a process only below a common ancestor
whose cgroup.procs he may write (cgroup-v2.rst, "Delegation Containment"). systemd delegates
user@UID.service; a login session lies beside it, so from there only the user's manager can help.
"""

from __future__ import annotations

import errno
import os

from minirun.cgroups import cgroupfs
from minirun.cgroups.group import Group
from minirun.cgroups.hierarchy import Hierarchy, default_parent, location
from minirun.errors import MinirunError, Unsupported

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FIX = (
    "--systemd-cgroup, which asks the user's systemd; or systemd-run --user --scope "
    "--property Delegate=yes minirun …; or drop the limits"
)


def may_enter(tree: Hierarchy, path: str) -> bool:
    """Tell whether the caller may put a process of his own cgroup into the cgroup `path`."""
    if tree.own is None:
        return False
    above = os.path.commonpath([tree.own, path])
    return os.access(f"{tree.mount}{above.rstrip('/')}/cgroup.procs", os.W_OK)


def create(
    tree: Hierarchy, cgroups_path: str | None, cid: str, needed: tuple[str, ...], *, must: bool
) -> tuple[Group | None, str]:
    """Make the cgroup of a user's container, where he may; else give None and the reason.

    Without a path it lies beside the caller's own cgroup, which holds processes. Raises Unsupported
    if `needed` controllers, or `must`, leave no way without; otherwise as `cgroupfs.create`.
    """
    path = location(cgroups_path, cid, default_parent(tree))
    try:
        group = cgroupfs.create(tree, path, needed)
    except MinirunError as error:
        number = getattr(error.__cause__, "errno", 0)
        if number not in _FORBIDDEN and not (needed and isinstance(error, Unsupported)):
            raise
        return _without(error.message, needed, must)
    if may_enter(tree, path):
        return group, ""
    with group:
        cgroupfs.discard(group)
    reason = f"cannot move a process from cgroup {tree.own} to {path}: permission denied"
    return _without(reason, needed, must)


def _without(reason: str, needed: tuple[str, ...], must: bool) -> tuple[None, str]:
    if needed or must:
        # The words of runc.
        what = f"cannot set {' and '.join(needed)} limit" if needed else "a cgroup is needed"
        raise Unsupported(
            f"{what}: container could not join or create cgroup: {reason}",
            cause="no cgroup with these controllers is delegated to this user here",
            fix=_FIX,
        )
    return None, f"runs without a cgroup: {reason}"
