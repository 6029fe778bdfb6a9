"""What the tests of engines share: images made of a tarball, daemons that end, a terminal.

The images are docker archives, which podman, Docker and containerd all read, so that no registry
is needed: `IMAGE` is the root filesystem of MINIRUN_ROOTFS_TARBALL, `PAUSE` the same with a command
that sleeps. The engines' own state is below the tests' directory; what is not is theirs to choose
(/run/netns and the like) and is looked at by `nothing_left`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/alpine:test"
PAUSE = "localhost/pause:test"
MINIRUN = shutil.which(os.environ.get("MINIRUN", "minirun")) or "/usr/local/bin/minirun"
PATIENCE = 180  # seconds for one command of an engine, in a machine that is emulated
MIB = 1 << 20

_ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def docker_archive(target: Path) -> Path:
    """Write the images, which share their one layer, and return the file."""
    layer = gzip.decompress(Path(os.environ["MINIRUN_ROOTFS_TARBALL"]).read_bytes())
    digest = hashlib.sha256(layer).hexdigest()
    commands = {IMAGE: ["/bin/sh"], PAUSE: ["/bin/sleep", "1000000"]}
    listed = []
    with tarfile.open(target, "w") as archive:
        _add(archive, f"{digest}/layer.tar", layer)
        for name, command in commands.items():
            config = json.dumps(_config(digest, command)).encode()
            file = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, file, config)
            listed.append({"Config": file, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]})
        _add(archive, "manifest.json", json.dumps(listed).encode())
    return target


def _config(digest: str, command: list[str]) -> dict[str, Any]:
    return {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "config": {"Env": _ENVIRONMENT, "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


class Engine:
    """An engine's command line: the words before each command, and what it is called with."""

    def __init__(
        self,
        *words: str,
        environment: dict[str, str] | None = None,
        remove: Sequence[str] = ("rm", "--force"),
    ) -> None:
        self.words = words
        self.environment = {**os.environ, **(environment or {})}
        self.remove = remove  # what ends a container at once, and removes it

    def with_words(self, *words: str) -> Engine:
        """The same engine with more global options."""
        return Engine(*self.words, *words, environment=self.environment, remove=self.remove)

    def call(self, *args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its status."""
        return subprocess.run(
            [*self.words, *args],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd="/",  # where anybody may be
            env=self.environment,
            check=False,
        )

    def __call__(self, *args: str, text: str | None = None) -> str:
        """Run a command that must succeed; return its output without the last newline."""
        done = self.call(*args, text=text)
        assert done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done.stdout.rstrip("\n")

    def on_terminal(self, *args: str, typed: str = "", size: tuple[int, int] = (24, 80)) -> Typed:
        """Run a command on a pty of its own, with `typed` as what is typed."""
        return on_terminal([*self.words, *args], typed, size, self.environment)


class Typed:
    """What a command on a terminal printed, and its exit status."""

    def __init__(self, output: str, status: int) -> None:
        self.output = output
        self.status = status


def on_terminal(
    words: Sequence[str], typed: str, size: tuple[int, int], environment: dict[str, str]
) -> Typed:
    """Run `words` on a new pty of `size` rows and columns; `typed` goes in when it is read."""
    import termios

    parent, child = pty.openpty()
    termios.tcsetwinsize(child, size)
    with subprocess.Popen(
        words, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    ) as process:
        os.close(child)
        try:
            output = _talk(parent, typed.encode())
            status = process.wait(PATIENCE)
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(parent)
    return Typed(output, status)


def _talk(parent: int, typed: bytes) -> str:
    """Read the terminal to its end; type once the first output, a prompt, has come."""
    output = b""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ready, _, _ = select.select([parent], [], [], 1)
        if not ready:
            continue
        try:
            piece = os.read(parent, 65536)
        except OSError:  # EIO: nobody has the other side any more
            break
        output += piece
        if typed:
            os.write(parent, typed)
            typed = b""
        if not piece:
            break
    return output.decode(errors="replace")


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `holds()` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)
    return value


@contextlib.contextmanager
def daemon(words: Sequence[str], log: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """Run a daemon until the block ends; its words are in `log`, shown if it does not come up."""
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or ready(), f"{words[0]} is ready")
        assert process.poll() is None, log.read_text()[-3000:]
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configured(engine: str, etc: Path, *options: str) -> Path:
    """Have scripts/engines configure `engine` below `etc`; return the file."""
    script = [sys.executable, "-ISB", str(CHECKOUT / "scripts/engines"), "add", engine]
    subprocess.run([*script, "--runtime", MINIRUN, "--etc", str(etc), *options], check=True)
    written = [path for path in etc.rglob("*") if path.is_file()]
    assert len(written) == 1, written
    return written[0]


def cgroup_of(pid: int | str) -> Path:
    """The directory of a process's cgroup."""
    line = Path(f"/proc/{pid}/cgroup").read_text().strip().splitlines()[-1]
    return Path("/sys/fs/cgroup" + line.split(":", 2)[2])


def values(pid: int | str, *files: str) -> list[str]:
    """What files of a process's cgroup say."""
    group = cgroup_of(pid)
    return [(group / name).read_text().strip() for name in files]


def is_ours(root: str | Path, cid: str) -> bool:
    """Whether minirun has the container's state below `root`: no other runtime made it."""
    done = subprocess.run(
        [MINIRUN, "--root", str(root), "state", cid], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and json.loads(done.stdout)["id"] == cid
