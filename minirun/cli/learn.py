"""learn: lessons, which do by hand what minirun does, and pages, which explain it."""

from __future__ import annotations

import os
import re
import signal
import sys

import click

from minirun.errors import MinirunError, UsageError, similar

# The course: each lesson is scripts/demo-NAME, with its title and matter in the comment at its top.
COURSE = [
    "uts",
    "pid",
    "mnt",
    "ipc",
    "net",
    "user",
    "cgroup",
    "time",
    "process",
    "pivot",
    "veth",
    "limits",
    "capabilities",
    "seccomp",
    "container",
    "pod",
    "inspect",
    "layers",
]

# The pages: minirun/pages/NAME.md, of which minirun-NAME(7) is made too.
PAGES = [
    "hypervisors",
    "virtualization",
    "namespaces",
    "cgroups",
    "container-vm",
    "docker",
    "pods",
    "mistakes",
]

SHELL = "/bin/bash"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_WIDTH = 100  # columns at most, as the pages' sources have


class _Topic(click.Choice[str]):
    """A lesson or page; of those there are too many to list in an error."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.choices:
            return super().convert(value, param, ctx)
        meant = similar(value, self.choices)
        raise UsageError(
            f"there is no lesson or page {value!r}", fix=f"{meant} minirun learn lists them".strip()
        )


@click.command("learn")
@click.argument("topic", required=False, type=_Topic([*COURSE, *PAGES]), metavar="[TOPIC]")
@click.option("-y", "--yes", is_flag=True, help="Go straight through a lesson, without pauses.")
@click.option("--source", is_flag=True, help="Print the lesson's script, or the page's Markdown.")
def command(topic: str | None, yes: bool, source: bool) -> None:
    """List the lessons and pages; run the lesson, or show the page, that TOPIC names.

    A lesson is a shell script of unshare(1), nsenter(1), ip(8) and mount(8). It shows what it types
    and what this machine answers, checks that it is as told, undoes it all, and names the minirun
    commands that do the same. On a terminal it waits before each step. Most need root.

    A page explains, with commands to type. On a terminal it is shown by $PAGER.
    """
    if topic is None:
        click.echo(_list(), nl=False)
        return
    path = _page(topic) if topic in PAGES else _path(topic)
    if source or topic in PAGES:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        _show(text) if not source and os.isatty(1) else click.echo(text, nl=False)
        return
    _become(path, topic, pause=not yes and os.isatty(0) and os.isatty(1))


def _list() -> str:
    width = max(len(name) for name in [*COURSE, *PAGES])
    lines = [f"{name:{width}}  {title(_path(name))}\n" for name in COURSE]
    lines += ["\n", *(f"{name:{width}}  {heading(_page(name))}\n" for name in PAGES)]
    begin = (
        f"\nTo begin: sudo minirun learn {COURSE[0]}, a lesson; minirun learn {PAGES[2]}, a page\n"
    )
    return "".join([*lines, begin])


def title(path: str) -> str:
    """Read a lesson's title, the first line of its comment. Raises OSError."""
    with open(path, encoding="utf-8") as file:
        file.readline()
        return file.readline().removeprefix("#").strip()


def heading(path: str) -> str:
    """Read a page's title, its first line. Raises OSError."""
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _show(text: str) -> None:
    """Show a page on a terminal, set and paged as a manual page is."""
    # 80 ms, and only here.
    from io import StringIO
    from shutil import get_terminal_size

    from rich.console import Console
    from rich.markdown import Markdown

    width = min(get_terminal_size().columns, _WIDTH)
    console = Console(file=StringIO(), force_terminal=True, width=width, highlight=False)
    plain = re.sub(r"^<!--.*?-->\n", "", text, flags=re.M | re.S)  # what the tests are told
    console.print(Markdown(plain, code_theme="bw", hyperlinks=False))
    click.echo_via_pager(console.file.getvalue())  # type: ignore[attr-defined]


def _page(name: str) -> str:
    return os.path.join(_PACKAGE, "pages", f"{name}.md")


def _path(lesson: str) -> str:
    """Find a lesson: package data when installed, the project's scripts/ in a checkout."""
    places = (os.path.join(_PACKAGE, "lessons"), os.path.join(os.path.dirname(_PACKAGE), "scripts"))
    for place in places:
        path = os.path.join(place, f"demo-{lesson}")
        if os.path.isfile(path):
            return path
    raise MinirunError(f"lesson {lesson} is missing, looked in {' and '.join(places)}")


def _become(path: str, lesson: str, *, pause: bool) -> None:
    """Become the shell that runs the lesson: its signals and exit status are ours then."""
    environment = {name: value for name, value in os.environ.items() if name != "LESSON_PAUSE"}
    environment["LESSON_AGAIN"] = f"minirun learn {lesson}"
    if pause:
        environment["LESSON_PAUSE"] = "1"
    following = COURSE[COURSE.index(lesson) + 1 :]
    if following:
        environment["LESSON_NEXT"] = following[0]
    # The same minirun as this one, if it is a program by itself.
    if os.path.isabs(sys.argv[0]) and os.access(sys.argv[0], os.X_OK):
        environment.setdefault("MINIRUN", sys.argv[0])
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and so would the lesson
    # -p: no BASH_ENV, and no functions out of the environment.
    os.execve(SHELL, [SHELL, "-p", path], environment)
