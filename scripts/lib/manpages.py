"""The man pages: names, synopses and options from the table of options, prose from texts.

A text of scripts/lib/man, `run.txt` for minirun-run(1), adds to what the table says:

    ## HEADING        a section
    term:: words      an entry of a list
        four spaces   an example, as it is typed
    words `code`      a paragraph; a blank line ends it

Of the verbs for people the synopsis and the options are asked of click.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

import minirun
from minirun.cli import learn
from minirun.cli.learn import PAGES
from minirun.grammar import Option, Verb
from minirun.options import GLOBALS, HUMAN, ROOTFS, VERBS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEXTS = Path(__file__).with_name("man")
_FIRST, _LAST = ("DESCRIPTION",), ("EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES")

_ESCAPES = str.maketrans(
    {"\\": "\\e", "-": "\\-", "`": "\\`", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", "…": "..."}
)

Sections = dict[str, list[str]]


def pages() -> dict[str, str]:
    """Give every page by its file name."""
    found = {"minirun.1": _overview()}
    for verb in VERBS.values():
        found[f"minirun-{verb.name}.1"] = _verb(verb)
    for name, (summary, place) in HUMAN.items():
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        found[f"minirun-{name}.1"] = _human(name, summary, command)
    return found


# ---------------------------------------------------------------- one page each


def _overview() -> str:
    told = _prose("minirun")
    commands = [
        (f"minirun\\-{escape(name)}(1)", summary)
        for name, summary in [
            *((verb.name, verb.summary) for verb in VERBS.values()),
            *((name, summary) for name, (summary, _) in HUMAN.items()),
        ]
    ]
    told["COMMANDS"] = [line for name, text in commands for line in (".TP", name, inline(text))]
    told["OPTIONS"] = _options(GLOBALS)
    synopsis = [r"\fBminirun\fR [\fIglobal options\fR] \fIcommand\fR [\fIargument\fR ...]"]
    head = _head("minirun", "run containers, and tell what the kernel did", synopsis)
    told["PAGES"] = [
        line
        for name in [*PAGES, *_TOPICS]
        for line in (".TP", f"minirun\\-{escape(name)}(7)", inline(_about(name)))
    ]
    order = ("DESCRIPTION", "COMMANDS", "OPTIONS")
    return _page(head, told, order)


# Pages that are made of tables, and what they are about.
_TOPICS = {
    "steps": "The order in which a container is made, step by step, with the reasons",
    "conformance": "Each property of config.json and each flag of runc, with its tests",
}


def _about(name: str) -> str:
    return _TOPICS.get(name) or learn.heading(learn._page(name))


def topic(name: str, summary: str, told: Sections) -> str:
    """Give a page of section 7: its text, and the sections that are made elsewhere."""
    head = _head(f"minirun-{name}", summary, (), section=7)
    if any(line == ".TS" for lines in told.values() for line in lines):
        head.insert(0, "'\\\" t")  # man(1) has tbl(1) read it
    return _page(head, {**_prose(name), **told}, ("DESCRIPTION",))


def _verb(verb: Verb) -> str:
    told = _prose(verb.name)
    own = [option for option in verb.options if not option.needs_rootfs]
    told["OPTIONS"] = _options(own) or [inline("None but `--help`.")]
    if len(own) < len(verb.options):
        told["OPTIONS WITH --rootfs"] = _options(ROOTFS)
    if verb.details:
        told["DESCRIPTION"] = [inline(verb.details), *_after(told.get("DESCRIPTION", []))]
    synopsis = [
        f"\\fBminirun {escape(verb.name)}\\fR [\\fIoptions\\fR] {_usage(line)}".rstrip()
        for line in verb.usage.split("\n")
    ]
    head = _head(f"minirun-{verb.name}", verb.summary, synopsis)
    return _page(head, told, ("DESCRIPTION", "OPTIONS", "OPTIONS WITH --rootfs"))


def _human(name: str, summary: str, command: click.Command) -> str:
    told = _prose(name)
    words = list(_commands(f"minirun {name}", command))
    synopsis = []
    listed: list[str] = []
    for line, one in words:
        with click.Context(one) as context:
            pieces = [piece for piece in one.collect_usage_pieces(context) if piece != "[OPTIONS]"]
            options = [param for param in one.params if isinstance(param, click.Option)]
            options = [option for option in options if not option.hidden]
            usage = " ".join(
                [f"\\fB{escape(line)}\\fR", *(["[\\fIoptions\\fR]"] if options else [])]
                + [_usage(piece) for piece in pieces]
            )
            synopsis.append(usage)
            if len(words) > 1:
                listed += [f".SS {usage}", *_help(one)]
            records = [option.get_help_record(context) for option in options]
        for names, text in filter(None, records):
            listed += [".TP", f"\\fB{escape(names)}\\fR", inline(text)]
    if len(words) == 1:
        told["DESCRIPTION"] = [*_help(command), *_after(told.get("DESCRIPTION", []))]
    told["COMMANDS" if len(words) > 1 else "OPTIONS"] = listed or [inline("None but `--help`.")]
    head = _head(f"minirun-{name}", summary, synopsis)
    return _page(head, told, ("DESCRIPTION", "COMMANDS", "OPTIONS"))


def _commands(line: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Give the command, or the commands of a group, without the hidden and without aliases."""
    if not isinstance(command, click.Group):
        yield line, command
        return
    seen: list[click.Command] = []
    for name, one in sorted(command.commands.items()):
        if not one.hidden and one not in seen:
            seen.append(one)
            yield from _commands(f"{line} {name}", one)


def _help(command: click.Command) -> list[str]:
    return _paragraphs(inspect.cleandoc(command.help or "").split("\n"))


# ---------------------------------------------------------------- parts of a page


def _head(name: str, summary: str, synopsis: Iterable[str], section: int = 1) -> list[str]:
    version = escape(minirun.__version__)
    lines = [
        '.\\" Made by scripts/docs of the table of options and of scripts/lib/man: do not edit.',
        f'.TH {escape(name.upper())} {section} "" "minirun {version}" "minirun manual"',
        ".SH NAME",
        f"{escape(name)} \\- {inline(summary)}",
        *([".SH SYNOPSIS"] if synopsis else []),
    ]
    return [*lines, *[line for text in synopsis for line in (text, ".br")][:-1]]


def _page(head: list[str], told: Sections, order: Iterable[str]) -> str:
    own = [name for name in told if name not in order and name not in _LAST]
    lines = list(head)
    for name in (*order, *own, *_LAST):
        if told.get(name):
            lines += [f'.SH "{escape(name)}"', *told[name]]
    if "SEE ALSO" in told:
        return "\n".join([*lines, ""])
    above = any("MINIRUN\\-" in line for line in head[:2])
    others = r"\fBminirun\fR(1)" if above else r"\fBrunc\fR(8), \fBnamespaces\fR(7)"
    return "\n".join([*lines, '.SH "SEE ALSO"', others, ""])


def _options(options: Iterable[Option]) -> list[str]:
    lines = []
    for option in options:
        if option.hidden:
            continue
        tail = "" if option.kind == "flag" else f" \\fI{escape(option.metavar)}\\fR"
        names = [f"{'-' if len(name) == 1 else '--'}{name}" for name in option.names]
        default = "" if option.default is None else f" (default: {option.default})"
        shown = ", ".join(f"\\fB{escape(name)}\\fR{tail}" for name in names)
        lines += [".TP", shown, inline(option.help + default)]
    return lines


def _usage(text: str) -> str:
    words = re.split(r"([\[\]<>. ]+)", text)
    shown = [f"\\fI{escape(w)}\\fR" if w[:1].isalpha() else escape(w) for w in words]
    return "".join(shown).replace("<", "").replace(">", "")


def _after(lines: list[str]) -> list[str]:
    return [".PP", *lines] if lines else []


def _prose(name: str) -> Sections:
    """Read a page's text; {} where there is none."""
    path = TEXTS / f"{name}.txt"
    if not path.exists():
        return {}
    found: Sections = {}
    for block in path.read_text().split("## ")[1:]:
        heading, _, body = block.partition("\n")
        found[heading.strip()] = _paragraphs(body.split("\n"))
    return found


def _paragraphs(lines: Iterable[str]) -> list[str]:
    """Render a text's lines: paragraphs, examples that are indented, lists of `term:: words`."""
    made: list[str] = []
    example = False
    space = ""  # what parts the next paragraph from the one before
    for line in lines:
        typed = line.startswith("    ") and bool(line.strip())
        if typed and not example:
            made += [*([".PP"] if made else []), ".EX"]
        if example and not typed:
            made.append(".EE")
        example = typed
        term, entry, words = line.partition(":: ")
        if typed:
            made.append(escape(line[4:]))
        elif not line.strip():
            space = ".PP" if made else ""
            continue
        elif entry:
            made += [".TP", f"\\fB{escape(term)}\\fR", inline(words)]
        else:
            made += [*([space] if space else []), inline(line.strip())]
        space = ""
    return [*made, ".EE"] if example else made


def inline(text: str) -> str:
    """Escape a paragraph's words; what stands between backquotes becomes bold."""
    parts = escape(" ".join(text.split())).split("\\`")
    if len(parts) % 2 == 0:
        return "\\`".join(parts)
    return "".join(f"\\fB{part}\\fR" if number % 2 else part for number, part in enumerate(parts))


def escape(text: str) -> str:
    """Escape what roff would act on (groff_man_style(7), "Portability")."""
    text = text.translate(_ESCAPES)
    return f"\\&{text}" if text.startswith(".") else text
