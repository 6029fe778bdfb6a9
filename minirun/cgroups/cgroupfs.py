"""The driver that makes cgroups by mkdir in cgroupfs.

Another driver (systemd's) has the same `create`, `ensure` and `discard`; the Group that it gives is
limited, frozen, killed and counted alike.
"""

from __future__ import annotations

import errno
import os

from minirun.cgroups.group import Group
from minirun.cgroups.hierarchy import Hierarchy, blocked_at, open_inside, read_at
from minirun.cgroups.hints import hint
from minirun.cgroups.walk import member_pids
from minirun.errors import MinirunError, StateError, Unsupported

# Enabled where the tree has them, asked or not: for usage figures, a later `update`, and the groups
# that a container makes itself. As in runc all that there are.
WANTED = ("cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# Why a controller that nobody asked for stays off: in use elsewhere, not ours to give.
_TOLERATED = (
    errno.EBUSY,
    errno.EINVAL,
    errno.ENOENT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
)


def create(
    tree: Hierarchy, path: str, needed: tuple[str, ...] = (), wanted: tuple[str, ...] = WANTED
) -> Group:
    """Make the cgroup `path` with its ancestors and give it controllers.

    `needed` must reach it, `wanted` may. A cgroup that exists already is taken when it is empty and
    not frozen. Raises Unsupported when a needed controller stops on the way, StateError for a
    cgroup in use, MinirunError when the tree cannot be written; what was made until then is
    removed.
    """
    tree.require(needed)
    top = tree.open()
    created: list[str] = []
    try:
        fd = _descend(tree, top, path, (needed, wanted), created)
        group = Group(tree, path, fd, tuple(created))
        try:
            _check_fresh(group, existed=path not in created)
            _check_controllers(group, needed)
        except BaseException:
            group.close()
            raise
    except BaseException:
        _remove_created(top, created)
        raise
    finally:
        os.close(top)
    return group


def ensure(tree: Hierarchy, path: str, needed: tuple[str, ...]) -> None:
    """Have the controllers `needed` reach the existing cgroup `path`, as `update` may ask.

    Raises as `create` does.
    """
    tree.require(needed)
    top = tree.open()
    try:
        os.close(_descend(tree, top, path, (needed, ()), None))
    finally:
        os.close(top)


def discard(group: Group) -> None:
    """Undo `create`: remove the group and those ancestors that were made for it and are empty."""
    group.remove()
    top = group.tree.open()
    try:
        _remove_created(top, [path for path in group.created if path != group.path])
    finally:
        os.close(top)


def _descend(
    tree: Hierarchy,
    top: int,
    path: str,
    controllers: tuple[tuple[str, ...], tuple[str, ...]],
    created: list[str] | None,
) -> int:
    """Walk to `path` from `top`, enabling controllers on the way; return its descriptor.

    Missing directories are made and noted in `created`, unless that is None.
    """
    fd, here = os.dup(top), ""
    try:
        for name in path.strip("/").split("/"):
            _enable(tree, fd, here or "/", *controllers)
            here += "/" + name
            if created is not None and _mkdir(fd, name, here):
                created.append(here)
            below = _open(fd, name, here)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mkdir(fd: int, name: str, here: str) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=fd)
        # Whatever the umask: a container's root in a user namespace must be able to look into it,
        # or it cannot mount cgroup2.
        os.chmod(name, 0o755, dir_fd=fd)
    except FileExistsError:
        return False
    except OSError as error:
        raise MinirunError(
            f"cannot make cgroup {here}: {str(error.strerror).lower()}",
            cause=hint("", error) or _mkdir_hint(error),
        ) from error
    return True


def _mkdir_hint(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return "a cgroup above has reached its cgroup.max.descendants or cgroup.max.depth"
    return ""


def _open(fd: int, name: str, here: str) -> int:
    try:
        return open_inside(fd, name, _DIRECTORY)
    except NotADirectoryError as error:
        raise StateError(f"cgroup {here} cannot be made: a file of that name exists") from error
    except FileNotFoundError as error:
        raise StateError(f"cgroup {here} is gone") from error


def _enable(
    tree: Hierarchy, fd: int, here: str, needed: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    """Have the cgroup `fd` pass controllers on to its children; leave what is on already."""
    if not needed and not wanted:
        return
    available = read_at(fd, "cgroup.controllers").split()
    enabled = read_at(fd, "cgroup.subtree_control").split()
    missing = [n for n in dict.fromkeys((*needed, *wanted)) if n in available and n not in enabled]
    busy = bool(missing) and _holds_processes(fd)
    for name in missing:
        try:
            if busy:
                # *kernel*: cpu and pids could be enabled here, yet that would make this cgroup the
                # root of a threaded domain, where no container can live (cgroup-v2.rst, Threads).
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            _pass_on(fd, name)
        except OSError as error:
            if name in needed:
                raise _refused(tree, fd, here, name, error) from error
            if error.errno not in _TOLERATED:
                raise


def _holds_processes(fd: int) -> bool:
    """Whether the rule against inner processes bites: the root of all alone is free of it."""
    try:
        read_at(fd, "cgroup.type")
    except FileNotFoundError:
        return False
    try:
        return read_at(fd, "cgroup.procs").strip() != ""  # also "0", of another pid namespace
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # threaded: what fails will tell
            return False
        raise


def _pass_on(fd: int, name: str) -> None:
    file = open_inside(fd, "cgroup.subtree_control", os.O_WRONLY)
    try:
        os.write(file, b"+" + os.fsencode(name))
    finally:
        os.close(file)


def _refused(tree: Hierarchy, fd: int, here: str, name: str, error: OSError) -> MinirunError:
    what = f"cannot enable controller {name} below cgroup {here}: {str(error.strerror).lower()}"
    if error.errno != errno.EBUSY:
        return MinirunError(what, cause=hint("cgroup.subtree_control", error))
    pids = member_pids(fd)
    who = f"{len(pids)} process(es) are in {here} itself ({', '.join(map(str, pids[:5]))})"
    if tree.own is not None and tree.own.rstrip("/") == here.rstrip("/"):
        who += ", minirun among them"
    return MinirunError(
        what,
        cause=f"{who}: a cgroup that holds processes cannot give controllers to its children",
        fix="give the container a cgroupsPath below an empty cgroup, or move these processes into "
        "a child cgroup of their own first; minirun moves none that it did not start",
    )


def _check_fresh(group: Group, existed: bool) -> None:
    if existed:
        count = len(group.procs()) or int(group.populated())
        if count:
            raise StateError(
                f"container's cgroup is not empty: {count} process(es) found",
                cause=f"{group.path} is in use by something else",
                fix="choose another ID or linux.cgroupsPath",
            )
    if group.frozen() or "frozen 1" in group.read("cgroup.events").split("\n"):
        raise StateError(
            "container's cgroup unexpectedly frozen",
            cause=f"{group.path} or a cgroup above it is frozen: a process there would never run",
        )
    kind = (group.get("cgroup.type") or "domain").strip()
    if kind != "domain":
        raise StateError(
            f"cgroup {group.path} cannot hold a container: its type is {kind!r}",
            cause="a cgroup above it is threaded",
        )


def _check_controllers(group: Group, needed: tuple[str, ...]) -> None:
    available = group.controllers
    for name in needed:
        if name not in available:
            raise Unsupported(
                f"controller {name} is not available in cgroup {group.path}",
                cause=blocked_at(group.tree, group.path, name),
                fix="place the container below a cgroup that has it, or have it delegated",
            )


def _remove_created(top: int, created: list[str]) -> None:
    for path in reversed(created):
        try:
            os.rmdir(path.lstrip("/"), dir_fd=top)
        except OSError as error:
            # Somebody else has moved in meanwhile, or was quicker.
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
                raise
