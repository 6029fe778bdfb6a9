"""kill and delete: how a container ends, and that nothing of it stays."""

from __future__ import annotations

import os
import select

from minirun import log, state
from minirun.cgroups.group import open_group
from minirun.cgroups.hierarchy import default_parent, hierarchy, location
from minirun.errors import ConfigError, DoesNotExist, MinirunError, NotRunning, StateError
from minirun.kernel import process
from minirun.setup import Launch, Setup
from minirun.spec import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.cgroups.systemd import Scope
    from minirun.spec import Spec
    from minirun.state import Container

_SIGKILL = 9
_PATIENCE = 10_000  # milliseconds for a killed process to be gone
_MOMENT = 2.0  # seconds for a process to find that its create was killed
_GRACE = 2.0  # seconds for whoever has the lock


def group_of(container: Container) -> Group | None:
    """Open the container's cgroup; None if it has none, or no longer."""
    if container.saved.cgroup is None:
        return None
    tree = hierarchy()
    if not tree.usable:
        return None
    return open_group(tree, container.saved.cgroup, container.saved.cgroup_ident)


def scope_of(container: Container) -> Scope | None:
    """Give the systemd unit that the container's cgroup belongs to; None if there is none."""
    saved = container.saved
    if saved.systemd_unit is None:
        return None
    from minirun.cgroups import systemd  # 3 ms, with the driver alone

    return systemd.existing(saved.systemd_unit, user=saved.user_manager)


def kill(root: str, cid: str, signal: int, all_: bool) -> None:
    """See `container.kill`."""
    with state.load(root, cid) as container:
        signal = _heard(container, signal)
        whole = all_ or (signal == _SIGKILL and not _own_pids(container))
        if whole and _kill_all(container, signal):
            return
        try:
            pidfd = container.pidfd()
        except NotRunning:
            if all_:
                return
            raise
        try:
            process.pidfd_send_signal(pidfd, signal)
        except ProcessLookupError:
            raise NotRunning("container not running") from None
        finally:
            os.close(pidfd)


def _heard(container: Container, signal: int) -> int:
    """Give SIGKILL in the place of a signal that shall end a created container, but cannot.

    kernel: the first process of a pid namespace gets only signals that it handles; and the filter
    of an agent, in force while it waits for start, may keep it from handling any (`payload`).
    """
    if signal not in process.ENDING or container.status() != "created":
        return signal
    profile = container.spec.linux.seccomp
    if profile is None or not profile.notifies:
        return signal
    from minirun.kernel import signals  # for this alone

    return signal if signals.catches(container.saved.pid, signal) else _SIGKILL


def _own_pids(container: Container) -> bool:
    return any(entry.type == "pid" and not entry.path for entry in container.spec.linux.namespaces)


def _kill_all(container: Container, signal: int) -> bool:
    """Signal every process of the container's cgroup; False if it has none."""
    group = group_of(container)
    if group is None:
        return False
    with group:
        group.kill() if signal == _SIGKILL else group.signal(signal)
    return True


def delete(root: str, cid: str, force: bool) -> None:
    """See `container.delete`."""
    try:
        container = state.find(root, cid, lock=not force)
        if force:
            _lock_by_force(container)
    except DoesNotExist:
        if force:
            return
        raise
    with container:
        try:
            container.read()
        except StateError:
            if not force:
                raise
            _remove_broken(container)
            return
        status = container.status()
        if status == "running" and not force:
            raise StateError(
                f"cannot delete container {cid} that is not stopped: running",
                fix=f"minirun kill {cid} first, or minirun delete --force {cid}",
            )
        if status in ("created", "running"):
            end(container)
        destroy(container)


def _lock_by_force(container: Container) -> None:
    """Lock a container; end its processes where whoever has the lock may be waiting for them.

    An exec does until it is inside, and a container has means to stop what enters it.
    """
    try:
        if container.lock(_GRACE):
            return
        try:
            container.read()
        except StateError:
            pass  # of which no cgroup is known
        else:
            _kill_all(container, _SIGKILL)
        container.lock()
    except BaseException:
        container.close()
        raise


def end(container: Container) -> None:
    """Kill the container's process and wait until it is gone."""
    try:
        pidfd = container.pidfd()
    except NotRunning:
        return
    try:
        _kill_all(container, _SIGKILL)
        try:
            process.pidfd_send_signal(pidfd, _SIGKILL)
        except ProcessLookupError:
            return
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        if not waiting.poll(_PATIENCE):
            raise MinirunError(f"container {container.id} cannot be killed: its process is stuck")
    finally:
        os.close(pidfd)


def finish(container: Container, setup: Setup) -> None:
    """Remove a container whose process has ended, unless another has removed it meanwhile."""
    try:
        container.lock()
    except DoesNotExist:
        return
    destroy(container, setup.group, setup.spec)


def destroy(container: Container, group: Group | None = None, spec: Spec | None = None) -> None:
    """Remove the cgroup, run the poststop hooks, remove the state.

    The group and the configuration are looked up unless the caller has them.
    """
    group = group or group_of(container)
    if group is not None:
        with group:
            group.kill()
            _stop_unit(container)
            group.remove()
    elif container.saved.systemd_unit is not None:
        _stop_unit(container)
    elif not container.saved.pid:
        _remove_leftover(container)
    if container.saved.root_mount is not None:
        from minirun.mounts import outside  # for containers without a mount namespace only

        outside.unbind(container.saved.rootfs, container.saved.root_mount)
    _leave_resctrl(container, spec)
    _poststop(container, spec)
    container.remove()


def _stop_unit(container: Container) -> None:
    """Have systemd remove the unit, so that its name is free when this returns."""
    scope = scope_of(container)
    if scope is None:
        return
    try:
        scope.stop()
    except MinirunError as error:
        # Without a process it ends by itself: a manager that is gone keeps nobody from deleting.
        log.warning(error.message)
    finally:
        scope.close()


def _leave_resctrl(container: Container, spec: Spec | None) -> None:
    try:
        rdt = (spec or container.spec).linux.intel_rdt
    except (MinirunError, OSError):
        return  # create did not come so far
    if rdt is not None:
        from minirun import resctrl

        resctrl.remove(rdt, container.id)


def _poststop(container: Container, spec: Spec | None) -> None:
    """Run the poststop hooks; one that fails is told of and does not stop the others."""
    try:
        spec = spec or container.spec
    except (MinirunError, OSError):
        return  # create did not come so far
    if not spec.hooks.poststop:
        return
    from minirun import hooks

    bundle = container.saved.bundle
    hooks.run_poststop(Setup(container.id, spec, spec.process or Process(), bundle, Launch()))


def _remove_broken(container: Container) -> None:
    """Remove a container of which no state can be read: an empty cgroup of its name, the files."""
    _remove_leftover(container)
    container.remove()


def _remove_leftover(container: Container) -> None:
    """Remove the empty cgroup that a killed create had made but not recorded.

    Its process may be there for a moment more: it ends when it finds its channel closed. Another's
    process, in a cgroup of the same name, stays, and so does the cgroup.
    """
    tree = hierarchy()
    if not tree.usable:
        return
    try:
        path = container.spec.linux.cgroups_path
    except (MinirunError, OSError):
        path = None
    try:
        group = open_group(tree, location(path, container.id, default_parent(tree)))
    except ConfigError:
        return  # create refused it
    if group is not None:
        with group:
            if group.await_empty(_MOMENT):
                group.remove()
