"""The payload: its working directory, environment, and the file that is executed."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # loaded with the interpreter
import errno
import os
import stat

from minirun import executable, inroot
from minirun.errors import CannotExecute, MinirunError
from minirun.kernel import process
from minirun.kernel.libc import trace
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup
    from minirun.spec import Seccomp

_X_OK_AS_EFFECTIVE = True


@step(details=lambda setup: [setup.process.cwd])
def make_cwd(setup: Setup) -> None:
    """Make the working directory where it is missing"""
    try:
        os.close(inroot.make_directory(setup.rootfd, setup.process.cwd or "/"))
    except OSError as error:
        # A read-only root, or a place that only the payload's user can reach: `enter_cwd` tells.
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


@step(
    details=lambda setup: [setup.process.cwd],
    shell=lambda s: ["cd " + quoted(s.process.cwd or "/")],
)
def enter_closed_cwd(setup: Setup) -> None:
    """Change to the working directory"""
    try:
        os.chdir(setup.process.cwd or "/")
    except PermissionError:
        return  # for that user alone, as on FUSE or NFS: `enter_cwd` tries again
    setup.in_cwd = True


@step(details=lambda setup: [setup.process.cwd])
def enter_cwd(setup: Setup) -> None:
    """Be in the working directory, inside the root"""
    if not setup.in_cwd:
        os.chdir(setup.process.cwd or "/")
    verify_cwd()


def verify_cwd() -> None:
    """Refuse a working directory outside the root (CVE-2024-21626: cwd through /proc/self/fd)."""
    try:
        path = os.getcwd()
    except FileNotFoundError:
        # kernel: getcwd(2) gives "(unreachable)…", which the C library turns into ENOENT.
        path = ""
    if not path.startswith("/"):
        raise MinirunError("current working directory is outside of container mount namespace root")


@step()
def set_umask(setup: Setup) -> None:
    """Set the file mode creation mask"""
    mask = setup.process.user.umask
    os.umask(0o022 if mask is None else mask & 0o777)


@step()
def prepare_environment(setup: Setup) -> None:
    """Make the payload's environment"""
    # An empty HOME is as good as none, as in runc: programs would take it for the directory "".
    entries = [entry for entry in last_of_each(setup.process.env) if entry != "HOME="]
    if not any(entry.startswith("HOME=") for entry in entries):
        entries.append(f"HOME={home_of(setup.rootfd, setup.process.user.uid)}")
    setup.environment = [os.fsencode(entry) for entry in entries]


def last_of_each(env: tuple[str, ...]) -> list[str]:
    """Drop all but the last entry of each name, as a shell's variable would end up."""
    found: dict[str, str] = {}
    for entry in env:
        name = entry.partition("=")[0]
        found.pop(name, None)
        found[name] = entry
    return list(found.values())


def home_of(rootfd: int, uid: int) -> str:
    """Look a user's home up in the container's /etc/passwd; `/` where it does not say."""
    data = inroot.read_file(rootfd, "/etc/passwd") or b""
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == str(uid).encode() and fields[5].startswith(b"/"):
            home = fields[5].decode("utf-8", "replace")
            # A control character would reach files that others make from HOME (CVE-2022-4318).
            return home if home.isprintable() else "/"
    return "/"


@step(details=lambda setup: [" ".join(setup.process.args)])
def resolve(setup: Setup) -> None:
    """Find the program in the container"""
    path = find(setup.process.args[0], setup.process.env)
    setup.program = os.fsencode(path)
    # 20 us, while its root and its rights are at hand: after execve has failed nobody has them.
    setup.obstacle = executable.obstacle(path)
    if not any(setup.obstacle) and _without_execve(setup.spec.linux.seccomp):
        setup.obstacle = (
            "the seccomp profile does not allow execve(2), with which every program begins",
            "allow execve in linux.seccomp.syscalls",
        )


def _without_execve(profile: Seccomp | None) -> bool:
    """Whether a filter refuses execve(2) whatever its arguments."""
    if profile is None:
        return False
    own = [rule.action for rule in profile.syscalls if "execve" in rule.names and not rule.args]
    return (own or [profile.default_action])[0] == "SCMP_ACT_ERRNO"


def find(name: str, env: tuple[str, ...]) -> str:
    """Return the path of a program as the payload's PATH finds it, as seen by this process.

    Raises CannotExecute with the words of Go's exec.LookPath, which engines turn into 126 or 127.
    """
    if not name:
        raise CannotExecute('exec: "": executable file not found in $PATH')
    if "/" in name:
        _check(name)
        return name
    search = next(
        (entry[5:] for entry in reversed(env) if entry.startswith("PATH=")),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )
    cause, fix = f"none of {search} has it", ""
    for directory in search.split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            _check(path)
        except CannotExecute as error:
            if os.path.isfile(path):
                cause, fix = error.cause, error.fix
            continue
        return path
    raise CannotExecute(f'exec: "{name}": executable file not found in $PATH', cause=cause, fix=fix)


def _check(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        strerror = (error.strerror or "").lower()
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
        cause, fix = executable.missing(path) if gone else executable.NOTHING
        raise CannotExecute(
            f'exec: "{path}": stat {path}: {strerror}', cause=cause, fix=fix
        ) from None
    if stat.S_ISDIR(mode):
        raise CannotExecute(
            f'exec: "{path}": is a directory: permission denied',
            cause="a directory cannot be executed",
            fix="name a program in it",
        )
    if not os.access(path, os.X_OK, effective_ids=_X_OK_AS_EFFECTIVE):
        cause, fix = executable.not_permitted(path)
        raise CannotExecute(f'exec: "{path}": permission denied', cause=cause, fix=fix)


@step(why="Python ignores SIGPIPE and SIGXFSZ, the caller perhaps more: signal(7)")
def reset_signals(_setup: Setup) -> None:
    """Give every signal its default action"""
    process.reset_signals()


@step(
    lambda setup: bool(setup.spec.hooks.start_container),
    why="the first process of a pid namespace gets only signals that it handles",
)
def end_by_signals(_setup: Setup) -> None:
    """End by SIGHUP, SIGINT, SIGQUIT and SIGTERM until the program runs"""
    # Where no hook is to be run after start, `payload` waits, and does the same.
    for number in process.ENDING:
        _signal.signal(number, _end)
    trace(lambda: "rt_sigaction(SIGHUP, SIGINT, SIGQUIT, SIGTERM)")


def _end(number: int, _frame: object) -> None:
    os._exit(128 + number)
