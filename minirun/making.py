"""create and run: a bundle becomes a container."""

from __future__ import annotations

import os

from minirun import jsontext, log, parent, privilege, state
from minirun.errors import ConfigError, MinirunError
from minirun.launcher import require_sealed
from minirun.setup import Launch, Setup
from minirun.spec import Spec
from minirun.validate import validate
from minirun.validate_namespaces import is_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.spec import Process
    from minirun.state import Container

    Explain = Callable[[list[dict[str, Any]]], None]

CONFIG = "config.json"


def read_bundle(bundle: str, config: str = CONFIG) -> tuple[str, Spec, bytes]:
    """Read and check a bundle; return its absolute path, the specification and its text."""
    path = os.path.realpath(bundle)
    if not os.path.isdir(path):
        raise MinirunError(f"bundle {path} is not a directory")
    try:
        text = jsontext.read_bytes(os.path.join(path, config), config)
    except FileNotFoundError:
        raise MinirunError(
            f"JSON specification file {config} not found in {path}",
            fix="minirun spec writes one; minirun run --rootfs NAME needs none",
        ) from None
    return path, Spec.decode(jsontext.loads(text, config)), text


def prepare(cid: str, launch: Launch) -> tuple[Setup, bytes]:
    """Make the set-up record of a bundle: what create follows and the plan prints."""
    bundle, spec, text = read_bundle(launch.bundle, launch.config)
    notes = validate(spec)
    if spec.process is None:
        raise ConfigError("process", "is required")
    if spec.root is None:
        raise ConfigError("root", "is required")
    setup = Setup(cid, spec, _activated(spec.process, launch), bundle, launch)
    setup.notes += notes
    setup.own_mounts = is_private(spec, "mount")
    if not setup.own_mounts and launch.no_pivot:
        # It would move the container's root over the host's.
        raise MinirunError("--no-pivot needs a mount namespace in linux.namespaces")
    if not privilege.host_root():
        from minirun import validate_rootless

        setup.unprivileged = True
        setup.setgroups_denied = privilege.setgroups_denied()
        validate_rootless.validate(spec)
    setup.root_path = os.path.realpath(os.path.join(bundle, spec.root.path))
    if not os.path.isdir(setup.root_path):
        raise ConfigError("root.path", f"{setup.root_path} is not a directory")
    if setup.root_path == "/" and not setup.own_mounts:
        raise ConfigError("root.path", "/ needs a mount namespace in linux.namespaces")
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
    for index, fd in enumerate(launch.passed_fds):
        try:
            theirs = os.get_inheritable(fd)
        except OSError:
            theirs = False
        if not theirs:  # not there; or one of ours, such as the log's, that has taken its number
            which = f"{index} (of {len(launch.passed_fds)}), descriptor {fd}"
            raise MinirunError(f"unable to stat preserved-fd {which}: bad file descriptor")


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


def begin(root: str, cid: str, launch: Launch, events: bool) -> tuple[Container, Setup]:
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
        if os.environ.get("NOTIFY_SOCKET"):
            from minirun import notifysocket  # engines' containers do without

            notifysocket.prepare(container, setup)
        container.save(
            oci_version=setup.spec.oci_version,
            bundle=setup.bundle,
            rootfs=setup.root_path,
            created=state.now(),
            owner=privilege.owner_of(os.geteuid()),
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
    container, setup = begin(root, cid, launch, events=False)
    with container:
        try:
            for name in (state.FIFO, state.RESULT):
                os.mkfifo(name, 0o600, dir_fd=container.dirfd)
            # Both ends at once: the child never meets the end of file, and waits.
            setup.fifo = _open_fifo(container, state.FIFO)
            setup.result = _open_fifo(container, state.RESULT)
        except BaseException:
            parent.roll_back(setup)
            raise
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
    container, setup = begin(root, cid, launch, events=explain is not None)
    with container:
        console = proxy = None
        try:
            if setup.process.terminal:
                from minirun.foreground import console_of

                console = console_of(setup)
            if os.environ.get("NOTIFY_SOCKET"):
                from minirun.notifysocket import open_proxy

                proxy = open_proxy(container)
            parent.create(setup, meanwhile=_load_running)
        except BaseException:
            parent.roll_back(setup)  # where `parent.create` has not done it
            if explain is not None:
                explain(events_of(setup))  # what was done until it failed
            raise
        from minirun import running

        return running.run(container, setup, console, proxy, keep=keep, explain=explain)


def _load_running() -> None:
    """Load what comes after, while the container's process is made on another processor."""
    import minirun.running  # noqa: F401


def events_of(setup: Setup) -> list[dict[str, Any]]:
    """Put the events of the processes in the order of the recipe's stages."""
    from minirun.recipe import stages_of
    from minirun.step import name_of

    order = [(stage, name_of(step)) for stage, steps in stages_of(setup) for step in steps]
    ours = [event.encode() for event in setup.events or []]
    return sorted(
        [*ours, *setup.remote_events],
        key=lambda event: order.index((event["stage"], event["step"])),
    )
