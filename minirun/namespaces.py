"""Namespaces: which are made, which are joined, in the order that works (namespaces(7))."""

from __future__ import annotations

import fcntl
import os

from minirun.errors import ConfigError
from minirun.kernel import libc, net, process, unshare
from minirun.kernel.statfs import fstatfs_type
from minirun.privilege import setgroups_denied
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

FLAGS = {
    "user": unshare.CLONE_NEWUSER,
    "mount": unshare.CLONE_NEWNS,
    "pid": unshare.CLONE_NEWPID,
    "network": unshare.CLONE_NEWNET,
    "ipc": unshare.CLONE_NEWIPC,
    "uts": unshare.CLONE_NEWUTS,
    "cgroup": unshare.CLONE_NEWCGROUP,
    "time": unshare.CLONE_NEWTIME,
}

# The name of each below /proc/PID/ns.
FILES = {
    "user": "user", "mount": "mnt", "pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts",
    "cgroup": "cgroup", "time": "time",
}  # fmt: skip

_UNSHARE_OPTIONS = {
    "mount": "--mount", "pid": "--pid --fork", "network": "--net", "ipc": "--ipc", "uts": "--uts",
    "cgroup": "--cgroup", "time": "--time",
}  # fmt: skip

_NSFS_MAGIC = 0x6E736673


def _joined(setup: Setup) -> list[str]:
    return [f"{entry.type}: {entry.path}" for entry in setup.spec.linux.namespaces if entry.path]


def _made(setup: Setup) -> int:
    """What unshare(2) makes, CLONE_NEW*."""
    bits = 0
    for kind in setup.new_namespaces - {"user", "cgroup"}:
        bits |= FLAGS[kind]
    return bits & ~of_birth(setup)


def of_birth(setup: Setup) -> int:
    """Return the namespaces (CLONE_NEW*) that a first process is born in, if it makes the rest."""
    if not setup.direct:
        return 0
    return FLAGS["pid"] | (FLAGS["user"] if setup.new_user_namespace else 0)


def _birth(setup: Setup) -> str:
    return f"clone3({{flags={libc.flags(of_birth(setup), unshare.CLONE_NAMES)}}})"


@step(of_birth, details=lambda setup: [_birth(setup)], shell=lambda _setup: [])
def begin(setup: Setup) -> None:
    """Be born as the first process of the pid namespace"""
    if os.getpid() != 1:
        raise ValueError(f"process {os.getpid()} is not the first of its pid namespace")
    libc.trace(lambda: _birth(setup))


@step(_joined, details=_joined)
def open_paths(setup: Setup) -> None:
    """Open the namespaces to join"""
    for number, entry in enumerate(setup.spec.linux.namespaces):
        if entry.path:
            where = f"linux.namespaces[{number}].path"
            setup.namespaces[entry.type] = open_namespace(entry.type, entry.path, where)


def open_namespace(kind: str, path: str, where: str) -> int:
    """Open a namespace file and check that it is one of this type."""
    # O_NONBLOCK: a FIFO in its place must not hang.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    right = fstatfs_type(fd) == _NSFS_MAGIC and (
        fcntl.ioctl(fd, unshare.NS_GET_NSTYPE) == FLAGS[kind]
    )
    if not right:
        os.close(fd)
        raise ConfigError(where, f"{path} is not a {kind} namespace")
    return fd


def _nsenter(setup: Setup) -> list[str]:
    words = [
        f"--{'mount' if entry.type == 'mount' else FILES[entry.type]}={quoted(entry.path)}"
        for entry in setup.spec.linux.namespaces
        if entry.path
    ]
    return ["nsenter " + " ".join(words)]


@step(_joined, details=_joined, shell=_nsenter)
def join(setup: Setup) -> None:
    """Join the namespaces that are given by path"""
    # kernel: in the user namespace one may join the others that it owns, and no more those that
    # it does not, so these come before it: setns(2).
    ordered = sorted(setup.namespaces, key=lambda kind: kind == "user")
    late = [kind for kind in ordered if not _try_join(setup, kind)]
    if "user" in setup.namespaces:
        setup.setgroups_denied = setgroups_denied()
    for kind in late:
        unshare.setns(setup.namespaces[kind], FLAGS[kind])
    if "user" in setup.namespaces:
        _become_root()


def _try_join(setup: Setup, kind: str) -> bool:
    if kind == "mount" and len(setup.namespaces) > 1:
        return False  # last: the paths of /proc change with it
    try:
        unshare.setns(setup.namespaces[kind], FLAGS[kind])
    except PermissionError:
        if kind == "user":
            raise
        return False
    return True


def _become_root() -> None:
    # Before, the ids are unmapped and shown as 65534; the capabilities are full all the same.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _user_options(setup: Setup) -> list[str]:
    linux = setup.spec.linux
    words = ["unshare --user"]
    for flag, mappings in (("users", linux.uid_mappings), ("groups", linux.gid_mappings)):
        words += [f"--map-{flag}={o.container_id}:{o.host_id}:{o.size}" for o in mappings]
    return [" ".join([*words, "--setuid 0 --setgid 0"])]


@step(
    lambda setup: setup.new_user_namespace,
    shell=_user_options,
    why="its owner may do to the others what root may",
)
def unshare_user(setup: Setup) -> None:
    """Enter the user namespace, wait for its id maps, become its root"""
    # kernel: before the other namespaces, so that it owns them.
    if not setup.direct:
        unshare.unshare(unshare.CLONE_NEWUSER)
    _await_parent(setup, "unshared")
    if setup.unprivileged:
        setup.setgroups_denied = setgroups_denied()
    _become_root()


def _await_parent(setup: Setup, tag: str) -> None:
    """Have the parent write to our files of /proc.

    kernel: those of a process that cannot be dumped belong to root (proc(5)), so for a user's
    parent it can be meanwhile. Who could trace it then is that user alone: to others, in
    containers of his too, it is in a user namespace above or beside theirs (ptrace(2)).
    """
    assert setup.channel is not None
    if setup.unprivileged:
        process.prctl(process.PR_SET_DUMPABLE, 1)
    setup.channel.send(tag)
    setup.channel.expect("go")
    if setup.unprivileged:
        process.prctl(process.PR_SET_DUMPABLE, 0)


@step(
    _made,
    details=lambda setup: [libc.flags(_made(setup), unshare.CLONE_NAMES)],
    shell=lambda setup: [
        "unshare "
        + " ".join(
            _UNSHARE_OPTIONS[kind] for kind in _UNSHARE_OPTIONS if kind in setup.new_namespaces
        )
    ],
)
def unshare_others(setup: Setup) -> None:
    """Make the other namespaces"""
    unshare.unshare(_made(setup))


@step(
    lambda setup: bool(setup.spec.linux.time_offsets),
    details=lambda setup: [
        f"{clock} {offset.secs} {offset.nanosecs}"
        for clock, offset in setup.spec.linux.time_offsets.items()
    ],
)
def await_time_offsets(setup: Setup) -> None:
    """Wait for the clock offsets of the time namespace"""
    # kernel: they are fixed once a process is in the namespace, that is at the next clone.
    _await_parent(setup, "timed")


def write_time_offsets(setup: Setup, pid: int) -> None:
    """Write the offsets for the children of `pid`. Source: time_namespaces(7)."""
    text = "".join(
        f"{clock} {offset.secs} {offset.nanosecs}\n"
        for clock, offset in setup.spec.linux.time_offsets.items()
    )
    libc.write_once(f"/proc/{pid}/timens_offsets", text)


@step(
    lambda setup: "cgroup" in setup.new_namespaces,
    shell=lambda _setup: [],
    why="inside, its own group is the root of /sys/fs/cgroup and of /proc/self/cgroup",
)
def unshare_cgroup(_setup: Setup) -> None:
    """Make the cgroup namespace"""
    # kernel: its root is the group that the process is in now, so after joining the group.
    unshare.unshare(unshare.CLONE_NEWCGROUP)


@step(
    lambda setup: "network" in setup.new_namespaces,
    shell=lambda _setup: ["ip link set lo up"],
)
def raise_loopback(_setup: Setup) -> None:
    """Bring the loopback interface up"""
    net.set_up("lo")
