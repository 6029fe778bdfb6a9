"""What was measured, as one record: printed for people, written as JSON for programs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.bench import figures
from lib.bench.cases import CASES, MEMORY, MEMORY_TITLE, PER_BLOCK
from lib.bench.figures import ENOUGH, Memory, Sample, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lib.bench.machine import Load
    from lib.bench.tools import Tool

SCHEMA = 1
WORDS = {True: "kept", False: "NOT KEPT", None: "not measured"}


class Report(NamedTuple):
    machine: dict[str, str]
    root: str  # what the root filesystem is made of
    found: Mapping[str, Tool | str]
    cases: dict[str, dict[str, list[Sample] | str]]
    memory: dict[str, dict[str, list[Memory]] | str]
    before: Load
    during: Load
    runs: int

    @property
    def idle(self) -> bool:
        return self.before.idle and self.during.idle

    def verdicts(self) -> list[Verdict]:
        runc, ours = self.found["runc"], self.memory.get("minirun")
        version = "" if isinstance(runc, str) else runc.version
        judged = []
        if "run" in self.cases:
            judged.append(figures.judge_run(self.cases["run"], version))
        if "state" in self.cases:
            judged.append(figures.judge_state(self.cases["state"]))
        if self.memory:
            detached = None if ours is None or isinstance(ours, str) else ours["detached"]
            judged.append(figures.judge_detached(detached))
        return judged

    # ---------------------------------------------------------------- for people

    def head(self) -> list[str]:
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        lines.append(f"root filesystem: {self.root}")
        for name, tool in self.found.items():
            words = tool if isinstance(tool, str) else f"{tool.version}, {' '.join(tool.words)}"
            lines.append(f"{name}: {words}")
        return [
            *lines,
            "",
            "Milliseconds. spread: width of the middle half; cpu: median processor time.",
        ]

    def table(self, name: str) -> list[str]:
        """What one case has measured."""
        if name == MEMORY:
            return ["", f"== {MEMORY_TITLE}", *figures.memory(self.memory)]
        rows = self.cases[name]
        lines = ["", f"== {CASES[name].title}", *figures.times(rows)]
        return lines + (totals(rows) if CASES[name].blocks else [])

    def conclusion(self) -> list[str]:
        lines = ["", f"before: {self.before}", f"meanwhile: {self.during}"]
        if not self.idle:
            lines.append("NOT IDLE: this machine had other things to do; measure again")
        if self.runs < ENOUGH:
            lines.append(f"only {self.runs} rounds: medians of at least {ENOUGH} are what counts")
        if "emulated" in self.machine["processors"]:
            lines.append("the processors are emulated: ratios mean little, durations nothing")
        return [*lines, "", *budgets(self.verdicts())]

    # ---------------------------------------------------------------- for programs

    def write(self, path: Path) -> None:
        """Write the JSON: times in milliseconds, sizes in bytes, every sample."""
        path.write_text(json.dumps(self.encode(), indent=1) + "\n")

    def encode(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "rootfs": self.root,
            "rounds": self.runs,
            "idle": self.idle,
            "load": {
                when: {"others": load.others, "steal": load.stolen}
                for when, load in (("before", self.before), ("during", self.during))
            },
            "tools": {
                name: {"not_measured": tool}
                if isinstance(tool, str)
                else {"version": tool.version, "command": list(tool.words)}
                for name, tool in self.found.items()
            },
            "cases": {
                name: {row: encode_row(row, rows) for row in rows}
                for name, rows in self.cases.items()
            },
            "memory": {
                tool: {"not_measured": phases}
                if isinstance(phases, str)
                else {phase: [each._asdict() for each in found] for phase, found in phases.items()}
                for tool, phases in self.memory.items()
            },
            "budgets": [verdict._asdict() for verdict in self.verdicts()],
        }


def budgets(verdicts: Sequence[Verdict]) -> list[str]:
    """The verdict on each budget that was measured for, then how many are kept."""
    kept = [verdict.kept for verdict in verdicts]
    words = [f"{kept.count(value)} {word}" for value, word in WORDS.items() if value in kept]
    return [*map(str, verdicts), f"budgets: {', '.join(words) or 'none was measured'}"]


def totals(rows: Mapping[str, list[Sample] | str]) -> list[str]:
    """How long all of the containers took, in seconds."""
    return [
        f"{name}: {len(row) * PER_BLOCK} containers in"
        f" {sum(sample.wall for sample in row) * PER_BLOCK / 1000:.1f} s"
        for name, row in rows.items()
        if not isinstance(row, str)
    ]


def encode_row(name: str, rows: Mapping[str, list[Sample] | str]) -> dict[str, Any]:
    row = rows[name]
    if isinstance(row, str):
        return {"not_measured": row}
    wall, cpu = [s.wall for s in row], [s.cpu for s in row]
    ratio = figures.ratio(name, rows)
    return {
        **figures.summarise(wall)._asdict(),
        "cpu_median": statistics.median(cpu),
        **({} if ratio is None else {"times_runc": ratio}),
        "wall": [round(value, 3) for value in wall],
        "cpu": [round(value, 3) for value in cpu],
    }
