"""The fenced blocks of the documents, and what is said of each to the tests.

Every block has a language, which says what a test does with it:

    console   typed in: `$ ` begins a command, `> ` goes on with it, the rest is the answer
    sh        run as a script, which must succeed
    json      parsed; below `<!-- config.json -->` it is a part of one, and minirun must take it
    yaml      parsed
    toml      parsed
    text      nothing: it is no code (a picture, a table, what another machine printed)

Comments right above a block say more:

    <!-- needs: WORD ... -->    what it needs of the machine: words of tests/conftest.py
    <!-- run by: FILE -->       this test or script runs it, and not the tests of documents
    <!-- not run: REASON -->    nothing does; its commands must exist all the same

What installs, measures, tests or starts machines (`HEAVY`) is never typed in, and must say one of
the last two.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    CHECKOUT / "rootfs" / "README.md",
    *sorted((CHECKOUT / "minirun" / "pages").glob("*.md")),
)
LANGUAGES = ("console", "sh", "json", "yaml", "toml", "text")
TYPED = ("console", "sh")
HEAVY = re.compile(
    r"^(?:\$ )?(?:sudo )?(?:[A-Z_]+=\S+ )*"
    r"(?:vagrant|apt-get|scripts/(?:bench|install|quickstart|test|vagrant|virt-lookalike|vm))",
    re.M,
)
_FENCE = re.compile(r"( *)```(.*)")
_SAID = re.compile(r" *<!-- (needs|run by|not run|config\.json)(?:: (.+?))? -->")


class Block(NamedTuple):
    """One block; `said` is what the comments above it say, by their first word."""

    document: str
    line: int
    language: str
    said: dict[str, str]
    text: str

    @property
    def name(self) -> str:
        return f"{Path(self.document).stem}:{self.line}"

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.said.get("needs", "").replace(",", " ").split())

    @property
    def executed(self) -> bool:
        """Whether the tests of documents type it in."""
        excused = {"run by", "not run"} & set(self.said)
        return self.language in TYPED and not excused and not self.heavy

    @property
    def heavy(self) -> bool:
        return HEAVY.search(self.text) is not None

    def commands(self) -> list[tuple[str, list[str]]]:
        """Part a session into its commands, each with the lines that answer it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
            else:
                found[-1][1].append(line)
        return found


def blocks(path: Path) -> list[Block]:
    """Find the blocks of a document. Raises ValueError where one has no end."""
    found: list[Block] = []
    said: dict[str, str] = {}
    inside: list[str] | None = None
    fence = ("", "", 0)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        mark = _FENCE.fullmatch(line)
        if inside is not None:
            if mark and not mark[2]:
                text = textwrap.dedent("\n".join(inside) + "\n")
                name = str(path.relative_to(CHECKOUT))
                found.append(Block(name, fence[2], fence[1], said, text))
                inside, said = None, {}
            else:
                inside.append(line)
        elif mark:
            inside, fence = [], (mark[1], mark[2], number)
        elif note := _SAID.fullmatch(line):
            said[note[1]] = note[2] or ""
        else:
            said = {}
    if inside is not None:
        raise ValueError(f"{path}:{fence[2]}: the block has no end")
    return found


# What is said of the examples in the manual's texts, where there are no comments: by the text, and
# by a word of the example.
_EXAMPLES = (
    ("checkpoint", "", {"run by": "tests/privileged/test_checkpoint.py"}),
    ("minirun", "apparmor_parser", {"run by": "tests/privileged/test_rootless.py"}),
    ("compare", "apt-get", {"not run": "it asks a mirror"}),
    ("compare", "", {"run by": "tests/privileged/test_compare_here.py"}),
    ("rootfs", "docker export", {"not run": "it takes a container of Docker's"}),
    ("", "--memory", {"needs": "limits rootfs"}),
    ("", "alpine", {"needs": "rootfs"}),
    ("", "rootfs.tar.gz", {"needs": "rootfs"}),
)


def examples() -> list[Block]:
    """Give the examples of the manual: what is indented in the texts of scripts/lib/man."""
    found: list[Block] = []
    for path in sorted((CHECKOUT / "scripts" / "lib" / "man").glob("*.txt")):
        for group in re.finditer(r"(?:^    .*\n)+", path.read_text(), re.M):
            text = textwrap.dedent(group[0])
            said = [notes for name, word, notes in _EXAMPLES if name in path.stem and word in text]
            line = group.string.count("\n", 0, group.start()) + 1
            name = str(path.relative_to(CHECKOUT))
            found.append(Block(name, line, "sh", said[0] if said else {}, text))
    return found


def all_blocks() -> list[Block]:
    """Give the blocks of all documents."""
    return [block for path in DOCUMENTS for block in blocks(path)]
