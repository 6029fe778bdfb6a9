"""The machine's image: built when it is missing or its recipe has changed, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lib.vm.common import SCRIPTS, Failure, cache_dir, locked, say

if TYPE_CHECKING:
    from collections.abc import Container

RECIPE = (SCRIPTS / "vm-image", SCRIPTS / "lib" / "image.sh")

# Tool: the Debian package that has it.
HOST_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "mkswap": "util-linux",
    "ssh": "openssh-client",
    "tar": "tar",
}
# Release: its keys, and their package.
KEYS = {
    "bookworm": ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    "noble": ("/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
}


class Image:
    """A directory with vmlinuz, initrd, root.img, key, known_hosts and tree.tar."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def current(cls) -> Image:
        recipe = hashlib.sha256()
        for part in RECIPE:
            recipe.update(part.read_bytes())
        recipe.update(suite().encode())
        return cls(cache_dir() / f"image-{recipe.hexdigest()[:12]}")

    def exists(self) -> bool:
        return (self.directory / "complete").exists()

    def file(self, name: str) -> str:
        return os.fspath(self.directory / name)


def suite() -> str:
    """Returns the release that the image is of."""
    name = os.environ.get("MINIRUN_VM_SUITE") or "bookworm"
    if name not in KEYS:
        raise Failure(f"MINIRUN_VM_SUITE: unknown release: {name} (known: {', '.join(KEYS)})")
    return name


def missing_packages(*, to_build: bool) -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for tool, package in HOST_TOOLS.items() if not shutil.which(tool, path=path)]
    keys, package = KEYS[suite()]
    if to_build and not Path(os.environ.get("MINIRUN_VM_KEYRING") or keys).exists():
        missing.append(package)
    return missing


def install_host_tools(*, to_build: bool = False) -> None:
    missing = missing_packages(to_build=to_build)
    if not missing:
        return
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]  # another may be at work
    command = [*apt, "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(f"needs {', '.join(missing)}; as root: {shlex.join(command)}")
    say(f"installing {', '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # May fail for some source of the user's that is none of our business: the installation decides.
    subprocess.run([*apt, "update", "-qq"], env=environment, stdout=sys.stderr, check=False)
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
        raise Failure(f"could not install {', '.join(missing)} (apt's words are above)")


def build(in_use: Container[str], *, rebuild: bool = False) -> Image:
    """Returns the image of the current recipe. Those `in_use` are disks of running machines."""
    image = Image.current()
    if platform.machine() != "x86_64":
        raise Failure(f"the image is built for x86_64 only, this machine is {platform.machine()}")
    if image.exists() and not rebuild:
        return image
    install_host_tools(to_build=True)
    if os.geteuid() != 0:
        raise Failure("building the image needs root: sudo scripts/vm build")
    with locked(cache_dir() / "build.lock", "another build is at work; waiting for it"):
        if image.exists() and not rebuild:
            return image
        if os.fspath(image.directory) in in_use:
            raise Failure("a running machine uses this image; scripts/vm stop first")
        began = time.monotonic()
        say(f"building the image in {image.directory} (a few minutes, once)")
        work = image.directory.with_name(f"{image.directory.name}.building")
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
        # It hears of our end even if that comes by SIGKILL.
        command = ["setpriv", "--pdeathsig", "TERM", os.fspath(RECIPE[0]), os.fspath(work)]
        with subprocess.Popen(command, process_group=0) as builder:
            status = wait_or_stop(builder)
        if status:
            raise Failure("the image was not built (the reason is above)")
        (work / "complete").touch()
        shutil.rmtree(image.directory, ignore_errors=True)
        work.rename(image.directory)
        remove_images(in_use, keep=2)
        say(f"image built in {time.monotonic() - began:.0f} s")
    return image


def wait_or_stop(process: subprocess.Popen[bytes]) -> int:
    """Waits; an interrupt is passed on as SIGTERM, and the process given the time to clean up."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def remove_images(in_use: Container[str], keep: int) -> None:
    """Removes all but the newest ones and those in use."""
    images = sorted(cache_dir().glob("image-*[0-9a-f]"), key=lambda path: -path.stat().st_mtime)
    for directory in images[keep:]:
        if os.fspath(directory) not in in_use:
            shutil.rmtree(directory)
