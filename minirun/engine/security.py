"""What the container may do: capabilities, no_new_privs, seccomp, LSM, kernel parameters."""

from __future__ import annotations

from minirun import jsontext, profiles
from minirun.engine import defaults
from minirun.errors import MinirunError, UsageError, similar
from minirun.kernel import capability
from minirun.record import kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Security:
    """What `--security-opt` says; `seccomp` is None (the default), "unconfined" or a file."""

    def __init__(self) -> None:
        self.no_new_privileges = True
        self.seccomp: str | None = None
        self.apparmor: str | None = None
        self.dangerous_volumes = False


def parse(values: Iterable[str]) -> Security:
    """Read `--security-opt`; both `key=value` and docker's older `key:value` are understood."""
    found = Security()
    for text in values:
        key, equals, value = text.partition("=" if "=" in text else ":")
        if key == "seccomp" and value:
            found.seccomp = value
        elif key == "no-new-privileges" and value in ("", "true", "false"):
            found.no_new_privileges = value != "false"
        elif key == "apparmor" and value and "\0" not in value:
            found.apparmor = value
        elif key == "dangerous-volumes" and not equals:
            found.dangerous_volumes = True
        else:
            raise UsageError(
                f"unknown --security-opt {text!r}",
                fix="known: seccomp=FILE|unconfined, no-new-privileges=true|false, "
                "apparmor=PROFILE, dangerous-volumes",
            )
    return found


def capabilities(add: Iterable[str], drop: Iterable[str]) -> list[str]:
    """Give the capabilities that result, in the kernel's order: drops first, then additions.

    So `--cap-drop ALL --cap-add CHOWN` leaves one whatever the order on the command line. A name
    that is both added and dropped is dropped. Raises UsageError for an unknown name.
    """
    added = [_capability(name) for name in add]
    dropped = [_capability(name) for name in drop]
    wanted = set() if "ALL" in dropped else set(defaults.CAPABILITIES)
    if "ALL" in added:
        wanted = set(capability.NAMES)
    wanted |= set(added) - {"ALL"}
    wanted -= set(dropped) - {"ALL"}
    return [name for name in capability.NAMES if name in wanted]


def _capability(text: str) -> str:
    name = text.upper()
    if name == "ALL":
        return name
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in capability.NUMBERS:
        meant = similar(name, capability.NUMBERS)
        raise UsageError(
            f"unknown capability {text!r}", fix=meant or "names are in capabilities(7)"
        )
    return name


def sets(names: list[str]) -> dict[str, list[str]]:
    """Give process.capabilities: nothing inheritable (CVE-2022-24769) and nothing ambient."""
    return {
        "bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": [],
    }  # fmt: skip


def seccomp(choice: str | None) -> dict[str, Any] | None:
    """Give linux.seccomp: the default profile, a file's, or None for "unconfined"."""
    if choice == "unconfined":
        return None
    if choice is None:
        return profiles.seccomp()
    try:
        profile = jsontext.read(choice, "seccomp profile")
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise MinirunError(f"cannot read the seccomp profile {choice}: {reason}") from None
    if not isinstance(profile, dict):
        raise MinirunError(f"seccomp profile {choice} must be an object, not {kind(profile)}")
    if "archMap" in profile or "defaultAction" not in profile:
        raise MinirunError(
            f"seccomp profile {choice} is not linux.seccomp of a config.json",
            cause="docker's profiles are templates, with archMap, includes and excludes",
            fix="take the seccomp object of a config.json that docker or podman wrote",
        )
    return profile


# What a namespace of the container's own holds; anything else would change the host.
_SYSCTLS = ("kernel.shm_rmid_forced", "kernel.sem", "kernel.shmall", "kernel.shmmax",
            "kernel.shmmni", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni")  # fmt: skip
_SYSCTL_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")


def sysctls(values: Iterable[str], *, own_network: bool) -> dict[str, str]:
    """Read `--sysctl NAME=VALUE`. Raises UsageError for a parameter that is not the container's."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name or not _SYSCTL_NAME.issuperset(name):
            raise UsageError(f"invalid --sysctl {text!r}: want NAME=VALUE")
        if not value.isprintable():
            raise UsageError(f"--sysctl {name}: the value holds a control character")
        network = name.startswith(("net.", "net/"))
        if ".." in name or not (name in _SYSCTLS or name.startswith("fs.mqueue.") or network):
            raise UsageError(f"--sysctl {name} is not of a namespace: it would change the host")
        if network and not own_network:
            raise UsageError(f"--sysctl {name} needs a network of the container's own")
        found[name] = value
    return found
