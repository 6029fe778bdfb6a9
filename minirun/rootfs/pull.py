"""`rootfs pull`: a distribution's newest root filesystem, from a tarball at hand or its mirror."""

from __future__ import annotations

import os

from minirun.errors import MinirunError, UsageError
from minirun.rootfs import alpine, change, download, install, store
from minirun.rootfs.archive import open_archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MIRROR_VARIABLE = "MINIRUN_MIRROR"
TARBALL_VARIABLE = "MINIRUN_ROOTFS_TARBALL"


def pull(
    image: str,
    order: install.Order,
    environ: Mapping[str, str],
    *,
    mirror: str | None = None,
    arch: str | None = None,
) -> store.RootFS:
    """Get IMAGE[:VERSION] and return its record; one that is there and current is left as it is.

    The first of these is used: the file $MINIRUN_ROOTFS_TARBALL, a tarball in the project's
    rootfs/, the mirror (`mirror`, else $MINIRUN_MIRROR, else Alpine's own). Raises MinirunError for
    whatever is wrong, and then leaves nothing behind.
    """
    change.require_root()
    version = check_image(image)
    known = alpine.catalogue()
    machine = alpine.architecture(arch)
    base = download.check_mirror(mirror or environ.get(MIRROR_VARIABLE) or known.mirror)
    file = None if mirror else _at_hand(known, version, machine, order, environ)
    if file is not None:
        return _from_file(known, file, machine, order)
    return _from_mirror(known, base, version, machine, order)


def check_image(image: str) -> str:
    """Return the version in IMAGE[:VERSION], empty if none; raises UsageError, MinirunError."""
    name, _, version = image.partition(":")
    if name != "alpine":
        raise MinirunError(
            f"there is no recipe for {name!r}",
            cause="did you mean alpine?"
            if store.is_near(name, "alpine")
            else "there is one for alpine",
            fix="import any other as an archive, for example: debootstrap --variant=minbase stable "
            "DIR && tar -C DIR -c . | minirun rootfs import - --name debian",
        )
    if image.endswith(":"):
        raise UsageError(f"no version after the colon in {image!r}")
    return alpine.check_version(version)


def default_name(image: str) -> str:
    """Give the name that IMAGE[:VERSION] is stored under unless the user chooses one."""
    version = check_image(image)
    return store.stored_name(f"alpine:{version or 'latest'}")


def _at_hand(
    known: alpine.Catalogue,
    version: str,
    machine: str,
    order: install.Order,
    environ: Mapping[str, str],
) -> str | None:
    """Give the path of a tarball that makes the network unnecessary."""
    path = environ.get(TARBALL_VARIABLE)
    if path:
        release = known.version_of(os.path.basename(path), machine)
        if not version or (release and alpine.satisfies(release, version)):
            return path
        order.listener.note(f"${TARBALL_VARIABLE} is not used: it is not alpine:{version}")
    releases = [known.version_of(file, machine) for file in os.listdir(known.directory)]
    fitting = [found for found in releases if found and alpine.satisfies(found, version)]
    if not fitting:
        return None
    newest = max(fitting, key=alpine.order)
    return os.path.join(known.directory, known.file(newest, machine))


def _from_file(
    known: alpine.Catalogue, path: str, machine: str, order: install.Order
) -> store.RootFS:
    file = os.path.basename(path)
    order.sha256 = order.sha256 or known.pins.get(file, {}).get("sha256", "")
    checked = ", checksum known" if order.sha256 else ", no checksum known for it"
    order.listener.note(f"using the tarball {path}{checked}")
    if order.sha256 and (there := install.up_to_date(order, order.sha256)):
        order.listener.note(f"{order.name} is up to date")
        return there
    fd = open_archive(path)
    try:
        version = known.version_of(file, machine)
        return install.install(fd, order, source=path, version=version, arch=machine)
    finally:
        os.close(fd)


def _from_mirror(
    known: alpine.Catalogue, mirror: str, version: str, machine: str, order: install.Order
) -> store.RootFS:
    release = alpine.resolve(known, mirror, version, machine)
    if order.sha256:
        release.digests["sha256"] = order.sha256
    elif not release.pinned and not download.is_private(mirror):
        order.listener.warn(
            f"{mirror} is not encrypted: whoever is on the way can change the archive and its "
            "checksum together; use https, or --sha256 with a digest you trust"
        )
    if there := install.up_to_date(order, release.digests.get("sha256", "")):
        order.listener.note(f"{order.name} is up to date: Alpine {release.version}")
        return there
    order.listener.note(f"downloading {release.url}")
    with change.Stage(order.data, order.name) as stage:
        # A stage of its own: the archive is checked as a whole before anything is unpacked.
        fd = stage.scratch()
        try:
            _download(release, fd, order.listener)
            return install.install(
                fd, order, source=release.url, version=release.version, arch=machine
            )
        finally:
            os.close(fd)


def _download(release: alpine.Release, fd: int, listener: install.Listener) -> None:
    def progress(done: int, total: int) -> None:
        listener.progress(release.file, done, total or release.size)

    try:
        found = download.save(release.url, fd, progress)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise MinirunError(
            f"cannot store {release.file}: {reason}",
            cause="the disk, the quota or the file size limit of the data directory is used up",
            fix="make room, or use another data directory with --data",
        ) from None
    for name, wanted in release.digests.items():
        install.check_digest(found[name], wanted, release.url)
    names = " and ".join(sorted(release.digests))
    listener.note(f"checksum verified ({names}{', pinned' if release.pinned else ''})")
    os.lseek(fd, 0, os.SEEK_SET)
