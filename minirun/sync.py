"""The steps of the inner process that wait for the parent: see `channel` for the messages."""

from __future__ import annotations

import os

from minirun.channel import WORD, ChannelClosed
from minirun.kernel import libc, process
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def send_events(setup: Setup) -> None:
    """Give the parent what the steps of this process did, for --explain."""
    if setup.events:
        assert setup.channel is not None
        setup.channel.send("events", {"events": [event.encode() for event in setup.events]})
        setup.events = []


@step(
    lambda setup: setup.launch.systemd_cgroup or setup.scope is not None,
    why="nothing of the container may be anywhere but in its cgroup",
)
def await_scope(setup: Setup) -> None:
    """Wait until systemd has put this process into its scope"""
    assert setup.channel is not None
    setup.channel.expect("go")


@step()
def tell_joined(setup: Setup) -> None:
    """Tell the parent that the namespaces are there"""
    assert setup.channel is not None
    setup.channel.send("joined")


@step(why="no program runs before the parent has set its limits and recorded the container")
def await_adoption(setup: Setup) -> None:
    """Wait until the parent has limited and recorded this process"""
    assert setup.channel is not None
    setup.channel.expect("go")


def _has_runtime_hooks(setup: Setup) -> bool:
    hooks = setup.spec.hooks
    # What createContainer hooks make, the parent must know to have undone by poststop hooks.
    undone = hooks.create_container and hooks.poststop
    return bool(hooks.prestart or hooks.create_runtime or undone)


@step(_has_runtime_hooks)
def await_hooks(setup: Setup) -> None:
    """Wait for the hooks that run outside"""
    # spec: before pivot_root, after the namespaces and mounts are there.
    assert setup.channel is not None
    setup.channel.send("mounted")
    setup.channel.expect("go")


@step()
def tell_ready(setup: Setup) -> None:
    """Tell the parent that all is ready to start"""
    assert setup.channel is not None
    send_events(setup)
    setup.channel.send("ready", {"notes": setup.notes, "obstacle": setup.obstacle})
    # A process that looks in through /proc finds nothing of the host here (CVE-2016-9962).
    process.close_all_but(setup.waiting_descriptors())


@step(lambda setup: bool(setup.spec.hooks.start_container))
def await_start(setup: Setup) -> None:
    """Wait for start, before the startContainer hooks"""
    assert setup.channel is not None
    word = os.read(setup.waiting_on, len(WORD))
    libc.trace(lambda: f"read({setup.waiting_on}) = {word!r}")
    if word != WORD:
        raise ChannelClosed("the other process is gone")
    setup.let_go = True
