"""update: new limits from flags, or from a JSON file of linux.resources."""

from __future__ import annotations

import os

from minirun import container, jsontext, log
from minirun.cli.place import container_id, state_root
from minirun.errors import MinirunError, UsageError
from minirun.spec import CPU, BlockIO, IntelRdt, Memory, Pids, Resources
from minirun.units import parse_count, parse_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.grammar import Options

# Flags to fields of CPU and how they are read; an empty text means "not given", as in runc.
_CPU = (
    ("cpu_share", "shares", "unsigned"),
    ("cpu_period", "period", "unsigned"),
    ("cpu_burst", "burst", "unsigned"),
    ("cpu_rt_period", "realtime_period", "unsigned"),
    ("cpu_quota", "quota", "signed"),
    ("cpu_rt_runtime", "realtime_runtime", "signed"),
    ("cpu_idle", "idle", "signed"),
    ("cpuset_cpus", "cpus", "text"),
    ("cpuset_mems", "mems", "text"),
)
_MEMORY = (
    ("memory", "limit", "size"),
    ("memory_swap", "swap", "size"),
    ("memory_reservation", "reservation", "size"),
)


def update(options: Options) -> int:
    """`minirun update`. With --resources the other flags for limits are ignored."""
    root, cid = state_root(options), container_id(options)
    source = options.resources
    rdt = rdt_of(options)
    if rdt is not None:
        container.update_rdt(root, cid, rdt)
    resources = read_resources(source) if source else resources_of(options)
    if rdt is None or resources != Resources():
        container.update(root, cid, with_unlimited_swap(resources))
    return 0


def rdt_of(options: Options) -> IntelRdt | None:
    """Make linux.intelRdt of the two schemas, which hold beside --resources too, as in runc."""
    given = {
        name: getattr(options, name)
        for name in ("l3_cache_schema", "mem_bw_schema")
        if getattr(options, name)
    }
    return IntelRdt(**given) if given else None


def read_resources(source: str) -> Resources:
    """Read linux.resources from a file, or from stdin for `-`. Raises ConfigError, JSONError."""
    if source != "-":
        return Resources.decode(jsontext.read(source, source, pipe=True), "resources")
    data = b""
    while chunk := os.read(0, jsontext.MAX_BYTES + 1 - len(data)):
        data += chunk
    return Resources.decode(jsontext.loads(data, "stdin"), "resources")


def resources_of(options: Options) -> Resources:
    """Make linux.resources of the flags. Raises MinirunError naming the flag."""
    found: dict[str, Any] = {}
    cpu, memory = _read(options, _CPU), _read(options, _MEMORY)
    if cpu:
        found["cpu"] = CPU(**cpu)
    if memory:
        found["memory"] = Memory(**memory)
    if options.pids_limit is not None:
        found["pids"] = Pids(limit=options.pids_limit)
    if options.blkio_weight:
        found["block_io"] = BlockIO(weight=_weight(options.blkio_weight))
    for name in ("kernel_memory", "kernel_memory_tcp"):
        if getattr(options, name):
            log.warning(f"--{name.replace('_', '-')} is ignored: the kernel has no such limit")
    return Resources(**found)


def _weight(value: int) -> int:
    if not 10 <= value <= 1000:
        raise MinirunError(f"invalid value for blkio-weight: {value} is not from 10 to 1000")
    return value


def _read(options: Options, table: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for flag, field, kind in table:
        text = getattr(options, flag)
        if text:
            try:
                found[field] = _READERS[kind](text)
            except UsageError as error:
                name = flag.replace("_", "-")
                raise MinirunError(f"invalid value for {name}: {error}", fix=error.fix) from None
    return found


def _unsigned(text: str) -> int:
    # A uint64 has 20 digits, parse_count takes 19: no clock or share needs the last one.
    return parse_count(text)


def _signed(text: str) -> int:
    return -parse_count(text[1:]) if text[:1] == "-" else parse_count(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "unsigned": _unsigned,
    "signed": _signed,
    "size": parse_limit,
    "text": str,
}


def with_unlimited_swap(resources: Resources) -> Resources:
    """Lift the limit of swap with that of memory, as runc does when only memory is -1."""
    memory = resources.memory
    if memory is None or memory.limit != -1 or memory.swap is not None:
        return resources
    return resources.replace(memory=memory.replace(swap=-1))
