"""Terminals: the console socket, a foreground terminal, hostile consoles. T-FS4, T-FS5, T-TT1."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import (
    LIMIT,
    good,
    host_same,
    in_a_terminal,
    read,
    read_until,
    started,
    traced,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(LIMIT)
        yield server
    path.unlink()


def receive(server: socket.socket) -> tuple[int, bytes]:
    """Take the terminal's master off the console socket, as an engine does; it must be alone."""
    connection, _ = server.accept()
    with connection:
        space = socket.CMSG_SPACE(4 * 8)
        payload, ancillary, flags, _ = connection.recvmsg(4096, space)
        assert flags & socket.MSG_CTRUNC == 0
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        assert len(fds) == 1
        assert connection.recv(1) == b""
        return fds[0], payload


@contextlib.contextmanager
def created(box: Box, *args: str, **options: Any) -> Iterator[int]:
    """A created and started container with a terminal, whose master is given."""
    box.process.update(args=list(args), terminal=True)
    path = box.place / "console"
    with listening(path) as server:
        box.create("--console-socket", str(path), **options)
        master, _payload = receive(server)
    try:
        box.start()
        yield master
    finally:
        os.close(master)


# ---------------------------------------------------------------- the console socket


def test_the_master_comes_over_the_socket(box: Box) -> None:
    box.process.update(args=["/bin/sleep", "600"], terminal=True)
    with listening(box.place / "console") as server:
        box.create("--console-socket", str(box.place / "console"))
        master, payload = receive(server)
    assert os.readlink(f"/proc/self/fd/{master}").endswith("ptmx")
    assert payload.startswith((b"/dev/pts/", b"/dev/ptmx"))
    os.close(master)


def test_what_is_typed_is_read(box: Box) -> None:
    with created(box, "/bin/sh", "-c", "read line; echo got $line; tty") as master:
        os.write(master, b"hello\n")
        assert b"got hello\r\n/dev/pts/0\r\n" in read_until(master, b"/dev/pts/0\r\n")


def test_the_terminal_is_the_payloads(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    script = "stat -c '%F %t %u' /dev/console /dev/pts/0; readlink /proc/self/fd/0; echo end"
    with created(box, "/bin/sh", "-c", script) as master:
        lines = read_until(master, b"end").decode().split("\r\n")
    assert lines[0] == "character special file 88 1000"  # major 136
    assert lines[1] == "character special file 88 1000"
    assert lines[2] == "/dev/pts/0"


def test_the_process_controls_it(box: Box) -> None:
    with created(
        box, "/bin/sh", "-c", "trap 'echo interrupted; exit' INT; echo r; read x"
    ) as master:
        read_until(master, b"r\r\n")
        os.write(master, b"\x03")
        assert b"interrupted" in read_until(master, b"interrupted")


def test_its_size(box: Box) -> None:
    box.process["consoleSize"] = {"height": 33, "width": 99}
    with created(box, "/bin/sleep", "600") as master:
        size = fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8))
        assert struct.unpack("HHHH", size)[:2] == (33, 99)


def test_exec_over_a_console_socket(box: Box) -> None:
    box.up()
    process = {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["/bin/tty"], "terminal": True}
    (box.place / "process").write_text(json.dumps(process))
    with listening(box.place / "console") as server:
        words = ("--console-socket", str(box.place / "console"), "--detach", "--process")
        good(box.call("exec", *words, str(box.place / "process"), box.id))
        master, _ = receive(server)
        assert b"/dev/pts/" in read_until(master, b"\n")
        os.close(master)


def test_exec_leaves_the_console_to_the_first_process(box: Box) -> None:
    """Its pty mounted there would end with it; what the first process says is for its own."""
    pid = box.up()
    before = read(f"/proc/{pid}/mountinfo")
    for number in range(3):  # one whose pty has ended must not be in the way of the next
        words = box.words("exec", "--tty", box.id, "/bin/sh", "-c", f"echo said{number}; exit 5")
        with in_a_terminal(words) as (master, process):
            assert b"said%d" % number in read_until(master, b"said%d" % number)
            assert process.wait(LIMIT) == 5
    assert read(f"/proc/{pid}/mountinfo") == before


@pytest.mark.parametrize("shape", ["link", "fifo"])
def test_exec_does_not_look_at_the_console(box: Box, canary: Path, shape: str) -> None:
    """The container's root can put there what he likes while it runs."""
    pid = box.up()
    console = Path(f"/proc/{pid}/root/dev/console")
    with host_same(canary):
        console.symlink_to(canary / "console") if shape == "link" else os.mkfifo(console)
        words = box.words("exec", "--tty", box.id, "/bin/sh", "-c", "exit 5")
        with in_a_terminal(words) as (_, process):
            assert process.wait(LIMIT) == 5


WRONG = {
    "too long": lambda place: place / ("x" * 120),
    "nothing": lambda place: place / "nothing",
    "a file": lambda place: place / "file",
    "nobody listens": lambda place: place / "dead",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_console_socket_that_is_none(box: Box, what: str) -> None:
    (box.place / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(box.place / "dead"))
    box.process["terminal"] = True
    box.write()
    path = str(WRONG[what](box.place))
    done = box.call("create", "--bundle", str(box.bundle), "--console-socket", path, box.id)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert box.left() == []


@pytest.mark.parametrize(
    ("terminal", "flags", "words"),
    [
        (True, [], "cannot allocate tty if runc will detach without setting console socket"),
        (False, ["--console-socket", "x"], "cannot use console socket if runc will not detach"),
    ],
)
def test_socket_and_terminal_go_together(
    box: Box, terminal: bool, flags: list[str], words: str
) -> None:
    box.process["terminal"] = terminal
    box.write()
    done = box.call("create", "--bundle", str(box.bundle), *flags, box.id)
    assert done.code == 1
    assert words in done.err


def test_a_terminal_needs_a_devpts(box: Box) -> None:
    box.unmount("/dev/pts")
    box.process["terminal"] = True
    box.write()
    with listening(box.place / "console") as server:
        flags = ("--bundle", str(box.bundle), "--console-socket", str(box.place / "console"))
        done = box.call("create", *flags, box.id)
        del server
    assert done.code == 1
    assert "devpts" in done.err
    assert box.left() == []


@pytest.mark.requires("strace")
def test_the_pty_is_opened_by_no_name(box: Box) -> None:
    """CVE-2025-52565: what lies at /dev/pts/N is the container's to choose."""
    log = box.place / "trace"
    box.command = traced(box.command, "trace=%file,ioctl,openat2", log=str(log), apart=True)
    with created(box, "/bin/true"):
        until(lambda: "TIOCGPTPEER" in read(log))
    lines = read(log).splitlines()
    opened = [line for line in lines if '"/dev/pts/' in line and "O_RDWR" in line]
    assert [line for line in opened if "ptmx" not in line] == []


# ---------------------------------------------------------------- hostile consoles: T-FS5


@pytest.mark.parametrize("shape", ["absent", "file", "directory", "fifo", "real directory", "loop"])
@pytest.mark.parametrize("mounted", [True, False], ids=["tmpfs", "bare"])
@pytest.mark.parametrize("readonly", [False, True], ids=["", "ro"])
def test_a_hostile_console(
    box: Box, canary: Path, shape: str, mounted: bool, readonly: bool
) -> None:
    console = box.rootfs / "dev/console"
    targets = {"absent": canary / "new", "file": canary / "console", "directory": canary / "sub"}
    if shape in targets:
        console.symlink_to(targets[shape])
    elif shape == "fifo":
        os.mkfifo(console)
    elif shape == "loop":
        console.symlink_to("console")
    else:
        console.mkdir()
    if not mounted:
        box.unmount("/dev")
        (box.rootfs / "dev/pts").mkdir()
        entry = {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
        box.config["mounts"].append({**entry, "options": ["newinstance", "ptmxmode=0666"]})
    box.config["root"]["readonly"] = readonly
    box.process.update(terminal=True, args=["/bin/sh", "-c", "stat -c '%F %t' /dev/console"])
    box.write()
    path = box.place / "console"
    with host_same(canary), listening(path) as server:
        words = ("create", "--bundle", str(box.bundle), "--console-socket", str(path), box.id)
        done = box.call(*words)
        if done.code == 0:
            master, _ = receive(server)
            box.start()
            assert b"character special file 88" in read_until(master, b"\n")
            os.close(master)
            box.delete("--force")
    assert box.left() == []


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
def test_streams_that_are_the_null_device(box: Box, canary: Path, uid: int, terminal: bool) -> None:
    """T-FS4, CVE-2026-88265: the image's /dev/null leads elsewhere; the host's keeps its owner."""
    (box.rootfs / "dev/null").symlink_to(canary / "null")
    box.unmount("/dev")
    (box.rootfs / "dev/pts").mkdir()
    box.process["user"] = {"uid": uid, "gid": uid}
    with host_same(canary, "/dev/null"), open("/dev/null", "r+") as null:
        box.process["args"] = ["/bin/true"]
        streams = {"stdin": null, "stdout": null, "stderr": null}
        if terminal:
            box.process["terminal"] = True
            box.mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666", kind="devpts")
        box.run(**streams)
    assert box.left() == []


def test_only_pipes_and_terminals_change_their_owner(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    out = box.place / "out"
    with open(out, "w+") as stdout:
        good(box.run(stdout=stdout))
    assert out.stat().st_uid == 0
    reader, writer = os.pipe()
    try:
        good(box.run(stdout=writer))
        assert os.fstat(writer).st_uid == 1000
    finally:
        os.close(reader)
        os.close(writer)


# ---------------------------------------------------------------- in the foreground


def test_run_in_a_terminal(box: Box) -> None:
    script = "tty; read line; echo got $line; exit 7"
    box.process.update(terminal=True, args=["/bin/sh", "-c", script])
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words) as (master, process):
        assert b"/dev/pts/0" in read_until(master, b"/dev/pts/0")
        os.write(master, b"hello\r")
        assert b"got hello" in read_until(master, b"got hello")
        assert process.wait(LIMIT) == 7


def test_lines_in_a_pipe_end_as_they_were_written(box: Box) -> None:
    """As with runc: what reads the output, `grep -x` say, sees no terminal's \\r."""
    box.process.update(terminal=True, args=["/bin/sh", "-c", "echo one; echo two"])
    assert good(box.run()).out == "one\ntwo\n"
    box.delete("--force")
    box.process["terminal"] = False
    box.up()
    assert good(box.exec("/bin/echo", "three", flags=["--tty"])).out == "three\n"


def test_the_size_follows(box: Box) -> None:
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.02; done"
    (box.rootfs / "bin/stty").symlink_to("busybox")
    box.process.update(terminal=True, args=["/bin/sh", "-c", script])
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words, (30, 100)) as (master, process):
        assert b"30 100" in read_until(master, b"30 100")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        assert b"40 120" in read_until(master, b"40 120")


def test_exec_in_a_terminal(box: Box) -> None:
    box.up()
    words = box.words("exec", "--tty", box.id, "/bin/sh", "-c", "tty; exit 5")
    with in_a_terminal(words) as (master, process):
        assert b"/dev/pts/0" in read_until(master, b"/dev/pts/0")
        assert process.wait(LIMIT) == 5


def test_a_process_that_reads_nothing_holds_nobody(box: Box) -> None:
    """The caller's signals go on, and its end is noticed, with input that it has not taken."""
    box.up()
    (box.place / "input").write_bytes(b"x\n" * 100_000)
    # No word at the terminal: it would stand somewhere in the echo of the input.
    script = "trap 'exit 7' TERM; touch /vol/up; while :; do sleep 0.1; done"
    words = box.words("exec", "--tty", box.id, "/bin/sh", "-c", script)
    with (
        open(box.place / "input") as file,
        started(words, stdin=file, stdout=subprocess.DEVNULL) as process,
    ):
        until((box.rootfs / "vol/up").exists)
        process.terminate()
        assert process.wait(LIMIT) == 7


def test_the_callers_terminal_is_as_before(box: Box) -> None:
    box.process.update(terminal=True, args=["/bin/sh", "-c", "echo r; read x"])
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words) as (master, process):
        before = termios.tcgetattr(master)
        read_until(master, b"r\r\n")
        assert termios.tcgetattr(master) != before  # raw
        os.write(master, b"\r")
        process.wait(LIMIT)
        assert termios.tcgetattr(master) == before


def test_nothing_is_typed_for_the_caller(box: Box) -> None:
    """T-TT1: as plain streams its terminal is not the controlling one of the payload."""
    box.process["args"] = ["/probe", "terminal"]
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words) as (master, process):
        text = read_until(master, b"}").decode()
        process.wait(LIMIT)
        found = json.loads(text[text.index("{") : text.index("}") + 1])
        assert found["tiocsti"] != 0
        assert found["tioclinux"] != 0
        assert found["tty"] != 0


def test_the_payload_survives_a_caller_that_goes(box: Box) -> None:
    """A created container outlives the terminal of whoever called create."""
    box.process["args"] = ["/bin/sleep", "600"]
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    with in_a_terminal(words) as (_master, process):
        assert process.wait(LIMIT) == 0
    box.start()
    until(lambda: box.state()["status"] == "running")
