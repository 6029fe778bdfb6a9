"""What a group used: in the shape of `events --stats`, for people, and as it happens.

Interface files: Documentation/admin-guide/cgroup-v2.rst. A file that this kernel or group lacks
leaves its figures out (None for people, 0 for engines); a figure is never guessed.
"""

from __future__ import annotations

import errno
import os
import select

from minirun.cgroups.hierarchy import open_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.cgroups.group import Group

UNLIMITED = (1 << 64) - 1  # how runc shows "max" for memory


def keyed(text: str | None) -> dict[str, int]:
    """Parse a flat-keyed file: `anon 4096` per line. Lines of another form are passed over."""
    found = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[key] = int(value)
    return found


def nested(text: str | None) -> dict[str, dict[str, str]]:
    """Parse a nested-keyed file: `8:0 rbytes=1 wbytes=2` per line."""
    found = {}
    for line in (text or "").splitlines():
        key, *pairs = line.split()
        found[key] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return found


def single(text: str | None) -> int | None:
    """Parse a file of one number; None for no file, UNLIMITED for `max`."""
    if text is None:
        return None
    text = text.strip()
    if text == "max":
        return UNLIMITED
    return int(text) if text.isascii() and text.isdigit() else None


def pressure(text: str | None) -> dict[str, dict[str, float]] | None:
    """Parse a pressure file to {"some": {"avg10": 0.12, ..., "total": microseconds}, "full": ...}.

    None when the kernel counts no pressure (CONFIG_PSI, psi=0). `avg` are percent of time.
    """
    found = {
        key: {
            name: int(value) if name == "total" else float(value) for name, value in pairs.items()
        }
        for key, pairs in nested(text).items()
    }
    return found or None


def usage(group: Group) -> dict[str, Any]:
    """Give the `data` of a stats event as runc's `events --stats` prints it; CPU in nanoseconds.

    `network_interfaces` is empty: the caller fills it from the network namespace.
    """
    return {
        "cpu": _cpu(group),
        "cpuset": _cpuset(group),
        "memory": _memory(group),
        "pids": _pids(group),
        "blkio": _blkio(group),
        "hugetlb": _hugetlb(group),
        "intel_rdt": {},
        "network_interfaces": [],
    }


def _with_pressure(data: dict[str, Any], group: Group, file: str) -> dict[str, Any]:
    psi = pressure(group.get(file))
    if psi is not None:
        data["psi"] = psi
    return data


def _cpu(group: Group) -> dict[str, Any]:
    stat = keyed(group.get("cpu.stat"))
    data = {
        "usage": {
            "total": stat.get("usage_usec", 0) * 1000,
            "kernel": stat.get("system_usec", 0) * 1000,
            "user": stat.get("user_usec", 0) * 1000,
        },
        "throttling": {
            "periods": stat.get("nr_periods", 0),
            "throttledPeriods": stat.get("nr_throttled", 0),
            "throttledTime": stat.get("throttled_usec", 0) * 1000,
        },
    }
    return _with_pressure(data, group, "cpu.pressure")


def cpu_list(text: str | None) -> list[int]:
    """Expand a list such as `0-2,7` to [0, 1, 2, 7]."""
    found: list[int] = []
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        if first.isascii() and first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


_CPUSET_ZERO = (
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
)


def _cpuset(group: Group) -> dict[str, Any]:
    """Version 2 knows the two lists only; the other keys are version 1's, kept for decoders."""
    data: dict[str, Any] = dict.fromkeys(_CPUSET_ZERO, 0)
    for key in ("cpus", "mems"):
        numbers = cpu_list(group.get(f"cpuset.{key}.effective"))
        if numbers:
            data[key] = numbers
    return data


def _memory(group: Group) -> dict[str, Any]:
    raw = keyed(group.get("memory.stat"))
    events = keyed(group.get("memory.events"))
    main = _entry(group, "memory", events.get("max", 0))
    swap = _entry(group, "memory.swap", keyed(group.get("memory.swap.events")).get("fail", 0))
    # Engines expect version 1's sum of memory and swap; a peak of a sum cannot be had.
    swap["usage"] += main["usage"]
    if swap["limit"] != UNLIMITED:
        swap["limit"] = min(swap["limit"] + main["limit"], UNLIMITED)
    swap["max"] = 0
    data = {
        "cache": raw.get("file", 0),
        "usage": main,
        "swap": swap,
        "kernel": {"limit": 0, "usage": raw.get("kernel", 0), "failcnt": 0},
        "kernelTCP": {"limit": 0, "usage": raw.get("sock", 0), "failcnt": 0},
        "raw": raw,
        "event_count": events,
    }
    return _with_pressure(data, group, "memory.pressure")


def _entry(group: Group, prefix: str, failures: int) -> dict[str, int]:
    return {
        "limit": single(group.get(f"{prefix}.max")) or 0,
        "usage": single(group.get(f"{prefix}.current")) or 0,
        "max": single(group.get(f"{prefix}.peak")) or 0,  # Linux 5.19; swap 6.5
        "failcnt": failures,
    }


def _pids(group: Group) -> dict[str, int]:
    current = single(group.get("pids.current"))
    limit = single(group.get("pids.max")) or 0
    return {
        "current": len(group.procs()) if current is None else current,
        "limit": 0 if limit == UNLIMITED else limit,
    }


_BLKIO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def _blkio(group: Group) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for device, counts in nested(group.get("io.stat")).items():
        major, _, minor = device.partition(":")
        for key, value in counts.items():
            if key in _BLKIO and major.isdigit() and minor.isdigit() and value.isdigit():
                table, op = _BLKIO[key]
                entry = {"major": int(major), "minor": int(minor), "op": op, "value": int(value)}
                data.setdefault(table, []).append(entry)
    return _with_pressure(data, group, "io.pressure")


def _hugetlb(group: Group) -> dict[str, dict[str, int]]:
    data = {}
    for name in os.listdir(group.dirfd):
        if name.startswith("hugetlb.") and name.endswith("B.current"):
            size = name.split(".")[1]
            reserved = single(group.get(f"hugetlb.{size}.rsvd.current"))
            events = keyed(group.get(f"hugetlb.{size}.events"))
            data[size] = {
                "usage": (single(group.get(name)) or 0) if reserved is None else reserved,
                "failcnt": events.get("max", 0),
            }
    return data


def summary(group: Group) -> dict[str, Any]:
    """Give figures for people: bytes, microseconds, counts; None where nothing is counted.

    memory    current, peak, limit (None: none), swap, anon, file, kernel, and working_set: what
              could not be had back at once (current without inactive file pages)
    events    memory.events: low, high, max, oom, oom_kill
    cpu       usage, user, system, periods, throttled (periods), throttled_time, and quota, period
    pids      current, peak, limit
    io        read, written (bytes), reads, writes, summed over disks
    pressure  cpu, memory, io: as `pressure` gives it
    """
    return {
        "memory": _memory_summary(group),
        "events": keyed(group.get("memory.events")),
        "cpu": _cpu_summary(group),
        "pids": {
            "current": single(group.get("pids.current")),
            "peak": single(group.get("pids.peak")),  # Linux 6.1
            "limit": _limit(group.get("pids.max")),
        },
        "io": _io_summary(group),
        "pressure": {
            name: pressure(group.get(f"{name}.pressure")) for name in ("cpu", "memory", "io")
        },
    }


def _limit(text: str | None) -> int | None:
    value = single(text)
    return None if value == UNLIMITED else value


def _memory_summary(group: Group) -> dict[str, int | None]:
    stat = keyed(group.get("memory.stat"))
    current = single(group.get("memory.current"))
    idle = stat.get("inactive_file", 0)
    return {
        "current": current,
        "peak": single(group.get("memory.peak")),
        "limit": _limit(group.get("memory.max")),
        "swap": single(group.get("memory.swap.current")),
        "anon": stat.get("anon"),
        "file": stat.get("file"),
        "kernel": stat.get("kernel"),
        "working_set": None if current is None else max(current - idle, 0),
    }


def _cpu_summary(group: Group) -> dict[str, int | None]:
    stat = keyed(group.get("cpu.stat"))
    quota, _, period = (group.get("cpu.max") or "").strip().partition(" ")
    return {
        "usage": stat.get("usage_usec"),
        "user": stat.get("user_usec"),
        "system": stat.get("system_usec"),
        "periods": stat.get("nr_periods"),
        "throttled": stat.get("nr_throttled"),
        "throttled_time": stat.get("throttled_usec"),
        "quota": _limit(quota) if quota else None,
        "period": _limit(period) if period else None,
    }


def _io_summary(group: Group) -> dict[str, int | None]:
    text = group.get("io.stat")
    names = {"read": "rbytes", "written": "wbytes", "reads": "rios", "writes": "wios"}
    if text is None:
        return dict.fromkeys(names)
    disks = nested(text).values()
    return {
        name: sum(int(disk[key]) for disk in disks if disk.get(key, "").isdigit())
        for name, key in names.items()
    }


class Watch:
    """Wait for what happens to a group: "oom" and, once its last process has ended, "empty"."""

    def __init__(self, group: Group) -> None:
        self._poller = select.poll()
        self._fds: dict[str, int] = {}
        self._oom = 0
        try:
            for file in ("cgroup.events", "memory.events"):
                try:
                    fd = open_inside(group.dirfd, file, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                self._fds[file] = fd
                self._poller.register(fd, select.POLLPRI)
            self._oom = self._read("memory.events").get("oom_kill", 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the descriptors back."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def wait(self, seconds: float) -> list[str]:
        """Wait `seconds` at most for a change; give one "oom" per process killed, then "empty"."""
        found = self._look()
        if not found:
            self._poller.poll(max(int(seconds * 1000), 0))
            found = self._look()
        return found

    def _look(self) -> list[str]:
        events = self._read("cgroup.events")
        oom = self._read("memory.events").get("oom_kill", self._oom)
        found = ["oom"] * (oom - self._oom)
        self._oom = oom
        return found if events.get("populated") else [*found, "empty"]

    def _read(self, file: str) -> dict[str, int]:
        if file not in self._fds:
            return {}
        try:
            return keyed(os.fsdecode(os.pread(self._fds[file], 4096, 0)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return {}
            raise
