"""containerd with minirun: by `ctr`, and through its CRI plugin as Kubernetes would.

The daemon is one of its own, its configuration that of scripts/engines and what keeps it apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cri import CONTAINER, TARGET, Cri, Pod, pod
from dockerlike import scope_of
from engines import (
    IMAGE,
    MIB,
    MINIRUN,
    PAUSE,
    Engine,
    cgroup_of,
    configured,
    daemon,
    docker_archive,
    is_ours,
    until,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs", "containerd")]

SNAPSHOTS = ("--snapshotter", "overlayfs")
# A link pair per pod and nothing else: no bridge that would stay, no rule of a firewall.
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "tests",
    "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}],
}


# Another handler, whose pods' cgroups are directories.
IN_FILES = f"""
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.files]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.files.options]
    BinaryName = "{MINIRUN}"
"""


class Containerd:
    """The daemon: its socket, its state, and `ctr` for it."""

    def __init__(self, place: Path) -> None:
        self.socket = place / "socket"
        self.state = place / "run"
        self.ctr = Engine("ctr", "--address", str(self.socket))


def settings(place: Path) -> str:
    """What comes before the tables that scripts/engines adds."""
    return f"""\
version = 2
root = "{place}/data"
state = "{place}/run"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{place}/socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{place}/cni"
"""


@pytest.fixture(scope="module")
def containerd(base: Path) -> Iterator[Containerd]:
    place = base / "containerd"
    (place / "etc/containerd").mkdir(parents=True)
    (place / "cni").mkdir()
    NETWORK["plugins"][0]["ipam"]["dataDir"] = str(place / "leases")  # type: ignore[index]
    (place / "cni/10-tests.conflist").write_text(json.dumps(NETWORK))
    (place / "etc/containerd/config.toml").write_text(settings(place))
    file = configured("containerd", place / "etc", "--systemd-cgroup")
    file.write_text(file.read_text() + IN_FILES)
    made = Containerd(place)
    ready = lambda: made.ctr.call("version").returncode == 0  # noqa: E731
    with daemon(["containerd", "--config", str(file)], place / "log", ready):
        images = str(docker_archive(place / "images.tar"))
        for namespace in ("default", "k8s.io"):
            made.ctr("-n", namespace, "images", "import", *SNAPSHOTS, images)
        yield made


@contextlib.contextmanager
def task(containerd: Containerd, name: str, *command: str) -> Iterator[Engine]:
    ctr = containerd.ctr
    binary = ("--runc-binary", MINIRUN)
    ctr("run", "--detach", *SNAPSHOTS, *binary, IMAGE, name, *command)
    try:
        yield ctr
    finally:
        ctr.call("task", "kill", "--signal", "KILL", name)
        until(lambda: "RUNNING" not in line_of(ctr, name), "it has ended")
        ctr.call("task", "rm", name)
        ctr("containers", "rm", name)


def line_of(ctr: Engine, name: str) -> str:
    lines = [line for line in ctr("task", "ls").splitlines() if line.split()[:1] == [name]]
    return lines[0] if lines else ""


def test_ctr_runs_in_the_foreground(containerd: Containerd) -> None:
    words = ("run", "--rm", *SNAPSHOTS, "--runc-binary", MINIRUN, IMAGE, "short")
    done = containerd.ctr.call(*words, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 5)
    done = containerd.ctr.call(*words, "no-such-program")
    assert 'exec: "no-such-program": executable file not found in $PATH' in done.stderr


def test_ctr_run_on_a_terminal(containerd: Containerd) -> None:
    words = ("run", "--rm", "--tty", *SNAPSHOTS, "--runc-binary", MINIRUN, IMAGE, "typed", "sh")
    shell = containerd.ctr.on_terminal(*words, typed="tty; exit 4\n")
    assert "/dev/pts/" in shell.output and shell.status == 4, shell.output


def test_the_life_of_a_task(containerd: Containerd, place: Path) -> None:
    with task(containerd, "one", "sleep", "1000") as ctr:
        assert is_ours(containerd.state / "runc/default", "one") or is_ours(
            "/run/containerd/runc/default", "one"
        )
        _name, pid, _status = line_of(ctr, "one").split()
        assert ctr("task", "exec", "--exec-id", "a", "one", "echo", "in") == "in"
        done = ctr.call("task", "exec", "--exec-id", "b", "one", "sh", "-c", "exit 6")
        assert done.returncode == 6
        assert pid in ctr("task", "ps", "one")
        ctr("task", "pause", "one")
        assert values(pid, "cgroup.freeze") == ["1"]
        assert line_of(ctr, "one").endswith("PAUSED")
        ctr("task", "resume", "one")
        assert values(pid, "cgroup.freeze") == ["0"]
        metrics = json.loads(ctr("task", "metrics", "--format", "json", "one"))
        assert metrics["pids"]["current"] == 1 and metrics["memory"]["usage"] > 0
        # With --exit: what containerd pauses for a checkpoint dies as it is resumed, under runc and
        # CRIU 3.17 too.
        where = ("--image-path", str(place / "saved"), "--work-path", str(place))
        ctr("task", "checkpoint", "--exit", *where, "one")
        assert (place / "saved/inventory.img").exists()
        until(lambda: line_of(ctr, "one").endswith("STOPPED"), "it has stopped")
        assert ctr.call("task", "rm", "one").returncode in (0, 137)


# ---------------------------------------------------------------- CRI


@pytest.fixture(scope="module")
def cri(containerd: Containerd) -> Iterator[Cri]:
    client = Cri(containerd.socket)
    ready = lambda: all(  # noqa: E731
        condition.status for condition in client("Status").status.conditions
    )
    until(ready, "the runtime and its network are ready")
    yield client
    client.channel.close()


# What a kubelet sends for `securityContext` and `seccompProfile: {type: RuntimeDefault}`.
CONFINED: dict[str, Any] = {
    "run_as_user": {"value": 1000},
    "run_as_group": {"value": 1001},
    "supplemental_groups": [2002],
    "readonly_rootfs": True,
    "no_new_privs": True,
    "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]},
    "seccomp": {"profile_type": 0},
    "masked_paths": ["/proc/timer_list", "/sys/firmware"],
    "readonly_paths": ["/proc/sys"],
}
SLICE = "miniruncri-pod.slice"  # in its parent, as a kubelet tells it


@pytest.fixture
def slices() -> Iterator[None]:
    """What a kubelet makes, and takes away: systemd makes it here as the first scope needs it."""
    yield
    for unit in (SLICE, "miniruncri.slice"):
        subprocess.run(["systemctl", "stop", unit], check=True)


@pytest.mark.usefixtures("slices")
def test_a_pod_in_slices_of_systemd(containerd: Containerd, cri: Cri, place: Path) -> None:
    with pod(cri, "pod", "minirun", f"/miniruncri.slice/{SLICE}", logs=str(place)) as made:
        one = made.run("one", "sh", "-c", "echo said; exec sleep 1000", **CONFINED)
        two = made.run("two", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
        for cid in (made.id, one, two):
            assert is_ours(containerd.state / "runc/k8s.io", cid) or is_ours(
                "/run/containerd/runc/k8s.io", cid
            )
        pids = [made.pid(cid) for cid in (one, two)]
        for kind in ("net", "ipc", "uts", "pid"):
            assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 1, kind
        assert len({os.readlink(f"/proc/{pid}/ns/mnt") for pid in pids}) == 2
        _limits_of_a_scope(cri, one, pids[0])
        _confined(made, one, pids[0])
        log = place / "one.log"
        until(lambda: log.read_text().endswith(" stdout F said\n"), "its word is in the log")
        _ended_and_started_again(made, one, two)


def _limits_of_a_scope(cri: Cri, cid: str, pid: int) -> None:
    files = ("memory.max", "cpu.max", "cpu.weight")
    assert values(pid, *files) == [str(64 * MIB), "50000 100000", "59"]
    assert cgroup_of(pid).name == f"cri-containerd-{cid}.scope"
    wanted = {"Slice": SLICE, "MemoryMax": str(64 * MIB), "CPUQuotaPerSecUSec": "500ms"}
    assert scope_of(str(pid), *wanted) == {"Id": f"cri-containerd-{cid}.scope", **wanted}
    changed = {"memory_limit_in_bytes": 80 * MIB, "cpu_quota": 100000, "cpu_period": 100000}
    cri("UpdateContainerResources", container_id=cid, linux=changed)
    assert values(pid, *files[:2]) == [str(80 * MIB), "100000 100000"]
    assert scope_of(str(pid), "MemoryMax")["MemoryMax"] == str(80 * MIB)


def _confined(made: Pod, cid: str, pid: int) -> None:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split()[0] == "1000" and status["Gid"].split()[0] == "1001"
    assert status["Groups"].split() == ["1001", "2002"] or status["Groups"].split() == ["2002"]
    assert (status["CapBnd"], status["Seccomp"], status["NoNewPrivs"]) == (f"{1024:016x}", "2", "1")
    # Not /proc/kcore: containerd's AppArmor profile denies that one by itself.
    code = """hostname; ip address show eth0 | grep -c 10.99.0; touch /no 2>&1 | grep -c Read-only
    wc -c </proc/timer_list; exit 3"""
    assert made.exec(cid, "sh", "-c", code) == ("pod\n1\n1\n0\n", 3)
    with pytest.raises(made.cri.error, match="executable file not found"):
        made.exec(cid, "no-such-program")
    with pytest.raises(made.cri.error, match="timeout 2s exceeded"):
        made.exec(cid, "sleep", "999", timeout=2)
    until(lambda: len(values(pid, "cgroup.procs")[0].split()) == 1, "what was too slow has ended")


def _ended_and_started_again(made: Pod, one: str, two: str) -> None:
    """A kubelet starts the same container anew as its next attempt; the other goes by itself."""
    made.cri("StopContainer", container_id=one, timeout=0)
    assert made.ended(one) == (True, 137)
    again = made.run("one", "sh", "-c", "echo said again; exec sleep 1000", attempt=1)
    made.cri("RemoveContainer", container_id=one)
    stats = made.cri("ListPodSandboxStats", filter={"id": made.id}).stats
    told = {one.attributes.id for pod in stats for one in pod.linux.containers}
    assert told == {again, two}
    assert all(pod.linux.memory.working_set_bytes.value > 0 for pod in stats)
    made.cri("StopContainer", container_id=two, timeout=30)
    assert made.ended(two) == (True, 7)
    assert made.ended(again)[0] is False
    made.cri("RemoveContainer", container_id=two)
    assert [found.id for found in made.cri("ListContainers").containers] == [again]


def test_a_pod_with_cgroups_in_files_and_a_debugger(cri: Cri) -> None:
    """Its containers have PID namespaces of their own; `kubectl debug --target` joins one."""
    parent = Path("/sys/fs/cgroup/minirun-cri/pod")
    with pod(cri, "files", "files", "/minirun-cri/pod", pid=CONTAINER) as made:
        one = made.run("one", "sleep", "1000")
        pid = made.pid(one)
        assert cgroup_of(pid) == parent / one
        assert values(pid, "memory.max", "cpu.max") == [str(64 * MIB), "50000 100000"]
        stats = cri("ContainerStats", container_id=one).stats
        assert stats.memory.working_set_bytes.value > 0
        assert stats.cpu.usage_core_nano_seconds.value > 0
        changed = {"memory_limit_in_bytes": 80 * MIB}
        cri("UpdateContainerResources", container_id=one, linux=changed)
        assert values(pid, "memory.max") == [str(80 * MIB)]
        target = {"pid": TARGET, "target_id": one}
        debugger = made.run("debugger", "sleep", "1000", namespaces=target)
        kinds = [os.readlink(f"/proc/{found}/ns/pid") for found in (pid, made.pid(debugger))]
        assert kinds[0] == kinds[1] != os.readlink("/proc/self/ns/pid")
        assert made.exec(debugger, "cat", "/proc/1/comm") == ("sleep\n", 0)
    parent.rmdir()
    parent.parent.rmdir()


def test_a_handler_that_is_not_configured_is_refused(cri: Cri) -> None:
    with pytest.raises(cri.error, match="no runtime for"):
        Pod(cri, "none", ("other", "/minirun-cri/none"))
