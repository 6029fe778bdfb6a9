"""SCMP_ACT_NOTIFY: the listener and the container's state come to an agent, which answers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, good, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime import Box

pytestmark = [
    pytest.mark.requires("root", "programs", "seccomp"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64"),
]

# include/uapi/linux/seccomp.h
NOTIF = struct.Struct("=QIIiIQ6Q")
RESPONSE = struct.Struct("=QqiI")
RECV, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
MKDIR = {83, 258}  # mkdir, mkdirat


class Agent(threading.Thread):
    """Answers: mkdir and mkdirat with an error, anything else goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.messages: list[dict[str, Any]] = []
        self.asked: list[tuple[int, int]] = []  # process, number of the call
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        self.reader, self.stop = os.pipe()
        self.fds: list[int] = []
        self.patience = 0.0  # seconds that an answer takes; less once it shall end
        self.hurry = threading.Event()
        self.leaves = False  # whether it lets go of each listener at once

    def run(self) -> None:
        listener = self.listener.fileno()
        while True:
            poller = select.poll()
            for one in (listener, self.reader, *self.fds):
                poller.register(one, select.POLLIN)
            for one, what in poller.poll():
                if one == self.reader:
                    return
                if one == listener:
                    self._meet()
                elif what & select.POLLIN:
                    self._answer(one)
                else:  # POLLHUP: all have ended. Before Linux 6.11, to receive would wait forever
                    self.fds.remove(one)
                    os.close(one)

    def _meet(self) -> None:
        with self.listener.accept()[0] as peer:
            text, fds, _, _ = socket.recv_fds(peer, 1 << 16, 4)
            while more := peer.recv(1 << 16):
                text += more
        if self.leaves:
            os.close(fds[0])
        else:
            self.fds += fds
        self.messages.append({**json.loads(text), "descriptors": len(fds)})

    def _answer(self, fd: int) -> None:
        request = bytearray(NOTIF.size)
        try:
            fcntl.ioctl(fd, RECV, request)
        except FileNotFoundError:
            return  # who asked was killed
        ident, pid, _, number, *_ = NOTIF.unpack(request)
        self.asked.append((pid, number))
        self.hurry.wait(self.patience)
        error, flags = (-errno.ENOMEDIUM, 0) if number in MKDIR else (0, CONTINUE)
        try:
            fcntl.ioctl(fd, SEND, bytearray(RESPONSE.pack(ident, 0, error, flags)))
        except FileNotFoundError:
            pass  # killed meanwhile

    def end(self) -> None:
        self.hurry.set()
        os.write(self.stop, b"x")
        self.join(LIMIT)
        assert not self.is_alive(), "the agent has not ended"  # its descriptors are still watched
        for fd in (*self.fds, self.reader, self.stop):
            os.close(fd)
        self.listener.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "agent")
    made.start()
    yield made
    made.end()


def notify(box: Box, place: Path, *names: str, nnp: bool = True, **more: Any) -> None:
    box.process["noNewPrivileges"] = nnp
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(place / "agent"),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": list(names), "action": "SCMP_ACT_NOTIFY"}],
        **more,
    }


either = pytest.mark.parametrize("nnp", [True, False])


@either
def test_the_agent_answers(box: Box, agent: Agent, tmp_path: Path, nnp: bool) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp, listenerMetadata="of the test")
    box.config["annotations"] = {"colour": "red"}
    box.process["args"] = ["/bin/sh", "-c", "mkdir /tmp/a; ls /tmp"]
    done = good(box.run())
    assert "No medium found" in done.err
    assert done.out == ""
    (message,) = agent.messages
    assert message["descriptors"] == 1
    assert message["fds"] == ["seccompFd"]
    assert message["metadata"] == "of the test"
    assert message["ociVersion"] == box.config["ociVersion"]
    state = message["state"]
    assert state["id"] == box.id
    assert state["status"] == "creating"
    assert state["pid"] == message["pid"] > 0
    assert state["bundle"] == str(box.bundle)
    assert state["annotations"] == {"colour": "red"}
    assert {number for _, number in agent.asked} <= MKDIR


@either
def test_created_and_started_later(box: Box, agent: Agent, tmp_path: Path, nnp: bool) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp)
    box.process["args"] = ["/bin/mkdir", "/tmp/a"]
    box.create()
    (message,) = until(lambda: agent.messages)  # which the agent reads in its own time
    assert message["pid"] == box.pid
    assert "metadata" not in message
    assert not agent.asked
    box.start()
    until(lambda: agent.asked)
    assert agent.asked[0][0] == message["pid"]


@either
def test_create_waits_for_an_agent_that_takes_its_time(
    box: Box, agent: Agent, tmp_path: Path, nnp: bool
) -> None:
    """What it leaves is no interpreter: an exec could look at the host's (CVE-2019-5736)."""
    agent.patience = 0.3
    notify(box, tmp_path, "execveat", nnp=nnp)
    box.process["args"] = ["/bin/true"]
    box.create()
    assert os.readlink(f"/proc/{box.pid}/exe").startswith("/memfd:")
    assert len(agent.asked) == 1
    box.start()


@either
def test_create_fails_when_the_agent_has_left(
    box: Box, agent: Agent, tmp_path: Path, nnp: bool
) -> None:
    """And not `start`, which would find a container without a process."""
    agent.leaves = True
    notify(box, tmp_path, "execveat", nnp=nnp)
    box.write()
    done = box.call("create", "--bundle", str(box.bundle), box.id)
    assert done.code == 1
    assert "execveat(" in done.err
    assert "function not implemented" in done.err
    assert box.left() == []


def test_a_create_that_is_ended_while_the_agent_thinks(
    box: Box, agent: Agent, tmp_path: Path
) -> None:
    agent.patience = LIMIT
    notify(box, tmp_path, "execveat")
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    with started(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as create:
        until(lambda: agent.asked)
        create.terminate()
        assert create.wait(LIMIT) == 128 + signal.SIGTERM
    assert box.left() == []


@pytest.mark.usefixtures("agent")
@either
def test_a_created_container_ends_by_sigterm(box: Box, tmp_path: Path, nnp: bool) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp)
    box.create()
    good(box.call("kill", box.id, "TERM"))
    until(lambda: box.state()["status"] == "stopped")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("refused", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"])
def test_a_profile_without_rt_sigaction_lets_a_container_start(
    box: Box, tmp_path: Path, refused: str
) -> None:
    """The call by which the waiting process would end by signals is not made under it."""
    notify(box, tmp_path, "mkdir", "mkdirat")
    box.linux["seccomp"]["syscalls"].append({"names": ["rt_sigaction"], "action": refused})
    box.process["args"] = ["/bin/true"]
    box.create()
    box.start()


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("number", ["TERM", "HUP"])
def test_a_profile_without_rt_sigaction_lets_a_created_container_end(
    box: Box, tmp_path: Path, number: str
) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat")
    denied = {"names": ["rt_sigaction"], "action": "SCMP_ACT_ERRNO"}
    box.linux["seccomp"]["syscalls"].append(denied)
    box.create()
    good(box.call("kill", box.id, "USR1"))
    assert box.state()["status"] == "created"
    good(box.call("kill", box.id, number))
    until(lambda: box.state()["status"] == "stopped")


@either
def test_exec_has_a_listener_of_its_own(box: Box, agent: Agent, tmp_path: Path, nnp: bool) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp)
    pid = box.up()
    done = box.exec("/bin/mkdir", "/tmp/b")
    assert done.code == 1, done
    assert "No medium found" in done.err
    first, second = agent.messages
    assert first["state"]["status"] == "creating"
    assert second["state"]["status"] == "running"
    assert second["state"]["pid"] == pid


@either
def test_calls_that_the_runtime_makes_too(
    box: Box, agent: Agent, tmp_path: Path, nnp: bool
) -> None:
    """What is asked after the filter is loaded is answered as well; a hang would be ours."""
    notify(box, tmp_path, "execve", "openat", "open", "read", "close", "execveat", nnp=nnp)
    box.process["args"] = ["/bin/true"]
    good(box.run())
    assert agent.asked


@either
def test_a_hook_inside_is_under_the_filter(
    box: Box, agent: Agent, tmp_path: Path, nnp: bool
) -> None:
    """runc's own test: such a hook has three descriptors and that of its directory."""
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp)
    box.process["args"] = ["/bin/true"]
    box.hook("startContainer", "exec 2>&1; [ $(ls /proc/self/fd | wc -l) = 4 ] && ! mkdir /tmp/h")
    good(box.run())
    assert len(agent.messages) == 1
    assert agent.asked


@either
def test_without_an_agent_calls_fail(box: Box, agent: Agent, tmp_path: Path, nnp: bool) -> None:
    """Nobody but the agent holds the listener: with its end the calls fail instead of waiting."""
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp)
    box.process["args"] = ["/bin/sh", "-c", "read x; mkdir /tmp/a"]
    reader, writer = os.pipe()
    box.create(stdin=reader, stderr=(err := os.memfd_create("err")))
    box.start()
    agent.end()
    agent.end = lambda: None  # type: ignore[method-assign]
    os.write(writer, b"\n")
    until(lambda: b"implemented" in os.pread(err, 4096, 0))
    for fd in (reader, writer, err):
        os.close(fd)


def test_nobody_listens(box: Box, tmp_path: Path) -> None:
    notify(box, tmp_path, "mkdir")
    assert "failed to connect with seccomp agent" in box.refused()


def test_a_path_without_a_rule_is_not_looked_at(box: Box, tmp_path: Path) -> None:
    notify(box, tmp_path, "mkdir")
    box.linux["seccomp"]["syscalls"] = []
    box.process["args"] = ["/bin/true"]
    good(box.run())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"listenerPath": ""}, "SCMP_ACT_NOTIFY needs listenerPath"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "cannot be the default action"),
        (
            {"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]},
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    box: Box, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    notify(box, tmp_path, "mkdir")
    box.linux["seccomp"].update(change)
    assert word in box.refused()


@pytest.mark.parametrize("nnp", [True, False])
@pytest.mark.parametrize("flag", ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"])
def test_flags(box: Box, agent: Agent, tmp_path: Path, flag: str, nnp: bool) -> None:
    notify(box, tmp_path, "mkdir", "mkdirat", nnp=nnp, flags=[f"SECCOMP_FILTER_FLAG_{flag}"])
    box.process["args"] = ["/bin/sh", "-c", "! mkdir /tmp/a"]
    good(box.run())
    assert agent.asked
