"""pause, resume, update, ps: what is done to a container's cgroup while it runs."""

from __future__ import annotations

import os

from minirun import jsontext, state
from minirun.cgroups import cgroupfs, limits, resources
from minirun.cgroups.hierarchy import hierarchy
from minirun.ending import group_of, scope_of
from minirun.errors import MinirunError, NotRunning, StateError, Unsupported
from minirun.spec import IntelRdt, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.state import Container


def group_or_refuse(container: Container) -> Group:
    """Open the container's cgroup. Raises Unsupported if it has none."""
    group = group_of(container)
    if group is None:
        raise Unsupported(
            f"container {container.id} has no cgroup",
            cause="it was created on a host without a usable cgroup v2 hierarchy",
        )
    return group


def pause(root: str, cid: str) -> None:
    """See `container.pause`."""
    with state.load(root, cid, lock=True) as container:
        status = container.status()
        if status not in ("created", "running"):
            raise StateError(f"container not running or created: {status}")
        with group_or_refuse(container) as group:
            group.freeze()


def resume(root: str, cid: str) -> None:
    """See `container.resume`."""
    with state.load(root, cid, lock=True) as container:
        if not container.alive():
            raise NotRunning("container not running")
        with group_or_refuse(container) as group:
            if not group.frozen():
                raise StateError("container not paused")
            group.thaw()


def update(root: str, cid: str, changes: Resources) -> None:
    """See `container.update`."""
    with state.load(root, cid, lock=True) as container:
        if not container.alive():
            raise NotRunning("container not running")
        spec = container.spec
        with group_or_refuse(container) as group:
            needed = resources.controllers(resources.writes(changes))
            cgroupfs.ensure(hierarchy(), group.path, needed)
            merged = _change(container, group, changes, spec.linux.resources)
        changed = spec.replace(linux=spec.linux.replace(resources=merged))
        container.write_file(state.CONFIG, jsontext.dumps(changed.encode()).encode())


def update_rdt(root: str, cid: str, changes: IntelRdt) -> None:
    """See `container.update_rdt`."""
    from minirun import resctrl  # few processors have it

    resctrl.validate(changes)
    with state.load(root, cid, lock=True) as container:
        if not container.alive():
            raise NotRunning("container not running")
        place, spec = resctrl.mount_point(), container.spec
        if place is None:
            raise Unsupported(
                "Intel RDT/CAT: l3 cache schema is not enabled"
                if changes.l3_cache_schema
                else "Intel RDT/MBA: memory bandwidth schema is not enabled",
                cause="no resctrl file system is mounted",
                fix="mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it",
            )
        present = spec.linux.intel_rdt
        resctrl.change(place, cid, present, changes, container.saved.pid)
        merged = changes if present is None else present.replace(**changes.__dict__)
        changed = spec.replace(linux=spec.linux.replace(intel_rdt=merged))
        container.write_file(state.CONFIG, jsontext.dumps(changed.encode()).encode())


def _change(
    container: Container, group: Group, changes: Resources, stored: Resources | None
) -> Resources:
    scope = scope_of(container)
    if scope is None:
        return limits.update(group, changes, stored)
    try:
        # systemd first: what it is not told, its next daemon-reload would undo.
        return limits.update(group, changes, stored, scope.limit)
    finally:
        scope.close()


def ps(root: str, cid: str) -> list[int]:
    """See `container.ps`."""
    with state.load(root, cid) as container:
        group = group_of(container)
        if group is not None:
            with group:
                return sorted(group.procs())
        return _by_namespace(container) if container.alive() else []


def _by_namespace(container: Container) -> list[int]:
    """Without a cgroup: the processes of the container's pid namespace, if it has its own."""
    own = any(entry.type == "pid" and not entry.path for entry in container.spec.linux.namespaces)
    if not own:
        return [container.saved.pid]
    try:
        wanted = os.stat(f"/proc/{container.saved.pid}/ns/pid")
    except FileNotFoundError:
        raise MinirunError("container not running") from None
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                other = os.stat(f"/proc/{name}/ns/pid")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # gone, or not ours to look at, so not in it
            if (other.st_dev, other.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(name))
    return sorted(found)
