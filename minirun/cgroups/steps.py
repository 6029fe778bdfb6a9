"""The steps of the container's cgroup: made before the first process, limited before it goes on."""

from __future__ import annotations

from minirun.cgroups import cgroupfs, resources
from minirun.cgroups.hierarchy import hierarchy, location
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.group import Group
    from minirun.setup import Setup


def _describe(setup: Setup) -> list[str]:
    path = location(setup.spec.linux.cgroups_path, setup.cid)
    return [f"mkdir /sys/fs/cgroup/{path.lstrip('/')}"]


def _shell(setup: Setup) -> list[str]:
    path = "/sys/fs/cgroup/" + location(setup.spec.linux.cgroups_path, setup.cid).lstrip("/")
    asked = setup.spec.linux.resources
    quoted = [(one.value.replace("'", "'\\''"), one.file) for one in resources.writes(asked)]
    lines = [f"echo '{value}' > \"$group/{file}\"" for value, file in quoted]
    return [f"group='{path}'", 'mkdir -p "$group"', *lines]


def _limits(setup: Setup) -> list[str]:
    return [str(write) for write in resources.writes(setup.spec.linux.resources)]


@step(details=_describe, shell=_shell)
def create(setup: Setup) -> None:
    """Make the container's cgroup"""
    tree = hierarchy()
    asked = setup.spec.linux.resources
    needed = resources.controllers(resources.writes(asked))
    if not tree.usable:
        if needed:
            tree.require(needed)
        setup.notes.append(f"runs without a cgroup: {tree.reason}")
        return
    path = location(setup.spec.linux.cgroups_path, setup.cid)
    setup.group = cgroupfs.create(tree, path, needed)
    setup.undo.append(lambda: _undo(setup.group))
    setup.group_fd = setup.group.dirfd


def _undo(group: Group) -> None:
    group.kill()
    cgroupfs.discard(group)


@step(lambda setup: resources.writes(setup.spec.linux.resources), details=_limits)
def limit(setup: Setup) -> None:
    """Set the limits of the cgroup"""
    if setup.group is not None:
        from minirun.cgroups import limits  # 0.5 ms

        limits.apply(setup.group, setup.spec.linux.resources)
