"""What parts either side from the host, as counts: no grades, and nothing that was not seen."""

from __future__ import annotations

import errno
import os

import psutil

from minirun.compare.bpf import Unreadable, allowed
from minirun.kernel import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.compare.contained import Container
    from minirun.compare.machine import Machine

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class Count:
    """One fact of both sides, in words; `key` is its name in JSON."""

    def __init__(self, key: str, title: str, container: str, machine: str) -> None:
        self.key, self.title = key, title
        self.container, self.machine = container, machine


def counts(container: Container, machine: Machine, architecture: str) -> list[Count]:
    """Look at one of each, which run the inspecting job (`jobs.INSPECT`)."""
    ours, theirs = container.session.facts, machine.session.facts
    init, qemu = container.init, machine.child.pid
    boot = _host_boot()

    def kernel(facts: dict[str, str]) -> str:
        same = "the host's" if facts.get("boot") == boot else "its own"
        return f"{same} ({facts.get('kernel', 'unknown')})"

    def both(key: str, title: str, name: str) -> Count:
        return Count(key, title, ours.get(name, "unknown"), theirs.get(name, "unknown"))

    return [
        Count("kernel", "kernel", kernel(ours), kernel(theirs)),
        Count(
            "syscalls",
            "system calls of the host that a filter lets through",
            syscalls(init, architecture),
            f"{syscalls(qemu, architecture)} (QEMU's; the guest's reach its own kernel)",
        ),
        Count(
            "namespaces",
            "namespaces that are not the host's",
            namespaces(init),
            f"{namespaces(qemu)} (QEMU's)",
        ),
        Count(
            "capabilities",
            "capabilities; in which user namespace",
            capabilities(init),
            f"{capabilities(qemu)} (QEMU's); in the guest {_ones(theirs.get('capabilities'))}",
        ),
        Count("user", "user on the host", user(init), f"{user(qemu)} (QEMU's)"),
        both("processes", "processes that it sees, kernel threads too", "processes"),
        both("mounts", "mounts that it sees", "mounts"),
        both("nodes", "device nodes in its /dev", "nodes"),
        Count(
            "devices",
            "devices that are emulated for it",
            "0",
            _devices(machine),
        ),
    ]


def _host_boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def syscalls(pid: int, architecture: str) -> str:
    """Say how many system calls a process's filters allow; "unknown (why)" if that is hidden."""
    try:
        filters = ptrace.seccomp_filters(pid)
        passed, known = allowed(filters, architecture)
    except (OSError, Unreadable) as error:
        why = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else str(error)
        return f"unknown ({why})"
    return f"{passed} of {known}" if filters else f"all {known}, no filter"


def namespaces(pid: int) -> str:
    """Say how many of a process's namespaces are others than our own."""
    found = [name for name in NAMESPACES if os.path.exists(f"/proc/self/ns/{name}")]
    try:
        other = [
            name
            for name in found
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        ]
    except OSError as error:
        return f"unknown ({(error.strerror or '').lower()})"
    return f"{len(other)} of {len(found)}" + (f": {' '.join(other)}" if other else "")


def capabilities(pid: int) -> str:
    """Say how many capabilities a process has, and whether they count on the host."""
    try:
        own = os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        with open(f"/proc/{pid}/status") as file:
            effective = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    except OSError as error:
        return f"unknown ({(error.strerror or '').lower()})"
    where = "in a user namespace of its own" if own else "on the host"
    return f"{_ones(effective)} {where}"


def _ones(mask: str | None) -> str:
    return "unknown" if not mask else str(int(mask, 16).bit_count())


def user(pid: int) -> str:
    """Say which user a process is to the host."""
    try:
        uid = psutil.Process(pid).uids().effective
    except psutil.NoSuchProcess:
        return "unknown (it has ended)"
    return f"{uid} (root)" if uid == 0 else str(uid)


def _devices(machine: Machine) -> str:
    """Count the devices in QEMU's object tree: named by the command line, or the board's own."""
    found = 0
    for path in ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"):
        answer = machine.ask("qom-list", {"path": path})
        found += sum(one["name"].startswith("device[") for one in answer)
    return f"{found} (by QEMU)"
