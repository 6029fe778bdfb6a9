"""Bundles by chance: configurations over what config.json can say, for two runtimes to carry out.

`trials()` gives what `test_differential` runs. Each part of a configuration is there or not, and
what hypothesis tries last is the bundle without any of them, so that a difference is shown with
little else around it. About one in six is spoilt: it has one thing that a runtime should refuse.
"""

from __future__ import annotations

import copy
import glob
import json
import resource
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st
from runtime import base_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Draw = Callable[[st.SearchStrategy[Any]], Any]
    Part = Callable[[Draw, dict[str, Any]], None]

# What stands for paths that only the run knows; see `placed`.
SOURCE, DONOR, BUNDLE, GROUP = "@source", "@donor", "@bundle", "@group"
WAYS = ("run", "create", "exec")
FIRST_ID = 100000

# System calls that do nothing when their arguments are -1, 0, 0, -1, and that neither the probe nor
# a runtime needs once the filter is there.
_CALLS = """accept acct bpf chroot clone3 fchmod flock ftruncate getpgid io_uring_setup mincore
mount msync openat2 perf_event_open pidfd_open pivot_root process_vm_readv ptrace quotactl swapoff
syslog sysinfo times tkill umount2 userfaultfd"""
CALLS = _CALLS.split()
CAPS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_RAW",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_FOWNER",
]  # fmt: skip
PROPAGATIONS = [f"{r}{kind}" for kind in ("private", "slave", "shared", "unbindable") for r in "r "]
PROPAGATIONS = [name.strip() if name[0] == " " else name for name in PROPAGATIONS]


class Trial(NamedTuple):
    """A configuration, the way it is run (one of WAYS), and what spoils it, if anything does.

    `update` is the flags by which it is updated while it runs, if its way is `exec`.
    """

    config: dict[str, Any]
    way: str
    spoilt: str
    update: tuple[str, ...] = ()


# ---------------------------------------------------------------- drawing


def some(items: Sequence[Any], most: int = 4) -> st.SearchStrategy[list[Any]]:
    """A few of these, each once."""
    return st.lists(st.sampled_from(items), unique_by=repr, max_size=most)


def maybe(draw: Draw, one_in: int) -> bool:
    """Tell whether a part is there: once in so many; never, where hypothesis simplifies."""
    return bool(draw(st.integers(0, one_in - 1)) == one_in - 1)


# ---------------------------------------------------------------- namespaces and ids


def namespaces(draw: Draw, config: dict[str, Any]) -> None:
    linux = config["linux"]
    for kind in ("pid", "network", "ipc", "uts"):
        if maybe(draw, 8):
            linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != kind]
            if kind == "uts":
                del config["hostname"]
        elif kind != "pid" and maybe(draw, 10):
            entry = next(one for one in linux["namespaces"] if one["type"] == kind)
            entry["path"] = f"{DONOR}/{ {'network': 'net'}.get(kind, kind) }"
    if maybe(draw, 3):
        linux["namespaces"].append({"type": "cgroup"})


def user_namespace(draw: Draw, config: dict[str, Any]) -> None:
    linux = config["linux"]
    linux["namespaces"].insert(draw(st.integers(0, 2)), {"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        whole = [{"containerID": 0, "hostID": FIRST_ID, "size": 65536}]
        parts = [
            {"containerID": 0, "hostID": FIRST_ID, "size": 1000},
            {"containerID": 1000, "hostID": FIRST_ID * 2, "size": 1001},
        ]
        linux[kind] = draw(st.sampled_from([whole, parts]))


def user(draw: Draw, config: dict[str, Any]) -> None:
    ids = st.sampled_from([0, 1, 1000, 65534, 2000])
    found = {"uid": draw(ids), "gid": draw(ids)}
    if draw(st.booleans()):
        found["additionalGids"] = draw(some([0, 4, 5, 44, 1000]))
    if draw(st.booleans()):
        found["umask"] = draw(st.sampled_from([0, 0o22, 0o77, 0o777]))
    config["process"]["user"] = found


# ---------------------------------------------------------------- the process


def environment(draw: Draw, config: dict[str, Any]) -> None:
    more = [
        "A=1",
        "A=2",
        "EMPTY=",
        "HOME=/vol",
        "HOME=",
        "TERM=xterm",
        "X=a=b c",
        "Ünï=çödé",
        "L=a\nb",
    ]
    config["process"]["env"] += draw(some(more))
    if maybe(draw, 4):
        config["process"]["env"].reverse()


def program(draw: Draw, config: dict[str, Any]) -> None:
    name = draw(st.sampled_from(["/probe", "./probe", "probe"]))
    config["process"]["args"][0] = name
    if name == "probe":
        config["process"]["env"].append("PATH=/:/bin")


def cwd(draw: Draw, config: dict[str, Any]) -> None:
    places = ["/tmp", "/root", "/vol", "/made/here", "/proc", "/link"]
    config["process"]["cwd"] = draw(st.sampled_from(places))


def caps(draw: Draw, config: dict[str, Any]) -> None:
    if maybe(draw, 6):
        del config["process"]["capabilities"]
        return
    held = draw(some(CAPS, 8))
    sets = {kind: list(held) for kind in ("bounding", "effective", "permitted")}
    if draw(st.booleans()):
        sets["inheritable"] = draw(some(held or CAPS))
        sets["ambient"] = draw(some(sets["inheritable"] or CAPS))
    if maybe(draw, 4):
        sets["effective"] = draw(some(held or CAPS))
    config["process"]["capabilities"] = sets


def rlimits(draw: Draw, config: dict[str, Any]) -> None:
    names = [
        "NOFILE",
        "CORE",
        "STACK",
        "MEMLOCK",
        "NICE",
        "RTPRIO",
        "MSGQUEUE",
        "CPU",
        "SIGPENDING",
    ]
    found = []
    for name in draw(some(names, 5)):
        # Not above what there is: who may raise limits is the machine's affair.
        _, most = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        most = 1 << 40 if most < 0 else most
        soft = min(most, 1 << 22 if name == "STACK" else draw(st.sampled_from([64, 1000, 8192])))
        hard = min(most, soft * draw(st.sampled_from([1, 2])))
        found.append({"type": f"RLIMIT_{name}", "soft": soft, "hard": hard})
    config["process"]["rlimits"] = found


def small_things(draw: Draw, config: dict[str, Any]) -> None:
    process = config["process"]
    process["noNewPrivileges"] = draw(st.booleans())
    if draw(st.booleans()):
        process["oomScoreAdj"] = draw(st.sampled_from([0, 1, 500, 1000]))
    if "hostname" in config and draw(st.booleans()):
        config["hostname"] = draw(st.sampled_from(["a", "a.b-c", "x" * 64, ""]))
    if draw(st.booleans()):
        config["annotations"] = {"org.example.key": "värde", "empty": ""}
    config["ociVersion"] = draw(st.sampled_from(["1.0.2", "1.0.0", "1.0.2-dev"]))


# ---------------------------------------------------------------- the file system


def mounts(draw: Draw, config: dict[str, Any]) -> None:
    flags = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "strictatime",
             "rw", "suid", "dev", "exec", "sync", "dirsync"]  # fmt: skip
    places = ["/vol", "/vol/sub", "/made/for/it", "/tmp", "/link", "/etc", "relative/place"]
    for place in draw(st.lists(st.sampled_from(places), unique=True, min_size=1, max_size=3)):
        kind = draw(st.sampled_from(["tmpfs", "bind", "rbind", "file"]))
        options = draw(some(flags, 3)) + draw(some(PROPAGATIONS, 1))
        entry = {"destination": place, "options": options}
        if kind == "tmpfs":
            options += draw(some(["size=1m", "mode=0750", "mode=1777", "nr_inodes=64"], 2))
            entry.update(type="tmpfs", source=draw(st.sampled_from(["tmpfs", "named"])))
        elif kind == "file":
            options.append("bind")
            entry.update(type="bind", source=f"{SOURCE}/file")
            entry["destination"] = draw(st.sampled_from(["/etc/passwd", "/made/file", "/vol/file"]))
        else:
            options.insert(0, kind)
            entry.update(
                source=draw(st.sampled_from([SOURCE, f"{SOURCE}/inner", f"{SOURCE}/plain"]))
            )
            entry.update(draw(st.sampled_from([{"type": "bind"}, {"type": "none"}, {}])))
        config["mounts"].append(entry)


def usual_mounts(draw: Draw, config: dict[str, Any]) -> None:
    safe = ["nosuid", "noexec", "nodev"]
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
           "options": [*safe, "mode=1777", "size=65536k"]}  # fmt: skip
    queues = {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe}
    groups = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": [*safe, "relatime", draw(st.sampled_from(["ro", "rw"]))]}  # fmt: skip
    config["mounts"] += draw(some([shm, queues, groups], 3))


def root(draw: Draw, config: dict[str, Any]) -> None:
    config["root"]["readonly"] = draw(st.booleans())
    if draw(st.booleans()):
        config["linux"]["rootfsPropagation"] = draw(st.sampled_from(PROPAGATIONS))


def hidden(draw: Draw, config: dict[str, Any]) -> None:
    paths = ["/proc/kcore", "/proc/timer_list", "/proc/bus", "/sys/firmware", "/etc/passwd", "/etc",
             "/vol", "/nothing/there", "/proc/sys", "/proc/sysrq-trigger", "/proc/irq"]  # fmt: skip
    config["linux"]["maskedPaths"] = draw(some(paths))
    config["linux"]["readonlyPaths"] = draw(some(paths))


# ---------------------------------------------------------------- devices, cgroup, kernel


def devices(draw: Draw, config: dict[str, Any]) -> None:
    nodes = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 1000},
        {"path": "/dev/sub/zero", "type": "u", "major": 1, "minor": 5, "fileMode": 0o666},
        {"path": "/dev/plain", "type": "c", "major": 1, "minor": 7},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o600, "gid": 1000},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/mem", "type": "c", "major": 1, "minor": 1, "fileMode": 0o600},
        {"path": "/vol/node", "type": "c", "major": 1, "minor": 9, "fileMode": 0o4755, "gid": 5},
    ]
    config["linux"]["devices"] = copy.deepcopy(draw(some(nodes)))


def device_rules(draw: Draw, config: dict[str, Any]) -> None:
    rules = [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "access": "r"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "major": 7, "minor": 0, "access": "m"},
        {"allow": True, "type": "c", "major": 1, "minor": 1, "access": "rw"},
        {"allow": False, "type": "c", "major": 1, "minor": 5, "access": "w"},
        {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    ]
    chosen = draw(st.lists(st.sampled_from(rules), unique_by=repr, max_size=4))
    first = [{"allow": draw(st.sampled_from([False, False, True])), "access": "rwm"}]
    resources = config["linux"].setdefault("resources", {})
    resources["devices"] = first + copy.deepcopy(chosen)


def sysctl(draw: Draw, config: dict[str, Any]) -> None:
    known = {
        "net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 10", "net.core.somaxconn": "77",
        "net.ipv4.conf.lo.forwarding": "1", "kernel.msgmax": "9000", "kernel.shm_rmid_forced": "1",
        "kernel.sem": "10 320 5 64", "fs.mqueue.msg_max": "20", "kernel.domainname": "example",
    }  # fmt: skip
    kinds = {one["type"] for one in config["linux"]["namespaces"] if "path" not in one}
    needs = {"net": "network", "ker": "ipc", "fs.": "ipc"}
    config["linux"]["sysctl"] = {
        name: known[name]
        for name in draw(some(list(known)))
        if ("uts" if "domain" in name else needs[name[:3]]) in kinds
    }


def seccomp(draw: Draw, config: dict[str, Any]) -> None:
    actions = [
        "ERRNO",
        "ERRNO",
        "KILL",
        "KILL_THREAD",
        "KILL_PROCESS",
        "TRAP",
        "LOG",
        "ALLOW",
        "TRACE",
    ]
    every = (1 << 64) - 1
    conditions = [
        {"index": 0, "value": every, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": every - 1, "op": "SCMP_CMP_LE"},
        {"index": 0, "value": 5, "op": "SCMP_CMP_GT"},
        {"index": 1, "value": 0, "op": "SCMP_CMP_NE"},
        {"index": 1, "value": 1, "op": "SCMP_CMP_LT"},
        {"index": 3, "value": 0xF0, "valueTwo": 0x70, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 2, "value": 0, "op": "SCMP_CMP_GE"},
    ]
    rules = []
    for _ in range(draw(st.integers(1, 4))):
        action = draw(st.sampled_from(actions))
        rule = {"names": draw(some([*CALLS, "no_such_call"], 6)), "action": f"SCMP_ACT_{action}"}
        if action == "ERRNO" and draw(st.booleans()):
            rule["errnoRet"] = draw(st.sampled_from([0, 1, 38, 110]))
        if draw(st.booleans()):
            picked = draw(
                st.lists(st.sampled_from(conditions), min_size=1, max_size=2, unique_by=repr)
            )
            rule["args"] = copy.deepcopy(picked)
        rules.append(rule)
    rules = [rule for rule in rules if rule["names"]]
    found = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    if draw(st.booleans()):
        every_arch = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
        found["architectures"] = draw(st.sampled_from([every_arch, every_arch[:1], []]))
    config["linux"]["seccomp"] = found


def default_filter(_draw: Draw, config: dict[str, Any]) -> None:
    from minirun import profiles

    config["linux"]["seccomp"] = profiles.seccomp()


def hooks(draw: Draw, config: dict[str, Any]) -> None:
    kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ]
    for kind in draw(some(kinds, 6)):
        log = "/hooks" if kind == "startContainer" else f"{BUNDLE}/hooks"
        # Where a hook of the host begins is not said anywhere.
        script = f"exec >>{log} 2>&1; echo; echo {kind}; echo $A $HOME $0 $1; cat"
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"]}
        if draw(st.booleans()):
            hook["env"] = ["A=of-the-hook", "PATH=/bin:/usr/bin"]
        config.setdefault("hooks", {})[kind] = [hook] * draw(st.integers(1, 2))


def resources(draw: Draw, config: dict[str, Any]) -> None:
    mib = 1 << 20
    parts: dict[str, list[Any]] = {
        "memory": [{"limit": 64 * mib}, {"limit": 64 * mib, "reservation": 32 * mib},
                   {"limit": 64 * mib, "swap": 96 * mib}, {"limit": 64 * mib, "swap": -1},
                   {"limit": 64 * mib, "swap": 64 * mib}, {"limit": -1, "swap": -1},
                   {"limit": 0}],
        "cpu": [{"shares": 512}, {"quota": 50000, "period": 100000}, {"shares": 2}, {"cpus": "0"},
                {"quota": -1}, {"period": 50000}, {"quota": 20000}, {"shares": 262144},
                {"cpus": "0-1", "mems": "0"}, {"shares": 0}, {"quota": 0, "period": 0}],
        "pids": [{"limit": 64}, {"limit": -1}],
        "blockIO": [{"weight": 10}, {"weight": 500}, {"weight": 1000}, *_throttles()],
        "hugepageLimits": [[{"pageSize": "2MB", "limit": 4 * mib}]],
        "unified": [{"memory.high": str(48 * mib)}, {"pids.max": "99"}, {"cpu.weight": "77"},
                    {"memory.low": str(mib), "memory.min": str(mib)}],
    }  # fmt: skip
    found = config["linux"].setdefault("resources", {})
    for name in draw(some(list(parts))):
        found[name] = copy.deepcopy(draw(st.sampled_from(parts[name])))


def _throttles() -> list[dict[str, Any]]:
    """Limits of a disk, if there is one."""
    for file in sorted(glob.glob("/sys/block/[hsv]d?/dev")):
        with open(file) as text:
            major, minor = map(int, text.read().split(":"))
        disk = {"major": major, "minor": minor, "rate": 1 << 20}
        return [
            {"throttleReadBpsDevice": [disk], "throttleWriteIOPSDevice": [{**disk, "rate": 100}]},
            {"throttleWriteBpsDevice": [disk, {**disk, "rate": 2 << 20}]},
        ]
    return []


def updates(draw: Draw) -> tuple[str, ...]:
    """Some flags of `update` that runc has had for long."""
    values = {
        "--memory": ["48m", "67108864", "-1"], "--memory-swap": ["96m", "-1"],
        "--memory-reservation": ["16m", "-1"], "--cpu-quota": ["30000", "-1"],
        "--cpu-period": ["50000"], "--cpu-share": ["2", "1024", "262144"],
        "--cpuset-cpus": ["0", "0-1"], "--cpuset-mems": ["0"], "--pids-limit": ["33", "-1"],
        "--blkio-weight": ["100", "1000"],
    }  # fmt: skip
    found = []
    for name in draw(some(list(values), 3)):
        found += [name, draw(st.sampled_from(values[name]))]
    return tuple(found)


# ---------------------------------------------------------------- all together

# Each with how seldom it is there: once in so many.
PARTS: tuple[tuple[int, Part], ...] = (
    (2, namespaces), (4, user_namespace), (3, user), (3, environment), (4, program), (4, cwd),
    (2, caps), (3, rlimits), (2, small_things), (2, mounts), (3, usual_mounts), (3, root),
    (3, hidden), (4, devices), (4, device_rules), (4, sysctl), (4, seccomp), (8, default_filter),
    (5, hooks),
)  # fmt: skip


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(config: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            config = config.setdefault(name, {})
        if isinstance(value, list) and isinstance(config.get(last), list):
            config[last] = [*config[last], *copy.deepcopy(value)]
        else:
            config[last] = copy.deepcopy(value)

    return spoil


def _without(path: str) -> Callable[[dict[str, Any]], None]:
    def spoil(config: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            config = config[name]
        config.pop(last, None)

    return spoil


def _host_name(config: dict[str, Any]) -> None:
    linux = config["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "uts"]
    config["hostname"] = "of-the-host"


def _args(*words: str) -> Callable[[dict[str, Any]], None]:
    def spoil(config: dict[str, Any]) -> None:
        config["process"]["args"] = list(words)

    return spoil


def _mount(kind: str, source: str, *options: str) -> Callable[[dict[str, Any]], None]:
    entry = {"destination": "/v", "source": source, "type": kind, "options": list(options)}
    return _set("mounts", [entry])


def _filter(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return _set("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", **fields})


_RULE = {"names": ["flock"], "action": "SCMP_ACT_ERRNO"}
_BAD_ARG = {"index": 0, "value": 1, "op": "SCMP_CMP_ABOUT"}
SPOILERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no such program": _args("/nothing"),
    "a program that is none": _args("/etc/passwd"),
    "a directory for a program": _args("/tmp"),
    "no arguments": _args(),
    "a relative cwd": _set("process.cwd", "tmp"),
    "no cwd": _without("process.cwd"),
    "a file for a cwd": _set("process.cwd", "/etc/passwd"),
    "another version": _set("ociVersion", "2.0.0"),
    "no version": _set("ociVersion", "one"),
    "no root filesystem": _set("root.path", "nothing"),
    "a bind of nothing": _mount("bind", "/no/such", "bind"),
    "an unknown file system": _mount("nosuchfs", "x"),
    "an unknown option": _mount("tmpfs", "x", "nosuch"),
    "a namespace twice": _set("linux.namespaces", [{"type": "mount"}]),
    "an unknown namespace": _set("linux.namespaces", [{"type": "bogus"}]),
    "a namespace that is not there": _set(
        "linux.namespaces", [{"type": "cgroup", "path": "/no/such"}]
    ),
    "the host's name": _host_name,
    "the host's sysctl": _set("linux.sysctl", {"kernel.panic": "5"}),
    "an unknown limit": _set("process.rlimits", [{"type": "RLIMIT_BOGUS", "soft": 1, "hard": 1}]),
    "a soft limit above": _set("process.rlimits", [{"type": "RLIMIT_LOCKS", "soft": 2, "hard": 1}]),
    "a limit twice": _set("process.rlimits", [{"type": "RLIMIT_LOCKS", "soft": 1, "hard": 1}] * 2),
    "a relative masked path": _set("linux.maskedPaths", ["etc"]),
    "an unknown kind of device": _set(
        "linux.devices", [{"path": "/dev/x", "type": "x", "major": 1, "minor": 3}]
    ),
    "an unknown action": _filter(defaultAction="SCMP_ACT_MAYBE"),
    "an unknown operator": _filter(syscalls=[{**_RULE, "args": [_BAD_ARG]}]),
    "an unknown architecture": _filter(architectures=["SCMP_ARCH_Z"], syscalls=[_RULE]),
    "a variable without a value": _set("process.env", ["NOTHING"]),
    "mappings without a namespace": _set(
        "linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}]
    ),
    "a score that is none": _set("process.oomScoreAdj", 2000),
    "an unknown capability": _set("process.capabilities.bounding", ["CAP_BOGUS"]),
    "a hook that is not there": _set("hooks.createRuntime", [{"path": "/no/such"}]),
    "a hook that fails": _set("hooks.createContainer", [{"path": "/bin/false"}]),
    "an early hook that fails": _set("hooks.prestart", [{"path": "/bin/false"}]),
    "a start hook that fails": _set("hooks.startContainer", [{"path": "/bin/false"}]),
    "a hook after start that fails": _set("hooks.poststart", [{"path": "/bin/false"}]),
    "a last hook that fails": _set("hooks.poststop", [{"path": "/bin/false"}]),
    "an unknown propagation": _set("linux.rootfsPropagation", "bogus"),
    "an empty propagation": _set("linux.rootfsPropagation", ""),
    "no user": _without("process.user"),
    "no process": _without("process"),
    "no root": _without("root"),
    "a string for a number": _set("process.user.uid", "0"),
    "something unknown": _set("linux.nobodyKnows", {"a": 1}),
}  # fmt: skip


# The same of limits, where there are controllers.
LIMIT_SPOILERS = {
    "swap without a limit": _set("linux.resources.memory", {"swap": 96 << 20}),
    "less swap than memory": _set("linux.resources.memory", {"limit": 96 << 20, "swap": 64 << 20}),
    "CPUs that are not there": _set("linux.resources.cpu", {"cpus": "77"}),
    "a quota below the least": _set("linux.resources.cpu", {"quota": 500, "period": 100000}),
    "pages of no size": _set("linux.resources.hugepageLimits", [{"pageSize": "3MB", "limit": 1}]),
    "a file that is not there": _set("linux.resources.unified", {"no.such": "1"}),
    "a value that is none": _set("linux.resources.unified", {"memory.max": "many"}),
    "a path for a file": _set("linux.resources.unified", {"../escape": "1"}),
    "a weight out of range": _set("linux.resources.blockIO", {"weight": 5}),
}


@st.composite
def trials(draw: Draw, limits: bool) -> Trial:
    """Give a trial; with `limits`, also of cgroup controllers."""
    config = base_spec()
    config["process"]["args"] = ["/probe", "survey"]
    config["linux"]["cgroupsPath"] = GROUP
    for seldom, part in (*PARTS, *([(2, resources)] if limits else [])):
        if maybe(draw, seldom):
            part(draw, config)
    spoilers = SPOILERS | (LIMIT_SPOILERS if limits else {})
    spoilt = draw(st.sampled_from(list(spoilers))) if maybe(draw, 6) else ""
    if spoilt:
        spoilers[spoilt](config)
    way = draw(st.sampled_from(WAYS))
    return Trial(config, way, spoilt, updates(draw) if limits and way == "exec" else ())


def placed(config: dict[str, Any], **places: str) -> dict[str, Any]:
    """Give the configuration with real paths: `source`, `donor`, `bundle`, `group`."""
    text = json.dumps(config)
    for name, path in places.items():
        text = text.replace(f"@{name}", path)
    found: dict[str, Any] = json.loads(text)
    return found
