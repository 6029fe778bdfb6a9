"""A client of the CRI, and pods as a kubelet makes them with it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from engines import IMAGE, MIB, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POD, CONTAINER, TARGET = 0, 1, 3  # NamespaceMode
LIMITS = {
    "memory_limit_in_bytes": 64 * MIB,
    "cpu_quota": 50000,
    "cpu_period": 100000,
    "cpu_shares": 512,
}


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
            getattr(self._messages, f"{method}Request")(**fields), timeout=PATIENCE
        )


class Pod:
    """A sandbox, and the containers in it.

    `where` is the runtime's handler and the parent of the cgroups, `pid` a NamespaceMode.
    """

    def __init__(
        self, cri: Cri, name: str, where: tuple[str, str], logs: str = "", pid: int = POD
    ) -> None:
        handler, parent = where
        self.cri = cri
        self.namespaces = {"pid": pid, "ipc": POD, "network": POD}
        security = {"namespace_options": self.namespaces, "seccomp": {"profile_type": 0}}
        self.config = {
            "metadata": {"name": name, "uid": name, "namespace": "tests"},
            "hostname": name,
            "log_directory": logs,
            "linux": {"cgroup_parent": parent, "security_context": security},
        }
        made = cri("RunPodSandbox", config=self.config, runtime_handler=handler)
        self.id: str = made.pod_sandbox_id

    def run(self, name: str, *command: str, attempt: int = 0, **security: Any) -> str:
        """Make and start a container with LIMITS; return its ID."""
        namespaces = self.namespaces | security.pop("namespaces", {})
        made = self.cri(
            "CreateContainer",
            pod_sandbox_id=self.id,
            sandbox_config=self.config,
            config={
                "metadata": {"name": name, "attempt": attempt},
                "image": {"image": IMAGE},
                "command": list(command),
                "log_path": f"{name}.log",
                "linux": {
                    "resources": LIMITS,
                    "security_context": {"namespace_options": namespaces, **security},
                },
            },
        )
        self.cri("StartContainer", container_id=made.container_id)
        return str(made.container_id)

    def pid(self, cid: str) -> int:
        status = self.cri("ContainerStatus", container_id=cid, verbose=True)
        return int(json.loads(status.info["info"])["pid"])

    def ended(self, cid: str) -> tuple[bool, int]:
        """Tell whether a container has ended, and with which status."""
        status = self.cri("ContainerStatus", container_id=cid).status
        return status.state == 2, status.exit_code  # CONTAINER_EXITED

    def exec(self, cid: str, *command: str, timeout: int = 30) -> tuple[str, int]:
        done = self.cri("ExecSync", container_id=cid, cmd=list(command), timeout=timeout)
        return done.stdout.decode(), done.exit_code


@contextlib.contextmanager
def pod(cri: Cri, name: str, *where: str, logs: str = "", pid: int = POD) -> Iterator[Pod]:
    """A pod; it goes with the block."""
    handler, parent = where
    made = Pod(cri, name, (handler, parent), logs, pid)
    try:
        yield made
    finally:
        cri("StopPodSandbox", pod_sandbox_id=made.id)
        cri("RemovePodSandbox", pod_sandbox_id=made.id)
