"""Where containers are made while measuring, and how everything of them is taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from lib.bench import bundle, process
from lib.bench.machine import CGROUP, read
from lib.bench.process import Failed, Spawner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib.bench.figures import Sample
    from lib.bench.tools import Tool


class Place:
    """A directory, a cgroup and a network namespace; `close` leaves none of them behind."""

    def __init__(self, limit: float) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="minirun-bench-"))
        self.directory.chmod(0o755)  # a user namespace's root has to get to the root filesystem
        self.group = f"/minirun-bench-{os.getpid()}"
        self.root = self.directory / "rootfs"
        self.root.mkdir()
        self.spawner = Spawner(limit, str(self.directory / "log"))
        self.spawner.environment["MINIRUN_DATA"] = str(self.directory / "data")
        self.network: tuple[int, int] | None = None
        self.containers: dict[str, Container] = {}

    def container(
        self, tool: Tool, slot: int = 0, arguments: Sequence[str] = ("/bin/true",), **hooks: Any
    ) -> Container:
        """Write a bundle, and know of its container from now on."""
        name = f"{tool.name}-{slot}"
        config = bundle.configuration(self.root, arguments, f"{self.group}/{name}")
        if hooks:
            config["hooks"] = hooks
        bundle.write(self.directory / name, config)
        self.containers[name] = Container(self, tool, name)
        return self.containers[name]

    def in_network(self, command: Sequence[str]) -> Sample:
        """Run a command where a network namespace of ours is the host's."""
        if self.network is None:
            self.network = process.new_network()
        old, new = self.network
        process.enter_network(new)
        try:
            return self.spawner.run(command)
        finally:
            process.enter_network(old)

    def clear(self) -> list[str]:
        """Delete every container, end every process; tell what could not be."""
        left = []
        process.end_all(self.spawner.limit)  # a verb that was interrupted may hold a lock
        for container in self.containers.values():
            if not container.state.exists():
                continue
            with contextlib.suppress(Failed):  # what is left then is told below
                self.spawner.run(container.command("delete", "--force", container.name))
        self.containers.clear()
        if not process.end_all(self.spawner.limit):
            left.append(f"processes {sorted(process.descendants())}")
        for found in self._groups():
            try:
                found.rmdir()
            except FileNotFoundError:
                continue  # the runtime has removed it
            except OSError as error:
                left.append(f"cgroup {found}: {error.strerror}")
        return left

    def _groups(self) -> list[Path]:
        """Our cgroups, inner ones first; with v1 there is a tree for each controller."""
        trees = {point for point, kind in mounts() if kind in ("cgroup", "cgroup2")}
        tops = [Path(tree + self.group) for tree in trees]
        return [found for top in tops for found in [*sorted(top.rglob("*/"), reverse=True), top]]

    def close(self) -> list[str]:
        """Take everything away, whatever the terminal says meanwhile; tell what could not be."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        left = self.clear()
        for descriptor in self.network or ():
            os.close(descriptor)
        if mounted := [point for point, _ in mounts() if point.startswith(str(self.directory))]:
            left += [f"mount {point}" for point in mounted]  # and what is mounted is not removed
        else:
            shutil.rmtree(self.directory)
        return left


def mounts() -> list[tuple[str, str]]:
    """Where what kind of file system is mounted."""
    return [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]


class Container:
    """One container of one runtime, by runc's command line."""

    def __init__(self, place: Place, tool: Tool, name: str) -> None:
        self.place = place
        self.tool = tool
        self.name = name
        self.bundle = place.directory / name
        self.pid_file = self.bundle / "pid"
        self.state = place.directory / "state" / tool.name / name

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [*self.tool.words, "--root", str(self.state.parent), verb, *arguments]

    def run_command(self) -> list[str]:
        return self.command("run", "--bundle", str(self.bundle), self.name)

    def create(self) -> Sample:
        where = ("--bundle", str(self.bundle), "--pid-file", str(self.pid_file))
        return self.place.spawner.run(self.command("create", *where, self.name))

    def start(self) -> Sample:
        return self.place.spawner.run(self.command("start", self.name))

    def delete(self) -> Sample:
        return self.place.spawner.run(self.command("delete", self.name))

    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def wait(self) -> float:
        """Wait for the container's process; give the processor time that it used."""
        return self.place.spawner.wait(self.pid(), self.tool.words, may_fail=True)

    def memory_current(self) -> int | None:
        text = read(f"{CGROUP}{self.place.group}/{self.name}/memory.current")
        return int(text) if text else None
