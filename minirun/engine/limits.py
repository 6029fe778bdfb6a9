"""The limits that flags ask for, and those that hold when none is asked for, as linux.resources."""

from __future__ import annotations

from minirun import blockdev, units
from minirun.cgroups.hierarchy import Hierarchy, hierarchy
from minirun.engine import defaults
from minirun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from minirun.options import Options

# Which controller an option needs.
_CONTROLLERS = {
    "memory": "memory",
    "memory_swap": "memory",
    "memory_reservation": "memory",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "cpu_shares": "cpu",
    "cpuset_cpus": "cpuset",
    "cpuset_mems": "cpuset",
    "pids_limit": "pids",
    "io_weight": "io",
    "device_read_bps": "io",
    "device_write_bps": "io",
    "device_read_iops": "io",
    "device_write_iops": "io",
}
_THROTTLES = {
    "device_read_bps": ("throttleReadBpsDevice", units.parse_rate),
    "device_write_bps": ("throttleWriteBpsDevice", units.parse_rate),
    "device_read_iops": ("throttleReadIOPSDevice", units.parse_iops),
    "device_write_iops": ("throttleWriteIOPSDevice", units.parse_iops),
}
_WEIGHT_MAX = 10_000
_SWAP_FACTOR = 2  # docker's and podman's: as much swap as memory


def resources(options: Options, notes: list[str], tree: Hierarchy | None = None) -> dict[str, Any]:
    """Give linux.resources without its device rules; what could not be had is told in `notes`.

    A limit that was asked for and that the host cannot keep raises Unsupported; a default is left
    out with a note. Raises UsageError, naming the option, for a value that is not understood.
    """
    found: dict[str, Any] = {}
    unified: dict[str, str] = {}
    _memory(options, found)
    _cpu(options, found, unified)
    _pids(options, found)
    _io(options, found, unified)
    asked = tuple(sorted({_CONTROLLERS[name] for name in _CONTROLLERS if options.given(name)}))
    tree = tree or hierarchy()
    if asked:
        tree.require(asked)
    if not options.no_limits:
        _defaults(found, tree, notes)
    if "memory" in found and "memory" in tree.controllers:
        # One process killed and the rest left running is a broken container.
        unified["memory.oom.group"] = "1"
    if unified:
        found["unified"] = unified
    return found


def _read(option: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except UsageError as error:
        name = option.replace("_", "-")
        raise UsageError(f"--{name}: {error.message}", cause=error.cause, fix=error.fix) from None


def _memory(options: Options, found: dict[str, Any]) -> None:
    memory: dict[str, int] = {}
    if options.memory is not None:
        memory["limit"] = limit = int(_read("memory", units.parse_limit, options.memory))
        if limit == 0:
            raise UsageError("--memory: must be above 0; -1 is unlimited")
        memory["swap"] = limit * _SWAP_FACTOR if limit > 0 else -1
    if options.memory_swap is not None:
        memory["swap"] = swap = int(_read("memory_swap", units.parse_limit, options.memory_swap))
        if "limit" not in memory:
            raise UsageError("--memory-swap needs --memory", cause="it counts both together")
        if 0 <= swap < memory["limit"] or (memory["limit"] < 0 <= swap):
            raise UsageError("--memory-swap: must not be below --memory, for it counts both")
    if options.memory_reservation is not None:
        value = _read("memory_reservation", units.parse_size, options.memory_reservation)
        memory["reservation"] = int(value)
        if 0 < memory.get("limit", -1) < memory["reservation"]:
            raise UsageError("--memory-reservation: must not be above --memory")
    if memory:
        found["memory"] = memory


def _cpu(options: Options, found: dict[str, Any], unified: dict[str, str]) -> None:
    cpu: dict[str, Any] = {}
    if options.cpus is not None:
        cpu["quota"], cpu["period"] = _read("cpus", units.parse_cpus, options.cpus)
    if options.cpu_shares is not None:
        if options.cpu_weight is not None:
            raise UsageError("--cpu-shares and --cpu-weight are two names of one limit")
        cpu["shares"] = _number("cpu_shares", options.cpu_shares, 2, 262_144)
    for option, key in (("cpuset_cpus", "cpus"), ("cpuset_mems", "mems")):
        text = getattr(options, option)
        if text is not None:
            cpu[key] = _cpu_list(option, text)
    if options.cpu_weight is not None:
        # config.json has shares of version 1 only, which do not convert without loss.
        weight = _number("cpu_weight", options.cpu_weight, 1, _WEIGHT_MAX)
        unified["cpu.weight"] = str(weight)
    if cpu:
        found["cpu"] = cpu


def _number(option: str, text: str, low: int, high: int) -> int:
    return int(_read(option, lambda value: units.parse_count(value, low, high), text))


def _cpu_list(option: str, text: str) -> str:
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2:
            raise UsageError(f"--{option.replace('_', '-')}: not a list such as 0-2,7: {text!r}")
        low, high = [_number(option, end, 0, 65535) for end in (ends[0], ends[-1])]
        if high < low:
            raise UsageError(f"--{option.replace('_', '-')}: the range {part} runs backwards")
    return text


def _pids(options: Options, found: dict[str, Any]) -> None:
    text = options.pids_limit
    if text is None:
        return
    unlimited = text in ("-1", "max", "unlimited")
    # 0 is "unlimited" to docker and "one" to runc: neither is guessed.
    found["pids"] = {"limit": -1 if unlimited else _number("pids_limit", text, 1, 1 << 22)}


def _io(options: Options, found: dict[str, Any], unified: dict[str, str]) -> None:
    block: dict[str, Any] = {}
    for option, (key, parse) in _THROTTLES.items():
        if entries := _throttle(option, parse, getattr(options, option)):
            block[key] = entries
    if options.io_weight is not None:
        weight = _number("io_weight", options.io_weight, 1, _WEIGHT_MAX)
        unified["io.weight"] = f"default {weight}"
    if block:
        found["blockIO"] = block


def _throttle(
    option: str, parse: Callable[[str], tuple[str, int]], values: Iterable[str]
) -> list[dict[str, int]]:
    rates: dict[tuple[int, int], int] = {}
    for text in values:
        path, rate = _read(option, parse, text)
        disk = _read(option, blockdev.whole_disk, path)
        numbers = (disk.major, disk.minor)
        if rates.setdefault(numbers, rate) != rate:
            name = option.replace("_", "-")
            raise UsageError(f"--{name}: two rates for the disk {disk.name}: {text!r}")
    return [
        {"major": major, "minor": minor, "rate": rate} for (major, minor), rate in rates.items()
    ]


def _defaults(found: dict[str, Any], tree: Hierarchy, notes: list[str]) -> None:
    missing = [name for name in ("memory", "pids") if name not in tree.controllers]
    if missing:
        reason = tree.reason or f"cgroup v2 has no controller {' or '.join(missing)} here"
        which = " and ".join(missing)
        notes.append(f"no default limit of {which}: {reason} (minirun learn cgroups tells)")
    if "pids" in tree.controllers:
        found.setdefault("pids", {"limit": defaults.PIDS})
    if "memory" in tree.controllers:
        memory = found.setdefault("memory", {})
        memory.setdefault("limit", defaults.memory_total() // defaults.MEMORY_DIVISOR)
