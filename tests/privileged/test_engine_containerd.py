"""containerd with minirun: by `ctr`, and through its CRI plugin as Kubernetes would.

The daemon is one of its own, its configuration that of scripts/engines and what keeps it apart.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
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
    file = configured("containerd", place / "etc")
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


def test_the_life_of_a_task(containerd: Containerd) -> None:
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
        ctr("task", "kill", "--signal", "KILL", "one")
        until(lambda: line_of(ctr, "one").endswith("STOPPED"), "it has stopped")
        assert ctr.call("task", "rm", "one").returncode in (0, 137)


# ---------------------------------------------------------------- CRI


class Cri:
    """The services of the CRI by the names of their messages, with dictionaries for messages."""

    def __init__(self, socket: Path) -> None:
        import grpc
        from cri_api.v1 import api_pb2, api_pb2_grpc

        self.channel = grpc.insecure_channel(f"unix://{socket}")
        self._messages = api_pb2
        self._stubs = [
            stub(self.channel)
            for stub in (api_pb2_grpc.RuntimeServiceStub, api_pb2_grpc.ImageServiceStub)
        ]
        self.error = grpc.RpcError

    def __call__(self, method: str, **fields: Any) -> Any:
        (stub,) = [stub for stub in self._stubs if hasattr(stub, method)]
        return getattr(stub, method)(
            getattr(self._messages, f"{method}Request")(**fields), timeout=60
        )


@pytest.fixture(scope="module")
def cri(containerd: Containerd) -> Iterator[Cri]:
    client = Cri(containerd.socket)
    ready = lambda: all(  # noqa: E731
        condition.status for condition in client("Status").status.conditions
    )
    until(ready, "the runtime and its network are ready")
    yield client
    client.channel.close()


SHARED = {"pid": 0, "ipc": 0, "network": 0}  # NamespaceMode POD, for every one


def sandbox(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name, "namespace": "tests"},
        "hostname": name,
        "log_directory": "",
        "linux": {
            "cgroup_parent": f"/minirun-cri/{name}",
            "security_context": {"namespace_options": SHARED},
        },
    }


@contextlib.contextmanager
def pod(cri: Cri, name: str, handler: str = "minirun") -> Iterator[tuple[str, dict[str, Any]]]:
    config = sandbox(name)
    made = cri("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id
    try:
        yield made, config
    finally:
        cri("StopPodSandbox", pod_sandbox_id=made)
        cri("RemovePodSandbox", pod_sandbox_id=made)
        (Path("/sys/fs/cgroup/minirun-cri") / name).rmdir()
        Path("/sys/fs/cgroup/minirun-cri").rmdir()


def container(cri: Cri, where: tuple[str, dict[str, Any]], name: str, *command: str) -> str:
    made = cri(
        "CreateContainer",
        pod_sandbox_id=where[0],
        sandbox_config=where[1],
        config={
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": list(command),
            "linux": {
                "resources": {
                    "memory_limit_in_bytes": 64 * MIB,
                    "cpu_quota": 50000,
                    "cpu_period": 100000,
                },
                "security_context": {"namespace_options": SHARED},
            },
        },
    ).container_id
    cri("StartContainer", container_id=made)
    return str(made)


def pid_of(cri: Cri, cid: str) -> int:
    status = cri("ContainerStatus", container_id=cid, verbose=True)
    return int(json.loads(status.info["info"])["pid"])


def run_in(cri: Cri, cid: str, *command: str) -> tuple[str, int]:
    done = cri("ExecSync", container_id=cid, cmd=list(command), timeout=30)
    return done.stdout.decode(), done.exit_code


def test_the_life_of_a_pod(containerd: Containerd, cri: Cri) -> None:
    with pod(cri, "pod") as where:
        one, two = (container(cri, where, name, "sleep", "1000") for name in ("one", "two"))
        for cid in (where[0], one, two):
            assert is_ours(containerd.state / "runc/k8s.io", cid) or is_ours(
                "/run/containerd/runc/k8s.io", cid
            )
        pids = [pid_of(cri, cid) for cid in (one, two)]
        for kind in ("net", "ipc", "uts", "pid"):
            assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 1, kind
        assert len({os.readlink(f"/proc/{pid}/ns/mnt") for pid in pids}) == 2
        assert values(pids[0], "memory.max", "cpu.max") == [str(64 * MIB), "50000 100000"]
        assert cgroup_of(pids[0]).parent.name == "pod"
        _look_and_change(cri, one, two, pids[0])


def _look_and_change(cri: Cri, one: str, two: str, pid: int) -> None:
    code = "hostname; ip addr show eth0 | grep -c 10.99.0; exit 3"
    told, status = run_in(cri, one, "sh", "-c", code)
    assert (told, status) == ("pod\n1\n", 3)
    with pytest.raises(cri.error, match="executable file not found"):
        run_in(cri, one, "no-such-program")
    stats = cri("ContainerStats", container_id=one).stats
    assert stats.memory.working_set_bytes.value > 0 and stats.cpu.usage_core_nano_seconds.value > 0
    changed = {"memory_limit_in_bytes": 80 * MIB, "cpu_quota": 100000, "cpu_period": 100000}
    cri("UpdateContainerResources", container_id=one, linux=changed)
    assert values(pid, "memory.max", "cpu.max") == [str(80 * MIB), "100000 100000"]
    cri("StopContainer", container_id=one, timeout=0)
    stopped = cri("ContainerStatus", container_id=one).status
    assert (stopped.state, stopped.exit_code) == (2, 137)  # CONTAINER_EXITED
    cri("RemoveContainer", container_id=one)
    left = cri("ListContainers").containers
    assert [found.id for found in left] == [two]


def test_a_handler_that_is_not_configured_is_refused(cri: Cri) -> None:
    with pytest.raises(cri.error, match="no runtime for"):
        cri("RunPodSandbox", config=sandbox("none"), runtime_handler="other")
