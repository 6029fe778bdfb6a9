"""Docker with minirun as its runtime: a dockerd of its own, as scripts/engines configures it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import dockerlike
import pytest
from dockerlike import FILES, LIMITED, LIMITS, QUIET, inspect, running
from engines import (
    IMAGE,
    MIB,
    Engine,
    configured,
    daemon,
    docker_archive,
    is_ours,
    until,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs", "docker")]


@pytest.fixture(scope="module")
def docker(base: Path) -> Iterator[Engine]:
    place = base / "docker"
    place.mkdir()
    file = configured("docker", place / "etc", "--default")
    socket = f"unix://{place}/socket"
    settings = {
        "data-root": str(place / "data"),
        "exec-root": str(place / "run"),
        "pidfile": str(place / "pid"),
        "hosts": [socket],
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    engine = Engine("docker", "--host", socket, environment={"DOCKER_BUILDKIT": "0"})
    with contextlib.ExitStack() as stack:
        words = ["dockerd", "--config-file", str(file)]
        ready = lambda: engine.call("version").returncode == 0  # noqa: E731
        stack.enter_context(daemon(words, place / "log", ready))
        engine("load", "--quiet", "--input", str(docker_archive(place / "images.tar")))
        engine("run", "--rm", *QUIET, IMAGE, "true")  # what is made once is there from now on
        yield engine


def test_the_default_runtime_is_minirun(docker: Engine) -> None:
    assert docker("info", "--format", "{{.DefaultRuntime}}") == "minirun"
    state = Path(docker("info", "--format", "{{.DockerRootDir}}")).parent / "run/runtime-runc"
    with running(docker) as cid:
        assert is_ours(state / "moby", cid)


def test_run_passes_streams_and_status(docker: Engine) -> None:
    dockerlike.run_passes_streams_and_status(docker)


def test_statuses_tell_who_failed(docker: Engine) -> None:
    dockerlike.statuses_tell_who_failed(docker)


def test_exec_has_statuses_users_and_a_terminal(docker: Engine) -> None:
    dockerlike.exec_has_statuses_users_and_a_terminal(docker, missing=(126, 127))


def test_run_on_a_terminal(docker: Engine) -> None:
    shell = docker.on_terminal("run", "--rm", "-it", *QUIET, IMAGE, "sh", typed="tty; exit 4\n")
    assert "/dev/pts/0" in shell.output and shell.status == 4, shell.output


def test_limits_and_update_and_stats(docker: Engine) -> None:
    with running(docker, *LIMITS, "--cpuset-cpus", "0") as cid:
        pid = inspect(docker, cid, ".State.Pid")
        assert values(pid, *FILES) == LIMITED
        docker("update", "--memory", "80m", "--memory-swap", "80m", "--cpus", "1", cid)
        assert values(pid, *FILES) == [str(80 * MIB), "0", "100000 100000", "20", "0"]
        shown = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", cid))
        assert shown["PIDs"] == "1" and shown["MemUsage"].endswith("/ 80MiB")


def test_what_runs_out_of_memory_is_told(docker: Engine) -> None:
    command = "sh -c tail /dev/zero; exit 3"
    with running(docker, "--memory", "16m", "--memory-swap", "16m", command=command) as cid:
        docker("wait", cid)
        assert inspect(docker, cid, ".State.OOMKilled") == "true"


def test_pause_and_unpause(docker: Engine) -> None:
    dockerlike.pause_and_unpause(docker)


def test_stop_kill_and_logs(docker: Engine) -> None:
    dockerlike.stop_start_kill_and_logs(docker)


def test_a_failing_container_is_started_again(docker: Engine) -> None:
    with running(docker, "--restart", "on-failure:2", command="sh -c exit 3") as cid:
        until(lambda: inspect(docker, cid, ".RestartCount") == "2", "two restarts")
        until(lambda: inspect(docker, cid, ".State.Status") == "exited", "the end of it")
        assert inspect(docker, cid, ".State.ExitCode") == "3"


def test_a_healthcheck_is_an_exec(docker: Engine) -> None:
    check = ("--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1")
    with running(docker, *check) as cid:
        until(lambda: inspect(docker, cid, ".State.Health.Status") == "unhealthy", "unhealthy")
        docker("exec", cid, "touch", "/well")
        until(lambda: inspect(docker, cid, ".State.Health.Status") == "healthy", "healthy")


def test_security_of_the_default_profile(docker: Engine) -> None:
    code = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/1/status; cat /proc/1/attr/current"
    told = docker(
        "run", "--rm", *QUIET, "--security-opt", "no-new-privileges", IMAGE, "sh", "-c", code
    )
    fields = told.split()
    assert fields[:6] == ["CapEff:", "00000000a80425fb", "NoNewPrivs:", "1", "Seccomp:", "2"]
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        assert fields[6:] == ["docker-default", "(enforce)"]


def test_mounts_devices_and_kernel_parameters(docker: Engine, place: Path) -> None:
    (place / "here").write_text("of the host\n")
    code = (
        "cat /host/here; touch /host/no 2>/dev/null || echo read-only; touch /no 2>/dev/null"
        " || echo closed; touch /tmp/yes && echo open; df -k /dev/shm | tail -1 | awk '{print $2}';"
        " cat /proc/sys/kernel/msgmax; ulimit -n; stat -c '%t:%T' /dev/fd9; hostname"
    )
    options = ("--volume", f"{place}:/host:ro", "--read-only", "--tmpfs", "/tmp")
    more = ("--shm-size", "1m", "--sysctl", "kernel.msgmax=4096", "--ulimit", "nofile=99:99")
    last = ("--device", "/dev/full:/dev/fd9", "--hostname", "inside")
    told = docker("run", "--rm", *QUIET, *options, *more, *last, IMAGE, "sh", "-c", code)
    assert told.splitlines() == [
        *("of the host", "read-only", "closed", "open"),
        *("1024", "4096", "99", "1:7", "inside"),
    ]


def test_build_from_scratch(docker: Engine, place: Path) -> None:
    import os
    import shutil

    shutil.copy(os.environ["MINIRUN_ROOTFS_TARBALL"], place / "root.tar.gz")
    (place / "Dockerfile").write_text(
        "FROM scratch\nADD root.tar.gz /\nRUN echo built > /built && id -u\n"
        'USER nobody\nCMD ["sh", "-c", "cat /built; id -un"]\n'
    )
    docker("build", "--network", "none", "--tag", "localhost/built", str(place))
    try:
        assert docker("run", "--rm", *QUIET, "localhost/built") == "built\nnobody"
    finally:
        docker("rmi", "--force", "localhost/built")
