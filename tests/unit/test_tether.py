"""Processes of ours beside containers: their name, and their end with their maker's."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from minirun import tether
from minirun.errors import MinirunError


def _sleep(pipe: int) -> None:
    os.write(pipe, str(os.getpid()).encode())
    time.sleep(60)
    os._exit(0)


def test_a_tied_process_has_its_name_and_ends_with_its_maker() -> None:
    readable, writable = os.pipe()
    maker = os.fork()
    if maker == 0:
        parent = os.getpid()
        if os.fork() == 0:
            tether.tie(parent, "minirun:test")
            _sleep(writable)
        time.sleep(60)
        os._exit(0)
    tied = int(os.read(readable, 32))
    assert psutil.Process(tied).name() == "minirun:test"
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    # Adopted by this process (tests/conftest.py), so that its end can be seen.
    _, status = os.waitpid(tied, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    os.close(readable)
    os.close(writable)


def test_whose_maker_has_gone_already_does_not_begin() -> None:
    pid = os.fork()
    if pid == 0:
        tether.tie(os.getpid(), "minirun:test")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tether.require()
    monkeypatch.setattr(tether, "prctl", None)
    assert tether.tie(os.getppid(), "pytest") is False
    with pytest.raises(MinirunError, match="python-prctl is not installed") as caught:
        tether.require()
    assert "libcap-dev" in caught.value.fix
