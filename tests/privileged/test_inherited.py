"""What a payload starts with and can reach, in every way to start one: the same thirty questions.

What the audit tools of the field ask (amicontained, CDK, deepce, linPEAS), asked by one program.
The limits are not among them: see test_limits.py.
"""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import (
    LIMIT,
    PATH,
    Report,
    capabilities,
    good,
    in_a_terminal,
    read,
    report_of,
    until,
)
from test_rootless import UID, UserBox

from minirun.engine import defaults
from minirun.profiles import seccomp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime import Box

pytestmark = [
    pytest.mark.requires("root", "programs", "seccomp", "userns"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64"),
]

SECRET = "of-the-caller-7319"
CAPS = ("CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE")
MASK = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10

# Numbers of x86-64. None may get as far as to look at its arguments.
DENIED = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "setns": 308, "fsopen": 430, "open_tree": 428,
    "move_mount": 429, "mount_setattr": 442, "fspick": 433, "fsmount": 432, "clone3": 435,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "ptrace": 101,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "keyctl": 250, "add_key": 248, "request_key": 249, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "acct": 163,
    "swapon": 167, "swapoff": 168, "quotactl": 179, "quotactl_fd": 443, "syslog": 103,
    "settimeofday": 164, "clock_settime": 227, "open_by_handle_at": 304, "lookup_dcookie": 212,
    "iopl": 172, "ioperm": 173, "vhangup": 153, "nfsservctl": 180, "uselib": 134, "ustat": 136,
    "sysfs": 139, "_sysctl": 156,
}  # fmt: skip
X32 = 0x40000000
I386 = {"mount": 21, "ptrace": 26, "umount2": 52, "init_module": 128, "add_key": 286,
        "keyctl": 288, "setns": 346, "bpf": 357}  # fmt: skip
REFUSED = (1, 38)  # EPERM, ENOSYS; a kernel without that kind of call kills, or says ENOSYS

WRITES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/panic",
    "/proc/sys/vm/panic_on_oom", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register",
    "/proc/irq/default_smp_affinity", "/sys/kernel/uevent_helper", "/sys/power/state", "/dev/kmsg",
    "/dev/mem", "/dev/port", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/../cgroup/cgroup.procs",
    "/proc/1/oom_adj_", "/sys/kernel/mm/ksm/run", "/sys/block/x",
)  # fmt: skip
EMPTY_FILES = (
    "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/kallsyms",
    "/proc/config.gz", "/proc/interrupts", "/proc/vmallocinfo", "/proc/mtrr", "/proc/kpagecount",
    "/proc/sysrq-trigger", "/sys/kernel/vmcoreinfo", "/sys/kernel/notes", "/dev/kmsg", "/proc/kmsg",
)  # fmt: skip
EMPTY_DIRECTORIES = (
    "/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/fs/bpf", "/sys/fs/selinux", "/sys/module",
    "/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing", "/sys/kernel/config",
    "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle",
)  # fmt: skip
NODES = (
    "b2048",
    "c257",
    "c267",
    "c2789",
    "c2792",
)  # sda, mem, kmsg, fuse, tun: 256 * major + minor
INODES = ("/", "/..", "/proc/1/root", "/proc/self/root", "/proc/1/cwd/../../../..")
DEV = {
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "tty", "urandom", "zero",
}  # fmt: skip

CALLS = (
    *[f"call:{number}" for number in DENIED.values()],
    *[f"call:{number | X32}" for number in DENIED.values()],
    *[f"i386:{number}" for number in I386.values()],
    *[f"write:{path}" for path in WRITES],
    *[f"text:{path}" for path in (*EMPTY_FILES, "/proc/1/environ", "/proc/net/unix")],
    *[f"names:{path}" for path in (*EMPTY_DIRECTORIES, "/", "/proc", "/dev")],
    *[f"mknod:{node}" for node in NODES],
    *[f"inode:{path}" for path in INODES],
    *[f"unshare:{flags}" for flags in ("10000000", "20000", "2000000", "40000000", "80")],
    *[f"socket:{family}" for family in (17, 38, 40)],  # AF_PACKET, AF_ALG, AF_VSOCK
    "input:0", "input:1", "input:ffffffff",
)  # fmt: skip


# ---------------------------------------------------------------- the ways


def environment() -> dict[str, str]:
    """What a careless caller has, none of which is the container's business."""
    return {**os.environ, "SECRET": SECRET, "LD_LIBRARY_PATH": "/x", "PYTHONPATH": f"/{SECRET}"}


def dressed(box: Box) -> None:
    """Configure a container as `run --rootfs` does, so that the same may be expected of it."""
    box.process.update(
        capabilities=capabilities(*CAPS),
        env=[PATH],
        rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    )
    box.linux.update(
        maskedPaths=defaults.masked(), readonlyPaths=list(defaults.READONLY), seccomp=seccomp()
    )
    for kind in ("cgroup", "network", "ipc", "uts", "pid", "mount"):
        box.namespace(kind)
    unprivileged = isinstance(box, UserBox)
    box.config["mounts"] = defaults.mounts(terminals=not unprivileged)
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        box.unmount("/sys/fs/cgroup")


def words_into(box: Box) -> list[str]:
    return ["/probe", "into", "/tmp/report", "survey", *CALLS]


def told(box: Box) -> Report:
    """Wait for the report that a container of which no output comes has written."""
    path = box.rootfs / "tmp/report"
    return report_of(until(lambda: path.exists() and read(path).endswith("}\n") and read(path)))


def by_run(box: Box) -> Report:
    return box.probe("survey", *CALLS, env=environment())


def by_start(box: Box) -> Report:
    box.process["args"] = words_into(box)
    box.create(env=environment())
    box.start(env=environment())
    return told(box)


def detached(box: Box) -> Report:
    box.process["args"] = words_into(box)
    good(box.run("--detach", env=environment()))
    return told(box)


def in_terminal(box: Box, *words: str) -> Report:
    command = ["env", f"SECRET={SECRET}", "LD_LIBRARY_PATH=/x", *words]
    with in_a_terminal(command) as (master, process):
        # A terminal of which nobody reads keeps who writes to it waiting.
        drain = threading.Thread(target=_drain, args=(master,), daemon=True)
        drain.start()
        found = told(box)
        process.wait(LIMIT)
    drain.join(5)
    return found


def _drain(master: int) -> None:
    try:
        while os.read(master, 4096):
            pass
    except OSError:
        pass


def with_terminal(box: Box) -> Report:
    box.process.update(args=words_into(box), terminal=True)
    box.write()
    return in_terminal(box, *box.words("run", "--bundle", str(box.bundle), box.id))


def by_exec(box: Box) -> Report:
    box.up()
    return box.exec_probe("survey", *CALLS, env=environment())


def by_exec_with_terminal(box: Box) -> Report:
    box.up()
    return in_terminal(box, *box.words("exec", "--tty", box.id, *words_into(box)))


def by_detached_exec(box: Box) -> Report:
    box.up()
    good(box.exec(*words_into(box), flags=["--detach"], env=environment()))
    return told(box)


def from_rootfs(box: Box) -> Report:
    """What a person types."""
    words = ["run", "--rootfs", str(box.rootfs), box.id, "/probe", "survey", *CALLS]
    there = {**environment(), "MINIRUN_DATA": str(box.place / "data")}
    return report_of(good(box.call(*words, env=there)).out)


def in_user_namespace(box: Box) -> Report:
    box.user_namespace()
    return by_run(box)


def exec_in_user_namespace(box: Box) -> Report:
    box.user_namespace()
    return by_exec(box)


def restored(box: Box) -> Report:
    script = f"until [ -e /tmp/go ]; do sleep 0.1; done; exec {' '.join(words_into(box))}"
    box.process["args"] = ["/bin/sh", "-c", script]
    images = ["--image-path", str(box.place / "images")]
    box.create(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    box.start()
    good(box.call("checkpoint", *images, box.id))
    bundle = ["--bundle", str(box.bundle), "--detach"]
    good(box.call("restore", *bundle, *images, box.id, env=environment()))
    (box.rootfs / "tmp/go").touch()
    return told(box)


WAYS: dict[str, Callable[[Box], Report]] = {
    "run": by_run,
    "create and start": by_start,
    "run -d": detached,
    "run -t": with_terminal,
    "exec": by_exec,
    "exec -t": by_exec_with_terminal,
    "exec -d": by_detached_exec,
    "run --rootfs": from_rootfs,
    "userns": in_user_namespace,
    "exec, userns": exec_in_user_namespace,
    "rootless": by_run,
    "exec, rootless": by_exec,
    "restore": restored,
}
MAPPED = ("run --rootfs", "userns", "exec, userns", "rootless", "exec, rootless")
TERMINALS = ("run -t", "exec -t")


# ---------------------------------------------------------------- the questions


class Answers:
    """A report, the way it came about, and what is wrong with it: by the number of the question."""

    def __init__(self, report: Report, way: str, cid: str) -> None:
        self.report = report
        self.tries: dict[str, Any] = report["tries"]
        self.way = way
        self.id = cid
        self.wrong: dict[str, Any] = {}

    def expect(self, question: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.wrong[question] = found

    def none(self, question: str, found: Any) -> None:
        """Expect nothing at all."""
        found = {one: found[one] for one in found} if isinstance(found, dict) else list(found)
        if found:
            self.wrong[question] = found

    def but(self, prefix: str, wanted: Callable[[Any], bool]) -> dict[str, Any]:
        """Give the tries of a kind that did not end as wanted."""
        kind = {name: end for name, end in self.tries.items() if name.startswith(prefix)}
        assert kind
        return {name: end for name, end in kind.items() if not wanted(end)}


def identity(it: Answers) -> None:
    report = it.report
    mapped = it.way in MAPPED
    caps = 0 if it.way.endswith("--rootfs") else MASK
    if caps:
        wanted = {"Inh": 0, "Prm": caps, "Eff": caps, "Bnd": caps, "Amb": 0}
        it.expect("1 capabilities", report.caps, wanted)
    else:
        sets = report.caps
        nine = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10))
        it.expect("1 capabilities", sets, {**dict.fromkeys(sets, nine), "Inh": 0, "Amb": 0})
    it.expect("2 no new privileges", report.status("NoNewPrivs"), "1")
    it.expect("3 filter", report.status("Seccomp"), "2")
    it.expect("3 filters", report.status("Seccomp_filters"), "1")
    it.expect("4 user ids", report["uid_map"].split() != ["0", "0", "4294967295"], mapped)
    rootless = it.way.endswith("rootless")
    it.expect("5 setgroups", report["setgroups"].strip(), "deny" if rootless else "allow")
    it.expect("18 securebits", (report["securebits"], report["keepcaps"]), (0, 0))
    it.expect("19 groups", report.status("Groups"), "")


def namespaces(it: Answers) -> None:
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in it.report["ns"]}
    shared = {name for name, link in it.report["ns"].items() if link == ours[name]}
    allowed = {"time"} | (set() if it.way in MAPPED else {"user"})
    it.none("6 namespaces of the host", shared - allowed)
    processes = [name for name in it.tries["names:/proc"] if name.isdigit()]
    it.none("7 processes of others", [pid for pid in processes if int(pid) > 200])
    it.expect("7 how many", len(processes) <= 3, True)
    it.expect("22 cgroup", it.report["cgroup"].splitlines()[-1].startswith("0::/.."), False)


def mounts(it: Answers) -> None:
    found = it.report.mounts
    loose = {point for point, one in found.items() if point != "/" and "nosuid" not in one.options}
    # A mask and a node are mounts of the host's /dev/null and its like, which run nothing.
    masks = {point for point in loose if found[point].type == "devtmpfs"}
    it.none("8 set-user-ID", loose - masks)
    it.none("8 host", [one for one in found if one.endswith(".sock") or one.startswith("/host")])
    it.none("12 file systems", {one.type for one in found.values()} & {
        "securityfs", "debugfs", "tracefs", "bpf", "efivarfs", "selinuxfs", "configfs", "pstore",
        "fusectl", "hugetlbfs", "binfmt_misc",
    })  # fmt: skip
    it.expect("12 sys", "ro" in found["/sys"].options, True)
    if "/sys/fs/cgroup" in found:
        it.expect("8 cgroup", "ro" in found["/sys/fs/cgroup"].options, True)
    it.none("9 devices", set(it.tries["names:/dev"]) - DEV - {".", ".."})
    blocks = [path for path, one in it.report["dev"].items() if stat.S_ISBLK(one["mode"])]
    it.none("9 disks", blocks)


def calls(it: Answers) -> None:
    refused = lambda end: end in REFUSED or end < 0  # noqa: E731
    it.none("9 nodes", it.but("mknod:", bool))
    it.none("13 calls", it.but("call:", refused))
    it.none("13 namespaces", it.but("unshare:", refused))
    it.none("14 calls of i386", it.but("i386:", refused))
    it.none("13 sockets", it.but("socket:", bool))
    it.none("21 input", it.but("input:", bool))
    it.none("10 writes", it.but("write:", bool))
    it.none("11 files", {
        path: text
        for path in EMPTY_FILES
        if (text := it.tries[f"text:{path}"])
    })  # fmt: skip
    it.none("11 directories", {
        path: names
        for path in EMPTY_DIRECTORIES
        if (names := set(it.tries[f"names:{path}"]) - {".", ".."})
    })  # fmt: skip
    root = it.tries["inode:/"]
    # /proc/1 may be closed to another user; where it is open it leads nowhere else.
    it.none("15 ways out", it.but("inode:", lambda end: end == root or end < 0))


def surroundings(it: Answers) -> None:
    report = it.report
    it.expect("16 descriptors", set(report.fds), {0, 1, 2})
    it.expect("17 directory", report["cwd"], "/")
    it.none("18 signals", {
        name: report.status(name)
        for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        if report.bits(name)
    })  # fmt: skip
    it.expect("18 umask", report.status("Umask"), "0022")
    nice = os.getpriority(os.PRIO_PROCESS, 0)  # the caller's, as with every program
    it.expect("18 nice", (report["nice"], report["scheduler"], report["timer"]), (nice, 0, 0))
    # All, or the caller's where there is no group of its own, which would set them.
    theirs = {os.cpu_count(), len(os.sched_getaffinity(0))}
    it.expect("18 processors", report["cpus"] in theirs, True)
    it.expect("18 death signal", report["pdeathsig"], 0)
    it.expect("20 keyring", report["keyring"], -1)  # the call is refused
    it.expect("27 core", report.limit("Max core file size"), ["0", "0"])
    names = {entry.partition("=")[0] for entry in report["env"]}
    it.none("24 variables", names - {"PATH", "HOME", "TERM", "LANG", "HOSTNAME"})
    everything = str(report) + str(it.tries["text:/proc/1/environ"])
    it.expect("24 the caller's", SECRET in everything, False)
    root = set(it.tries["names:/"])
    it.none("26 the runtime's files", root & {"config.json", "state.json", "exec.fifo"})
    it.none("23 sockets of the host", [
        line for line in (it.tries["text:/proc/net/unix"] or "").splitlines()[1:] if "/" in line
    ])  # fmt: skip
    it.expect("25 dumpable", report["dumpable"], 1)


@pytest.fixture
def subject(request: pytest.FixtureRequest, place: Path, base: Path, box: Box) -> Iterator[Box]:
    way = request.node.callspec.params["way"]
    if not way.endswith("rootless"):
        yield box
        return
    user = UserBox(place, base, UID)
    yield user
    user.delete("--force")


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=pytest.mark.requires("criu") if way == "restore" else ())
        for way in WAYS
    ],
)
def test_what_a_payload_inherits(subject: Box, way: str) -> None:
    if way == "run --rootfs" and "overlay" not in read("/proc/filesystems"):
        pytest.skip("needs overlay")
    dressed(subject)
    it = Answers(WAYS[way](subject), way, subject.id)
    for ask in (identity, namespaces, mounts, calls, surroundings):
        ask(it)
    assert it.wrong == {}
