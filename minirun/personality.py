"""linux.personality: the execution domain that uname(2) tells of (personality(2))."""

from __future__ import annotations

from minirun.kernel import process
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

# include/uapi/linux/personality.h
DOMAINS = {"LINUX": 0x0000, "LINUX32": 0x0008}


def _describe(setup: Setup) -> list[str]:
    found = setup.spec.linux.personality
    return [] if found is None else [found.domain]


@step(_describe, details=_describe)
def apply(setup: Setup) -> None:
    """Set the execution domain"""
    asked = setup.spec.linux.personality
    assert asked is not None
    process.personality(DOMAINS[asked.domain])
