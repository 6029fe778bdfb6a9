"""list and ps: tables for people, JSON for engines."""

from __future__ import annotations

import os

from minirun import container, jsontext, log
from minirun.cli import STDOUT, write
from minirun.cli.place import container_id, state_root
from minirun.errors import MinirunError
from minirun.launcher import SAFE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from minirun.grammar import Options

_COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")
_MIN_WIDTH, _PADDING = 12, 3


def list_(options: Options) -> int:
    """`minirun list`. A container that cannot be read is left out, with a warning on stderr."""
    found, warnings = container.list_all(state_root(options))
    for text in warnings:
        log.warning(text, always=True)
    if options.quiet:
        return write("".join([f"{entry['id']}\n" for entry in found]))
    if options.format == "json":
        return write(jsontext.dumps(found) + "\n")
    return write(table(found))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Lay the containers out in columns."""
    shown = log.printable if os.isatty(STDOUT) else str
    rows = [[shown(str(entry.get(name, ""))) for name in _COLUMNS] for entry in found]
    rows.insert(0, [name.upper() for name in _COLUMNS])
    widths = [max(len(row[n]) + _PADDING for row in rows) for n in range(len(_COLUMNS))]
    lines = [
        "".join(
            [cell.ljust(max(width, _MIN_WIDTH)) for cell, width in zip(row, widths, strict=True)]
        )
        for row in rows
    ]
    return "".join([line.rstrip() + "\n" for line in lines])


def ps(options: Options) -> int:
    """`minirun ps`: the container's lines of the host's ps, or the process IDs as JSON."""
    pids = container.ps(state_root(options), container_id(options))
    if options.format == "json":
        return write(jsontext.dumps(pids) + "\n")
    return write(select(_output_of_ps(options.args[1:] or ("-ef",)), frozenset(pids)))


def select(output: str, pids: frozenset[int]) -> str:
    """Keep the heading and the lines whose PID column is one of `pids`. Raises MinirunError."""
    heading, *lines = output.splitlines()[:1] + output.splitlines()[1:] or [""]
    names = heading.split()
    if "PID" not in names:
        raise MinirunError("couldn't find PID field in ps output")
    column = names.index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [line for line in lines if (line.split() + [""] * column + [""])[column] in wanted]
    return "".join([line + "\n" for line in (heading, *kept)])


def _output_of_ps(arguments: Sequence[str]) -> str:
    path = _find("ps")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    try:
        # The width of a pipe is not limited; a terminal's would cut the lines.
        pid = os.posix_spawn(path, ["ps", *arguments], {"PATH": SAFE_PATH}, file_actions=actions)
    finally:
        os.close(writer)
    with open(reader, "rb") as file:
        output = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise MinirunError(f"ps: exit status {status}")
    return os.fsdecode(output)


def _find(name: str) -> str:
    for directory in SAFE_PATH.split(":"):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK):
            return path
    raise MinirunError(f'exec: "{name}": executable file not found in $PATH')
