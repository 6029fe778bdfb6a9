"""What each verb loads: engines call several per container, and every import costs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

# Each costs an engine's verb 7 to 300 ms, or opens a door that a runtime keeps shut.
FORBIDDEN = {
    "argparse", "asyncio", "click", "collections", "contextlib", "dataclasses", "enum", "functools",
    "inspect", "json", "jeepney", "logging", "pathlib", "prctl", "psutil", "pyroute2", "re", "rich",
    "shutil", "signal", "site", "socket", "subprocess", "tempfile", "threading", "typing", "yaml",
}  # fmt: skip

SPY = """
import sys
sys.path.append({repo!r})
from minirun import cli
cli.main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(" ".join(sys.modules))
"""

VERBS = {
    "--version": (),
    "--help": (),
    "state": ("x",),
    "list": (),
    "start": ("x",),
    "kill": ("x", "TERM"),
    "delete": ("x",),
    "pause": ("x",),
    "resume": ("x",),
    "ps": ("--format", "json", "x"),
    "exec": ("x", "true"),
    "update": ("--memory", "1g", "x"),
    "spec": (),
    "create": ("--bundle", "none", "x"),
    "run": ("--bundle", "none", "x"),
    "checkpoint": ("x",),
    "restore": ("--bundle", "none", "x"),
    "events": ("x",),
    "features": (),
}


def loaded(argv: list[str], tmp_path: Path) -> set[str]:
    """Run a command line in an interpreter of its own; return the modules that it had loaded."""
    script = tmp_path / "spy.py"
    script.write_text(SPY.format(repo=str(REPO)))
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-ISB", str(script), str(out), *argv],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return set(out.read_text().split())


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_loads(verb: str, tmp_path: Path) -> None:
    modules = loaded(["--root", str(tmp_path / "root"), verb, *VERBS[verb]], tmp_path)
    assert "minirun.cli" in modules
    assert not modules & FORBIDDEN


def test_reading_state_loads_no_recipe(tmp_path: Path) -> None:
    modules = loaded(["--root", str(tmp_path / "root"), "state", "x"], tmp_path)
    assert not modules & {"minirun.recipe", "minirun.mounts", "minirun.seccomp", "minirun.validate"}


def test_the_launcher_loads_nothing_before_it_is_sealed() -> None:
    code = f"import sys; sys.path.append({str(REPO)!r}); import minirun.launcher;"
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stdout.split())
    ours = {name for name in modules if name.startswith("minirun")}
    assert ours == {"minirun", "minirun.errors", "minirun.launcher", "minirun.precompiled"}
    assert not modules & (FORBIDDEN | {"ctypes", "fcntl"})
