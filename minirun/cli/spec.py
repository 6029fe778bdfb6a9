"""spec: a config.json to start from."""

from __future__ import annotations

import os

from minirun import SPEC_VERSION, jsontext
from minirun.errors import AlreadyExists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.grammar import Options

_FILE = "config.json"
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
# runc's order, for whoever compares the two files.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
    "/sys/devices/virtual/tpm",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def spec(options: Options) -> int:
    """`minirun spec`."""
    config = example(unified=os.path.exists("/sys/fs/cgroup/cgroup.controllers"))
    if options.rootless:
        to_rootless(config, os.geteuid(), os.getegid())
    path = os.path.join(options.bundle or ".", _FILE)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
    except FileExistsError:
        raise AlreadyExists(f"File {_FILE} exists. Remove it first") from None
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)  # for whoever edits it next; our umask would keep it for root
        file.write(jsontext.dumps(config, "\t"))
    return 0


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    return {**mount, "options": list(options)} if options else mount


def example(*, unified: bool) -> dict[str, Any]:
    """Make the example configuration; with `unified` cgroups it gets a cgroup namespace."""
    safe = ("nosuid", "noexec", "nodev")
    namespaces = ["pid", "network", "ipc", "uts", "mount"] + ["cgroup"] * unified
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "minirun",
        "mounts": [
            _mount("/proc", "proc", "proc"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts",
                "devpts",
                "devpts",
                *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            ),
            _mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", "size=65536k"),
            _mount("/dev/mqueue", "mqueue", "mqueue", *safe),
            _mount("/sys", "sysfs", "sysfs", *safe, "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", *safe, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": name} for name in namespaces],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }


def to_rootless(config: dict[str, Any], uid: int, gid: int) -> None:
    """Change the example so that a user without privileges can run it."""
    linux = config["linux"]
    del linux["resources"]
    kept = [entry for entry in linux.pop("namespaces") if entry["type"] != "network"]
    config["linux"] = {
        "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
        "namespaces": [*kept, {"type": "user"}],
        **linux,
    }
    config["mounts"] = [_rootless_mount(mount) for mount in config["mounts"]]


def _rootless_mount(mount: dict[str, Any]) -> dict[str, Any]:
    if mount["destination"] == "/sys":
        # sysfs needs a network namespace of one's own, which needs somebody to connect it.
        return _mount("/sys", "none", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")
    options = [o for o in mount.get("options", ()) if not o.startswith(("uid=", "gid="))]
    return {**mount, "options": options} if options else mount
