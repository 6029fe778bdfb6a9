"""minirun-conformance(7): every property of config.json, every verb and flag, and what tests it.

The rows are the code's own: the records of `minirun.spec`, the table of `minirun.options`. Which
tests cover a row says tests/coverage.toml. A row without a test, a test that is not there, and an
entry that is no row any more are errors; so is a test whose file never names what it covers.
How minirun may differ from runc is the table of tests/differences.py.
"""

from __future__ import annotations

import ast
import re
import tomllib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lib import manpages
from lib.manpages import escape

from minirun import spec
from minirun.options import GLOBALS, VERBS
from minirun.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from minirun.grammar import Option

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = CHECKOUT / "tests"
MAPPING = TESTS / "coverage.toml"


class CoverageError(ValueError):
    """tests/coverage.toml and the code do not go together."""


# ---------------------------------------------------------------- rows


def properties() -> list[str]:
    """Give every property by its path: `process.rlimits[].soft`, `linux.timeOffsets.*.secs`."""
    return list(_properties(spec.Spec, ""))


def _properties(record: type[Record], above: str) -> Iterator[str]:
    for key, field in record._fields.items():
        path = f"{above}{field.name}"
        kind = str(record.__annotations__[key])
        inner = [
            known
            for name in re.findall(r"\w+", kind)
            if isinstance(known := getattr(spec, name, None), type) and issubclass(known, Record)
        ]
        if not inner:
            yield path
            continue
        below = {"tuple": "[].", "dict": ".*."}.get(kind.partition("[")[0], ".")
        yield from _properties(inner[0], path + below)


def flags() -> list[str]:
    """Give every verb and flag of runc: `run`, `run --pid-file`; the global ones as `--root`."""
    found = [_flag("", option) for option in GLOBALS]
    for verb in VERBS.values():
        own = [option for option in verb.options if not option.needs_rootfs]
        found += [verb.name, *(_flag(verb.name, option) for option in own)]
    return [name.strip() for name in found]


def _flag(verb: str, option: Option) -> str:
    return f"{verb} --{option.names[0]}"


# ---------------------------------------------------------------- tests


@cache
def functions() -> dict[str, Path]:
    """Give every test function as `test_file::test_name`, with its file."""
    found: dict[str, Path] = {}
    for path in sorted(TESTS.glob("*/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[f"{path.stem}::{node.name}"] = path
    return found


def covering() -> dict[str, list[str]]:
    """Give the tests of every row. Raises CoverageError, which lists all that is wrong."""
    entries: dict[str, list[str]] = tomllib.loads(MAPPING.read_text())
    wrong = []
    rows: dict[str, list[str]] = {row: [] for row in (*properties(), *flags())}
    for pattern, tests in entries.items():
        matched = [row for row in rows if row == pattern or fnmatchcase(row, _glob(pattern))]
        if not matched:
            wrong.append(f"{pattern}: no such property or flag")
        for test in tests:
            wrong += [f"{row}: {problem}" for row in matched for problem in _check(row, test)]
        for row in matched:
            rows[row] += [test for test in tests if test not in rows[row]]
    wrong += [f"{row}: no test" for row, tests in rows.items() if not tests]
    if wrong:
        raise CoverageError("tests/coverage.toml:\n" + "\n".join(wrong))
    return rows


@cache
def _text(path: Path) -> str:
    """Give a test file's text, and that of the helpers it imports, but not of the common one."""
    text = path.read_text()
    helpers = set(re.findall(r"^from (\w+) import", text, re.M)) - {"runtime"}
    beside = [TESTS / f"{name}.py" for name in sorted(helpers)]
    return "\n".join([text, *(one.read_text() for one in beside if one.exists())])


def _glob(pattern: str) -> str:
    return pattern.replace("[", "[[]").replace("[[]*", "[*")


def _check(row: str, test: str) -> Iterator[str]:
    path = functions().get(test)
    if path is None:
        yield f"no such test: {test}"
        return
    word = re.split(r"[. ]", row)[-1].removesuffix("[]").lstrip("-")
    # As JSON and the shell have it, or as the code does.
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", word).lower()
    pattern = rf"(?<!\w)({re.escape(word)}|{re.escape(snake)})(?![\w-])"
    if not re.search(pattern, _text(path)):
        yield f"{test}: its file never says {word!r}"


# ---------------------------------------------------------------- the page


def page() -> str:
    """Give the whole page. Raises CoverageError."""
    rows = covering()
    known = set(properties())
    told = {
        "PROPERTIES OF CONFIG.JSON": _list((row, rows[row]) for row in rows if row in known),
        "VERBS AND FLAGS": _list((row, rows[row]) for row in rows if row not in known),
        "DIFFERENCES FROM RUNC": _reasons(),
    }
    summary = "what of the OCI runtime specification and of runc is there, and what tests it"
    return manpages.topic("conformance", summary, told)


def _list(rows: Iterable[tuple[str, list[str]]]) -> list[str]:
    lines = [".nh", ".ad l"]
    for row, tests in rows:
        lines += [".TP", f"\\fB{escape(row)}\\fR", _test(tests[0])]
        lines += [line for test in tests[1:] for line in (".br", _test(test))]
    return lines


def _test(name: str) -> str:
    return escape(name).replace("::", "::\\:")  # where a line may be broken


def _reasons() -> list[str]:
    """Read the reasons from the source: the module itself needs what only tests have."""
    tree = ast.parse((TESTS / "differences.py").read_text())
    found = [
        ast.literal_eval(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Allowed"
    ]
    return [line for reason in found for line in (".IP \\(bu 3", escape(reason))]
