"""The operations on containers: what the command line calls, and what a library would.

Every operation takes the state root and the container's ID, holds the container's lock while it
changes something, and raises MinirunError with the words that engines match. Looking (`state`,
`list_all`) is here; what makes and what ends containers is loaded when it is asked for: engines
call `state` every second, and the whole runtime costs it 30 ms.
"""

from __future__ import annotations

from minirun import state as states
from minirun.errors import DoesNotExist, MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from minirun.criu.images import Images
    from minirun.setup import Launch
    from minirun.spec import IntelRdt, Process, Resources, Spec
    from minirun.state import Container

    Explain = Callable[[list[dict[str, Any]]], None]

load = states.load


def state(root: str, cid: str) -> dict[str, Any]:
    """Return a container's state (runtime.md, "State") with rootfs, created and owner as runc.

    Raises DoesNotExist.
    """
    with load(root, cid) as container:
        return _state_of(container)


def _state_of(container: Container) -> dict[str, Any]:
    saved = container.saved
    status = container.status()
    if status == "running" and _frozen(saved.cgroup):
        status = "paused"
    shown: dict[str, Any] = {
        "ociVersion": saved.oci_version,
        "id": saved.id,
        "pid": 0 if status == "stopped" else saved.pid,
        "status": status,
        "bundle": saved.bundle,
        "rootfs": saved.rootfs,
        "created": saved.created,
    }
    if saved.annotations:
        shown["annotations"] = saved.annotations
    shown["owner"] = ""
    return shown


def _frozen(cgroup: str | None) -> bool:
    if cgroup is None:
        return False
    try:
        with open(f"/sys/fs/cgroup{cgroup}/cgroup.freeze", "rb") as file:
            return file.read(1) == b"1"
    except OSError:  # gone, or a tree that is not ours to read: then it is not paused
        return False


def list_all(root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the state of each container, and a warning for each that cannot be read."""
    found, warnings = [], []
    for cid in states.names(root):
        try:
            with load(root, cid) as container:
                found.append({**_state_of(container), "owner": container.saved.owner})
        except DoesNotExist:
            continue  # deleted meanwhile
        except (MinirunError, OSError) as error:
            warnings.append(f"container {cid}: {error}")
    return found, warnings


def read_bundle(bundle: str) -> tuple[str, Spec, bytes]:
    """Read and check a bundle; return its absolute path, the specification and its text.

    Raises ConfigError, JSONError, OSError.
    """
    from minirun import making

    return making.read_bundle(bundle)


def create(root: str, cid: str, launch: Launch) -> None:
    """Make a container of a bundle and leave it waiting for `start`."""
    from minirun import making

    making.create(root, cid, launch)


def start(root: str, cid: str) -> None:
    """Let a created container run its program; raises what kept it from starting."""
    from minirun import starting

    starting.start(root, cid)


def run(
    root: str,
    cid: str,
    launch: Launch,
    *,
    detach: bool = False,
    keep: bool = False,
    explain: Explain | None = None,
) -> int:
    """Make, start and unless detached await a container; return its exit status.

    `explain` is called with the events of all steps, in order, as soon as the payload runs.
    """
    from minirun import making

    return making.run(root, cid, launch, detach=detach, keep=keep, explain=explain)


def exec_process(root: str, cid: str, process: Process, launch: Launch) -> int:
    """Run another process in a container; return its exit status, 0 if detached."""
    from minirun import executing

    return executing.exec_process(root, cid, process, launch)


def kill(root: str, cid: str, signal: int, all_: bool = False) -> None:
    """Signal a container's process, or all of its processes."""
    from minirun import ending

    ending.kill(root, cid, signal, all_)


def delete(root: str, cid: str, force: bool = False) -> None:
    """Remove what a stopped container holds; `force` kills it first and forgives its absence."""
    from minirun import ending

    ending.delete(root, cid, force)


def pause(root: str, cid: str) -> None:
    """Freeze a container's processes."""
    from minirun import changing

    changing.pause(root, cid)


def resume(root: str, cid: str) -> None:
    """Let a frozen container go on."""
    from minirun import changing

    changing.resume(root, cid)


def update(root: str, cid: str, resources: Resources) -> None:
    """Change a container's limits; what `resources` does not give stays."""
    from minirun import changing

    changing.update(root, cid, resources)


def update_rdt(root: str, cid: str, rdt: IntelRdt) -> None:
    """Change a container's share of cache and memory bandwidth.

    Raises Unsupported where there is no resctrl, MinirunError with what the kernel says.
    """
    from minirun import changing

    changing.update_rdt(root, cid, rdt)


def ps(root: str, cid: str) -> list[int]:
    """Return the process IDs of a container's processes, as the host counts them."""
    from minirun import changing

    return changing.ps(root, cid)


def checkpoint(root: str, cid: str, images: Images) -> None:
    """Write a running container to files, and end it unless `images` says otherwise.

    Raises Unsupported where CRIU is missing or cannot, StateError, MinirunError with CRIU's words.
    """
    from minirun import checkpointing

    checkpointing.checkpoint(root, cid, images)


def restore(root: str, cid: str, launch: Launch, images: Images) -> int:
    """Make a container of a bundle and a checkpoint; return its exit status, 0 if detached."""
    from minirun import restoring

    return restoring.restore(root, cid, launch, images)


def statistics(root: str, cid: str) -> dict[str, Any]:
    """Return the event of what a container uses now: `{"type": "stats", "id": …, "data": …}`.

    Raises StateError when it does not run, Unsupported when it has no cgroup.
    """
    from minirun import watching

    return watching.statistics(root, cid)


def events(root: str, cid: str, interval: float) -> Iterator[dict[str, Any]]:
    """Give an event of its figures every `interval` seconds, and of each process killed by oom.

    Ends when the container does. Raises as `statistics`.
    """
    from minirun import watching

    return watching.events(root, cid, interval)
