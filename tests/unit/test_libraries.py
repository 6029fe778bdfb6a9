"""Which Python the programs in scripts/ take where their own lacks the libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SHELL = "#!/bin/sh\n"


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("#!/opt/x/bin/python3 -ISB\n", "/opt/x/bin/python3"),
        ("#!/usr/bin/env -S -u A -u B /opt/x/bin/python3 -ISB\n", "/opt/x/bin/python3"),
        (SHELL, "None"),
        ("\x7fELF", "None"),
        ("", "None"),
    ],
)
def test_the_interpreter_of_the_installed_command(head: str, found: str, tmp_path: Path) -> None:
    command = tmp_path / "minirun"
    command.write_text(head)
    command.chmod(0o755)
    code = "from lib import libraries; print(libraries._interpreter())"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=SCRIPTS,
        env={"MINIRUN": str(command), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == found
