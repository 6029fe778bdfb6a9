"""Where the containers' state is, as the global options say."""

from __future__ import annotations

import os

from minirun.errors import MinirunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.grammar import Options


def default_root() -> str:
    """Return the state directory of this user: /run/minirun, or below $XDG_RUNTIME_DIR."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _rootless():
        return os.path.join(runtime, "minirun")
    return "/run/minirun"


def _rootless() -> bool:
    # Root of a user namespace made by podman or rootlesskit keeps the name of its user.
    return os.geteuid() != 0 or os.environ.get("USER", "root") not in ("root", "")


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
    allowed = name.isascii() and all(char.isalnum() or char in "_+-." for char in name)
    if not allowed or len(name) > 255 or name[0] in ".-":
        raise MinirunError("invalid container ID format")
    return name
