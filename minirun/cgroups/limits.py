"""Set and change the limits of a group: the writes of `resources`, performed."""

from __future__ import annotations

from minirun.cgroups.group import Group
from minirun.cgroups.hierarchy import blocked_at
from minirun.cgroups.resources import CONTEXT, Write, check_usage, merge, writes
from minirun.cgroups.undo import undo_value
from minirun.errors import MinirunError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minirun.spec import Resources

    Announce = Callable[[list[Write]], None]


def apply(group: Group, resources: Resources | None) -> None:
    """Set the limits that `resources` ask for on a new group; the first that fails raises.

    Raises Unsupported, naming the level of the tree at which a controller stops, ConfigError for a
    contradiction in `resources`, MinirunError for what the kernel refuses.
    """
    _check_usage(group, resources)
    perform(group, writes(resources))


def perform(group: Group, planned: list[Write]) -> None:
    """Make the writes of `planned` in their order. Raises as `apply` does."""
    if planned:
        available = group.controllers
        for write in planned:
            _perform(group, write, available)


def update(
    group: Group,
    changes: Resources,
    stored: Resources | None = None,
    announce: Announce | None = None,
) -> Resources:
    """Change the limits that `changes` give and leave the others.

    `stored` is what was asked for so far; the merged resources are returned, to be kept. When a
    write fails, those before it are taken back, then its error is raised. A controller that the
    group lacks must be brought to it before: `cgroupfs.ensure`. `announce` is told the writes
    before they are made, and those that undo them if they fail.
    """
    _check_usage(group, changes)
    current = {file: text for file in CONTEXT if (text := group.get(file)) is not None}
    planned = writes(changes, stored, current)
    available = group.controllers
    before = [group.get(write.file) for write in planned]
    if announce is not None:
        announce(planned)
    done: list[tuple[Write, str | None]] = []
    try:
        for write, former in zip(planned, before, strict=True):
            _perform(group, write, available)
            done.append((write, former))
    except MinirunError as error:
        if announce is not None:
            announce(_undoing(planned, before))
        left = _take_back(group, done)
        if left:
            error.cause += f"; what was set before it stays: {', '.join(left)}"
        raise
    return merge(stored, changes)


def _perform(group: Group, write: Write, available: tuple[str, ...]) -> None:
    if write.controller and write.controller not in available:
        if write.limits:
            raise _missing(group, write)
        return
    try:
        group.put(write.file, write.value)
    except FileNotFoundError as error:
        if write.fallback is not None:
            _perform(group, write.fallback, available)
        elif not write.optional:
            raise group.failed(write.file, write.value, error) from error
    except OSError as error:
        raise group.failed(write.file, write.value, error) from error


def _missing(group: Group, write: Write) -> Unsupported:
    name = write.controller
    return Unsupported(
        f"cannot set {write.file}: controller {name} is not available in cgroup {group.path}",
        cause=f"{write.field} asks for it; {blocked_at(group.tree, group.path, name)}",
        fix="place the container below a cgroup that has it, or have it delegated",
    )


def _undoing(planned: list[Write], before: list[str | None]) -> list[Write]:
    formers = [undo_value(write, text) for write, text in zip(planned, before, strict=True)]
    pairs = zip(planned, formers, strict=True)
    return [write.replace(value=former, fallback=None) for write, former in pairs if former]


def _take_back(group: Group, done: list[tuple[Write, str | None]]) -> list[str]:
    """Undo the writes of `done`, last first; return those that could not be undone."""
    left = []
    for write, before in reversed(done):
        former = undo_value(write, before)
        if former is None:
            left.append(str(write))
            continue
        try:
            group.put(write.file, former)
        except OSError:  # told in the cause of the first failure
            left.append(str(write))
    return left


def _check_usage(group: Group, resources: Resources | None) -> None:
    if resources is None or resources.memory is None:
        return
    usage = (group.get("memory.current") or "").strip()
    if usage.isdigit():
        check_usage(resources.memory, int(usage))
