"""linux.resources as a list of writes to cgroup v2 files: data that can be printed and compared.

Where version 1 and 2 differ, the meaning is runc 1.5's, so that an engine sees the same limits:

* 0 means "not set" for every number except pids.limit (0 becomes 1, -1 and below become max),
  cpu.burst and cpu.idle; -1 means "no limit".
* memory.swap counts memory and swap together; version 2 counts swap alone, so limit is taken off.
* memory.kernel, kernelTCP, swappiness, useHierarchy, disableOOMKiller and leafWeight have no
  counterpart and are not written; `ignored` names those that were asked for.
* Realtime CPU bandwidth and network.classID, priorities cannot be had at all: Unsupported.

Sources: config-linux.md of runtime-spec 1.3.0; Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from minirun.cgroups.iolimits import io_writes
from minirun.errors import ConfigError, Unsupported
from minirun.record import Record, anything, boolean, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from minirun.spec import CPU, Memory, Resources

WHERE = "linux.resources"
DEFAULT_PERIOD = 100_000  # microseconds; cgroup-v2.rst, cpu.max

# Files by which a container would be moved, killed, frozen or made an inner node behind minirun.
OURS = (
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.threads",
    "cgroup.type",
)


class Write(Record):
    """One write(2) to an interface file.

    controller  whose file it is; "" for those that every cgroup has
    field       what asked for it, as a JSON path
    optional    a kernel without this file needs no error: the value asks for nothing there
    fallback    the Write to make when the file does not exist
    """

    file: str = string(default="")
    value: str = string(default="")
    controller: str = string(default="")
    field: str = string(default="")
    optional: bool = boolean(default=False)
    fallback: Write | None = anything()

    @property
    def limits(self) -> bool:
        """Whether this asks for more than a group without the controller has anyway."""
        return self.value not in ("max", f"max {DEFAULT_PERIOD}") and not self.optional

    def __str__(self) -> str:
        return f"{self.file} = {self.value}"


def writes(
    resources: Resources | None,
    stored: Resources | None = None,
    current: Mapping[str, str] | None = None,
) -> list[Write]:
    """Translate `resources` into writes, in the order in which the kernel accepts them.

    For a change of a running group `stored` is what was asked for before and `current` the text of
    the files in `CONTEXT`: from these come the half of a pair that is not given (quota or period,
    limit or swap) and the order (raise first, lower last). Raises ConfigError for a contradiction,
    Unsupported for what cgroup v2 cannot do.
    """
    if resources is None:
        return []
    refuse_unsupported(resources)
    now = current or {}
    result: list[Write] = []
    if resources.pids is not None and resources.pids.limit is not None:
        limit = resources.pids.limit
        # systemd cannot set 0, and the first process is there already: 1 is what runc writes too.
        value = "max" if limit < 0 else str(limit or 1)
        result.append(_write("pids.max", value, "pids.limit"))
    if resources.memory is not None:
        before = stored.memory if stored is not None else None
        result += _memory(resources.memory, before, now)
    result += io_writes(resources.block_io, _write)
    if resources.cpu is not None:
        result += _cpu(resources.cpu, stored.cpu if stored is not None else None, now)
        result += _cpuset(resources.cpu)
    result += _hugetlb(resources) + _rdma(resources) + _unified(resources)
    return result


# What `writes` wants to know of a running group.
CONTEXT = ("memory.max", "memory.swap.max", "cpu.max", "cpu.max.burst")


def needed(resources: Resources | None) -> bool:
    """Tell whether `resources` ask for a limit, so that a container cannot go without a cgroup.

    Device rules do not count: they are no limit, and a program of their own. Raises like `writes`.
    """
    return any(write.limits for write in writes(resources))


def controllers(planned: list[Write]) -> tuple[str, ...]:
    """Give the controllers that `planned` cannot do without, in alphabetical order."""
    return tuple(sorted({write.controller for write in planned if write.limits} - {""}))


def refuse_unsupported(resources: Resources) -> None:
    """Raise Unsupported for what no cgroup v2 kernel can do, by the field's name."""
    cpu, network = resources.cpu, resources.network
    asked = {
        "cpu.realtimeRuntime": cpu is not None and cpu.realtime_runtime,
        "cpu.realtimePeriod": cpu is not None and cpu.realtime_period,
        "network.classID": network is not None and network.class_id,
        "network.priorities": network is not None and network.priorities,
    }
    for name, given in asked.items():
        if given:
            raise Unsupported(
                f"{WHERE}.{name} cannot be set on cgroup v2",
                cause="version 2 has no such controller",
                fix=f"take {name} out of config.json",
            )


def ignored(resources: Resources | None) -> list[str]:
    """Name the fields that were asked for and that version 2 has no file for, as JSON paths."""
    if resources is None:
        return []
    memory, block = resources.memory, resources.block_io
    asked = {
        "memory.kernel": memory is not None and memory.kernel,
        "memory.kernelTCP": memory is not None and memory.kernel_tcp,
        "memory.swappiness": memory is not None and memory.swappiness is not None,
        "memory.disableOOMKiller": memory is not None and memory.disable_oom_killer,
        "memory.useHierarchy": memory is not None and memory.use_hierarchy is False,
        "blockIO.leafWeight": block is not None and block.leaf_weight,
    }
    return [f"{WHERE}.{name}" for name, given in asked.items() if given]


def merge(stored: Resources | None, changes: Resources) -> Resources:
    """Lay `changes` over `stored`, field by field, as `update` keeps them for the next time."""
    if stored is None:
        return changes
    values = dict(stored.__dict__)
    for key, new in changes.__dict__.items():
        if key == "devices":
            continue  # the device filter stays as it is, as in runc
        old = values.get(key)
        if isinstance(new, Record) and isinstance(old, Record):
            values[key] = old.replace(**new.__dict__)
        elif isinstance(new, dict) and isinstance(old, dict):
            values[key] = {**old, **new}
        else:
            values[key] = new
    return type(changes)(**values)


def cpu_weight(shares: int) -> int:
    """Convert cpu.shares (2..262144) to cpu.weight (1..10000), 1024 to 100; 0 is unset.

    The curve is quadratic in the logarithms, through minimum, default and maximum of both scales;
    the former line gave the default of 1024 shares a weight of 39, below its neighbours' 100
    (KEP 2254; runc 1.3.2, crun 1.23).
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    import math  # 0.3 ms, which only a container with shares pays

    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def check_usage(memory: Memory | None, usage: int) -> None:
    """Raise ConfigError when memory.checkBeforeUpdate asks for it and `usage` exceeds a new limit.

    Version 2 would reclaim and then kill instead of refusing, as version 1 did.
    """
    if memory is None or not memory.check_before_update:
        return
    for name, limit in (("swap", memory.swap), ("limit", memory.limit)):
        if limit is not None and 0 < limit <= usage:
            raise ConfigError(
                f"{WHERE}.memory.{name}", f"rejecting limit {limit} <= current usage {usage}"
            )


def _write(file: str, value: str, field: str, **more: object) -> Write:
    controller = file.partition(".")[0]
    # Pressure files need no controller; cgroup-v2.rst, "Pressure Stall Information".
    core = controller == "cgroup" or file.endswith(".pressure")
    return Write(
        file=file,
        value=value,
        controller="" if core else controller,
        field=f"{WHERE}.{field}",
        **more,  # type: ignore[arg-type]
    )


def _number(value: int | None) -> str:
    """Give a v2 value of a v1 number: -1 is max, 0 and absent are not written."""
    if not value:
        return ""
    return "max" if value < 0 else str(value)


def _memory(memory: Memory, stored: Memory | None, current: Mapping[str, str]) -> list[Write]:
    result = []
    swap = _swap(memory, stored, current)
    if swap:
        # Without swap accounting the file is missing, and "no limit" and "no swap" hold anyway.
        result.append(_write("memory.swap.max", swap, "memory.swap", optional=swap in ("max", "0")))
    limit = _number(memory.limit)
    if limit:
        result.append(_write("memory.max", limit, "memory.limit"))
    # Raised before lowered: what leaves memory must find its place in swap, and the other way.
    result.sort(key=lambda write: not _raises(write, current))
    low = _number(memory.reservation)
    if low:
        result.append(_write("memory.low", low, "memory.reservation"))
    return result


def _raises(write: Write, current: Mapping[str, str]) -> bool:
    if write.file not in current:
        return write.file == "memory.swap.max"
    return _amount(write.value) > _amount(current[write.file])


def _amount(text: str) -> float:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else float("inf")


def _swap(memory: Memory, stored: Memory | None, current: Mapping[str, str]) -> str:
    """Compute memory.swap.max; "" when nothing asks for it."""
    total, limit = memory.swap or 0, memory.limit or 0
    if limit == -1 and total == 0:
        return "max"
    if total == 0 and limit > 0 and stored is not None and (stored.swap or 0) > 0:
        total = stored.swap or 0  # the sum that was asked for before still holds
    if total == 0:
        return ""
    if total < 0:
        return "max"
    if limit == 0:
        limit = (stored.limit if stored is not None else 0) or _known_limit(current)
    if limit == 0:
        raise ConfigError(f"{WHERE}.memory.swap", "needs memory.limit: it counts both together")
    if limit < 0:
        return str(total)
    if total < limit:
        raise ConfigError(
            f"{WHERE}.memory.swap", f"{total} is less than memory.limit {limit}: it counts both"
        )
    return str(total - limit)


def _known_limit(current: Mapping[str, str]) -> int:
    text = current.get("memory.max", "").strip()
    if text == "max":
        return -1
    return int(text) if text.isascii() and text.isdigit() else 0


def _cpu(cpu: CPU, stored: CPU | None, current: Mapping[str, str]) -> list[Write]:
    result = []
    idle, shares = cpu.idle, cpu.shares
    if idle is not None:
        if idle not in (0, 1):
            raise ConfigError(f"{WHERE}.cpu.idle", f"must be 0 or 1, not {idle}")
        result.append(_write("cpu.idle", str(idle), "cpu.idle"))
    if stored is not None:
        # *kernel*: a group that is no longer idle has the default weight (sched_group_set_idle).
        shares = shares or (stored.shares if idle == 0 else None)
        idle = stored.idle if idle is None else idle
    # *kernel*: an idle group has no weight of its own; writing one is EINVAL (sched/core.c). One
    # that is asked for meanwhile is kept, and set when the group is no longer idle.
    if shares and idle != 1:
        result.append(_write("cpu.weight", str(cpu_weight(shares)), "cpu.shares"))
    bandwidth = _bandwidth(cpu, current)
    if cpu.burst is None:
        return result + bandwidth
    if cpu.quota is not None and 0 < cpu.quota < cpu.burst:
        raise ConfigError(f"{WHERE}.cpu.burst", f"{cpu.burst} exceeds quota {cpu.quota}")
    burst = _write("cpu.max.burst", str(cpu.burst), "cpu.burst", optional=cpu.burst == 0)
    # *kernel*: burst <= quota must hold after every single write (tg_set_cfs_bandwidth).
    if cpu.burst <= _amount(current.get("cpu.max.burst", "0")):
        return [*result, burst, *bandwidth]
    return [*result, *bandwidth, burst]


def _bandwidth(cpu: CPU, current: Mapping[str, str]) -> list[Write]:
    if not cpu.quota and not cpu.period:
        return []
    words = current.get("cpu.max", "").split()
    if len(words) != 2:
        words = ["max", str(DEFAULT_PERIOD)]
    quota = words[0] if not cpu.quota else "max" if cpu.quota < 0 else str(cpu.quota)
    period = str(cpu.period or words[1])
    return [_write("cpu.max", f"{quota} {period}", "cpu.quota" if cpu.quota else "cpu.period")]


def _cpuset(cpu: CPU) -> list[Write]:
    result = []
    for name, text in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        if text:
            if any(char not in "0123456789,-:/ " for char in text):
                raise ConfigError(f"{WHERE}.cpu.{name}", f"is not a list such as 0-3,7: {text!r}")
            result.append(_write(f"cpuset.{name}", text, f"cpu.{name}"))
    return result


def _hugetlb(resources: Resources) -> list[Write]:
    result = []
    for number, item in enumerate(resources.hugepage_limits):
        field = f"hugepageLimits[{number}]"
        size = item.page_size
        digits, unit = size[:-2], size[-2:]
        # It becomes part of a file name; a hostile one once wrote to any cgroup (runc#4103).
        if not (digits.isascii() and digits.isdigit() and unit in ("KB", "MB", "GB")):
            raise ConfigError(f"{WHERE}.{field}.pageSize", f"is not such as 2MB: {size!r}")
        value = str(item.limit)
        result.append(_write(f"hugetlb.{size}.max", value, field))
        # Reservations are counted since Linux 5.7 and refuse at mmap, not by SIGBUS.
        result.append(_write(f"hugetlb.{size}.rsvd.max", value, field, optional=True))
    return result


def _rdma(resources: Resources) -> list[Write]:
    result = []
    for name, item in resources.rdma.items():
        field = f"rdma.{name}"
        if not name or any(char.isspace() or not char.isprintable() for char in name):
            raise ConfigError(f"{WHERE}.rdma", f"is not a device name: {name!r}")
        pairs = (("hca_handle", item.hca_handles), ("hca_object", item.hca_objects))
        given = [f"{key}={value}" for key, value in pairs if value is not None]
        if not given:
            raise ConfigError(f"{WHERE}.{field}", "needs hcaHandles or hcaObjects")
        result.append(_write("rdma.max", " ".join([name, *given]), field))
    return result


def _unified(resources: Resources) -> list[Write]:
    result = []
    for key, value in resources.unified.items():
        check_unified(key)
        # cgroupfs takes one entry per write; "" is a value of its own (cpuset.cpus: inherit).
        result += [_write(key, line, f"unified.{key}") for line in value.split("\n") if line]
        if value == "":
            result.append(_write(key, "", f"unified.{key}"))
    return result


def check_unified(key: str) -> None:
    """Raise ConfigError unless `key` can name a file of the container's own cgroup."""
    where = f"{WHERE}.unified"
    if not key.isascii() or not all(char.isalnum() or char in "._-" for char in key):
        raise ConfigError(where, f"is not a file name of cgroupfs: {key!r}")
    controller, dot, parameter = key.partition(".")
    if not (controller and dot and parameter) or ".." in key:
        raise ConfigError(where, f"must be of the form CONTROLLER.PARAMETER: {key!r}")
    if key in OURS:
        raise ConfigError(where, f"must not hold {key}, by which minirun holds the container")
