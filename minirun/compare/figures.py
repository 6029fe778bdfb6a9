"""The arithmetic of a comparison, without measuring anything: statistics, and which rows count."""

from __future__ import annotations

import statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FEW = 3  # a spread of fewer says nothing
FAR = 4  # times the wider spread: a difference that no further sample will undo


class Summary:
    """What samples come to. `spread` is the middle half's width, of fewer than four the whole."""

    def __init__(self, samples: Sequence[float]) -> None:
        self.count = len(samples)
        self.minimum = min(samples)
        self.median = statistics.median(samples)
        self.spread = _spread(sorted(samples))


def _spread(ordered: Sequence[float]) -> float:
    if len(ordered) < 4:
        return ordered[-1] - ordered[0]
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return high - low


class Row:
    """One thing that was measured on both sides.

    `unit` is ms or bytes. A side's samples are empty where it has none; `note` is for why.
    """

    def __init__(
        self,
        key: str,
        title: str,
        unit: str,
        container: Sequence[float] = (),
        machine: Sequence[float] = (),
    ) -> None:
        self.key, self.title, self.unit, self.note = key, title, unit, ""
        self.samples = {"container": list(container), "vm": list(machine)}

    def summary(self, side: str) -> Summary | None:
        """Return what one side ("container" or "vm") comes to; None where nothing was measured."""
        return Summary(self.samples[side]) if self.samples[side] else None

    @property
    def dropped(self) -> str:
        """Why the two sides may not be compared by this row; "" if they may."""
        ours, theirs = self.summary("container"), self.summary("vm")
        if ours is None or theirs is None:
            return "measured on one side only"
        if self.unit == "bytes" and min(ours.count, theirs.count) == 1:
            return ""  # a count, and no measurement that repeats
        if min(ours.count, theirs.count) < FEW:
            return f"fewer than {FEW} samples"
        difference = abs(ours.median - theirs.median)
        if max(ours.spread, theirs.spread) >= difference:
            return "the spread exceeds the difference"
        return ""

    @property
    def settled(self) -> bool:
        """Whether more samples would change nothing: the sides are far apart, or apart for good."""
        ours, theirs = self.summary("container"), self.summary("vm")
        if self.note:
            return True
        if ours is None or theirs is None or min(ours.count, theirs.count) < FEW:
            return False
        return FAR * max(ours.spread, theirs.spread) <= abs(ours.median - theirs.median)

    @property
    def ratio(self) -> float | None:
        """How many times the container's median the VM's is; None for a row that is dropped."""
        ours, theirs = self.summary("container"), self.summary("vm")
        if self.dropped or ours is None or theirs is None or not ours.median:
            return None
        return theirs.median / ours.median


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Return what one more instance takes: the least squares' line through (count, total)."""
    if len({count for count, _ in points}) < 2:
        raise ValueError("a slope needs two different numbers of instances")
    middle = statistics.fmean(count for count, _ in points)
    level = statistics.fmean(total for _, total in points)
    above = sum((count - middle) * (total - level) for count, total in points)
    return above / sum((count - middle) ** 2 for count, _ in points)


def agree(results: Sequence[set[str]]) -> bool:
    """Tell whether all sides, and all rounds of each, have one and the same result."""
    return len(set().union(*results)) == 1 and all(results)


def number(value: float) -> str:
    """Render a figure with what is significant of it: 0.042, 4.2, 42, 4200."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
