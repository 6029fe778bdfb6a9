"""checkpoint and restore: their flags, and one call each."""

from __future__ import annotations

import os

from minirun import container, log
from minirun.cli.place import container_id, state_root
from minirun.criu.images import Images
from minirun.criu.messages import CGROUP_MODES
from minirun.errors import MinirunError
from minirun.privilege import rootless
from minirun.setup import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.grammar import Options

_DEFAULT_IMAGES = "checkpoint"  # in the current directory, as runc has it
_NAMESPACES = ("network",)
_PORT_MAX = 65535
_SHARED = ("auto_dedup", "ext_unix_sk", "file_locks", "lazy_pages", "shell_job", "tcp_established")
_OF_DUMP = ("leave_running", "link_remap", "pre_dump", "tcp_skip_in_flight")


def checkpoint(options: Options) -> int:
    """`minirun checkpoint`."""
    images = Images(
        options.image_path or _DEFAULT_IMAGES,
        options.work_path,
        _parent(options.parent_path),
        page_server=_page_server(options.page_server),
        status_fd=_descriptor(options.status_fd),
        cgroups_mode=_mode(options),
        **{name: getattr(options, name) for name in (*_SHARED, *_OF_DUMP)},
    )
    _warn_rootless("checkpoint")
    container.checkpoint(state_root(options), container_id(options), images)
    return 0


def restore(options: Options) -> int:
    """`minirun restore`; the exit status is the container's."""
    path = options.image_path or _DEFAULT_IMAGES
    if not os.path.isdir(path):
        raise MinirunError(f"--image-path {path} is not a directory")
    images = Images(
        path,
        options.work_path,
        cgroups_mode=_mode(options),
        lsm_profile=options.lsm_profile,
        lsm_mount_context=options.lsm_mount_context,
        **{name: getattr(options, name) for name in _SHARED},
    )
    _warn_rootless("restore")
    launch = Launch(
        options.bundle or ".",
        console_socket=options.console_socket,
        pid_file=options.pid_file,
        pidfd_socket=options.pidfd_socket,
        detach=options.detach,
        systemd_cgroup=options.systemd_cgroup,
        rootless=rootless(options.rootless),
    )
    return container.restore(state_root(options), container_id(options), launch, images)


def _warn_rootless(verb: str) -> None:
    if os.geteuid() != 0:
        log.warning(f"{verb} is untested without root")


def _mode(options: Options) -> str:
    mode = str(options.manage_cgroups_mode or "")
    if mode not in CGROUP_MODES:
        raise MinirunError(
            "Invalid manage-cgroups-mode value", fix="use soft, full, strict or ignore"
        )
    for name in options.empty_ns:
        # The network's is always restored empty; CRIU can do it with no other.
        if name not in _NAMESPACES:
            raise MinirunError(f'namespace "{name}" is not supported', fix="use network")
    return mode


def _parent(path: str | None) -> str | None:
    if path and os.path.isabs(path):
        raise MinirunError(
            "--parent-path must be relative",
            cause="it is looked up from --image-path, so that both can be moved together",
        )
    return path or None


def _page_server(text: str | None) -> tuple[str, int] | None:
    if not text:
        return None
    address, _, port = text.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    if not address or not port or (":" in address and not bracketed):
        raise MinirunError("Use --page-server ADDRESS:PORT to specify page server")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX):
        raise MinirunError("Invalid port number")
    return address.strip("[]"), int(port)


def _descriptor(text: str | None) -> int:
    if text is None or text == "-1":
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= 7):
        raise MinirunError(f"invalid --status-fd argument {text}: not a descriptor")
    return int(text)
