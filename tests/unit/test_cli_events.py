"""events: what the command line makes of intervals, and what is counted of a network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from minirun import cli, container, watching

DEV = """Inter-|   Receive       |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes ...
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
  eth0:    1111      22    3    4    5     6  7 8 99999      10   11   12   13 0 0 0
"""


def test_interfaces() -> None:
    assert watching.interfaces(DEV) == [
        {
            "Name": "eth0",
            "RxBytes": 1111,
            "RxPackets": 22,
            "RxErrors": 3,
            "RxDropped": 4,
            "TxBytes": 99999,
            "TxPackets": 10,
            "TxErrors": 11,
            "TxDropped": 12,
        }
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def events(_root: str, cid: str, interval: float) -> Iterator[dict[str, Any]]:
        found.append(interval)
        yield {"type": "oom", "id": cid}
        yield {"type": "stats", "id": cid, "data": {}}

    def statistics(_root: str, cid: str) -> dict[str, Any]:
        found.append("once")
        return {"type": "stats", "id": cid, "data": {"cpu": {}}}

    monkeypatch.setattr(container, "events", events)
    monkeypatch.setattr(container, "statistics", statistics)
    return found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5s", 1.5), ("2h", 7200), ("1us", 1e-6)],
)
def test_intervals(text: str, seconds: float, asked: list[Any]) -> None:
    assert cli.main(["events", f"--interval={text}", "web"]) == 0
    assert asked == [seconds]


@pytest.mark.parametrize("text", ["0", "0s", "-1s"])
def test_an_interval_is_positive(
    text: str, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["events", "--interval", text, "web"]) == 1
    assert capfd.readouterr().err == "minirun: duration interval must be greater than 0\n"
    assert asked == []


@pytest.mark.parametrize("text", ["5", "x", "", "1d", "-x"])
def test_what_is_no_interval(
    text: str, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["events", f"--interval={text}", "web"]) == 1
    assert "duration" in capfd.readouterr().err
    assert asked == []


def test_one_object_per_line(asked: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["events", "web"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["oom", "stats"]
    assert asked == [5]


def test_once(asked: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["events", "--stats", "web"]) == 0
    assert json.loads(capfd.readouterr().out)["data"] == {"cpu": {}}
    assert asked == ["once"]


def test_the_reader_may_go(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_fd: int, _data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    assert cli.main(["events", "web"]) == 1
