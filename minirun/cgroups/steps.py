"""The steps of the container's cgroup: made before the first process, limited before it goes on."""

from __future__ import annotations

from minirun import log, privilege
from minirun.cgroups import cgroupfs, resources
from minirun.cgroups.hierarchy import hierarchy, location
from minirun.errors import Unsupported
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.cgroups.systemd import Scope
    from minirun.cgroups.unitname import Unit
    from minirun.setup import Setup


def _describe(setup: Setup) -> list[str]:
    if setup.launch.systemd_cgroup:
        return []
    path = location(setup.spec.linux.cgroups_path, setup.cid)
    return [f"mkdir /sys/fs/cgroup/{path.lstrip('/')}"]


def _shell(setup: Setup) -> list[str]:
    if setup.launch.systemd_cgroup:
        return _shell_scope(setup)
    path = "/sys/fs/cgroup/" + location(setup.spec.linux.cgroups_path, setup.cid).lstrip("/")
    return [f"group={quoted(path)}", 'mkdir -p "$group"', *_shell_limits(setup)]


def _shell_scope(setup: Setup) -> list[str]:
    """A scope that a sleeping process holds until the container's first one is in it."""
    unit = _unit(setup)
    user = "--user " if privilege.user_manager() else ""
    return [
        f"group={quoted(f'/sys/fs/cgroup{unit.path}')}",
        f"systemd-run {user}--quiet --scope --collect --unit {quoted(unit.name)} "
        f"--slice {quoted(unit.slice)} --property Delegate=yes sleep 5 &",
        'until [ -d "$group" ]; do sleep 0.1; done',
        *_shell_limits(setup),
    ]


def _shell_limits(setup: Setup) -> list[str]:
    asked = setup.spec.linux.resources
    writes = [(quoted(one.value), quoted(one.file)) for one in resources.writes(asked)]
    return [f'echo {value} > "$group"/{file}' for value, file in writes]


def _unit(setup: Setup) -> Unit:
    from minirun.cgroups.unitname import unit_of

    return unit_of(setup.spec.linux.cgroups_path, setup.cid, user=privilege.user_manager())


def _limits(setup: Setup) -> list[str]:
    return [str(write) for write in resources.writes(setup.spec.linux.resources)]


@step(lambda setup: not setup.launch.no_cgroup or _limited(setup), details=_describe, shell=_shell)
def create(setup: Setup) -> None:
    """Make the container's cgroup, unless systemd is to make it"""
    tree = hierarchy()
    asked = setup.spec.linux.resources
    planned = resources.writes(asked)
    needed = resources.controllers(planned)
    if setup.launch.no_cgroup:
        raise Unsupported(
            f"a container without a cgroup cannot be limited: {planned[0]}",
            cause="both --cgroup-manager disabled and linux.resources",
        )
    if not tree.usable:
        if needed:
            tree.require(needed)
        setup.notes.append(f"runs without a cgroup: {tree.reason}")
        return
    if setup.launch.systemd_cgroup:
        setup.scope = _scope(setup)
        return
    if setup.unprivileged:
        from minirun.cgroups import delegation

        setup.group, note = delegation.create(
            tree, setup.spec.linux.cgroups_path, setup.cid, needed, must=not setup.launch.rootless
        )
        if setup.group is None:
            setup.notes.append(note)
            _warn_of_leftovers(setup)
            return
    else:
        path = location(setup.spec.linux.cgroups_path, setup.cid)
        setup.group = cgroupfs.create(tree, path, needed)
    setup.undo.append(lambda: _undo(setup.group))
    setup.group_fd = setup.group.dirfd


def _warn_of_leftovers(setup: Setup) -> None:
    """Say it, as runc does, where nothing holds a container's processes together."""
    namespaces = setup.spec.linux.namespaces
    if not any(entry.type == "pid" and not entry.path for entry in namespaces):
        text = "a container without a cgroup and without a pid namespace of its own: its processes "
        text += "cannot all be killed. Such configuration is strongly discouraged"
        log.warning(text, shown=True)


def _undo(group: Group) -> None:
    group.kill()
    cgroupfs.discard(group)


def _scope(setup: Setup) -> Scope:
    from minirun.cgroups import systemd  # 3 ms, with the driver alone

    spec = setup.spec
    user = privilege.user_manager()
    return systemd.scope_of(spec.linux.cgroups_path, setup.cid, spec.annotations, user=user)


def _describe_scope(setup: Setup) -> list[str]:
    unit = _unit(setup)
    return [f"StartTransientUnit({unit.name}, Slice={unit.slice}, Delegate=yes)"]


@step(
    lambda setup: setup.launch.systemd_cgroup,
    details=_describe_scope,
    why="systemd is the only writer of its tree, and would undo what it was not told",
)
def start_scope(setup: Setup) -> None:
    """Have systemd make the container's scope around its first process"""
    if setup.scope is not None:  # else there is no tree to make it in, and `create` has said so
        from minirun.cgroups import systemd

        setup.group = systemd.enter(setup.scope, hierarchy(), setup.outer_pid or setup.pid)
        setup.undo.append(lambda: _undo_scope(setup.scope, setup.group))
    if setup.channel is not None:  # CRIU's process, at restore, waits for its request
        setup.channel.send("go")


def _undo_scope(scope: Scope, group: Group) -> None:
    group.kill()
    scope.stop()
    group.remove()


@step(lambda setup: setup.scope is not None)
def join_scope(setup: Setup) -> None:
    """Have systemd put the process into the container's scope"""
    setup.scope.attach(setup.outer_pid)
    setup.scope.close()
    assert setup.channel is not None
    setup.channel.send("go")


def _limited(setup: Setup) -> bool:
    return setup.launch.systemd_cgroup or bool(resources.writes(setup.spec.linux.resources))


@step(_limited, details=_limits)
def limit(setup: Setup) -> None:
    """Set the limits of the cgroup, and tell them to systemd if it made it"""
    if setup.group is None:
        return
    from minirun.cgroups import limits  # 0.5 ms

    planned = resources.writes(setup.spec.linux.resources)
    if setup.scope is not None:
        # First: what systemd writes for it is then made exact, and what it knows nothing of added.
        setup.scope.limit(planned)
        setup.scope.close()
        cgroupfs.ensure(hierarchy(), setup.group.path, resources.controllers(planned))
    limits.apply(setup.group, setup.spec.linux.resources)


def _owner(setup: Setup) -> int | None:
    """Return the host's number of the payload's user; None where it has none."""
    uid = setup.process.user.uid
    if not setup.needs_private("user"):
        return uid
    for one in setup.spec.linux.uid_mappings:
        if one.container_id <= uid < one.container_id + one.size:
            return one.host_id + uid - one.container_id
    return None


def _writable(setup: Setup) -> bool:
    """Whether the container sees its cgroup as the root of a tree that it may write to."""
    return "cgroup" in setup.new_namespaces and any(
        entry.source == "cgroup"
        and [part for part in entry.destination.split("/") if part] == ["sys", "fs", "cgroup"]
        and "ro" not in entry.options
        for entry in setup.spec.mounts
    )


@step(
    lambda setup: _writable(setup) and _owner(setup),
    details=lambda setup: [f"chown {_owner(setup)}"],
    why="a cgroup file system that is mounted to be written to must belong to who shall write",
)
def delegate(setup: Setup) -> None:
    """Give the cgroup to the payload's user"""
    uid = _owner(setup)
    if setup.group is not None and uid is not None and not setup.unprivileged:
        setup.group.delegate(uid)
