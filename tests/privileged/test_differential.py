"""The same bundles under runc and minirun: what their payloads see, what each verb says, is equal.

MINIRUN_DIFFERENTIAL says how many bundles are tried, MINIRUN_DIFFERENTIAL_SEED where chance begins
(both have a fixed value, so that a failure is the change's). What may differ, and why, is the table
in `differences.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from bundles import SPOILERS, Trial, trials
from differences import ALLOWED, compare, told
from differential import Runner, surroundings
from hypothesis import HealthCheck, given, seed, settings
from runtime import base_spec, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "programs", "cgroup2", "runc")

VM = os.environ.get("MINIRUN_MUST_WORK") == "vm"
COUNT = int(os.environ.get("MINIRUN_DIFFERENTIAL", "12" if VM else "40"))
SEED = int(os.environ.get("MINIRUN_DIFFERENTIAL_SEED", "1"))
AT_ONCE = 4  # of one seed: hypothesis varies what it had before, which is more of the same


def controllers() -> bool:
    with open("/sys/fs/cgroup/cgroup.controllers") as file:
        return {"cpu", "memory", "pids"} <= set(file.read().split())


@pytest.fixture
def judge(place: Path, base: Path) -> Iterator[Callable[[Trial], None]]:
    """Give a function that runs a trial under both, and fails where they differ."""
    place.chmod(0o711)
    with surroundings(place) as donor:
        runners = [Runner(words, place, base) for words in (["runc"], command())]
        known = set()

        def judged(trial: Trial) -> None:
            if repr(trial) in known:
                return
            theirs, ours = (dict(runner.observe(trial, donor)) for runner in runners)
            found = compare(trial, theirs, ours)
            if found:
                pytest.fail(told(trial, found, theirs, ours), pytrace=False)
            known.add(repr(trial))

        yield judged


@pytest.mark.slow
@pytest.mark.timeout(600 + 20 * COUNT)
def test_bundles_by_chance(judge: Callable[[Trial], None]) -> None:
    rules = settings(
        max_examples=AT_ONCE,
        derandomize=False,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    for number in range(SEED, SEED + max(1, COUNT // AT_ONCE)):
        seed(number)(rules(given(trial=trials(limits=controllers()))(judge)))()


@pytest.mark.parametrize("spoilt", SPOILERS)
def test_what_one_refuses_the_other_refuses(judge: Callable[[Trial], None], spoilt: str) -> None:
    """Each thing that can be wrong, alone; and nothing is left of it."""
    config = base_spec()
    config["process"]["args"] = ["/probe", "survey"]
    config["linux"]["cgroupsPath"] = "@group"
    SPOILERS[spoilt](config)
    judge(Trial(config, "create", spoilt))


def test_every_difference_has_a_reason() -> None:
    assert all(len(row.why) > 20 for row in ALLOWED)
    assert len({row.why for row in ALLOWED}) == len(ALLOWED)
