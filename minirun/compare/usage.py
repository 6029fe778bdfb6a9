"""What processes and files take: proportional set sizes, a cgroup's memory, bytes on a disk."""

from __future__ import annotations

import os
import sys

import psutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CGROUP = "/sys/fs/cgroup"


def pss(pids: Iterable[int]) -> int:
    """Add up the proportional set sizes, in bytes: a page that n processes share counts 1/n."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # it has just ended: it holds nothing
    return total


def cgroup_memory(pid: int) -> int | None:
    """Return memory.current of a process's own cgroup; None where there is no such file."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            place = next(line[3:].strip() for line in file if line.startswith("0::"))
        with open(f"{CGROUP}{place}/memory.current") as file:
            return int(file.read())
    except (OSError, StopIteration):
        return None


def mapped(pid: int) -> int:
    """Return the sizes, in bytes, of all files that a process has mapped: program and libraries."""
    found: dict[tuple[int, int], int] = {}
    for path in [one.path for one in psutil.Process(pid).memory_maps() if one.path[:1] == "/"]:
        try:
            status = os.stat(path)
        except OSError:
            continue  # deleted since: on no disk
        if status.st_ino and not path.startswith(("/dev/", "/memfd:")):
            found[(status.st_dev, status.st_ino)] = status.st_size
    return sum(found.values())


def runtime_size() -> int:
    """Return the bytes of what minirun is started from: interpreter, libraries, its modules."""
    total = mapped(os.getpid())
    loaded = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ours = [os.path.join(place, name) for place, _, names in os.walk(package) for name in names]
    for path in {*(one for one in loaded if one.endswith(".py")), *ours}:
        try:
            total += os.stat(path).st_size
        except OSError:
            continue  # a module that came from an archive
    return total
