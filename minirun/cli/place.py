"""Where the containers' state is, as the global options say."""

from __future__ import annotations

import os

from minirun.errors import MinirunError, UsageError
from minirun.privilege import in_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.grammar import Options

_ID = "an ID is of letters, digits, _ + . and -, and begins with neither . nor -"


def default_root() -> str:
    """Return the state directory of this user: /run/minirun, or below $XDG_RUNTIME_DIR."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime and os.geteuid() != 0:
        runtime = _logged_in()
    if runtime and _rootless():
        return os.path.join(runtime, "minirun")
    if os.geteuid() != 0:
        raise MinirunError(
            "no directory for the state of containers: XDG_RUNTIME_DIR is not set",
            cause="su and sudo -u make no session of the user's",
            fix="log in (ssh, machinectl shell), or loginctl enable-linger USER; or --root DIR",
        )
    return "/run/minirun"


def _logged_in() -> str:
    """The directory that XDG_RUNTIME_DIR names in every session of this user; "" if none."""
    uid = os.geteuid()
    path = f"/run/user/{uid}"
    try:
        return path if os.stat(path).st_uid == uid else ""
    except FileNotFoundError:
        return ""


def _rootless() -> bool:
    # Root of a user namespace made by podman or rootlesskit keeps the name of its user.
    if os.geteuid() != 0:
        return True
    return os.environ.get("USER") != "root" and in_user_namespace()


def state_root(options: Options) -> str:
    """Return the absolute path of the state directory. Raises UsageError for /."""
    if options.root is None:
        return default_root()
    root = os.path.abspath(str(options.root))
    if root == "/":
        raise UsageError("option --root argument should not be set to /")
    return root


def container_id(options: Options) -> str:
    """Return the first positional, which must be a container's ID.

    Raises MinirunError unless it is 1 to 255 of [A-Za-z0-9_+.-], and neither . nor .. nor hidden
    nor like an option: it becomes the name of a directory, a cgroup and a socket.
    """
    name = str(options.args[0]) if options.args else ""
    if not name:
        raise MinirunError("container id cannot be empty")
    for char in name:
        if not (char.isascii() and (char.isalnum() or char in "_+-.")):
            bad = ascii(char)[1:-1]
            # The words of runc and of crun.
            raise MinirunError(
                f"invalid container ID format: invalid character `{bad}` in the ID", fix=_ID
            )
    if len(name) > 255 or name[0] in ".-":
        raise MinirunError("invalid container ID format", fix=_ID)
    return name
