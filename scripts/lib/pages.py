"""The pages of minirun/pages as manual pages: of each NAME.md, minirun-NAME(7).

They are Markdown, of which this much is known: a title and headings, paragraphs, lists of `- `,
tables with a head, fenced code, comments (for the tests), and in a line `code`, **bold** and
*italic*. Anything else is a ValueError.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lib import manpages
from lib.manpages import escape

from minirun.cli.learn import PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).resolve().parents[2] / "minirun" / "pages"
_NARROW = 18  # columns: a table's column that is never wider is not folded


def pages() -> Iterator[tuple[str, str]]:
    """Give each page's file name and text."""
    for name in PAGES:
        title, told = sections((SOURCES / f"{name}.md").read_text())
        yield f"minirun-{name}.7", manpages.topic(name, title, told)


def sections(text: str) -> tuple[str, manpages.Sections]:
    """Part a page: its title, and its sections in roff, the first one called DESCRIPTION."""
    title, _, rest = text.partition("\n")
    if not title.startswith("# "):
        raise ValueError("a page begins with its title")
    told: manpages.Sections = {"DESCRIPTION": []}
    heading = "DESCRIPTION"
    for block in _blocks(rest.split("\n")):
        if block[0].startswith("## "):
            heading = block[0][3:].upper()
            told[heading] = []
        else:
            told[heading] += _set(block, first=not told[heading])
    return title[2:], told


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Part lines at blank ones; a fenced block is whole, and comments are left out."""
    block: list[str] = []
    fenced = False
    for line in [*lines, ""]:
        if line.startswith("```"):
            if not fenced and block:
                yield block
                block = []
            fenced = not fenced
        elif not fenced and (not line.strip() or line.startswith("<!--")):
            if block:
                yield block
            block = []
            continue
        block.append(line)
        if not fenced and line.startswith(("```", "#")):
            yield block
            block = []
    if fenced:
        raise ValueError("a fenced block has no end")


def _set(block: list[str], *, first: bool) -> list[str]:
    """Set one block; `first`: it stands right below a heading."""
    head = block[0]
    if head.startswith("```"):
        return [".PP", ".RS 4", ".EX", *map(escape, block[1:-1]), ".EE", ".RE"]
    if head.startswith("|"):
        return _table(block)
    if head.startswith("### "):
        return [f'.SS "{escape(head[4:])}"']
    if head.startswith("- "):
        return _list(block)
    if head.startswith(("#", " ", ">", "* ", "1.")):
        raise ValueError(f"not known: {head}")
    return [*([] if first else [".PP"]), inline(" ".join(block))]


def _list(block: list[str]) -> list[str]:
    entries: list[str] = []
    for line in block:
        if line.startswith("- "):
            entries.append(line[2:])
        elif line.startswith("  "):
            entries[-1] += f" {line.strip()}"
        else:
            raise ValueError(f"a list goes on at the margin: {line}")
    return [line for entry in entries for line in (".IP \\(bu 2", inline(entry))]


def _table(block: list[str]) -> list[str]:
    """Set a table by tbl(1); wide columns share what there is of the line."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block]
    head, rule, *rest = rows
    if set("".join(rule)) - set("-:") or any(len(row) != len(head) for row in rows):
        raise ValueError(f"not a table: {block[0]}")
    wide = [max(len(row[at]) for row in [head, *rest]) > _NARROW for at in range(len(head))]
    lines = [".PP", ".TS", "tab(|) nospaces;"]
    lines += [" ".join("lbx" if one else "lb" for one in wide)]
    lines += [" ".join("lx" if one else "l" for one in wide) + "."]
    for row in [head, *rest]:
        cells = [
            f"T{{\n.na\n{_breakable(cell)}\nT}}" if one and cell else inline(cell)
            for cell, one in zip(row, wide, strict=True)
        ]
        lines.append("|".join(cells))
    return [*lines, ".TE"]


def _breakable(cell: str) -> str:
    return inline(cell).replace("/", "/\\:")


def inline(text: str) -> str:
    """Set what stands in a line."""
    made = ""
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*|\*[^*]+\*)", " ".join(text.split())):
        if part.startswith("`"):
            made += f"\\fB{escape(part[1:-1])}\\fR"
        elif part.startswith("**"):
            made += f"\\fB{escape(part[2:-2])}\\fR"
        elif part.startswith("*") and len(part) > 2:
            made += f"\\fI{escape(part[1:-1])}\\fR"
        else:
            made += escape(part).removeprefix("\\&") if made else escape(part)
    return made
