"""events: what a container uses, interval by interval, and its out-of-memory kills as they happen.

An event is a JSON object as runc prints it: `{"type": "stats", "id": …, "data": …}`, and
`{"type": "oom", "id": …}` for each process that the kernel killed for want of memory.
"""

from __future__ import annotations

import os
import time

from minirun import state
from minirun.cgroups import stats
from minirun.changing import group_or_refuse
from minirun.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from minirun.cgroups.group import Group
    from minirun.state import Container

    Event = dict[str, Any]

# The columns of /proc/PID/net/dev that engines ask for (proc_pid_net(5)): name → its place.
_COUNTERS = {
    "RxBytes": 0,
    "RxPackets": 1,
    "RxErrors": 2,
    "RxDropped": 3,
    "TxBytes": 8,
    "TxPackets": 9,
    "TxErrors": 10,
    "TxDropped": 11,
}


def statistics(root: str, cid: str) -> Event:
    """See `container.statistics`."""
    with state.load(root, cid) as container:
        _refuse_stopped(container)
        with group_or_refuse(container) as group:
            return _stats(container, group)


def events(root: str, cid: str, interval: float) -> Iterator[Event]:
    """See `container.events`."""
    with state.load(root, cid) as container:
        _refuse_stopped(container)
        with group_or_refuse(container) as group:
            watch = stats.Watch(group)
            try:
                yield from _follow(container, group, watch, interval)
            finally:
                watch.close()


def _refuse_stopped(container: Container) -> None:
    if not container.alive():
        raise StateError(f"container with id {container.id} is not running")


def _follow(
    container: Container, group: Group, watch: stats.Watch, interval: float
) -> Iterator[Event]:
    due = time.monotonic() + interval
    while True:
        for kind in watch.wait(due - time.monotonic()):
            if kind == "empty":
                return
            yield {"type": "oom", "id": container.id}
        # Others may be in the group still, as with the host's pid namespace.
        if not container.alive():
            return
        if time.monotonic() >= due:
            yield _stats(container, group)
            due += interval


def _stats(container: Container, group: Group) -> Event:
    data = {**stats.usage(group), "network_interfaces": _interfaces(container)}
    return {"type": "stats", "id": container.id, "data": data}


def _interfaces(container: Container) -> list[dict[str, Any]]:
    """Count what went over the interfaces of a network namespace that is not the host's."""
    network = [one for one in container.spec.linux.namespaces if one.type == "network"]
    if not network:
        return []
    try:
        with open(f"/proc/{container.saved.pid}/net/dev", "rb") as file:
            text = os.fsdecode(file.read())
    except OSError:  # it has ended, or the namespace is not ours to look into
        return []
    # Looked at afterwards: only then were the figures those of the container's process.
    return interfaces(text) if container.alive() else []


def interfaces(text: str) -> list[dict[str, Any]]:
    """Parse /proc/net/dev; the loopback, which leads nowhere, is left out."""
    found = []
    for line in text.split("\n"):  # a name may hold what else ends a line to Python
        name, colon, rest = line.partition(":")
        counts = rest.split()
        if colon and name.strip() != "lo" and len(counts) > max(_COUNTERS.values()):
            figures = {key: int(counts[place]) for key, place in _COUNTERS.items()}
            found.append({"Name": name.strip(), **figures})
    return found
