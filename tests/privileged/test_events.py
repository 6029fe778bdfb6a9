"""events: figures of a container's cgroup, and the end of the stream with the container's."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, good, started, until

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs", "cgroup2")


def once(box: Box) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(good(box.call("events", "--stats", box.id)).out)
    assert (event["type"], event["id"]) == ("stats", box.id)
    found: dict[str, Any] = event["data"]
    return found


def test_figures_of_a_container(box: Box) -> None:
    box.up()
    data = once(box)
    assert data["pids"]["current"] == 1
    assert set(data["cpu"]["usage"]) >= {"total", "kernel", "user"}
    assert set(data["memory"]) >= {"usage", "swap", "kernel", "kernelTCP", "cache", "raw"}
    # A network namespace with nothing but its loopback.
    assert data["network_interfaces"] == []


def test_a_container_that_does_not_run(box: Box) -> None:
    done = box.call("events", box.id)
    assert (done.code, "does not exist" in done.err) == (1, True)
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))
    done = box.call("events", "--stats", box.id)
    assert done.code == 1
    assert f"container with id {box.id} is not running" in done.err


def test_the_stream_ends_with_the_container(box: Box) -> None:
    box.up()
    words = box.words("events", "--interval", "50ms", box.id)
    with started(words, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        first = json.loads(events.stdout.readline())
        second = json.loads(events.stdout.readline())
        assert first["type"] == second["type"] == "stats"
        good(box.call("kill", box.id, "KILL"))
        rest = events.stdout.read()
        assert events.wait(LIMIT) == 0
    assert all(json.loads(line)["type"] == "stats" for line in rest.splitlines())


def test_ctrl_c_ends_the_stream_alone(box: Box) -> None:
    box.up()
    words = box.words("events", "--interval", "20ms", box.id)
    with started(words, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        events.stdout.readline()
        events.send_signal(signal.SIGINT)
        assert events.wait(LIMIT) == 130
    assert box.state()["status"] == "running"


def test_a_paused_container_is_counted(box: Box) -> None:
    box.up()
    good(box.call("pause", box.id))
    assert once(box)["pids"]["current"] == 1
    good(box.call("resume", box.id))


@pytest.mark.vm
@pytest.mark.requires("limits")
def test_a_process_killed_for_want_of_memory(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 << 20, "swap": 64 << 20}}
    box.up()
    words = box.words("events", "--interval", "100ms", box.id)
    with started(words, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        events.stdout.readline()  # it watches now
        box.exec("/bin/sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1")
        killed = {"type": "oom", "id": box.id}
        assert any(json.loads(events.stdout.readline()) == killed for _ in range(300))
        good(box.call("kill", box.id, "KILL"))
        events.stdout.read()
        assert events.wait(LIMIT) == 0
    until(lambda: box.state()["status"] == "stopped")


@pytest.mark.vm
@pytest.mark.requires("limits")
def test_limits_and_pressure_are_told(box: Box) -> None:
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 32}}
    box.linux["resources"] = limits
    box.up()
    data = once(box)
    assert data["memory"]["usage"]["limit"] == 64 << 20
    assert data["memory"]["usage"]["usage"] > 0
    assert data["pids"]["limit"] == 32
    for part in ("cpu", "memory", "blkio"):
        assert set(data[part]["psi"]["some"]) == {"avg10", "avg60", "avg300", "total"}
