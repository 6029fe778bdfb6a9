"""exec: another process in a container, from a JSON file or from the container's own and flags."""

from __future__ import annotations

from minirun import container, jsontext
from minirun.cli.lifecycle import preserve_fds
from minirun.cli.place import container_id, state_root
from minirun.cli.wrap import wrapped
from minirun.errors import MinirunError
from minirun.setup import Launch
from minirun.spec import ID_MAX, Capabilities, Process, User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.grammar import Options


@wrapped("exec failed", exit_code=255)
def exec_(options: Options) -> int:
    """`minirun exec`; the exit status is the process's."""
    root, cid = state_root(options), container_id(options)
    if options.process is not None:
        process = read_process(options.process)
    else:
        with container.load(root, cid) as found:
            process = process_of(options, found.spec.process or Process())
    launch = Launch(
        console_socket=options.console_socket,
        pid_file=options.pid_file,
        pidfd_socket=options.pidfd_socket,
        preserve_fds=preserve_fds(options),
        detach=options.detach,
        cgroup=cgroup_of(options.cgroup),
        ignore_paused=options.ignore_paused,
    )
    return container.exec_process(root, cid, process, launch)


def read_process(path: str) -> Process:
    """Read a process from a JSON file. Raises OSError, JSONError or ConfigError."""
    return Process.decode(jsontext.read(path, path, pipe=True), "process")


def process_of(options: Options, base: Process) -> Process:
    """Change the container's process as the flags say. Raises MinirunError."""
    if len(options.args) < 2:
        raise MinirunError(
            "process args cannot be empty",
            fix="name the command after the ID, as in minirun exec ID sh",
        )
    changed: dict[str, Any] = {
        "args": options.args[1:],
        "terminal": options.tty,
        "env": (*base.env, *options.env),
        "user": user_of(options, base.user),
    }
    flags = {"cwd": "cwd", "apparmor": "apparmor_profile", "process_label": "selinux_label"}
    for flag, field in flags.items():
        if getattr(options, flag):
            changed[field] = getattr(options, flag)
    if options.given("no_new_privs"):
        changed["no_new_privileges"] = options.no_new_privs
    if options.cap:
        changed["capabilities"] = _more(base.capabilities or Capabilities(), options.cap)
    return base.replace(**changed)


def _more(base: Capabilities, names: tuple[str, ...]) -> Capabilities:
    # Ambient ones need inheritable ones (capabilities(7)), which --cap does not give.
    ambient = (*base.ambient, *names) if base.inheritable else base.ambient
    return base.replace(
        bounding=(*base.bounding, *names),
        effective=(*base.effective, *names),
        permitted=(*base.permitted, *names),
        ambient=ambient,
    )


def user_of(options: Options, base: User) -> User:
    """Change the container's user as --user UID[:GID] and --additional-gids say."""
    changed: dict[str, Any] = {}
    if options.user is not None:
        uid, colon, gid = str(options.user).partition(":")
        changed["uid"] = number_of(uid, "uid")
        if colon:
            changed["gid"] = number_of(gid, "gid")
    more = tuple([number_of(gid, "additional gid") for gid in options.additional_gids])
    if more:
        changed["additional_gids"] = (*base.additional_gids, *more)
    return base.replace(**changed)


def number_of(text: str, what: str) -> int:
    """Read a user's or group's number; int() would take "1_0", " 1" and other scripts' digits.

    Raises MinirunError for anything but plain digits without leading zeros, up to 2**32 - 2.
    """
    plain = text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")
    if not plain or len(text) > 10 or int(text) > ID_MAX:
        raise MinirunError(f'invalid {what} "{text}"', fix="use numbers, as in --user 1000:1000")
    return int(text)


def cgroup_of(values: tuple[str, ...]) -> str | None:
    """Return the sub-cgroup to run in: a path in the container's own. Raises MinirunError."""
    if not values:
        return None
    path = values[-1]
    if len(values) > 1 or ":" in path:
        raise MinirunError(
            "--cgroup takes one path without a controller",
            cause="cgroup v2 has one tree for all controllers",
        )
    if ".." in path.split("/"):
        raise MinirunError(f'--cgroup {path}: bad sub cgroup path: must not hold ".."')
    return path.lstrip("/") or "."  # "/" is the top of the container, whatever init is in
