"""One bundle under two runtimes: what each did and what its payload saw, and where they differ.

`observe()` gives everything that can be seen of a trial as a flat table; two of them are compared
by name. What may differ stands in `ALLOWED`, with the reason; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles import CALLS, placed
from runtime import (
    LIMIT,
    Done,
    Report,
    call,
    make_rootfs,
    read,
    reap_orphans,
    report_of,
    until,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bundles import Trial

    Seen = dict[str, Any]

_MS_SHARED, _MNT_DETACH = 1 << 20, 2
ID = "differential"
GROUP = f"/minirun/differential-{os.getpid()}"
# What engines look for in messages: minirun(1), "ERRORS".
WORDS = (
    "does not exist", "container not running", "already exists", "no such file or directory",
    "permission denied", "not a directory", "executable file not found", "cannot delete",
    "cannot start", "process already finished",
)  # fmt: skip
_STATUS = """Umask Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp
Seccomp_filters Speculation_Store_Bypass Cpus_allowed_list SigIgn SigBlk SigCgt"""
_ALIKE = """environ oom_score_adj uid_map gid_map setgroups timens_offsets personality cwd argv env
securebits keepcaps dumpable pdeathsig nice scheduler cpus timer hostname domainname loopback ioprio
cgroup"""
_TEXTS = """/proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range
/proc/sys/net/core/somaxconn /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/kernel/msgmax
/proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max
/etc/passwd"""
_TRIES = (
    *(f"text:{path}" for path in _TEXTS.split()),
    *(f"mknod:{node}" for node in ("c259", "c261", "c257", "b1792", "c0")),
    *(f"create:{place}/new" for place in ("/etc", "/vol", "/tmp", "/vol/sub", "/made/for/it")),
    *(f"mode:{place}" for place in ("/vol", "/vol/sub", "/tmp", "/etc", "/made/for/it", "/root")),
    *(f"read:{path}" for path in ("/proc/kcore", "/proc/timer_list", "/proc/irq", "/proc/bus")),
    *(f"write:/proc/{name}" for name in ("sysrq-trigger", "sys/kernel/panic", "bus")),
    *(f"stat:{path}" for path in ("/sys/firmware/none", "/vol/file", "/vol/inner", "/etc/passwd")),
    "mkdir:/sys/fs/cgroup/below",
)  # fmt: skip
_LAST_TRIES = ("unshare:10000000", "unshare:20000")  # they change what the others would see
_LIMITS = """memory.max memory.high memory.low memory.min memory.swap.max memory.oom.group cpu.max
cpu.max.burst cpu.weight cpu.idle cpuset.cpus cpuset.mems pids.max io.weight io.bfq.weight io.max
hugetlb.2MB.max hugetlb.2MB.rsvd.max"""


@cache
def calls() -> dict[str, str]:
    """Give the probe's words for CALLS: their names by their words on this machine."""
    library = ctypes.CDLL("libseccomp.so.2")
    numbers = {name: library.seccomp_syscall_resolve_name(name.encode()) for name in CALLS}
    return {f"call:{number}": f"call:{name}" for name, number in numbers.items() if number >= 0}


def tries() -> list[str]:
    return [*_TRIES, *calls(), *_LAST_TRIES]


# ---------------------------------------------------------------- what the payload saw


def flat(report: Report) -> Seen:
    """Take a report apart into values that two runs of one runtime have in common."""
    found: Seen = {f"status.{name}": report.status(name) for name in _STATUS.split()}
    found |= {name: report[name] for name in _ALIKE.split()}
    found |= {f"limits.{line[:26].strip()}": line[26:] for line in report["limits"].splitlines()}
    found |= {f"ns.{name}": _kind_of(name, link) for name, link in report["ns"].items()}
    found |= {f"fd.{fd}": _descriptor(one) for fd, one in report["fds"].items()}
    found |= {f"dev.{path}": one for path, one in report["dev"].items()}
    found |= {calls().get(name, name): value for name, value in report["tries"].items()}
    found["processes"] = [report["pid"] == 1, report["ppid"] == 0, report["sid"] == report["pid"]]
    found["keyring"] = report["keyring_description"].partition(";")[2]
    return found | _mounts(report["mountinfo"])


def _kind_of(name: str, link: str | None) -> str:
    if link is None:
        return "none"
    return "host" if link == os.readlink(f"/proc/self/ns/{name}") else "other"


def _descriptor(one: dict[str, Any]) -> tuple[Any, ...]:
    name = str(one.get("link")).split(" (deleted)")[0]
    return (stat.S_IFMT(one["mode"]), one["rdev"], one["uid"], one["flags"], name.split(":[")[0])


def _mounts(text: str) -> Seen:
    """Every mount, by its point; those on one point are told apart by what lies on what.

    The lines' own order says when a mount was made, not where it lies.
    """
    fields_of = [line.split(" ") for line in text.splitlines()]
    numbers = {fields[0] for fields in fields_of}
    found: Seen = {}
    below = [fields for fields in fields_of if fields[1] not in numbers or fields[1] == fields[0]]
    while below:
        fields = below.pop()
        dash = fields.index("-")
        point = f"mount.{fields[4]}"
        while point in found:
            point += " again"
        tags = sorted(tag.partition(":")[0] for tag in fields[6:dash])
        root = fields[3] if "cgroup" not in fields[dash + 1] else ""
        found[point] = (root, sorted(fields[5].split(",")), tags, *fields[dash + 1 : dash + 3],
                        sorted(fields[dash + 3].split(",")))  # fmt: skip
        on_it = [one for one in fields_of if one[1] == fields[0] and one[0] != fields[0]]
        below += sorted(on_it, key=lambda one: one[4], reverse=True)
    return found


# ---------------------------------------------------------------- one runtime


class Runner:
    """A runtime by the words that start it, and the place where it works."""

    def __init__(self, words: Sequence[str], place: Path, base: Path) -> None:
        self.words = [*words, "--root", str(place / "state")]
        self.place = place
        self.base = base
        self.bundle = place / "bundle"
        self.update: Sequence[str] = ()
        self.seen: Seen = {}

    def observe(self, trial: Trial, donor: int) -> Seen:
        """Carry a trial out; give everything that can be seen of it."""
        self.seen = {}
        self._prepare(trial, donor)
        _mount(self.place / "source")
        before = _host()
        try:
            getattr(self, f"_{trial.way}")()
        finally:
            self._call("", "delete", "--force", ID)
            reap_orphans()
            self.seen["left"] = sorted(_host() - before) + os.listdir(self.place / "state")
            _end_group()
        hooks = self.bundle / "hooks"
        inside = self.bundle / "rootfs/hooks"
        for name, path in (("host", hooks), ("container", inside)):
            self.seen[f"hooks.{name}"] = _hook_log(path)
        self.seen |= {f"rootfs.{name}": what for name, what in _tree(self.bundle / "rootfs")}
        return self.seen

    def _prepare(self, trial: Trial, donor: int) -> None:
        if self.bundle.exists():
            shutil.rmtree(self.bundle)
        (self.place / "state").mkdir(exist_ok=True)
        rootfs = self.bundle / "rootfs"
        make_rootfs(rootfs, self.base)
        (rootfs / "link").symlink_to("vol")
        for path in (self.bundle / "hooks", rootfs / "hooks"):
            path.touch()
            path.chmod(0o666)  # who runs in a user namespace writes there too
        config = placed(
            trial.config,
            source=str(self.place / "source"),
            donor=f"/proc/{donor}/ns",
            bundle=str(self.bundle),
            group=GROUP,
        )
        self.argument = (config.get("process") or {}).get("args") or []
        if "survey" in self.argument:
            self.argument += tries()
            if trial.way == "exec":
                config["process"]["args"] = ["/bin/sleep", "600"]
        self.update = trial.update
        maps = config["linux"].get("uidMappings")
        if maps and maps[0]["hostID"]:
            for path in [rootfs, *rootfs.rglob("*")]:
                os.lchown(path, maps[0]["hostID"], maps[0]["hostID"])
        (self.bundle / "config.json").write_text(json.dumps(config))

    # ------------------------------------------------------------ the ways

    def _run(self) -> None:
        done = self._call("run", "run", "--bundle", str(self.bundle), ID, streams=True)
        self._report("", done.out)

    def _create(self) -> None:
        if not self._begin():
            return
        pid = self._state("created")
        self._limits(pid)
        self._call("start", "start", ID)
        with contextlib.suppress(ProcessLookupError):
            wait_for(pid, LIMIT)
        until(lambda: self._status() in ("stopped", ""))
        self._state("stopped")
        self._report("", read(self.place / "out"))
        for verb in (["kill", ID, "TERM"], ["start", ID], ["delete", ID], ["state", ID]):
            self._call(f"after.{verb[0]}", *verb)

    def _exec(self) -> None:
        if not self._begin():
            return
        pid = self._state("created")
        self._limits(pid)
        for verb in ("start", "start", "state", "delete"):
            self._call(self._unused(verb), verb, ID)
        self._state("running")
        if self.update:
            self._call("update", "update", *self.update, ID)
            self._limits(pid, "updated")
        done = self._call("exec", "exec", ID, *self.argument, streams=True)
        self._report("exec.", done.out)
        self._call("exec.nothing", "exec", ID, "/nothing")
        self._call("exec.false", "exec", ID, "/bin/false")
        self._call("kill.bogus", "kill", ID, "SIGBOGUS")
        self._call("kill", "kill", ID, "KILL")
        until(lambda: self._status() in ("stopped", ""))
        self._state("stopped")
        last = (["exec", ID, "/bin/true"], ["kill", ID, "9"], ["delete", ID], ["delete", ID])
        for words in last:
            self._call(self._unused(f"after.{words[0]}"), *words)

    # ------------------------------------------------------------ parts

    def _unused(self, name: str) -> str:
        return f"{name}.again" if f"{name}.code" in self.seen else name

    def _begin(self) -> bool:
        (self.place / "out").unlink(missing_ok=True)
        with open(self.place / "out", "wb") as out:
            done = self._call("create", "create", "--bundle", str(self.bundle), ID, stdout=out)
        if done.code:
            self._call("state", "state", ID)
        return done.code == 0

    def _call(self, name: str, *words: str, streams: bool = False, **options: Any) -> Done:
        """Call the runtime. Its streams are compared unless they are the payload's as well."""
        try:
            done = call([*self.words, *words], **options)
        except TimeoutError:
            done = Done(-1, "", "not finished")
        if name:
            told = [word for word in WORDS if word in done.err.lower()] if done.code else []
            self.seen[f"{name}.code"] = done.code
            self.seen[f"{name}.words"] = told
            if not streams and words[0] != "state":
                self.seen[f"{name}.out"] = done.out
            self.seen[f"message.{name}"] = done.err
        return done

    def _status(self) -> str:
        done = self._call("", "state", ID)
        return str(json.loads(done.out)["status"]) if done.code == 0 else ""

    def _state(self, name: str) -> int:
        done = self._call(f"state.{name}", "state", ID)
        if done.code:
            return -1
        found = json.loads(done.out)
        pid = int(found.pop("pid", -1))
        found.pop("created", None)
        self.seen |= {f"state.{name}.{key}": value for key, value in found.items()}
        self.seen[f"state.{name}.pid"] = pid > 0
        return pid

    def _limits(self, pid: int, when: str = "limit") -> None:
        with contextlib.suppress(OSError):
            path = read(f"/proc/{pid}/cgroup").rpartition("0::")[2].strip()
            for name in _LIMITS.split():
                with contextlib.suppress(OSError):
                    self.seen[f"{when}.{name}"] = read(f"/sys/fs/cgroup{path}/{name}")

    def _report(self, name: str, text: str) -> None:
        try:
            report = report_of(text)
        except (ValueError, KeyError):
            self.seen[f"{name}report"] = text[-300:]
            return
        self.seen |= {f"{name}{key}": value for key, value in flat(report).items()}


def _mount(source: Path) -> None:
    """Make what is bound into containers, anew: earlier ones may have written or mounted there."""
    _unmount(source)
    libc = ctypes.CDLL(None, use_errno=True)
    for path in (source, source / "inner"):
        path.mkdir(exist_ok=True)
        done = libc.mount(b"of-the-test", os.fsencode(path), b"tmpfs", 0, b"mode=755")
        assert done == 0, os.strerror(ctypes.get_errno())
        libc.mount(None, os.fsencode(path), None, _MS_SHARED, None)
    (source / "plain").mkdir()
    (source / "file").write_text("root:x:0:0:bound:/home:/bin/sh\n")


def _unmount(source: Path) -> None:
    libc = ctypes.CDLL(None)
    lines = read("/proc/self/mountinfo").splitlines()
    for point in reversed([line.split(" ")[4] for line in lines]):
        if f"{point}/".startswith(f"{source}/"):
            libc.umount2(os.fsencode(point), _MNT_DETACH)


def _end_group() -> None:
    """Take away what a runtime that did not finish has left in the trial's cgroup."""
    group = Path(f"/sys/fs/cgroup{GROUP}")
    if group.exists():
        (group / "cgroup.kill").write_text("1")
        until(lambda: not read(group / "cgroup.procs"))
        group.rmdir()


def _host() -> set[str]:
    """What a runtime could leave on the host: mounts, cgroups."""
    mounts = {" ".join(line.split()[3:5]) for line in read("/proc/self/mountinfo").splitlines()}
    group = f"/sys/fs/cgroup{GROUP}"
    return mounts | ({group} if os.path.exists(group) else set())


def _hook_log(path: Path) -> list[Any]:
    """What the hooks have written: states, without what differs from run to run, and lines."""
    found: list[Any] = []
    for line in path.read_text().splitlines():
        if line.startswith("{"):
            state = json.loads(line)
            state["pid"] = state.get("pid", 0) > 0
            found.append({key: value for key, value in state.items() if key != "created"})
        else:
            found.append(line)
    return found


def _tree(top: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        yield str(path.relative_to(top)), (status.st_mode, status.st_uid, status.st_gid)


@contextlib.contextmanager
def surroundings(place: Path) -> Iterator[int]:
    """Make the namespaces that bundles join, and take away what is bound; give their process."""
    try:
        words = ["unshare", "--net", "--ipc", "--uts", "sleep", "infinity"]
        with subprocess.Popen(words) as donor:
            try:
                until(lambda: read(f"/proc/{donor.pid}/comm").strip() == "sleep")
                yield donor.pid
            finally:
                donor.kill()
    finally:
        _unmount(place / "source")
