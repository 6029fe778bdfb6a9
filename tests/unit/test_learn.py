"""The lessons: their list, their form, and that the list and the files are the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from minirun.cli import learn

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


def test_an_unknown_lesson_is_refused() -> None:
    done = CliRunner().invoke(learn.command, ["nothing"])
    assert done.exit_code == 2
    assert "'nothing' is not one of 'uts'" in done.output


def test_the_source_is_the_script() -> None:
    done = CliRunner().invoke(learn.command, ["uts", "--source"])
    assert done.output == (SCRIPTS / "demo-uts").read_text()
