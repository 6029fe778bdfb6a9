"""The arithmetic and the words of scripts/bench; what it measures is its own affair."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from lib.bench import cases, figures, machine, report, tools
from lib.bench.figures import Memory, Sample
from lib.bench.process import Failed

if TYPE_CHECKING:
    from lib.bench.cases import Rows


def row(*walls: float) -> list[Sample]:
    return [Sample(wall, wall / 2) for wall in walls]


def test_summary_of_a_known_series() -> None:
    summary = figures.summarise([10, 20, 30, 40, 100])
    assert summary._replace(p90=0) == (5, 10, 30, 0, 20)
    assert summary.p90 == pytest.approx(76)


def test_summary_does_not_depend_on_the_order() -> None:
    assert figures.summarise([3, 1, 2]) == figures.summarise([1, 2, 3])


def test_summary_of_one_value_has_no_spread() -> None:
    assert figures.summarise([7]) == (1, 7, 7, 7, 0)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        figures.summarise([])


def test_quantile_lies_between_its_neighbours() -> None:
    assert figures.quantile([0, 10], 0.25) == 2.5
    assert figures.quantile([5, 1, 3], 0) == 1
    assert figures.quantile([5, 1, 3], 1) == 5


def test_ratio_is_taken_round_by_round() -> None:
    # Round three was slow for both: the ratio of the medians would be 1.5, of each round 2.
    ours, theirs = row(20, 30, 200), row(10, 20, 100)
    assert figures.paired_ratio(ours, theirs) == 2
    assert figures.paired_difference(ours, theirs) == 10


def test_rounds_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        figures.paired_ratio(row(1, 2), row(1))


def test_table_columns_line_up() -> None:
    assert figures.table([["", "n"], ["minirun", "5"], ["runc", "25"]]) == [
        "          n",
        "minirun   5",
        "runc     25",
    ]


def test_case_table_tells_figures_ratios_and_what_is_missing() -> None:
    rows: Rows = {"minirun": row(30, 30), "runc": row(60, 60), "crun": "crun: refused"}
    rows |= {"minirun start": row(8, 8), "runc start": row(4, 4)}
    lines = figures.times(rows)
    assert lines[0].split() == ["n", "min", "median", "p90", "spread", "cpu", "x", "runc"]
    assert lines[1].split() == ["minirun", "2", "30.0", "30.0", "30.0", "0.0", "15.0", "0.50"]
    assert lines[2].split() == ["runc", "2", "60.0", "60.0", "60.0", "0.0", "30.0"]
    assert lines[3].split()[-1] == "2.00"
    assert lines[-1] == "crun: not measured: crun: refused"


def test_case_table_of_nothing_has_no_head() -> None:
    assert figures.times({"runc": "not installed"}) == ["runc: not measured: not installed"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (12288, "12 KiB"), (6 * 1024**2 + 524288, "6.5 MiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert figures.size(count) == text


def test_memory_table() -> None:
    lines = figures.memory(
        {
            "minirun": {"created": [Memory(1, 4096, 8192, None)], "detached": [Memory(0, 0, 0, 0)]},
            "crun": "not installed",
        }
    )
    assert lines[1].split() == ["minirun", "created", "1", "4", "KiB", "8", "KiB", "-"]
    assert lines[2].split() == ["minirun", "detached", "0", "0", "B", "0", "B", "0", "B"]
    assert lines[3] == "crun: not measured: not installed"


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize(("ours", "kept"), [(99, True), (100, True), (101, False)])
def test_budget_of_run(ours: float, kept: bool) -> None:
    rows: Rows = {"minirun": row(ours), "runc": row(100)}
    verdict = figures.judge_run(rows, "1.1.5+ds1")
    assert verdict.kept is kept
    assert str(verdict).startswith("PASS  run" if kept else "FAIL  run")
    assert "but this is" not in verdict.figures


def test_budget_of_run_says_when_runc_is_another() -> None:
    verdict = figures.judge_run({"minirun": row(1), "runc": row(2)}, "1.1.50")
    assert verdict.figures.endswith("but this is runc 1.1.50")


@pytest.mark.parametrize(("ours", "kept"), [(39, True), (40, True), (41, False)])
def test_budget_of_state(ours: float, kept: bool) -> None:
    rows: Rows = {"minirun": row(ours), figures.BARE: row(15)}
    assert figures.judge_state(rows).kept is kept


def test_budget_of_detached_containers() -> None:
    nothing, something = Memory(0, 0, 0, None), Memory(1, 4096, 4096, None)
    assert figures.judge_detached([nothing, nothing]).kept is True
    assert figures.judge_detached([nothing, something]).kept is False


def test_what_was_not_measured_keeps_no_budget() -> None:
    verdicts = [
        figures.judge_run({"minirun": row(1), "runc": "not installed"}, ""),
        figures.judge_run(None, ""),
        figures.judge_state({"minirun": "failed", figures.BARE: row(1)}),
        figures.judge_detached(None),
    ]
    assert [verdict.kept for verdict in verdicts] == [None] * 4


# ---------------------------------------------------------------- rounds


def test_rounds_alternate_and_the_first_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "PAUSE", 0)
    calls: list[str] = []

    def subject(name: str) -> cases.Measure:
        def measure() -> dict[str, Sample]:
            calls.append(name)
            return {"": Sample(len(calls), 0), "part": Sample(1, 1)}

        return measure

    names = ["a", "b", "c"]
    rows = cases.alternate({name: subject(name) for name in names}, 4, 2, lambda _: None)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(rounds) == 6
    assert all(sorted(each) == names for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    assert list(rows) == ["a", "b", "c", "a part", "b part", "c part"]
    for name in names:
        counted = [index + 1 for index, call in enumerate(calls) if call == name][2:]
        assert [sample.wall for sample in rows[name] if isinstance(sample, Sample)] == counted


def test_who_fails_once_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "PAUSE", 0)
    calls = 0

    def fails_late() -> dict[str, Sample]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Failed("crun: no")
        return {"": Sample(1, 1), "part": Sample(1, 1)}

    rows = cases.alternate(
        {"crun": fails_late, "gone": "not installed", "runc": lambda: {"": Sample(1, 1)}},
        5,
        0,
        lambda _: None,
    )
    assert rows["crun"] == "crun: no"
    assert rows["gone"] == "not installed"
    assert len(rows["runc"]) == 5
    assert set(rows) == {"crun", "gone", "runc"}
    assert calls == 3


# ---------------------------------------------------------------- machine and record


def test_load_leaves_out_our_own_time() -> None:
    before = machine.Ticks(100, busy=50, stolen=1, ours=10)
    after = machine.Ticks(110, busy=56, stolen=1, ours=15)
    load = machine.load_between(before, after)
    assert load.others == pytest.approx(0.1)
    assert load.idle
    assert not machine.load_between(before, after._replace(busy=60)).idle
    assert not machine.load_between(before, after._replace(stolen=1000)).idle


def a_report(**changes: Any) -> report.Report:
    quiet = machine.Load(0.0, 0.0)
    made = report.Report(
        machine={"processors": "2 x processor"},
        root="busybox",
        found={"minirun": tools.Tool("minirun", ("/m",), "1"), "runc": "not installed"},
        cases={"run": {"minirun": row(1, 2, 3), "runc": "not installed"}},
        memory={},
        before=quiet,
        during=quiet,
        runs=20,
    )
    return made._replace(**changes)


def test_record_says_what_weakens_it() -> None:
    sound = "\n".join(a_report().conclusion())
    assert "NOT IDLE" not in sound
    assert "only" not in sound
    busy = "\n".join(a_report(during=machine.Load(1.5, 0.0)).conclusion())
    assert "NOT IDLE" in busy
    assert "only 19 rounds" in "\n".join(a_report(runs=19).conclusion())
    emulated = a_report(machine={"processors": "2 x processor, emulated"})
    assert "emulated: ratios mean little" in "\n".join(emulated.conclusion())


def test_record_counts_the_budgets() -> None:
    verdicts = [figures.Verdict("a", True, "1"), figures.Verdict("b", None, "2")]
    assert report.budgets(verdicts)[-1] == "budgets: 1 kept, 1 not measured"
    assert report.budgets([figures.Verdict("a", False, "1")])[-1] == "budgets: 1 NOT KEPT"
    assert report.budgets([]) == ["budgets: none was measured"]


def test_record_shows_its_head_and_a_table() -> None:
    made = a_report()
    assert "minirun: 1, /m" in made.head()
    assert "runc: not installed" in made.head()
    assert made.table("run")[1].startswith("== run")
    assert made.table("run")[-1] == "runc: not measured: not installed"


def test_record_adds_up_the_blocks() -> None:
    made = a_report(cases={"serial": {"minirun": row(100, 200)}})
    assert made.table("serial")[-1] == "minirun: 40 containers in 6.0 s"


def test_record_as_json(tmp_path: Path) -> None:
    a_report().write(tmp_path / "out.json")
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["cases"]["run"]["minirun"]["median"] == 2
    assert record["cases"]["run"]["minirun"]["wall"] == [1, 2, 3]
    assert record["cases"]["run"]["runc"] == {"not_measured": "not installed"}
    assert record["tools"]["minirun"] == {"version": "1", "command": ["/m"]}
    assert record["budgets"][0]["kept"] is None
    assert record["idle"] is True
