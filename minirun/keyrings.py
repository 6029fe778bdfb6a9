"""The session keyring (session-keyring(7)): keys are not divided by namespaces."""

from __future__ import annotations

import errno

from minirun.kernel import keyring
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


@step(
    lambda setup: not setup.launch.no_new_keyring,
    why="the caller's keys must not be reachable; an anonymous keyring has no name to guess",
)
def join_new(_setup: Setup) -> None:
    """Take a session keyring of its own"""
    try:
        keyring.join_session_keyring(None)
    except OSError as error:
        # ENOSYS: a kernel without keys, or a filter that hides them: then there is none to leave.
        if error.errno != errno.ENOSYS:
            raise
