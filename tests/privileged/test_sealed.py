"""What a container's surroundings can see of the runtime's executable (CVE-2019-5736)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minirun.cli.spec import example

REPO = Path(__file__).parents[2]
MAIN = [sys.executable, "-ISB", str(REPO / "minirun" / "__main__.py")]

pytestmark = pytest.mark.requires("root")

# Hooks are children of the runtime, at the very moments at which it could be looked at.
WITNESS = """\
PATH=/usr/bin:/bin
{ readlink /proc/$PPID/exe; cat /proc/$PPID/comm; tr '\\0' '\\n' < /proc/$PPID/environ; } > "$1"
(: >> /proc/$PPID/exe) 2>> "$1" && echo WRITABLE >> "$1"
exit 0
"""


def bundle(path: Path) -> Path:
    """Write a bundle whose createRuntime hook tells what it sees of its parent."""
    (path / "rootfs").mkdir()
    (path / "hook").write_text(WITNESS)
    config: dict[str, Any] = example(unified=False)
    config["process"].update(terminal=False, args=["/nothing"])
    del config["linux"]["resources"]
    hook = {"path": "/bin/sh", "args": ["sh", str(path / "hook"), str(path / "seen")]}
    # It runs inside, and makes the runtime go there: so it must be sealed.
    config["hooks"] = {"createRuntime": [hook], "startContainer": [{"path": "/nothing"}]}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_runtime_that_goes_inside_is_a_sealed_copy(tmp_path: Path) -> None:
    path = bundle(tmp_path)
    environment = {**os.environ, "SECRET": "s3cret", "LD_BIND_NOW": "1", "NOTIFY_SOCKET": ""}
    done = subprocess.run(
        [*MAIN, "--root", str(tmp_path / "state"), "run", "--bundle", str(path), "sealed"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "no such file or directory" in done.stderr  # /nothing, after the hooks
    exe, comm, *rest = (tmp_path / "seen").read_text().splitlines()
    assert exe == "/memfd:minirun (deleted)"
    assert comm == "minirun"
    assert "WRITABLE" not in rest
    assert "s3cret" not in "".join(rest)
    assert not [line for line in rest if line.startswith(("LD_", "PYTHON"))]


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_root_does_not_run_code_that_others_can_change(mode: int, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "minirun"
    script.parent.mkdir()
    code = "from minirun.launcher import main; main()"
    script.write_text(f"import sys; sys.path.append({str(REPO)!r}); {code}")
    argv = [sys.executable, "-ISB", str(script), "--version"]
    os.chown(script.parent, 0, 4242)
    script.parent.chmod(0o755)
    good = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "refusing" in good.stderr:
        pytest.skip(f"the checkout itself is refused: {good.stderr}")
    assert good.stdout.startswith("minirun version")
    script.parent.chmod(mode)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"refusing to run as root from {script.parent}: " in done.stderr
