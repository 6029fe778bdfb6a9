"""The parent's steps while the container's processes wait: maps, offsets, state, pid file."""

from __future__ import annotations

import os

from minirun import idmap, namespaces, state
from minirun.kernel.libc import quote, trace
from minirun.step import step
from minirun.unixsocket import connect, send_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def _maps(setup: Setup) -> list[str]:
    linux = setup.spec.linux
    return [
        f"{kind} {one.container_id} {one.host_id} {one.size}"
        for kind, mappings in (("uid", linux.uid_mappings), ("gid", linux.gid_mappings))
        for one in mappings
    ]


@step(lambda setup: setup.new_user_namespace, details=_maps)
def write_id_maps(setup: Setup) -> None:
    """Write the id maps of the new user namespace"""
    linux = setup.spec.linux
    write = idmap.write_maps if os.geteuid() == 0 else idmap.write_maps_of_user
    write(setup.outer_pid or setup.pid, linux.uid_mappings, linux.gid_mappings)


@step(
    lambda setup: bool(setup.spec.linux.time_offsets),
    why="the process itself may not, once it is no longer to be dumped: proc(5)",
)
def write_time_offsets(setup: Setup) -> None:
    """Write the clock offsets of the new time namespace"""
    namespaces.write_time_offsets(setup, setup.outer_pid)


@step()
def save_state(setup: Setup) -> None:
    """Record the container's process"""
    assert setup.container is not None
    setup.container.save(
        pid=setup.pid,
        start_time=state.start_time_of(setup.pid) or 0,
        cgroup=setup.group.path if setup.group else None,
        cgroup_ident=setup.group.ident if setup.group else None,
        systemd_unit=setup.scope.unit.name if setup.scope else None,
        user_manager=setup.scope.user if setup.scope else False,
    )


@step(
    lambda setup: setup.launch.pid_file is not None,
    details=lambda setup: [setup.launch.pid_file or ""],
)
def write_pid_file(setup: Setup) -> None:
    """Write the pid file"""
    path = setup.launch.pid_file or ""
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        os.unlink(aside)
    except FileNotFoundError:
        pass
    fd = os.open(aside, flags, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, str(setup.pid).encode())
    finally:
        os.close(fd)
    # Renamed, so that whoever waits for the file never reads half of it.
    os.rename(aside, path)


def _pidfd_socket(setup: Setup) -> list[str]:
    path = setup.launch.pidfd_socket
    return [] if path is None else [path]


@step(_pidfd_socket, details=_pidfd_socket)
def connect_pidfd_socket(setup: Setup) -> None:
    """Connect to the socket that wants a descriptor of the process"""
    setup.pidfd_socket = connect(setup.launch.pidfd_socket or "").detach()


@step(_pidfd_socket, details=_pidfd_socket)
def send_pidfd(setup: Setup) -> None:
    """Send a descriptor of the process to the pidfd socket"""
    # The payload says which of runc's two kinds of process it is.
    kind = b"setns" if setup.target_pid else b"standard"
    send_fd(setup.pidfd_socket, setup.pidfd, kind)
    trace(lambda: f"sendmsg({setup.pidfd_socket}, {{{quote(kind)}, SCM_RIGHTS, [{setup.pidfd}]}})")
    os.close(setup.pidfd_socket)
    setup.pidfd_socket = -1
