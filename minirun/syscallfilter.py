"""The steps of seccomp: compile outside; `payload` loads it as the last act but one."""

from __future__ import annotations

import os

from minirun import jsontext
from minirun.errors import MinirunError, describe
from minirun.kernel import process, seccomp
from minirun.step import step
from minirun.unixsocket import connect, send_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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


def _cache_of(setup: Setup) -> str:
    if setup.unprivileged and setup.container is not None:
        return f"{setup.container.root}/.seccomp"
    return _CACHE


@step(_asked, details=_describe)
def compile_filter(setup: Setup) -> None:
    """Compile the system call filter, or take it from the cache"""
    profile = setup.spec.linux.seccomp
    assert profile is not None
    from minirun.seccomp import compile  # 2 ms, for containers with a filter only

    setup.filter = compile(profile, _cache_of(setup))
    setup.notes += setup.filter.notes


def _notifies(setup: Setup) -> bool:
    profile = setup.spec.linux.seccomp
    return profile is not None and profile.notifies


def _listener_path(setup: Setup) -> str:
    profile = setup.spec.linux.seccomp
    return (profile.listener_path if profile else None) or ""


@step(
    _notifies,
    details=lambda setup: [_listener_path(setup)],
    why="without an agent every system call that is handed to it would fail or wait for ever",
)
def connect_agent(setup: Setup) -> None:
    """Connect to the agent that answers for system calls"""
    path = _listener_path(setup)
    try:
        setup.agent = connect(path).detach()
    except (OSError, MinirunError) as error:
        raise MinirunError(
            f"failed to connect with seccomp agent: {describe(error)}",
            cause="linux.seccomp.listenerPath names the socket of a program that answers for the "
            "container's system calls",
            fix="start that program first",
        ) from None


def pass_listener(setup: Setup, pidfd: int, number: int, state: dict[str, Any], pid: int) -> None:
    """Take the listener, descriptor `number` of a process of the container, and send it on.

    With it goes the container process state: config-linux.md, "The Container Process State".
    """
    profile = setup.spec.linux.seccomp
    assert profile is not None
    message: dict[str, Any] = {
        "ociVersion": setup.spec.oci_version,
        "fds": ["seccompFd"],
        "pid": pid,
        "state": state,
    }
    if profile.listener_metadata:
        message["metadata"] = profile.listener_metadata
    listener = process.pidfd_getfd(pidfd, number)
    try:
        send_fd(setup.agent, listener, jsontext.dumps(message).encode())
    except OSError as error:
        raise MinirunError(
            f"cannot send the listener to the seccomp agent: {describe(error)}"
        ) from None
    finally:
        # Once the agent alone holds it, the calls fail with ENOSYS when the agent has ended.
        os.close(listener)
        os.close(setup.agent)
        setup.agent = -1


def _alone(setup: Setup) -> bool:
    """Tell whether no process of the container's pid namespace is there to trace this one."""
    namespaces = setup.spec.linux.namespaces
    new = any(entry.type == "pid" and not entry.path for entry in namespaces)
    return new and setup.target_pidfd < 0


@step(
    _notifies,
    details=_describe,
    why="the agent must have the listener before anything can wait for its answer",
)
def load_notifying(setup: Setup) -> None:
    """Load the system call filter, and hand its listener over"""
    assert setup.channel is not None
    load = seccomp.prepare(setup.filter.program, setup.filter.flags)
    if setup.filter.notify and setup.unprivileged and _alone(setup):
        # kernel: a user's own parent may take a descriptor only of what can be traced; before the
        # filter, which may hold prctl(2) up. `payload` forbids it again first of all.
        process.prctl(process.PR_SET_DUMPABLE, 1)
    listener = load()
    if setup.filter.notify:
        setup.channel.hand_over(listener)
        os.close(listener)
