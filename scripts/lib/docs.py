"""Write the documents that are made from the code; with --check, only say which are out of date.

README.md holds parts between `<!-- NAME: … -->` and `<!-- end NAME -->`; each has a function here.
The man pages are made by `manpages`, of the table of options and of the texts in scripts/lib/man,
and by `pages`, of minirun/pages.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

from lib import conformance, manpages, pages

from minirun import recipe
from minirun.plan import HEADS
from minirun.step import name_of, sentence_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from minirun.step import Step

CHECKOUT = Path(__file__).resolve().parents[2]
README = CHECKOUT / "README.md"
MAN = CHECKOUT / "minirun" / "man"

# What a directory of the package is for, where its own docstring does not say it in a line.
LAYERS = (
    ("cli", "the command line: one module for each verb or group of verbs"),
    ("engine", "`run --rootfs`: from flags to an ordinary OCI bundle"),
    ("rootfs", "root filesystems by name"),
    ("network", "the bridge network"),
    ("compare", "a root filesystem as a container and as a virtual machine, measured"),
    ("virt", "the report on virtualization: a machine's answers, facts, verdict, text"),
    ("", "the runtime: from a bundle to a container"),
    ("cgroups", "control groups, version 2"),
    ("profiles", "profiles that are data"),
    ("kernel", "system calls, without policy"),
)


# ---------------------------------------------------------------- the order of the steps


def stages() -> str:
    """List the processes that make a container, in turn, and between which steps each works."""
    lines: list[str] = []
    for head, functions in _turns():
        count = "1 step" if len(functions) == 1 else f"{len(functions)} steps"
        ends = [f"*{sentence_of(functions[at])}*" for at in {0: 0, len(functions) - 1: 0}]
        lines.append(f"{len(lines) + 1}. **{head}**, {count}: {' … '.join(ends)}")
    return "\n".join(lines)


def _turns() -> Iterator[tuple[str, list[Step]]]:
    """Give the steps of create in the order of time, parted where another process goes on."""
    head: str | None = None
    taken: list[Step] = []
    for stage, functions in recipe.CREATE:
        if HEADS[stage] != head and head is not None:
            yield head, taken
            taken = []
        head = HEADS[stage]
        taken += functions
    if head is not None:
        yield head, taken


def steps_page() -> str:
    """Make minirun-steps(7): every step with its reason and the reason of its place."""
    marks = _marks(Path(recipe.__file__).read_text())
    names = {id(value): name for name, value in vars(recipe).items() if name.isupper()}
    tuples = {name_of(one): names[id(stage)] for _, stage in recipe.CREATE for one in stage}
    made: list[str] = []
    number = 0
    for head, functions in _turns():
        made.append(f'.SS "{manpages.escape(head)}"')
        for function in functions:
            number += 1
            mark = marks.get((tuples[name_of(function)], name_of(function)), "")
            made += [f".IP {number}. 5", pages.inline(_step(function, mark))]
    told = [
        line
        for at, function in enumerate(recipe.EXEC, 1)
        for line in (
            f".IP {at}. 5",
            pages.inline(_step(function, marks.get(("EXEC", name_of(function)), ""))),
        )
    ]
    sections = {"CREATE, AND RUN": made, "EXEC": told}
    return manpages.topic("steps", "the order in which a container is made", sections)


def _step(function: Step, mark: str) -> str:
    told = f"{sentence_of(function)} (`{name_of(function)}`)"
    why = getattr(function, "why", "")
    if why:
        told += f": {why}"
    if mark.startswith(("kernel: ", "spec: ")):
        source, _, reason = mark.partition(": ")
        return f"{told}. *{source.capitalize()}*: {reason}"
    return f"{told}. *Why here*: {mark}" if mark else told


def _marks(source: str) -> dict[tuple[str, str], str]:
    """Find the comment behind each step in the tuples: why it stands where it stands."""
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
            continue
        target = node.targets[0]
        for element in node.value.elts:
            if isinstance(target, ast.Name) and isinstance(element, ast.Attribute):
                step = getattr(getattr(recipe, ast.unparse(element.value)), element.attr)
                found[target.id, name_of(step)] = comments.get(element.lineno, "")
    return found


# ---------------------------------------------------------------- the map of the code


def modules() -> str:
    """List the modules by layer, each with the first sentence of its docstring."""
    package = CHECKOUT / "minirun"
    lines: list[str] = []
    for layer, what in LAYERS:
        directory = package / layer
        shown = f"minirun/{layer}/" if layer else "minirun/"
        lines += ["", f"**`{shown}`**: {what}", ""]
        for path in sorted(directory.glob("*.py")):
            if sentence := _sentence(path):
                lines.append(f"- `{path.name}`: {sentence}")
    return "\n".join(lines[1:])


def _sentence(path: Path) -> str:
    """Read the first sentence of a module's docstring; "" for a package's, and where none is."""
    if path.name == "__init__.py":
        return ""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


PARTS: dict[str, Callable[[], str]] = {"stages": stages, "modules": modules}


# ---------------------------------------------------------------- the files


def fill(text: str) -> str:
    """Put the parts into README.md's text. Raises ValueError when a marker is missing."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: ", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md has no part {name!r}, or two")
        before, _, rest = text.partition(begin)
        comment, _, rest = rest.partition("-->\n")
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{comment}-->\n\n{make()}\n\n{end}{after}"
    count = sum(len(functions) for _, functions in recipe.CREATE)
    return re.sub(r"(the order: )\d+( steps)", rf"\g<1>{count}\2", text)


def documents() -> Iterator[tuple[Path, str]]:
    """Give every document as it should be."""
    yield README, fill(README.read_text())
    for name, text in manpages.pages().items():
        yield MAN / name, text
    for name, text in pages.pages():
        yield MAN / name, text
    yield MAN / "minirun-steps.7", steps_page()
    yield MAN / "minirun-conformance.7", conformance.page()


def main(arguments: Sequence[str]) -> int:
    """Write or check; the exit status is 1 when something is out of date."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    wanted = dict(documents())
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    gone = [path for path in MAN.glob("*.[1-9]") if path not in wanted]
    for path in stale + gone:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(CHECKOUT)}")
    if check:
        return 1 if stale or gone else 0
    MAN.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in gone:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
