"""The way into the machine: ssh, one connection for all commands, for a login costs a second."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lib.vm.common import Failure, quietly

if TYPE_CHECKING:
    from collections.abc import Sequence

    Stream = IO[bytes] | int | None

SSH_FAILED = 255


class Connection:
    """ssh as root to a port of the loopback, with the key that the image was built with."""

    def __init__(self, machine: Path, image: Path, port: str) -> None:
        self.machine = machine
        self.image = image
        self.port = port

    def ssh(self, *options: str) -> list[str]:
        # fmt: off
        return [
            "ssh", "-F", "none", "-p", self.port, "-l", "root", "-i", os.fspath(self.image / "key"),
            "-o", f"ControlPath={self.socket()}", "-o", "HostKeyAlias=minirun-vm",
            "-o", f"UserKnownHostsFile={self.image / 'known_hosts'}",
            "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=20",
            "-o", "ConnectTimeout=60", "-o", "EscapeChar=none", *options, "127.0.0.1",
        ]
        # fmt: on

    def socket(self) -> Path:
        """Short, for a socket's path has at most 107 bytes; in a directory of our own."""
        user = os.geteuid()
        base = os.environ.get("XDG_RUNTIME_DIR") or ("/tmp" if user else "/run")
        directory = Path(base) / f"minirun-vm-{user}"
        directory.mkdir(mode=0o700, exist_ok=True)
        if directory.is_symlink() or directory.stat().st_uid != user:
            raise Failure(f"{directory} belongs to somebody else; set XDG_RUNTIME_DIR")
        return directory / hashlib.sha256(os.fsencode(self.machine)).hexdigest()[:12]

    def open(self) -> None:
        """Logs in, unless an earlier command's connection is still there."""
        if self.socket().exists():
            if not quietly(self.ssh("-O", "check")).returncode:
                return
            self.socket().unlink(missing_ok=True)
        done = quietly(self.ssh("-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-N", "-f"))
        if done.returncode:
            raise Failure(f"ssh: {done.stderr.strip()}")

    def run(
        self,
        command: Sequence[str],
        *,
        terminal: bool = False,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in the machine as root; interrupted, it ends the command there too."""
        self.open()
        mark = f"/run/vm-{os.getpid()}-{time.monotonic_ns()}"
        # sshd makes the command a session leader: its pid names its process group.
        remote = f"echo $$ >{mark}; {shlex.join(command)}; s=$?; rm -f {mark}; exit $s"
        options = ["-t"] if terminal else ["-T"]
        with subprocess.Popen([*self.ssh(*options), remote], stdin=stdin, stdout=stdout) as client:
            try:
                output, _ = client.communicate()
            except BaseException:
                self.end(mark)
                client.terminate()
                raise
        return subprocess.CompletedProcess(command, client.returncode, output)

    def end(self, mark: str) -> None:
        kill = f"test -e {mark} && kill -TERM -- -$(cat {mark}); rm -f {mark}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            quietly([*self.ssh("-T"), kill], timeout=30)

    def power_off(self) -> None:
        self.open()
        quietly([*self.ssh("-T"), "systemctl poweroff"], timeout=20)

    def close(self) -> None:
        if self.socket().exists():
            quietly(self.ssh("-O", "exit"))
            self.socket().unlink(missing_ok=True)
