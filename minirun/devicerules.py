"""The step of the device program: which devices may be made and opened in the cgroup."""

from __future__ import annotations

from minirun.errors import Unsupported
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.devicefilter import Policy
    from minirun.setup import Setup
    from minirun.spec import DeviceRule


def _asked(setup: Setup) -> Sequence[DeviceRule]:
    resources = setup.spec.linux.resources
    return resources.devices if resources else ()


def _refuse_unfiltered(setup: Setup, policy: Policy) -> None:
    """Without a cgroup no program can be attached: refuse unless nothing depends on it."""
    # In a user namespace mknod(2) is refused, and nodes on the way in are the host's to give.
    if policy.allows_all or setup.new_user_namespace:
        return
    if setup.launch.no_cgroup:
        # Engines ask for none and send their rules even so, as podman 4 does.
        setup.notes.append("without a cgroup no device rule holds: who may mknod(2) opens any")
        return
    raise Unsupported(
        "device rules need cgroup v2",
        cause="without a cgroup of its own the container could open any device",
        fix="boot with systemd.unified_cgroup_hierarchy=1, or use a user namespace",
    )


def _describe(setup: Setup) -> list[str]:
    from minirun import devicefilter

    return [
        f"{'allow' if rule.allow else 'deny'} {rule.type or 'a'} "
        f"{_number(rule.major)}:{_number(rule.minor)} {rule.access or 'rwm'}"
        for rule in devicefilter.effective(_asked(setup), setup.spec.linux.devices)
    ]


def _number(value: int | None) -> str:
    return "*" if value is None or value < 0 else str(value)


@step(details=_describe, why="a node of a disk, made or found in the image, must not be opened")
def attach(setup: Setup) -> None:
    """Load the program that checks every device access"""
    from minirun import devicefilter  # 1 ms, in which the other process makes the namespaces

    policy = devicefilter.policy(_asked(setup), setup.spec.linux.devices)
    if setup.unprivileged:
        return  # bpf(2) is root's; in a user namespace no node can be made, and few are bound
    if setup.group is None:
        _refuse_unfiltered(setup, policy)
        return
    devicefilter.attach(setup.group.dirfd, policy)
    if setup.scope is not None:
        setup.scope.restrict_devices(policy.allow, policy.exceptions)
