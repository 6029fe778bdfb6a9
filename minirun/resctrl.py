"""linux.intelRdt: the container's share of cache and memory bandwidth (resctrl).

A class of service (CLOS) is a directory of the resctrl file system, whose `schemata` says what it
may use and whose `tasks` takes processes; a monitoring group is one below `mon_groups`. Sources:
config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

import os

from minirun.errors import ConfigError, MinirunError, Unsupported, describe
from minirun.kernel.libc import quote, trace
from minirun.refuse import refuse_unless
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup
    from minirun.spec import IntelRdt

_WHERE = "linux.intelRdt"
_ROOT = "/"  # the closID of the group in which every process is at first
_RESERVED = ("info", "mon_data", "mon_groups", ".", "..")


def validate(rdt: IntelRdt) -> None:
    """Refuse what cannot be a group's name or a schema. Raises ConfigError."""
    if rdt.clos_id and rdt.clos_id != _ROOT:
        _check_name(rdt.clos_id, f"{_WHERE}.closID")
    bandwidth = rdt.mem_bw_schema
    if bandwidth:
        good = bandwidth.startswith("MB:") and "\n" not in bandwidth
        refuse_unless(good, f"{_WHERE}.memBwSchema", "must be one line that begins with MB:")
    for number, line in enumerate(rdt.schemata):
        good = ":" in line and "\n" not in line
        refuse_unless(good, f"{_WHERE}.schemata[{number}]", "must be one line such as L3:0=f")


def _check_name(name: str, where: str) -> None:
    good = "/" not in name and name not in _RESERVED and name.isprintable()
    refuse_unless(good, where, f"cannot be the name of a group: {name[:80]!r}")


def mount_point() -> str | None:
    """Return where resctrl is mounted."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, kind = line.partition(b" - ")
            if kind.startswith(b"resctrl "):
                return os.fsdecode(fields.split(b" ")[4])
    return None


def lines_of(rdt: IntelRdt) -> list[str]:
    """List the lines for the group's `schemata`, in the order in which they take effect."""
    cache = (rdt.l3_cache_schema or "").split("\n")
    # spec: bandwidth among the lines of the cache's schema is left out.
    found = [line for line in cache if line.strip() and not line.strip().startswith("MB:")]
    return [*found, *([rdt.mem_bw_schema] if rdt.mem_bw_schema else []), *rdt.schemata]


def group_of(root: str, rdt: IntelRdt, cid: str) -> str:
    """Return the directory of the container's class of service."""
    name = rdt.clos_id or cid
    return root if name == _ROOT else os.path.join(root, name)


def _asked(setup: Setup) -> list[str]:
    rdt = setup.spec.linux.intel_rdt
    return [] if rdt is None else [rdt.clos_id or setup.cid, *lines_of(rdt)]


@step(_asked, details=_asked)
def check(setup: Setup) -> None:
    """Check that the kernel can divide cache and memory bandwidth"""
    rdt = setup.spec.linux.intel_rdt
    assert rdt is not None
    if not rdt.clos_id:
        _check_name(setup.cid, f"{_WHERE}.closID")
    if mount_point() is None:
        raise Unsupported(
            "intelRdt is specified in config, but Intel RDT is not supported or enabled",
            cause="no resctrl file system is mounted",
            fix="mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it",
        )


@step(_asked, details=_asked)
def assign(setup: Setup) -> None:
    """Give the container its share of cache and memory bandwidth"""
    rdt, root = setup.spec.linux.intel_rdt, mount_point()
    assert rdt is not None
    assert root is not None
    enter(setup, root, rdt)


def enter(setup: Setup, root: str, rdt: IntelRdt) -> None:
    """Make or find the group below `root`, set its schemata, and put the process into it."""
    group, lines = group_of(root, rdt, setup.cid), lines_of(rdt)
    made = _make(group, must_exist=bool(rdt.clos_id) and not lines)
    if made:
        setup.undo.append(lambda: os.rmdir(group))
    if lines and not made and rdt.clos_id:
        _compare(group, lines)
    elif lines:
        _write(root, f"{group}/schemata", "\n".join(lines) + "\n")
    _write(root, f"{group}/tasks", str(setup.pid))
    if rdt.enable_monitoring:
        monitor = os.path.join(group, "mon_groups", setup.cid)
        if _make(monitor, must_exist=False):
            setup.undo.append(lambda: os.rmdir(monitor))
        _write(root, f"{monitor}/tasks", str(setup.pid))


def change(root: str, cid: str, present: IntelRdt | None, changes: IntelRdt, pid: int) -> None:
    """Set the schemata that `changes` give for a container that runs, as `update` asks.

    `present` is what it was created with; without it a group is made, and takes the threads of its
    process `pid` and of those below it. Raises MinirunError with what the kernel says.
    """
    group = group_of(root, present or changes, cid)
    made = present is None and _make(group, must_exist=False)
    try:
        for line in lines_of(changes):
            _write(root, f"{group}/schemata", line + "\n")
        if made:
            for thread in _threads(pid):
                _write(root, f"{group}/tasks", thread)
    except BaseException:
        if made:
            os.rmdir(group)
        raise


def _threads(pid: int) -> list[str]:
    """List the threads of a process and of all that descend from it."""
    found: list[str] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found.append(thread)
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                for child in file.read().split():
                    found += _threads(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile
    return found


def _make(directory: str, *, must_exist: bool) -> bool:
    """Make a group; tell whether it was not there before."""
    if os.path.isdir(directory):
        return False
    if must_exist:
        raise ConfigError(
            f"{_WHERE}.closID",
            f"there is no group {os.path.basename(directory)}, and no schema to make it with",
        )
    text = f"mkdir({quote(directory)}, 0755)"
    try:
        os.mkdir(directory, 0o755)
    except OSError as error:
        raise MinirunError(
            f"{text}: {(error.strerror or '').lower()}",
            cause="the processor has no class of service left" if error.errno == 28 else "",
        ) from None
    trace(lambda: text)
    return True


def _compare(group: str, lines: list[str]) -> None:
    """Refuse to join somebody else's group under another schema than its own (config-linux.md)."""
    with open(f"{group}/schemata") as file:
        present = dict(_taken_apart(line) for line in file if ":" in line)
    for line in lines:
        kind, wanted = _taken_apart(line)
        has = present.get(kind, {})
        if any(has.get(domain) != value for domain, value in wanted.items()):
            raise ConfigError(
                f"{_WHERE}.closID",
                f"the group {os.path.basename(group)} exists with another schema than {line!r}",
            )


def _taken_apart(line: str) -> tuple[str, dict[str, str]]:
    """Read `L3:0=0ff;1=f` as its kind and the values of its domains, without leading zeros."""
    kind, _, rest = line.strip().partition(":")
    pairs = (part.partition("=") for part in rest.split(";") if part.strip())
    return kind.strip(), {
        domain.strip(): value.strip().lower().lstrip("0") or "0" for domain, _, value in pairs
    }


def _write(root: str, path: str, value: str) -> None:
    text = f"write({quote(path)}, {quote(value)})"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise MinirunError(
            f"{text}: {(error.strerror or '').lower()}", cause=_last_status(root)
        ) from None
    trace(lambda: text)


def _last_status(root: str) -> str:
    """What the kernel says of the last write that it refused."""
    try:
        with open(f"{root}/info/last_cmd_status") as file:
            return file.read(200).strip()
    except OSError as error:
        return describe(error)


def remove(rdt: IntelRdt, cid: str, root: str | None = None) -> None:
    """Remove what was made for a container that has ended: its monitoring group, its own class.

    A class that config.json named is somebody's to keep, as in runc.
    """
    root = root or mount_point()
    if root is None:
        return
    group = group_of(root, rdt, cid)
    if rdt.enable_monitoring:
        _remove(os.path.join(group, "mon_groups", cid))
    if not rdt.clos_id:
        _remove(group)


def _remove(directory: str) -> None:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
