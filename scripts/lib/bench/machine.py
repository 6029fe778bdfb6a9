"""The machine that is measured: what it is, how idle it is, and how it is left alone.

Measuring happens in a mount namespace of its own, where /run/minirun is empty and, on a machine
with cgroup v1 or a mixture, /sys/fs/cgroup is cgroup v2; the machine's own mounts stay.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

CGROUP = "/sys/fs/cgroup"
INSIDE = "_MINIRUN_BENCH_INSIDE"  # set once we are in the mount namespace: what was mounted there
OTHERS_LIMIT = 0.25  # of one processor's time; more is not idle
STEAL_LIMIT = 0.02  # of all processors' time, taken by the machine's own host
SETTLE = 1.0  # seconds of watching before anything is measured


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# ---------------------------------------------------------------- a place of its own


def is_cgroup2() -> bool:
    return os.path.exists(f"{CGROUP}/cgroup.controllers")


def enter_private_mounts(arguments: Sequence[str], *, host_cgroups: bool) -> str:
    """Start again in a mount namespace of its own; there, say what /sys/fs/cgroup is."""
    if found := os.environ.pop(INSIDE, ""):
        return found
    change: list[str] = []
    if is_cgroup2():
        found = "cgroup v2"
    elif host_cgroups:
        found = "the machine's own, not cgroup v2 (--host-cgroups)"
    else:
        found = "cgroup v2 in a mount namespace of the benchmark's own (the machine has v1 mounted)"
        change = [f"{os.path.dirname(os.path.dirname(__file__))}/pure-cgroup2"]
    return _restart(
        found, [*change, sys.executable, "-B", os.path.abspath(sys.argv[0]), *arguments]
    )


def _restart(found: str, command: Sequence[str]) -> NoReturn:
    unshare = shutil.which("unshare")
    if unshare is None:
        sys.exit("bench: needs unshare (Debian, Ubuntu: apt install util-linux)")
    script = 'mkdir -p -m 700 /run/minirun && mount -t tmpfs bench /run/minirun && exec "$@"'
    private = [unshare, "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    os.execve(unshare, [*private, *command], {**os.environ, INSIDE: found})


# ---------------------------------------------------------------- how idle it is


class Ticks(NamedTuple):
    """Seconds since some beginning: of the clock, and of all processors together."""

    clock: float
    busy: float
    stolen: float
    ours: float


class Load(NamedTuple):
    """What else the machine did in a while: shares of one processor, and of all."""

    others: float
    stolen: float

    @property
    def idle(self) -> bool:
        return self.others <= OTHERS_LIMIT and self.stolen <= STEAL_LIMIT

    def __str__(self) -> str:
        return f"others took {self.others:.0%} of a processor, steal {self.stolen:.1%}"


def ticks() -> Ticks:
    all_, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = all_.user + all_.nice + all_.system + all_.irq + all_.softirq
    ours = own.user + own.system + own.children_user + own.children_system
    return Ticks(time.monotonic(), busy, all_.steal, ours)


def load_between(before: Ticks, after: Ticks) -> Load:
    seconds = max(after.clock - before.clock, 0.001)
    others = (after.busy - before.busy) - (after.ours - before.ours)
    stolen = (after.stolen - before.stolen) / (psutil.cpu_count() or 1)
    return Load(max(others, 0) / seconds, max(stolen, 0) / seconds)


def watch(seconds: float = SETTLE) -> Load:
    before = ticks()
    time.sleep(seconds)
    return load_between(before, ticks())


# ---------------------------------------------------------------- what it is


def virtualisation() -> str:
    """What systemd calls it: `qemu` is emulation, with KVM it would be `kvm`."""
    detect = shutil.which("systemd-detect-virt")
    if detect is None:
        flags = read("/proc/cpuinfo").partition("flags")[2].partition("\n")[0].split()
        return "virtual" if "hypervisor" in flags else "unknown"
    done = subprocess.run([detect, "--vm"], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


def describe(cgroups: str) -> dict[str, str]:
    models = [line for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else os.uname().machine
    virtual = {"none": "", "qemu": ", emulated"}.get(virtualisation(), ", virtual")
    return {
        "kernel": f"Linux {os.uname().release} {os.uname().machine}",
        "processors": f"{psutil.cpu_count()} x {model}{virtual}",
        "memory": f"{psutil.virtual_memory().total >> 20} MiB",
        "cgroups": cgroups,
        "controllers": " ".join(read(f"{CGROUP}/cgroup.controllers").split()) or "none",
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load average": " ".join(f"{one:.2f}" for one in psutil.getloadavg()),
    }
