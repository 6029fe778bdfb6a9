"""Is this a container? By the namespaces' inode numbers, which marker files cannot fake.

The kernel's first namespaces have fixed numbers: 0xEFFFFFFF for ipc and so on downwards
(include/linux/proc_ns.h; mnt and net since 6.18). A process that has all of them is in no
container, whatever /.dockerenv says.
"""

from __future__ import annotations

from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_FIRST = 0xEFFFFF00
INITIAL = {"ipc": 0xFF, "uts": 0xFE, "user": 0xFD, "pid": 0xFC, "cgroup": 0xFB, "time": 0xFA}
# Fixed since 6.18 only; before, they were given out, from 0xF0000000 up.
_NEWER = {"net": 0xF9, "mnt": 0xF8}
# What is left by whom. The name is only told of a process that is in a container.
_FILES = (
    ("/run/.containerenv", "podman"),
    ("/.dockerenv", "docker"),
    ("/run/systemd/container", ""),
    ("/run/host/container-manager", ""),
)
WORDS = {"docker": "docker", "libpod": "podman", "kubepods": "Kubernetes", "lxc": "LXC",
          "machine.slice": "systemd-nspawn", "containerd": "containerd", "crio": "CRI-O",
          "minirun": "minirun", "garden": "Garden", "buildkit": "BuildKit"}  # fmt: skip
_KTHREADD = 2


def collect(host: Host, facts: Facts) -> None:
    """Find `container.*`."""
    facts.take("container.namespaces", "/proc/self/ns", lambda: _namespaces(host))
    facts.take("container.markers", "files, environment", lambda: _markers(host))
    facts.take("container.kthreadd", "/proc/2/comm", lambda: _kthreadd(host))
    facts.take("container.inside", "/proc/self/ns", lambda: _inside(host, facts))
    facts.take("container.runtime", "files, environment, cgroup", lambda: _runtime(host, facts))
    facts.take("container.contradictions", "all of them", lambda: _contradictions(facts))


def _namespaces(host: Host) -> dict[str, bool | None]:
    """Which of our namespaces are the machine's first ones; None: nothing tells."""
    found: dict[str, bool | None] = {}
    for name, low in {**INITIAL, **_NEWER}.items():
        try:
            number = host.status(f"/proc/self/ns/{name}")["ino"]
        except FileNotFoundError:
            host.names("/proc/self/ns")  # a kernel without this kind; but the others must be there
            continue
        fixed = number == _FIRST + low
        found[name] = fixed if name in INITIAL or fixed else _as_init(host, name, number)
    if not found:
        raise Unknown("/proc/self/ns is empty")
    return found


def _as_init(host: Host, name: str, number: int) -> bool | None:
    """Compare with a process that has the machine's, where we see it; only root may look."""
    try:
        if host.status("/proc/self/ns/pid")["ino"] != _FIRST + INITIAL["pid"]:
            return None
    except OSError:
        return None
    for pid in (_KTHREADD, 1):
        try:
            return number == host.status(f"/proc/{pid}/ns/{name}")["ino"]
        except OSError:
            continue  # process 1 can be closed to root itself, by a security module
    return None


def _markers(host: Host) -> dict[str, str]:
    """What says "container", true or left over: {place: what it names}."""
    found: dict[str, str] = {}
    for path, name in _FILES:
        try:
            host.status(path)
        except FileNotFoundError:
            continue
        found[path] = name or host.text(path).partition("\n")[0]
    for pid in ("self", "1"):
        try:
            words = host.read(f"/proc/{pid}/environ").split(b"\0")
        except OSError:
            continue  # that of process 1 is closed to users, and only gives a name
        for word in words:
            if word.startswith(b"container="):
                found[f"/proc/{pid}/environ"] = word[10:].decode("utf-8", "replace")
    return found


def _kthreadd(host: Host) -> bool:
    """Whether process 2 is the kernel's: then this is the machine's first pid namespace."""
    try:
        return host.text(f"/proc/{_KTHREADD}/comm") == "kthreadd"
    except FileNotFoundError:
        host.status("/proc/self/ns")  # /proc itself is there
        raise Unknown("/proc hides other processes, or this is another pid namespace") from None


def _inside(host: Host, facts: Facts) -> bool:
    spaces: dict[str, bool | None] | None = facts.get("container.namespaces")
    if spaces is None:
        raise Unknown(facts.why("container.namespaces"))
    others = {name for name, first in spaces.items() if first is False}
    # mnt alone: a unit of systemd has it, and so does a container with the host's pids.
    if "pid" in others or "cgroup" in others:
        return True
    if "mnt" in others and facts.get("container.markers") and _own_root(host):
        return True
    if "pid" not in spaces:
        raise Unknown("/proc/self/ns names no pid namespace")
    if spaces.get("mnt") is None and facts.get("container.markers"):
        raise Unknown("the mount namespace cannot be compared with process 1's")
    if "mnt" in others and facts.get("container.markers") is None:
        raise Unknown(facts.why("container.markers"))
    return False


def _own_root(host: Host) -> bool:
    """Whether our root directory is not process 1's."""
    try:
        ours, first = host.status("/"), host.status("/proc/1/root")
    except OSError as error:
        raise Unknown("the root directory cannot be compared with process 1's") from error
    return (ours["dev"], ours["ino"]) != (first["dev"], first["ino"])


def _runtime(host: Host, facts: Facts) -> str:
    inside = facts.get("container.inside")
    if inside is False:
        return "none"
    if inside is None:
        raise Unknown(facts.why("container.inside"))
    names: dict[str, Any] = facts.get("container.markers") or {}
    for path in ("/run/host/container-manager", "/run/systemd/container", "/proc/self/environ",
                 "/proc/1/environ", "/run/.containerenv", "/.dockerenv"):  # fmt: skip
        if names.get(path):
            return str(names[path])
    where = host.text("/proc/self/cgroup") + host.text("/proc/self/mountinfo")
    for word, name in WORDS.items():
        if word in where:
            return name
    raise Unknown("no marker names it")


def _contradictions(facts: Facts) -> list[str]:
    if facts.get("container.inside") is None:
        raise Unknown(facts.why("container.inside"))
    if facts.get("container.inside"):
        return []
    markers = facts.get("container.markers")
    if markers is None:
        raise Unknown(facts.why("container.markers"))
    return [f"{path} is left over" for path in markers]
