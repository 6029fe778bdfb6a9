"""The flags of `run --rootfs`, read and checked together: nothing on the machine is changed."""

from __future__ import annotations

import os
import stat

from minirun import units
from minirun.engine import defaults, environment, limits, security, volumes
from minirun.errors import MinirunError, UsageError
from minirun.network import address, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.engine.volumes import Volume
    from minirun.options import Options

_OOM_SCORE_MAX = 1000
_ACCESS = frozenset("rwm")


class Device:
    """A device of the host that the container is given: where it is, what may be done to it."""

    def __init__(self, source: str, target: str, access: str) -> None:
        status = os.stat(source)
        self.source = source
        self.target = target
        self.access = access
        self.kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
        self.major = os.major(status.st_rdev)
        self.minor = os.minor(status.st_rdev)
        self.mode = stat.S_IMODE(status.st_mode)
        self.is_device = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)


class Request:
    """What a command line asks for. `notes` are sentences for people, gathered on the way."""

    def __init__(self, options: Options, cid: str, command: Sequence[str]) -> None:
        self.options = options
        self.cid = cid
        self.notes: list[str] = []
        self.hostname = environment.hostname(options.hostname, cid)
        self.args = environment.command(command, options.init)
        self.cwd = environment.directory(options.workdir)
        self.rlimits = environment.rlimits(options.ulimit)
        self.security = security.parse(options.security_opt)
        self.capabilities = security.capabilities(options.cap_add, options.cap_drop)
        self.user_namespace = _choice("userns", options.userns, "auto", ("auto", "host"))
        self.time_namespace = (
            _choice("timens", options.timens, "private", ("private", "host")) == "private"
        )
        self.network, self.network_path = _network(options.network)
        self.attach = _attach(options, cid, self)
        self.mounts = volumes.parse(options.volume, options.mount, options.tmpfs)
        self.devices = [_device(text) for text in options.device]
        self.shm_size = _shm_size(options.shm_size)
        self.oom_score_adj = _oom_score(options.oom_score_adj)
        self.sysctls = security.sysctls(
            options.sysctl, own_network=self.network in ("none", "bridge")
        )
        self.cgroups_path = _cgroups_path(options, cid)
        self.resources = limits.resources(options, self.notes)

    @property
    def binds(self) -> list[Volume]:
        """The volumes among the mounts."""
        return [item for item in self.mounts if isinstance(item, volumes.Volume)]

    def variables(self, home: str) -> list[str]:
        """Give process.env for a user whose home directory is `home`."""
        fixed = {"PATH": defaults.PATH, "HOME": home, "HOSTNAME": self.hostname}
        if self.options.tty:
            term = os.environ.get("TERM", "")
            fixed["TERM"] = term if term.isascii() and term.isprintable() and term else "xterm"
        return environment.variables(fixed, self.options.env_file, self.options.env, os.environ)


def _choice(option: str, value: str | None, default: str, known: tuple[str, ...]) -> str:
    chosen = value or default
    if chosen not in known:
        raise UsageError(f"--{option} must be {' or '.join(known)}, not {chosen[:80]!r}")
    return chosen


def _network(text: str | None) -> tuple[str, str]:
    """Read `--network`: (mode, path of the namespace or name of the bridge network)."""
    mode, colon, rest = (text or "none").partition(":")
    if mode in ("none", "host") and not colon:
        return mode, ""
    if mode == "bridge" and (rest or not colon):
        return mode, rest
    if mode == "ns" and rest.startswith("/") and "\0" not in rest:
        if not os.path.exists(rest):
            raise MinirunError(f"--network: the namespace {rest} does not exist")
        # Not realpath: what /proc/PID/ns/net links to has no path of its own.
        return mode, os.path.abspath(rest)
    raise UsageError(
        f"invalid --network {str(text)[:80]!r}",
        fix="write none, host, bridge, bridge:NAME, or ns:/path/of/a/namespace",
    )


def _attach(options: Options, cid: str, request: Request) -> plan.Request:
    """Give what the network is asked for; its names files are written for every mode."""
    if options.publish and request.network != "bridge":
        raise UsageError("--publish needs --network bridge", cause="there is nothing to lead to")
    name = request.network_path if request.network == "bridge" else ""
    return plan.check(
        plan.Request(
            network=name or address.DEFAULT_NETWORK,
            container=cid,
            hostname=request.hostname,
            publish=tuple(plan.parse_publish(text) for text in options.publish),
            dns=tuple(options.dns),
            extra_hosts=tuple(options.add_host),
        )
    )


def _device(text: str) -> Device:
    option = f"--device {text!r}"
    parts = text.split(":")
    if len(parts) > 3 or not all(parts) or not parts[0].startswith("/"):
        raise UsageError(f"invalid {option}: want PATH[:TARGET[:rwm]]")
    if len(parts) == 2 and _ACCESS.issuperset(parts[1]):
        parts.insert(1, parts[0])
    target = parts[1] if len(parts) > 1 else parts[0]
    access = parts[2] if len(parts) > 2 else "rw"
    if not _ACCESS.issuperset(access) or len(set(access)) != len(access):
        raise UsageError(f"{option}: the access is out of r, w and m")
    if not target.startswith("/dev/") or ".." in target.split("/") or "\0" in target:
        raise UsageError(f"{option}: the target must be below /dev")
    try:
        device = Device(parts[0], target, access)
    except OSError as error:
        raise MinirunError(f"{option}: {(error.strerror or '').lower()}") from None
    if not device.is_device:
        raise UsageError(f"{option}: {parts[0]} is not a device")
    return device


def _shm_size(text: str | None) -> int:
    if text is None:
        return defaults.SHM_SIZE
    try:
        size = units.parse_size(text)
    except UsageError as error:
        raise UsageError(f"--shm-size: {error.message}", fix=error.fix) from None
    if size == 0:
        # 0 is "unlimited" to tmpfs.
        raise UsageError("--shm-size: must be above 0")
    return size


def _oom_score(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = units.parse_count(text.removeprefix("-"), 0, _OOM_SCORE_MAX)
    except UsageError:
        raise UsageError(f"--oom-score-adj must be from -1000 to 1000, not {text[:80]!r}") from None
    return -value if text.startswith("-") else value


def _cgroups_path(options: Options, cid: str) -> str:
    parent = options.cgroup_parent
    if options.systemd_cgroup:
        if parent is not None and (not parent.endswith(".slice") or ":" in parent):
            raise UsageError(f"--cgroup-parent must be a slice with --systemd-cgroup: {parent!r}")
        return f"{parent or 'system.slice'}:minirun:{cid}"
    parent = "/minirun" if parent is None else parent
    if not parent.startswith("/") or ".." in parent.split("/") or not parent.isprintable():
        raise UsageError(f"--cgroup-parent must be an absolute path without '..': {parent!r}")
    return f"{parent.rstrip('/')}/{cid}"
