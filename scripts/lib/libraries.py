"""psutil and python-prctl for the programs here: this Python's own, or the installed minirun's.

To import it is to have them; where this Python has none the program starts again under the other.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from typing import NoReturn

_AGAIN = "_MINIRUN_LIBRARIES"  # set for the second start
_HELP = (
    "needs psutil and python-prctl: sudo scripts/install, or"
    " (Debian, Ubuntu) apt install python3-psutil python3-prctl"
)


def _interpreter() -> str | None:
    """Return the Python that the installed minirun (or $MINIRUN) runs on."""
    words = shlex.split(os.environ.get("MINIRUN", "")) or ["minirun"]
    path = shutil.which(words[0])
    if path is None:
        return None
    with open(path, "rb") as file:
        line = file.readline(256).decode("utf-8", "replace")
    # Perhaps behind env(1) and its options.
    words = line.removeprefix("#!").split() if line.startswith("#!") else []
    return next((word for word in words if word.startswith("/") and "/python" in word), None)


def _start_again() -> NoReturn:
    interpreter = None if os.environ.pop(_AGAIN, "") else _interpreter()
    if interpreter is None:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {_HELP}")
    words = [interpreter, "-B", os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    os.execve(interpreter, words, {**os.environ, _AGAIN: "1"})


if any(importlib.util.find_spec(name) is None for name in ("psutil", "prctl")):
    _start_again()
os.environ.pop(_AGAIN, None)
