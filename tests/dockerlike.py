"""What Docker and podman are asked alike, by one command line, with one outcome.

Each function is a test's body; `engine` is either of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engines import IMAGE, MIB, until, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

QUIET = ("--network", "none")  # no bridge, and nothing of a firewall
LIMITS = ("--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5", "--pids-limit", "20")
LIMITED = [str(64 * MIB), str(32 * MIB), "50000 100000", "20", "0"]
FILES = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "cpuset.cpus")
_TELL = ("sh", "-c", "echo $(id -un) $(pwd) $A")
_TRAP = "sh -c trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done"


@contextlib.contextmanager
def running(engine: Engine, *options: str, command: str = "sleep 1000") -> Iterator[str]:
    """A container, by its ID; it goes with the block."""
    cid = engine("run", "--detach", *QUIET, *options, IMAGE, *command.split(" ", 2))
    try:
        yield cid
    finally:
        engine.call("kill", cid)  # podman would ask it to stop first, for ten seconds
        engine("rm", "--force", cid)


def inspect(engine: Engine, cid: str, what: str) -> str:
    return engine("inspect", "--format", f"{{{{{what}}}}}", cid)


def run_passes_streams_and_status(engine: Engine) -> None:
    done = engine.call(
        "run", "--rm", "-i", *QUIET, IMAGE, "sh", "-c", "cat; echo err >&2; exit 7", text="typed\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("typed\n", "err\n", 7)


def statuses_tell_who_failed(engine: Engine) -> None:
    def status(*args: str) -> int:
        return engine.call("run", "--rm", *QUIET, *args).returncode

    assert status("--no-such-flag", IMAGE) == 125
    assert status(IMAGE, "/etc/passwd") == 126
    assert status(IMAGE, "no-such-program") == 127


def exec_has_statuses_users_and_a_terminal(engine: Engine, *, missing: tuple[int, ...]) -> None:
    """`missing`: the statuses that may tell that there is no such program."""
    with running(engine) as cid:
        told = engine("exec", "-u", "nobody", "-w", "/tmp", "-e", "A=b", cid, *_TELL)
        assert told == "nobody /tmp b"
        assert engine.call("exec", cid, "sh", "-c", "exit 9").returncode == 9
        assert engine.call("exec", cid, "/etc/passwd").returncode == 126
        assert engine.call("exec", cid, "no-such-program").returncode in missing
        shell = engine.on_terminal("exec", "-it", cid, "sh", typed="tty; exit 3\n")
        assert "/dev/pts/" in shell.output and shell.status == 3, shell.output


def stop_start_kill_and_logs(engine: Engine) -> None:
    with running(engine, command=_TRAP) as cid:
        until(lambda: engine("logs", cid) == "up", "the container is up")
        engine("stop", cid)
        assert inspect(engine, cid, ".State.ExitCode") == "5"
        assert engine("logs", cid) == "up\nasked"
        engine("start", cid)
        engine("kill", cid)
        assert engine("wait", cid) == "137"


def pause_and_unpause(engine: Engine) -> None:
    with running(engine) as cid:
        pid = inspect(engine, cid, ".State.Pid")
        engine("pause", cid)
        assert values(pid, "cgroup.freeze") == ["1"]
        assert inspect(engine, cid, ".State.Status") == "paused"
        engine("unpause", cid)
        assert values(pid, "cgroup.freeze") == ["0"]
