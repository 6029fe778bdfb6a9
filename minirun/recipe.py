"""The order of everything, once: what each process does to make a container, step by step.

    parent   PREPARE   outside, before any process of the container exists
    outer    OUTER     a process that makes and joins namespaces: the inner one where it can
    parent   BESIDE    at the same time: what needs the container's cgroup only
    parent   MAP TIME  answer it: id maps, clock offsets
    inner    INNER     the container's first process, the host's files still there
    parent   ADOPT     cgroup limits, state
    parent   HOOKS     prestart and createRuntime
    inner    ENTER     the change of root, and all that only works inside
    parent   SETTLE    what is left to do outside
    inner    START     after `start`: the last steps before execve

`exec` follows EXEC in one process outside the container's pid namespace. For `restore`, RESTORE and
what follows it are what CRIU leaves to the parent.

Execution, `plan`, --explain, error messages and timings come from these tuples. The marks say why
an order holds: *kernel* (it fails otherwise) or *spec* (OCI says so); what has no mark may move.
"""

from __future__ import annotations

from minirun import (
    capabilities,
    devicerules,
    devices,
    hooks,
    hostname,
    joining,
    keyrings,
    labels,
    memorypolicy,
    namespaces,
    netdevices,
    outside,
    payload,
    personality,
    procfs,
    program,
    resctrl,
    rlimits,
    scheduling,
    sync,
    syscallfilter,
    sysctl,
    terminal,
)
from minirun.cgroups import steps as cgroups
from minirun.mounts import masks, root, sources, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from minirun.setup import Setup

    Steps = tuple[Any, ...]

PREPARE = (
    namespaces.open_paths,
    labels.check,
    resctrl.check,
    capabilities.look,
    terminal.open_console_socket,
    outside.connect_pidfd_socket,
    sources.open_sources,
    sources.offer_help,
    devices.open_nodes,
    syscallfilter.compile_filter,
    syscallfilter.connect_agent,
    cgroups.create,
    root.bind_root_outside,  # last: undone first
)

OUTER = (
    namespaces.begin,
    sync.await_scope,
    namespaces.join,
    namespaces.unshare_user,  # kernel: before the namespaces that it shall own
    namespaces.unshare_others,
    namespaces.await_time_offsets,  # kernel: fixed once a process is in it, at the next clone
)

BESIDE = (
    cgroups.start_scope,  # systemd: a scope begins with a process, so not before there is one
    devicerules.attach,
)

MAP = (
    outside.write_id_maps,
    rlimits.set_oom_score_of_user,  # kernel: while the process may be looked at, see unshare_user
)

TIME = (outside.write_time_offsets,)

INNER = (
    terminal.silence,
    terminal.new_session,
    sync.tell_joined,
    namespaces.unshare_cgroup,  # kernel: its root is the group that the process is in, from birth
    keyrings.join_new,
    sources.open_sources_inside,  # kernel: after the mount namespace is there; before any mount
    devices.open_nodes_inside,
    procfs.open_private,  # before a mount of the container could cover /proc
    root.stop_propagation,  # kernel: before the first mount, or the host sees it
    root.bind_root,
    tree.mount_all,
    devices.create,  # spec: after the mounts, for /dev is one of them
    namespaces.raise_loopback,
    sync.await_adoption,  # before a program of the container, or of a hook, has run
    sync.await_hooks,  # spec: prestart, createRuntime, then createContainer, then pivot_root
    hooks.create_container,
)

ADOPT = (
    cgroups.limit,
    cgroups.delegate,
    scheduling.reset_affinity,  # after cpuset.cpus, which bounds it
    resctrl.assign,
    netdevices.move,  # spec: before the hooks, which may look at them
    rlimits.set_oom_score,
    outside.save_state,  # before the container's process goes on
)

HOOKS = (
    hooks.undo_by_poststop,  # spec: before the first hook
    hooks.prestart,
    hooks.create_runtime,
)

ENTER = (
    root.pivot_root,
    root.change_root,
    # ---- from here on the host's files are gone: no import, no path of ours ----
    terminal.open_pty,  # in the container's devpts
    hostname.set_hostname,
    hostname.set_domainname,
    sysctl.write_all,  # before /proc/sys is made read-only
    program.make_cwd,  # before the root is made read-only
    masks.lock_dev,
    root.lock_root,
    masks.lock_paths,
    masks.mask_paths,
    root.propagate_root,  # kernel: what is unbindable cannot be locked
    labels.open_procfs,
    program.prepare_environment,
    terminal.take_terminal,
    terminal.reopen_null,
    terminal.own_streams,
    program.set_umask,
    program.reset_signals,
    program.end_by_signals,  # after that reset; before a filter could forbid it
    personality.apply,
    memorypolicy.apply,
    capabilities.set_no_new_privs,
    program.enter_closed_cwd,  # with all rights: an image's 0700 WORKDIR serves another user
    capabilities.drop,
    program.enter_cwd,  # as the payload's user, who may be allowed where root is not
    program.resolve,  # so that create fails, not start, where there is no such program
    payload.prepare,
    syscallfilter.load_notifying,  # of what is ours only messages, and execve, come after it
    sync.tell_ready,
)

SETTLE = (
    rlimits.raise_hard,
    scheduling.set_scheduler,
    scheduling.set_io_priority,
    outside.send_pidfd,
    outside.write_pid_file,
    netdevices.settle,  # nothing can fail after it
)

START = (
    sync.await_start,
    hooks.start_container,  # spec: after start, before the payload, with its credentials
    payload.become,  # waits for start itself where there are no hooks
)

EXEC_PREPARE = (
    labels.check,
    scheduling.set_initial_affinity,
    capabilities.look,
    terminal.open_console_socket,
    outside.connect_pidfd_socket,
    syscallfilter.compile_filter,
    syscallfilter.connect_agent,
)

EXEC = (
    sync.await_scope,
    joining.join_all,
    joining.open_root,
    keyrings.join_new,
    labels.open_procfs,
    terminal.open_pty,
    program.prepare_environment,
    terminal.lend_terminal,
    terminal.reopen_null,
    terminal.own_streams,
    program.set_umask,
    program.reset_signals,
    personality.apply,
    memorypolicy.apply,
    capabilities.set_no_new_privs,
    program.enter_closed_cwd,
    capabilities.drop,
    program.enter_cwd,
    program.resolve,
    payload.prepare,
    syscallfilter.load_notifying,  # of what is ours only messages, and execve, come after it
    sync.tell_ready,
    payload.become,
)

EXEC_BESIDE = (cgroups.join_scope,)

EXEC_SETTLE = (
    rlimits.raise_hard,
    scheduling.set_final_affinity,
    scheduling.set_scheduler,  # kernel: SCHED_DEADLINE fixes the CPUs
    scheduling.set_io_priority,
    rlimits.set_oom_score,
    outside.send_pidfd,
    outside.write_pid_file,
)

# What is ours when CRIU makes the processes: the rest of a container is in its images.
RESTORE = (
    namespaces.open_paths,
    terminal.open_console_socket,
    outside.connect_pidfd_socket,
    cgroups.create,
)

RESTORE_BESIDE = (  # CRIU's process is there, and waits
    cgroups.start_scope,
    devicerules.attach,
    cgroups.limit,
)

RESTORED = (outside.save_state,)  # before the container's processes go on

RESTORE_SETTLE = (
    outside.send_pidfd,
    outside.write_pid_file,
)

# In the order of time, as the plan prints it.
CREATE = (
    ("parent", PREPARE),
    ("outer", OUTER),
    ("parent", BESIDE),
    ("parent", MAP),
    ("parent", TIME),
    ("inner", INNER),
    ("parent", ADOPT),
    ("parent", HOOKS),
    ("inner", ENTER),
    ("parent", SETTLE),
    ("inner", START),
)


def stages_of(setup: Setup) -> Iterator[tuple[str, Steps]]:
    """Give CREATE as the processes of this container follow it: outer and inner may be one."""
    for stage, steps in CREATE:
        yield ("inner" if stage == "outer" and setup.direct else stage), steps
