"""What the namespaces must satisfy, and what needs one of the container's own."""

from __future__ import annotations

import os
from itertools import pairwise

from minirun.errors import ConfigError
from minirun.refuse import absolute, refuse_unless
from minirun.spec import Spec
from minirun.sysctl import file_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.spec import IDMapping

    Notes = list[str]


# The file of each type of namespace below /proc/self/ns.
NAMESPACES = {
    "mount": "mnt", "pid": "pid", "network": "net", "uts": "uts", "ipc": "ipc", "user": "user",
    "cgroup": "cgroup", "time": "time",
}  # fmt: skip
CLOCKS = ("monotonic", "boottime")
IFNAMSIZ = 16  # with the NUL at the end: include/uapi/linux/if.h
HOSTNAME_MAX = 64  # __NEW_UTS_LEN: sethostname(2), setdomainname(2)
MAPPINGS_MAX = 340  # UID_GID_MAP_MAX_EXTENTS: user_namespaces(7), since 4.15
SYSCTL_VALUE_MAX = 4095  # a page without the end: proc_sys_call_handler takes no more in one write
_NAME_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:@"

_IPC_SYSCTLS = (
    "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall",
    "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
)  # fmt: skip


def types_of(spec: Spec) -> dict[str, str | None]:
    return {entry.type: entry.path or None for entry in spec.linux.namespaces}


def namespaces(spec: Spec, _notes: Notes) -> None:
    """Refuse unknown and doubled namespaces."""
    seen: set[str] = set()
    for number, entry in enumerate(spec.linux.namespaces):
        where = f"linux.namespaces[{number}]"
        refuse_unless(
            entry.type in NAMESPACES, f"{where}.type", f"unknown namespace {entry.type!r}"
        )
        refuse_unless(entry.type not in seen, f"{where}.type", f"{entry.type} appears twice")
        seen.add(entry.type)
        if entry.path:
            absolute(entry.path, f"{where}.path")


def shared_mounts(spec: Spec, _notes: Notes) -> None:
    """Refuse what would change mounts of the host where the container is in its mount namespace."""
    if is_private(spec, "mount"):
        return
    for name in ("masked", "readonly"):
        refuse_unless(
            not getattr(spec.linux, f"{name}_paths"),
            f"linux.{name}Paths",
            "unable to restrict sys entries without a private MNT namespace",
        )
    where = "linux.rootfsPropagation"
    needs = "needs a mount namespace in linux.namespaces"
    refuse_unless(not spec.linux.rootfs_propagation, where, needs)
    user = "user" in types_of(spec)
    refuse_unless(not user, "linux.namespaces", "a user namespace needs a mount namespace too")


def mappings(spec: Spec, _notes: Notes) -> None:
    """Refuse mappings without a user namespace, and the other way round."""
    types = types_of(spec)
    for name, entries in (
        ("uidMappings", spec.linux.uid_mappings),
        ("gidMappings", spec.linux.gid_mappings),
    ):
        where = f"linux.{name}"
        if "user" not in types:
            refuse_unless(not entries, where, "needs a user namespace in linux.namespaces")
        elif types["user"] is None:
            refuse_unless(entries, where, "is required with a new user namespace")
        check_mappings(entries, where)


def check_mappings(entries: Sequence[IDMapping], where: str) -> None:
    """Refuse mappings that the kernel would: too many, empty, too high, overlapping."""
    refuse_unless(len(entries) <= MAPPINGS_MAX, where, f"has more than {MAPPINGS_MAX} entries")
    for number, entry in enumerate(entries):
        at = f"{where}[{number}]"
        refuse_unless(entry.size > 0, f"{at}.size", "must be above 0")
        for name, first in (("containerID", entry.container_id), ("hostID", entry.host_id)):
            refuse_unless(first + entry.size <= 1 << 32, f"{at}.{name}", "ends above 4294967295")
    for side in ("container_id", "host_id"):
        ranges = sorted((getattr(entry, side), entry.size) for entry in entries)
        for (first, size), (second, _) in pairwise(ranges):
            refuse_unless(first + size <= second, where, f"{side[:-3]} IDs overlap at {second}")


def mapped_user(spec: Spec, _notes: Notes) -> None:
    """Refuse users and groups that the container's user namespace does not have."""
    types = types_of(spec)
    if "user" not in types or types["user"] is not None or spec.process is None:
        return
    who = spec.process.user
    wanted = [("uid", who.uid, spec.linux.uid_mappings), ("gid", who.gid, spec.linux.gid_mappings)]
    for number, gid in enumerate(who.additional_gids):
        wanted.append((f"additionalGids[{number}]", gid, spec.linux.gid_mappings))
    for name, value, entries in wanted:
        known = any(e.container_id <= value < e.container_id + e.size for e in entries)
        refuse_unless(
            known, f"process.user.{name}", f"{value} is not mapped into the user namespace"
        )


def time_offsets(spec: Spec, _notes: Notes) -> None:
    """Refuse offsets without a time namespace of the container's own."""
    if not spec.linux.time_offsets:
        return
    types = types_of(spec)
    refuse_unless(
        "time" in types and types["time"] is None,
        "linux.timeOffsets",
        "needs a new time namespace in linux.namespaces",
    )
    for clock, offset in spec.linux.time_offsets.items():
        where = f"linux.timeOffsets.{clock}"
        refuse_unless(clock in CLOCKS, where, f"unknown clock, not one of {', '.join(CLOCKS)}")
        refuse_unless(offset.nanosecs < 10**9, f"{where}.nanosecs", "must be below 1000000000")


def names(spec: Spec, _notes: Notes) -> None:
    """Refuse a host or domain name that would become the host's."""
    for name in ("hostname", "domainname"):
        value = getattr(spec, name)
        if value:
            needs_private(spec, "uts", name)
            refuse_unless(
                len(os.fsencode(value)) <= HOSTNAME_MAX, name, f"is longer than {HOSTNAME_MAX}"
            )


def net_devices(spec: Spec, _notes: Notes) -> None:
    """Refuse devices that have nowhere to move to, or names that no device can have."""
    devices = spec.linux.net_devices
    if devices:
        needs_private(spec, "network", "linux.netDevices")
    for name, device in devices.items():
        for text, where in ((name, "linux.netDevices"), (device.name, "linux.netDevices.*.name")):
            if text is None or (text == "" and where.endswith("name")):
                continue
            good = text not in (".", "..") and 0 < len(os.fsencode(text)) < IFNAMSIZ
            # kernel: a name with % is a pattern, and the device would get another one.
            good = good and not any(char in "/:%" or char.isspace() for char in text)
            at = where.replace("*", name)[:100]
            refuse_unless(good, at, f"is not the name of a network device: {text[:80]!r}")
    inside = [device.name or name for name, device in devices.items()]
    refuse_unless(
        len(set(inside)) == len(inside), "linux.netDevices", "two devices would have one name"
    )


def is_private(spec: Spec, kind: str) -> bool:
    """Tell whether the container has a namespace of this type that is not the host's."""
    types = types_of(spec)
    path = types.get(kind)
    return kind in types and (path is None or not _is_ours(kind, path))


def needs_private(spec: Spec, kind: str, where: str) -> None:
    """Refuse `where` unless the container has a namespace of this type that is not the host's."""
    types = types_of(spec)
    refuse_unless(kind in types, where, f"needs a {kind} namespace in linux.namespaces")
    path = types[kind]
    if path is not None and _is_ours(kind, path):
        raise ConfigError(where, f"needs a {kind} namespace other than the host's {path}")


def _is_ours(kind: str, path: str) -> bool:
    """Tell whether a path is the very namespace that we are in, under whatever name."""
    try:
        other, own = os.stat(path), os.stat(f"/proc/self/ns/{NAMESPACES[kind]}")
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise ConfigError("linux.namespaces", f"{kind} namespace {path}: {reason}") from None
    return (other.st_dev, other.st_ino) == (own.st_dev, own.st_ino)


def sysctl(spec: Spec, _notes: Notes) -> None:
    """Refuse kernel parameters that are not the container's own (CVE-2022-0811)."""
    for key, value in spec.linux.sysctl.items():
        where = f"linux.sysctl.{key}"[:200]
        kind = sysctl_namespace(key)
        refuse_unless(kind, where, "is not in a namespace of the container")
        needs_private(spec, kind, where)
        contrary = kind == "uts" and spec.domainname not in (None, value)
        refuse_unless(not contrary, where, "contradicts domainname")
        refuse_unless("\n" not in value, where, "the value must be one line")
        refuse_unless(len(value) <= SYSCTL_VALUE_MAX, where, "the value is too long")


def sysctl_namespace(key: str) -> str:
    """Name the type of namespace that a kernel parameter belongs to; "" if it is the host's."""
    path = file_of(key).removeprefix("sys/")
    parts = path.split("/")
    odd = any(char not in _NAME_CHARS and char != "/" for char in path)
    if odd or any(part in ("", ".", "..") for part in parts):
        return ""
    if parts[0] == "net" and len(parts) > 1:
        return "network"
    if path in _IPC_SYSCTLS or (parts[:2] == ["fs", "mqueue"] and len(parts) > 2):
        return "ipc"
    # kernel.hostname has a field of its own, which would contradict it.
    return "uts" if path == "kernel/domainname" else ""
