"""The comparison as text: tables of figures, what was dropped and why, and what they may mean."""

from __future__ import annotations

import os
import textwrap

from minirun.compare.figures import Row, Summary, number
from minirun.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.compare.comparison import Outcome

_WIDTH = 100
NOTES = (
    "Times are this machine's, taken outside at a line's first byte. n: samples; the figure under",
    "the side's name is their median; spread: the middle half's width (of under four, all of it).",
    "times: VM / container. A row is dropped where the spread exceeds the difference.",
    "PSS counts a shared page in parts. The VM has touched that much of its memory until now; of",
    "the container its own processes count (detached, it has none of minirun's). Files lie in",
    "memory on both sides, except for the rows marked disk. On disk: QEMU, its libraries and the",
    "kernel; Python, minirun and their libraries.",
    "A system call counts as let through if the filter does so with arguments of 0.",
)
EMULATED = (
    "The VM's CPU was emulated by a program. That is what one gets here, and not what a VM",
    "costs where the CPU helps: none of its times may be quoted as that, nor its memory, which",
    "holds the translated code.",
)


def report(outcome: Outcome) -> str:
    """Return the whole text."""
    result = outcome.result
    quick = outcome.quick
    lines = _head(outcome)
    lines += _section("STARTING", _timed(result.starting(), outcome))
    lines += _phases(outcome)
    lines += _section(
        "WORKING (equal results on both sides)", _timed(result.working(quick=quick), outcome)
    )
    lines += _section("HOLDING", _sizes(outcome))
    lines += _section("ISOLATION, counted", _counts(outcome))
    lines += _section("MOVING TO ANOTHER HOST WHILE IT RUNS", outcome.migration)
    lines += _section("READ IT SO", _notes(outcome))
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines]


def _head(outcome: Outcome) -> list[str]:
    kernel, plan = outcome.plan.kernel, outcome.plan
    rows = [
        ("this machine", outcome.here),
        ("accelerator", f"{plan.accelerator.label}"),
        ("", f"because {plan.accelerator.why}"),
        (
            "root filesystem",
            f"{outcome.rootfs}; the VM's copy in memory: {format_size(outcome.result.initrd)}",
        ),
        ("container", f"minirun run --rootfs, its defaults; kernel Linux {os.uname().release}"),
        ("machine", f"QEMU {outcome.qemu}, {plan.machine}, 1 CPU, {format_size(plan.memory)}"),
        ("", f"kernel {kernel.version or kernel.path}, {format_size(kernel.size)} on disk"),
        ("disk", outcome.result.storage.words()),
        ("load", load_words(outcome)),
    ]
    lines = []
    for name, text in rows:
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{name:17}", subsequent_indent=" " * 17
        )
    return lines


def load_words(outcome: Outcome) -> str:
    """Say how quiet the machine was."""
    load = outcome.result.load
    before = " ".join(f"{one:.2f}" for one in outcome.result.averages)
    if load is None:
        return f"average before: {before}"
    noisy = "" if load.idle else ": NOT IDLE, measure again for figures to quote"
    return (
        f"average before: {before}; meanwhile others took {load.others:.2f} CPUs, "
        f"steal {load.stolen:.1%}{noisy}"
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first and the last are text, what is between are figures."""
    last = len(rows[0]) - 1
    widths = [max(len(row[at]) for row in rows) for at in range(last + 1)]
    return [
        "  ".join(
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _timed(rows: Sequence[Row], outcome: Outcome) -> list[str]:
    name = "VM, emulated" if outcome.plan.accelerator.emulated else "VM"
    shown = [["ms", "n", "container", "min", "spread", "n", name, "min", "spread", "times", ""]]
    for row in rows:
        ours, theirs = row.summary("container"), row.summary("vm")
        why = row.note or row.dropped
        ratio = "-" if row.ratio is None else number(row.ratio)
        shown.append(
            [row.title, *_cells(ours), *_cells(theirs), ratio, f"dropped: {why}" if why else ""]
        )
    return table(shown)


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["0", "-", "-", "-"]
    values = (summary.median, summary.minimum, summary.spread)
    return [str(summary.count), *(number(one) for one in values)]


def _phases(outcome: Outcome) -> list[str]:
    rows = [["of the VM's start", "n", "median", "min", "spread", ""]]
    for title, samples in outcome.result.phases.items():
        rows.append([f"  {title}", *_cells(Summary(samples)), ""])
    return ["", *table(rows)]


def _sizes(outcome: Outcome) -> list[str]:
    rows = [["", "container", "VM", "times", ""]]
    for row in outcome.result.holding():
        ours, theirs = row.summary("container"), row.summary("vm")
        cells = ["-" if one is None else format_size(round(one.median)) for one in (ours, theirs)]
        ratio = "-" if row.ratio is None else number(row.ratio)
        rows.append([row.title, *cells, ratio, ""])
    group = outcome.result.group
    told = (
        "unknown: no memory controller of cgroup v2 here" if group is None else format_size(group)
    )
    rows.append(["memory.current of the container's cgroup", told, "-", "-", ""])
    return table(rows)


def _counts(outcome: Outcome) -> list[str]:
    rows = [["", "container", "VM"]]
    rows += [[one.title, one.container, one.machine] for one in outcome.result.counts]
    widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows]


def _notes(outcome: Outcome) -> Sequence[str]:
    return (*NOTES, *EMULATED) if outcome.plan.accelerator.emulated else NOTES
