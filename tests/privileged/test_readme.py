"""What README.md shows is true: each of its sessions is typed in, and must answer as printed.

A session is a block of ```console: lines that begin with `$ ` are typed, the others are the answer.
`…` stands for anything within a line, and alone for any lines. A comment `<!-- needs: WORD -->`
above a block says what it needs of the machine besides. Each session has the machine's directories,
network and mounts for itself, and a root filesystem `busybox` unless it makes one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runtime import CHECKOUT, PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (CHECKOUT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- needs: ([\w ,]+) -->\n)?^```console\n(.*?)^```$", re.M | re.S)
MARK = "@@@@"
BUSYBOX = "sudo minirun rootfs build busybox"

UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")
SETUP = """
set -e
mount -t tmpfs tmpfs /run
mount --bind "$1" /var/lib
ip link set lo up
set +e
trap 'for id in $(minirun list -q); do minirun delete --force "$id"; done' EXIT
last=0
try() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do told=$("$@" 2>&1) && break; sleep 0.5; done
    printf '%s\n' "$told"
}
"""


def sessions() -> list[tuple[tuple[str, ...], str]]:
    """Find the sessions: what each needs, and its text."""
    return [(tuple(re.findall(r"\w+", m[1] or "")), m[2]) for m in BLOCK.finditer(TEXT)]


def marks(words: tuple[str, ...]) -> list[pytest.MarkDecorator]:
    """Mark a session by its needs; what only a machine of its own has is always tried there."""
    needs = pytest.mark.requires(*words)
    return [needs, pytest.mark.vm] if "limits" in words else [needs]


def parted(session: str) -> list[tuple[str, list[str]]]:
    """Part a session into commands, each with the lines that answer it."""
    found: list[tuple[str, list[str]]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def pattern(lines: list[str]) -> re.Pattern[str]:
    """Make a pattern of an answer."""
    made = ""
    for line in lines:
        if line == "…":
            made += r"(?:.*\n)*"
        else:
            made += ".*".join(map(re.escape, line.split("…"))) + r"\s*\n"
    return re.compile(made)


def programs(place: Path) -> Path:
    """Make a directory with `minirun`, and with `sudo`, which not every machine has."""
    directory = place / "bin"
    directory.mkdir()
    given = os.environ.get("MINIRUN")
    if given:
        (directory / "minirun").symlink_to(given)
    else:
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        paths = [str(CHECKOUT), *libraries]
        (directory / "minirun").write_text(
            f"#!{sys.executable} -ISB\nimport sys\nsys.path += {paths!r}\n"
            "from minirun.launcher import main\nmain()\n"
        )
        (directory / "minirun").chmod(0o755)
    (directory / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (directory / "sudo").chmod(0o755)
    return directory


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a disk, for the data: before Linux 6.3 a tmpfs cannot map owners."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def answers(place: Path, disk: Path, commands: list[str]) -> list[str]:
    """Type the commands one after the other; return what each printed."""
    script = [SETUP]
    if BUSYBOX not in commands:
        script.append(f"{BUSYBOX} -q >/dev/null")
    for command in commands:
        # A server that was started just before may need a moment until it listens.
        typed = f"try {command}" if command.startswith("busybox wget ") else command
        script += [f"echo {MARK}", "(exit $last)", f"{{ {typed}\n}} 2>&1", "last=$?"]
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", "\n".join(script), "sh", str(disk)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,
        cwd=place,
        env={"PATH": f"{programs(place)}:{PATH.removeprefix('PATH=')}"},
    )
    told = done.stdout.split(f"{MARK}\n")
    assert len(told) == len(commands) + 1, done.stdout + done.stderr
    return told[1:]


def test_there_are_sessions() -> None:
    assert len(sessions()) == TEXT.count("```console") >= 6


@pytest.mark.requires("root", "cgroup2", "userns", "overlay", "netns", "nft", "unshare")
@pytest.mark.parametrize(
    "session",
    [
        pytest.param(text, marks=marks(words), id=str(number))
        for number, (words, text) in enumerate(sessions())
    ],
)
def test_what_is_shown_is_what_happens(session: str, place: Path, disk: Path) -> None:
    parts = parted(session)
    for (command, wanted), told in zip(
        parts, answers(place, disk, [command for command, _ in parts]), strict=True
    ):
        assert pattern(wanted).fullmatch(told), f"$ {command}\n{told}"
