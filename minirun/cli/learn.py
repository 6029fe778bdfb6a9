"""learn: the lessons, which do by hand what minirun does, and show it on this machine."""

from __future__ import annotations

import os
import signal
import sys

import click

from minirun.errors import MinirunError

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

SHELL = "/bin/bash"


@click.command("learn")
@click.argument("lesson", required=False, type=click.Choice(COURSE), metavar="[LESSON]")
@click.option("-y", "--yes", is_flag=True, help="Go straight through, without pauses.")
@click.option("--source", is_flag=True, help="Print the lesson's script instead of running it.")
def command(lesson: str | None, yes: bool, source: bool) -> None:
    """List the lessons, or run LESSON.

    A lesson is a shell script of unshare(1), nsenter(1), ip(8) and mount(8). It shows what it types
    and what this machine answers, checks that it is as told, undoes it all, and names the minirun
    commands that do the same. On a terminal it waits before each step. Most need root.
    """
    if lesson is None:
        click.echo(_list(), nl=False)
        return
    path = _path(lesson)
    if source:
        with open(path, encoding="utf-8") as file:
            click.echo(file.read(), nl=False)
        return
    _become(path, lesson, pause=not yes and os.isatty(0) and os.isatty(1))


def _list() -> str:
    width = max(len(name) for name in COURSE)
    lines = [f"{name:{width}}  {title(_path(name))}\n" for name in COURSE]
    return "".join([*lines, f"\nTo begin: sudo minirun learn {COURSE[0]}\n"])


def title(path: str) -> str:
    """Read a lesson's title, the first line of its comment. Raises OSError."""
    with open(path, encoding="utf-8") as file:
        file.readline()
        return file.readline().removeprefix("#").strip()


def _path(lesson: str) -> str:
    """Find a lesson: package data when installed, the project's scripts/ in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = (os.path.join(package, "lessons"), os.path.join(os.path.dirname(package), "scripts"))
    for place in places:
        path = os.path.join(place, f"demo-{lesson}")
        if os.path.isfile(path):
            return path
    raise MinirunError(f"lesson {lesson} is missing, looked in {' and '.join(places)}")


def _become(path: str, lesson: str, *, pause: bool) -> None:
    """Become the shell that runs the lesson: its signals and exit status are ours then."""
    environment = {name: value for name, value in os.environ.items() if name != "LESSON_PAUSE"}
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
