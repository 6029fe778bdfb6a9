"""create, start, state, kill, delete, run, list: a container's life as its caller sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING

import psutil
import pytest
from runtime import LIMIT, alive, call, cgroup_of, good, next_line, read, started, until

if TYPE_CHECKING:
    from pathlib import Path

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("status", [0, 1, 7, 126, 255])
def test_run_ends_as_its_payload(box: Box, status: int) -> None:
    box.process["args"] = ["/bin/sh", "-c", f"exit {status}"]
    assert box.run().code == status
    assert box.left() == []


def test_run_ends_as_its_payload_by_a_signal(box: Box) -> None:
    """Not as process 1 of a pid namespace, which ignores what it sends itself."""
    box.share("pid")
    box.process["args"] = ["/bin/sh", "-c", "kill -TERM $$"]
    assert box.run().code == 128 + signal.SIGTERM


def test_run_gives_the_callers_streams(box: Box, place: Path) -> None:
    (place / "in").write_text("hello")
    with open(place / "in") as stdin, open(place / "out", "w") as out, open(place / "e", "w") as e:
        box.process["args"] = ["/bin/sh", "-c", "cat; echo error >&2"]
        good(box.run(stdin=stdin, stdout=out, stderr=e))
    assert (place / "out").read_text() == "hello"
    assert (place / "e").read_text() == "error\n"


def test_run_keeps_what_it_is_told_to_keep(box: Box) -> None:
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))
    assert box.state()["status"] == "stopped"
    assert box.state()["pid"] == 0
    good(box.delete())
    assert box.left() == []


def test_run_detached_leaves_nobody_between(box: Box) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    good(box.run("--detach"))
    pid = box.pid
    # Its parent is whoever adopts orphans here, not a process of the runtime.
    parent = psutil.Process(pid).parent()
    assert parent is not None and "minirun" not in parent.name()
    assert box.id not in " ".join(parent.cmdline())
    good(box.delete("--force"))
    assert not alive(pid)


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "CONT"])
def test_run_forwards_signals(box: Box, name: str) -> None:
    script = f"trap 'echo got; exit 3' {name}; echo ready; while :; do sleep 0.02; done"
    box.process["args"] = ["/bin/sh", "-c", script]
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with started(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as running:
        try:
            assert running.stdout is not None
            assert next_line(running.stdout) == b"ready\n"
            running.send_signal(getattr(signal, f"SIG{name}"))
            assert next_line(running.stdout) == b"got\n"
            assert running.wait(LIMIT) == 3
        finally:
            running.kill()


# ---------------------------------------------------------------- create, start


def test_a_life_step_by_step(box: Box, place: Path) -> None:
    box.config["annotations"] = {"org.example": "yes"}
    box.process["args"] = ["/bin/sh", "-c", "touch /began; sleep 600"]
    box.create("--pid-file", str(place / "pid"))
    state = box.state()
    assert state["status"] == "created"
    assert state["id"] == box.id
    assert state["bundle"] == str(box.bundle)
    assert state["rootfs"] == str(box.rootfs)
    assert state["ociVersion"]
    assert state["annotations"] == {"org.example": "yes"}
    datetime.fromisoformat(state["created"][:19])
    assert (place / "pid").read_text() == str(state["pid"])
    assert alive(state["pid"])
    assert not (box.rootfs / "began").exists()

    box.start()
    until((box.rootfs / "began").exists)
    assert box.state()["status"] == "running"
    assert os.path.realpath(f"/proc/{state['pid']}/root") == "/"  # as it sees itself
    assert "cannot start an already running container" in box.call("start", box.id).err

    assert "not stopped: running" in box.delete().err
    good(box.call("kill", box.id, "KILL"))
    until(lambda: box.state()["status"] == "stopped")
    assert box.state()["pid"] == 0
    assert "cannot start a container that has stopped" in box.call("start", box.id).err
    good(box.delete())
    assert box.left() == []
    assert "does not exist" in box.call("state", box.id).err


def test_created_can_be_deleted(box: Box) -> None:
    box.process["args"] = ["/bin/touch", "/began"]
    box.create()
    pid = box.pid
    good(box.delete())
    assert not alive(pid)
    assert not (box.rootfs / "began").exists()


def test_delete_by_force(box: Box) -> None:
    pid = box.up()
    good(box.delete("--force"))
    assert not alive(pid)
    assert box.left() == []
    good(box.delete("--force"))  # of what is not there is no failure: engines rely on it
    assert box.delete().code == 1


def test_several_at_once(box: Box) -> None:
    """crun's --regex: what matches anywhere in the ID; one that fails stops none of the others."""
    pids = [box.up()]
    others = [box.another() for _ in range(2)]
    for number, other in enumerate(others):
        other.id = f"{box.id}-x{number}"
        pids.append(other.up())
    done = box.call("delete", "--regex", "x[01]$")
    assert done.code == 1
    assert [line.partition(" that is")[0] for line in done.err.splitlines()] == [
        f"minirun: warning: container {other.id}: cannot delete container {other.id}"
        for other in others
    ]
    good(box.call("kill", "--regex", f"{box.id}-x", "KILL"))
    until(lambda: [alive(pid) for pid in pids] == [True, False, False])
    good(box.call("delete", "--regex", f"^{box.id}-.*$"))
    assert [row["id"] for row in json.loads(good(box.call("list", "-f", "json")).out)] == [box.id]
    assert "invalid regular expression" in box.call("delete", "--regex", "*x").err
    good(box.call("delete", "-f", "-r", "."))
    assert box.left() == []
    good(box.call("delete", "-f", "-r", "."))


def test_an_id_is_there_once(box: Box) -> None:
    box.up()
    other = box.another()
    other.id = box.id
    done = other.run()
    assert done.code == 1
    assert "container with given ID already exists" in done.err
    assert box.state()["status"] == "running"


def test_the_configuration_is_that_of_create(box: Box) -> None:
    """What the bundle says later is not looked at: T-CF2."""
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    box.hook("poststart", "touch $0/forged".replace("$0", str(box.place)))
    box.process["args"] = ["/bin/touch", "/forged"]
    box.write()
    box.start()
    box.config["process"]["user"] = {"uid": 4711, "gid": 4711}
    box.write()
    assert box.exec_probe().ids[0] == "0 0 0 0"
    assert not (box.rootfs / "forged").exists()
    assert not (box.place / "forged").exists()
    box.rootfs.rename(box.place / "elsewhere")
    (box.bundle / "config.json").unlink()
    good(box.delete("--force"))
    (box.place / "elsewhere").rename(box.rootfs)


# ---------------------------------------------------------------- kill


def test_kill_by_name_and_number(box: Box) -> None:
    for number, name in enumerate(("HUP", "SIGHUP", "hup", "sighup", "1")):
        one = box.another()
        wait = "touch /ready; while :; do sleep 0.02; done"
        one.process["args"] = ["/bin/sh", "-c", f"trap 'echo hup > /got; exit' HUP; {wait}"]
        one.create()
        one.start()
        until((one.rootfs / "ready").exists)
        good(one.call("kill", one.id, name))
        until(lambda one=one: one.state()["status"] == "stopped")  # type: ignore[misc]
        assert (one.rootfs / "got").exists(), number


@pytest.mark.parametrize("name", ["65", "-1", "SIGKILL;rm", "BLOCK", "", "1_0", "\u0661", "9 "])
def test_kill_knows_what_a_signal_is(box: Box, name: str) -> None:
    box.up()
    done = box.call("kill", box.id, name)
    assert done.code == 1
    assert box.state()["status"] == "running"


def test_kill_reaches_a_created_container(box: Box) -> None:
    box.create()
    good(box.call("kill", box.id, "KILL"))
    until(lambda: box.state()["status"] == "stopped")


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT"])
@pytest.mark.parametrize("hook", [False, True], ids=["", "startContainer"])
def test_a_created_container_ends_by_what_asks_it_to(box: Box, name: str, hook: bool) -> None:
    """Although the first process of a pid namespace ignores what it has no handler for."""
    if hook:
        box.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    box.create()
    good(box.call("kill", box.id, name))
    until(lambda: box.state()["status"] == "stopped")


def test_kill_all_in_the_hosts_pid_namespace(box: Box) -> None:
    """Without a pid namespace nothing else ends the children."""
    box.share("pid")
    box.process["args"] = ["/bin/sh", "-c", "sleep 600 & echo $! > /child; wait"]
    box.create()
    box.start()
    child = int(
        until(lambda: (box.rootfs / "child").exists() and (box.rootfs / "child").read_text())
    )
    good(box.call("kill", box.id, "KILL"))
    until(lambda: not alive(child))


def test_a_stopped_container_is_not_running(box: Box) -> None:
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))
    done = box.call("kill", box.id, "TERM")
    assert done.code == 1
    assert "container not running" in done.err
    good(box.call("kill", "--all", box.id, "KILL"))


# ---------------------------------------------------------------- list, ps, pause


def test_list(box: Box) -> None:
    box.up()
    other = box.another()
    other.create()
    rows = {row["id"]: row for row in json.loads(good(box.call("list", "--format", "json")).out)}
    assert rows[box.id]["status"] == "running"
    assert rows[other.id]["status"] == "created"
    assert rows[box.id]["pid"] == box.pid
    quiet = good(box.call("list", "--quiet")).out.split()
    assert sorted(quiet) == sorted([box.id, other.id])
    table = good(box.call("list")).out.splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]


@pytest.mark.requires("cgroup2")
def test_ps_tells_the_hosts_numbers(box: Box) -> None:
    pid = box.up()
    assert json.loads(good(box.call("ps", "--format", "json", box.id)).out) == [pid]
    good(box.call("kill", box.id, "KILL"))
    until(lambda: box.state()["status"] == "stopped")
    assert json.loads(good(box.call("ps", "--format", "json", box.id)).out) == []


@pytest.mark.requires("cgroup2")
def test_pause_and_resume(box: Box) -> None:
    script = "n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.01; done"
    box.process["args"] = ["/bin/sh", "-c", script]
    box.create()
    box.start()
    pid = box.pid
    until((box.rootfs / "count").exists)
    good(box.call("pause", box.id))
    assert box.state()["status"] == "paused"
    assert "frozen 1" in read(cgroup_of(pid) / "cgroup.events")
    assert "cannot exec in a paused container" in box.exec("true").err
    good(box.call("resume", box.id))
    assert box.state()["status"] == "running"
    assert "frozen 0" in read(cgroup_of(pid) / "cgroup.events")


@pytest.mark.requires("cgroup2")
def test_exec_that_waits_for_a_paused_container(box: Box) -> None:
    box.up()
    good(box.call("pause", box.id))
    words = box.words("exec", "--ignore-paused", box.id, "/bin/echo", "awake")
    with started(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert not select.select([process.stdout], [], [], 0.5)[0]
            good(box.call("resume", box.id))
            assert process.communicate(timeout=LIMIT)[0] == "awake\n"
        finally:
            process.kill()


@pytest.mark.requires("cgroup2")
def test_a_paused_container_can_be_deleted(box: Box) -> None:
    pid = box.up()
    good(box.call("pause", box.id))
    good(box.delete("--force"))
    assert not alive(pid)


# ---------------------------------------------------------------- what a caller may do


def test_the_bundle_is_the_working_directory(box: Box) -> None:
    box.write()
    box.process["args"] = ["/bin/echo", "here"]
    box.write()
    assert good(box.call("run", box.id, cwd=box.bundle)).out == "here\n"


def test_files_to_write_are_relative_to_the_caller(box: Box) -> None:
    box.write()
    words = ("create", "--bundle", box.id, "--pid-file", "pid", box.id)
    good(box.call(*words, cwd=box.place))
    assert (box.place / "pid").read_text() == str(box.pid)


def test_nothing_is_said_unasked(box: Box) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    spoken = [box.create(), box.start(), box.call("kill", box.id, "KILL")]
    until(lambda: box.state()["status"] == "stopped")
    spoken.append(box.delete())
    assert [(done.out, done.err) for done in spoken] == [("", "")] * 4


def test_a_parent_that_dies_takes_no_container_along(box: Box) -> None:
    """The caller's death between create and start: the container stays startable."""
    box.process["args"] = ["/bin/sleep", "600"]
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    good(call(["setsid", *words]))
    box.start()
    assert box.state()["status"] == "running"


def test_a_configuration_of_another_name(box: Box) -> None:
    """--config, as crun has it: from the bundle; root.path stays relative to the bundle."""
    (box.bundle / "made").mkdir()
    box.process["args"] = ["/bin/echo", "here"]
    for path in ("made/x.json", str(box.bundle / "made/x.json")):
        (box.bundle / "made/x.json").write_text(json.dumps(box.config))
        done = good(call(box.words("run", "--config", path, "-b", str(box.bundle), box.id)))
        assert done.out == "here\n"
    good(call(box.words("create", "-f", "made/x.json", "-b", str(box.bundle), box.id)))
    assert box.state()["bundle"] == str(box.bundle)
    good(box.delete())
    done = call(box.words("run", "-f", "made/none.json", "-b", str(box.bundle), box.id))
    assert done.code == 1 and "made/none.json not found in" in done.err
    assert box.left() == []
