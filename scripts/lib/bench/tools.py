"""Who is measured: the runtimes, the sandboxes, and how each is asked for the same thing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUNTIMES = ("minirun", "runc", "crun")
TRUE = "/bin/true"


class Tool(NamedTuple):
    """A program, by the name that it has in the tables; `words` start it."""

    name: str
    words: tuple[str, ...]
    version: str

    @property
    def is_runtime(self) -> bool:
        return self.name in RUNTIMES


def find() -> dict[str, Tool | str]:
    """What is installed, and of the rest that it is not."""
    programs = {
        **{name: name for name in RUNTIMES},
        "bubblewrap": "bwrap",
        "unshare": "unshare",
        "systemd-nspawn": "systemd-nspawn",
    }
    found: dict[str, Tool | str] = {}
    for name, program in programs.items():
        words = shlex.split(os.environ.get("MINIRUN", "")) if name == "minirun" else []
        path = shutil.which(words[0] if words else program)
        if path is None:
            found[name] = "not installed"
        else:
            command = (os.path.abspath(path), *words[1:])
            found[name] = Tool(name, command, version(command))
    return found


def version(words: Sequence[str]) -> str:
    """What a program says of itself, without its name."""
    done = subprocess.run(
        [*words, "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        text=True,
        check=False,
    )
    line = (done.stdout.splitlines() or ["unknown"])[0]
    known = [word for word in line.split() if word[:1].isdigit()]
    return known[0] if known else line


def bare_python() -> list[str]:
    """The interpreter that minirun runs on, started with nothing of its own to load."""
    system = "/usr/bin/python3"
    interpreter = system if os.path.exists(system) else sys.executable
    return [interpreter, "-I", "-S", "-c", "pass"]


def sandbox(tool: Tool, root: Path) -> list[str]:
    """`true` as the sandboxes run it: the same namespaces, the same root filesystem."""
    options = {
        "bubblewrap": [
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *("--unshare-cgroup-try", "--ro-bind", str(root), "/"),
            *("--proc", "/proc", "--dev", "/dev", TRUE),
        ],
        "unshare": [
            *("--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--cgroup"),
            *(f"--root={root}", "--mount-proc", TRUE),
        ],
        "systemd-nspawn": [
            *("--quiet", f"--directory={root}", "--read-only", "--private-network"),
            *("--register=no", "--console=pipe", "--machine=minirun-bench", TRUE),
        ],
    }
    return [*tool.words, *options[tool.name]]
