"""What was measured, gathered, and the rows that it makes."""

from __future__ import annotations

from minirun.compare import figures, jobs
from minirun.compare.figures import Row
from minirun.compare.jobs import WORKLOADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.compare.disk import Storage
    from minirun.compare.isolation import Count
    from minirun.compare.jobs import Workload
    from minirun.compare.load import Load
    from minirun.compare.session import Session

SIDES = ("container", "vm")
TITLES = {
    "first": "first byte of user space",
    "payload": "first byte of the payload",
    "life": "start, one line said, and all over",
    "spent": "CPU time spent for that",
}


class Result:
    """Times are gathered in seconds, sizes in bytes; `rows` gives milliseconds and bytes."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.times: dict[str, dict[str, list[float]]] = {}
        self.phases: dict[str, list[float]] = {}
        self.results: dict[str, dict[str, set[str]]] = {}
        self.lacks: dict[str, str] = {}
        self.failed: dict[str, list[str]] = {side: [] for side in SIDES}
        self.totals: dict[str, list[tuple[int, float]]] = {side: [] for side in SIDES}
        self.group: int | None = None
        self.disk: dict[str, int] = {}
        self.initrd = 0
        self.counts: list[Count] = []
        self.averages = (0.0, 0.0, 0.0)
        self.load: Load | None = None

    def add(self, key: str, side: str, seconds: float) -> None:
        """Take in one time of one side."""
        self.times.setdefault(key, {name: [] for name in SIDES})[side].append(seconds * 1000)

    def phase(self, title: str, seconds: float) -> None:
        """Take in one time of a part of the machine's start."""
        self.phases.setdefault(title, []).append(seconds * 1000)

    def work(self, side: str, session: Session) -> None:
        """Take in what one session of work said."""
        for name, seconds in session.times.items():
            for one in seconds:
                self.add(name, side, one)
        for name, found in session.results.items():
            self.results.setdefault(name, {}).setdefault(side, set()).update(found)
        self.lacks.update(session.lacks)

    # ---------------------------------------------------------------- rows

    def starting(self) -> list[Row]:
        """Give the rows of the start."""
        return [self._timed(key, title) for key, title in TITLES.items()]

    def working(self, *, quick: bool) -> list[Row]:
        """Give the rows of the workloads; one whose results differ has no samples and says so."""
        rows = []
        for one in WORKLOADS:
            row = self._timed(one.name, one.describe(quick=quick))
            row.note = self._note(one)
            if row.note:
                row.samples = {side: [] for side in SIDES}
            rows.append(row)
        return rows

    def _note(self, one: Workload) -> str:
        """Say why a workload is not compared; "" if it is, or was not done yet."""
        if one.disk and self.storage.why:
            return self.storage.why
        lacks = self.lacks.get(one.name)
        if lacks == jobs.DISK:
            return "the machine's kernel has no driver for its disk: virtio-blk or NVMe, and ext4"
        if lacks:
            return f"the root filesystem lacks {lacks}"
        done = one.name in self.results
        return "" if not done or self.agrees(one.name) else "the results differ: not compared"

    def agrees(self, name: str) -> bool:
        """Tell whether both sides had one and the same result of a workload, every time."""
        found = self.results.get(name, {})
        return figures.agree([found.get(side, set()) for side in SIDES])

    def _timed(self, key: str, title: str) -> Row:
        found = self.times.get(key, {})
        return Row(key, title, "ms", found.get("container", ()), found.get("vm", ()))

    def holding(self) -> list[Row]:
        """Give the rows of memory and disk."""
        rows = []
        firsts = [dict(self.totals[side]).get(1) for side in SIDES]
        slopes = [figures.slope(self.totals[side]) if self.totals[side] else None for side in SIDES]
        counts = " ".join(str(count) for count, _ in self.totals["vm"])
        for key, title, found in (
            ("memory", "memory of one that sleeps (PSS)", firsts),
            ("density", f"memory of one more (slope of PSS at {counts})", slopes),
            ("disk", "on disk, besides the root filesystem",
             [float(self.disk[side]) if side in self.disk else None for side in SIDES]),
        ):  # fmt: skip
            ours, theirs = ([] if one is None else [one] for one in found)
            rows.append(Row(key, title, "bytes", ours, theirs))
        return rows
