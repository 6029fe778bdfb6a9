"""What a configuration must satisfy when minirun is not root of the host; and why it cannot be.

What root alone may ask for is refused by name, before anything is made. Whether the kernel lets
this user have a user namespace at all shows when it is made: `obstacle` then says what forbids it.
"""

from __future__ import annotations

import errno
import os

from minirun import mountoptions
from minirun.errors import ConfigError, MinirunError, StepFailed
from minirun.privilege import needs_helper, setgroups_denied
from minirun.validate_namespaces import types_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.spec import Spec

_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS)


def validate(spec: Spec) -> None:
    """Refuse what needs root of the host. Raises ConfigError."""
    types = types_of(spec)
    if os.geteuid() != 0 and "user" not in types:
        raise ConfigError(
            "linux.namespaces",
            "rootless containers require user namespaces",
            cause="only root may make a container without a user namespace",
            fix="minirun spec --rootless writes a config.json with one; or run minirun as root",
        )
    user = spec.process.user if spec.process else None
    if user is not None and user.additional_gids and _denied(spec):
        raise ConfigError(
            "process.user.additionalGids",
            "cannot set any additional groups in a rootless container",
            cause="who maps only his own group must give up setgroups(2): user_namespaces(7)",
            fix="map a range of /etc/subgid in linux.gidMappings",
        )
    for number, entry in enumerate(spec.mounts):
        if mountoptions.parse(entry, f"mounts[{number}]").idmap:
            raise ConfigError(
                f"mounts[{number}]",
                "an id-mapped mount needs root",
                cause="only who owns the file system's user namespace may map its ids",
            )
    if spec.linux.net_devices:
        raise ConfigError("linux.netDevices", "needs root, whose devices they are")


def _denied(spec: Spec) -> bool:
    gids = [(one.container_id, one.host_id, one.size) for one in spec.linux.gid_mappings]
    alone = os.geteuid() != 0 and bool(gids) and not needs_helper(gids, os.getegid())
    return alone or setgroups_denied()


def explained(error: BaseException) -> BaseException:
    """Add to a failed creation what keeps this user from user namespaces, if anything does."""
    cause = error.error if isinstance(error, StepFailed) else error
    number = int(getattr(cause, "errno", None) or getattr(error, "errno", None) or 0)
    if number not in _REFUSALS:
        return error
    found = obstacle()
    if not found or (isinstance(error, MinirunError) and error.cause):
        return error
    if isinstance(error, MinirunError):
        error.cause, error.fix = found
        return error
    shown = getattr(error, "call", None) or "user namespace"
    return MinirunError(f"{shown}: {os.strerror(number).lower()}", cause=found[0], fix=found[1])


def obstacle(proc: str = "/proc") -> tuple[str, str] | None:
    """Say which setting of the host forbids user namespaces to users, and how to change it."""
    if _setting(f"{proc}/sys/kernel/unprivileged_userns_clone") == "0":
        return (
            "this host forbids user namespaces to users (kernel.unprivileged_userns_clone=0)",
            "sudo sysctl kernel.unprivileged_userns_clone=1, or run minirun as root",
        )
    if _setting(f"{proc}/sys/user/max_user_namespaces") == "0":
        return (
            "this host allows no user namespaces (user.max_user_namespaces=0)",
            "sudo sysctl user.max_user_namespaces=15000, or run minirun as root",
        )
    if _setting(f"{proc}/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor takes the capabilities of user namespaces away from programs without a "
            "profile that grants them (kernel.apparmor_restrict_unprivileged_userns=1, as on "
            "Ubuntu 23.10 and later)",
            "an AppArmor profile for minirun with the rule `userns,`, as minirun(1) has one; or "
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0; or run minirun as root",
        )
    return None


def _setting(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(64).strip()
    except (FileNotFoundError, PermissionError):
        return ""
