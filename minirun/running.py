"""run: the container that was made is let go, stayed with until it ends, and removed."""

from __future__ import annotations

import os

from minirun import ending, foreground, parent
from minirun.kernel import process
from minirun.making import events_of
from minirun.starting import poststart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.making import Explain
    from minirun.notifysocket import Proxy
    from minirun.setup import Setup
    from minirun.state import Container


def run(
    container: Container,
    setup: Setup,
    console: Any,
    proxy: Proxy | None,
    *,
    keep: bool,
    explain: Explain | None,
) -> int:
    """Release the container's process and, unless detached, await it; return its exit status.

    `console` is the socket on which its terminal comes, of `foreground.console_of`, or None;
    `proxy` passes on what the container tells the caller's manager. The container is removed in
    the end unless it is detached or to be kept.
    """
    try:
        with foreground.Signals() as caught:
            parent.release(setup)
            poststart(setup)
            unlock(container)
            if explain is not None:
                explain(events_of(setup))
            setup.launch.notes = setup.notes
            if setup.launch.detach:
                if proxy is not None:
                    proxy.wait(setup.pid, setup.pidfd)
                return 0
            status = foreground.attend(setup, console, caught, proxy)
    except BaseException:
        destroy(container, setup)
        raise
    setup.launch.notes += oom_notes(setup, status)
    if not keep:
        ending.finish(container, setup)
    return status


def unlock(container: Container) -> None:
    """Let others change the container while its process is waited for."""
    os.close(container.lockfd)
    container.lockfd = -1


def destroy(container: Container, setup: Setup) -> None:
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
