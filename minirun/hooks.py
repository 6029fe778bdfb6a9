"""Hooks of config.json (config.md, "POSIX-platform Hooks").

A hook gets the container's state as JSON on its standard input, its own `env` and nothing else
(CVE-2025-23266: the payload's environment must never reach a hook of the host's), descriptors 0 to
2 only, and a process group that is killed as a whole when its timeout ends. A startContainer hook
is the container's: where it has no `env` it has the payload's environment, as in runc.
"""

from __future__ import annotations

import os
import select

from minirun import jsontext, log
from minirun.errors import MinirunError
from minirun.kernel import capability, process, resource, seccomp
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from minirun.setup import Setup
    from minirun.spec import Hook

_OUTPUT_SHOWN = 4096
_NOT_STARTED = 127
_SIGKILL = 9
_TICK = 10  # milliseconds
_LONGEST = (1 << 31) - 1  # milliseconds that poll(2) can wait


def state_of(setup: Setup, status: str) -> dict[str, Any]:
    """Make the state that hooks are given (runtime.md, "State")."""
    state: dict[str, Any] = {
        "ociVersion": setup.spec.oci_version,
        "id": setup.cid,
        "status": status,
        "pid": setup.pid or os.getpid(),
        "bundle": setup.bundle,
    }
    if setup.spec.annotations:
        state["annotations"] = setup.spec.annotations
    return state


class Inside:
    """What a hook that is the container's file has of the payload: environment, limits, filter."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.environment = setup.environment

    def confine(self) -> None:
        """In the hook's process: take the payload's limits and filter."""
        for one in self.setup.process.rlimits:
            resource.prlimit(0, one.type, one.soft, one.hard)
        # A filter with a listener is there already: a hook inherits it.
        loaded, profile = self.setup.filter, self.setup.spec.linux.seccomp
        if profile is None or profile.notifies:
            return
        if self.setup.last_caps is not None:
            left, inheritable, lower = self.setup.last_caps
            if lower:
                which = (capability.AMBIENT_LOWER, capability.CAP_SYS_ADMIN)
                process.prctl(process.PR_CAP_AMBIENT, *which)
            capability.capset(left, left, inheritable)
        seccomp.set_mode_filter(loaded.program, loaded.flags)


def run_all(
    kind: str,
    hooks: Sequence[Hook],
    state: dict[str, Any],
    cwd: str | int | None,
    inside: Inside | None = None,
) -> None:
    """Run the hooks in order; the first that fails ends it with an error that shows its output."""
    for number, hook in enumerate(hooks):
        run_one(f"{kind} hook #{number}", hook, state, cwd, inside)


def run_one(
    name: str,
    hook: Hook,
    state: dict[str, Any],
    cwd: str | int | None,
    inside: Inside | None = None,
) -> None:
    """Run one hook and wait for it; of one of the container's `inside` tells what it has of it.

    Raises MinirunError if it cannot be started, fails, or outlives its timeout (seconds).
    """
    # Files in memory instead of pipes: a hook that does not read, or leaves a daemon behind that
    # holds its output open, blocks nobody.
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        os.write(stdin, jsontext.dumps(state).encode())
        os.lseek(stdin, 0, os.SEEK_SET)
        # Inside, the payload's filter may be in force, and know neither clone3 nor pidfd_open.
        pid, pidfd = process.clone3(0) if inside is None else (os.fork(), -1)
        if pid == 0:
            _become(hook, stdin, output, cwd, inside)
        try:
            status = _wait(pid, pidfd, hook.timeout)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        _judge(f"{name}: {hook.path}", status, hook, output)
    finally:
        os.close(stdin)
        os.close(output)


def _become(
    hook: Hook, stdin: int, output: int, cwd: str | int | None, inside: Inside | None
) -> None:
    """In the child: become the hook; never returns."""
    try:
        os.setpgid(0, 0)
        if cwd is not None:
            os.chdir(cwd)
        os.umask(0o022)
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        argv = process.string_array([os.fsencode(arg) for arg in hook.args or (hook.path,)])
        given = [os.fsencode(entry) for entry in hook.env or ()]
        if hook.env is None and inside is not None:
            given = inside.environment
        envp = process.string_array(given)
        process.reset_signals()
        process.close_range(3)
        if inside is not None:
            inside.confine()
        process.execve(os.fsencode(hook.path), argv, envp)
    except (OSError, ValueError) as error:
        os.write(2, f"{getattr(error, 'strerror', None) or error}".lower().encode())
    finally:
        os._exit(_NOT_STARTED)


def _wait(pid: int, pidfd: int, timeout: int | None) -> int | None:
    """Wait for the hook; None if its time ended and it was killed with its group."""
    try:
        late = bool(timeout) and not _ends_within(pid, pidfd, min((timeout or 0) * 1000, _LONGEST))
        if not late:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:  # we are told to end
        _kill(pid)
        raise
    _kill(pid)
    return None


def _kill(pid: int) -> None:
    """Kill a hook with its process group, and reap it."""
    # Not reaped yet, so the group's number cannot be another's.
    try:
        os.killpg(pid, _SIGKILL)
    except ProcessLookupError:
        pass  # it has gone to another group, as the last of its own
    os.kill(pid, _SIGKILL)
    os.waitpid(pid, 0)


def _ends_within(pid: int, pidfd: int, milliseconds: int) -> bool:
    """Wait for a child's end without reaping it; without a pidfd by looking now and then."""
    poller = select.poll()
    if pidfd >= 0:
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(milliseconds))
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_PID, pid, options)) is None and milliseconds > 0:
        poller.poll(_TICK)
        milliseconds -= _TICK
    return ended is not None


def _judge(name: str, status: int | None, hook: Hook, output: int) -> None:
    if status == 0:
        return
    said = os.pread(output, _OUTPUT_SHOWN, 0).decode("utf-8", "replace").strip()
    if status is None:
        raise MinirunError(f"error running {name}: no end after {hook.timeout} s")
    problem = f"exit status {status}" if status >= 0 else f"signal {-status}: {_meaning(-status)}"
    raise MinirunError(f"error running {name}: {problem}" + (f", output: {said}" if said else ""))


def _meaning(number: int) -> str:
    import _signal  # type: ignore[import-not-found]  # loaded with the interpreter

    return str(_signal.strsignal(number) or "unknown").lower()


def run_poststop(setup: Setup) -> None:
    """Run the poststop hooks; one that fails is told of and does not stop the others."""
    state = {**state_of(setup, "stopped"), "pid": 0}
    cwd = setup.bundle if os.path.isdir(setup.bundle) else "/"
    for number, hook in enumerate(setup.spec.hooks.poststop):
        try:
            run_one(f"poststop hook #{number}", hook, state, cwd)
        except MinirunError as error:
            # spec: runtime.md, "Lifecycle", "the runtime MUST log a warning"; runc does so too.
            log.warning(error.message, always=True)


def _names(kind: str) -> Any:
    return lambda setup: [hook.path for hook in getattr(setup.spec.hooks, kind)]


def _to_undo(setup: Setup) -> bool:
    hooks = setup.spec.hooks
    makers = hooks.prestart or hooks.create_runtime or hooks.create_container
    return bool(hooks.poststop and makers)


@step(_to_undo)
def undo_by_poststop(setup: Setup) -> None:
    """Have poststop hooks undo what other hooks make, should the creation fail"""
    # runtime.md, "Lifecycle": after a hook that fails it goes on with the poststop hooks.
    setup.undo.append(lambda: run_poststop(setup))


@step(_names("prestart"), details=_names("prestart"))
def prestart(setup: Setup) -> None:
    """Run the prestart hooks"""
    run_all("prestart", setup.spec.hooks.prestart, state_of(setup, "creating"), setup.bundle)


@step(_names("create_runtime"), details=_names("create_runtime"))
def create_runtime(setup: Setup) -> None:
    """Run the createRuntime hooks"""
    hooks = setup.spec.hooks.create_runtime
    run_all("createRuntime", hooks, state_of(setup, "creating"), setup.bundle)


@step(_names("create_container"), details=_names("create_container"))
def create_container(setup: Setup) -> None:
    """Run the createContainer hooks, in the container's namespaces"""
    hooks = setup.spec.hooks.create_container
    # In the container's root, as in runc: hooks mount on ./lib what the container shall have there.
    run_all("createContainer", hooks, state_of(setup, "creating"), setup.rootfd)


@step(_names("start_container"), details=_names("start_container"))
def start_container(setup: Setup) -> None:
    """Run the startContainer hooks, as the payload"""
    hooks = setup.spec.hooks.start_container
    state = state_of(setup, "created")
    run_all("startContainer", hooks, state, None, Inside(setup))
