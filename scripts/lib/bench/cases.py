"""What is measured: each case says how one measurement of each tool is taken, in alternation."""

from __future__ import annotations

import random
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from lib.bench import process, tools
from lib.bench.figures import BARE, Memory, Sample
from lib.bench.machine import CGROUP, read
from lib.bench.process import Failed
from lib.bench.tools import TRUE, Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lib.bench.place import Container, Place

    # One measurement: its parts by name, "" for the whole.
    Measure = Callable[[], dict[str, Sample]]
    Subjects = dict[str, Measure | str]  # by name; or why it cannot be measured
    Rows = dict[str, list[Sample] | str]
    Found = Mapping[str, Tool | str]
    Progress = Callable[[str], None]

PAUSE = 0.02  # seconds between two: what the kernel still tidies up is not the next one's
SLEEP = ("/bin/sleep", "1000")
PER_BLOCK = 20
AT_ONCE = 8


class Case(NamedTuple):
    title: str
    subjects: Callable[[Place, Found], Subjects]
    blocks: bool = False  # of containers, of which there are to be a hundred


def alternate(subjects: Subjects, runs: int, warm_up: int, progress: Progress) -> Rows:
    """Measure everyone once in each round, in an order that changes from round to round.

    The rounds before the first that counts warm caches up. Who fails once is not measured.
    """
    order = random.Random(runs)
    rows: Rows = {name: subject for name, subject in subjects.items() if isinstance(subject, str)}
    taken: dict[str, dict[str, list[Sample]]] = {name: {} for name in subjects}
    for turn in range(-warm_up, runs):
        progress(f"{max(turn + 1, 0)} of {runs}")
        names = [name for name in subjects if name not in rows]
        order.shuffle(names)
        for name in names:
            measure = subjects[name]
            assert not isinstance(measure, str)
            try:
                parts = measure()
            except Failed as failure:
                rows[name] = str(failure)
                continue
            if turn >= 0:
                for part, sample in parts.items():
                    taken[name].setdefault(part, []).append(sample)
            process.reap()
            time.sleep(PAUSE)
    return _in_order(subjects, rows, taken)


def _in_order(
    subjects: Subjects, failed: Rows, taken: Mapping[str, Mapping[str, list[Sample]]]
) -> Rows:
    """The whole of each tool first, then the parts, side by side."""
    rows: Rows = {}
    parts = dict.fromkeys(part for name in subjects for part in ["", *taken[name]])
    for part in parts:
        for name in subjects:
            if name in failed:
                rows[name] = failed[name]
            elif part in taken[name]:
                rows[f"{name} {part}".rstrip()] = taken[name][part]
    return rows


# ---------------------------------------------------------------- cases


def run(place: Place, found: Found) -> Subjects:
    subjects: Subjects = {}
    for name, tool in found.items():
        if isinstance(tool, str):
            subjects[name] = tool
        elif tool.is_runtime:
            subjects[name] = whole(place, place.container(tool).run_command())
        else:
            subjects[name] = whole(place, tools.sandbox(tool, place.root))
    subjects["true, no sandbox"] = whole(place, [shutil.which("true") or TRUE])
    return subjects


def whole(place: Place, command: list[str]) -> Measure:
    return lambda: {"": place.spawner.run(command)}


def runtimes(
    found: Found, subject: Callable[[Tool], Measure], only: tuple[str, ...] = tools.RUNTIMES
) -> Subjects:
    """The runtimes' subjects; who cannot be prepared is not measured."""
    subjects: Subjects = {}
    for name in only:
        tool = found[name]
        if isinstance(tool, str):
            subjects[name] = tool
            continue
        try:
            subjects[name] = subject(tool)
        except Failed as failure:
            subjects[name] = str(failure)
    return subjects


def cycle(place: Place, found: Found) -> Subjects:
    def subject(tool: Tool) -> Measure:
        container = place.container(tool)
        return lambda: one_cycle(container)

    return runtimes(found, subject)


def one_cycle(container: Container) -> dict[str, Sample]:
    """Create, start and delete; that its process ends is waited for in between, untimed."""
    create, start = container.create(), container.start()
    init = container.wait()
    delete = container.delete()
    parts = (create, start, delete)
    total = Sample(sum(p.wall for p in parts), sum(p.cpu for p in parts) + init)
    return {"": total, "create": create, "start": start, "delete": delete}


def started(place: Place, tool: Tool) -> Container:
    """A container that sleeps."""
    container = place.container(tool, arguments=SLEEP)
    container.create()
    container.start()
    return container


def execute(place: Place, found: Found) -> Subjects:
    def subject(tool: Tool) -> Measure:
        container = started(place, tool)
        return whole(place, container.command("exec", container.name, TRUE))

    return runtimes(found, subject)


def state(place: Place, found: Found) -> Subjects:
    def subject(tool: Tool) -> Measure:
        container = started(place, tool)
        return whole(place, container.command("state", container.name))

    subjects = runtimes(found, subject)
    subjects[BARE] = whole(place, tools.bare_python())
    return subjects


# ---------------------------------------------------------------- network

# What runc leaves to others, by hand: a pair of interfaces, two addresses, a route; no rules.
HOOK = """#!/bin/sh -e
pid=$(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p')
ip link add "v$pid" type veth peer name eth0 netns "$pid"
ip link set "v$pid" master bench0 up
exec nsenter --target "$pid" --net sh -ec '
ip link set lo up
ip addr add 10.99.0.2/24 dev eth0
ip link set eth0 up
ip route add default via 10.99.0.1'
"""
BRIDGE = """ip link set lo up
ip link add bench0 type bridge
ip addr add 10.99.0.1/24 dev bench0
ip link set bench0 up"""


def network(place: Place, found: Found) -> Subjects:
    ip = shutil.which("ip")
    if ip is None:
        return {"minirun": "needs ip (Debian, Ubuntu: apt install iproute2)"}
    shell = shutil.which("sh") or "/bin/sh"
    place.in_network([shell, "-ec", BRIDGE])
    subjects: Subjects = {}
    ours, runc = found["minirun"], found["runc"]
    for mode in ("bridge", "none"):
        subjects[f"minirun {mode}"] = (
            ours if isinstance(ours, str) else networked(place, human(place, ours, mode))
        )
    if isinstance(runc, str):
        subjects["runc"] = runc
    else:
        hook = place.directory / "hook"
        hook.write_text(HOOK)
        hook.chmod(0o755)
        step = {"path": str(hook), "env": ["PATH=" + place.spawner.environment["PATH"]]}
        container = place.container(runc, slot=1, createRuntime=[step])
        subjects["runc bridge"] = networked(place, container.run_command())
        subjects["runc none"] = networked(place, place.container(runc).run_command())
    return subjects


def human(place: Place, tool: Tool, mode: str) -> list[str]:
    """`run --rootfs`: minirun writes the bundle; the limits are its own, where there can be any."""
    container = place.container(tool, slot=["bridge", "none"].index(mode))
    limits = [] if "memory" in read(f"{CGROUP}/cgroup.controllers").split() else ["--no-limits"]
    options = ("--rootfs", str(place.root), "--cgroup-parent", place.group, "--network", mode)
    return container.command("run", *options, *limits, container.name, TRUE)


def networked(place: Place, command: list[str]) -> Measure:
    return lambda: {"": place.in_network(command)}


# ---------------------------------------------------------------- many


def serial(place: Place, found: Found) -> Subjects:
    return many(place, found, 1)


def parallel(place: Place, found: Found) -> Subjects:
    return many(place, found, AT_ONCE)


def many(place: Place, found: Found, at_once: int) -> Subjects:
    def subject(tool: Tool) -> Measure:
        if tool.is_runtime:
            slots = range(PER_BLOCK)
            commands = [place.container(tool, slot).run_command() for slot in slots]
        else:
            commands = [tools.sandbox(tool, place.root)] * PER_BLOCK
        return lambda: {"": per_container(place.spawner.run_all(commands, at_once))}

    return runtimes(found, subject, (*tools.RUNTIMES, "bubblewrap"))


def per_container(block: Sample) -> Sample:
    return Sample(block.wall / PER_BLOCK, block.cpu / PER_BLOCK)


CASES = {
    "run": Case("run: a container that runs `true`, from nothing to nothing", run),
    "cycle": Case("create + start + delete, and each alone", cycle),
    "exec": Case("exec: `true` in a running container", execute),
    "state": Case("state of a running container, beside an interpreter that does nothing", state),
    "network": Case(
        "networked run: `minirun run --rootfs`, which writes the bundle, on a bridge of its own or"
        " without; runc with a hook of ip(8) commands or without",
        network,
    ),
    "serial": Case(
        f"100 containers, one after another: each one's share of a block of {PER_BLOCK}",
        serial,
        blocks=True,
    ),
    "parallel": Case(
        f"100 containers, {AT_ONCE} at once: each one's share of a block of {PER_BLOCK}",
        parallel,
        blocks=True,
    ),
}


# ---------------------------------------------------------------- memory

MEMORY = "memory"
MEMORY_TITLE = "memory of the runtime's own processes, beside the container's"


def memory(place: Place, found: Found, runs: int) -> dict[str, dict[str, list[Memory]] | str]:
    """While a created container waits, while a detached one runs, while a run waits for its."""
    rows: dict[str, dict[str, list[Memory]] | str] = {}
    for name in tools.RUNTIMES:
        tool = found[name]
        if isinstance(tool, str):
            rows[name] = tool
            continue
        taken: dict[str, list[Memory]] = {"created": [], "detached": [], "in the foreground": []}
        try:
            for _ in range(runs):
                for phase, measured in zip(taken, one_life(place, tool), strict=True):
                    taken[phase].append(measured)
            rows[name] = taken
        except Failed as failure:
            rows[name] = str(failure)
        place.clear()
    return rows


def one_life(place: Place, tool: Tool) -> tuple[Memory, Memory, Memory]:
    container = place.container(tool, arguments=SLEEP)
    container.create()
    created = process.resident(process.descendants(), container.memory_current())
    container.start()
    detached = beside(container)
    place.clear()
    container = place.container(tool, arguments=SLEEP)
    pid_file = ("--pid-file", str(container.pid_file))
    where = ("--bundle", str(container.bundle), *pid_file)
    container.pid_file.unlink(missing_ok=True)
    place.spawner.spawn(container.command("run", *where, container.name))
    foreground = beside(container)
    place.clear()
    return created, detached, foreground


def beside(container: Container) -> Memory:
    """Wait until the container's process is its own; measure the processes that are not it."""
    until = time.monotonic() + container.place.spawner.limit
    while True:
        text = read(str(container.pid_file))
        if text and read(f"/proc/{text}/comm").strip() == "sleep":
            break
        if time.monotonic() > until:
            raise Failed(f"{container.name} did not start")
        time.sleep(0.01)
    time.sleep(0.1)  # the verb that made it is about to leave
    processes = process.descendants() - {int(text)}
    return process.resident(processes, container.memory_current())
