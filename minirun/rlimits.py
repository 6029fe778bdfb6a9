"""Resource limits of the container's process (getrlimit(2))."""

from __future__ import annotations

import os

from minirun.errors import MinirunError
from minirun.kernel import resource
from minirun.kernel.libc import failure, quote, trace
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


@step(
    lambda setup: bool(setup.process.rlimits),
    details=lambda setup: [f"{one.type} {one.soft} {one.hard}" for one in setup.process.rlimits],
    why="from outside: raising a hard limit needs CAP_SYS_RESOURCE of the initial user namespace",
)
def raise_hard(setup: Setup) -> None:
    """Raise hard resource limits; `payload` sets the limits themselves"""
    for one in setup.process.rlimits:
        soft, hard = resource.limits(one.type)
        if one.hard > hard:
            try:
                resource.prlimit(setup.pid, one.type, soft, one.hard)
            except PermissionError:
                if not setup.unprivileged:
                    raise
                raise MinirunError(
                    f"rlimits.raise_hard: {one.type} {one.hard} is above the hard limit {hard}: "
                    "operation not permitted",
                    cause="only root may raise a hard limit",
                    fix="lower it in process.rlimits, or raise the user's: limits.conf(5)",
                ) from None


def _scored(setup: Setup) -> bool:
    return setup.process.oom_score_adj is not None


def _early(setup: Setup) -> bool:
    return setup.unprivileged and setup.new_user_namespace


@step(
    lambda setup: _scored(setup) and _early(setup),
    details=lambda setup: [str(setup.process.oom_score_adj)],
)
def set_oom_score_of_user(setup: Setup) -> None:
    """Set how likely the out-of-memory killer takes a user's container"""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        own = int(file.read())
    if own > (setup.process.oom_score_adj or 0):
        # kernel: to lower it needs CAP_SYS_RESOURCE of the host. Engines write the lowest they may.
        setup.notes.append(
            f"process.oomScoreAdj {setup.process.oom_score_adj} is below the caller's {own}, "
            "which only root may set: it stays as it is"
        )
    elif own != setup.process.oom_score_adj:
        set_oom_score(setup)


@step(
    lambda setup: _scored(setup) and not _early(setup),
    details=lambda setup: [str(setup.process.oom_score_adj)],
)
def set_oom_score(setup: Setup) -> None:
    """Set how likely the out-of-memory killer takes the container"""
    path = f"/proc/{setup.pid or setup.outer_pid}/oom_score_adj"
    text = f"write({quote(path)}, {quote(str(setup.process.oom_score_adj))})"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(setup.process.oom_score_adj).encode())
    except OSError as error:
        raise failure(error.errno or 0, text) from None
    finally:
        os.close(fd)
    trace(lambda: text)
