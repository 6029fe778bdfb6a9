"""Docker with minirun as its runtime: a dockerd of its own, as scripts/engines configures it.

It is as Debian's would be: containers in scopes of systemd's, a bridge, rules in the firewall. So
that nothing of these stays it has a network namespace of its own.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import dockerlike
import pytest
from dockerd import ADDRESS, Docker
from dockerlike import HEALTH, QUIET, inspect, pid_of, running, scope_of
from engines import IMAGE, MIB, Engine, is_ours, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs", "docker")]


@pytest.fixture(scope="module")
def dockerd(base: Path) -> Iterator[Docker]:
    made = Docker(base / "docker")
    try:
        with made.daemon(experimental=True):
            made.bring_images()
            made.docker("run", "--rm", "--network", "host", IMAGE, "true")  # its mount stays
            yield made
    finally:
        made.unmount()


@pytest.fixture
def docker(dockerd: Docker) -> Engine:
    return dockerd.docker


@pytest.fixture(scope="module")
def one(dockerd: Docker) -> Iterator[str]:
    """A container with limits that sleeps below an init."""
    limits = (*dockerlike.LIMITS, "--cpuset-cpus", "0")
    with running(dockerd.docker, *limits, "--init", "--ipc", "shareable") as cid:
        yield cid


def test_the_default_runtime_is_minirun(dockerd: Docker, one: str) -> None:
    assert dockerd.docker("info", "--format", "{{.DefaultRuntime}}") == "minirun"
    assert is_ours(dockerd.state, one)


def test_run_passes_streams_and_status(docker: Engine) -> None:
    dockerlike.streams_and_status(docker)


def test_statuses_tell_who_failed(docker: Engine) -> None:
    dockerlike.statuses_tell_who_failed(docker)


def test_exec_has_statuses_users_and_a_terminal(docker: Engine, one: str) -> None:
    dockerlike.exec_statuses_users_and_a_terminal(docker, one)


def test_run_on_a_terminal(docker: Engine) -> None:
    dockerlike.a_terminal(docker)


def test_files_go_in_and_out_and_processes_are_listed(
    docker: Engine, one: str, place: Path
) -> None:
    dockerlike.files_and_processes(docker, one, place)
    assert "docker-init" in docker("top", one)


def test_limits_are_those_of_a_scope_and_are_updated(docker: Engine, one: str) -> None:
    pid = pid_of(docker, one)
    dockerlike.limits_are(pid, cpuset_cpus="0")
    shown = scope_of(pid, "Slice", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "AllowedCPUs")
    assert shown == {
        "Id": f"docker-{one}.scope",
        "Slice": "system.slice",
        "MemoryMax": str(64 * MIB),
        "TasksMax": "20",
        "CPUQuotaPerSecUSec": "500ms",
        "AllowedCPUs": "0",
    }
    docker("update", "--memory", "80m", "--memory-swap", "80m", "--cpus", "1", one)
    changed = {"memory_max": str(80 * MIB), "memory_swap_max": "0", "cpu_max": "100000 100000"}
    dockerlike.limits_are(pid, **changed)
    assert scope_of(pid, "MemoryMax")["MemoryMax"] == str(80 * MIB)
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", one))
    assert stats["PIDs"] == "2" and stats["MemUsage"].endswith("/ 80MiB")


def test_what_runs_out_of_memory_is_told(docker: Engine) -> None:
    # Docker forgets what it learns of after the end.
    command = "sh -c tail /dev/zero; sleep 2; exit 3"
    with running(docker, "--memory", "16m", "--memory-swap", "16m", command=command) as cid:
        docker("wait", cid)
        assert inspect(docker, cid, ".State.OOMKilled") == "true"


def test_pause_and_unpause(docker: Engine, one: str) -> None:
    dockerlike.pause_and_unpause(docker, one)


def test_namespaces_of_another_and_of_the_host(dockerd: Docker, docker: Engine, one: str) -> None:
    names = ("pid", "ipc", "uts", "net")
    look = f"for name in {' '.join(names)}; do readlink /proc/self/ns/$name; done; cat /proc/1/comm"

    def namespaces(pid: str | int) -> list[str]:
        return [os.readlink(f"/proc/{pid}/ns/{name}") for name in names]

    shared = (f"--pid=container:{one}", f"--ipc=container:{one}", f"--network=container:{one}")
    told = docker("run", "--rm", *shared, IMAGE, "sh", "-c", look).split()
    theirs = namespaces(pid_of(docker, one))
    assert [told[0], told[1], told[3], told[4]] == [*theirs[:2], theirs[3], "docker-init"]
    assert told[2] == theirs[2] or told[2] not in namespaces(dockerd.pid)
    host = ("--pid=host", "--ipc=host", "--uts=host", "--network=host")
    told = docker("run", "--rm", *host, IMAGE, "sh", "-c", look).split()
    assert told == [*namespaces(dockerd.pid), Path("/proc/1/comm").read_text().strip()]


def test_logs_stop_start_and_kill(docker: Engine) -> None:
    dockerlike.logs_stop_start_and_kill(docker)


def test_a_failing_container_is_started_again(docker: Engine) -> None:
    with running(docker, "--restart", "on-failure:1", command="sh -c exit 3") as cid:
        until(lambda: inspect(docker, cid, ".RestartCount") == "1", "a restart")
        until(lambda: inspect(docker, cid, ".State.Status") == "exited", "the end of it")
        assert inspect(docker, cid, ".State.ExitCode") == "3"


def test_a_healthcheck_is_an_exec(docker: Engine) -> None:
    with running(docker, *HEALTH, "--health-interval", "1s", "--health-retries", "1") as cid:
        until(lambda: inspect(docker, cid, ".State.Health.Status") == "unhealthy", "unhealthy")
        docker("exec", cid, "touch", "/well")
        until(lambda: inspect(docker, cid, ".State.Health.Status") == "healthy", "healthy")


def test_what_flags_ask_for_is_there(docker: Engine, place: Path) -> None:
    told = dockerlike.what_flags_ask_for(docker, place)
    security = ["CapEff:", "00000000a80425fb", "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert told[:7] == ["0022", *security]
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        assert told[7:] == ["docker-default", "(enforce)"]


def test_privileges_that_flags_give(docker: Engine) -> None:
    # All that Docker 20.10 knows of: those up to CAP_AUDIT_READ.
    dockerlike.privileges_that_flags_give(docker, "0000003fffffffff", "systempaths=unconfined")


def test_a_published_port_is_reached(dockerd: Docker, docker: Engine) -> None:
    """By loopback it is a proxy of the daemon's that answers, by another address the firewall."""
    serve = ("sh", "-c", "while :; do hostname | nc -l -p 80; done")
    words = ("--publish", "8080:80", "--hostname", "served", IMAGE, *serve)
    cid = docker("run", "--detach", *words)
    try:
        assert is_ours(dockerd.state, cid)
        for address in ("127.0.0.1", ADDRESS):
            reached = functools.partial(dockerd.answer, address, 8080)
            assert until(reached, f"{address} answers") == "served\n"
    finally:
        docker(*docker.remove, cid)


def test_a_checkpoint(docker: Engine) -> None:
    count = "sh -c i=0; while :; do i=$((i + 1)); echo $i; sleep 0.1; done"
    with running(docker, command=count) as cid:
        until(lambda: len(docker("logs", cid).splitlines()) > 3, "it counts")
        docker("checkpoint", "create", cid, "saved")
        until(lambda: inspect(docker, cid, ".State.Status") == "exited", "the end of it")
        former = docker("logs", cid).splitlines()
        docker("start", "--checkpoint", "saved", cid)
        lines = until(
            lambda: (found := docker("logs", cid).splitlines())[len(former) + 2 :] and found,
            "it counts on",
        )
        assert lines == [str(number) for number in range(1, len(lines) + 1)]


DOCKERFILE = """\
FROM scratch
ADD root.tar.gz /
RUN echo built > /built && id -u
USER nobody
CMD ["sh", "-c", "cat /built; id -un"]
"""


@pytest.mark.parametrize("buildkit", ["0", "1"])
def test_build_from_scratch(dockerd: Docker, place: Path, buildkit: str) -> None:
    shutil.copy(os.environ["MINIRUN_ROOTFS_TARBALL"], place / "root.tar.gz")
    (place / "Dockerfile").write_text(DOCKERFILE)
    docker = Engine(*dockerd.docker.words, environment={"DOCKER_BUILDKIT": buildkit})
    log = dockerd.place / "bin/runc.log"
    docker("build", "--network", "none", "--tag", "localhost/built", str(place))
    try:
        assert docker("run", "--rm", *QUIET, "localhost/built") == "built\nnobody"
        assert log.exists() == (buildkit == "1")
    finally:
        docker("rmi", "--force", "localhost/built")
        log.unlink(missing_ok=True)
