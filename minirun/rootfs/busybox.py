"""`rootfs build busybox`: a root filesystem of one static program, made without a network."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import subprocess

from minirun.errors import MinirunError
from minirun.rootfs import change, install, store

BINARIES = ("/bin/busybox", "/usr/bin/busybox")

_APPLET = re.compile(r"[A-Za-z0-9_.+\[-]{1,64}")
_LARGEST = 64 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# elf(5): e_machine by uname -m, and the program header that names a dynamic loader.
_MACHINES = {"x86_64": 62, "aarch64": 183}
_PT_INTERP = 3

_DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "mnt": 0o755, "proc": 0o555,
    "root": 0o700, "run": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755,
    "var": 0o755, "var/log": 0o755, "var/spool": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
_LINKS = {
    "sbin": "bin",
    "usr/bin": "../bin",
    "usr/sbin": "../bin",
    "var/run": "../run",
    "etc/mtab": "../proc/self/mounts",
}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n/bin/ash\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "etc/hostname": "localhost\n",
    "etc/resolv.conf": "",
    "etc/profile": "export PATH=/bin\nPS1='\\u@\\h:\\w\\$ '\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def build(order: install.Order, binary: str | None = None) -> store.RootFS:
    """Make a root filesystem of a static busybox; `binary` is its path, by default Debian's.

    Raises MinirunError if there is none, or if it is not static: a loader would be missing.
    """
    change.require_root()
    path, program = _read(binary)
    check_static(path, program)
    digest = hashlib.sha256(program).hexdigest()
    if there := install.up_to_date(order, digest):
        order.listener.note(f"{order.name} is up to date")
        return there
    applets, version = _applets(path), _version(path)
    with change.Stage(order.data, order.name) as stage:
        try:
            entries = _fill(stage.tree, program, applets, version)
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise MinirunError(
                f"cannot write the root filesystem {order.name}: {reason}",
                fix="make room, or use another data directory with --data",
            ) from None
        about = store.RootFS(
            name=order.name, source=path, version=version, architecture=os.uname().machine,
            digest=f"sha256:{digest}", size=len(program), entries=entries,
        )  # fmt: skip
        return stage.publish(about, replace=order.replace)


def check_static(path: str, program: bytes) -> None:
    """Refuse what is not a static program for this machine. Raises MinirunError. Source: elf(5)."""
    try:
        interpreted = _has_loader(path, program)
    except struct.error:
        raise MinirunError(f"{path} is a damaged program") from None
    if interpreted:
        raise MinirunError(
            f"{path} is dynamically linked",
            cause="the root filesystem would lack its loader and its libraries",
            fix="install the static one: apt-get install busybox-static",
        )


def _has_loader(path: str, program: bytes) -> bool:
    machine = _MACHINES.get(os.uname().machine)
    # 64-bit, little-endian: both architectures are.
    if program[:6] != b"\x7fELF\x02\x01":
        raise MinirunError(f"{path} is not a program for this machine")
    if struct.unpack_from("<H", program, 18)[0] != machine:
        raise MinirunError(f"{path} is a program for another kind of machine")
    (start,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, start + size * i)[0] for i in range(count)]
    return _PT_INTERP in kinds


def _read(binary: str | None) -> tuple[str, bytes]:
    for path in [binary] if binary else BINARIES:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise MinirunError(f"{path} is not a file")
            with open(path, "rb") as file:
                program = file.read(_LARGEST + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MinirunError(f"cannot read {path}: {(error.strerror or '').lower()}") from None
        if len(program) > _LARGEST:
            raise MinirunError(f"{path} is larger than any busybox")
        return os.path.abspath(path), program
    raise MinirunError(
        f"busybox is not installed: {binary or BINARIES[0]} does not exist",
        fix="install it: apt-get install busybox-static",
    )


def _run(path: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [path, *arguments], executable=path, capture_output=True, timeout=10, check=False,
            cwd="/", env={}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MinirunError(f"cannot run {path}: {error}") from None
    return done.stdout.decode("ascii", "replace")


def _applets(path: str) -> list[str]:
    found = [name for name in _run(path, "--list").split() if _APPLET.fullmatch(name)]
    if "sh" not in found:
        raise MinirunError(f"{path} is no busybox with a shell: its --list names no sh")
    return sorted(set(found) - {"busybox", ".", ".."})


def _version(path: str) -> str:
    match = re.match(r"BusyBox v([0-9][0-9.]{0,20})", _run(path))
    return match[1].rstrip(".") if match else ""


def _fill(tree: int, program: bytes, applets: list[str], version: str) -> int:
    """Write the tree; return how many entries it has."""
    for name, mode in _DIRECTORIES.items():
        os.mkdir(name, 0o700, dir_fd=tree)
        os.chmod(name, mode, dir_fd=tree)
    for name, target in _LINKS.items():
        os.symlink(target, name, dir_fd=tree)
    release = f'ID=busybox\nNAME=BusyBox\nPRETTY_NAME="BusyBox {version}"\nVERSION_ID={version}\n'
    files = {**_FILES, "etc/os-release": release}
    for name, text in files.items():
        _write(tree, name, text.encode(), 0o644)
    _write(tree, "bin/busybox", program, 0o755)
    for name in applets:
        os.symlink("busybox", f"bin/{name}", dir_fd=tree)
    return len(_DIRECTORIES) + len(_LINKS) + len(files) + 1 + len(applets)


def _write(tree: int, name: str, data: bytes, mode: int) -> None:
    fd = os.open(name, _NEW, 0o600, dir_fd=tree)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, mode)
