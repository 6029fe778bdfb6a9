"""Write the bundle of `run --rootfs`, and remove it.

    prepared = prepare(options, "web", ["httpd", "-f"])
    … run prepared.bundle, as any OCI bundle …
    discard(prepared.bundle)

What `prepare` does is undone by `discard` alone, which also cleans up after a `prepare` that was
killed half way: everything is found by the container's ID.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun import inroot, jsontext
from minirun.engine import config, defaults, idrange, overlay, places, users
from minirun.engine import volumes as volumes_
from minirun.engine.request import Request
from minirun.errors import AlreadyExists, MinirunError, Unsupported, UsageError
from minirun.network import plan
from minirun.rootfs import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minirun.engine.users import Account
    from minirun.options import Options


class Prepared:
    """A bundle that is ready to be run. `notes` are sentences for people, for a terminal only.

    `identity` tells it from a later one of the same ID. `sources` are device and inode of what its
    volumes were when they were judged: `Launch.sources`.
    """

    def __init__(
        self, bundle: str, notes: list[str], sources: dict[str, tuple[int, int]] | None = None
    ) -> None:
        self.bundle = bundle
        self.notes = notes
        self.sources = sources or {}
        self.identity = places.identity(bundle)


def prepare(options: Options, cid: str, command: Sequence[str]) -> Prepared:
    """Write the bundle of container `cid` from the options of `run --rootfs`; mount its rootfs.

    Raises UsageError for options that cannot be, AlreadyExists for an ID that has a bundle,
    Unsupported for a limit that the host cannot keep, MinirunError for anything else that is in
    the way. Nothing is left behind then.
    """
    request = Request(options, places.check_id(cid), command)
    if os.geteuid() != 0:
        raise Unsupported(
            "run --rootfs needs root",
            cause="only root may mount an overlay that other runtimes find",
            fix="run it with sudo; or run a bundle, for which minirun spec --rootless writes a "
            "config.json",
        )
    data = places.data()
    _check_volumes(request, data)
    lower = _tree(data, options.rootfs)
    places.make(data)
    bundle = _make_bundle(data, cid, options.root)
    try:
        mapped = _fill(request, data, bundle, lower)
    except BaseException:
        _remove(data, cid)
        raise
    notes = request.notes + _warnings(request, mapped=mapped)
    sources = {volume.source: volume.identity for volume in request.binds}
    return Prepared(bundle, notes, sources)


def discard(bundle: str, identity: tuple[int, int, int] | None = None) -> bool:
    """Unmount and remove a bundle that `prepare` made; tell whether it was one.

    Nothing outside of the data directory's own bundles is ever touched: the path decides, not what
    a config.json says. With its `identity` a later one of the same ID is left. Raises MinirunError
    when something else is mounted inside it.
    """
    data = places.data()
    if not _ours(data, bundle):
        return False
    if identity is not None and identity != places.identity(bundle):
        return False  # deleted, and made anew, while we stayed with the container
    _remove(data, os.path.basename(bundle))
    return True


def discard_leftover(cid: str, root: str | None = None) -> bool:
    """Remove the bundle of a container that has no state; tell whether there was one.

    `root` is --root as it was given, None for the default: a bundle made for another state
    directory may be that of a container which runs, and is left.
    """
    path = f"{places.containers(places.data())}/{places.check_id(cid)}"
    return places.belongs(path, root) and discard(path)


def identity_of(bundle: str) -> tuple[int, int, int] | None:
    """Return what tells a bundle from a later one of the same ID, for `discard`."""
    return places.identity(bundle)


def managed(annotations: Mapping[str, str], bundle: str) -> bool:
    """Tell whether minirun wrote this bundle, so that `delete` may remove it with the container.

    Both the annotation and the place must say so: the annotation alone could be anybody's.
    """
    return annotations.get(config.MANAGED) == "true" and _ours(places.data(), bundle)


def _ours(data: str, bundle: str) -> bool:
    parent, name = os.path.split(bundle)
    if parent != places.containers(data):
        return False
    try:
        places.check_id(name)
    except UsageError:
        return False
    return os.path.isdir(bundle) and not os.path.islink(bundle)


def _remove(data: str, cid: str) -> None:
    overlay.unmount(f"{places.containers(data)}/{cid}")
    places.remove(data, cid)
    idrange.release(places.idranges(data), cid)


def _make_bundle(data: str, cid: str, root: str | None) -> str:
    try:
        return places.make_bundle(data, cid, root)
    except AlreadyExists:
        if not places.survived_boot(f"{places.containers(data)}/{cid}"):
            raise
    _remove(data, cid)
    return places.make_bundle(data, cid, root)


def _tree(data: str, rootfs: str) -> str:
    """Find the shared tree that the container is made from, and refuse what cannot be one."""
    path = os.path.realpath(store.find(data, rootfs).path)
    if path in ("/", data) or data.startswith(f"{path}/"):
        raise UsageError(
            f"--rootfs {rootfs}: {path} holds the data directory {data}",
            cause="the container's own layer would lie inside the tree that it is laid over",
            fix="copy the tree elsewhere, or get one: minirun rootfs pull alpine",
        )
    return path


def _check_volumes(request: Request, data: str) -> None:
    for volume in request.binds:
        reason = volumes_.danger(volume, (data, "/run/minirun"))
        if not reason:
            continue
        if not request.security.dangerous_volumes:
            raise UsageError(
                f"refusing {volume.option}: {reason}",
                cause="whoever controls the container would control the host",
                fix="bind a directory of its own, or pass --security-opt dangerous-volumes",
            )
        request.notes.append(f"dangerous volume: {reason}")


def _fill(request: Request, data: str, bundle: str, tree: str) -> bool:
    """Fill the bundle; tell whether the container has a user namespace."""
    start, userns, lower = _user_namespace(request, data, bundle, tree)
    try:
        account = users.resolve(request.options.user, lower)
        config.check_ids(account, start)
        overlay.mount(bundle, lower, start or 0)
        _open_to(bundle, start)
        if userns is not None:
            _check_mapped(request, userns)
    finally:
        os.close(lower)
        if userns is not None:
            os.close(userns)
    _write(request, config.Place(bundle, tree, start), account)
    return start is not None


def _write(request: Request, place: config.Place, account: Account) -> None:
    place.files = plan.files(request.attach, place.bundle)
    _drop_dangling(place)
    document = config.document(request, place, account)
    # Last: a bundle that has a config.json is whole.
    places.write(f"{place.bundle}/config.json", jsontext.dumps(document, "  ") + "\n")


def _drop_dangling(place: config.Place) -> None:
    """Take away links that lead nowhere where our files go, in the container's own layer.

    Trees of distributions have /etc/resolv.conf as a link into /run, which is empty: nothing can be
    mounted on that.
    """
    rootfd = os.open(f"{place.bundle}/rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in place.files:
            path = str(entry["destination"])
            if not _leads_nowhere(rootfd, path):
                continue
            parent = inroot.open_path(rootfd, os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            try:
                os.unlink(os.path.basename(path), dir_fd=parent)
            finally:
                os.close(parent)
    finally:
        os.close(rootfd)


def _leads_nowhere(rootfd: int, path: str) -> bool:
    try:
        os.close(inroot.open_path(rootfd, path))
        return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            return False  # the runtime meets the same, and says it better
    try:
        link = inroot.open_path(rootfd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        return stat.S_ISLNK(os.fstat(link).st_mode)
    finally:
        os.close(link)


def _user_namespace(
    request: Request, data: str, bundle: str, tree: str
) -> tuple[int | None, int | None, int]:
    """Lease a range of IDs and open the tree with its owners mapped to it.

    Returns (first host ID, user namespace, tree); the first two are None with --userns host and,
    with a note, where it cannot be had.
    """
    if request.user_namespace == "host":
        return None, None, overlay.open_lower(tree)
    try:
        start = idrange.lease(
            places.idranges(data),
            request.cid,
            lambda owner: os.path.isdir(f"{places.containers(data)}/{owner}"),
        )
        userns, lower = _mapped(start, tree)
        return start, userns, lower
    except Unsupported as error:
        idrange.release(places.idranges(data), request.cid)
        why = f"{error.message} ({error.cause})" if error.cause else error.message
        request.notes.append(f"runs without a user namespace: {why}")
    return None, None, overlay.open_lower(tree)


def _mapped(start: int, tree: str) -> tuple[int, int]:
    try:
        userns = idrange.namespace(start)
    except OSError as error:
        raise Unsupported(
            f"the kernel refuses a user namespace: {(error.strerror or '').lower()}",
            cause="user.max_user_namespaces, or a security module, forbids it",
        ) from None
    try:
        return userns, overlay.open_lower(tree, userns)
    except BaseException:
        os.close(userns)
        raise


def _open_to(bundle: str, start: int | None) -> None:
    """Let the container's own root, and nobody else, walk through the bundle to its rootfs."""
    if start is not None:
        os.chown(bundle, 0, start)
        os.chmod(bundle, 0o710)


def _check_mapped(request: Request, userns: int) -> None:
    """Have volumes on a file system that cannot map owners mounted as they are, with a note."""
    for volume in request.binds:
        if not volume.idmap:
            continue
        try:
            os.close(overlay.open_lower(volume.source, userns))
        except Unsupported as error:
            volume.idmap = False
            request.notes.append(
                f"files in {volume.target} belong to nobody in the container: {error.message}"
            )


def _warnings(request: Request, *, mapped: bool) -> list[str]:
    """Say what the flags give away; `mapped` is whether there is a user namespace."""
    notes = []
    if request.user_namespace == "host":
        notes.append("root in the container is root of the host (--userns host)")
    if request.network == "host":
        notes.append("shares the host's network: it reaches every local service (--network host)")
    if request.security.seccomp == "unconfined":
        notes.append("may make every system call (--security-opt seccomp=unconfined)")
    if not request.security.no_new_privileges:
        notes.append("set-user-ID programs gain privileges (no-new-privileges=false)")
    if request.options.no_limits:
        notes.append("no default limits: the container can use up the machine (--no-limits)")
    for name in request.capabilities:
        if mapped and name in defaults.HOST_CAPABILITIES:
            notes.append(f"{name} allows nothing in a user namespace (it would by --userns host)")
        elif name in defaults.DANGEROUS_CAPABILITIES:
            notes.append(f"{name} {defaults.DANGEROUS_CAPABILITIES[name]}")
    if len(request.options.args) == 1 and not request.options.tty and os.isatty(0):
        notes.append("no command follows the ID, so a shell is run; -t gives it a terminal")
    notes += [f"has the host's device {device.source}" for device in request.devices]
    return notes


__all__ = ["MinirunError", "Prepared", "discard", "discard_leftover", "managed", "prepare"]
