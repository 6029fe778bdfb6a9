"""podman with minirun as its runtime, as scripts/engines configures it; as root and as a user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import dockerlike
import pytest
from dockerlike import HEALTH, QUIET, inspect, pid_of, running, scope_of
from engines import (
    IMAGE,
    MIB,
    MINIRUN,
    PAUSE,
    Engine,
    cgroup_of,
    configured,
    docker_archive,
    is_ours,
    until,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs", "podman")]

REMOVE = ("rm", "--force", "--time", "0")


class Podman:
    """podman with state of its own; `root` is where minirun keeps that of its containers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        file = configured("podman", place / "etc", "--default")
        # A drop-in of the system's file; this one alone is what these commands read.
        text = file.read_text().replace("[engine]\n", '[engine]\nevents_logger = "file"\n')
        config = place / "containers.conf"
        config.write_text(f'{text}\n[containers]\nlog_driver = "k8s-file"\n')
        options = ("--root", f"{place}/root", "--runroot", f"{place}/run")
        self.at_home = Engine(
            "podman",
            *options,
            *("--tmpdir", f"{place}/tmp", "--storage-driver", "overlay"),
            environment={"CONTAINERS_CONF": str(config)},
            remove=REMOVE,
        )
        # Its storage mounted on itself would come and go.
        self.bare = self.at_home.with_words("--storage-opt", "overlay.skip_mount_home=true")
        self.cgroupfs = self.bare.with_words("--cgroup-manager", "cgroupfs")
        self.systemd = self.bare.with_words("--cgroup-manager", "systemd")


@pytest.fixture(scope="module")
def engines(base: Path) -> Iterator[Podman]:
    place = base / "podman"
    place.mkdir()
    made = Podman(place)
    made.cgroupfs("load", "--quiet", "--input", str(docker_archive(place / "images.tar")))
    made.cgroupfs("run", "--rm", *QUIET, IMAGE, "true")
    yield made
    made.cgroupfs.call("rm", "--all", "--force", "--time", "0")
    for mount in (place / "root/overlay", place / "run", place / "tmp"):
        subprocess.run(["umount", "--recursive", mount], capture_output=True, check=False)


@pytest.fixture
def podman(engines: Podman) -> Engine:
    """podman as it is by itself: its containers are scopes of systemd's."""
    return engines.systemd


@pytest.fixture(scope="module")
def one(engines: Podman) -> Iterator[str]:
    """A container with limits that sleeps."""
    with running(engines.systemd, *dockerlike.LIMITS, "--cpuset-cpus", "0") as cid:
        yield cid


def test_minirun_is_the_runtime(podman: Engine, one: str) -> None:
    assert inspect(podman, one, ".OCIRuntime") == "minirun"
    assert is_ours("/run/minirun", one)


def test_run_passes_streams_and_status(podman: Engine) -> None:
    dockerlike.streams_and_status(podman)


def test_statuses_tell_who_failed(podman: Engine) -> None:
    dockerlike.statuses_tell_who_failed(podman)


def test_run_on_a_terminal(podman: Engine) -> None:
    assert "33 77" in dockerlike.a_terminal(podman, size=(33, 77))


def test_exec_has_statuses_users_and_a_terminal(podman: Engine, one: str) -> None:
    dockerlike.exec_statuses_users_and_a_terminal(podman, one)


def test_files_go_in_and_out_and_processes_are_listed(
    podman: Engine, one: str, place: Path
) -> None:
    dockerlike.files_and_processes(podman, one, place)


def test_logs_stop_start_and_kill(podman: Engine) -> None:
    dockerlike.logs_stop_start_and_kill(podman)


def test_limits_are_those_of_a_scope_and_are_updated(podman: Engine, one: str) -> None:
    pid = pid_of(podman, one)
    dockerlike.limits_are(pid, cpuset_cpus="0")
    shown = scope_of(pid, "Slice", "MemoryMax", "TasksMax")
    assert shown == {
        "Id": f"libpod-{one}.scope",
        "Slice": "machine.slice",
        "MemoryMax": str(64 * MIB),
        "TasksMax": "20",
    }
    (stats,) = json.loads(podman("stats", "--no-stream", "--format", "json", one))
    assert stats["pids"] == "1" and stats["mem_usage"].endswith("/ 67.11MB")
    podman("update", "--memory", "80m", "--cpus", "1", one)
    assert values(pid, "memory.max", "cpu.max") == [str(80 * MIB), "100000 100000"]
    assert scope_of(pid, "MemoryMax")["MemoryMax"] == str(80 * MIB)


def test_limits_in_files_of_podmans_own(engines: Podman) -> None:
    podman = engines.cgroupfs
    with running(podman, *dockerlike.LIMITS) as cid:
        pid = pid_of(podman, cid)
        assert f"/libpod_parent/libpod-{cid}" in str(cgroup_of(pid))
        dockerlike.limits_are(pid)
        podman("update", "--memory", "80m", cid)
        assert values(pid, "memory.max") == [str(80 * MIB)]
        dockerlike.pause_and_unpause(podman, cid)


def test_pause_and_unpause(podman: Engine, one: str) -> None:
    dockerlike.pause_and_unpause(podman, one)


def test_a_healthcheck_is_an_exec(podman: Engine) -> None:
    with running(podman, *HEALTH, "--health-interval", "disable") as cid:
        assert podman.call("healthcheck", "run", cid).returncode == 1
        podman("exec", cid, "touch", "/well")
        assert podman.call("healthcheck", "run", cid).returncode == 0


# Each line tells which process counts: one that began anew would have another word.
COUNT = (
    "sh -c u=$(cat /proc/sys/kernel/random/uuid); i=0; "
    "while :; do i=$((i + 1)); echo $u $i; sleep 0.1; done"
)


def test_a_checkpoint_goes_on_here_and_elsewhere(podman: Engine, place: Path) -> None:
    saved = str(place / "saved.tar.gz")

    def counted(cid: str) -> list[str]:
        return podman("logs", cid).splitlines()

    with running(podman, *dockerlike.LIMITS, command=COUNT) as cid:
        until(lambda: len(counted(cid)) > 3, "it counts")
        podman("container", "checkpoint", "--keep", "--export", saved, cid)
        assert inspect(podman, cid, ".State.Status") == "exited"
        lines = counted(cid)
        former, process = len(lines), lines[0].split()[0]
        wanted = [f"{process} {number + 1}" for number in range(former + 1)]
        podman("container", "restore", cid)
        until(lambda: len(counted(cid)) > former + 2, "it counts on")
        assert counted(cid)[: former + 1] == wanted
        dockerlike.limits_are(pid_of(podman, cid))
    # With its log, which podman exports too.
    cid = podman("container", "restore", "--import", saved, "--name", "elsewhere")
    try:
        until(lambda: len(counted(cid)) > former + 2, "it counts elsewhere")
        assert counted(cid)[: former + 1] == wanted
        assert is_ours("/run/minirun", cid)
        assert podman("exec", cid, "echo", "in") == "in"
    finally:
        podman(*podman.remove, cid)


def test_two_containers_of_a_pod_share_what_it_has(engines: Podman) -> None:
    # podman 4.3 bars all devices from a pod's own cgroup under cgroupfs, with every runtime.
    podman = engines.systemd
    pod = podman("pod", "create", *QUIET, "--infra-image", IMAGE, "--infra-command", "sleep 1000")
    try:
        for name in ("one", "two"):
            podman("run", "--detach", "--pod", pod, "--name", name, IMAGE, "sleep", "1000")
        pids = [inspect(podman, name, ".State.Pid") for name in ("one", "two")]
        for kind in ("net", "ipc", "uts"):
            assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 1
        assert len({os.readlink(f"/proc/{pid}/ns/pid") for pid in pids}) == 2
        parents = {cgroup_of(pid).parent for pid in pids}
        assert len(parents) == 1 and parents.pop().name.endswith(f"pod_{pod}.slice")
    finally:
        podman("pod", "rm", "--force", "--time", "0", pod)


def test_a_container_without_a_cgroup(podman: Engine) -> None:
    with running(podman, "--cgroups", "disabled") as cid:
        pid = inspect(podman, cid, ".State.Pid")
        assert cid not in str(cgroup_of(pid))
        assert podman("exec", cid, "echo", "in") == "in"


@contextlib.contextmanager
def subordinate_ids(user: str) -> Iterator[None]:
    """Have /etc/subuid and /etc/subgid give `user` a range, as --userns=auto takes it."""
    before = {}
    for name in ("/etc/subuid", "/etc/subgid"):
        before[name] = Path(name).read_text()
        Path(name).write_text(f"{before[name]}{user}:1000000:262144\n")
    try:
        yield
    finally:
        for name, text in before.items():
            Path(name).write_text(text)


def test_a_user_namespace_that_podman_chooses(engines: Podman) -> None:
    # Without its storage's own mount podman 4.3 mounts a layer of other owners where none sees it.
    podman = engines.at_home.with_words("--cgroup-manager", "cgroupfs")
    code = "cat /proc/self/uid_map; touch /mine && stat -c %u /mine"
    with subordinate_ids("containers"):
        try:
            told = podman("run", "--rm", *QUIET, "--userns=auto", IMAGE, "sh", "-c", code)
        finally:
            storage = engines.place / "root/overlay"
            subprocess.run(["umount", "--recursive", storage], capture_output=True, check=False)
    inside, outside, _count, owner = told.split()
    assert (inside, outside, owner) == ("0", "1000000", "0")


def test_what_flags_ask_for_is_there(podman: Engine, place: Path) -> None:
    told = dockerlike.what_flags_ask_for(podman, place, "--umask", "0027")
    assert told[0] == "0027"
    assert told[3:7] == ["NoNewPrivs:", "1", "Seccomp:", "2"]


def test_privileges_that_flags_give(podman: Engine) -> None:
    status = Path("/proc/1/status").read_text().splitlines()
    (everything,) = [line.split()[1] for line in status if line.startswith("CapEff")]
    dockerlike.privileges_that_flags_give(podman, everything, "unmask=ALL")


KUBE = f"""
apiVersion: v1
kind: Pod
metadata: {{name: played}}
spec:
  hostname: played
  containers:
  - name: one
    image: {IMAGE}
    command: [sleep, "1000"]
    resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
  - name: two
    image: {IMAGE}
    command: [sh, -c, "hostname; exec sleep 1000"]
"""


def test_kube_play(engines: Podman, place: Path) -> None:
    podman = engines.systemd
    (place / "pod.yaml").write_text(KUBE)
    # The infra container's image would be built of a program that podman's package has not.
    podman("tag", PAUSE, "localhost/podman-pause:4.3.1-0")
    podman("kube", "play", *QUIET, str(place / "pod.yaml"))
    try:
        pid = inspect(podman, "played-one", ".State.Pid")
        assert values(pid, "memory.max", "cpu.max") == [str(64 * MIB), "50000 100000"]
        until(lambda: podman("logs", "played-two") == "played", "the second has said its name")
    finally:
        podman("kube", "down", str(place / "pod.yaml"))


@pytest.fixture
def user(engines: Podman) -> Iterator[Engine]:
    """podman of the ordinary user `tester`, in a session of its own, which ends with the test."""
    home = Path("/home/tester/podman")
    runtime = "/run/user/1000"
    subprocess.run(["loginctl", "enable-linger", "tester"], check=True)
    active = ("systemctl", "is-active", "--quiet", "user@1000.service")
    until(lambda: not subprocess.run(active, check=False).returncode, "the user's manager is there")
    archive = shutil.copy(engines.place / "images.tar", "/home/tester/images.tar")
    config = shutil.copy(engines.place / "containers.conf", "/home/tester/containers.conf")
    setting = (f"XDG_RUNTIME_DIR={runtime}", "HOME=/home/tester", f"CONTAINERS_CONF={config}")
    become = ("setpriv", "--reuid=1000", "--regid=1000", "--init-groups", "--reset-env")
    engine = Engine(
        *become,
        *("env", *setting, f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"),
        *("systemd-run", "--user", "--quiet", "--scope", "--", "podman"),
        *("--root", f"{home}/root", "--runroot", f"{home}/run", "--runtime", MINIRUN),
        remove=REMOVE,
    )
    try:
        engine("load", "--quiet", "--input", archive)
        yield engine
    finally:
        engine.call("rm", "--all", "--force", "--time", "0")
        engine.call("system", "reset", "--force")
        subprocess.run(["loginctl", "disable-linger", "tester"], check=True)
        subprocess.run(["loginctl", "terminate-user", "tester"], capture_output=True, check=False)
        until(lambda: not Path(runtime, "bus").exists(), "the user's manager is gone")
        for left in (archive, config, home):
            subprocess.run(["rm", "-rf", str(left)], check=True)


def test_an_ordinary_user(user: Engine) -> None:
    look = "id -u; cat /proc/self/uid_map; ip -o address show tap0 | grep -c 10.0.2.100"
    told = user("run", "--rm", "--network", "slirp4netns", IMAGE, "sh", "-c", look).split()
    assert told == ["0", "0", "1000", "1", "1", "100000", "65536", "1"]
    with running(user, *dockerlike.LIMITS, "--userns", "keep-id") as cid:
        pid = pid_of(user, cid)
        assert "/user@1000.service/" in str(cgroup_of(pid))
        dockerlike.limits_are(pid)
        assert user("exec", cid, "id", "-u") == "1000"
        assert Path(f"/proc/{pid}").stat().st_uid == 1000
        dockerlike.pause_and_unpause(user, cid)
    _without_systemd(user.with_words("--cgroup-manager", "cgroupfs"))


def _without_systemd(user: Engine) -> None:
    cid = user("run", "--detach", "--network", "host", IMAGE, "sleep", "1000")
    assert user("exec", cid, "cat", "/proc/self/uid_map").split()[1] == "1000"
    told = Path(f"/proc/{pid_of(user, cid)}/ns/net").readlink()
    assert told == Path("/proc/self/ns/net").readlink()
