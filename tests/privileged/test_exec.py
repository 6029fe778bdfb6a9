"""exec: the controls of the first process, and the statuses and words that callers read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from runtime import (
    LIMIT,
    Report,
    alive,
    capabilities,
    cgroup_of,
    good,
    next_line,
    read,
    report_of,
    started,
    traced,
    until,
    zombies,
)

from minirun.cgroups.group import open_group
from minirun.cgroups.hierarchy import hierarchy
from minirun.executing import _where_init_is

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")


def file(box: Box, **changes: Any) -> str:
    """Write a process for `exec --process`; return the file's path."""
    process = {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["/probe"], **changes}
    path = box.place / "process.json"
    path.write_text(json.dumps(process))
    return str(path)


def by_file(box: Box, *flags: str, **changes: Any) -> Report:
    words = ("exec", *flags, "--process", file(box, **changes), box.id)
    return report_of(good(box.call(*words)).out)


# ---------------------------------------------------------------- parity: T-ID9


@pytest.mark.parametrize("userns", [False, True], ids=["", "userns"])
def test_exec_is_as_the_first_process(box: Box, userns: bool) -> None:
    if userns:
        box.user_namespace()
    box.namespace("cgroup")
    box.process.update(
        user={"uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o27},
        capabilities=capabilities("CAP_KILL", inheritable=["CAP_KILL"], ambient=["CAP_KILL"]),
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
        oomScoreAdj=123,
        cwd="/tmp",
    )
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
    }
    script = "/probe > /tmp/first; while :; do sleep 0.05; done"
    box.process["args"] = ["/bin/sh", "-c", script]
    box.create()
    box.start()
    first = box.rootfs / "tmp/first"
    until(lambda: first.exists() and read(first).endswith("}\n"))
    before, after = report_of(read(first)), box.exec_probe()
    assert before["ns"] == after["ns"]
    assert before["cgroup"] == after["cgroup"]
    expected, found = before.enforced, after.enforced
    # A shell between has seen the environment.
    for one in (expected, found):
        one["environ"] = sorted(
            entry for entry in one["environ"].split("\0") if entry[:4] in ("PATH", "HOME")
        )
    assert found == expected


@pytest.mark.requires("cgroup2")
def test_exec_counts_in_the_containers_group(box: Box) -> None:
    group = cgroup_of(box.up())
    assert box.id in str(group)
    assert box.exec_probe()["cgroup"].splitlines()[-1] == f"0::{str(group)[14:]}"


@pytest.mark.requires("cgroup2")
@pytest.mark.parametrize("path", ["..", "../..", "/../x", "a/../../b", "/", "nowhere", "memory:x"])
def test_exec_in_another_group(box: Box, path: str) -> None:
    """T-CG4: never above the container's own."""
    pid = box.up()
    done = box.exec("/probe", flags=["--cgroup", path])
    if done.code == 0:
        place = report_of(done.out)["cgroup"].splitlines()[-1]
        assert place.startswith(f"0::{str(cgroup_of(pid))[14:]}")


@pytest.mark.requires("cgroup2")
def test_what_is_said_of_other_groups(box: Box) -> None:
    """runc's words, which scripts look for; "/" is the container's own group."""
    group = cgroup_of(box.up())
    assert "bad sub cgroup path" in box.exec("/probe", flags=["--cgroup", "a/../b"]).err
    missing = box.exec("/probe", flags=["--cgroup", "nowhere"]).err
    assert re.search(" adding pid .* to cgroups: .*no such file or directory", missing)
    report = box.exec_probe(flags=["--cgroup", "/"])
    assert report["cgroup"].splitlines()[-1] == f"0::{str(group)[14:]}"


@pytest.mark.requires("cgroup2")
def test_exec_in_a_group_below(box: Box) -> None:
    group = cgroup_of(box.up())
    (group / "below").mkdir()
    place = box.exec_probe(flags=["--cgroup", "below"])["cgroup"].splitlines()[-1]
    assert place == f"0::{str(group)[14:]}/below"


@pytest.mark.requires("cgroup2")
def test_the_group_of_the_first_process(box: Box) -> None:
    """Where exec goes when the container's own group may hold no process any more."""
    pid = box.up()
    place = cgroup_of(pid)
    tree = hierarchy()
    group = open_group(tree, str(place)[14:])
    assert group is not None
    with group:
        assert _where_init_is(pid, group).path == group.path
        (place / "init").mkdir()
        (place / "init" / "cgroup.procs").write_text(str(pid))
        with _where_init_is(pid, group) as found:
            assert found.path == f"{group.path}/init"


@pytest.mark.vm
@pytest.mark.requires("limits")
def test_exec_where_the_container_has_divided_its_group(box: Box) -> None:
    pid = box.up()
    place = cgroup_of(pid)
    (place / "init").mkdir()
    (place / "init" / "cgroup.procs").write_text(str(pid))
    (place / "cgroup.subtree_control").write_text("+pids")
    found = box.exec_probe()["cgroup"].splitlines()[-1]
    assert found == f"0::{str(place)[14:]}/init"


# ---------------------------------------------------------------- exit statuses, words


@pytest.mark.parametrize("status", [0, 1, 126, 255])
def test_exec_ends_as_its_process(box: Box, status: int) -> None:
    box.up()
    assert box.exec("/bin/sh", "-c", f"exit {status}").code == status
    assert box.exec("/bin/sh", "-c", "kill -KILL $$").code == 128 + signal.SIGKILL


PROGRAMS = [
    ("/nope", 'exec: "/nope": stat /nope: no such file or directory'),
    ("nope", 'exec: "nope": executable file not found in $PATH'),
    ("/bin", 'exec: "/bin": is a directory: permission denied'),
    ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ("/etc/passwd/x", "not a directory"),
]


@pytest.mark.parametrize(("program", "words"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_a_program_that_is_none(box: Box, program: str, words: str) -> None:
    """Docker and podman make 126 and 127 of these words."""
    box.up()
    done = box.exec(program)
    assert (done.code, done.out) == (255, "")
    assert words in done.err
    other = box.another()
    other.process["args"] = [program]
    assert words in other.refused()


def test_a_program_of_another_machine(box: Box) -> None:
    (box.rootfs / "odd").write_bytes(b"\x7fELF" + bytes(200))
    (box.rootfs / "odd").chmod(0o755)
    box.up()
    done = box.exec("/odd")
    assert done.code == 255
    assert "exec format error" in done.err
    assert zombies() == []  # one would keep the pid namespace from ending


def test_exec_needs_a_container_that_runs(box: Box) -> None:
    done = box.exec("/bin/true")
    assert done.code == 255
    assert "container does not exist" in done.err
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))
    assert "cannot exec in a stopped container" in box.exec("/bin/true").err


def test_exec_in_a_created_container(box: Box) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    assert box.exec_probe()["hostname"] == "box"
    box.start()
    assert box.state()["status"] == "running"


def test_exec_without_a_program(box: Box) -> None:
    box.up()
    done = box.exec()
    assert done.code != 0
    assert box.call("exec", "--process", file(box, args=[]), box.id).code == 255


# ---------------------------------------------------------------- flags


def test_flags_of_a_person(box: Box) -> None:
    box.process["env"] += ["A=1"]
    box.up()
    flags = ["-e", "A=2", "--env", "B=3", "--cwd", "/tmp", "--user", "7:8", "-g", "9"]
    flags += ["--additional-gids", "10"]
    report = box.exec_probe(flags=flags)
    assert {"A=2", "B=3"} <= set(report["env"])
    assert "A=1" not in report["env"]
    assert report["cwd"] == "/tmp"
    assert [ids.split()[0] for ids in report.ids] == ["7", "8", "9"]
    assert report.ids[2] == "9 10"


def test_options_of_the_program_are_its_own(box: Box) -> None:
    box.up()
    report = box.exec_probe("report", "--cwd", "-t", "--", "-d")
    assert report["argv"] == ["/probe", "report", "--cwd", "-t", "--", "-d"]


@pytest.mark.parametrize("nnp", [True, False])
def test_no_new_privileges(box: Box, nnp: bool) -> None:
    box.process["noNewPrivileges"] = False
    box.up()
    found = box.exec_probe(flags=["--no-new-privs"] if nnp else []).status("NoNewPrivs")
    assert found == str(int(nnp))


def test_a_process_from_a_file(box: Box) -> None:
    """As in runc: who, where and the variables are the file's alone; its silence about
    capabilities and limits means the container's."""
    box.up()
    report = by_file(box, user={"uid": 5, "gid": 6}, env=["ONLY=1"], cwd="/etc")
    assert report.ids[:2] == ("5 5 5 5", "6 6 6 6")
    assert set(report["env"]) == {"ONLY=1", "HOME=/"}
    assert report["cwd"] == "/etc"
    # CAP_KILL and CAP_NET_BIND_SERVICE; execve(2) takes all but the bound from user 5.
    assert report.caps == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": 1 << 5 | 1 << 10, "Amb": 0}
    assert report.status("NoNewPrivs") == "0"
    report = by_file(
        box, rlimits=[{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}], oomScoreAdj=99
    )
    assert report.limit("Max open files") == ["50", "60"]
    assert report["oom_score_adj"] == "99\n"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"args": "x"}', '{"args": ["/probe"], "cwd": "x"}', '{"user": 0}']
)
def test_a_file_that_is_no_process(box: Box, text: str) -> None:
    box.up()
    path = box.place / "process.json"
    path.write_text(text)
    done = box.call("exec", "--process", str(path), box.id)
    assert (done.code, done.out) == (255, "")


def test_detached(box: Box) -> None:
    box.up()
    pid_file = box.place / "pid"
    words = ("exec", "--detach", "--pid-file", str(pid_file), "--process")
    good(box.call(*words, file(box, args=["/bin/sleep", "601"]), box.id))
    pid = int(read(pid_file))
    assert alive(pid)
    until(lambda: read(f"/proc/{pid}/cmdline") == "/bin/sleep\x00601\0")
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{box.pid}/ns/pid")
    good(box.delete("--force"))
    assert not alive(pid)


def test_streams(box: Box) -> None:
    box.up()
    done = subprocess.run(
        box.words("exec", box.id, "/bin/sh", "-c", "cat; echo error >&2"),
        input="through", capture_output=True, text=True, check=True, timeout=LIMIT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("through", "error\n")


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_signals_are_forwarded(box: Box, name: str) -> None:
    box.up()
    script = f"trap 'exit 3' {name}; echo ready; while :; do sleep 0.02; done"
    words = box.words("exec", box.id, "/bin/sh", "-c", script)
    with started(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as running:
        try:
            assert running.stdout is not None
            assert next_line(running.stdout) == b"ready\n"
            running.send_signal(getattr(signal, f"SIG{name}"))
            assert running.wait(LIMIT) == 3
        finally:
            running.kill()


def test_the_end_of_the_container_is_the_end_of_exec(box: Box) -> None:
    box.up()
    words = box.words("exec", box.id, "/bin/sh", "-c", "touch /there; sleep 600")
    with started(words, stdout=subprocess.DEVNULL) as running:
        try:
            until((box.rootfs / "there").exists)
            good(box.call("kill", box.id, "KILL"))
            assert running.wait(LIMIT) == 128 + signal.SIGKILL
        finally:
            running.kill()


# ---------------------------------------------------------------- a hostile container


def test_exec_into_a_container_that_hides_its_proc(box: Box) -> None:
    """T-FS10 d: a root with CAP_SYS_ADMIN covers /proc; nothing of exec depends on it."""
    box.process["capabilities"] = capabilities("CAP_SYS_ADMIN", "CAP_KILL")
    (box.rootfs / "vol/self").mkdir()
    (box.rootfs / "vol/self/attr").mkdir()
    for name in ("attr/exec", "oom_score_adj", "setgroups", "status", "limits"):
        (box.rootfs / "vol/self" / name).write_text("fake")
    script = "mount -o bind /vol /proc && touch /covered; while :; do sleep 0.05; done"
    box.process["args"] = ["/bin/sh", "-c", script]
    box.create()
    box.start()
    until((box.rootfs / "covered").exists)
    path = file(box, args=["/bin/true"], oomScoreAdj=77)
    done = box.call("exec", "--process", path, box.id)
    for name in ("attr/exec", "oom_score_adj", "setgroups"):
        assert read(box.rootfs / "vol/self" / name) == "fake"
    assert done.code in (0, 255)


def test_exec_of_what_the_container_has_put_there(box: Box) -> None:
    """The program is looked up inside, by the container's PATH; no name of the host's counts."""
    box.process["env"] = ["PATH=/nowhere"]
    box.up()
    done = box.exec("sh", "-c", "echo host")
    assert (done.code, done.out) == (255, "")


STOPPER = """
while :; do
    for one in /proc/[0-9]*; do
        read name 2>/dev/null < $one/comm && [ "$name" = MARK ] && kill -STOP ${one#/proc/} &&
            touch /vol/stopped
    done
done
"""


@pytest.mark.requires("strace", "cgroup2")
def test_a_container_that_stops_what_enters_it_can_be_deleted(box: Box) -> None:
    """Which exec waits for, and holds the container's lock meanwhile."""
    box.share("pid")
    mark = f"minirun:{box.id}"[:15]
    box.process["args"] = ["/bin/sh", "-c", STOPPER.replace("MARK", mark)]
    box.create()
    box.start()
    # Long enough to be found; strace lets go of it only then, and delete waits no more than 10 s.
    words = traced(box.words("exec", box.id, "/bin/true"), "inject=setns:delay_enter=7000000")
    with started(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        until((box.rootfs / "vol/stopped").exists)
        good(box.delete("--force"))
        assert running.wait(LIMIT) != 0
    assert box.left() == []


# ---------------------------------------------------------------- devices: T-DV1

NODES = """
for node in 'b 8 0' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 10 229' 'c 10 237' 'c 10 200' 'c 5 3'; do
    mknod /vol/node $node || { echo no node $node; continue; }
    (exec 3<>/vol/node) 2>&1 | grep -q 'not permitted' || echo opened $node
    (exec 3</vol/node) 2>&1 | grep -q 'not permitted' || echo read $node
    rm /vol/node
done
mknod /vol/zero c 1 5 && head -c 3 /vol/zero | wc -c
rm /vol/zero
"""
MKNOD = {"allow": True, "access": "m"}


@pytest.mark.requires("cgroup2")
def test_devices_are_denied_to_all_that_is_in_the_container(box: Box) -> None:
    """Whatever node root makes there: in the first process, in exec, after a pause."""
    caps = capabilities("CAP_MKNOD", "CAP_DAC_OVERRIDE")
    box.process.update(capabilities=caps, args=["/bin/sh", "-c", f"{NODES} exec sleep 600"])
    box.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}, MKNOD]}
    out = box.place / "out"
    with open(out, "w") as file:
        box.create(stdout=file)
    box.start()
    until(lambda: read(out).endswith("\n"))
    assert read(out).split() == ["3"]
    assert good(box.exec("/bin/sh", "-c", NODES)).out.split() == ["3"]
    good(box.call("pause", box.id))
    good(box.call("resume", box.id))
    assert good(box.exec("/bin/sh", "-c", NODES)).out.split() == ["3"]
    # An update says nothing of devices, or what it says is not obeyed: runc's, too.
    for devices in ({}, {"devices": [{"allow": True, "access": "rwm"}]}):
        changes = {**devices, "unified": {"cgroup.max.depth": "7"}}
        (box.place / "resources").write_text(json.dumps(changes))
        good(box.call("update", "--resources", str(box.place / "resources"), box.id))
        assert read(cgroup_of(box.pid) / "cgroup.max.depth") == "7\n"
        assert good(box.exec("/bin/sh", "-c", NODES)).out.split() == ["3"]


KEYS = (
    "../cgroup.procs", "a/b", "a.b/../../cgroup.procs", "..", ".", "./memory.max", "memory.max\n",
    "memory.max/", "/memory.max", "cgroup.kill", "cgroup.procs", "cgroup.subtree_control",
    "cgroup.freeze", "memory..max", "", "memory", "memory.max\0x", "mémory.max",
)  # fmt: skip


@pytest.mark.requires("cgroup2")
@pytest.mark.parametrize("key", KEYS)
def test_keys_of_unified_name_files_of_the_containers_own_group(box: Box, key: str) -> None:
    """T-CG3: in create and in update, whatever the value."""
    box.linux["resources"] = {"unified": {key: "1"}}
    box.refused("linux.resources")
    del box.linux["resources"]
    pid = box.up()
    above = cgroup_of(pid).parent
    before = read(above / "cgroup.procs"), read(above / "cgroup.subtree_control")
    (box.place / "resources").write_text(json.dumps({"unified": {key: "1"}}))
    done = box.call("update", "--resources", str(box.place / "resources"), box.id)
    assert done.code == 1
    assert "resources" in done.err
    assert alive(pid)
    assert (read(above / "cgroup.procs"), read(above / "cgroup.subtree_control")) == before
