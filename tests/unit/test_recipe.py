"""The recipe: its order, what the order must not violate, and that each step can be told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from minirun import recipe
from minirun.step import name_of, sentence_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Who changes the recipe changes this, and has seen both.
ORDER = """\
PREPARE
    namespaces.open_paths
    labels.check
    resctrl.check
    capabilities.look
    terminal.open_console_socket
    outside.connect_pidfd_socket
    mounts.open_sources
    mounts.offer_help
    devices.open_nodes
    syscallfilter.compile_filter
    syscallfilter.connect_agent
    cgroups.create
    mounts.bind_root_outside
OUTER
    namespaces.begin
    sync.await_scope
    namespaces.join
    namespaces.unshare_user
    namespaces.unshare_others
    namespaces.await_time_offsets
BESIDE
    cgroups.start_scope
    devicerules.attach
MAP
    outside.write_id_maps
    rlimits.set_oom_score_of_user
TIME
    outside.write_time_offsets
INNER
    terminal.silence
    terminal.new_session
    sync.tell_joined
    namespaces.unshare_cgroup
    keyrings.join_new
    mounts.open_sources_inside
    devices.open_nodes_inside
    procfs.open_private
    mounts.stop_propagation
    mounts.bind_root
    mounts.mount_all
    devices.create
    namespaces.raise_loopback
    sync.await_adoption
    sync.await_hooks
    hooks.create_container
ADOPT
    cgroups.limit
    cgroups.delegate
    scheduling.reset_affinity
    resctrl.assign
    netdevices.move
    rlimits.set_oom_score
    outside.save_state
HOOKS
    hooks.undo_by_poststop
    hooks.prestart
    hooks.create_runtime
ENTER
    mounts.pivot_root
    mounts.change_root
    terminal.open_pty
    hostname.set_hostname
    hostname.set_domainname
    sysctl.write_all
    program.make_cwd
    mounts.lock_dev
    mounts.lock_root
    mounts.lock_paths
    mounts.mask_paths
    mounts.propagate_root
    labels.open_procfs
    program.prepare_environment
    terminal.take_terminal
    terminal.reopen_null
    terminal.own_streams
    program.set_umask
    program.reset_signals
    program.end_by_signals
    personality.apply
    memorypolicy.apply
    capabilities.set_no_new_privs
    program.enter_closed_cwd
    capabilities.drop
    program.enter_cwd
    program.resolve
    payload.prepare
    syscallfilter.load_notifying
    sync.tell_ready
SETTLE
    rlimits.raise_hard
    scheduling.set_scheduler
    scheduling.set_io_priority
    outside.send_pidfd
    outside.write_pid_file
    netdevices.settle
START
    sync.await_start
    hooks.start_container
    payload.become
EXEC_PREPARE
    labels.check
    scheduling.set_initial_affinity
    capabilities.look
    terminal.open_console_socket
    outside.connect_pidfd_socket
    syscallfilter.compile_filter
    syscallfilter.connect_agent
EXEC
    sync.await_scope
    joining.join_all
    joining.open_root
    keyrings.join_new
    labels.open_procfs
    terminal.open_pty
    program.prepare_environment
    terminal.lend_terminal
    terminal.reopen_null
    terminal.own_streams
    program.set_umask
    program.reset_signals
    personality.apply
    memorypolicy.apply
    capabilities.set_no_new_privs
    program.enter_closed_cwd
    capabilities.drop
    program.enter_cwd
    program.resolve
    payload.prepare
    syscallfilter.load_notifying
    sync.tell_ready
    payload.become
EXEC_BESIDE
    cgroups.join_scope
EXEC_SETTLE
    rlimits.raise_hard
    scheduling.set_final_affinity
    scheduling.set_scheduler
    scheduling.set_io_priority
    rlimits.set_oom_score
    outside.send_pidfd
    outside.write_pid_file
RESTORE
    namespaces.open_paths
    terminal.open_console_socket
    outside.connect_pidfd_socket
    cgroups.create
RESTORE_BESIDE
    cgroups.start_scope
    devicerules.attach
    cgroups.limit
RESTORED
    outside.save_state
RESTORE_SETTLE
    outside.send_pidfd
    outside.write_pid_file
"""

# What must come before what, wherever both are: the kernel or the specification says so.
CREATE = "OUTER INNER ENTER START"
BEFORE = [
    (
        CREATE,
        "sync.await_scope",
        "namespaces.unshare_user",
        "all of it is in its cgroup",
    ),
    ("BESIDE", "cgroups.start_scope", "devicerules.attach", "the program is the cgroup's"),
    ("EXEC", "sync.await_scope", "joining.join_all", "all of it is in its cgroup"),
    (CREATE, "namespaces.unshare_user", "namespaces.unshare_others", "it shall own them"),
    (CREATE, "namespaces.unshare_others", "mounts.stop_propagation", "else it is the host's"),
    (CREATE, "namespaces.begin", "namespaces.unshare_others", "it owns what is made after"),
    (CREATE, "sync.tell_joined", "mounts.bind_root", "the parent works meanwhile"),
    (CREATE, "sync.await_adoption", "hooks.create_container", "a program runs: recorded, limited"),
    (CREATE, "sync.await_adoption", "payload.become", "a program runs: recorded, limited"),
    (CREATE, "procfs.open_private", "mounts.mount_all", "a mount could cover /proc"),
    (CREATE, "mounts.open_sources_inside", "mounts.bind_root", "no mount could lead astray yet"),
    (CREATE, "namespaces.unshare_others", "mounts.open_sources_inside", "mounts of its own"),
    (CREATE, "mounts.stop_propagation", "mounts.bind_root", "or the host sees it"),
    (CREATE, "mounts.mount_all", "devices.create", "/dev is one of the mounts"),
    (CREATE, "devices.create", "sync.await_hooks", "hooks find the root filesystem complete"),
    (CREATE, "sync.await_hooks", "hooks.create_container", "config.md, the order of hooks"),
    (CREATE, "hooks.create_container", "mounts.pivot_root", "config.md: before pivot_root"),
    (CREATE, "mounts.pivot_root", "terminal.open_pty", "in the container's devpts"),
    (CREATE, "sysctl.write_all", "mounts.lock_paths", "/proc/sys is read-only then"),
    (CREATE, "program.make_cwd", "mounts.lock_root", "it could not be made then"),
    (CREATE, "capabilities.set_no_new_privs", "capabilities.drop", "prctl(2)"),
    (CREATE, "mounts.mask_paths", "capabilities.drop", "mounting needs CAP_SYS_ADMIN"),
    (CREATE, "program.enter_closed_cwd", "capabilities.drop", "where that user may not go"),
    (CREATE, "capabilities.drop", "program.enter_cwd", "as the payload's user"),
    (CREATE, "capabilities.drop", "hooks.start_container", "config.md: as the payload"),
    (CREATE, "sync.tell_ready", "sync.await_start", "create ends between them"),
    ("EXEC", "joining.join_all", "joining.open_root", "the container's"),
    ("EXEC", "capabilities.set_no_new_privs", "capabilities.drop", "prctl(2)"),
    ("EXEC", "capabilities.drop", "payload.become", "what else would be the point"),
    ("RESTORE_BESIDE", "cgroups.start_scope", "devicerules.attach", "to the group"),
    ("ADOPT HOOKS", "outside.save_state", "hooks.create_runtime", "hooks may ask for the state"),
]


def stages() -> dict[str, tuple[Callable[..., Any], ...]]:
    return {
        name: value
        for name, value in vars(recipe).items()
        if name.isupper() and name != "CREATE" and isinstance(value, tuple)
    }


def steps() -> dict[str, Callable[..., Any]]:
    return {name_of(step): step for stage in stages().values() for step in stage}


def test_the_order() -> None:
    found = "".join(
        f"{name}\n" + "".join(f"    {name_of(step)}\n" for step in stage)
        for name, stage in sorted(stages().items(), key=lambda one: ORDER.find(f"{one[0]}\n"))
    )
    assert found == ORDER


@pytest.mark.parametrize(("where", "first", "then", "reason"), BEFORE)
def test_what_must_come_before(where: str, first: str, then: str, reason: str) -> None:
    order = [name_of(step) for name in where.split() for step in stages()[name]]
    assert order.index(first) < order.index(then), reason


def test_the_plan_has_every_stage_of_create_once() -> None:
    listed = [stage for _, stage in recipe.CREATE]
    assert len(listed) == len({id(stage) for stage in listed})
    left = {name for name, stage in stages().items() if stage not in listed}
    assert left == {
        *("EXEC_PREPARE", "EXEC", "EXEC_BESIDE", "EXEC_SETTLE"),
        *("RESTORE", "RESTORE_BESIDE", "RESTORED", "RESTORE_SETTLE"),
    }


@pytest.mark.parametrize("name", sorted(steps()))
def test_a_step_says_what_it_does(name: str) -> None:
    """One short sentence, as the plan prints it: a verb first, no full stop."""
    sentence = sentence_of(steps()[name])
    assert re.fullmatch(r"[A-Z][a-z]+ .{3,78}[^.]", sentence), sentence
    assert not sentence.split()[0].endswith("s") or sentence.split()[0] == "Pass"


@pytest.mark.parametrize("name", sorted(steps()))
def test_a_step_is_one(name: str) -> None:
    """Marked, so that the plan can ask it what it would do."""
    step = steps()[name]
    for attribute in ("when", "details", "shell", "why"):
        assert hasattr(step, attribute), f"{name} lacks @step"
    why = step.why  # type: ignore[attr-defined]
    assert not why.endswith("."), why
    assert why == why.strip()


def test_a_step_stands_once_in_a_stage() -> None:
    for name, stage in stages().items():
        assert len(stage) == len(set(stage)), name


def test_names_are_told_apart() -> None:
    everything = {step for stage in stages().values() for step in stage}
    assert len(steps()) == len(everything)
