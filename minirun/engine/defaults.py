"""What a container made from flags gets unless told otherwise: the safe defaults, as data.

The lists are unions of what docker, podman and systemd-nspawn hide, and of what their advisories
taught later; a path that a kernel does not have is skipped by the runtime.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.1.0"  # time namespaces came with it; nothing later is used

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND = ("/bin/sh",)
UMASK = 0o022

# CRI-O's nine. Not among docker's fourteen: NET_RAW (forges packets), MKNOD, AUDIT_WRITE, SETFCAP,
# SYS_CHROOT.
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
)  # fmt: skip

# Capabilities with which a container reaches the host, though a user namespace blunts most.
DANGEROUS_CAPABILITIES = {
    "CAP_SYS_ADMIN": "mounts and most of what root may do",
    "CAP_SYS_PTRACE": "reads and changes other processes",
    "CAP_SYS_MODULE": "loads code into the kernel",
    "CAP_SYS_RAWIO": "reaches the hardware",
    "CAP_DAC_READ_SEARCH": "opens files by handle, past every directory",
    "CAP_NET_ADMIN": "changes interfaces, routes and firewall of its network",
    "CAP_NET_RAW": "forges packets",
    "CAP_MKNOD": "makes device nodes",
    "CAP_BPF": "loads programs into the kernel",
    "CAP_PERFMON": "observes the kernel",
    "CAP_SYS_BOOT": "restarts the machine",
    "CAP_SYS_TIME": "sets the clock of the machine",
    "CAP_SYSLOG": "reads the kernel's log and addresses",
}

# Those that the kernel asks of the first user namespace: in another one they allow nothing.
HOST_CAPABILITIES = (
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_MKNOD", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_BOOT",
    "CAP_SYS_TIME", "CAP_SYSLOG",
)  # fmt: skip

NAMESPACES = ("mount", "pid", "ipc", "uts", "cgroup")

PIDS = 1024
MEMORY_DIVISOR = 2  # of the machine's memory
RLIMITS = {"RLIMIT_NOFILE": (1024, 4096), "RLIMIT_CORE": (0, 0)}
SHM_SIZE = 64 << 20
DEV_SIZE = 64 << 20
TTY_GID = 5  # the group of terminals, which devpts gives them by mode 0620: grantpt(3)

# null, zero, full, random, urandom, tty, console, ptmx, and the slaves of /dev/pts: use, not mknod.
DEVICE_RULES = (
    ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 1),
    ("c", 5, 2), ("c", 136, None),
)  # fmt: skip

_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms",
    "/proc/kcore", "/proc/keys", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/latency_stats", "/proc/mtrr", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/bpf", "/sys/fs/selinux",
    # Not all of /sys/kernel: programs tune themselves by /sys/kernel/mm.
    "/sys/kernel/btf", "/sys/kernel/config", "/sys/kernel/debug", "/sys/kernel/notes",
    "/sys/kernel/security", "/sys/kernel/slab", "/sys/kernel/tracing", "/sys/kernel/vmcoreinfo",
    "/sys/module", "/sys/power",
)  # fmt: skip

READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")

_CPUS = "/sys/devices/system/cpu"


def masked() -> list[str]:
    """List the paths to hide: the fixed ones, and each CPU's throttling counters (a side channel,
    GHSA-6fw5-f8r9-fgfm)."""
    try:
        names = os.listdir(_CPUS)
    except FileNotFoundError:
        names = []
    counters = [f"{_CPUS}/{name}/thermal_throttle" for name in sorted(names)]
    return [*_MASKED, *[path for path in counters if os.path.isdir(path)]]


def _mount(target: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": kind, "options": list(options)}


_CLOSED = ("nosuid", "noexec", "nodev")


def _host_sys() -> dict[str, Any]:
    return {
        "destination": "/sys",
        "type": "bind",
        "source": "/sys",
        "options": ["rbind", "rprivate", *_CLOSED, "ro", "rro"],
    }


def mounts(shm_size: int = SHM_SIZE, *, terminals: bool = True, own_sys: bool = True) -> list[Any]:
    """Give the file systems of every container, in the order in which they are mounted.

    `terminals`: whether group 5 exists in the user namespace. `own_sys`: whether a sysfs can be
    mounted, which the kernel refuses in a user namespace whose network namespace is another's
    (sysfs_init_fs_context()); then the host's is shown, read-only.
    """
    group = (f"gid={TTY_GID}",) if terminals else ()
    return [
        _mount("/proc", "proc", *_CLOSED),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", f"size={DEV_SIZE}"),
        _mount(
            "/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
            *group,
        ),
        _mount("/dev/shm", "tmpfs", *_CLOSED, "mode=1777", f"size={shm_size}"),
        _mount("/dev/mqueue", "mqueue", *_CLOSED),
        _mount("/sys", "sysfs", *_CLOSED, "ro") if own_sys else _host_sys(),
        _mount("/sys/fs/cgroup", "cgroup", *_CLOSED, "relatime", "ro"),
    ]  # fmt: skip


def memory_total() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
