"""`minirun network attach|detach`: what the runtime calls at createRuntime and poststop.

It gives the container's state as JSON on stdin (runtime-spec, runtime.md "State"). One line on
stderr and exit status 1 if it fails: runtimes show a hook's stderr.
"""

from __future__ import annotations

import os
import sys

from minirun.errors import MinirunError, UsageError, describe
from minirun.jsontext import loads
from minirun.network import plan
from minirun.record import UINT32, Record, integer, string

_STATE_MAX = 1 << 20  # bytes; annotations are in it
_USAGE = "usage: minirun network attach|detach [--state-dir DIR] REQUEST|NETWORK < state.json"


class ContainerState(Record):
    """The part of the OCI state that concerns the network."""

    id: str = string(required=True)
    pid: int = integer(0, UINT32, default=0)
    bundle: str = string(default="")


def main(argv: list[str]) -> int:
    """Run one hook; `argv` begins with its verb. Returns the exit status."""
    where = "network " + (argv[0] if argv else "hook")
    try:
        verb, state_dir, argument = _arguments(argv)
        state = ContainerState.decode(loads(_stdin(), "container state"), "container state")
        where += f" {state.id}"
        _run(verb, state, argument, state_dir)
        return 0
    except Exception as error:  # noqa: BLE001 - whatever it is, a runtime shows one line of it
        line = " ".join(f"minirun: {where}: {describe(error)}".split())
        sys.stderr.write(line + "\n")
        if isinstance(error, MinirunError) and error.fix and sys.stderr.isatty():
            sys.stderr.write(f"  {error.fix}\n")
        return 1


def _arguments(argv: list[str]) -> tuple[str, str, str]:
    if len(argv) < 2 or argv[0] not in ("attach", "detach"):
        raise UsageError(_USAGE)
    verb, *rest = argv
    state_dir = plan.DEFAULT_STATE_DIR
    if rest[0] == "--state-dir" and len(rest) > 1:
        state_dir = rest[1]
        rest = rest[2:]
    if len(rest) != 1:
        raise UsageError(_USAGE)
    return verb, state_dir, rest[0]


def _stdin() -> bytes:
    if os.isatty(0):
        raise UsageError(_USAGE)
    data = b""
    while chunk := os.read(0, _STATE_MAX + 1 - len(data)):
        data += chunk
    if len(data) > _STATE_MAX:
        raise MinirunError(f"container state: larger than {_STATE_MAX >> 20} MiB")
    return data


def _run(verb: str, state: ContainerState, argument: str, state_dir: str) -> None:
    if verb == "attach":
        request = plan.decode(argument)
        if not state.pid:
            raise MinirunError("the container's state has no pid")
        if not os.path.isabs(state.bundle):
            raise MinirunError(f"the container's bundle is not an absolute path: {state.bundle!r}")
        from minirun.network.attach import attach  # 190 ms, most of it pyroute2

        attach(state.id, state.pid, state.bundle, request, state_dir)
    else:
        from minirun.network.attach import detach

        detach(state.id, argument, state_dir, state.bundle)
