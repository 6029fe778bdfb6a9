"""restore: a checkpoint becomes a running container again, by CRIU."""

from __future__ import annotations

import os
import stat

from minirun import (
    ending,
    foreground,
    inroot,
    jsontext,
    making,
    namespaces,
    parent,
    recipe,
    running,
)
from minirun.checkpointing import outside_sources
from minirun.criu import service
from minirun.criu.images import DESCRIPTORS, EXTERNAL, Images, external_key
from minirun.criu.messages import RESTORE
from minirun.errors import ConfigError, MinirunError
from minirun.kernel import mount as m
from minirun.kernel import unshare
from minirun.kernel.libc import AT_FDCWD, AT_RECURSIVE
from minirun.mounts import entries
from minirun.setup import Launch, Setup
from minirun.step import follow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.state import Container

_LOG = "restore.log"
_LSM_SINCE = 31600
_ROOT = "criu-root"  # where CRIU's process binds the root filesystem, in the state directory


def restore(root: str, cid: str, launch: Launch, images: Images) -> int:
    """See `container.restore`."""
    least = _LSM_SINCE if images.lsm_profile or images.lsm_mount_context else service.OLDEST
    service.require(least)
    service.features()
    container, setup = making.begin(root, cid, launch, events=False)
    with container:
        try:
            if not setup.own_mounts:
                raise ConfigError("linux.namespaces", "criu restores into a mount namespace only")
            master = foreground.console_of(setup) if setup.process.terminal else None
            with images:
                _make(container, setup, images)
        except BaseException:
            parent.abandon(setup)
            parent.roll_back(setup)
            raise
        if launch.detach:
            return 0
        try:
            with foreground.Signals() as caught:
                running.unlock(container)
                status = foreground.attend(setup, master, caught)
        except BaseException:
            running.destroy(container, setup)
            raise
        ending.finish(container, setup)
    return status


def _make(container: Container, setup: Setup, images: Images) -> None:
    follow("parent", recipe.RESTORE, setup)
    os.mkdir(_ROOT, 0o755, dir_fd=container.dirfd)
    point = os.path.join(container.path, _ROOT)
    handed = [setup.namespaces[kind] for kind in EXTERNAL if kind in setup.namespaces]
    start = service.Start(
        images.directories,
        handed,
        cgroup=setup.group_fd,
        prepare=lambda: _prepare_root(setup, point),
        started=lambda pid: _enter(setup, pid, options),
        streams=True,
    )
    options = {
        **images.options(setup.spec, point, _LOG),
        "evasive_devices": True,
        "rst_sibling": True,  # the container's process becomes our child
        "lsm_profile": images.lsm_profile,
        "lsm_mount_context": images.lsm_mount_context,
        "inherit_fd": [*_namespaces(setup, start.first_descriptor), *_pipes(images.fd)],
        "join_ns": _joined(setup),
    }
    if setup.new_user_namespace:
        images.share(_host_root(setup))
    try:
        service.ask({"type": RESTORE, "opts": options}, lambda *told: _told(setup, *told), start)
    except service.Failed as error:
        raise images.explain(error, _LOG) from error
    if setup.pid == 0:
        raise MinirunError("criu failed: it told no process")
    os.rmdir(_ROOT, dir_fd=container.dirfd)
    follow("parent", recipe.RESTORE_SETTLE, setup)


def _host_root(setup: Setup) -> int:
    """Return the host's number of group 0 of the container."""
    mappings = setup.spec.linux.gid_mappings
    return next((one.host_id for one in mappings if one.container_id == 0), -1)


def _told(setup: Setup, script: str, pid: int, fd: int) -> None:
    """Do what is ours at the points that CRIU tells."""
    if script == "setup-namespaces":
        setup.pid = pid
        follow("parent", recipe.HOOKS, setup)
        setup.pid = 0
    elif script == "post-restore":
        parent.adopt(setup, pid)
        follow("parent", recipe.RESTORED, setup)
    elif script == "orphan-pts-master" and setup.console >= 0:
        from minirun.unixsocket import send_fd

        send_fd(setup.console, fd, b"/dev/pts/0")
        os.close(setup.console)
        setup.console = -1


def _external_mounts(setup: Setup) -> list[dict[str, str]]:
    """Say where what was bound from outside is on this host, by the keys of the checkpoint."""
    found = dict(outside_sources(setup.spec, setup.group, setup.root_path))
    # Without dots and links: CRIU looks for the directory above by the path's last part.
    pairs = {
        point: os.path.realpath(os.path.join(setup.bundle, source))
        for point, source in found.items()
    }
    if setup.spec.linux.masked_paths:
        pairs["/dev/null"] = "/dev/null"
    return [{"key": point, "val": source} for point, source in pairs.items()]


def _enter(setup: Setup, pid: int, options: dict[str, Any]) -> None:
    """Finish the cgroup around CRIU's process, and have the container's restored in it."""
    setup.outer_pid = pid  # for systemd, whose scopes begin with a process
    try:
        follow("parent", recipe.RESTORE_BESIDE, setup)
    finally:
        setup.outer_pid = 0  # it is not ours to reap
    options["ext_mnt"] = _external_mounts(setup)
    if setup.group is not None:
        options["cg_root"] = [{"ctrl": "", "path": setup.group.path}]


def _namespaces(setup: Setup, first: int) -> list[dict[str, Any]]:
    kinds = [kind for kind in EXTERNAL if kind in setup.namespaces]
    return [{"key": external_key(kind), "fd": fd} for fd, kind in enumerate(kinds, first)]


def _pipes(directory: int) -> list[dict[str, Any]]:
    """Put our standard streams in the place of the pipes that the container had."""
    names = jsontext.read(DESCRIPTORS, DESCRIPTORS, directory)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MinirunError(f"{DESCRIPTORS} of the checkpoint is not a list of names")
    return [
        {"key": name, "fd": fd} for fd, name in enumerate(names[:3]) if name.startswith("pipe:")
    ]


def _joined(setup: Setup) -> list[dict[str, str]]:
    """List the other namespaces that are joined by path. Raises ConfigError for a cgroup's."""
    found = []
    for number, entry in enumerate(setup.spec.linux.namespaces):
        if not entry.path or entry.type in EXTERNAL:
            continue
        if entry.type == "cgroup":
            raise ConfigError(
                f"linux.namespaces[{number}].path", "criu cannot restore into a cgroup namespace"
            )
        found.append({"ns": namespaces.FILES[entry.type], "ns_file": entry.path})
    return found


# ---------------------------------------------------------------- in CRIU's process


def _prepare_root(setup: Setup, point: str) -> None:
    """Bind the root filesystem where CRIU wants it, in a mount namespace that ends with CRIU."""
    unshare.unshare(unshare.CLONE_NEWNS)
    m.mount(None, "/", None, m.MS_SLAVE | m.MS_REC)
    fd = m.open_tree(AT_FDCWD, setup.root_path, m.OPEN_TREE_CLONE | AT_RECURSIVE)
    m.mount_setattr(fd, propagation=m.MS_PRIVATE, recursive=True)
    m.move_mount(fd, AT_FDCWD, point)
    _make_mount_points(setup, fd)
    os.close(fd)


def _make_mount_points(setup: Setup, rootfd: int) -> None:
    """Make the mount points that are missing, as create does; CRIU fills a tmpfs itself."""
    root = setup.root_path
    filled = [entries.place(root, one) for one in setup.spec.mounts if one.type == "tmpfs"]
    for entry in setup.spec.mounts:
        point = entries.place(root, entry)
        below = any(point.startswith(f"{top.rstrip('/')}/") for top in filled)
        if below or entry.type in ("cgroup", "cgroup2"):
            continue
        source = os.path.join(setup.bundle, entry.source or "")
        if entries.is_bind(entry) and not stat.S_ISDIR(os.stat(source).st_mode):
            os.close(inroot.make_file(rootfd, point))
        else:
            os.close(inroot.make_directory(rootfd, point))
