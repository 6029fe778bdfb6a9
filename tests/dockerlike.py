"""What podman and Docker, who speak one command line, must both do with minirun.

Each case is a function of an engine, or of an engine and a container that sleeps; the tests of the
two call them, so that a case is written once.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from engines import IMAGE, cgroup_of, until, values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engines import Engine

QUIET = ("--network", "none")  # no bridge, and nothing of a firewall
GENTLY = ("--time", "120")  # seconds until `stop` kills
HEALTH = ("--health-cmd", "test -e /well", "--health-timeout", "120s")
LIMITS = ("--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5", "--pids-limit", "20")
LIMITED = {
    "memory.max": str(64 << 20),
    "memory.swap.max": str(32 << 20),
    "cpu.max": "50000 100000",
    "pids.max": "20",
}


@contextlib.contextmanager
def running(engine: Engine, *options: str, command: str = "sleep 1000") -> Iterator[str]:
    """A container, by its ID; it goes with the block."""
    words = command.split(" ", 2)
    cid = engine("run", "--detach", *QUIET, *options, IMAGE, *words)
    try:
        yield cid
    finally:
        engine(*engine.remove, cid)


def inspect(engine: Engine, cid: str, what: str) -> str:
    return engine("inspect", "--format", f"{{{{{what}}}}}", cid)


def pid_of(engine: Engine, cid: str) -> str:
    return inspect(engine, cid, ".State.Pid")


def sh(engine: Engine, script: str, *options: str) -> str:
    """Run a shell script in a container of its own, which must succeed; return its output."""
    return engine("run", "--rm", *QUIET, *options, IMAGE, "sh", "-c", script)


# ---------------------------------------------------------------- the cases


def streams_and_status(engine: Engine) -> None:
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


def a_terminal(engine: Engine, size: tuple[int, int] = (24, 80)) -> str:
    shell = engine.on_terminal(
        "run", "--rm", "-it", *QUIET, IMAGE, "sh", typed="tty; stty size; exit 4\n", size=size
    )
    assert "/dev/pts/0" in shell.output and shell.status == 4, shell.output
    return shell.output


def exec_statuses_users_and_a_terminal(engine: Engine, cid: str) -> None:
    code = "echo $(id -un) $(pwd) $A"
    told = engine("exec", "-u", "nobody", "-w", "/tmp", "-e", "A=b", cid, "sh", "-c", code)
    assert told == "nobody /tmp b"
    assert engine.call("exec", cid, "sh", "-c", "exit 9").returncode == 9
    assert engine.call("exec", cid, "/etc/passwd").returncode == 126
    assert engine.call("exec", cid, "no-such-program").returncode in (126, 127)
    shell = engine.on_terminal("exec", "-it", cid, "sh", typed="tty; exit 3\n")
    assert "/dev/pts/" in shell.output and shell.status == 3, shell.output


def pause_and_unpause(engine: Engine, cid: str) -> None:
    pid = pid_of(engine, cid)
    engine("pause", cid)
    assert values(pid, "cgroup.freeze") == ["1"]
    assert inspect(engine, cid, ".State.Status") == "paused"
    engine("unpause", cid)
    assert values(pid, "cgroup.freeze") == ["0"]


def logs_stop_start_and_kill(engine: Engine) -> None:
    trap = "sh -c trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    with running(engine, command=trap) as cid:
        until(lambda: engine("logs", cid) == "up", "the container is up")
        engine("stop", *GENTLY, cid)
        assert inspect(engine, cid, ".State.ExitCode") == "5"
        until(lambda: engine("logs", cid) == "up\nasked", "its last word is kept")
        engine("start", cid)
        engine("kill", cid)
        assert engine("wait", cid) == "137"


def files_and_processes(engine: Engine, cid: str, place: Path) -> None:
    """`cp` both ways, and `top`."""
    (place / "file").write_text("of the host\n")
    engine("cp", str(place / "file"), f"{cid}:/tmp/brought")
    assert engine("exec", cid, "cat", "/tmp/brought") == "of the host"
    engine("cp", f"{cid}:/etc/hostname", str(place / "fetched"))
    assert (place / "fetched").read_text().strip() == engine("exec", cid, "hostname")
    titles, *lines = engine("top", cid).splitlines()
    assert "PID" in titles and any("sleep 1000" in line for line in lines), lines


def limits_are(pid: str, **others: str) -> None:
    """The limits of LIMITS, but for `others`, are in the files of the process's cgroup."""
    wanted = LIMITED | {name.replace("_", "."): value for name, value in others.items()}
    assert dict(zip(wanted, values(pid, *wanted), strict=True)) == wanted


def scope_of(pid: str, *properties: str) -> dict[str, str]:
    """Return the name of a process's scope as `Id`, and what systemd says of its properties."""
    (unit,) = [part for part in str(cgroup_of(pid)).split("/") if part.endswith(".scope")]
    words = ["systemctl", "show", "--property", ",".join(("Id", *properties)), unit]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def what_flags_ask_for(engine: Engine, place: Path, *more: str) -> list[str]:
    """Mounts, devices, kernel parameters and limits.

    Returns the words of the umask, then of what /proc/1/status says of CapEff, NoNewPrivs and
    Seccomp, then of the AppArmor profile, if there is one.
    """
    (place / "here").write_text("of the host\n")
    code = (
        "cat /host/here; touch /host/no 2>/dev/null || echo read-only; touch /no 2>/dev/null"
        " || echo closed; touch /tmp/yes && echo open; df -k /dev/shm | tail -1 | awk '{print $2}';"
        " cat /proc/sys/kernel/msgmax; ulimit -n; stat -c '%t:%T' /dev/fd9; hostname; umask;"
        " grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/1/status; cat /proc/1/attr/current || :"
    )
    told = sh(
        engine,
        code,
        *("--volume", f"{place}:/host:ro", "--read-only", "--tmpfs", "/tmp"),
        *("--shm-size", "1m", "--sysctl", "kernel.msgmax=4096", "--ulimit", "nofile=99:99"),
        *("--device", "/dev/full:/dev/fd9", "--hostname", "inside"),
        *("--security-opt", "no-new-privileges", *more),
    )
    lines = told.splitlines()
    assert lines[:9] == [
        *("of the host", "read-only", "closed", "open"),
        *("1024", "4096", "99", "1:7", "inside"),
    ]
    return [word for line in lines[9:] for word in line.split()]


def privileges_that_flags_give(engine: Engine, everything: str, unmasked: str) -> None:
    """--privileged; and what takes the confinement off piece by piece."""
    code = "grep CapEff /proc/1/status; mount -t tmpfs x /mnt && echo mounted; test -w /proc/sys"
    assert sh(engine, code, "--privileged").split()[1:] == [everything, "mounted"]
    code = "grep -E '^(CapEff|Seccomp):' /proc/1/status; grep -c ' /proc/' /proc/self/mountinfo"
    pieces = ("--security-opt", "seccomp=unconfined", "--security-opt", unmasked)
    told = sh(engine, f"{code} || :", *pieces, "--cap-drop", "ALL", "--cap-add", "SYS_TIME")
    assert told.split() == ["CapEff:", "0000000002000000", "Seccomp:", "0", "0"]
