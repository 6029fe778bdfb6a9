"""What the containers are made of: one root filesystem, one configuration for every runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TARBALL = "MINIRUN_ROOTFS_TARBALL"
PROGRAMS = ("true", "sleep", "sh")


class Unusable(Exception):
    """What is missing, and what to do: one line."""


def make_root(root: Path) -> str:
    """Fill an empty directory; tell from what. Raises Unusable."""
    tarball = os.environ.get(TARBALL, "")
    busybox = shutil.which("busybox")
    if tarball:
        _unpack(Path(tarball), root)
        source = Path(tarball).name
    elif busybox:
        (root / "bin").mkdir()
        shutil.copy(busybox, root / "bin/busybox")
        for name in PROGRAMS:
            (root / "bin" / name).symlink_to("busybox")
        source = "busybox"
    else:
        raise Unusable(
            f"no root filesystem: set {TARBALL} (Debian, Ubuntu: or apt install busybox-static)"
        )
    # systemd-nspawn starts nothing that does not look like an operating system.
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir(exist_ok=True)
    if not os.path.lexists(root / "etc/os-release"):
        (root / "etc/os-release").write_text("ID=bench\n")
    trial = ["chroot", str(root), "/bin/true"]
    if subprocess.run(trial, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode:
        raise Unusable(
            f"{source} does not run in a root filesystem of its own: set {TARBALL}, or install a"
            " static busybox (Debian, Ubuntu: apt install busybox-static)"
        )
    return source


def _unpack(tarball: Path, root: Path) -> None:
    if not tarball.is_file():
        raise Unusable(f"{TARBALL}: {tarball} does not exist")
    unpack = ["tar", "--extract", "--no-same-owner", f"--file={tarball.absolute()}"]
    if subprocess.run(unpack, cwd=root, check=False).returncode:
        raise Unusable(f"{TARBALL}: {tarball} could not be unpacked")


def configuration(root: Path, arguments: Sequence[str], group: str) -> dict[str, Any]:
    """What `runc spec` writes, without a terminal."""
    safe = ["nosuid", "noexec", "nodev"]
    sets = ("bounding", "effective", "permitted", "ambient")
    kept = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(sets, kept),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", []),
            mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", [*safe, "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", safe),
            mount("/sys", "sysfs", [*safe, "ro"]),
            mount("/sys/fs/cgroup", "cgroup", [*safe, "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": group,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
            ],
            "maskedPaths": [
                *(f"/proc/{name}" for name in ("acpi", "asound", "kcore", "keys", "latency_stats")),
                *(f"/proc/{name}" for name in ("timer_list", "timer_stats", "sched_debug", "scsi")),
                "/sys/firmware",
            ],
            "readonlyPaths": [
                f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")
            ],
        },
    }


def mount(destination: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def write(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
