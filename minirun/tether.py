"""Processes of ours beside containers: each has a name of its own, and ends when its maker does.

python-prctl serves here. On a container's way it does not, for four reasons: there the calls are
made through minirun.kernel.process, which traces them and names them in errors as every other one;
between clone3(2) and execve(2) nothing may be imported; the capability sets of a container hold
ambient ones and numbers newer than the library's table; and `run` must not depend on a library that
needs a compiler to be installed.
"""

from __future__ import annotations

import os
from signal import SIGKILL

from minirun.errors import MinirunError

try:
    import prctl  # here, and once: each child of ours would pay a millisecond for it
except ImportError:
    prctl = None


def require() -> None:
    """Refuse to go on without the library. Raises MinirunError."""
    if prctl is None:
        raise MinirunError(
            "python-prctl is not installed",
            fix="apt-get install gcc libc6-dev python3-dev libcap-dev, then scripts/install again",
        )


def tie(parent: int, name: str) -> bool:
    """Name this process, and have the kernel kill it when the thread that forked it ends.

    `parent` is the maker's process ID: one that has gone already kills nobody any more. Returns
    False, with nothing done, where the library is missing. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if prctl is None:
        return False
    prctl.set_pdeathsig(SIGKILL)
    if os.getppid() != parent:
        os._exit(127)
    prctl.set_name(name)
    return True
