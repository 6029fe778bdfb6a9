"""The help texts, made from the table of options."""

from __future__ import annotations

from minirun.grammar import FLAG, Option, Verb
from minirun.options import GLOBALS, HUMAN, ROOTFS, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from minirun.errors import UsageError

_WIDTH = 79
_INDENT = "   "


def overview() -> str:
    """Return the help of the program."""
    verbs = [(verb.name, verb.summary) for verb in VERBS.values()]
    people = [(name, summary) for name, (summary, _) in HUMAN.items()]
    return "\n".join(
        [
            "NAME:",
            f"{_INDENT}minirun - run containers, and tell what the kernel did",
            "",
            "USAGE:",
            f"{_INDENT}minirun [global options] command [command options] [arguments...]",
            "",
            "COMMANDS:",
            *_columns(verbs),
            "",
            *_columns(people),
            "",
            "GLOBAL OPTIONS:",
            *_options(GLOBALS),
            "",
            f"{_INDENT}minirun COMMAND --help tells more about a command.",
            "",
        ]
    )


def verb_help(verb: Verb) -> str:
    """Return the help of one verb of the table."""
    lines = ["NAME:", f"{_INDENT}minirun {verb.name} - {verb.summary}", "", "USAGE:"]
    lines += [f"{_INDENT}minirun {verb.name} [options] {u}".rstrip() for u in _usages(verb)]
    lines.append("")
    if verb.details:
        lines += ["DESCRIPTION:", *[_INDENT + line for line in _wrap(verb.details, _WIDTH)], ""]
    plain = [option for option in verb.options if not option.needs_rootfs]
    lines += ["OPTIONS:", *_options((*plain, Option("help h", FLAG, "show this help")))]
    if len(plain) < len(verb.options):
        lines += ["", "OPTIONS WITH --rootfs:", *_options(ROOTFS)]
    return "\n".join([*lines, ""])


def advice(error: UsageError, verb: Verb | None) -> str:
    """Say in a line what may have been meant, and where more is told."""
    name, _, rest = error.message.partition(": -")
    options = verb.options if verb is not None else GLOBALS
    shown = [f"--{word}" for o in options if not o.hidden for word in o.names if len(word) > 1]
    meant = ""
    if name == "flag provided but not defined":
        meant = similar("--" + rest.lstrip("-"), shown)
    more = f"see minirun {verb.name} --help" if verb is not None else "see minirun --help"
    return f"{meant}; {more}" if meant else more


def similar(word: str, known: Iterable[str]) -> str:
    """Ask whether one of the known words was meant; "" where none is like it."""
    import difflib  # 10 ms, which a person waits for once

    found = difflib.get_close_matches(word, list(known), 1, 0.7)
    return f"did you mean {found[0]}?" if found else ""


def _usages(verb: Verb) -> list[str]:
    return verb.usage.split("\n")


def _options(options: Iterable[Option]) -> list[str]:
    return _columns([(o.spellings(), o.help + _default(o)) for o in options if not o.hidden])


def _default(option: Option) -> str:
    return f" (default: {option.default})" if option.default is not None else ""


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    left = min(max(len(name) for name, _ in rows), 32) + 2
    lines = []
    for name, text in rows:
        head = f"{_INDENT}{name:<{left}}"
        if len(name) > left - 2:
            lines.append(_INDENT + name)
            head = " " * (left + len(_INDENT))
        for part in _wrap(text, _WIDTH - left - len(_INDENT)):
            lines.append(head + part)
            head = " " * (left + len(_INDENT))
    return lines


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
