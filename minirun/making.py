"""create and run: a bundle becomes a container."""

from __future__ import annotations

import os

from minirun import ending, foreground, jsontext, log, notifysocket, parent, state
from minirun.container import owner_of
from minirun.errors import ConfigError, MinirunError
from minirun.kernel import process
from minirun.launcher import require_sealed
from minirun.setup import Launch, Setup
from minirun.spec import Spec
from minirun.starting import poststart
from minirun.validate import validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.foreground import Watch
    from minirun.notifysocket import Proxy
    from minirun.spec import Process
    from minirun.state import Container

    Explain = Callable[[list[dict[str, Any]]], None]

CONFIG = "config.json"


def read_bundle(bundle: str) -> tuple[str, Spec, bytes]:
    """Read and check a bundle; return its absolute path, the specification and its text."""
    path = os.path.realpath(bundle)
    if not os.path.isdir(path):
        raise MinirunError(f"bundle {path} is not a directory")
    try:
        text = jsontext.read_bytes(os.path.join(path, CONFIG), CONFIG)
    except FileNotFoundError:
        raise MinirunError(
            f"JSON specification file {CONFIG} not found in {path}",
            fix="minirun spec writes one; minirun run --rootfs NAME needs none",
        ) from None
    return path, Spec.decode(jsontext.loads(text, CONFIG)), text


def prepare(cid: str, launch: Launch) -> tuple[Setup, bytes]:
    """Make the set-up record of a bundle: what create follows and the plan prints."""
    bundle, spec, text = read_bundle(launch.bundle)
    notes = validate(spec)
    if spec.process is None:
        raise ConfigError("process", "is required")
    if spec.root is None:
        raise ConfigError("root", "is required")
    setup = Setup(cid, spec, _activated(spec.process, launch), bundle, launch)
    setup.notes += notes
    setup.root_path = os.path.realpath(os.path.join(bundle, spec.root.path))
    if not os.path.isdir(setup.root_path):
        raise ConfigError("root.path", f"{setup.root_path} is not a directory")
    check_streams(setup)
    return setup, text


def _activated(process: Process, launch: Launch) -> Process:
    """Tell the payload of the sockets that it is given, as process 1: sd_listen_fds(3)."""
    if not launch.listen_fds:
        return process
    return process.replace(env=(*process.env, f"LISTEN_FDS={launch.listen_fds}", "LISTEN_PID=1"))


def check_streams(setup: Setup) -> None:
    launch = setup.launch
    if launch.detach and setup.process.terminal and launch.console_socket is None:
        raise MinirunError("cannot allocate tty if runc will detach without setting console socket")
    if launch.console_socket is not None and not (launch.detach and setup.process.terminal):
        raise MinirunError("cannot use console socket if runc will not detach or allocate tty")
    for fd in launch.passed_fds:
        try:
            os.fstat(fd)
        except OSError as error:
            strerror = (error.strerror or "").lower()
            raise MinirunError(f"unable to stat preserved-fd {fd}: {strerror}") from None


def tell_steps(setup: Setup) -> None:
    """With --debug, have each step told in the log once it is taken."""
    if log.debugging():
        setup.events = []
        setup.tell = log.step


def needs_seal(spec: Spec) -> bool:
    """Whether Python will be where the container's programs, or others, can look at it."""
    shared = any(entry.type == "pid" and entry.path for entry in spec.linux.namespaces)
    own = any(entry.type == "pid" for entry in spec.linux.namespaces)
    return shared or not own or bool(spec.hooks.start_container)


def absolute(launch: Launch) -> None:
    """Make the caller's paths absolute."""
    for name in ("pid_file", "console_socket", "pidfd_socket"):
        path = getattr(launch, name)
        if path is not None:
            setattr(launch, name, os.path.abspath(path))


def _begin(root: str, cid: str, launch: Launch, events: bool) -> tuple[Container, Setup]:
    """Claim the ID, create the container's process, and leave it waiting."""
    state.check_id(cid)
    absolute(launch)
    setup, text = prepare(cid, launch)
    if needs_seal(setup.spec):
        require_sealed()
    if events:
        setup.events = []
    tell_steps(setup)
    container = state.reserve(root, cid)
    try:
        setup.container = container
        setup.undo.append(container.remove)
        container.write_file(CONFIG, text)
        notifysocket.prepare(container, setup)
        container.save(
            oci_version=setup.spec.oci_version,
            bundle=setup.bundle,
            rootfs=setup.root_path,
            created=state.now(),
            owner=owner_of(os.geteuid()),
            annotations=setup.spec.annotations,
        )
    except BaseException:
        container.remove()
        container.close()
        raise
    return container, setup


def create(root: str, cid: str, launch: Launch) -> None:
    """See `container.create`."""
    launch.detach = True
    container, setup = _begin(root, cid, launch, events=False)
    with container:
        for name in (state.FIFO, state.RESULT):
            os.mkfifo(name, 0o600, dir_fd=container.dirfd)
        # Both ends at once: the child never meets the end of file, and waits.
        setup.fifo = _open_fifo(container, state.FIFO)
        setup.result = _open_fifo(container, state.RESULT)
        parent.create(setup)
        if any(setup.obstacle):
            container.save(obstacle=setup.obstacle)  # for `start`, if execve fails there


def _open_fifo(container: Container, name: str) -> int:
    return os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=container.dirfd)


def run(
    root: str,
    cid: str,
    launch: Launch,
    *,
    detach: bool = False,
    keep: bool = False,
    explain: Explain | None = None,
) -> int:
    """See `container.run`."""
    launch.detach = detach
    container, setup = _begin(root, cid, launch, events=explain is not None)
    with container:
        master = console_of(setup)
        try:
            proxy = notifysocket.open_proxy(container)
            parent.create(setup)
        except BaseException:
            if explain is not None:
                explain(_events(setup))  # what was done until it failed
            raise
        try:
            with foreground.Signals() as caught:
                parent.release(setup)
                poststart(setup)
                _unlock(container)
                if explain is not None:
                    explain(_events(setup))
                launch.notes = setup.notes
                if detach:
                    if proxy is not None:
                        proxy.wait(setup.pid, setup.pidfd)
                    return 0
                status = attend(setup, master, caught, proxy)
        except BaseException:
            _destroy(container, setup)
            raise
        launch.notes += oom_notes(setup, status)
        if not keep:
            ending.finish(container, setup)
    return status


def console_of(setup: Setup) -> Any:
    """For a foreground terminal: keep one end of a socket, give the child the other."""
    if not setup.process.terminal or setup.launch.console_socket is not None:
        return None
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    setup.console = theirs.detach()
    setup.console_size = foreground.size_of(0) or foreground.size_of(1)
    return ours


def attend(
    setup: Setup, console: Any, caught: foreground.Signals, proxy: Proxy | None = None
) -> int:
    """Stay with the payload until it ends; return its exit status."""
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    if console is None:
        return _watch(foreground.Watch(setup.pid, setup.pidfd, -1, caught), proxy)
    from minirun.unixsocket import receive_fd

    master = receive_fd(console)
    console.close()
    with foreground.Terminal(0):
        return _watch(foreground.Watch(setup.pid, setup.pidfd, master, caught), proxy)


def _watch(watch: Watch, proxy: Proxy | None) -> int:
    if proxy is not None:
        # The manager's process is this one: it stays as long as the service.
        watch.listen(proxy.fileno(), lambda: proxy.take(os.getpid()))
    return watch.run()


def _unlock(container: Container) -> None:
    os.close(container.lockfd)
    container.lockfd = -1


def _destroy(container: Container, setup: Setup) -> None:
    """End a container that could not be started."""
    if setup.pidfd >= 0:
        try:
            process.pidfd_send_signal(setup.pidfd, 9)
        except ProcessLookupError:
            pass
        try:
            os.waitpid(setup.pid, 0)
        except ChildProcessError:
            pass
    if container.lockfd < 0:
        container.lock()
    ending.destroy(container)


def _events(setup: Setup) -> list[dict[str, Any]]:
    """Put the events of the processes in the order of the recipe's stages."""
    from minirun.recipe import CREATE
    from minirun.step import name_of

    order = [(stage, name_of(function)) for stage, steps in CREATE for function in steps]
    ours = [event.encode() for event in setup.events or []]
    return sorted(
        [*ours, *setup.remote_events],
        key=lambda event: order.index((event["stage"], event["step"])),
    )


def oom_notes(setup: Setup, status: int) -> list[str]:
    """Say what the exit status hides: that the kernel killed for want of memory."""
    if setup.group is None:
        return []
    events = dict(
        line.split() for line in (setup.group.get("memory.events") or "").splitlines() if line
    )
    if int(events.get("oom_kill", "0")) == 0:
        return []
    limit = (setup.group.get("memory.max") or "max").strip()
    shown = f"{int(limit) / (1 << 20):g} MiB" if limit.isdigit() else "no limit of its own"
    end = f"exit status {status}" if status != 137 else "exit status 137 is signal 9, KILL"
    return [
        f"container {setup.cid} was OOM-killed: it reached its memory limit of {shown} "
        f"({events['oom_kill']} process{'es' if events['oom_kill'] != '1' else ''} killed; {end})"
    ]
