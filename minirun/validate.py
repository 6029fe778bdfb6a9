"""What config.json must satisfy beyond types and ranges; what is refused, and why.

`CHECKS` is the order; each refuses by ConfigError, which names the field by its JSON path. What
the specification has and minirun does not yet is refused as "not supported yet", never ignored:
an isolation that was asked for and is not there would be worse than an error. What runc only warns
of ends in the notes.

Left to the facilities, because it depends on the kernel or is read there anyway: mount options,
cgroup limits and paths, seccomp rules.
"""

from __future__ import annotations

import os

from minirun import memorypolicy, resctrl
from minirun.errors import ConfigError
from minirun.personality import DOMAINS
from minirun.refuse import absolute, refuse_unless, unsupported_yet
from minirun.spec import Spec
from minirun.validate_namespaces import (
    check_mappings,
    mapped_user,
    mappings,
    names,
    namespaces,
    net_devices,
    shared_mounts,
    sysctl,
    time_offsets,
)
from minirun.validate_process import validate_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minirun.spec import Device, DeviceRule, Hook

    Notes = list[str]
    Check = Callable[[Spec, Notes], None]

PATH_MAX = 4096  # with the NUL at the end (include/uapi/linux/limits.h)
PROPAGATIONS = ("shared", "slave", "private", "unbindable")
MAJOR_MAX, MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1  # MKDEV (include/linux/kdev_t.h)


def validate(spec: Spec) -> list[str]:
    """Refuse what cannot be run; return notes on what is odd and harmless. Raises ConfigError."""
    notes: list[str] = []
    for check in CHECKS:
        check(spec, notes)
    return notes


def version(spec: Spec, notes: Notes) -> None:
    """Refuse a version that is not 1.x."""
    core, _, _ = spec.oci_version.partition("+")
    core, _, _ = core.partition("-")
    numbers = core.split(".")
    plain = all(part.isascii() and part.isdigit() and len(part) < 5 for part in numbers)
    refuse_unless(
        len(numbers) == 3 and plain, "ociVersion", f"is not a version: {spec.oci_version[:80]!r}"
    )
    major, minor = int(numbers[0]), int(numbers[1])
    refuse_unless(
        major == 1, "ociVersion", f"{spec.oci_version} is not supported: minirun knows 1.0 to 1.3"
    )
    if minor > 3:
        notes.append(f"ociVersion {spec.oci_version} is newer than 1.3, what it adds is ignored")


def platform(spec: Spec, notes: Notes) -> None:
    """Refuse a virtual machine."""
    if spec.vm is not None:
        raise unsupported_yet("vm")
    for name in ("solaris", "windows", "zos"):
        if getattr(spec, name) is not None:
            notes.append(f"{name} is ignored on Linux")


def root(spec: Spec, _notes: Notes) -> None:
    """Refuse a container without a root filesystem."""
    if spec.root is None:
        raise ConfigError("root", "is required")
    refuse_unless(spec.root.path, "root.path", "must not be empty")


def annotation_names(spec: Spec, _notes: Notes) -> None:
    """Refuse an annotation without a name."""
    refuse_unless("" not in spec.annotations, "annotations", "a name must not be empty")


def process(spec: Spec, notes: Notes) -> None:
    """Refuse a container without a process, or whose process cannot be run."""
    if spec.process is None:
        raise ConfigError("process", "is required")
    notes += validate_process(spec.process)


def mounts(spec: Spec, notes: Notes) -> None:
    """Refuse mounts without a place."""
    for number, entry in enumerate(spec.mounts):
        where = f"mounts[{number}]"
        refuse_unless(entry.destination, f"{where}.destination", "must not be empty")
        fits = len(os.fsencode(entry.destination)) < PATH_MAX
        refuse_unless(fits, f"{where}.destination", f"is longer than {PATH_MAX - 1} bytes")
        if not entry.destination.startswith("/"):
            notes.append(f"{where}: relative destination {entry.destination!r} is taken from /")
        refuse_unless(
            bool(entry.uid_mappings) == bool(entry.gid_mappings),
            f"{where}.uidMappings",
            "and gidMappings need each other",
        )
        check_mappings(entry.uid_mappings, f"{where}.uidMappings")
        check_mappings(entry.gid_mappings, f"{where}.gidMappings")


def hidden_paths(spec: Spec, _notes: Notes) -> None:
    """Refuse masked and read-only paths that are not absolute, and to hide the root."""
    for name in ("masked", "readonly"):
        for number, path in enumerate(getattr(spec.linux, f"{name}_paths")):
            absolute(path, f"linux.{name}Paths[{number}]")
    for number, path in enumerate(spec.linux.masked_paths):
        # What is mounted over a process's own root it never sees.
        bare = all(part == "." for part in path.split("/") if part)
        refuse_unless(not bare, f"linux.maskedPaths[{number}]", "the root itself cannot be hidden")


def propagation(spec: Spec, _notes: Notes) -> None:
    """Refuse an unknown propagation of the root filesystem."""
    value = spec.linux.rootfs_propagation
    if value:
        known = value in PROPAGATIONS or (value[0] == "r" and value[1:] in PROPAGATIONS)
        refuse_unless(known, "linux.rootfsPropagation", f"unknown propagation {value!r}")


def devices(spec: Spec, _notes: Notes) -> None:
    """Refuse devices that cannot be made, and rules that cannot be enforced."""
    for number, device in enumerate(spec.linux.devices):
        _check_device(device, f"linux.devices[{number}]")
    rules = spec.linux.resources.devices if spec.linux.resources else ()
    for number, rule in enumerate(rules):
        _check_rule(rule, f"linux.resources.devices[{number}]")


def _check_device(device: Device, where: str) -> None:
    absolute(device.path, f"{where}.path")
    refuse_unless(
        device.type in ("b", "c", "u", "p"), f"{where}.type", f"unknown type {device.type!r}"
    )
    if device.type != "p":
        _check_number(device.major, MAJOR_MAX, f"{where}.major")
        _check_number(device.minor, MINOR_MAX, f"{where}.minor")
    mode = device.file_mode
    # The type's bits are there too in what Go's os.FileMode or stat(2) gave somebody.
    refuse_unless(mode is None or mode <= 0o177777, f"{where}.fileMode", "is not a file's mode")


def _check_number(value: int, highest: int, where: str) -> None:
    refuse_unless(0 <= value <= highest, where, f"must be from 0 to {highest}, not {value}")


def _check_rule(rule: DeviceRule, where: str) -> None:
    refuse_unless(
        rule.type in (None, "", "a", "b", "c"), f"{where}.type", f"unknown type {rule.type!r}"
    )
    access = rule.access or ""
    refuse_unless(
        not access or set(access) & set("rwm"),
        f"{where}.access",
        f"must be of r, w and m, not {access!r}",
    )
    for name, value, highest in (
        ("major", rule.major, MAJOR_MAX),
        ("minor", rule.minor, MINOR_MAX),
    ):
        if value is not None and value != -1:  # -1: any
            _check_number(value, highest, f"{where}.{name}")


def hugepages(spec: Spec, _notes: Notes) -> None:
    """Refuse a page size that is not written like 2MB."""
    limits = spec.linux.resources.hugepage_limits if spec.linux.resources else ()
    for number, limit in enumerate(limits):
        size = limit.page_size
        digits = size[:-2]
        good = size[-2:] in ("KB", "MB", "GB") and digits.isascii() and digits.isdigit()
        refuse_unless(
            good and digits[0] != "0",
            f"linux.resources.hugepageLimits[{number}].pageSize",
            f"must be such as 64KB or 2MB, not {size!r}",
        )


def personality(spec: Spec, notes: Notes) -> None:
    """Refuse an unknown execution domain."""
    asked = spec.linux.personality
    if asked is None:
        return
    where = "linux.personality.domain"
    refuse_unless(asked.domain in DOMAINS, where, f"unknown domain {asked.domain!r}")
    if asked.flags:
        notes.append("linux.personality.flags is ignored: the specification has no flag yet")


def memory_policy(spec: Spec, _notes: Notes) -> None:
    """Refuse a memory policy that the kernel would."""
    if spec.linux.memory_policy is not None:
        memorypolicy.check(spec.linux.memory_policy)


def hooks(spec: Spec, _notes: Notes) -> None:
    """Refuse hooks without an absolute path, or with a timeout that is none."""
    for name, field in spec.hooks._fields.items():
        entries: tuple[Hook, ...] = getattr(spec.hooks, name)
        for number, hook in enumerate(entries):
            where = f"hooks.{field.name}[{number}]"
            absolute(hook.path, f"{where}.path")
            refuse_unless(
                hook.timeout is None or hook.timeout > 0, f"{where}.timeout", "must be above 0"
            )


def intel_rdt(spec: Spec, _notes: Notes) -> None:
    """Refuse groups and schemas of resctrl that cannot be."""
    if spec.linux.intel_rdt is not None:
        resctrl.validate(spec.linux.intel_rdt)


CHECKS: tuple[Check, ...] = (
    version,  # first: of another version nothing else is known
    platform,
    root,
    annotation_names,
    process,
    namespaces,
    shared_mounts,
    mappings,
    mapped_user,
    time_offsets,
    names,
    net_devices,
    sysctl,
    mounts,
    hidden_paths,
    propagation,
    devices,
    hugepages,
    personality,
    memory_policy,
    hooks,
    intel_rdt,
)
