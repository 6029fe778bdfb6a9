"""The same in the virtual machine of scripts/vm: minirun goes in, the figures come back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lib.bench.bundle import TARBALL, Unusable
from lib.vm.common import cache_dir
from lib.vm.machine import default_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

SCRIPTS = Path(__file__).resolve().parents[2]
PLACE = "/root/bench"
TREE = ("pyproject.toml", "README.md", "LICENSE", "minirun", "rootfs", "scripts")
# The process is told to the file for when we are interrupted: ssh takes no signals along.
INSIDE = f"""cd {PLACE}/tree && scripts/install --wheelhouse ../wheels >&2 || exit
echo $$ >{PLACE}/pid && exec scripts/bench "$@" """


def measure(arguments: argparse.Namespace) -> int:
    """Return the exit status of the benchmark in the machine. Raises Unusable."""
    machine = Machine(arguments.vm_name or f"{default_name()}-bench")
    ours = machine.run("status", quiet=True) != 0
    try:
        if ours and machine.run("start"):
            raise Unusable("the machine did not start (scripts/vm says why, above)")
        machine.install()
        return machine.measure(inner(arguments), arguments.json)
    finally:
        if ours and not arguments.keep:
            machine.run("stop", "--now")


def inner(arguments: argparse.Namespace) -> list[str]:
    """The options that hold inside too."""
    words = [f"--only={','.join(arguments.only)}", f"--runs={arguments.runs}"]
    words += [f"--timeout={arguments.timeout}", f"--json={PLACE}/result.json"]
    return words + [f"--{word}" for word in ("quick", "strict") if getattr(arguments, word)]


class Machine:
    def __init__(self, name: str) -> None:
        self.words = [str(SCRIPTS / "vm"), "--name", name]

    def run(self, *words: str, quiet: bool = False) -> int:
        output = subprocess.DEVNULL if quiet else sys.stderr
        done = subprocess.run(
            [*self.words, *words], stdin=subprocess.DEVNULL, stdout=output, check=False
        )
        return done.returncode

    def read(self, *words: str) -> str:
        """What a command in the machine prints."""
        done = subprocess.run(
            [*self.words, "exec", "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unusable(f"{words[0]} failed in the machine")
        return done.stdout

    def install(self) -> None:
        """Copy the checkout and all that minirun needs, as wheels for the machine's Python."""
        version = self.read(
            "python3", "-ISc", "import sys; print('%d.%d' % sys.version_info[:2])"
        ).strip()
        wheels = cache_dir().parent / f"wheels-bench-{version}"
        wheels.mkdir(parents=True, exist_ok=True)
        make = [str(SCRIPTS / "install"), "--make-wheelhouse", str(wheels), "--for", version]
        if subprocess.run(make, stdout=sys.stderr, check=False).returncode:
            raise Unusable("the wheels could not be made (scripts/install says why, above)")
        with tempfile.TemporaryDirectory() as scratch:
            self._copy(Path(scratch), wheels)

    def _copy(self, scratch: Path, wheels: Path) -> None:
        place = scratch / "bench"
        (place / "tree").mkdir(parents=True)
        (place / "wheels").symlink_to(wheels)
        for name in TREE:
            (place / "tree" / name).symlink_to(SCRIPTS.parent / name)
        if tarball := os.environ.get(TARBALL):
            (place / "rootfs.tar").symlink_to(Path(tarball).absolute())
        self.run("exec", "--", "rm", "-rf", PLACE)
        pack = ["tar", "--create", "--dereference", "--exclude=__pycache__"]
        pack += ["--exclude=rootfs/*.tar*", "--exclude=.git", f"--directory={scratch}", "bench"]
        unpack = [*self.words, "exec", "--", "tar", "--extract", "--directory=/root"]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packer:
            unpacked = subprocess.run(unpack, stdin=packer.stdout, check=False).returncode
        if packer.returncode or unpacked:
            raise Unusable("the checkout could not be copied into the machine")

    def measure(self, options: Sequence[str], result: str | None) -> int:
        root = [f"{TARBALL}={PLACE}/rootfs.tar"] if os.environ.get(TARBALL) else []
        shell = ["env", *root, "sh", "-c", INSIDE, "sh", *options]
        try:
            done = subprocess.run(
                [*self.words, "exec", "--", *shell], stdin=subprocess.DEVNULL, check=False
            )
        except (KeyboardInterrupt, SystemExit):
            self.run("exec", "--", "sh", "-c", f'kill -INT "$(cat {PLACE}/pid)"')
            raise
        if done.returncode and self.run("status", quiet=True):
            raise Unusable("the machine was ended while it measured")
        # Empty where nothing was measured, absent where the benchmark did not come to begin.
        if result and (text := self.read("sh", "-c", f"cat {PLACE}/result.json || :")):
            Path(result).write_text(text)
        return done.returncode
