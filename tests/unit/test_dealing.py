"""The tests as they are dealt to several machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dealing

COUNTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 60))


@given(COUNTS, st.integers(1, 4))
def test_each_file_is_dealt_once(tests: dict[str, int], hands: int) -> None:
    dealt = dealing.deal(tests, hands)
    assert len(dealt) == hands
    assert sorted(stem for hand in dealt for stem in hand) == sorted(tests)
    assert dealt == dealing.deal(dict(reversed(tests.items())), hands)


def test_the_hands_end_at_about_one_time() -> None:
    tests = {f"file{number}": 10 for number in range(12)}
    first, second = map(len, dealing.deal(tests, 2))
    assert first + second == 12
    assert abs(first * dealing.SLOWER - second) <= dealing.SLOWER


def test_what_wants_two_cpus_is_dealt_to_the_machine_that_has_them() -> None:
    tests = {"test_lifecycle": 100, **dict.fromkeys(dealing.FIRST, 100)}
    for hands in (1, 2, 3):
        assert set(dealing.FIRST) <= set(dealing.deal(tests, hands)[0])


@pytest.mark.parametrize("stem", sorted({*dealing.SECONDS, *dealing.FIRST}))
def test_a_figure_is_of_a_file_that_exists(stem: str) -> None:
    assert (Path(__file__).parents[1] / "privileged" / f"{stem}.py").is_file()
