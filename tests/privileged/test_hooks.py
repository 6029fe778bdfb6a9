"""Hooks: when, where, as whom, with what; and what their failure means. T-HK1 to T-HK3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, PATH, alive, call, good, read, started, traced, until

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

OUTSIDE = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
CREATING = ("prestart", "createRuntime", "createContainer")
ALL = (*CREATING, "startContainer", "poststart", "poststop")


def tell(box: Box, kind: str, script: str, **fields: Any) -> Path:
    """Add a hook whose script's output goes to a file; return the file."""
    told = box.place / f"told-{kind}"
    box.hook(kind, f"exec >> {told} 2>&1; {script}", **fields)
    return told


def inside(box: Box, script: str, **fields: Any) -> None:
    entry = {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}
    box.config.setdefault("hooks", {})["startContainer"] = [entry]


# ---------------------------------------------------------------- order and place


def test_the_order_of_a_life(box: Box) -> None:
    (box.rootfs / "log").write_text("")
    box.mount("/log", str(box.rootfs / "log"), "bind")
    for kind in OUTSIDE:
        for number in (1, 2):
            box.hook(kind, f"echo {kind}{number} >> {box.rootfs}/log")
    inside(box, "echo startContainer >> /log")
    box.process["args"] = ["/bin/sh", "-c", "sleep 0.1; echo payload >> /log"]
    box.create()
    created = [f"{kind}{number}" for kind in CREATING for number in (1, 2)]
    assert read(box.rootfs / "log").split() == created
    box.start()
    until(lambda: box.state()["status"] == "stopped")
    box.delete()
    told = read(box.rootfs / "log").split()
    assert sorted(told[6:10]) == ["payload", "poststart1", "poststart2", "startContainer"]
    assert told.index("startContainer") == 6
    assert told[10:] == ["poststop1", "poststop2"]


def test_where_they_run(box: Box) -> None:
    """createContainer in the container's namespaces, the others in the host's: config.md."""
    namespaces = "readlink /proc/self/ns/mnt /proc/self/ns/pid /proc/self/ns/uts; pwd"
    told = {kind: tell(box, kind, namespaces) for kind in OUTSIDE}
    inside(box, "readlink /proc/self/ns/uts > /inside; ls -d /vol >> /inside")
    uts = box.probe()["ns"]["uts"]
    host = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "uts")]
    for kind in OUTSIDE:
        *found, directory = read(told[kind]).split()
        if kind == "createContainer":
            assert found[0] != host[0]
            assert found[2] == uts
        else:
            assert found == host
        assert directory == str(box.rootfs if kind == "createContainer" else box.bundle)
    assert read(box.rootfs / "inside").split() == [uts, "/vol"]


def test_create_container_sees_the_host_and_the_mounts(box: Box) -> None:
    box.mount("/vol", "tmpfs", kind="tmpfs")
    told = tell(box, "createContainer", "cat /proc/self/mountinfo")
    box.probe()
    assert f" {box.rootfs}/vol rw" in read(told)


# ---------------------------------------------------------------- environment: T-HK1


def environments(box: Box, **fields: Any) -> dict[str, str]:
    """Run with a hook of each kind; return the environment that each had."""
    told = {kind: box.place / f"told-{kind}" for kind in OUTSIDE}
    told["startContainer"] = box.rootfs / "told"
    box.config["hooks"] = {
        kind: [{"path": "/bin/dd", "args": ["dd", "if=/proc/self/environ", f"of={path}"], **fields}]
        for kind, path in {**told, "startContainer": "/told"}.items()
    }
    box.probe(env={**os.environ, "SECRET": "caller", "MINIRUN_SECRET": "caller"})
    return {kind: read(path) for kind, path in told.items()}


@pytest.mark.requires("strace")
@pytest.mark.parametrize("direct", [True, False])
def test_no_hook_runs_before_the_container_is_recorded(box: Box, direct: bool) -> None:
    """The mounts are made while the parent limits and records; what runs waits for it."""
    if not direct:
        box.namespace("time")  # another process makes the namespaces then
    seen = box.place / "seen"
    box.hook("createContainer", f"cat {box.root}/{box.id}/state.json > {seen}; exit 3")
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    done = call(traced(words, "trace=renameat", "inject=renameat:delay_enter=400000"))
    assert "exit status 3" in done.err
    assert json.loads(read(seen))["pid"] > 0


def test_a_hook_has_its_own_environment_only(box: Box) -> None:
    """CVE-2025-23266: neither the payload's nor the caller's. runc 1.1.5 gives the caller's.

    One that is the container's own has the payload's environment, as in runc.
    """
    box.process["env"] += ["LD_PRELOAD=/evil.so", "SECRET=payload"]
    found = environments(box)
    inside = found.pop("startContainer")
    assert found == dict.fromkeys(OUTSIDE, "")
    assert inside.split("\0")[:3] == [PATH, "LD_PRELOAD=/evil.so", "SECRET=payload"]
    assert environments(box, env=[]) == dict.fromkeys(ALL, "")


def test_a_hook_that_a_signal_ends(box: Box) -> None:
    inside(box, "kill -SYS $$")
    assert "startContainer hook #0: /bin/sh: signal 31: bad system call" in box.run().err


def test_a_hook_has_the_environment_that_is_given(box: Box) -> None:
    given = environments(box, env=["A=1", "B=2"])
    assert given == dict.fromkeys(ALL, "A=1\0B=2\0")


def test_what_else_a_hook_has(box: Box) -> None:
    """Descriptors 0 to 2, default signals, an ordinary umask, a group of its own."""
    script = "ls /proc/self/fd; umask; grep -E '^Sig(Blk|Ign)' /proc/self/status"
    told = [tell(box, kind, script) for kind in OUTSIDE]
    fd = os.open("/", os.O_RDONLY)
    try:
        box.probe(pass_fds=[fd])
    finally:
        os.close(fd)
    for path in told:
        numbers, rest = read(path).split("0022")
        assert set(numbers.split()) == {"0", "1", "2", "3"}, path  # 3: of ls itself
        assert rest.count("0" * 16) == 2, path


def test_the_state_on_standard_input(box: Box) -> None:
    box.config["annotations"] = {"org.example": "yes"}
    told = {kind: tell(box, kind, "cat") for kind in OUTSIDE}
    inside(box, "cat > /told")
    box.probe()
    expected = dict.fromkeys(CREATING, "creating") | {
        "startContainer": "created", "poststart": "running", "poststop": "stopped",
    }  # fmt: skip
    told["startContainer"] = box.rootfs / "told"
    for kind in ALL:
        state = json.loads(read(told[kind]))
        assert state["id"] == box.id, kind
        assert state["bundle"] == str(box.bundle), kind
        assert state["annotations"] == {"org.example": "yes"}, kind
        assert state["ociVersion"], kind
        if kind != "poststart":  # a payload as short as this one may have ended
            assert state["status"] == expected[kind], kind
        assert (state.get("pid", 0) > 0) == (kind != "poststop"), kind


def test_the_process_that_a_hook_is_told_is_the_containers(box: Box) -> None:
    told = tell(box, "createRuntime", "cat")
    box.create()
    assert json.loads(read(told))["pid"] == box.pid


def test_arguments_are_kept(box: Box) -> None:
    told = box.place / "told"
    box.config["hooks"] = {
        "createRuntime": [
            {"path": "/bin/sh", "args": ["-odd", "-c", f'echo "$0" "$1" > {told}', "a b", "c"]}
        ]
    }
    box.probe()
    assert read(told) == "a b c\n"


# ---------------------------------------------------------------- as whom: T-HK2


def test_start_container_is_the_payload_already(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1001}
    (box.rootfs / "tmp").chmod(0o777)
    inside(box, "grep -E 'Uid|Gid|NoNew|CapBnd' /proc/$$/status > /tmp/told")
    report = box.probe()
    told = read(box.rootfs / "tmp/told")
    for name in ("Uid", "Gid", "NoNewPrivs", "CapBnd"):
        assert f"{name}:\t{report['status'].split(name + ':')[1].split(chr(10))[0].strip()}" in told


def test_start_container_is_a_file_of_the_container(box: Box) -> None:
    (box.rootfs / "only-inside").symlink_to("/bin/busybox")
    box.config["hooks"] = {"startContainer": [{"path": "/only-inside", "args": ["touch", "/x"]}]}
    box.probe()
    assert (box.rootfs / "x").exists()
    box.config["hooks"] = {"startContainer": [{"path": str(box.base / "probe")}]}
    done = box.run()
    assert done.code != 0
    assert done.out == ""


@pytest.mark.parametrize("action", [{"action": "SCMP_ACT_ERRNO", "errnoRet": 38}, "SCMP_ACT_KILL"])
def test_start_container_under_a_filter_without_clone3(box: Box, action: Any) -> None:
    """Docker's profile answers ENOSYS, for no filter sees the arguments of clone3."""
    rule = action if isinstance(action, dict) else {"action": action}
    names = {"names": ["clone3", "pidfd_open"], **rule}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [names]}
    box.process["noNewPrivileges"] = False
    touch = {"path": "/bin/touch", "args": ["touch", "/x"], "timeout": LIMIT}
    box.config["hooks"] = {"startContainer": [touch]}
    box.probe()
    assert (box.rootfs / "x").exists()
    box.config["hooks"] = {
        "startContainer": [{"path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1}]
    }
    assert "no end after 1 s" in box.run().err


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("path", ["relative", "", "./x", "/bin/x\0y"])
def test_a_path_that_is_none(box: Box, kind: str, path: str) -> None:
    box.config["hooks"] = {kind: [{"path": path}]}
    box.refused()


@pytest.mark.parametrize("kind", CREATING)
@pytest.mark.parametrize("path", ["/nowhere", "/", "/etc/passwd"])
def test_a_path_that_cannot_be_executed(box: Box, kind: str, path: str) -> None:
    box.config["hooks"] = {kind: [{"path": path}]}
    assert f"{kind} hook #0: {path}" in box.refused()


# ---------------------------------------------------------------- failures: T-HK3


@pytest.mark.parametrize("kind", CREATING)
def test_a_hook_that_fails_ends_the_creation(box: Box, kind: str) -> None:
    box.hook(kind, "echo the reason; exit 3")
    message = box.refused()
    assert f"error running {kind} hook #0: /bin/sh: exit status 3, output: the reason" in message


def test_start_container_that_fails(box: Box) -> None:
    inside(box, "exit 3")
    done = box.run()
    assert done.code != 0
    assert done.out == ""
    assert "startContainer hook #0" in done.err
    assert box.left() == []


def test_start_container_that_fails_after_create(box: Box) -> None:
    inside(box, "exit 3")
    box.create()
    done = box.call("start", box.id)
    assert done.code == 1
    assert "startContainer hook #0" in done.err
    until(lambda: box.state()["status"] == "stopped")
    good(box.delete())


def test_poststart_that_fails_ends_the_container(box: Box) -> None:
    """runtime.md, "Lifecycle": it is removed, as by `delete`."""
    box.hook("poststart", "exit 3")
    told = tell(box, "poststop", "echo gone")
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    pid = box.pid
    done = box.call("start", box.id)
    assert done.code == 1
    assert "poststart hook #0" in done.err
    until(lambda: not alive(pid))
    assert read(told) == "gone\n"
    assert box.left() == []


def test_poststop_that_fails_hinders_nothing(box: Box) -> None:
    """runtime.md, "Lifecycle": the runtime MUST log a warning, wherever its log goes."""
    box.hook("poststop", "exit 3")
    told = tell(box, "poststop", "echo here")
    box.process["args"] = ["/bin/true"]
    done = good(box.run())
    assert "poststop hook #0" in done.err
    assert read(told) == "here\n"
    assert box.left() == []
    log = box.place / "log"
    good(box.call("--log", str(log), "--log-format", "json", "run", "-b", str(box.bundle), box.id))
    [entry] = [json.loads(line) for line in read(log).splitlines()]
    assert entry["level"] == "warning" and "poststop hook #0" in entry["msg"]


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_a_runtime_that_is_told_to_end_undoes_what_it_made(box: Box, name: str) -> None:
    box.hook("createRuntime", f"echo $$ > {box.place}/there; sleep 600")
    told = tell(box, "poststop", "echo undone")
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with started(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        until(lambda: (box.place / "there").exists() and read(box.place / "there").endswith("\n"))
        number = getattr(signal, f"SIG{name}")
        running.send_signal(number)
        assert running.wait(LIMIT) == 128 + number
    assert read(told) == "undone\n"
    until(lambda: not alive(int(read(box.place / "there"))))
    assert box.left() == []


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_poststop_undoes_what_hooks_of_a_failed_creation_made(box: Box, kind: str) -> None:
    """runtime.md, "Lifecycle": where a hook fails, it goes on with the poststop hooks."""
    told = box.place / "told"
    box.hook("createRuntime", f"echo made >> {told}")
    box.hook("poststop", f"echo undone >> {told}")
    box.hook(kind, "exit 3")
    assert f"{kind} hook #" in box.refused()
    assert read(told).split() == (["undone"] if kind == "prestart" else ["made", "undone"])


def test_poststop_undoes_what_hooks_made_before_another_failure(box: Box) -> None:
    box.hook("createContainer", "true")
    told = tell(box, "poststop", "echo undone")
    box.process["args"] = ["/nowhere"]
    assert box.run().code != 0
    assert read(told) == "undone\n"


def test_no_poststop_where_no_hook_came_so_far(box: Box) -> None:
    told = tell(box, "poststop", "echo undone")
    box.config["mounts"].append({"destination": "/x", "type": "bind", "source": "/nowhere"})
    box.refused("/nowhere")
    assert not told.exists()


def child_of_the_late(box: Box) -> int:
    """Let a hook take longer than it may, but have begun; return the number that it has written."""
    (box.place / "child").touch()
    for timeout in (1, 5, 25):  # seconds, of which a busy machine takes some to begin
        box.config["hooks"]["createRuntime"][0]["timeout"] = timeout
        assert f"no end after {timeout} s" in box.refused()
        if read(box.place / "child"):
            break
    return int(read(box.place / "child"))


def test_a_hook_that_takes_too_long(box: Box) -> None:
    """It ends with all that it has started in its process group."""
    box.hook("createRuntime", f"sleep 600 & echo $! > {box.place}/child; wait")
    child = child_of_the_late(box)
    until(lambda: not alive(child))


def test_a_hook_that_has_left_its_group(box: Box) -> None:
    """For its parent's: setpgid(2). It ends all the same, and the reason is told."""
    leave = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); print(flush=True)"
    code = (
        f"{leave}; open({str(box.place / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    box.hook("createRuntime", f'exec {sys.executable} -ISc "$1"')
    box.config["hooks"]["createRuntime"][0]["args"] += ["sh", code]
    assert not alive(child_of_the_late(box))


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_time_that_is_none(box: Box, timeout: int) -> None:
    """The specification: "timeout MUST be greater than zero"."""
    box.hook("createRuntime", "exit 0", timeout=timeout)
    box.refused("timeout")


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer", "poststart", "poststop"])
def test_a_hook_that_leaves_somebody_behind(box: Box, kind: str) -> None:
    """A daemon that holds its output open, and a hook that does not read its input."""
    box.config["annotations"] = {"long": "x" * 200_000}
    box.hook(kind, f"exec 0<&-; sleep 600 & echo $! >> {box.place}/child")
    box.process["args"] = ["/bin/true"]
    good(box.run())
    for child in read(box.place / "child").split():
        with contextlib.suppress(ProcessLookupError):  # it went with the pid namespace
            os.kill(int(child), 9)
