"""Deals the privileged tests to several emulated machines, so that they end at about one time.

A file stays whole, for its tests share what is dear to set up: a daemon, images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a test of a file takes there, roughly, in seconds. A wrong figure costs time, nothing else.
SECONDS: dict[str, float] = {
    "test_checkpoint": 5,
    "test_demos": 6,
    "test_differential": 13,
    "test_documents": 6,
    "test_engine_bundle": 1.5,
    "test_engine_containerd": 8,
    "test_engine_docker": 12,
    "test_engine_docker_settings": 45,
    "test_engine_podman": 10,
    "test_network_faults": 17,
    "test_rootless": 3,
    "test_shown": 4,
    "test_state": 3,
    "test_systemd_scopes": 4,
}
OTHERS = 1.0

# Some of their tests want two CPUs, which the first machine alone has. It is slower for that.
FIRST = ("test_differential", "test_scheduling")
SLOWER = 1.4


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
