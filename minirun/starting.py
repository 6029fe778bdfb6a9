"""start: the word for which a created container waits."""

from __future__ import annotations

import errno
import os
import select
import stat

from minirun import notifysocket, state
from minirun.channel import WORD, Channel
from minirun.errors import MinirunError, StateError
from minirun.kernel import process
from minirun.setup import Launch, Setup
from minirun.spec import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.state import Container

_SIGKILL = 9
_REFUSED = {
    "running": "cannot start an already running container",
    "stopped": "cannot start a container that has stopped",
}


def start(root: str, cid: str) -> None:
    """See `container.start`."""
    with state.load(root, cid, lock=True) as container:
        status = container.status()
        if status != "created":
            message = _REFUSED.get(status, f"cannot start a container in the {status} state")
            ended = status == "stopped"
            raise StateError(
                message, fix=f"minirun delete {cid}, and create it anew" if ended else ""
            )
        spec = container.spec
        setup = Setup(cid, spec, spec.process or Process(), container.saved.bundle, Launch())
        setup.pid, setup.pidfd = container.saved.pid, container.pidfd()
        try:
            proxy = notifysocket.open_proxy(container)
            _release(container, setup)
            try:
                poststart(setup)
            except MinirunError:
                # spec: "stop the container, and continue the lifecycle at step 12", its removal.
                from minirun import ending

                ending.end(container)
                ending.destroy(container)
                raise
            # The lock is for what changes the container: the service may take its time.
            container.close()
            if proxy is not None:
                proxy.wait(setup.pid, setup.pidfd)
        finally:
            os.close(setup.pidfd)


def poststart(setup: Setup) -> None:
    """Run the poststart hooks; where one fails the container's process is killed."""
    found = setup.spec.hooks.poststart
    if not found:
        return
    from minirun import hooks

    try:
        hooks.run_all("poststart", found, hooks.state_of(setup, "running"), setup.bundle)
    except MinirunError:
        try:
            process.pidfd_send_signal(setup.pidfd, _SIGKILL)
        except ProcessLookupError:
            pass
        raise


def _release(container: Container, setup: Setup) -> None:
    """Send the word and wait until execve, which closes the child's end, or its error."""
    result = _open(container, state.RESULT, os.O_RDONLY)
    try:
        fifo = _open(container, state.FIFO, os.O_WRONLY)
        try:
            os.write(fifo, WORD)
        finally:
            os.close(fifo)
        os.unlink(state.FIFO, dir_fd=container.dirfd)
        os.set_blocking(result, True)
        cause, fix = (*container.saved.obstacle, "", "")[:2]
        _await_exec(result, setup.pidfd, setup.process.args, (cause, fix))
    finally:
        os.close(result)
    os.unlink(state.RESULT, dir_fd=container.dirfd)


def _open(container: Container, name: str, flags: int) -> int:
    # O_NONBLOCK: to write fails with ENXIO where nobody reads, instead of waiting for ever.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, dir_fd=container.dirfd)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            raise StateError("cannot start a container that has stopped") from None
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise StateError(f"container {container.id} has no usable state: {name} is not a FIFO")
    return fd


def _await_exec(result: int, pidfd: int, args: tuple[str, ...], obstacle: tuple[str, str]) -> None:
    poller = select.poll()
    poller.register(result, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    poller.poll()
    Channel(result, -1).await_payload(args, obstacle)
