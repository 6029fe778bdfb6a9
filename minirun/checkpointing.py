"""checkpoint: a running container becomes files, by CRIU."""

from __future__ import annotations

import errno
import os
import stat

from minirun import devices, ending, inroot, jsontext, state
from minirun.criu import service
from minirun.criu.images import DESCRIPTORS, EXTERNAL, Images, external_namespace
from minirun.criu.messages import DUMP, PRE_DUMP
from minirun.errors import MinirunError, StateError, Unsupported
from minirun.mounts import entries
from minirun.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.state import Container

_LOG = "dump.log"
_STATUS_FD_SINCE = 31500  # CRIU's "status-ready"


def checkpoint(root: str, cid: str, images: Images) -> None:
    """See `container.checkpoint`."""
    with state.load(root, cid, lock=True) as container:
        status = container.status()
        if status != "running":
            raise StateError(f"Container cannot be checkpointed in {status} state")
        if container.saved.root_mount is not None:
            raise MinirunError(
                "a container in the host's mount namespace cannot be checkpointed",
                cause="its mounts are among the host's",
            )
        _check_links(container)
        _require(images)
        group = ending.group_of(container)
        try:
            with images:
                _check_parent(images)
                _dump(container, group, images)
        finally:
            if group is not None:
                group.close()
        if not images.flag("leave_running") and not images.flag("pre_dump"):
            ending.destroy(container)


def _check_links(container: Container) -> None:
    """Refuse mounts that would not be restored as they are. Raises MinirunError."""
    for entry in container.spec.mounts:
        source = os.path.join(container.saved.bundle, entry.source or "")
        if entries.keeps_link(entry.replace(source=source), container.saved.rootfs):
            raise MinirunError(
                f"{entries.describe(entry)}: a mounted symbolic link cannot be checkpointed",
                cause="criu follows links where it binds mounts again",
            )


def _require(images: Images) -> None:
    """Refuse what this CRIU or kernel cannot do. Raises Unsupported, MinirunError."""
    found = service.require(_STATUS_FD_SINCE if images.status_fd >= 0 else service.OLDEST)
    has = service.features()
    for flag, feature in (("pre_dump", "mem_track"), ("lazy_pages", "lazy_pages")):
        if images.flag(flag) and not has.get(feature):
            name = flag.replace("_", "-")
            raise Unsupported(
                f"--{name}: criu {service.shown(found)} or this kernel has no {feature}",
                cause="the kernel was built without it (criu check --feature tells)",
            )
    if images.status_fd >= 0:
        _check_writable(images.status_fd)


def _check_writable(fd: int) -> None:
    import fcntl

    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise MinirunError(
            f"invalid --status-fd argument {fd}: {(error.strerror or '').lower()}"
        ) from None
    if mode == os.O_RDONLY:
        raise MinirunError(f"invalid --status-fd argument {fd}: not writable")


def _check_parent(images: Images) -> None:
    if images.parent_path is None:
        return
    try:
        mode = os.stat(images.parent_path, dir_fd=images.fd).st_mode
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise MinirunError(f"invalid --parent-path: {images.parent_path}: {reason}") from None
    if not stat.S_ISDIR(mode):
        raise MinirunError(f"invalid --parent-path: {images.parent_path}: not a directory")


def _dump(container: Container, group: Group | None, images: Images) -> None:
    spec = container.spec
    options = {
        **images.options(spec, container.saved.rootfs, _LOG),
        "pid": container.saved.pid,
        "parent_img": images.parent_path,
        "track_mem": True if images.parent_path else None,
        "freeze_cgroup": None if group is None else f"/sys/fs/cgroup{group.path}",
        **{
            name: images.flag(name)
            for name in ("leave_running", "link_remap", "tcp_skip_in_flight")
        },
    }
    if images.page_server is not None:
        address, port = images.page_server
        options["ps"] = {"address": address, "port": port}
    options["external"] = _external_namespaces(container.saved.pid, spec)
    pre_dump = images.flag("pre_dump")
    if not pre_dump:
        options["ext_mnt"] = _external_mounts(container, group, spec)
        _write_descriptors(container.saved.pid, images.fd)

    def notify(script: str, _pid: int, _fd: int) -> None:
        if script == "status-ready" and images.status_fd >= 0:
            os.write(images.status_fd, b"\0")
            os.close(images.status_fd)
            images.status_fd = -1

    try:
        request = {"type": PRE_DUMP if pre_dump else DUMP, "opts": options}
        service.ask(request, notify, service.Start(images.directories))
    except service.Failed as error:
        raise images.explain(error, _LOG) from error


def _external_namespaces(pid: int, spec: Spec) -> list[str]:
    """Name the namespaces that the container has joined: they are there when it is restored."""
    return [
        external_namespace(entry.type, os.stat(f"/proc/{pid}/ns/{_FILES[entry.type]}").st_ino)
        for entry in spec.linux.namespaces
        if entry.path and entry.type in EXTERNAL
    ]


_FILES = {"network": "net", "pid": "pid"}


def _external_mounts(container: Container, group: Group | None, spec: Spec) -> list[dict[str, str]]:
    """List the mounts whose source is outside: at restore they are bound from there again."""
    rootfd = os.open(f"/proc/{container.saved.pid}/root", os.O_PATH | os.O_DIRECTORY)
    try:
        pairs = outside_sources(spec, group, container.saved.rootfs)
        found = {point: point for point, _ in pairs}
        for path in spec.linux.masked_paths:
            if _is_file(rootfd, path):
                found[path] = "/dev/null"
        real = {_resolved(rootfd, point): name for point, name in found.items()}
    finally:
        os.close(rootfd)
    return [{"key": point, "val": name} for point, name in real.items()]


def outside_sources(spec: Spec, group: Group | None, root: str) -> list[tuple[str, str]]:
    """Pair the places in the container with the host's files that are bound there.

    The sources of the bundle's binds may be relative to it.
    """
    found = []
    private = any(entry.type == "cgroup" for entry in spec.linux.namespaces)
    for entry in spec.mounts:
        point = entries.place(root, entry)
        if entries.is_bind(entry):
            found.append((point, entry.source or ""))
        elif entry.type in ("cgroup", "cgroup2") and not private:
            path = group.path if group is not None else ""
            found.append((point, f"/sys/fs/cgroup{path}"))
    if any(entry.type == "user" for entry in spec.linux.namespaces):
        nodes = {one.path for one in (*devices.DEFAULT, *spec.linux.devices) if one.type != "p"}
        found += [(path, path) for path in sorted(nodes)]
    return found


def _is_file(rootfd: int, path: str) -> bool:
    try:
        fd = inroot.open_path(rootfd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    try:
        return not stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _resolved(rootfd: int, path: str) -> str:
    """Follow the links of a path in the container, as mounting there did."""
    top = os.readlink(f"/proc/self/fd/{rootfd}")
    try:
        fd = inroot.open_path(rootfd, path)
    except OSError:
        return path
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    inner = found.removeprefix(top) if top != "/" else found
    return inner if inner.startswith("/") else path


def _write_descriptors(pid: int, directory: int) -> None:
    """Note what the standard streams are: a pipe is exchanged for the new one at restore."""
    names = []
    for fd in range(3):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            names.append("")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(DESCRIPTORS, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(jsontext.dumps(names).encode())
