"""A verdict: what a machine can run, why, and what helps."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.virt.fixes import Fix

# Exit statuses, and what they mean to a person.
USABLE, LIMITED, FIXABLE, BLOCKED, IMPOSSIBLE, UNKNOWN = 0, 10, 11, 12, 13, 14
LEVELS = {
    USABLE: "usable",
    LIMITED: "limited",
    FIXABLE: "fixable",
    BLOCKED: "blocked",
    IMPOSSIBLE: "impossible",
    UNKNOWN: "unknown",
}


class Verdict:
    """A verdict: its stable code, exit status, one sentence, reasons by fact, and fixes."""

    def __init__(
        self,
        code: str,
        status: int,
        summary: str,
        reasons: list[tuple[str, str]],
        todo: Sequence[Fix] = (),
        *,
        accelerator: str = "tcg",
    ) -> None:
        self.code, self.status, self.summary = code, status, summary
        self.reasons, self.fixes, self.accelerator = reasons, list(todo), accelerator
