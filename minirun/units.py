"""Numbers as people write them: sizes, rates, CPUs, durations.

All are parsed strictly and exactly, in integers: `0.1` CPU is 10000 us of 100000, not 9999. A text
that is not understood is a UsageError with examples.
"""

from __future__ import annotations

from minirun.errors import UsageError

INT64 = (1 << 63) - 1

_SIZES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_PERIOD, _LONG_PERIOD = 100_000, 1_000_000  # microseconds; the kernel takes 1000 to 1000000
_QUOTA_MIN = 1000  # microseconds (kernel/sched/core.c, min_cfs_quota_period)
_DURATIONS = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1000,
    "µs": 1000,
    "ns": 1,
}


def parse_size(text: str) -> int:
    """Parse a size in bytes as docker has it: `64m`, `1.5g`, `512`, `10MB`, `1GiB`; k is 1024.

    A fraction of a byte is cut off. Raises UsageError.
    """
    number, unit = _split(text)
    unit = unit.lower()
    if unit.endswith("ib") and len(unit) == 3:
        unit = unit[:1]
    elif unit.endswith("b"):
        unit = unit[:-1]
    fraction = _decimal(number)
    if fraction is None or unit not in _SIZES:
        raise UsageError(f"not a size: {text!r}", fix="write 64m, 1.5g or a number of bytes")
    value = (fraction[0] << 10 * _SIZES[unit]) // fraction[1]
    if value > INT64:
        raise UsageError(f"size is too large: {text!r}")
    return value


def parse_limit(text: str) -> int:
    """Parse a size, or -1 for `-1`, `max` and `unlimited`."""
    return -1 if text in ("-1", "max", "unlimited") else parse_size(text)


def parse_rate(text: str) -> tuple[str, int]:
    """Parse `PATH:10mb` to the path and the bytes per second."""
    path, rate = _path_and(text, "/dev/sda:10mb")
    value = parse_size(rate)
    if value == 0:
        raise UsageError(f"a rate must be above 0: {text!r}")
    return path, value


def parse_iops(text: str) -> tuple[str, int]:
    """Parse `PATH:1000` to the path and the operations per second."""
    path, rate = _path_and(text, "/dev/sda:1000")
    return path, parse_count(rate, low=1)


def _path_and(text: str, example: str) -> tuple[str, str]:
    path, colon, rate = text.rpartition(":")
    if not colon or not path or not rate:
        raise UsageError(f"not PATH:RATE: {text!r}", fix=f"write {example}")
    return path, rate


def parse_count(text: str, low: int = 0, high: int = INT64) -> int:
    """Parse a plain decimal number from `low` to `high`; nothing but ASCII digits."""
    if not _digits(text) or len(text) > 19 or not low <= int(text) <= high:
        raise UsageError(f"not a number from {low} to {high}: {text[:80]!r}")
    return int(text)


def parse_cpus(text: str) -> tuple[int, int]:
    """Parse a number of CPUs such as `0.5` or `2` to (quota, period) in microseconds, exactly.

    The period is 100 ms, or 1 s for what needs it (0.001, the least, and four to six decimals).
    """
    fraction = _decimal(text)
    if fraction is None:
        raise UsageError(f"not a number of CPUs: {text!r}", fix="write 0.5 or 2")
    numerator, denominator = fraction
    for period in (_PERIOD, _LONG_PERIOD):
        quota, rest = divmod(numerator * period, denominator)
        if rest == 0 and quota >= _QUOTA_MIN:
            if quota > 1 << 40:
                raise UsageError(f"too many CPUs: {text!r}")
            return quota, period
    raise UsageError(
        f"number of CPUs is too small or too fine: {text!r}",
        fix="the least is 0.001, and there are six decimals",
    )


def parse_duration(text: str) -> int:
    """Parse a duration as Go has it (`1h30m`, `5s`, `1.5s`, `500ms`, `0`) to nanoseconds."""
    if text == "0":
        return 0
    total, rest = 0, text
    while rest:
        number, rest = _split(rest)
        length = next(
            (i for i, char in enumerate(rest) if char.isdigit() or char == "."), len(rest)
        )
        unit, rest = rest[:length], rest[length:]
        fraction = _decimal(number)
        if fraction is None or unit not in _DURATIONS:
            total = -1
            break
        total += fraction[0] * _DURATIONS[unit] // fraction[1]
    if not text or total < 0:
        raise UsageError(f"not a duration: {text!r}", fix="write 5s, 500ms or 1h30m")
    if total > INT64:
        raise UsageError(f"duration is too long: {text!r}")
    return total


def format_size(count: int) -> str:
    """Render bytes for people: `64 MiB`, `1.5 GiB`, `512 B`."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1023.95 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _split(text: str) -> tuple[str, str]:
    """Split the leading number off."""
    length = 0
    while length < len(text) and text[length] in "0123456789.":
        length += 1
    return text[:length], text[length:]


def _decimal(text: str) -> tuple[int, int] | None:
    """Give a decimal such as `1.50` as numerator and denominator; None for anything else."""
    whole, dot, part = text.partition(".")
    if not _digits(whole) or (dot and not _digits(part)) or len(text) > 40:
        return None
    return int(whole + part), 10 ** len(part)
