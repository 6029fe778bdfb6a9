"""What checkpoint and restore are asked for, and the options of CRIU that both make of it."""

from __future__ import annotations

import errno
import os
import stat

from minirun.criu.messages import CGROUP_MODES
from minirun.criu.service import FIRST
from minirun.errors import ConfigError, MinirunError
from minirun.privilege import host_root, others_may_change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from minirun.spec import Spec

CONFIG_FILE = "/etc/criu/minirun.conf"
CONFIG_ANNOTATION = "org.criu.config"  # names another file; none if it is empty
DESCRIPTORS = "descriptors.json"  # what the standard streams were, beside the images
_LOG_LEVEL = 4  # as runc has it: all that is of use when it has failed
_CLONE_NEWNET = 0x40000000
_LINES_SHOWN = 3
_LOG_END = 1 << 18  # bytes: where the last errors of a log of megabytes are


class Images:
    """The directories and flags of a checkpoint; a context manager that makes the directories.

    `parent_path` is relative to `image_path`; `page_server` is an address and a port.
    """

    def __init__(
        self,
        image_path: str,
        work_path: str | None = None,
        parent_path: str | None = None,
        *,
        page_server: tuple[str, int] | None = None,
        cgroups_mode: str = "",
        status_fd: int = -1,
        lsm_profile: str | None = None,
        lsm_mount_context: str | None = None,
        **flags: bool,
    ) -> None:
        self.image_path = os.path.abspath(image_path)
        self.work_path = os.path.abspath(work_path) if work_path else None
        self.parent_path = parent_path
        self.page_server = page_server
        self.cgroups_mode = cgroups_mode
        self.status_fd = status_fd
        self.lsm_profile = lsm_profile
        self.lsm_mount_context = lsm_mount_context
        self.flags = flags
        self.fd = -1

    def __enter__(self) -> Self:
        if self.work_path is not None:
            os.close(_open(self.work_path))
        self.fd = _open(self.image_path)
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.fd)
        self.fd = -1

    @property
    def directories(self) -> list[str]:
        """What CRIU's process opens, for `service.Start`."""
        return [self.image_path, self.work_path] if self.work_path else [self.image_path]

    def flag(self, name: str) -> bool:
        """Whether a flag, by its name with underscores, was given."""
        return self.flags.get(name, False)

    def share(self, gid: int) -> None:
        """Let a group read the images: root of a user namespace, as whom CRIU reads most of them.

        Read only: who could change them would have CRIU do as root what they say.
        """
        for name in os.listdir(self.fd):
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.fd)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    continue  # CRIU's link to a parent's images; what is no file of its own
                raise
            try:
                if stat.S_ISREG(os.fstat(file).st_mode):
                    os.fchown(file, -1, gid)
                    os.fchmod(file, 0o640)
            finally:
                os.close(file)
        os.fchown(self.fd, -1, gid)
        os.fchmod(self.fd, 0o710)

    def options(self, spec: Spec, root: str, log_file: str) -> dict[str, Any]:
        """Make the options of CRIU that dump and restore have in common."""
        shared = ("ext_unix_sk", "file_locks", "lazy_pages", "shell_job", "tcp_established")
        return {
            "images_dir_fd": FIRST,
            "work_dir_fd": FIRST + 1 if self.work_path else None,
            "log_level": _LOG_LEVEL,
            "log_file": log_file,
            "root": root,
            "notify_scripts": True,
            "manage_cgroups": True,
            "manage_cgroups_mode": CGROUP_MODES[self.cgroups_mode],
            # Interfaces are the engine's or a hook's to make again: the namespace comes empty.
            "empty_ns": _CLONE_NEWNET,
            "orphan_pts_master": True,
            "auto_dedup": self.flag("auto_dedup"),
            "config_file": config_file(spec),
            **{name: self.flag(name) for name in shared},
        }

    def explain(self, error: MinirunError, log_file: str) -> MinirunError:
        """Give a failure of CRIU's the path of its log, and its last errors as the cause."""
        path = os.path.join(self.work_path or self.image_path, log_file)
        try:
            lines = _end_of(path).decode("utf-8", "replace").splitlines()
        except OSError:
            return error
        found = [line.partition(") ")[2] or line for line in lines if "Error (" in line]
        cause = "; ".join(found[-_LINES_SHOWN:]) or error.cause
        told = MinirunError(f"{error.message}, log file: {path}", cause=cause, fix=error.fix)
        told.exit_code = error.exit_code
        return told


def config_file(spec: Spec) -> str | None:
    """Name the file of further options that CRIU reads; None for none.

    Raises ConfigError for one that CRIU would take for another, or silently do without.
    """
    path = spec.annotations.get(CONFIG_ANNOTATION, CONFIG_FILE)
    where = f"annotations.{CONFIG_ANNOTATION}"
    if path and not path.startswith("/"):
        raise ConfigError(
            where,
            f"{path!a} must be an absolute path",
            cause="CRIU would look for it wherever it happens to be started",
        )
    if CONFIG_ANNOTATION in spec.annotations and path and not os.path.isfile(path):
        raise ConfigError(where, f"{path!a} is not a file")
    return path or None


def _end_of(path: str) -> bytes:
    """Read the end of a log. Raises OSError; what is no file is neither waited for nor followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return os.pread(fd, _LOG_END, max(0, os.fstat(fd).st_size - _LOG_END))
    finally:
        os.close(fd)


def _open(path: str) -> int:
    """Open a directory, making it for this user alone if it is missing.

    Raises MinirunError for root where it is another's, as /tmp/checkpoint may be: his link in the
    place of a log leads CRIU to any file, and images are processes with the rights that they say.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if _anothers(status) and host_root():
        os.close(fd)
        raise MinirunError(
            f"{path} is not root's alone",
            cause=f"owner {status.st_uid}, mode {status.st_mode & 0o7777:o}: others could exchange "
            "what is in it for what root would make processes of",
            fix=f"choose another directory, or chown -R 0:0 {path} and chmod 0700 {path}",
        )
    return fd


def _anothers(directory: os.stat_result) -> bool:
    ours = (directory.st_uid, directory.st_gid) == (0, 0)
    everybodys = bool(directory.st_mode & stat.S_IWOTH)
    return everybodys or (not ours and others_may_change(directory))


def external_key(kind: str) -> str:
    """Name a namespace that is neither dumped nor made: the same at dump and restore, as runc's."""
    return f"extRoot{_SHORT[kind].capitalize()}NS"


def external_namespace(kind: str, inode: int) -> str:
    """Say to CRIU which namespace is not the container's own."""
    return f"{_SHORT[kind]}[{inode}]:{external_key(kind)}"


# CRIU's names of those that it can leave out.
_SHORT = {"network": "net", "pid": "pid"}
EXTERNAL = tuple(_SHORT)
