"""Adds up what scripts/test's parts have done: one line each, then the totals.

Exit status 1 if anything failed.

summary.py RESULTS PART:STATUS:SECONDS...
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import NamedTuple

# A part has a file of results for each machine that it ran in: vm.xml, vm-2.xml.
# Parts that read and have no tests to count.
READERS = ("check", "vagrant")


class Counts(NamedTuple):
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def read(path: Path) -> Counts:
    """The counts in a JUnit file as pytest writes it."""
    total = failed = skipped = 0
    for suite in xml.parse(path).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return Counts(total - failed - skipped, failed, skipped)


def part(results: Path, name: str, status: int) -> tuple[Counts, str]:
    """What a part did. One that went wrong without a failed test counts as one failure."""
    paths = sorted(results.glob(f"{name}.xml")) + sorted(results.glob(f"{name}-[0-9]*.xml"))
    if not paths:
        if status:
            return Counts(failed=1), "failed (see above)"
        return Counts(), "nothing to object to" if name in READERS else "no tests selected"
    counts = Counts(*(sum(column) for column in zip(*map(read, paths), strict=True)))
    if status and not counts.failed:
        counts = counts._replace(failed=1)
        return counts, f"{counts} (ended with status {status})"
    return counts, str(counts)


def main(results: str, *parts: str) -> int:
    total = Counts()
    for item in parts:
        name, status, seconds = item.split(":")
        counts, text = part(Path(results), name, int(status))
        total = Counts(*(sum(pair) for pair in zip(total, counts, strict=True)))
        print(f"{name:10} {text}, {seconds} s")
    print(total)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
