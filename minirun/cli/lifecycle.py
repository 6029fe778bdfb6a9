"""create, start, run, state, kill, delete, pause, resume: one call each."""

from __future__ import annotations

import os

from minirun import container, jsontext, log
from minirun import state as states
from minirun.cli import write
from minirun.cli.place import container_id, state_root
from minirun.cli.wrap import wrapped
from minirun.errors import DoesNotExist, MinirunError, StateError
from minirun.privilege import rootless
from minirun.setup import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.grammar import Options

    Explain = Callable[[list[dict[str, Any]]], None]
    Sources = dict[str, tuple[int, int]]
    Launcher = Callable[[Options, str, Sources], int]

MANAGED = "run.minirun.managed"  # the annotation of the bundles that minirun.engine writes


def launch_of(options: Options, bundle: str, sources: Sources) -> Launch:
    """Gather the launch flags of `create` and `run`. Raises MinirunError."""
    launch = Launch(
        bundle,
        config=options.config or "config.json",
        console_socket=options.console_socket,
        pid_file=options.pid_file,
        pidfd_socket=options.pidfd_socket,
        no_pivot=options.no_pivot,
        no_new_keyring=options.no_new_keyring,
        preserve_fds=preserve_fds(options),
        listen_fds=listen_fds(),
        detach=options.verb == "create" or options.detach,
        systemd_cgroup=options.systemd_cgroup,
        no_cgroup=options.cgroup_manager == "disabled",
        rootless=rootless(options.rootless),
    )
    launch.sources = sources
    return launch


def preserve_fds(options: Options) -> int:
    """Return how many more descriptors are passed on. Raises MinirunError if negative."""
    count = int(options.preserve_fds)
    if count < 0:
        raise MinirunError(f"invalid number of file descriptors to preserve: {count}")
    return count


def listen_fds() -> int:
    """Return how many sockets a service manager has given to this process (sd_listen_fds(3))."""
    # Those of another process, whose environment we have, are not ours to pass on.
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 6 else 0


@wrapped("create failed")
def create(options: Options) -> int:
    """`minirun create`; with --rootfs the bundle is written first, and `delete` removes it."""
    return _with_bundle(options, keep=True, launch=_create)


def _create(options: Options, bundle: str, sources: Sources) -> int:
    launch = launch_of(options, bundle, sources)
    container.create(state_root(options), container_id(options), launch)
    return 0


@wrapped("run failed")
def run(options: Options) -> int:
    """`minirun run`; the exit status is the container's."""
    return _with_bundle(options, keep=options.detach or options.keep, launch=_run)


def _run(options: Options, bundle: str, sources: Sources) -> int:
    launch = launch_of(options, bundle, sources)
    launch.silent = options.rootfs is not None and options.detach
    explain: Explain | None = None
    if options.explain:
        from minirun.cli.explain import show

        explain = show
    status = container.run(
        state_root(options),
        container_id(options),
        launch,
        detach=options.detach,
        keep=options.keep,
        explain=explain,
    )
    for note in launch.notes:
        log.warning(note, always=options.rootfs is not None)
    return status


def _with_bundle(options: Options, *, keep: bool, launch: Launcher) -> int:
    """Call `launch` with the bundle; one that is written for this is removed unless it stays."""
    if options.rootfs is None:
        return launch(options, options.bundle or ".", {})
    from minirun.engine import bundle  # engines never come here

    prepared = bundle.prepare(options, container_id(options), options.args[1:])
    for note in prepared.notes:
        log.warning(note)
    try:
        status = launch(options, prepared.bundle, prepared.sources)
    except BaseException:
        bundle.discard(prepared.bundle, prepared.identity)
        raise
    if not keep:
        bundle.discard(prepared.bundle, prepared.identity)
    return status


def start(options: Options) -> int:
    """`minirun start`."""
    container.start(state_root(options), container_id(options))
    return 0


def state(options: Options) -> int:
    """`minirun state`."""
    found = container.state(state_root(options), container_id(options))
    return write(jsontext.dumps(found, "  ") + "\n")


def kill(options: Options) -> int:
    """`minirun kill`."""
    root = state_root(options)
    number = signal_number(options.args[1] if len(options.args) > 1 else "SIGTERM")
    return _each(options, root, lambda cid: container.kill(root, cid, number, options.all))


def delete(options: Options) -> int:
    """`minirun delete`, with the bundle if minirun wrote it."""
    root = state_root(options)
    return _each(options, root, lambda cid: _delete(options, root, cid))


def _each(options: Options, root: str, work: Callable[[str], None]) -> int:
    """Do it to the container that is named, or with --regex to each whose ID matches somewhere.

    One of several that fails is told of and the others are gone on with; the status is then 1.
    """
    if not options.regex:
        work(container_id(options))
        return 0
    import re

    try:
        pattern = re.compile(options.args[0])
    except re.error as error:
        raise MinirunError(f"invalid regular expression {options.args[0]!a}: {error}") from error
    status = 0
    for cid in filter(pattern.search, states.names(root)):
        try:
            work(cid)
        except (MinirunError, OSError) as error:
            log.warning(f"container {cid}: {error}", always=True)
            status = 1
    return status


def _delete(options: Options, root: str, cid: str) -> None:
    found = _before_delete(root, cid, forgiving=options.force)
    if found and MANAGED not in found.get("annotations", {}):
        container.delete(root, cid, options.force)
        return  # an engine's; the modules that follow are not its to wait for
    from minirun.engine import bundle

    # Before: once the ID is free it may soon have another bundle.
    identity = bundle.identity_of(found["bundle"]) if found else None
    container.delete(root, cid, options.force)
    if not found:
        # What a `run --rootfs` left that was killed before it had a state.
        bundle.discard_leftover(cid, options.root)
    elif identity and bundle.managed(found["annotations"], found["bundle"]):
        bundle.discard(found["bundle"], identity)


def _before_delete(root: str, cid: str, *, forgiving: bool) -> dict[str, Any]:
    """Read the state that is about to go; {} when there is none, or none that can be read."""
    try:
        return container.state(root, cid)
    except DoesNotExist:
        return {}
    except StateError:
        if forgiving:
            return {}
        raise


def pause(options: Options) -> int:
    """`minirun pause`."""
    container.pause(state_root(options), container_id(options))
    return 0


def resume(options: Options) -> int:
    """`minirun resume`."""
    container.resume(state_root(options), container_id(options))
    return 0


def signal_number(text: str) -> int:
    """Read a signal: a number from 0 to 64, or a name with or without SIG (RTMIN+1 as well).

    0 asks whether the process is there. Raises MinirunError.
    """
    # The C part of `signal`, whose enums cost 25 ms.
    import _signal  # type: ignore[import-not-found]

    if text.isascii() and text.isdigit():
        number = int(text[:4])
        if number <= 64 and len(text) <= 3:
            return number
    name = text.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+" if "+" in name else "-")
    if sign and base in ("RTMIN", "RTMAX") and offset.isascii() and offset.isdigit():
        edge = int(getattr(_signal, f"SIG{base}"))
        number = edge + int(sign + offset[:3])
        if _signal.SIGRTMIN <= number <= _signal.SIGRTMAX:
            return number
    # Not every name in the module that begins with SIG is a signal: SIG_BLOCK is none.
    if name.isascii() and name.isalnum() and hasattr(_signal, f"SIG{name}"):
        return int(getattr(_signal, f"SIG{name}"))
    raise MinirunError(
        f'unknown signal "{text}"', fix="TERM, KILL and the like, or a number: kill -l"
    )
