"""The lessons: their list, their form, and that the list and the files are the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from minirun.cli import learn
from minirun.errors import UsageError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = sorted(path.name.removeprefix("demo-") for path in SCRIPTS.glob("demo-*"))


def test_the_course_is_all_of_them() -> None:
    assert sorted(learn.COURSE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_explains_itself(name: str) -> None:
    path = SCRIPTS / f"demo-{name}"
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/bin/bash"
    assert re.fullmatch(r"# [^.]{10,100}", lines[1]), "a title"
    assert lines[2] == "#"
    assert len(lines) < 95
    steps = [line for line in lines if line.lstrip().startswith("step ")]
    checks = [line for line in lines if line.lstrip().startswith(("check ", "refused "))]
    assert len(steps) >= 3
    assert len(checks) >= 3
    assert re.search(r'^conclude "(?:pid=\S+ )?sudo minirun ', path.read_text(), re.M)


def test_the_list_has_every_lesson_with_its_title() -> None:
    told = CliRunner().invoke(learn.command, []).output.splitlines()
    assert [line.split()[0] for line in told[: len(NAMES)]] == learn.COURSE
    assert told[0].endswith("The UTS namespace: a host name of one's own")
    pages = told[len(NAMES) + 1 : len(NAMES) + 1 + len(learn.PAGES)]
    assert [line.split()[0] for line in pages] == learn.PAGES
    assert pages[2].endswith("The eight namespaces: what a process can see")


@pytest.mark.parametrize("name", learn.PAGES)
def test_a_page_is_its_text(name: str) -> None:
    text = (SCRIPTS.parent / "minirun" / "pages" / f"{name}.md").read_text()
    assert CliRunner().invoke(learn.command, [name]).output == text
    assert CliRunner().invoke(learn.command, [name, "--source"]).output == text


def test_a_page_on_a_terminal_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.isatty", lambda _fd: True)
    shown: list[str] = []
    monkeypatch.setattr("click.echo_via_pager", shown.append)
    CliRunner().invoke(learn.command, ["pods"])
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown[0])
    assert "Pods by hand" in plain
    assert "**" not in plain
    assert "<!--" not in plain
    assert "| net |" not in plain
    assert "$ sudo ip netns add pod" in plain


def test_an_unknown_lesson_is_refused() -> None:
    done = CliRunner().invoke(learn.command, ["pids"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "there is no lesson or page 'pids'"
    assert done.exception.fix == "did you mean pid? minirun learn lists them"


def test_the_source_is_the_script() -> None:
    done = CliRunner().invoke(learn.command, ["uts", "--source"])
    assert done.output == (SCRIPTS / "demo-uts").read_text()
