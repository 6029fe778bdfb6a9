"""How runc and minirun may differ, each way with its reason; and how two trials are compared.

The runc of the machine is often older than the specification's version that minirun carries out:
scheduler, ioPriority, memoryPolicy, netDevices, intelRdt, execCPUAffinity, personality, domainname,
time namespaces, id-mapped mounts and the recursive mount options are not in the generator, because
runc 1.1 knows none of them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from bundles import Trial

    Seen = dict[str, Any]
    Holds = Callable[[Trial, str, Seen, Seen], bool]


class Allowed(NamedTuple):
    """A difference that is none: which values (a pattern of names), when, and why."""

    names: str
    why: str
    holds: Holds = lambda _trial, _name, _theirs, _ours: True


# ---------------------------------------------------------------- when


def said(pattern: str, *, ours: bool = False) -> Holds:
    """When runc (or minirun, with `ours`) has said something like this."""

    def holds(_trial: Trial, _name: str, theirs: Seen, us: Seen) -> bool:
        seen = us if ours else theirs
        return any(
            re.search(pattern, text) for name, text in seen.items() if name.startswith("message.")
        )

    return holds


def spoilt(*names: str) -> Holds:
    return lambda trial, _name, _theirs, _ours: trial.spoilt in names


def part(*numbers: int, when: Callable[[Any, Any], bool] = lambda _theirs, _ours: True) -> Holds:
    """When two mounts differ in these parts only."""

    def holds(_trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
        one, two = theirs.get(name), ours.get(name)
        if one is None or two is None:
            return False
        return when(one, two) and all(
            one[number] == two[number] for number in range(len(one)) if number not in numbers
        )

    return holds


def _masked(trial: Trial, name: str, _theirs: Seen, _ours: Seen) -> bool:
    path = name.partition(":")[2]
    masked = trial.config["linux"].get("maskedPaths", [])
    return any(f"{path}/".startswith(f"{one}/") for one in masked)


def _has_mode(trial: Trial, name: str, _theirs: Seen, _ours: Seen) -> bool:
    path = name.partition(":")[2]
    places = [
        one["destination"]
        for one in trial.config["mounts"]
        if one.get("type") == "tmpfs" and any("mode=" in option for option in one["options"])
    ]
    places = ["/tmp" if "mknod" in name else path for place in places if place == "/link"] + places
    return "mknod" in name or any(f"{path}/".startswith(f"{place}/") for place in places)


def _contradicts(trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
    words = {"relatime", "noatime", "strictatime"}
    asked = [len(words & set(one.get("options", []))) > 1 for one in trial.config["mounts"]]
    return any(asked) and part(1)(trial, name, theirs, ours)


def _has(trial: Trial, kind: str) -> bool:
    return any(one["type"] == kind for one in trial.config["linux"]["namespaces"])


def _propagates(trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
    return "rootfsPropagation" in trial.config["linux"] and part(2)(trial, name, theirs, ours)


def _below_readonly(trial: Trial, name: str, _theirs: Seen, _ours: Seen) -> bool:
    path = name.partition("mount.")[2] or name.partition("/")[2]
    paths = trial.config["linux"].get("readonlyPaths", [])
    return any(f"/{path.lstrip('/')}".startswith(f"{one}/") for one in paths)


def _same_entries(_trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
    def entries(value: Any) -> list[str]:
        return sorted(value.split("\0") if isinstance(value, str) else value)

    return entries(theirs[name]) == entries(ours[name])


def _same_hooks(_trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
    """When hooks differ in what `ALLOWED` says of them only."""

    def plain(log: list[Any]) -> list[Any]:
        found: list[Any] = []
        for line in log:
            if isinstance(line, dict):
                status = "running" if "poststart" in found[-2:] else line["status"]
                found.append({**line, "ociVersion": "", "status": status})
            else:
                own = line.startswith("of-the-hook ")
                found.append(line if own or "zero one" not in line else "zero one")
        return found

    return plain(theirs[name]) == plain(ours[name])


def _only_more(theirs: list[str], ours: list[str], *options: str) -> bool:
    """When these options are all there, and some of them are what the other has not."""
    more = set(ours) ^ set(theirs)
    return bool(more) and more <= set(options) <= set(ours)


def _soft_is_hard(_trial: Trial, name: str, theirs: Seen, ours: Seen) -> bool:
    (soft, hard, _), (_soft, wanted, _) = theirs[name].split(), ours[name].split()
    return bool(soft == hard == wanted)


def _has_shares(trial: Trial, _name: str, _theirs: Seen, _ours: Seen) -> bool:
    cpu = trial.config["linux"].get("resources", {}).get("cpu", {})
    return bool(cpu.get("shares")) or "--cpu-share" in trial.update


FAILED = r"(run|create)\.code"
MOUNT = r"(exec\.)?mount\..*"

ALLOWED = (
    # ------------------------------------------------------------ what is told
    Allowed(
        r"state\.\w+\.ociVersion",
        "the state's ociVersion: runc tells the version it was built for, minirun the bundle's",
    ),
    Allowed(
        r"hooks\.\w+",
        "hooks: the state's ociVersion; without `env` runc gives the caller's environment, minirun "
        "none (config.md, CVE-2025-23266); at poststart a container runs, in runc 1.1 it does not",
        _same_hooks,
    ),
    Allowed(
        r"hooks\.host",
        "what is refused is refused before any hook runs; runc 1.1 finds some of it out later, and "
        "runs poststop hooks where no other has run",
        lambda _trial, name, _theirs, ours: (
            not ours[name] and bool(ours.get("run.code", ours.get("create.code")))
        ),
    ),
    # ------------------------------------------------------------ streams, keys, variables
    Allowed(
        r"(exec\.)?fd\.[012]",
        "runc copies the streams of a foreground process through pipes; minirun hands them over",
        lambda trial, _name, _theirs, _ours: trial.way != "create",
    ),
    Allowed(
        r"(exec\.)?dev\./dev/(stdin|stdout|stderr|fd)",
        "whether the standard streams can be opened again follows from the two above and below",
    ),
    Allowed(
        r"fd\.[012]",
        "runc gives the payload's user each standard stream, minirun only pipes and terminals: a "
        "log file stays its owner's",
        lambda _trial, name, theirs, ours: theirs[name][3:] == ours[name][3:],
    ),
    Allowed(
        r"(exec\.)?keyring",
        "the session keyring: minirun's has no name by which another could join it",
    ),
    Allowed(
        r"(exec\.)?env(iron)?",
        "of a variable that is given twice runc 1.1 keeps the first's place, later ones the last's",
        _same_entries,
    ),
    Allowed(
        r"exec\.(status\.Umask|mode:.*)|rootfs\..*|exec\.create:.*",
        "`exec`: runc 1.1 forgets process.user.umask",
        lambda trial, _name, _theirs, _ours: (
            trial.way == "exec" and "umask" in trial.config.get("process", {}).get("user", {})
        ),
    ),
    # ------------------------------------------------------------ mounts
    Allowed(
        MOUNT,
        "what masks a file is the host's /dev/null, read-only; in runc the container's own",
        lambda _trial, name, theirs, ours: (
            name in theirs
            and name in ours
            and theirs[name][0] == ours[name][0] == "/null"
            and "ro" in ours[name][1]
        ),
    ),
    Allowed(
        MOUNT,
        "what masks a directory is one tmpfs without room, nosuid, nodev and noexec",
        part(1, 2, 4, 5, when=lambda theirs, ours: "nr_inodes=2" in ours[5] and "ro" in theirs[1]),
    ),
    Allowed(
        MOUNT,
        "nodes that a user namespace has of the host are nosuid and noexec",
        part(1, 2, when=lambda theirs, ours: _only_more(theirs[1], ours[1], "nosuid", "noexec")),
    ),
    Allowed(
        MOUNT,
        "rootfsPropagation is that of the container's root; runc 1.1 sets that of the host's mount "
        "it lies on, and so leaves bind mounts in the host's peer group",
        _propagates,
    ),
    Allowed(
        MOUNT,
        "a root without rootfsPropagation follows nobody; in runc the host's mounts appear in it",
        part(2, when=lambda theirs, ours: theirs[2] == ["master"] and ours[2] == []),
    ),
    Allowed(
        r"(exec\.)?dev\./dev/core",
        "runc adds a link to /proc/kcore, which the specification's list does not have",
        lambda _trial, name, _theirs, ours: name not in ours,
    ),
    Allowed(
        r"(exec\.)?limits\.Max open files",
        "runc 1.1 leaves the soft limit raised as the runtime of its language raised it",
        lambda trial, _name, _theirs, _ours: (
            not any(
                one["type"] == "RLIMIT_NOFILE" for one in trial.config["process"].get("rlimits", [])
            )
        ),
    ),
    Allowed(
        r"exec\.limits\.Max open files",
        "`exec`: what raises runc 1.1's own soft limit to the hard one races with the limit of the "
        "process, and wins at times (github.com/opencontainers/runc/issues/4195)",
        _soft_is_hard,
    ),
    Allowed(
        "left",
        "with rootfsPropagation `slave` or `shared` runc 1.1 lets the container's mounts reach the "
        "host's; minirun leaves nothing",
        lambda trial, _name, theirs, ours: (
            "rootfsPropagation" in trial.config["linux"] and not ours["left"]
        ),
    ),
    Allowed(
        MOUNT,
        "a tmpfs's mode: minirun gives it as the option, runc by chmod afterwards",
        part(5, when=lambda theirs, ours: not set(theirs[5]) ^ set(ours[5]) - {"mode=755"}),
    ),
    Allowed(
        r"(exec\.)?(mode|create|mknod|text|stat|read):.*",
        "a masked directory has mode 0555, in runc 1.1 that of a tmpfs, 1777",
        _masked,
    ),
    Allowed(
        r"(exec\.)?(mode|create|mknod|stat):.*",
        "runc 1.1 gives a tmpfs the mode of the directory below, whatever its option says",
        _has_mode,
    ),
    Allowed(
        MOUNT,
        "of options that exclude each other the last counts (mount(8)); runc 1.1 passes all on",
        _contradicts,
    ),
    Allowed(
        MOUNT + r"|(exec\.)?create:.*",
        "what lies below a read-only path is read-only too; runc leaves mounts there writable",
        _below_readonly,
    ),
    Allowed(
        MOUNT,
        "runc 1.1 takes relatime from a bind mount that has options but none about atime",
        part(1, when=lambda theirs, ours: set(ours[1]) - set(theirs[1]) == {"relatime"}),
    ),
    Allowed(
        r"(exec\.)?(mount\./sys/fs/cgroup.*|mkdir:/sys/fs/cgroup/below)",
        "without a cgroup namespace of its own a container sees its own group, not the host's tree "
        "(CVE-2023-25809)",
        lambda trial, _name, _theirs, _ours: not _has(trial, "cgroup"),
    ),
    Allowed(
        r"(exec\.)?mkdir:/sys/fs/cgroup/below",
        "a writable cgroup is its user's (config-linux.md); in runc 1.1 with systemd only",
        lambda trial, _name, _theirs, _ours: _has(trial, "cgroup"),
    ),
    Allowed(
        r"(exec\.)?dev\./dev/mqueue",
        "message queues are the container's group's; runc 1.1 makes them of one that is not mapped",
        lambda trial, _name, _theirs, _ours: _has(trial, "user"),
    ),
    Allowed(
        r"rootfs\.(vol/file|made/file)",
        "a file that is made to bind on has mode 0644, runc's 0755",
        lambda _trial, name, theirs, ours: (theirs[name][0], ours[name][0]) == (0o100755, 0o100644),
    ),
    # ------------------------------------------------------------ limits
    Allowed(
        r"(limit|updated)\.cpu\.weight",
        "cpu.shares become a weight by the curve of runc 1.3.2, not by the former line",
        _has_shares,
    ),
    Allowed(
        r"(limit|updated)\.hugetlb\.\w+\.rsvd\.max",
        "a limit of huge pages is one of their reservations too (runc since 1.2)",
    ),
    # ------------------------------------------------------------ what one of them refuses
    Allowed(
        FAILED,
        'capabilities that cannot be had are left out with a warning (config.md, "Linux Process")',
        said("unable to apply caps: operation not permitted"),
    ),
    Allowed(
        FAILED,
        "runc 1.1 denies a default device that linux.devices describes anew",
        said("error reopening /dev/null inside container"),
    ),
    Allowed(
        FAILED, "runc 1.1 cannot have an unbindable root", said("flags: 0x5000: invalid argument")
    ),
    Allowed(
        FAILED,
        "a FIFO of a user namespace is made; runc 1.1 wants to bind one of the host's",
        said("creating device nodes: mount /dev/fifo"),
    ),
    Allowed(
        FAILED,
        "runc 1.1 binds inside the user namespace, where options, and mounts below, are locked",
        said(r"flags: 0x\w+: (operation not permitted|invalid argument)"),
    ),
    Allowed(
        FAILED,
        "runc 1.1 cannot do without a readable /etc/passwd",
        said("unable to find user .*is a directory"),
    ),
    Allowed(
        FAILED, "masked paths are absolute (config-linux.md)", spoilt("a relative masked path")
    ),
    Allowed(
        FAILED,
        "poststart hooks run after start (config.md); in runc 1.1 they run, and fail, in create",
        spoilt("a hook after start that fails"),
    ),
    Allowed(FAILED, "a limit twice is an error (config.md, rlimits)", spoilt("a limit twice")),
    Allowed(
        FAILED,
        "an ociVersion that is none, or of another major version, is refused (config.md)",
        spoilt("no version", "another version"),
    ),
    Allowed(
        FAILED,
        "mappings go with a user namespace; runc takes no notice of them",
        spoilt("mappings without a namespace"),
    ),
    Allowed(
        r"(start|start\.again)\.(code|words)|after\..*|state\..*|exec\..*|kill.*|delete.*|hooks\..*|report",
        "a startContainer hook that fails makes start fail (runtime.md); runc 1.1 does not wait",
        said("startContainer hook", ours=True),
    ),
    Allowed(
        r"after\.kill\.(code|words)",
        "SIGKILL in the host's pid namespace reaches the whole group, also when nothing is left "
        "(runc since 1.2)",
        lambda trial, _name, _theirs, _ours: not _has(trial, "pid"),
    ),
    Allowed(
        r".*\.words",
        "runc 1.1 has the words of its failed look for memory.events in the message",
        lambda _trial, name, theirs, ours: not set(ours[name]) - set(theirs[name]),
    ),
    Allowed(
        r".*\.words",
        "each runtime names another of several things that are wrong",
        lambda _trial, name, _theirs, _ours: name.startswith(("run", "create")),
    ),
)


class Tally:
    """What a run has seen, for the line at its end."""

    def __init__(self) -> None:
        self.bundles = 0
        self.refused = 0
        self.allowed = 0
        self.found = 0

    def __str__(self) -> str:
        return (
            f"differential: {self.bundles} bundles under runc and minirun ({self.refused} refused "
            f"by both), {self.found} differences found, {self.allowed} values differ as allowed"
        )


TALLY = Tally()


def compare(trial: Trial, theirs: Seen, ours: Seen) -> dict[str, tuple[Any, Any]]:
    """Give the values that differ without a reason, by name; add what was seen to TALLY."""
    gone = "(nothing)"
    codes = [seen.get("run.code", seen.get("create.code")) for seen in (theirs, ours)]
    names = sorted(name for name in theirs | ours if not name.startswith("message."))
    if codes[0] != codes[1]:  # what follows differs anyway
        names = [name for name in names if re.fullmatch(f"{FAILED}|left", name)]
    elif codes[0]:  # how far each came before it refused is its own affair
        names = [name for name in names if not name.startswith("rootfs.")]
    found = {}
    for name in names:
        values = theirs.get(name, gone), ours.get(name, gone)
        if values[0] != values[1]:
            if allowed(trial, name, theirs, ours):
                TALLY.allowed += 1
            else:
                found[name] = values
    TALLY.bundles += 1
    TALLY.refused += bool(codes[0] and codes[1])
    TALLY.found += len(found)
    return found


def told(trial: Trial, found: dict[str, tuple[Any, Any]], theirs: Seen, ours: Seen) -> str:
    """Give the bundle and the differences as text."""
    lines = [f"{trial.way}, {trial.spoilt or 'nothing wrong with it'}", json.dumps(trial.config)]
    lines += [f"update {' '.join(trial.update)}"] if trial.update else []
    for name, (one, two) in found.items():
        lines += [name, f"    runc     {one!r}", f"    minirun  {two!r}"]
    for seen, who in ((theirs, "runc"), (ours, "minirun")):
        lines += [
            f"{who}, {name.removeprefix('message.')}: {text.strip()}"
            for name, text in seen.items()
            if name.startswith("message.") and text.strip()
        ]
    return "\n".join(lines)


def allowed(trial: Trial, name: str, theirs: Seen, ours: Seen) -> str:
    """Give the reason why a value may differ; "" where there is none."""
    for row in ALLOWED:
        if re.fullmatch(row.names, name):
            try:
                if row.holds(trial, name, theirs, ours):
                    return row.why
            except KeyError:  # of one of them only
                continue
    return ""
