"""exec: another process in a container, with the container's controls."""

from __future__ import annotations

import os

from minirun import foreground, joining, parent, privilege, recipe, state
from minirun.cgroups import delegation
from minirun.cgroups.group import open_subgroup
from minirun.ending import group_of, scope_of
from minirun.errors import ConfigError, StateError
from minirun.making import absolute, check_streams, tell_steps
from minirun.setup import Launch, Setup
from minirun.spec import Process
from minirun.step import follow
from minirun.validate_process import validate_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.state import Container


def exec_process(root: str, cid: str, process: Process, launch: Launch) -> int:
    """See `container.exec_process`."""
    absolute(launch)
    with state.load(root, cid, lock=True) as container:
        setup = _prepare(container, process, launch)
        console = foreground.console_of(setup)
        if launch.ignore_paused:
            # A process in a frozen group goes on after `resume` only, which needs the lock.
            container.close()
        parent.join(setup)
        # The process can be stopped from inside from here on: the lock must not depend on it.
        container.close()
        with foreground.Signals() as caught:
            parent.release(setup)
            if launch.detach:
                return 0
            return foreground.attend(setup, console, caught)


def _prepare(container: Container, process: Process, launch: Launch) -> Setup:
    spec = container.spec
    if not process.args:
        raise ConfigError("process.args", "must not be empty")
    process = _inherited(process, spec.process)
    setup = Setup(container.id, spec, process, container.saved.bundle, launch)
    setup.own_mounts = container.saved.root_mount is None
    tell_steps(setup)
    setup.notes += validate_process(process)
    check_streams(setup)
    status = container.status()
    if status == "stopped":
        raise StateError(
            "cannot exec in a stopped container",
            fix=f"minirun delete {container.id}, and run it anew",
        )
    setup.pidfd = container.pidfd()
    setup.pid = container.saved.pid
    _enter_group(setup, container)
    setup.join_flags = joining.differing(setup.pid)
    with open(f"/proc/{setup.pid}/setgroups", "rb") as file:
        setup.setgroups_denied = file.read(4) == b"deny"
    follow("parent", recipe.EXEC_PREPARE, setup)
    return setup


def _inherited(process: Process, first: Process | None) -> Process:
    """Take from the container's process what this one does not say itself, as runc does."""
    if first is None:
        return process
    names = (
        "capabilities", "apparmor_profile", "selinux_label", "rlimits", "io_priority", "scheduler",
        "exec_cpu_affinity",
    )  # fmt: skip
    return process.replace(
        **{name: getattr(first, name) for name in names if not getattr(process, name)}
    )


def _enter_group(setup: Setup, container: Container) -> None:
    group = group_of(container)
    if group is None:
        if container.saved.cgroup is not None:
            raise StateError(
                f"the container's cgroup {container.saved.cgroup} cannot be found",
                cause="without it the process would be under no limit and no device rule",
            )
        return
    if group.frozen() and not setup.launch.ignore_paused:
        raise StateError(
            "cannot exec in a paused container (use --ignore-paused to override)",
            fix=f"minirun resume {container.id}",
        )
    if setup.launch.cgroup:
        group = open_subgroup(group, setup.launch.cgroup)
    elif (group.get("cgroup.subtree_control") or "").strip():
        group = _where_init_is(setup.pid, group)
    setup.exec_group = group
    if privilege.host_root() or delegation.may_enter(group.tree, group.path):
        setup.group_fd = group.dirfd
        return
    setup.scope = scope_of(container)
    if setup.scope is None:
        raise StateError(
            f"cannot enter the container's cgroup {group.path} from {group.tree.own}: permission "
            "denied",
            cause="without it the process would be under no limit",
            fix="systemd-run --user --scope minirun exec …, as the container was made",
        )
    setup.scope.below = group.path.removeprefix(container.saved.cgroup or "")


def _where_init_is(pid: int, group: Group) -> Group:
    """Open the group of the container's first process: the container's own may hold no process.

    A container that divides its group, as systemd does, has moved itself below it; cgroup-v2.rst,
    "No Internal Process Constraint". runc goes there too.
    """
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        found = next((line[3:].rstrip(b"\n") for line in file if line.startswith(b"0::")), b"")
    path = os.fsdecode(found)
    below = path.removeprefix(group.path.rstrip("/") + "/")
    return open_subgroup(group, below) if below != path else group
