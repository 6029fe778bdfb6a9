"""What service managers and engines hand through: sockets, readiness, descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, Done, call, capabilities, good, host_same, report_of, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime import Box, Report

pytestmark = pytest.mark.requires("root", "programs")

# Sets LISTEN_PID to its own number, as a service manager does, and becomes the runtime.
ACTIVATED = """
import os, sys
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = sys.argv[1], str(os.getpid())
os.dup2(int(sys.argv[2]), 3)
os.set_inheritable(3, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def activated(box: Box, fd: int, count: int, *flags: str) -> Done:
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), *flags, box.id)
    starter = [sys.executable, "-ISc", ACTIVATED, str(count), str(fd)]
    return call([*starter, *words], LIMIT, pass_fds=(fd,))


def variables(report: Report) -> set[str]:
    return set(report["environ"].split("\0"))


# ---------------------------------------------------------------- LISTEN_FDS


def test_sockets_are_passed_on(box: Box, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        report = report_of(good(activated(box, listener.fileno(), 1)).out)
        assert report.fds[3]["ino"] == os.fstat(listener.fileno()).st_ino
    assert variables(report) >= {"LISTEN_FDS=1", "LISTEN_PID=1"}
    assert 4 not in report.fds


def test_the_configuration_does_not_contradict(box: Box) -> None:
    box.process["env"] += ["LISTEN_FDS=7", "LISTEN_PID=99"]
    with open(os.devnull) as file:
        report = report_of(good(activated(box, file.fileno(), 1)).out)
    found = report["environ"].split("\0")
    assert sorted(one for one in found if one.startswith("LISTEN_")) == [
        "LISTEN_FDS=1",
        "LISTEN_PID=1",
    ]


def test_sockets_of_another_process_are_not_ours(box: Box) -> None:
    box.process["args"] = ["/probe"]
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    report = report_of(good(box.run(env=environment)).out)
    assert not [one for one in variables(report) if one.startswith("LISTEN_")]


def test_a_socket_that_is_not_there_is_refused(box: Box) -> None:
    with open(os.devnull) as file:
        done = activated(box, file.fileno(), 40)
    assert done.code == 1
    assert "unable to stat preserved-fd" in done.err
    assert box.left() == []


# ---------------------------------------------------------------- NOTIFY_SOCKET


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "manager"))
        made.settimeout(LIMIT)
        yield made


def told(manager: socket.socket) -> str:
    """Receive a message as a service manager does, which closes the descriptors of a barrier."""
    text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    for fd in fds:
        os.close(fd)
    return text.decode().strip() + (" and a descriptor" if fds else "")


def notifying(box: Box, manager: socket.socket, *texts: str) -> dict[str, Any]:
    """Let the payload say that it is ready; return the options of a call that has a manager."""
    box.process["args"] = ["/probe", "notify", "STATUS=soon", *(texts or ("READY=1\nSTATUS=up",))]
    return {"env": {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}}


def test_readiness_reaches_the_manager(box: Box, manager: socket.socket) -> None:
    """In the foreground the manager's process is the runtime, which lives as long as it."""
    options = notifying(box, manager)
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with started(words, stdin=subprocess.DEVNULL, **options) as process:
        assert told(manager) == "READY=1\nSTATUS=up"
        assert told(manager) == f"MAINPID={process.pid}"
        good(box.call("kill", box.id, "KILL"))
        assert process.wait(LIMIT) == 137


@pytest.mark.parametrize("detached", [True, False])
def test_the_runtime_waits_for_readiness(box: Box, manager: socket.socket, detached: bool) -> None:
    options = notifying(box, manager)
    if detached:
        box.write()
        words = box.words("run", "--bundle", str(box.bundle), "--detach", box.id)
    else:
        box.create(**options)
        words = box.words("start", box.id)
    with started(words, stdin=subprocess.DEVNULL, **options) as process:
        assert told(manager) == "READY=1\nSTATUS=up"
        assert told(manager) == f"MAINPID={box.pid}"
        assert process.poll() is None  # until the manager has read the barrier
        assert told(manager) == "BARRIER=1 and a descriptor"
        assert process.wait(LIMIT) == 0
    assert box.state()["status"] == "running"
    good(box.delete("--force"))
    assert box.left() == []


HOSTILE = (
    "MAINPID=1",
    "READY=no\nMAINPID=1",
    "READY=1\nMAINPID=1\nNOTIFYACCESS=all\nSTATUS=up\nFDSTORE=1\nX-READY=1\nWATCHDOG_USEC=1",
)


def test_a_container_says_no_more_than_that_it_is_ready(box: Box, manager: socket.socket) -> None:
    """What the runtime passes on is root's word: MAINPID would name any process of the host."""
    options = notifying(box, manager, *HOSTILE)
    box.create(**options)
    with started(box.words("start", box.id), stdin=subprocess.DEVNULL, **options) as start:
        assert told(manager) == "READY=1\nSTATUS=up"
        assert told(manager) == f"MAINPID={box.pid}"
        assert told(manager) == "BARRIER=1 and a descriptor"
        assert start.wait(LIMIT) == 0


def test_a_container_does_not_keep_the_manager_busy(box: Box, manager: socket.socket) -> None:
    options = notifying(box, manager, *["READY=1"] * 20)
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    with started(words, stdin=subprocess.DEVNULL, **options) as process:
        assert [told(manager), told(manager)] == ["READY=1", f"MAINPID={process.pid}"]
        good(box.call("kill", box.id, "KILL"))
        assert process.wait(LIMIT) == 137
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_the_container_has_a_socket_of_its_own(box: Box, manager: socket.socket) -> None:
    options = notifying(box, manager)
    box.process["args"] = ["/probe"]
    report = report_of(good(box.run(**options)).out)
    assert "NOTIFY_SOCKET=/run/notify/notify.sock" in variables(report)
    assert {"ro", "nosuid", "nodev", "noexec"} <= report.mounts["/run/notify"].options


def test_a_service_that_ends_is_not_waited_for(box: Box, manager: socket.socket) -> None:
    options = notifying(box, manager)
    box.process["args"] = ["/bin/true"]
    good(box.run("--detach", **options))


@pytest.mark.parametrize("covered", [False, True])
def test_what_a_container_leaves_there_is_removed(
    box: Box, manager: socket.socket, canary: Path, covered: bool
) -> None:
    """With CAP_SYS_ADMIN, and no user namespace, its root can make the mount writable."""
    caps = capabilities("CAP_SYS_ADMIN", "CAP_LINUX_IMMUTABLE", "CAP_DAC_OVERRIDE")
    script = f"""
        mount -o remount,bind,rw none /run/notify && cd /run/notify && mkdir -p a/b/c '.. x' &&
        touch a/b/file a/kept && ln -s {canary} link && ln -s {canary} a/b/link && mknod p p &&
        busybox chattr +i a/kept && busybox chattr +i a/b; rm -f notify.sock
        ln -s {canary}/null notify.sock
        {"mount -t tmpfs none a/b/c && mount -t tmpfs none /run/notify" if covered else ""}
        touch /vol/done; exec sleep 600
    """
    box.process.update(args=["/bin/sh", "-c", script], capabilities=caps)
    options: dict[str, Any] = {"env": {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}}
    with host_same(canary):
        box.create(**options)
        words = box.words("start", box.id)
        with started(words, stdin=subprocess.DEVNULL, **options) as start:
            until((box.rootfs / "vol/done").exists)
            assert (box.root / box.id / "notify/a/b/c").is_dir()
            good(box.delete("--force"))
            start.wait(LIMIT)
        assert box.left() == []


def test_the_notify_socket_is_born_with_its_mode(box: Box, manager: socket.socket) -> None:
    """Whatever the caller's mask; no chmod by its name, which a link could lead astray."""
    box.process.update(args=["/bin/sh", "-c", "stat -c %a $NOTIFY_SOCKET"])
    good(box.run(env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()}))
    box.process.update(user={"uid": 1000, "gid": 1000})
    box.command = ["sh", "-c", 'umask 777; exec "$0" "$@"', *box.command]
    done = box.run(env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()})
    assert done.out == "777\n"


# ---------------------------------------------------------------- --pidfd-socket


class Receiver:
    """A socket that takes a descriptor of a process."""

    def __init__(self, place: Path) -> None:
        self.path = str(place / "pidfd")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(self.path)
        self.sock.listen()
        self.sock.settimeout(LIMIT)

    def pid(self) -> tuple[bytes, int]:
        with self.sock.accept()[0] as peer:
            text, fds, _, _ = socket.recv_fds(peer, 4096, 2)
        with open(f"/proc/self/fdinfo/{fds[0]}") as file:
            found = [line.split()[1] for line in file if line.startswith("Pid:")]
        os.close(fds[0])
        return text, int(found[0])


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path)
    yield made
    made.sock.close()


def test_a_pidfd_of_the_first_process(box: Box, receiver: Receiver) -> None:
    pid = box.up("--pidfd-socket", receiver.path)
    assert receiver.pid() == (b"standard", pid)


def test_a_pidfd_of_a_run(box: Box, receiver: Receiver) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    good(box.run("--detach", "--pidfd-socket", receiver.path))
    assert receiver.pid() == (b"standard", box.pid)


def test_a_pidfd_of_exec(box: Box, receiver: Receiver, tmp_path: Path) -> None:
    box.up()
    file = tmp_path / "pid"
    flags = ("--detach", "--pid-file", str(file), "--pidfd-socket", receiver.path)
    good(box.exec("/bin/sleep", "600", flags=flags))
    assert receiver.pid() == (b"setns", int(file.read_text()))


def test_nobody_wants_the_pidfd(box: Box, tmp_path: Path) -> None:
    error = box.refused(flags=("--pidfd-socket", str(tmp_path / "none")))
    assert "outside.connect_pidfd_socket" in error
