"""The container's side: the process that joins and unshares, and the one that becomes the payload.

Both are forks of the parent. Before the first namespace is entered the interpreter is locked down:
all that is used later is loaded, and nothing can be imported any more, because from the change of
root on the files at the host's paths are the container's. A traceback alone would open them (its
source lines, their coding cookies): errors are told as text over the channel.
"""

from __future__ import annotations

import codecs
import gc
import os
import sys

from minirun import recipe, sync
from minirun.channel import Channel, ChannelClosed
from minirun.errors import MinirunError, StepFailed, describe
from minirun.kernel import process, resource
from minirun.step import follow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from minirun.setup import Setup

_FAILED = 1


def lock_down(setup: Setup) -> None:
    """Make the interpreter unable to load anything more."""
    # The other encodings of ours (ASCII, Latin-1) the interpreter does without looking them up.
    codecs.lookup("utf-8")
    # Used lazily by the interpreter or by us: encoding a message, sending a terminal.
    import _json  # noqa: F401

    if setup.process.terminal or setup.helper >= 0:
        import _socket  # noqa: F401 - 1.5 ms
    if any("tmpcopyup" in entry.options for entry in setup.spec.mounts):
        import minirun.copyup  # noqa: F401

    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.tracebacklimit = 0
    sys.excepthook = _tell_plainly
    sys.unraisablehook = _ignore_unraisable
    gc.disable()


def _tell_plainly(kind: Any, value: Any, _trace: Any) -> None:
    os.write(2, f"minirun: {kind.__name__}: {value!r}\n".encode("ascii", "replace"))


def _ignore_unraisable(_what: Any) -> None:
    pass


def run_outer(setup: Setup, channel: Channel) -> NoReturn:
    """Be the outer process: make the namespaces and the inner process in them, then end.

    Where one process can be both (`Setup.direct`), be the inner one then.
    """
    setup.channel = channel
    setup.events = None if setup.events is None else []
    setup.tell = None  # the log is the parent's
    try:
        protect(setup)
        lock_down(setup)
        if setup.direct:
            follow("inner", recipe.OUTER, setup)
            run_inner(setup, recipe.INNER, recipe.ENTER, recipe.START)
        follow("outer", recipe.OUTER, setup)
        pid, _pidfd = process.clone3(process.CLONE_PARENT)
        if pid == 0:
            setup.events = None if setup.events is None else []
            run_inner(setup, recipe.INNER, recipe.ENTER, recipe.START)
        channel.send("init", {"pid": pid})
        sync.send_events(setup)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - told to the parent; nothing may unwind further
        fail(setup, error)


def run_inner(setup: Setup, *stages: Any) -> NoReturn:
    """Be the inner process: follow the stages, then become the payload."""
    try:
        for stage in stages:
            follow("inner", stage, setup)
    except BaseException as error:  # noqa: BLE001 - see run_outer
        fail(setup, error)
    os._exit(_FAILED)


def protect(setup: Setup) -> None:
    """Be no target: nothing of the host held, not to be traced or dumped, named for ps."""
    # The lock above all: flock(2) is the open file's, which we share with the parent.
    process.close_all_but(setup.descriptors())
    process.prctl(process.PR_SET_DUMPABLE, 0)
    setup.core_limit = resource.limits("RLIMIT_CORE")
    resource.prlimit(0, "RLIMIT_CORE", 0, setup.core_limit[1])
    process.set_name(f"minirun:{setup.cid}"[:15])
    # Mount points and the working directory are the container's to use; ours was for our files.
    os.umask(0o022)


def fail(setup: Setup, error: BaseException) -> NoReturn:
    """Tell the parent, or the waiting `start`, what went wrong, and end."""
    try:
        _tell(setup, error)
    finally:
        os._exit(_FAILED)


def _tell(setup: Setup, error: BaseException) -> None:
    assert setup.channel is not None
    if isinstance(error, ChannelClosed):
        return
    cause = error.error if isinstance(error, StepFailed) else error
    payload = {
        "message": describe(error),
        "errno": getattr(cause, "errno", None) or 0,
        "cause": error.cause if isinstance(error, MinirunError) else "",
        "fix": error.fix if isinstance(error, MinirunError) else "",
    }
    if setup.let_go and setup.result >= 0:
        Channel(-1, setup.result).send("error", payload)  # to `start`: create has ended
        return
    sync.send_events(setup)
    setup.channel.send("error", payload)


def run_joining(setup: Setup, channel: Channel) -> NoReturn:
    """Be the process of exec: join the container and become the program that enters it."""
    setup.channel = channel
    setup.events = None if setup.events is None else []
    setup.tell = None
    try:
        protect(setup)
        lock_down(setup)
        follow("outer", recipe.EXEC, setup)
    except BaseException as error:  # noqa: BLE001 - see run_outer
        fail(setup, error)
    os._exit(_FAILED)
