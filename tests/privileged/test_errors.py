"""What callers match in messages, and what they find in the log (minirun(1), "ERRORS")."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, Done, good, in_a_terminal, read, read_until, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")


def stopped(box: Box) -> None:
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))


def program(*args: str) -> Callable[[Box], Done]:
    def fail(box: Box) -> Done:
        box.process["args"] = list(args)
        return box.run()

    return fail


def after(prepare: Callable[[Box], Any], *words: str) -> Callable[[Box], Done]:
    def fail(box: Box) -> Done:
        prepare(box)
        verb, *rest = words
        return box.call(verb, box.id, *rest)

    return fail


def twice(box: Box) -> Done:
    box.create()
    return box.run()


def no_bundle(box: Box) -> Done:
    return box.call("run", "--bundle", str(box.place / "nowhere"), box.id)


def no_config(box: Box) -> Done:
    return box.call("run", "--bundle", str(box.bundle), box.id)


def mounted(destination: str, source: str) -> Callable[[Box], Done]:
    def fail(box: Box) -> Done:
        box.mount(destination, source, "bind")
        return box.run()

    return fail


# The failure, how it is brought about, the words that callers look for, and the exit status.
FAILURES: dict[str, tuple[Callable[[Box], Done], str, int]] = {
    "state of nothing": (after(lambda _: None, "state"), "does not exist", 1),
    "kill of nothing": (after(lambda _: None, "kill"), "does not exist", 1),
    "delete of nothing": (after(lambda _: None, "delete"), "does not exist", 1),
    "start of nothing": (after(lambda _: None, "start"), "does not exist", 1),
    "exec in nothing": (after(lambda _: None, "exec", "true"), "does not exist", 255),
    "taken": (twice, "container with given ID already exists", 1),
    "kill of a stopped one": (after(stopped, "kill"), "container not running", 1),
    "exec in a stopped one": (
        after(stopped, "exec", "true"),
        "exec failed: cannot exec in a stopped container",
        255,
    ),
    "start of a stopped one": (
        after(stopped, "start"),
        "cannot start a container that has stopped",
        1,
    ),
    "start of a running one": (
        after(lambda box: box.up(), "start"),
        "cannot start an already running container",
        1,
    ),
    "delete of a running one": (
        after(lambda box: box.up(), "delete"),
        "that is not stopped: running",
        1,
    ),
    "no such file": (
        program("/nope"),
        'run failed: exec: "/nope": stat /nope: no such file or directory',
        1,
    ),
    "not in PATH": (program("nope"), 'exec: "nope": executable file not found in $PATH', 1),
    "a directory": (program("/bin"), 'exec: "/bin": is a directory: permission denied', 1),
    "no program": (program("/etc/passwd"), 'exec: "/etc/passwd": permission denied', 1),
    "no source": (mounted("/vol", "/nowhere"), "no such file or directory", 1),
    "a file on a directory": (mounted("/vol", "/etc/passwd"), "not a directory", 1),
    "no bundle": (no_bundle, "nowhere is not a directory", 1),
    "no configuration": (no_config, "config.json not found", 1),
    "no resctrl": (
        after(lambda box: box.up(), "update", "--l3-cache-schema", "L3:0=f"),
        "Intel RDT/CAT: l3 cache schema is not enabled",
        1,
    ),
    "unknown verb": (lambda box: box.call("frobnicate"), "frobnicate", 3),
    "unknown flag": (lambda box: box.call("state", "--nope", box.id), "nope", 1),
    "no ID": (lambda box: box.call("state"), "", 1),
}


@pytest.mark.parametrize("what", FAILURES)
def test_words_and_status(box: Box, what: str) -> None:
    bring_about, words, status = FAILURES[what]
    done = bring_about(box)
    assert done.code == status
    assert words in done.err
    assert done.err.startswith("minirun: ")
    assert done.err.count("\n") == 1
    # Advice holds words by which engines choose their own exit status: never here.
    assert not re.search(r"\b(fix|cause|hint|try)\b:", done.err)


@pytest.mark.parametrize("what", FAILURES)
def test_one_object_in_the_log(box: Box, what: str) -> None:
    """podman reads the whole file as one object; containerd wants a time that it can parse."""
    log = box.place / "log"
    plain = box.words

    def logged(*words: str) -> list[str]:
        return plain("--log", str(log), "--log-format", "json", *words)

    bring_about, words, _status = FAILURES[what]
    box.words = logged  # type: ignore[method-assign]
    done = bring_about(box)
    assert done.code != 0
    record = json.loads(read(log))
    assert set(record) == {"level", "msg", "time"}
    assert record["level"] == "error"
    assert words in record["msg"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", record["time"])
    datetime.fromisoformat(record["time"].replace("Z", "+00:00"))
    box.words = plain  # type: ignore[method-assign]


def test_success_leaves_the_log_empty(box: Box) -> None:
    log = box.place / "log"
    box.process["args"] = ["/bin/true"]
    box.process["capabilities"]["bounding"].append("CAP_FUTURE")  # worth a warning
    box.write()
    flags = ("--log", str(log), "--log-format", "json")
    good(box.call(*flags, "run", "--bundle", str(box.bundle), box.id))
    assert not log.exists() or read(log) == ""


def test_advice_is_for_a_terminal(box: Box) -> None:
    box.write()
    (box.bundle / "config.json").unlink()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words) as (master, process):
        assert b"fix: " in read_until(master, b"fix: ")
        process.wait(LIMIT)


def test_what_a_container_says_does_not_act_on_the_terminal(box: Box) -> None:
    """T-TT2: names of the container's in a message are escaped."""
    done = program("/\x1b[2J\x07nope\nminirun: forged")(box)
    assert "\x1b" not in done.err
    assert "\x07" not in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("kind", ["directory", "fifo", "nowhere"])
def test_a_log_that_cannot_be_written(box: Box, kind: str) -> None:
    path = box.place / "log"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = path / "x"
    done = box.call("--log", str(path), "state", box.id)
    assert done.code == 1
    assert "log" in done.err


def test_errors_of_a_detached_payload_reach_start(box: Box) -> None:
    """What is wrong only at execve, such as a program for another machine, is told by start."""
    (box.rootfs / "odd").write_bytes(b"\x7fELF" + bytes(200))
    (box.rootfs / "odd").chmod(0o755)
    box.process["args"] = ["/odd"]
    box.create()
    done = box.call("start", box.id)
    assert done.code == 1
    assert "exec format error" in done.err
    until(lambda: box.state()["status"] == "stopped")
    good(box.delete())


def test_an_interpreter_that_is_missing(box: Box) -> None:
    (box.rootfs / "script").write_text("#!/no/such/interpreter\n")
    (box.rootfs / "script").chmod(0o755)
    done = program("/script")(box)
    assert done.code == 1
    assert "no such file or directory" in done.err


def script(box: Box, content: str, name: str = "script") -> None:
    (box.rootfs / name).write_text(content)
    (box.rootfs / name).chmod(0o755)


def at_a_terminal(box: Box, *words: str) -> tuple[int, str]:
    """Call the runtime at a terminal; return its exit status and all that it showed."""
    with in_a_terminal(box.words(*words)) as (master, process):
        shown = read_until(master, None).decode()
        return process.wait(LIMIT), shown


def foreign(box: Box) -> None:
    head = bytearray((box.rootfs / "probe").read_bytes())
    head[18:20] = b"\x16\0"  # EM_S390
    (box.rootfs / "script").write_bytes(bytes(head))
    (box.rootfs / "script").chmod(0o755)


def dynamic(box: Box) -> None:
    shutil.copy("/bin/true", box.rootfs / "script")


def noexec(box: Box) -> None:
    directory = box.place / "noexec"
    directory.mkdir()
    shutil.copy(box.rootfs / "probe", directory / "probe")
    box.mount("/vol", str(directory), "bind", "noexec")
    box.process["args"] = ["/vol/probe"]


# What is the matter with /script: its making, the machine line's end, and words of the cause.
CAUSES: dict[str, tuple[Callable[[Box], Any], str, str]] = {
    "interpreter": (
        lambda box: script(box, "#!/no/such/thing\n"),
        "no such file or directory",
        "is a script for /no/such/thing, which this root filesystem lacks",
    ),
    "crlf": (
        lambda box: script(box, "#!/bin/sh\r\ntrue\r\n"),
        "no such file or directory",
        'ends in CRLF, so that the kernel looks for "/bin/sh\\r"',
    ),
    "no first line": (
        lambda box: script(box, "true\n"),
        "exec format error",
        'neither a program (ELF) nor a script with "#!"',
    ),
    "machine": (foreign, "exec format error", "was built for IBM S/390, and this machine is"),
    "loader": (dynamic, "no such file or directory", "ld-linux"),
    "mode": (
        lambda box: (box.rootfs / "script").touch(0o640),
        "permission denied",
        "/script is not executable (mode 0640)",
    ),
    "noexec": (noexec, "permission denied", "on a file system that is mounted noexec"),
    "directory": (
        lambda box: (box.rootfs / "script").mkdir(),
        "is a directory: permission denied",
        "a directory cannot be executed",
    ),
    "missing": (lambda _: None, "no such file or directory", "/script does not exist"),
}


@pytest.mark.parametrize("what", CAUSES)
def test_the_cause_is_told_at_a_terminal(box: Box, what: str) -> None:
    make, message, cause = CAUSES[what]
    box.process["args"] = ["/script"]
    make(box)
    engine = box.run()
    assert engine.code == 1
    assert engine.err.endswith(f"{message}\n")
    assert cause not in engine.err
    code, shown = at_a_terminal(box, "run", "--bundle", str(box.bundle), box.id)
    assert code == 1
    assert f"{message}\r\n  cause: " in shown
    assert cause in shown


def test_the_cause_is_told_by_start_and_exec(box: Box) -> None:
    script(box, "#!/no/such/thing\n")
    box.process["args"] = ["/script"]
    box.create()
    code, shown = at_a_terminal(box, "start", box.id)
    assert (code, "which this root filesystem lacks" in shown) == (1, True)
    until(lambda: box.state()["status"] == "stopped")
    good(box.delete())
    box.up()
    code, shown = at_a_terminal(box, "exec", box.id, "/script")
    assert (code, "which this root filesystem lacks" in shown) == (255, True)


def test_debug_tells_steps_and_calls_with_their_time(box: Box, tmp_path: Path) -> None:
    box.process["args"] = ["/bin/true"]
    box.write()
    log = tmp_path / "log"
    good(box.call("--debug", "--log", str(log), "run", "--bundle", str(box.bundle), box.id))
    text = log.read_text()
    assert re.search(r"inner: mounts\.pivot_root: .* \(\d+ µs\)", text)
    assert re.search(r"parent: mounts\.open_sources: open_tree\(.*\) = \d+", text)
    assert all(re.match(r'time="\d{4}-.*Z" level=debug msg="', line) for line in text.splitlines())
    assert "run: exit status 0" in text


def test_debug_of_a_failure_ends_with_the_step_that_failed(box: Box, tmp_path: Path) -> None:
    box.mount("/vol", "none", "size=nonsense", kind="tmpfs")
    box.write()
    log = tmp_path / "log"
    words = ("--debug", "--log", str(log), "create", "--bundle", str(box.bundle), box.id)
    done = box.call(*words)
    assert done.code == 1
    steps = [line for line in log.read_text().splitlines() if "µs)" in line]
    assert "mounts.mount_all" in steps[-1]


def test_debug_of_exec(box: Box) -> None:
    box.up()
    done = box.call("--debug", "exec", box.id, "/bin/true")
    assert done.code == 0
    assert "debug: outer: joining.join_all: " in done.err
    assert "debug: exec: exit status 0" in done.err


def test_a_closed_standard_output(box: Box) -> None:
    box.up()
    with open("/dev/full", "w") as full:
        done = box.call("state", box.id, stdout=full)
    assert done.code == 1


def test_names_and_values_of_the_environment_are_not_told(box: Box) -> None:
    """P-49: secrets are in the environment."""
    box.process["env"] += ["SECRET=of-the-user"]
    box.process["args"] = ["/nope"]
    done = box.run()
    assert "of-the-user" not in done.err
    box.process["env"] += ["LONG=" + "of-the-user" * 20000]
    box.process["args"] = ["/bin/true"]
    assert "of-the-user" not in box.refused()


@pytest.mark.skipif("resctrl" in read("/proc/self/mounts"), reason="this machine has it")
def test_cache_allocation_where_there_is_none(box: Box) -> None:
    box.linux["intelRdt"] = {"closID": "gold"}
    assert "Intel RDT is not supported or enabled" in box.refused()
