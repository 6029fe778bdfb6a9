from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun import units
from minirun.errors import UsageError

NONSENSE = ["", " ", "x", "-1", "+1", "1 m", "1mm", "m", ".5m", "5.", "1..5", "1e3", "٣", "1_000"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64 << 20),
        ("64MiB", 64 << 20),
        ("1.5g", 3 << 29),
        ("2t", 2 << 40),
        ("1p", 1 << 50),
        ("0.1k", 102),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert units.parse_size(text) == expected


@pytest.mark.parametrize("text", [*NONSENSE, "64q", "64ibm", "64bb", "64ib", "9999999p", "1\n"])
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    for parse in (units.parse_size, units.parse_duration, units.parse_count):
        try:
            value = parse(text)
        except UsageError:
            continue
        assert 0 <= value < 1 << 63


def test_limits() -> None:
    assert units.parse_limit("-1") == units.parse_limit("max") == -1
    assert units.parse_limit("1k") == 1024


def test_rates() -> None:
    assert units.parse_rate("/dev/disk/by-id/a:b:10mb") == ("/dev/disk/by-id/a:b", 10 << 20)
    assert units.parse_iops("/dev/sda:1000") == ("/dev/sda", 1000)


@pytest.mark.parametrize("text", ["/dev/sda", "/dev/sda:", ":10mb", "/dev/sda:0", "/dev/sda:-1"])
def test_rates_that_are_refused(text: str) -> None:
    for parse in (units.parse_rate, units.parse_iops):
        with pytest.raises(UsageError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", (50_000, 100_000)),
        ("2", (200_000, 100_000)),
        ("0.1", (10_000, 100_000)),
        ("0.29", (29_000, 100_000)),  # 0.29 * 100000 is 28999.999999999996 in floating point
        ("1.005", (100_500, 100_000)),
        ("0.01", (1_000, 100_000)),
        ("0.001", (1_000, 1_000_000)),
        ("0.123456", (123_456, 1_000_000)),
    ],
)
def test_cpus(text: str, expected: tuple[int, int]) -> None:
    assert units.parse_cpus(text) == expected


@pytest.mark.parametrize("text", [*NONSENSE, "0", "0.0009", "0.1234567", "9" * 30, "0,5", "nan"])
def test_cpus_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("5s", 5 * 10**9),
        ("1.5s", 15 * 10**8),
        ("500ms", 5 * 10**8),
        ("1h30m", 5400 * 10**9),
        ("2us", 2000),
        ("7ns", 7),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert units.parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "5 s", "1d", "5s3", "99999999999h", "1.s"])
def test_durations_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (1 << 60, "1024 PiB")],
)
def test_sizes_for_people(count: int, expected: str) -> None:
    assert units.format_size(count) == expected
