"""features: what this runtime knows, as JSON (features.md of the runtime specification).

It tells of the runtime, not of the host. Everything is taken from the tables that the runtime works
by, and where there is none, from the check that refuses a configuration as "not supported yet": so
that what becomes supported is told without a change here.
"""

from __future__ import annotations

from minirun import (
    SPEC_VERSION,
    SPEC_VERSION_MIN,
    __version__,
    jsontext,
    mountoptions,
    namespaces,
    refuse,
    seccomp,
)
from minirun.cli import libseccomp_version, write
from minirun.errors import ConfigError
from minirun.kernel import capability
from minirun.kernel import seccomp as kernel
from minirun.kernel.process import MPOL_FLAGS, MPOL_MODES
from minirun.spec import Hooks, Spec
from minirun.validate import validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.grammar import Options

# Annotations by which a configuration makes the runtime do something; a name that ends in a dot
# stands for all that begin so. Engines keep these from their users.
UNSAFE_ANNOTATIONS = (
    "org.criu.config",
    "org.systemd.property.",
    "run.minirun.managed",
    "run.oci.keep_original_groups",
)

# Where the systemd driver of cgroups is; it is told as soon as it can be loaded.
_SYSTEMD = "minirun.cgroups.systemd"


def features(_options: Options) -> int:
    """`minirun features`."""
    return write(jsontext.dumps(describe(), "    ") + "\n")


def describe() -> dict[str, Any]:
    """Return the features structure."""
    return {
        "ociVersionMin": SPEC_VERSION_MIN,
        "ociVersionMax": SPEC_VERSION,
        "hooks": [field.name for field in Hooks._fields.values()],
        "mountOptions": list(mountoptions.KNOWN),
        "linux": _linux(),
        "annotations": _annotations(),
        "potentiallyUnsafeConfigAnnotations": list(UNSAFE_ANNOTATIONS),
    }


def _annotations() -> dict[str, str]:
    found = {
        "run.minirun.version": __version__,
        "run.minirun.checkpoint.enabled": "true",
    }
    library = libseccomp_version()
    if library:
        found["io.github.seccomp.libseccomp.version"] = library
    return found


def _linux() -> dict[str, Any]:
    systemd = _loads(_SYSTEMD)
    return {
        "namespaces": sorted(namespaces.FLAGS),
        "capabilities": list(capability.NAMES),
        "cgroup": {
            "v1": False,
            "v2": True,
            "systemd": systemd,
            "systemdUser": systemd,
            "rdma": True,
        },
        "seccomp": _seccomp(),
        "apparmor": {"enabled": knows(process={"apparmorProfile": "x"})},
        "selinux": {
            "enabled": knows(process={"selinuxLabel": "a:b:c:d"}) and knows(mountLabel="a:b:c:d")
        },
        "intelRdt": {"enabled": knows(intelRdt={"closID": "x"})},
        **_memory_policy(),
        "mountExtensions": {"idmap": {"enabled": "idmap" in mountoptions.KNOWN}},
        "netDevices": {"enabled": knows(netDevices={"eth0": {"name": "eth0"}})},
    }


def _seccomp() -> dict[str, Any]:
    if not libseccomp_version():
        return {"enabled": False}
    return {
        "enabled": True,
        "actions": [name for name in sorted(seccomp.ACTIONS) if knows(seccomp=_rule(name))],
        "operators": sorted(seccomp.OPERATORS),
        "archs": sorted(seccomp.ARCHITECTURES),
        "knownFlags": sorted(seccomp.FLAGS),
        "supportedFlags": [
            name for name in sorted(seccomp.FLAGS) if kernel.knows_flag(seccomp.FLAGS[name])
        ],
    }


def _rule(action: str) -> dict[str, Any]:
    default = "SCMP_ACT_KILL" if action == "SCMP_ACT_ALLOW" else "SCMP_ACT_ALLOW"
    return {"defaultAction": default, "syscalls": [{"names": ["getcwd"], "action": action}]}


def _memory_policy() -> dict[str, Any]:
    if not knows(memoryPolicy={"mode": "MPOL_INTERLEAVE", "nodes": "0"}):
        return {}
    return {
        "memoryPolicy": {
            "modes": list(MPOL_MODES),
            "flags": list(MPOL_FLAGS),
        }
    }


def _loads(module: str) -> bool:
    try:
        __import__(module)
    except ModuleNotFoundError:
        return False
    return True


def knows(*, process: dict[str, Any] | None = None, **linux: Any) -> bool:
    """Tell whether a configuration with these fields is not refused as "not supported yet"."""
    config = {
        "ociVersion": SPEC_VERSION,
        "process": {"args": ["x"], "cwd": "/", **(process or {})},
        "root": {"path": "/"},
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "network", "pid")],
            **linux,
        },
    }
    try:
        validate(Spec.decode(config))
    except ConfigError as error:
        return error.problem != refuse.NOT_YET
    return True
