"""Lists of numbers as the kernel and the specification write them: `0-3,7`."""

from __future__ import annotations

from minirun.errors import ConfigError

HIGHEST = 8191  # NR_CPUS of the largest kernels


def parse(text: str, where: str) -> set[int]:
    """Return the numbers of a list; spaces and empty elements are allowed, as runc allows them.

    Raises ConfigError, naming `where`, for what is no list, and above `HIGHEST`.
    """
    found: set[int] = set()
    for element in text.split(","):
        first, dash, last = element.partition("-")
        if not element.strip():
            continue
        low, high = _number(first, where), _number(last if dash else first, where)
        if low > high:
            raise ConfigError(where, f"{element.strip()!r} begins above its end")
        found |= set(range(low, high + 1))
    return found


def _number(text: str, where: str) -> int:
    text = text.strip(" ")
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > HIGHEST:
        raise ConfigError(where, f"is not a list of numbers such as 0-3,7: {text[:80]!r}")
    return int(text)
