"""A comparison from its order to its outcome: what is needed is found, made, measured, removed."""

from __future__ import annotations

import os
import sys

import psutil

from minirun.compare import disk, guest, migration
from minirun.compare.contained import Program
from minirun.compare.machine import Plan
from minirun.compare.measure import Comparison, Effort
from minirun.compare.place import Place
from minirun.rootfs import store
from minirun.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minirun.compare.result import Result
    from minirun.rootfs.store import RootFS

_LEAST = 256 << 20


class Outcome:
    """What was compared, and how it went."""

    def __init__(self, plan: Plan, rootfs: str, qemu: str, *, quick: bool, result: Result) -> None:
        self.plan, self.rootfs, self.qemu, self.quick = plan, rootfs, qemu, quick
        self.result = result
        self.here = here()
        self.migration = migration.lines()


def here() -> str:
    """Say what machine this is."""
    with open("/proc/cpuinfo", errors="replace") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    name = models[0] if models else os.uname().machine
    memory = format_size(psutil.virtual_memory().total)
    return f"{psutil.cpu_count()} x {name}, {memory}, Linux {os.uname().release}"


def own_words() -> list[str]:
    """Return the words that this program was started with, without its arguments."""
    given = len(sys.argv) - 1
    words = sys.orig_argv[: len(sys.orig_argv) - given] if given else sys.orig_argv
    return [sys.executable, *words[1:]]


def memory_for(size: int) -> int:
    """Return how much memory a machine gets whose root filesystem of `size` bytes lies in it.

    The archive is there twice while it is unpacked.
    """
    wanted = _LEAST + max(0, 2 * size - (64 << 20))
    return -(-wanted // (64 << 20)) * (64 << 20)


def compare(
    rootfs: RootFS,
    words: Sequence[str],
    plan: Callable[[int], Plan],
    effort: Effort,
    tell: Callable[[str], None],
) -> tuple[Plan, Result]:
    """Compare; `plan` makes the machine's plan for a memory of so many bytes.

    Raises MinirunError if either side does not run; leaves nothing behind, whatever happens.
    """
    with Place() as place:
        tell("writing the root filesystem's copy for the machine")
        images = guest.Images(place.path, rootfs.path)
        made = plan(memory_for(os.stat(images.boot).st_size))
        program = Program(words, place.file("state"), rootfs.path)
        storage = disk.Storage(os.path.realpath(store.data_directory(None, os.environ)))
        sides = (program, made)
        return made, Comparison(place, sides, images, effort, tell, storage=storage).run()
