"""Find the cgroup v2 tree, say in words why there is none, and place a container in it.

Only a cgroup2 file system mounted at /sys/fs/cgroup itself counts. On a hybrid host (version 1 with
an empty version 2 tree beside it) the controllers belong to version 1, so no limit can be set.
"""

from __future__ import annotations

import os

from minirun.errors import ConfigError, Unsupported
from minirun.kernel.path import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from minirun.kernel.statfs import CGROUP2_SUPER_MAGIC, CGROUP_SUPER_MAGIC, fstatfs_type
from minirun.privilege import host_root

MOUNT_POINT = "/sys/fs/cgroup"
DEFAULT_PARENT = "/minirun"

# No link, no other mount, never above: what is opened is a cgroup or an interface file of one.
INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

NAME_MAX = 255
PATH_MAX = 4096 - 1

_BOOT_V2 = (
    "boot with systemd.unified_cgroup_hierarchy=1, or on another init mount cgroup2 at "
    + MOUNT_POINT
    + " and no version 1 controller; or drop the limits"
)


class Hierarchy:
    """The cgroup tree of this mount namespace.

    mount        where it is mounted
    kind         "unified", "hybrid", "v1" or "none"; a group can be made on "unified" only
    controllers  what the top of the visible tree offers, such as ("cpu", "memory", "pids")
    legacy       controllers that a version 1 hierarchy holds
    own          the cgroup that this process is in, from the top of the visible tree, with a
                 leading slash; None when it lies outside of that
    root         which part of the whole tree is mounted; "/" but in odd containers
    """

    def __init__(
        self,
        mount: str,
        kind: str,
        controllers: tuple[str, ...] = (),
        legacy: tuple[str, ...] = (),
        *,
        own: str | None = None,
        root: str = "/",
    ) -> None:
        self.mount = mount
        self.kind = kind
        self.controllers = controllers
        self.legacy = legacy
        self.own = own
        self.root = root

    @property
    def usable(self) -> bool:
        """Whether groups can be made at all."""
        return self.kind == "unified"

    @property
    def reason(self) -> str:
        """Say for people why limits cannot be set; empty when the tree offers controllers."""
        if self.kind == "hybrid":
            return (
                f"{self.mount} is a hybrid of cgroup v1 and v2: version 1 holds the controllers "
                f"({', '.join(self.legacy) or 'none'})"
            )
        if self.kind == "v1":
            return f"{self.mount} is cgroup v1, which minirun does not drive"
        if self.kind == "none":
            return f"no cgroup file system is mounted at {self.mount}"
        return "" if self.controllers else f"the cgroup v2 tree at {self.mount} has no controllers"

    def require(self, controllers: tuple[str, ...] = ()) -> None:
        """Raise Unsupported unless this tree can hold a group with `controllers`."""
        if not self.usable:
            limits = ": " + ", ".join(controllers) if controllers else ""
            raise Unsupported(
                f"resource limits need cgroup v2{limits}", cause=self.reason, fix=_BOOT_V2
            )
        missing = [name for name in controllers if name not in self.controllers]
        if missing:
            raise Unsupported(
                f"cgroup controller {missing[0]} is not available",
                cause=self._why_missing(missing[0]),
                fix=_BOOT_V2 if missing[0] in self.legacy else "drop the limit that needs it",
            )

    def _why_missing(self, name: str) -> str:
        has = ", ".join(self.controllers) or "nothing"
        if name in self.legacy:
            return f"a cgroup v1 hierarchy holds {name}; the top of the v2 tree has {has}"
        return (
            f"the top of the tree has {has}: the kernel lacks {name} or was booted with "
            f"cgroup_disable={name}, or whoever made this cgroup namespace did not pass it on"
        )

    def open(self) -> int:
        """Open the mount point, verified to be cgroup2; the caller closes the descriptor."""
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if fstatfs_type(fd) != CGROUP2_SUPER_MAGIC:
                raise Unsupported(f"{self.mount} is not cgroup v2", cause=self.reason, fix=_BOOT_V2)
        except BaseException:
            os.close(fd)
            raise
        return fd


def hierarchy(mount: str = MOUNT_POINT) -> Hierarchy:
    """Look at the host's cgroup tree; never raises for what the host lacks (see `reason`)."""
    kind = _kind(mount)
    membership = _read("/proc/self/cgroup")
    legacy = tuple(_legacy(membership))
    if kind != "unified":
        return Hierarchy(mount, kind, legacy=legacy)
    controllers = tuple(_read(f"{mount}/cgroup.controllers").split())
    root = _mounted_root(_read("/proc/self/mountinfo"), mount)
    return Hierarchy(mount, kind, controllers, legacy, own=own_path(membership, root), root=root)


def _kind(mount: str) -> str:
    magic = _magic(mount)
    if magic == CGROUP2_SUPER_MAGIC:
        return "unified"
    if _magic(f"{mount}/unified") == CGROUP2_SUPER_MAGIC:
        return "hybrid"
    if magic == CGROUP_SUPER_MAGIC or any(
        _magic(f"{mount}/{name}") == CGROUP_SUPER_MAGIC for name in ("memory", "pids", "cpu")
    ):
        return "v1"
    return "none"


def _magic(path: str) -> int:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return 0
    try:
        return fstatfs_type(fd)
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path, "rb", 0) as file:
        return os.fsdecode(file.readall())


def _legacy(membership: str) -> list[str]:
    found = []
    for line in filter(None, membership.split("\n")):
        number, names, _path = line.split(":", 2)
        if number != "0":
            found += [name for name in names.split(",") if name and not name.startswith("name=")]
    return sorted(found)


def _mounted_root(mountinfo: str, mount: str) -> str:
    """Give the part of the hierarchy that is mounted at `mount`: field 4 of the last such line."""
    root = "/"
    # Not splitlines: the kernel escapes newlines, blanks and backslashes, and no other character of
    # a path. A directory's name with a vertical tab, bound somewhere, would make half a line.
    for line in filter(None, mountinfo.split("\n")):
        fields = line.split(" ")
        if fields[4] == mount and fields[fields.index("-") + 1] == "cgroup2":
            root = fields[3]
    return root


def own_path(membership: str, root: str = "/") -> str | None:
    """Give this process's cgroup below the mounted `root`, from the text of /proc/self/cgroup.

    None when it lies outside: `/..` in front tells that of a cgroup namespace
    (cgroup_namespaces(7)), another prefix than `root` of a mount that shows a part only.
    """
    for line in filter(None, membership.split("\n")):
        if not line.startswith("0::"):
            continue
        path = line[3:].removesuffix(" (deleted)")
        if path.startswith("/.."):
            return None
        if root == "/":
            return path
        if path == root:
            return "/"
        return path[len(root) :] if path.startswith(root + "/") else None
    return None


def default_parent(tree: Hierarchy) -> str:
    """Give the cgroup below which containers are put: a fixed one for root.

    A user without rights on the tree gets a sibling of his own cgroup, in what systemd delegated to
    him: his own holds processes, so no controller can be had below it.
    """
    if host_root() or not tree.own:
        return DEFAULT_PARENT
    return os.path.dirname(tree.own)


def path_of(tree: Hierarchy, pid: int) -> str | None:
    """Give the cgroup that process `pid` is in; None when it is gone or outside the visible tree.

    `exec` joins it when the container's own cgroup has become an inner node, as an init system
    inside makes it: no process can be added there any more (EBUSY).
    """
    try:
        return own_path(_read(f"/proc/{pid}/cgroup"), tree.root)
    except (FileNotFoundError, ProcessLookupError):
        return None


def location(cgroups_path: str | None, container_id: str, parent: str = DEFAULT_PARENT) -> str:
    """Give the container's cgroup, absolute from the top of the tree: `/minirun/web`.

    An absent path is `<parent>/<id>`; a relative one lies below `parent`, so that it does not
    depend on the cgroup of whoever calls; an absolute one counts from the top of the tree. `..` is
    taken away lexically and never leads above either. Raises ConfigError for what cannot be a
    directory in cgroupfs. Source: config-linux.md, "Cgroups Path".
    """
    where = "linux.cgroupsPath"
    absolute = bool(cgroups_path) and str(cgroups_path).startswith("/")
    parts = _clean(cgroups_path or container_id)
    if not parts:
        raise ConfigError(where, "names the root of the cgroup tree")
    for part in parts:
        _check_name(where, part)
    path = ("" if absolute else parent.rstrip("/")) + "/" + "/".join(parts)
    if len(_encode(where, path)) > PATH_MAX:
        raise ConfigError(where, f"is longer than {PATH_MAX} bytes")
    return path


def _clean(path: str) -> list[str]:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _check_name(where: str, name: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise ConfigError(where, "must not hold control characters")
    if len(_encode(where, name)) > NAME_MAX:
        raise ConfigError(where, f"has a name of more than {NAME_MAX} bytes")
    if name.startswith("cgroup."):
        raise ConfigError(where, f"must not be named like an interface file: {name}")


def _encode(where: str, text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise ConfigError(where, "is not valid Unicode") from None


def open_inside(dirfd: int, path: str, flags: int) -> int:
    """Open `path` below `dirfd` in cgroupfs; never through a link, a mount or upwards."""
    return openat2(dirfd, path.lstrip("/") or ".", flags, resolve=INSIDE)


def read_at(dirfd: int, file: str) -> str:
    """Read an interface file of the cgroup `dirfd`.

    Raises OSError: ENOENT (its controller is not enabled), EOPNOTSUPP (a threaded cgroup's procs,
    pressure without PSI), ENODEV (the cgroup was removed).
    """
    with open(open_inside(dirfd, file, os.O_RDONLY), "rb", 0) as opened:
        return os.fsdecode(opened.readall())


def blocked_at(tree: Hierarchy, path: str, controller: str) -> str:
    """Say at which level of the tree `controller` stops on the way to `path`; for people.

    Walks from the top: the level that has it in cgroup.controllers yet not in
    cgroup.subtree_control is the one that keeps it.
    """
    top = tree.open()
    try:
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            here = "/".join(parts[:depth])
            try:
                fd = open_inside(top, here, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return f"{controller} reaches /{'/'.join(parts[: depth - 1])}"
            try:
                has = controller in read_at(fd, "cgroup.controllers").split()
                passes = controller in read_at(fd, "cgroup.subtree_control").split()
            finally:
                os.close(fd)
            if not has:
                return f"/{here} has no {controller}"
            if not passes and depth < len(parts):
                return f"/{here} has {controller} but does not pass it on (cgroup.subtree_control)"
    finally:
        os.close(top)
    return f"{controller} reaches {path}"
