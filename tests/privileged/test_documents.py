"""What the documents show is true: each session is typed in, and must answer as printed.

Which blocks there are, and what is said of them, is in `blocks`. In an answer `…` stands for
anything within a line, and alone for any lines. Each session has the machine's directories, /etc,
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
from blocks import Block, all_blocks, examples
from runtime import CHECKOUT, PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = [block for block in all_blocks() if block.executed]
MARK = "@@@@"
BUSYBOX = "minirun rootfs build busybox"
ALPINE = '[ -z "${MINIRUN_ROOTFS_TARBALL-}" ] || minirun rootfs pull alpine --quiet'
# What the caller's environment may say of the machine.
GIVEN = ("MINIRUN_ROOTFS_TARBALL", "MINIRUN_TEST_KERNEL")

UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")
SETUP = """
set -e
mount -t tmpfs tmpfs /run
mount --bind "$1" /var/lib
mkdir -p "$1"/etc/upper "$1"/etc/work
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc/upper,workdir=$1/etc/work" overlay /etc
ip link set lo up
set +e
trap 'for id in $(minirun list -q); do minirun delete --force "$id"; done' EXIT
last=0
try() {
    for _ in $(seq 60); do told=$("$@" 2>&1) && break; sleep 0.5; done
    printf '%s\\n' "$told"
}
"""


def marks(block: Block) -> list[pytest.MarkDecorator]:
    """Mark a session by its needs; what only a machine of its own has is always tried there."""
    needs = pytest.mark.requires(*block.needs)
    return [needs, pytest.mark.vm] if "limits" in block.needs else [needs]


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
    if not any(BUSYBOX in command for command in commands):
        script.append(f"{BUSYBOX} -q >/dev/null")
    if any(" --rootfs alpine" in command for command in commands):
        script.append(ALPINE)
    for command in commands:
        # A server that was started just before may need a moment until it listens.
        waits = " wget " in f" {command}" and "|" not in command
        typed = f"try {command}" if waits else command
        script += [f"echo {MARK}", "(exit $last)", f"{{ {typed}\n}} 2>&1", "last=$?"]
    script.append(f"echo {MARK}; echo $last")
    directory = place / "home"
    directory.mkdir()
    (directory / "scripts").symlink_to(CHECKOUT / "scripts")
    given = {name: os.environ[name] for name in GIVEN if name in os.environ}
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", "\n".join(script), "sh", str(disk)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=540,
        cwd=directory,
        env={
            "PATH": f"{programs(place)}:{PATH.removeprefix('PATH=')}",
            "HOME": str(directory),
            **given,
        },
    )
    told = done.stdout.split(f"{MARK}\n")
    assert len(told) == len(commands) + 2, done.stdout + done.stderr
    return told[1:]


# What the examples of the manual suppose: a container `web`, a bundle, an archive.
SUPPOSED = """
[ -z "${MINIRUN_ROOTFS_TARBALL-}" ] || ln -s "$MINIRUN_ROOTFS_TARBALL" rootfs.tar.gz
"""
BUNDLE = "mkdir -p bundle/rootfs && minirun spec --bundle bundle\n"
# Those that make `web` themselves.
MAKERS = {"minirun", "plan", "run"}
# The exit status is a verdict.
VIRT = re.compile(r"^minirun virt.*$", re.M)
# What has no end while the container runs.
STREAM = re.compile(r"^.* events --interval .*$", re.M)
# A shell on a terminal, in which somebody types.
TERMINAL = re.compile(r"^(?:.* -t .*|minirun run web)$", re.M)


@pytest.mark.requires("root", "cgroup2", "userns", "overlay", "netns", "nft", "unshare")
@pytest.mark.parametrize(
    "block",
    [pytest.param(one, marks=marks(one), id=one.name) for one in examples() if one.executed],
)
def test_examples_of_the_manual_work(block: Block, place: Path, disk: Path) -> None:
    name = Path(block.document).stem
    before = SUPPOSED + (BUNDLE if "--bundle bundle" in block.text else "")
    if name not in MAKERS:
        before += "minirun run -d --rootfs busybox web sleep 1000\n"
    text = VIRT.sub(r"{ \g<0>; } || [ $? -ge 10 ]", block.text)
    text = STREAM.sub(r"\g<0> | grep -m 2 stats", text)
    text = TERMINAL.sub(r"printf 'exit\\n' | script -qefc '\g<0>' /dev/null", text)
    *told, status = answers(place, disk, [before, f"( set -e\n{text})"])
    assert status == "0\n", f"{block.text}\n{told}"


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 38, f"{len(BLOCKS)} blocks are typed in"


@pytest.mark.requires("root", "cgroup2", "userns", "overlay", "netns", "nft", "unshare")
@pytest.mark.parametrize(
    "block", [pytest.param(block, marks=marks(block), id=block.name) for block in BLOCKS]
)
def test_what_is_shown_is_what_happens(block: Block, place: Path, disk: Path) -> None:
    if block.language == "sh":
        *_, status = answers(place, disk, [f"( set -e\n{block.text})"])
        assert status == "0\n", block.text
        return
    parts = block.commands()
    *told, _status = answers(place, disk, [command for command, _ in parts])
    for (command, wanted), answer in zip(parts, told, strict=True):
        assert pattern(wanted).fullmatch(answer), f"$ {command}\n{answer}"
