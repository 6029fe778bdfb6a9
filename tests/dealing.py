"""Deals the privileged tests to several emulated machines, so that they end at about one time.

A file stays whole, for its tests share what is dear to set up: a daemon, images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a test of a file takes there, roughly, in seconds. A wrong figure costs time, nothing else.
SECONDS: dict[str, float] = {
    "test_activation": 1.3,
    "test_caller": 1.8,
    "test_cgroups": 0.3,
    "test_checkpoint": 3.7,
    "test_demos": 5,
    "test_descriptors": 1.7,
    "test_device_filter": 0.4,
    "test_differential": 10,
    "test_documents": 4,
    "test_engine_bundle": 1.2,
    "test_engine_containerd": 11,
    "test_engine_docker": 12,
    "test_engine_docker_settings": 50,
    "test_engine_podman": 8.3,
    "test_events": 1.9,
    "test_exec": 2.4,
    "test_faults": 4.7,
    "test_hooks": 1.4,
    "test_host_mounts": 1.4,
    "test_inner_sources": 0.6,
    "test_lifecycle": 1.9,
    "test_limits": 0.7,
    "test_mounts": 2.1,
    "test_netdevices": 1.3,
    "test_network": 7.9,
    "test_network_faults": 11,
    "test_network_refusals": 4.5,
    "test_plan_script": 3.2,
    "test_prctl": 0.4,
    "test_python": 2.8,
    "test_rootfs": 1.5,
    "test_rootless": 2.6,
    "test_scheduling": 1.3,
    "test_sealed": 1.8,
    "test_seccomp_filter": 0.4,
    "test_seccomp_notify": 1.4,
    "test_shown": 4.6,
    "test_state": 2.6,
    "test_systemd_scopes": 2.5,
    "test_terminal": 1.5,
    "test_virt_here": 1.4,
}
OTHERS = 1.0

# Some of their tests want two CPUs, which the first machine alone has. For any test two emulated
# CPUs take this many times as long as one.
FIRST = ("test_differential", "test_scheduling")
SLOWER = 1.35


def deal(tests: Mapping[str, int], hands: int) -> list[list[str]]:
    """Return `hands` lists of the files in `tests` (file stem → number of tests), each file once.

    The dearest goes first, each to whoever is then done with it first (Graham's LPT rule, for
    machines that are not equally fast).
    """

    def seconds(stem: str) -> float:
        return tests[stem] * SECONDS.get(stem, OTHERS)

    dealt: list[list[str]] = [[] for _ in range(hands)]
    costs = [SLOWER, *[1.0] * (hands - 1)]
    loads = [0.0] * hands
    for stem in sorted(tests, key=lambda stem: (stem not in FIRST, -seconds(stem), stem)):
        ends = [load + cost * seconds(stem) for load, cost in zip(loads, costs, strict=True)]
        hand = 0 if stem in FIRST else ends.index(min(ends))
        dealt[hand].append(stem)
        loads[hand] = ends[hand]
    return dealt
