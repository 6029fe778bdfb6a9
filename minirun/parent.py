"""The runtime's side: prepare, make the outer process, answer the inner one, undo on failure."""

from __future__ import annotations

import errno
import os

from minirun import channel, child, hooks, namespaces, recipe, syscallfilter
from minirun.channel import Channel, ChannelClosed
from minirun.errors import MinirunError, describe
from minirun.kernel import process
from minirun.mounts import sources
from minirun.step import follow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from minirun.setup import Setup

_SIGKILL = 9


def create(setup: Setup, meanwhile: Callable[[], None] | None = None) -> None:
    """Bring the container to the state `created`: its process waits for start.

    `meanwhile` is called while the container's process is at work and there is time.
    What was made is undone if anything fails; the error is the child's where it told one.
    """
    try:
        follow("parent", recipe.PREPARE, setup)
        _spawn(setup, child.run_outer, namespaces.of_birth(setup))
        follow("parent", recipe.BESIDE, setup)
        if meanwhile:
            meanwhile()
        _answer(
            setup,
            {
                "unshared": recipe.MAP,
                "timed": recipe.TIME,
                "joined": recipe.ADOPT,
                "mounted": recipe.HOOKS,
            },
        )
        if setup.fifo >= 0:
            _await_trampoline(setup)
        follow("parent", recipe.SETTLE, setup)
    except BaseException as error:
        abandon(setup)
        try:
            _explain_oom(setup, error)
        finally:
            roll_back(setup)
        if setup.unprivileged and setup.new_user_namespace:
            from minirun.validate_rootless import explained

            better = explained(error)
            if better is not error:
                raise better from error
        raise


def _await_trampoline(setup: Setup) -> None:
    """Wait until the container's process has become what waits for start.

    Until then it is the host's interpreter, at which an exec that does not wait could look. An
    agent (SCMP_ACT_NOTIFY) that answers for the calls on the way may take its time, as in runc; one
    that has ended has them fail. Raises what the process tells instead.
    """
    if setup.spec.hooks.start_container:
        return  # a sealed copy, until the hooks have run
    assert setup.channel is not None
    try:
        setup.channel.receive()
    except ChannelClosed:
        pass  # by execve; or it has ended, which `start` tells


def join(setup: Setup) -> None:
    """Bring a process of exec to the point where it waits for the word to go on."""
    target, setup.target_pidfd = setup.pidfd, setup.pidfd
    setup.target_pid = setup.pid
    setup.pid, setup.pidfd = 0, -1
    try:
        _spawn(setup, child.run_joining)
        follow("parent", recipe.EXEC_BESIDE, setup)
        _answer(setup, {})
        adopt(setup, _entered(setup))
        follow("parent", recipe.EXEC_SETTLE, setup)
    except BaseException:
        abandon(setup)
        raise
    finally:
        os.close(target)


def release(setup: Setup) -> None:
    """Let the waiting process become the payload; raises what kept it from it."""
    assert setup.channel is not None
    try:
        try:
            setup.channel.release()
        except ChannelClosed:
            pass  # it has failed already, and told why
        setup.channel.await_payload(setup.process.args, setup.obstacle)
    except BaseException:
        # Reaped here: a zombie that exec leaves keeps the container's pid namespace from ending.
        abandon(setup)
        raise
    setup.channel.close()


def _spawn(setup: Setup, run: Callable[[Setup, Channel], NoReturn], birth: int = 0) -> None:
    """Make the process that does the rest, in the namespaces `birth` (CLONE_NEW*)."""
    ours, theirs = channel.pair()
    # kernel: born in the cgroup, so that no moment of it counts elsewhere, and no migration (which
    # waits for an RCU grace period) is needed.
    try:
        pid, pidfd = process.clone3(birth, cgroup=setup.group_fd)
    except OSError as error:
        raise _no_place(setup, error) from error
    if pid == 0:
        run(setup, theirs)
    theirs.close()
    setup.channel = ours
    if birth:
        setup.pid, setup.pidfd = pid, pidfd
    else:
        setup.outer_pid = pid
        os.close(pidfd)


def _no_place(setup: Setup, error: OSError) -> Exception:
    """Tell of a cgroup that takes no process, in runc's words; clone3(2), EBUSY."""
    if setup.group_fd is None or error.errno != errno.EBUSY:
        return error
    from minirun.cgroups.hints import hint

    group = setup.exec_group or setup.group
    return MinirunError(
        f"error adding pid of {'exec' if setup.exec_group else 'init'} to cgroups: {group.path}: "
        "device or resource busy",
        cause=hint("cgroup.procs", error),
    )


def _answer(setup: Setup, answers: dict[str, Any]) -> None:
    """Answer the messages of the child until it is ready."""
    assert setup.channel is not None
    while True:
        message = setup.channel.receive()
        tag = message["tag"]
        if tag == "ready":
            sources.withdraw_help(setup)
            setup.notes += [note for note in message["notes"] if note not in setup.notes]
            setup.obstacle = tuple(message["obstacle"])
            return
        if tag == "init":
            adopt(setup, message["pid"])
        elif tag == "events":
            _keep_events(setup, message)
        elif tag == "listener":
            _pass_listener(setup, message["fd"])
        elif tag == "source":
            sources.help_with(setup, message["mount"], message["root"])
        elif tag == "joined" and not setup.pid:
            # The inner process may speak before the outer one has said its pid.
            adopt(setup, setup.channel.expect("init")["pid"])
            _follow_and_go(setup, answers[tag])
        else:
            _follow_and_go(setup, answers[tag])


def _pass_listener(setup: Setup, number: int) -> None:
    """Give the listener of the filter to the agent; then whoever loaded the filter may go on."""
    assert setup.channel is not None
    joining = setup.target_pid != 0
    # Of exec it is the process that will make the payload's: that one is not there yet.
    pid = setup.outer_pid if joining else setup.pid
    state = hooks.state_of(setup, "running" if joining else "creating")
    state["pid"] = setup.target_pid or setup.pid
    pidfd = process.pidfd_open(pid)
    try:
        syscallfilter.pass_listener(setup, pidfd, number, state, pid)
    finally:
        os.close(pidfd)
    setup.channel.send("go")


def _entered(setup: Setup) -> int:
    """Return the pid that the trampoline's clone(2) tells."""
    assert setup.channel is not None
    message = setup.channel.expect("report")
    if message["kind"] != "clone" or message["result"] < 0:
        raise channel.failed(setup.process.args, message["kind"], -message["result"])
    return int(message["result"])


def _follow_and_go(setup: Setup, steps: Any) -> None:
    assert setup.channel is not None
    follow("parent", steps, setup)
    try:
        setup.channel.send("go")
    except ChannelClosed:
        # It went on meanwhile, and failed: what it told is still to be read.
        while True:
            message = setup.channel.receive()
            if message["tag"] == "events":
                _keep_events(setup, message)


def adopt(setup: Setup, pid: int) -> None:
    """Take the inner process, our child by CLONE_PARENT, and let the outer one end."""
    pidfd = process.pidfd_open(pid)
    try:
        # Our child by CLONE_PARENT; any other number was not told by whom we made.
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        os.close(pidfd)
        raise MinirunError("the process that was told is not the container's") from None
    setup.pid, setup.pidfd = pid, pidfd
    _reap_outer(setup)


def _reap_outer(setup: Setup) -> None:
    if setup.outer_pid:
        os.waitpid(setup.outer_pid, 0)
        setup.outer_pid = 0


def _keep_events(setup: Setup, message: dict[str, Any]) -> None:
    if setup.events is None:
        return
    setup.remote_events += message["events"]
    if setup.tell is not None:
        for event in message["events"]:
            setup.tell(event)


def abandon(setup: Setup) -> None:
    """End the container's processes, which wait for us or have failed, and reap them."""
    if setup.channel is not None:
        setup.channel.close()
    if setup.pidfd >= 0:
        try:
            process.pidfd_send_signal(setup.pidfd, _SIGKILL)
        except ProcessLookupError:
            pass
        os.close(setup.pidfd)
        setup.pidfd = -1
    elif setup.group is not None:
        setup.group.kill()  # the inner process, if the outer one could not say its pid
    for pid in (setup.outer_pid, setup.pid):
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
    setup.outer_pid = setup.pid = 0
    _let_go(setup)


def _let_go(setup: Setup) -> None:
    """Close descriptors, as room for what the undoing opens: there may be no more (EMFILE)."""
    for kept in (setup.sources, setup.device_sources, setup.namespaces):
        while kept:
            os.close(kept.popitem()[1])
    for fd in (setup.fifo, setup.result):
        if fd >= 0:
            os.close(fd)
    setup.fifo = setup.result = -1


def _explain_oom(setup: Setup, error: BaseException) -> None:
    """Say it if the child fell silent because its memory limit is too low for it to begin."""
    if setup.group is None or not isinstance(error, ChannelClosed):
        return
    events = setup.group.get("memory.events") or ""
    if any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in events.splitlines()):
        raise MinirunError(
            "container init was OOM-killed (memory limit too low?)",
            fix="raise the memory limit",
        ) from None


def roll_back(setup: Setup) -> None:
    """Undo the parent's steps, the newest first."""
    while setup.undo:
        try:
            setup.undo.pop()()
        except (MinirunError, OSError) as error:
            setup.notes.append(f"could not be undone: {describe(error)}")
