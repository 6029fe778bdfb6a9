"""Starts what is measured and waits for it, exactly: the clock, the processors' accounts, a limit.

This process adopts what its descendants leave behind (PR_SET_CHILD_SUBREAPER), as an engine does:
so a detached container's processes are its children, can be counted and waited for, and none
outlives a measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from typing import TYPE_CHECKING

import prctl
import psutil
from lib.bench.figures import Memory, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from resource import struct_rusage

CLONE_NEWNET = 0x40000000


class Failed(Exception):
    """A measured command did not do what it should: its last words, in one line."""


_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int, call: str) -> None:
    if status:
        number = ctypes.get_errno()
        raise Failed(f"{call}: {os.strerror(number)}")


def adopt_orphans() -> None:
    prctl.set_child_subreaper(True)


def new_network() -> tuple[int, int]:
    """Make a network namespace; give descriptors of the old one, where we stay, and of the new."""
    old = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
    new = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter_network(old)
    return old, new


def enter_network(descriptor: int) -> None:
    _check(_libc.setns(descriptor, CLONE_NEWNET), "setns(CLONE_NEWNET)")


def _cpu(usage: struct_rusage) -> float:
    return (usage.ru_utime + usage.ru_stime) * 1000


class Spawner:
    """Runs commands, none for longer than `limit` seconds, with `log` for what they say."""

    def __init__(self, limit: float, log: str) -> None:
        self.limit = limit
        self.log = log
        self.environment = {
            **{k: os.environ[k] for k in ("HOME", "TERM", "LANG", "TMPDIR") if k in os.environ},
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def spawn(self, command: Sequence[str]) -> int:
        """Start a command with nothing to read, in a process group of its own (no Ctrl-C there)."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
        ]
        return os.posix_spawn(
            command[0], list(command), self.environment, file_actions=actions, setpgroup=0
        )

    def run(self, command: Sequence[str]) -> Sample:
        """Run it to its end. Raises Failed if that is no success, or late."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.log, 0)
        began = time.perf_counter()
        pid = self.spawn(command)
        cpu = self.wait(pid, command)
        return Sample((time.perf_counter() - began) * 1000, cpu)

    def run_all(self, commands: Iterable[Sequence[str]], at_once: int) -> Sample:
        """Run all of them, so many at a time; the sample is of the whole."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.log, 0)
        waiting = list(reversed(list(commands)))
        running: dict[int, tuple[int, Sequence[str]]] = {}
        poll = select.poll()
        cpu = 0.0
        began = time.perf_counter()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    command = waiting.pop()
                    pid = self.spawn(command)
                    descriptor = os.pidfd_open(pid)
                    running[descriptor] = pid, command
                    poll.register(descriptor, select.POLLIN)
                ready = poll.poll(self.limit * 1000)
                if not ready:
                    raise Failed(f"nothing ended within {self.limit:.0f} s")
                for descriptor, _ in ready:
                    poll.unregister(descriptor)
                    pid, command = running.pop(descriptor)
                    os.close(descriptor)
                    cpu += self.wait(pid, command)
        finally:
            for descriptor in running:
                os.close(descriptor)
        return Sample((time.perf_counter() - began) * 1000, cpu)

    def wait(self, pid: int, command: Sequence[str], *, may_fail: bool = False) -> float:
        """Wait for a child; give its processor time and that of all it waited for."""
        if not _ended(pid, self.limit):
            raise Failed(f"{_words(command)} did not end within {self.limit:.0f} s")
        _, status, usage = os.wait4(pid, 0)
        if status and not may_fail:
            raise Failed(self._last_words(command, status))
        return _cpu(usage)

    def _last_words(self, command: Sequence[str], status: int) -> str:
        try:
            with open(self.log, errors="replace") as file:
                said = [line.strip() for line in file if line.strip()]
        except FileNotFoundError:
            said = []
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"signal {-code}"
        return f"{_words(command)}: {said[-1] if said else how}"


def _words(command: Sequence[str]) -> str:
    return os.path.basename(command[0])


def _ended(pid: int, limit: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(limit * 1000))
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- descendants


def descendants() -> set[int]:
    """All living processes below this one."""
    return {one.pid for one in psutil.Process().children(recursive=True) if _lives(one)}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def reap() -> float:
    """Take leave of the children that have ended; give the processor time that they used."""
    cpu = 0.0
    while True:
        try:
            pid, _, usage = os.wait3(os.WNOHANG)
        except ChildProcessError:
            return cpu
        if not pid:
            return cpu
        cpu += _cpu(usage)


def end_all(limit: float) -> bool:
    """End every process below this one; tell whether none is left."""
    until = time.monotonic() + limit
    while True:
        reap()
        left = descendants()
        if not left or time.monotonic() > until:
            return not left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def resident(pids: Iterable[int], group: int | None) -> Memory:
    """Add up what these processes hold; one that ends meanwhile holds nothing."""
    processes = pss = rss = 0
    for pid in pids:
        try:
            found = psutil.Process(pid).memory_full_info()
        except psutil.NoSuchProcess:
            continue
        processes += 1
        pss += found.pss
        rss += found.rss
    return Memory(processes, pss, rss, group)
