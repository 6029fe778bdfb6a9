"""What is written to cgroupfs, said once more as properties of a systemd unit.

systemd writes the limits that it knows of again whenever it pleases (a daemon-reload, a change of a
neighbour). What it was not told would be undone, so each write has its property, where there is
one: systemd.resource-control(5), org.freedesktop.systemd1(5). A property is its name, its D-Bus
signature and its value.
"""

from __future__ import annotations

from minirun.cgroups.gvariant import parse
from minirun.cgroups.resources import DEFAULT_PERIOD, Write
from minirun.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Property = tuple[str, str, Any]
    Which = tuple[str, int | None, int | None]

INFINITY = (1 << 64) - 1
IDLE_SINCE = 252  # the version of systemd that knows CPUWeight=idle
ANNOTATION = "org.systemd.property."
_QUOTA_STEP = 10_000  # microseconds: systemd counts in percent of a CPU
_SECOND = 1_000_000

_SIZES = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
_ACCESS = ((2, "r"), (4, "w"), (1, "m"))  # include/uapi/linux/bpf.h: BPF_DEVCG_ACC_*
_THROTTLES = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}


def of_writes(planned: Sequence[Write], version: Callable[[], int] = lambda: 0) -> list[Property]:
    """Give the properties that say the same as `planned`; what systemd has no word for is left out.

    `version` tells systemd's, and is asked only where the answer depends on it.
    """
    found: list[Property] = []
    for write in planned:
        found += _of_write(write, version)
    return _gathered(found)


def _of_write(write: Write, version: Callable[[], int]) -> list[Property]:
    file, value = write.file, write.value.strip()
    if file == "io.bfq.weight" and write.fallback is not None:
        file, value = write.fallback.file, write.fallback.value
    if file in _SIZES:
        number = _number(value)
        return [] if number is None else [(_SIZES[file], "t", number)]
    if file in _SETS:
        mask = bits(value)
        return [] if mask is None else [(_SETS[file], "ay", mask)]
    if file == "cpu.idle":
        known = value == "1" and version() >= IDLE_SINCE
        return [("CPUWeight", "t", 0)] if known else []
    special = {"cpu.max": _bandwidth, "io.weight": _io_weight, "io.max": _io_max}
    return special[file](value) if file in special else []


def _number(text: str) -> int | None:
    if text == "max":
        return INFINITY
    return int(text) if text.isascii() and text.isdigit() else None


def _bandwidth(value: str) -> list[Property]:
    quota, _, rest = value.partition(" ")
    period = _number(rest.strip()) or DEFAULT_PERIOD
    per_second = INFINITY
    if quota != "max":
        number = _number(quota)
        if number is None:
            return []
        # Rounded up: what is written to cpu.max afterwards is the exact value.
        per_second = number * _SECOND // period
        per_second = -(-per_second // _QUOTA_STEP) * _QUOTA_STEP
    return [("CPUQuotaPeriodUSec", "t", period), ("CPUQuotaPerSecUSec", "t", per_second)]


def bits(text: str) -> bytes | None:
    """Turn a list such as `0-3,7` into a bit mask, lowest byte first; None for another syntax."""
    mask = 0
    for part in filter(None, text.replace(" ", ",").split(",")):
        low, _, high = part.partition("-")
        ends = [end for end in (low, high or low) if end.isascii() and end.isdigit()]
        if len(ends) != 2 or len(low) > 5 or len(high) > 5:
            return None
        for number in range(int(ends[0]), int(ends[1]) + 1):
            mask |= 1 << number
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _io_weight(value: str) -> list[Property]:
    device, _, weight = value.rpartition(" ")
    number = _number(weight)
    if number is None:
        return []
    if device in ("", "default"):
        return [("IOWeight", "t", number)]
    return [("IODeviceWeight", "a(st)", [(f"/dev/block/{device}", number)])]


def _io_max(value: str) -> list[Property]:
    device, *pairs = value.split()
    found: list[Property] = []
    for pair in pairs:
        key, _, rate = pair.partition("=")
        number = _number(rate)
        if key in _THROTTLES and number is not None:
            found.append((_THROTTLES[key], "a(st)", [(f"/dev/block/{device}", number)]))
    return found


def _gathered(found: list[Property]) -> list[Property]:
    """Join lists of one name; of single values the last counts, as in the files."""
    merged: dict[str, Property] = {}
    for name, signature, value in found:
        former = merged[name][2] if signature == "a(st)" and name in merged else []
        merged[name] = (name, signature, [*former, *value] if former else value)
    return list(merged.values())


# ---------------------------------------------------------------- devices


def of_devices(
    allow: bool, exceptions: Mapping[Which, int], groups: Mapping[tuple[str, int], str]
) -> list[Property]:
    """Give the properties for a device policy: the default, and access bits that differ from it.

    systemd has a program of its own beside minirun's, and a device must pass both. So its list may
    be wider than the policy and never narrower: where it has no word for a rule, it allows all.
    `groups` names the drivers, see `device_groups`.
    """
    entries = []
    for which, access in exceptions.items():
        path = _device(which, groups)
        if path is None:
            allow = True
        letters = "".join([letter for bit, letter in _ACCESS if access & bit])
        entries.append((path, letters))
    if allow:
        return [("DevicePolicy", "s", "auto"), ("DeviceAllow", "a(ss)", [])]
    # An empty list first: it takes back what was there.
    return [
        ("DevicePolicy", "s", "strict"),
        ("DeviceAllow", "a(ss)", []),
        ("DeviceAllow", "a(ss)", entries),
    ]


def _device(which: Which, groups: Mapping[tuple[str, int], str]) -> str | None:
    kind, major, minor = which
    word = "block" if kind == "b" else "char"
    if major is None:
        return f"{word}-*" if minor is None else None
    if minor is None:
        name = groups.get((kind, major))
        return None if name is None else f"{word}-{name}"
    return f"/dev/{word}/{major}:{minor}"


def device_groups(text: str) -> dict[tuple[str, int], str]:
    """Read /proc/devices: the driver's name by type (c or b) and major number."""
    found: dict[tuple[str, int], str] = {}
    kind = "c"
    for line in text.splitlines():
        words = line.split()
        if line.startswith("Block"):
            kind = "b"
        elif len(words) == 2 and words[0].isdigit() and "/" not in words[1]:
            found.setdefault((kind, int(words[0])), words[1])
    return found


# ---------------------------------------------------------------- annotations


def of_annotations(annotations: Mapping[str, str]) -> list[Property]:
    """Read the annotations `org.systemd.property.NAME`, whose values are GVariant texts.

    `…Sec` becomes `…USec`, with seconds as microseconds. Raises ConfigError naming the annotation.
    """
    found: list[Property] = []
    for key, text in annotations.items():
        name = key.removeprefix(ANNOTATION)
        if name == key:
            continue
        where = f"annotations.{key}"[:200]
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise ConfigError(where, "is not the name of a unit's property")
        try:
            signature, value = parse(text)
        except ValueError as error:
            raise ConfigError(where, f"is not a GVariant text: {error}") from None
        if name.endswith("Sec") and name[-4:-3].islower():
            name, signature, value = name[:-3] + "USec", "t", _microseconds(where, signature, value)
        found.append((name, signature, value))
    return found


def _microseconds(where: str, signature: str, value: Any) -> int:
    if signature not in ("n", "q", "i", "u", "x", "t", "d") or not 0 <= value * _SECOND < INFINITY:
        raise ConfigError(where, "is not a number of seconds")
    return int(value * _SECOND)
