"""A Docker daemon of the tests' own, with what scripts/engines writes and whatever else is set.

So that nothing stays of its bridge and of its rules in the firewall it has a network namespace of
its own, whose address beside loopback is `ADDRESS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

from engines import MINIRUN, Engine, configured, daemon, docker_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS = "10.98.0.1"
_IN_A_NETWORK = f'ip link set lo up; ip address add {ADDRESS}/32 dev lo; exec "$@"'
# minirun by the name that BuildKit knows; what it was called with is kept.
_RUNC = f'#!/bin/sh\necho "$@" >>"$0.log"\nexec {MINIRUN} "$@"\n'


class Docker:
    """The place of a daemon, its process, where minirun keeps its containers, and `docker`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state = place / "run/runtime-runc/moby"
        self.pid = 0
        self.docker = Engine("docker", "--host", f"unix://{place}/socket")
        (place / "bin").mkdir(parents=True)
        (place / "bin/runc").write_text(_RUNC)
        (place / "bin/runc").chmod(0o755)
        self._file = configured("docker", place / "etc", "--default")

    @contextlib.contextmanager
    def daemon(self, **settings: object) -> Iterator[Engine]:
        """Run the daemon until the block ends; `_` in the name of a setting stands for `-`."""
        ours = {
            "data-root": str(self.place / "data"),
            "exec-root": str(self.place / "run"),
            "pidfile": str(self.place / "pid"),
            "hosts": [self.docker.words[-1]],
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        self._file.write_text(json.dumps({**json.loads(self._file.read_text()), **ours}))
        path = f"PATH={self.place}/bin:{os.environ['PATH']}"
        words = ["unshare", "--net", "env", path, "sh", "-ec", _IN_A_NETWORK, "sh"]
        words += ["dockerd", "--config-file", str(self._file)]
        ready = lambda: self.docker.call("version").returncode == 0  # noqa: E731
        with daemon(words, self.place / "log", ready) as self.pid:
            yield self.docker

    def answer(self, address: str, port: int) -> str:
        """Return what a server says to whoever connects from the daemon's network namespace."""
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        connect = ["busybox", "nc", "-w", "30", address, str(port)]
        return subprocess.run(
            [*enter, *connect],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    def unmount(self) -> None:
        """Take away the mounts that a daemon leaves when it ends."""
        with open("/proc/self/mountinfo") as mounts:
            points = [line.split()[4] for line in mounts]
        for point in reversed([point for point in points if point.startswith(f"{self.place}/")]):
            subprocess.run(["umount", point], check=True)

    def bring_images(self) -> None:
        self.docker("load", "--quiet", "--input", str(docker_archive(self.place / "images.tar")))
