"""What the scripts share, in bash."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = """
source scripts/lib/common.sh
trap 'end_worker TERM' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
interruptibly bash -c 'sleep 600 & echo $! >"$0"; wait' "$1"
exit $?
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_heard_at_once_and_ends_all_that_is_at_work(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    pid = tmp_path / "pid"
    command = ["bash", "-c", SCRIPT, "script", os.fspath(pid)]
    with subprocess.Popen(command, cwd=CHECKOUT) as script:
        until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        script.send_signal(number)
        assert script.wait(60) == status
    until(lambda: not alive(int(pid.read_text())))


def test_the_status_is_that_of_the_command() -> None:
    loop = 'for n in 7 0; do interruptibly sh -c "exit $n"; echo $?; done'
    script = f"source scripts/lib/common.sh; {loop}"
    ran = subprocess.run(
        ["bash", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("7\n0\n", "")


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
