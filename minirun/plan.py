"""The plan of a container: the recipe's steps that its configuration asks for, told not taken.

Text and JSON list the steps with what each will do; the shell form is a script of unshare, mount,
ip, nsenter and setpriv that builds a like container. All come from the tuples that `create` follows
and from each step's own `when`, `details` and `shell`.
"""

from __future__ import annotations

from minirun import recipe
from minirun.errors import MinirunError
from minirun.log import printable
from minirun.setup import Setup
from minirun.step import name_of, quoted, sentence_of, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HEADS = {
    "parent": "minirun, outside the container",
    "outer": "a process that makes and joins namespaces",
    "inner": "the container's first process",
}
_SHOWN = 40  # details of one step before the text form cuts


def steps_of(setup: Setup) -> list[dict[str, Any]]:
    """List the steps that will be taken, in the order of time, as JSON objects."""
    found = []
    for stage, steps in recipe.stages_of(setup):
        for function in steps:
            if wanted(function, setup):
                details = getattr(function, "details", None)
                found.append(
                    {
                        "stage": stage,
                        "step": name_of(function),
                        "what": sentence_of(function),
                        "why": getattr(function, "why", ""),
                        "details": list(details(setup)) if details else [],
                    }
                )
    return found


def text_of(setup: Setup) -> str:
    """Render the plan for people."""
    lines: list[str] = []
    stage = ""
    for number, step in enumerate(steps_of(setup), 1):
        if step["stage"] != stage:
            stage = step["stage"]
            lines += ["", f"{HEADS[stage]}:"]
        lines.append(f"{number:4}. {step['what']:<64} {step['step']}")
        if step["why"]:
            lines.append(f"        because {step['why']}")
        lines += [f"        {printable(detail)}" for detail in step["details"][:_SHOWN]]
        if len(step["details"]) > _SHOWN:
            lines.append(f"        … and {len(step['details']) - _SHOWN} more")
    return "\n".join([*lines[1:], ""])


def _lines(setup: Setup, stages: Sequence[Any]) -> list[str]:
    """The shell lines of the wanted steps, each step's sentence before them."""
    found: list[str] = []
    for steps in stages:
        for function in steps:
            shell = getattr(function, "shell", None)
            if not wanted(function, setup):
                continue
            lines = list(shell(setup)) if shell else []
            if lines:
                found += ["", f"# {name_of(function)}: {sentence_of(function)}", *lines]
    return found


def shell_of(setup: Setup) -> str:
    """Render the plan as a script that builds a like container with common tools.

    What no tool can do is a comment: the system call filter, the device program, hooks. Raises
    MinirunError for a container in the host's mount namespace.
    """
    if not setup.own_mounts:
        raise MinirunError("no script can do it: the container is in the host's mount namespace")
    prefix = [line for line in _lines(setup, [recipe.OUTER]) if line and line[0] != "#"]
    inside = _lines(setup, [recipe.INNER, recipe.ENTER])
    last = [line for line in inside if line.startswith("setpriv ")]
    inside = [line for line in inside if not line.startswith("setpriv ")]
    return "\n".join(
        [
            "#!/bin/sh",
            f"# A container like {printable(setup.cid)}, by hand.",
            "# Needs root, util-linux, iproute2, and a root filesystem to be trusted: these tools",
            "# follow its links, to wherever in the host they lead.",
            *_missing(setup),
            "set -eu",
            f"root={quoted(setup.root_path)}",
            "",
            'if [ "${1:-}" != inside ]; then',
            *_indented([line for line in _lines(setup, [recipe.PREPARE]) if line]),
            "",
            "    # Born in the cgroup; the other side of this if, in new namespaces.",
            "    status=0",
            '    sh -c \'echo $$ > "$0/cgroup.procs"; exec "$@"\' "$group" \\',
            "        " + " ".join([*prefix, 'sh "$0" inside || status=$?']),
            # A scope ends by itself, and takes its group along.
            '    rmdir "$group"' + (" 2>/dev/null || :" if setup.launch.systemd_cgroup else ""),
            "    exit $status",
            "fi",
            *inside,
            "",
            "# The host's setpriv, through the descriptor that still leads there (9).",
            _program(setup, last[0] if last else ""),
            "",
        ]
    ).replace('\ncd "$root"\npivot_root', '\ncd "$root"\nexec 9</\npivot_root')


def _missing(setup: Setup) -> list[str]:
    found = []
    if setup.spec.linux.seccomp:
        found.append("# Left out: the system call filter, which no shell tool can load.")
    if setup.spec.linux.resources and setup.spec.linux.resources.devices:
        found.append("# Left out: the device program, which no shell tool can load.")
    process, linux = setup.process, setup.spec.linux
    if process.scheduler or process.io_priority or linux.memory_policy or linux.personality:
        found.append("# Left out: what chrt, ionice, numactl and setarch would set.")
    if setup.spec.linux.net_devices:
        found.append("# Left out: the network devices; `ip link set DEVICE netns PID` moves one.")
    hooks = setup.spec.hooks
    if any(hooks.encode().values()):
        found.append("# Left out: the hooks.")
    return found


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _program(setup: Setup, setpriv: str) -> str:
    environment = " ".join(quoted(entry) for entry in setup.process.env)
    command = " ".join(quoted(arg) for arg in setup.process.args)
    options = setpriv.removeprefix("setpriv ")
    uid = setup.process.user.uid
    home = f'home=$(awk -F: "\\$3 == {uid} {{ print \\$6; exit }}" /etc/passwd)'
    return "\n".join(
        [
            "host=/proc/self/fd/9",
            'for loader in "$host"/usr/lib/*-linux-gnu/ld-linux-*.so.*; do',
            '    exec "$loader" --library-path "${loader%/*}" "$host/usr/bin/setpriv" \\',
            f"        {options} \\",
            f'        /bin/sh -c \'exec 9<&-; {home}; exec env -i "HOME=${{home:-/}}" "$@"\' sh \\',
            f"        {environment} {command}",
            "done",
        ]
    )
