"""The steps of seccomp: compile outside; `payload` loads it as the last act but one."""

from __future__ import annotations

from minirun.kernel import seccomp
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

_CACHE = "/run/minirun/.seccomp"


def _asked(setup: Setup) -> bool:
    return setup.spec.linux.seccomp is not None


def _describe(setup: Setup) -> list[str]:
    profile = setup.spec.linux.seccomp
    if profile is None:
        return []
    rules = sum(len(rule.names) for rule in profile.syscalls)
    return [f"default {profile.default_action}, rules for {rules} system calls"]


@step(_asked, details=_describe)
def compile_filter(setup: Setup) -> None:
    """Compile the system call filter, or take it from the cache"""
    profile = setup.spec.linux.seccomp
    assert profile is not None
    from minirun.seccomp import compile  # 2 ms, for containers with a filter only

    setup.filter = compile(profile, _CACHE)
    setup.notes += setup.filter.notes


@step(
    lambda setup: _asked(setup) and not setup.process.no_new_privileges,
    details=_describe,
    why="without no_new_privs it needs CAP_SYS_ADMIN, which is about to be dropped: seccomp(2)",
)
def load_privileged(setup: Setup) -> None:
    """Load the system call filter, while it is still allowed"""
    seccomp.prepare(setup.filter.program, setup.filter.flags)()
