"""The arithmetic of a measurement, and its words: statistics, ratios, tables, budgets.

Times are milliseconds, sizes are bytes. Nothing here measures anything.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

REFERENCE = "runc"  # whose times the ratios are of
BARE = "python3 -I -S"  # what `state` is compared with
BUDGET_RUNC = "1.1.5"  # the version that the budget of `run` names
RUN_RATIO = 1.0
STATE_MORE_MS = 25.0
ENOUGH = 20  # a median of fewer says little


class Sample(NamedTuple):
    """One measurement: what the clock and what the processors' accounts say, in milliseconds."""

    wall: float
    cpu: float


class Summary(NamedTuple):
    """What many measurements of one thing come to; `spread` is the middle half's width."""

    measured: int
    minimum: float
    median: float
    p90: float
    spread: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them lie below, between two neighbours in proportion."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(values: Sequence[float]) -> Summary:
    if not values:
        raise ValueError("nothing was measured")
    return Summary(
        len(values),
        min(values),
        statistics.median(values),
        quantile(values, 0.9),
        quantile(values, 0.75) - quantile(values, 0.25),
    )


def paired_ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    """The median of the rounds' ratios: what slowed a round slowed both of its halves."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our.wall / their.wall for our, their in pairs)


def paired_difference(ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our.wall - their.wall for our, their in pairs)


# ---------------------------------------------------------------- tables


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: the first is text, the others are figures and end at one edge."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def times(rows: Mapping[str, list[Sample] | str]) -> list[str]:
    """The table of one case, then a line for each thing that was not measured."""
    lines = [["", "n", "min", "median", "p90", "spread", "cpu", f"x {REFERENCE}"]]
    missing = []
    for name, row in rows.items():
        if isinstance(row, str):
            missing.append(f"{name}: not measured: {row}")
            continue
        wall = summarise([sample.wall for sample in row])
        cpu = statistics.median(sample.cpu for sample in row)
        measured = (wall.minimum, wall.median, wall.p90, wall.spread, cpu)
        compared = ratio(name, rows)
        last = "" if compared is None else f"{compared:.2f}"
        lines.append([name, str(wall.measured), *(f"{each:.1f}" for each in measured), last])
    return [*(table(lines) if len(lines) > 1 else []), *missing]


def ratio(name: str, rows: Mapping[str, list[Sample] | str]) -> float | None:
    """Compare `minirun create` with `runc create`, and `minirun` with `runc`."""
    tool, _, part = name.partition(" ")
    ours, theirs = rows[name], rows.get(f"{REFERENCE} {part}".rstrip(), "")
    if name == BARE:
        theirs = rows.get(REFERENCE, "")
    if tool == REFERENCE or isinstance(ours, str) or isinstance(theirs, str):
        return None
    return paired_ratio(ours, theirs)


def size(count: float) -> str:
    """A size as people read it; nought bytes stay nought."""
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.0f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


# ---------------------------------------------------------------- memory


class Memory(NamedTuple):
    """What a runtime's own processes hold in one phase of a container's life, in bytes.

    `pss` counts a page that n processes share as 1/n of it, `rss` counts it whole. `group` is the
    container's memory.current, where there is such a file.
    """

    processes: int
    pss: int
    rss: int
    group: int | None


def memory(rows: Mapping[str, Mapping[str, list[Memory]] | str]) -> list[str]:
    """The table of what is resident, by tool and phase: medians."""
    lines = [["", "processes", "PSS", "RSS", "memory.current"]]
    missing = []
    for tool, phases in rows.items():
        if isinstance(phases, str):
            missing.append(f"{tool}: not measured: {phases}")
            continue
        for phase, found in phases.items():
            groups = [each.group for each in found if each.group is not None]
            lines.append(
                [
                    f"{tool} {phase}",
                    str(max(each.processes for each in found)),
                    size(statistics.median(each.pss for each in found)),
                    size(statistics.median(each.rss for each in found)),
                    size(statistics.median(groups)) if groups else "-",
                ]
            )
    return [*(table(lines) if len(lines) > 1 else []), *missing]


# ---------------------------------------------------------------- budgets


class Verdict(NamedTuple):
    """Whether a budget is kept; None where it could not be told."""

    name: str
    kept: bool | None
    figures: str

    def __str__(self) -> str:
        word = {True: "PASS", False: "FAIL", None: "----"}[self.kept]
        return f"{word}  {self.name}: {self.figures}"


def samples(rows: Mapping[str, list[Sample] | str] | None, name: str) -> list[Sample] | None:
    found = (rows or {}).get(name)
    return None if isinstance(found, str) else found


def judge_run(rows: Mapping[str, list[Sample] | str] | None, version: str) -> Verdict:
    """`version` is what the measured runc calls itself."""
    name = f"run takes at most {RUN_RATIO} times as long as runc {BUDGET_RUNC}"
    ours, theirs = samples(rows, "minirun"), samples(rows, REFERENCE)
    if not ours or not theirs:
        return Verdict(name, None, "not measured")
    ratio = paired_ratio(ours, theirs)
    medians = [summarise([sample.wall for sample in row]).median for row in (ours, theirs)]
    figures = f"{ratio:.2f} times (medians {medians[0]:.1f} and {medians[1]:.1f} ms)"
    if version.partition("+")[0] != BUDGET_RUNC:
        figures += f", but this is runc {version}"
    return Verdict(name, ratio <= RUN_RATIO, figures)


def judge_state(rows: Mapping[str, list[Sample] | str] | None) -> Verdict:
    name = f"state takes at most {STATE_MORE_MS:.0f} ms more than {BARE}"
    ours, bare = samples(rows, "minirun"), samples(rows, BARE)
    if not ours or not bare:
        return Verdict(name, None, "not measured")
    more = paired_difference(ours, bare)
    medians = [summarise([sample.wall for sample in row]).median for row in (ours, bare)]
    figures = f"{more:.1f} ms more (medians {medians[0]:.1f} and {medians[1]:.1f} ms)"
    return Verdict(name, more <= STATE_MORE_MS, figures)


def judge_detached(found: Iterable[Memory] | None) -> Verdict:
    name = "no process of ours stays with a detached container"
    measured = list(found or ())
    if not measured:
        return Verdict(name, None, "not measured")
    processes = max(each.processes for each in measured)
    resident = max(each.rss for each in measured)
    return Verdict(name, processes == 0, f"{processes} processes, {size(resident)} resident")
