"""config.json from a request: an ordinary one, that any OCI runtime can run."""

from __future__ import annotations

import os
import sys

from minirun.engine import defaults, environment, idrange, security
from minirun.engine.volumes import Volume
from minirun.errors import MinirunError, UsageError
from minirun.network import plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.engine.request import Device, Request
    from minirun.engine.users import Account

MANAGED = "run.minirun.managed"
ROOTFS = "run.minirun.rootfs"
_EXECUTABLES = ("/usr/local/bin/minirun", "/usr/bin/minirun")


class Place:
    """Where a container was put: its bundle, the tree it is made from, its first host ID or None.

    `start` None means that it shares the host's user namespace. `files` are the mounts of the
    files that were written into the bundle.
    """

    def __init__(self, bundle: str, lower: str, start: int | None) -> None:
        self.bundle = bundle
        self.lower = lower
        self.start = start
        self.files: list[dict[str, Any]] = []

    @property
    def mapping(self) -> list[dict[str, int]] | None:
        """The ID mapping as config.json has it."""
        return None if self.start is None else idrange.mapping(self.start)


def document(request: Request, place: Place, account: Account) -> dict[str, Any]:
    """Give config.json as a dict. Raises MinirunError for what it needs and cannot find."""
    found: dict[str, Any] = {
        "ociVersion": defaults.OCI_VERSION,
        "process": _process(request, account),
        "root": {"path": "rootfs", "readonly": request.options.read_only},
        "hostname": request.hostname,
        "mounts": _mounts(request, place),
        "annotations": {MANAGED: "true", ROOTFS: place.lower},
        "linux": _linux(request, place),
    }
    if request.network == "bridge":
        found["hooks"] = plan.hooks(request.attach, executable())
    return found


def _process(request: Request, account: Account) -> dict[str, Any]:
    found: dict[str, Any] = {
        "terminal": request.options.tty,
        "user": {
            "uid": account.uid,
            "gid": account.gid,
            "umask": defaults.UMASK,
            "additionalGids": list(account.groups),
        },
        "args": request.args,
        "env": request.variables(account.home),
        "cwd": request.cwd,
        "capabilities": security.sets(request.capabilities),
        "rlimits": request.rlimits,
        "noNewPrivileges": request.security.no_new_privileges,
    }
    if request.security.apparmor is not None:
        found["apparmorProfile"] = request.security.apparmor
    if request.oom_score_adj is not None:
        found["oomScoreAdj"] = request.oom_score_adj
    return found


def _mounts(request: Request, place: Place) -> list[dict[str, Any]]:
    """List the mounts: the file systems of every container, our files, then what was asked for.

    What was asked for takes the place of ours on the same target.
    """
    # kernel: a user namespace may mount sysfs only with a network namespace of its own.
    own_sys = place.start is None or request.network in ("none", "bridge")
    ours = [*defaults.mounts(request.shm_size, own_sys=own_sys), *place.files]
    if request.options.init:
        ours.append(environment.init_mount())
    asked = [
        item.encode(place.mapping) if isinstance(item, Volume) else item for item in request.mounts
    ]
    if place.start is not None:
        asked += [_bound(device) for device in request.devices]
    taken = {entry["destination"] for entry in asked}
    return [entry for entry in ours if entry["destination"] not in taken] + asked


def _bound(device: Device) -> dict[str, Any]:
    """Bind a device's node: in a user namespace none can be made (mknod(2), EPERM)."""
    return {
        "destination": device.target,
        "type": "bind",
        "source": device.source,
        "options": ["bind", "nosuid", "noexec"],
    }


def _linux(request: Request, place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {
        "namespaces": _namespaces(request, place),
        "cgroupsPath": request.cgroups_path,
        "resources": {"devices": _device_rules(request.devices), **request.resources},
        "maskedPaths": defaults.masked(),
        "readonlyPaths": list(defaults.READONLY),
    }
    if place.mapping is not None:
        found["uidMappings"] = place.mapping
        found["gidMappings"] = place.mapping
    elif request.devices:
        found["devices"] = [_node(device) for device in request.devices]
    if sysctls := _sysctls(request):
        found["sysctl"] = sysctls
    profile = security.seccomp(request.security.seccomp)
    if profile is not None:
        found["seccomp"] = profile
    return found


def _namespaces(request: Request, place: Place) -> list[dict[str, str]]:
    names = [*defaults.NAMESPACES, *(["time"] if request.time_namespace else [])]
    found = [{"type": name} for name in names]
    if place.start is not None:
        found.append({"type": "user"})
    if request.network == "ns":
        found.append({"type": "network", "path": request.network_path})
    elif request.network != "host":
        found.append({"type": "network"})
    return found


def _device_rules(devices: list[Device]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    allowed = [
        *[(*rule, "rw") for rule in defaults.DEVICE_RULES],
        *[(device.kind, device.major, device.minor, device.access) for device in devices],
    ]
    for kind, major, minor, access in allowed:
        rule: dict[str, Any] = {"allow": True, "type": kind, "major": major, "access": access}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules


def _node(device: Device) -> dict[str, Any]:
    return {
        "path": device.target,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": 0,
        "gid": 0,
    }


def _sysctls(request: Request) -> dict[str, str]:
    found = {}
    if request.network == "bridge":
        # ping without NET_RAW, for root's group: icmp(7).
        found["net.ipv4.ping_group_range"] = "0 0"
    return {**found, **request.sysctls}


def executable() -> str:
    """Find the program that hooks call. Raises MinirunError when minirun is not installed."""
    started = os.path.abspath(sys.argv[0])
    candidates = [started] if os.path.basename(started) == "minirun" else []
    for path in (*candidates, *_EXECUTABLES):
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise MinirunError(
        "--network bridge: minirun is not installed",
        cause=f"the runtime calls it to attach the container; looked at {', '.join(_EXECUTABLES)}",
        fix="scripts/install",
    )


def check_ids(account: Account, start: int | None) -> None:
    """Raise UsageError for a user or group that the container's user namespace does not have."""
    if start is None:
        return
    for what, number in (("user", account.uid), ("group", account.gid)):
        if number >= idrange.SIZE:
            raise UsageError(
                f"--user: {what} {number} is not in the container's user namespace",
                cause=f"it has the ids 0 to {idrange.SIZE - 1}",
                fix="choose a lower one, or pass --userns host",
            )
    account.groups = tuple([gid for gid in account.groups if gid < idrange.SIZE])
