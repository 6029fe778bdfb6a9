"""What else the machine did while something was measured: other work, and time stolen from it."""

from __future__ import annotations

import os
import time

import psutil


class Attentive:
    """A context in which this process runs as soon as there is something to read.

    Otherwise a busy machine lets a beginning and an end wait until both are read at once, and the
    time between is lost. What is started meanwhile is scheduled as ever. Source: sched(7).
    """

    def __enter__(self) -> None:
        self.before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(1))
        except PermissionError:
            return  # a container without CAP_SYS_NICE: the load that is told says how busy it was

    def __exit__(self, *_error: object) -> None:
        policy, parameters = self.before
        os.sched_setscheduler(0, policy & ~os.SCHED_RESET_ON_FORK, parameters)


class Ticks:
    """Seconds since some beginning: by the clock, of all CPUs together, stolen, and our own."""

    def __init__(self) -> None:
        all_ = psutil.cpu_times()
        self.busy = all_.user + all_.nice + all_.system + all_.irq + all_.softirq
        self.stolen = all_.steal
        own = psutil.Process().cpu_times()
        self.ours = own.user + own.system + own.children_user + own.children_system
        self.clock = time.monotonic()


class Load:
    """Others' work in CPUs, and the share of the CPUs' time that the host of this machine took."""

    def __init__(self, before: Ticks, after: Ticks) -> None:
        seconds = max(after.clock - before.clock, 0.001)
        others = (after.busy - before.busy) - (after.ours - before.ours)
        self.others = max(others, 0) / seconds
        self.stolen = max(after.stolen - before.stolen, 0) / seconds / (psutil.cpu_count() or 1)

    @property
    def idle(self) -> bool:
        """Whether the figures are hardly disturbed: a quarter of a CPU, 2 % stolen."""
        return self.others <= 0.25 and self.stolen <= 0.02
