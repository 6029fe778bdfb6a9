"""The parent's steps while the container's processes wait: maps, offsets, state, pid file."""

from __future__ import annotations

import os

from minirun import idmap, namespaces, state
from minirun.step import step

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
    idmap.write_maps(setup.outer_pid, linux.uid_mappings, linux.gid_mappings)


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
