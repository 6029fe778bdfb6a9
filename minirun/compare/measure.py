"""The order in which a comparison measures: the two sides in turn, so that both share the noise."""

from __future__ import annotations

import os

import psutil

from minirun.compare import disk, jobs, usage
from minirun.compare.child import Silent
from minirun.compare.contained import Container
from minirun.compare.figures import FEW
from minirun.compare.isolation import counts
from minirun.compare.load import Attentive, Load, Ticks
from minirun.compare.machine import Machine
from minirun.compare.result import Result
from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minirun.compare.contained import Program
    from minirun.compare.disk import Storage
    from minirun.compare.guest import Images
    from minirun.compare.machine import Plan
    from minirun.compare.place import Place

    Tell = Callable[[str], None]


class Effort:
    """How often things are done at most: starts of each side, sessions of work, rounds in each."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self.containers, self.machines = (5, 3) if quick else (15, 5)
        self.sessions, self.rounds = (1, 3) if quick else (4, 3)
        self.instances = (1, 2) if quick else (1, 2, 4)


class Limits:
    """Seconds: until a machine has started, and until its work is done."""

    def __init__(self, *, emulated: bool) -> None:
        self.start = 120.0 if emulated else 30.0
        self.work = 1800.0 if emulated else 300.0


class Comparison:
    """Both sides, and what was measured of them so far (`result`)."""

    def __init__(
        self,
        place: Place,
        sides: tuple[Program, Plan],
        images: Images,
        effort: Effort,
        tell: Tell,
        *,
        storage: Storage,
    ) -> None:
        self.place, self.images, self.storage = place, images, storage
        self.program, self.plan = sides
        plan = self.plan
        self.effort, self.tell = effort, tell
        self.limits = Limits(emulated=plan.accelerator.emulated)
        self.result = Result(storage)

    def run(self) -> Result:
        """Measure everything. Raises MinirunError when one side does not run."""
        self.result.averages = psutil.getloadavg()
        before = Ticks()
        with Attentive():
            self._starts()
            self._work()
            self._instances()
        self._sizes()
        self.result.load = Load(before, Ticks())
        return self.result

    # ---------------------------------------------------------------- the two sides

    def _container(self, job: str) -> Container:
        name = self.place.name("c")
        log = self.place.file(f"{name}.log")
        return self.place.start(lambda: Container(self.program, name, job, log))

    def _machine(self, image: str, disks: Sequence[str] = ()) -> Machine:
        log = self.place.file(f"{self.place.name('m')}.log")
        return self.place.start(lambda: Machine(self.plan, image, log, disks))

    # ---------------------------------------------------------------- starting

    def _starts(self) -> None:
        most = max(self.effort.containers, self.effort.machines)
        for number in range(most):
            if number < self.effort.containers:
                self.tell(f"starting: container {number + 1} of {self.effort.containers}")
                self._start_container()
            if number < self.effort.machines and not self._started_enough(number):
                self.tell(f"starting: machine {number + 1} of {self.effort.machines}")
                self._start_machine()

    def _started_enough(self, machines: int) -> bool:
        """Whether no row of the start would change by further machines, each of which is dear."""
        return machines >= FEW and all(row.settled for row in self.result.starting())

    def _start_container(self) -> None:
        one = self._container(jobs.BOOT)
        one.listen("up", self.limits.start)
        self._finish(one)
        up = one.session.marks["up"] - one.child.started
        self.result.add("first", "container", up)
        self.result.add("payload", "container", up)
        self._over(one, "container")
        self.place.release(one)

    def _start_machine(self) -> None:
        one = self._machine(self.images.boot)
        one.listen("up", self.limits.start)
        self._finish(one)
        marks, started = one.session.marks, one.child.started
        self.result.add("first", "vm", marks["init"] - started)
        self.result.add("payload", "vm", marks["up"] - started)
        self.result.phase("QEMU, until the machine runs", one.ready - started)
        self.result.phase("firmware and kernel, until init speaks", marks["init"] - one.ready)
        self.result.phase("init, until the payload speaks", marks["up"] - marks["init"])
        self._over(one, "vm")
        self.place.release(one)

    def _finish(self, one: Container | Machine) -> None:
        if not one.finish(self.limits.start):
            raise Silent(f"{one.child.name} did not end{one.child.last_words()}")
        if one.child.status:
            said = one.child.last_words()
            raise MinirunError(f"{one.child.name} ended with status {one.child.status}{said}")

    def _over(self, one: Container | Machine, side: str) -> None:
        self.result.add("life", side, one.child.ended - one.child.started)
        assert one.child.cpu is not None
        self.result.add("spent", side, one.child.cpu)

    # ---------------------------------------------------------------- working

    def _work(self) -> None:
        """Work in sessions; after the first only what is not settled is done again."""
        modules = disk.modules(self.plan.kernel)
        place = "" if self.storage.why else self.place.claim(self.storage.directory)
        for number in range(self.effort.sessions):
            rows = self.result.working(quick=self.effort.quick)
            names = [row.key for row in rows if not row.settled]
            if not names:
                break
            script = jobs.work(self.effort.rounds, names, quick=self.effort.quick)
            of = f"{number + 1} of at most {self.effort.sessions}"
            self.tell(f"working: container {of}")
            self._hear(self._container(script), "container")
            self.tell(f"working: machine {of}")
            image = self.images.write("work", script, modules if place else None)
            disks = [disk.make(f"{place}/{one}.img") for one in disk.DEVICES] if place else []
            self._hear(self._machine(image, disks), "vm")

    def _hear(self, one: Container | Machine, side: str) -> None:
        one.listen("done", self.limits.work)
        self.place.release(one)
        self.result.work(side, one.session)
        found = one.session.facts.get("disk")
        if found:
            self.storage.device = disk.DEVICES.get(found, found)

    # ---------------------------------------------------------------- standing idle

    def _instances(self) -> None:
        """Start ever more of each, which then only sleep, and look at what all of them hold."""
        containers = self._grow("container")
        for one in containers[1:]:
            self.place.release(one)
        machines = self._grow("vm")
        self.tell("isolation")
        self._inspect(containers[0], machines[0])
        for one in (containers[0], *machines):
            self.place.release(one)

    def _grow(self, side: str) -> list[Container | Machine]:
        running: list[Container | Machine] = []
        for count in self.effort.instances:
            while len(running) < count:
                self.tell(f"memory: {side} {len(running) + 1} of {self.effort.instances[-1]}")
                running.append(self._idle(side))
            pids = [pid for one in running for pid in one.pids]
            self.result.totals[side].append((count, float(usage.pss(pids))))
            if count == 1 and side == "container" and pids:
                self.result.group = usage.cgroup_memory(pids[0])
        return running

    def _idle(self, side: str) -> Container | Machine:
        ours = side == "container"
        one = self._container(jobs.INSPECT) if ours else self._machine(self.images.idle)
        one.listen("idle", self.limits.start)
        return one

    def _inspect(self, container: Container | Machine, machine: Container | Machine) -> None:
        assert isinstance(container, Container)
        assert isinstance(machine, Machine)
        self.result.counts = counts(container, machine, os.uname().machine)
        self.result.disk = {
            "container": usage.runtime_size(),
            "vm": usage.mapped(machine.child.pid) + self.plan.kernel.size,
        }

    def _sizes(self) -> None:
        self.result.initrd = os.stat(self.images.boot).st_size
