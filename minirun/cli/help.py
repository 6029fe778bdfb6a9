"""The help texts, made from the table of options."""

from __future__ import annotations

import os

from minirun.errors import similar
from minirun.grammar import FLAG, Option, Verb
from minirun.options import GLOBALS, HUMAN, ROOTFS, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from minirun.errors import UsageError

_WIDTH = 79
_INDENT = "   "

# Commands of docker and podman, and other words that hands try, with what does it here.
_ELSEWHERE = {
    "attach": "minirun run without -d stays attached; minirun exec ID COMMAND looks into one",
    "build": "minirun rootfs build busybox, or minirun rootfs import FILE.tar.gz --name NAME",
    "doctor": "minirun virt tells of virtual machines, minirun features of this runtime",
    "images": "minirun rootfs list",
    "import": "minirun rootfs import FILE.tar.gz --name NAME",
    "inspect": "minirun state ID, minirun plan ID, minirun network inspect ID",
    "logs": "no output is kept but in a file of yours: minirun run -d ... >ID.log 2>&1",
    "pod": "minirun learn pods shows how to make one",
    "pull": "minirun rootfs pull alpine",
    "remove": "minirun delete ID",
    "restart": "minirun delete --force ID, and run it anew",
    "rm": "minirun delete ID",
    "rmi": "minirun rootfs rm NAME",
    "shell": "minirun exec -t ID sh",
    "stats": "minirun events --stats ID",
    "stop": "minirun kill ID, then minirun delete ID",
    "top": "minirun ps ID",
    "unpause": "minirun resume ID",
}


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
            f"{_INDENT}minirun COMMAND --help tells more about a command, man minirun-COMMAND",
            f"{_INDENT}all of it; minirun learn lists lessons and pages.",
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
    lines += ["", f"{_INDENT}man minirun-{verb.name} tells more."]
    return "\n".join([*lines, ""])


def advice(error: UsageError, verb: Verb | None) -> str:
    """Say in a line what may have been meant, and where more is told."""
    name, _, rest = error.message.partition(": -")
    options = verb.options if verb is not None else GLOBALS
    shown = [f"--{word}" for o in options if not o.hidden for word in o.names if len(word) > 1]
    close = ""
    if name == "flag provided but not defined":
        close = similar("--" + rest.lstrip("-"), shown)
    more = f"see minirun {verb.name} --help" if verb is not None else "see minirun --help"
    return f"{close} {more}" if close else more


def meant(name: str) -> str:
    """Say in a line what may have been meant by a command that there is not."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    topic = os.path.basename(name)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isfile(os.path.join(package, "pages", f"{topic}.md")):
        return f"minirun learn {topic} shows that page"
    return similar(name, (*VERBS, *HUMAN)) or "minirun --help lists the commands"


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
