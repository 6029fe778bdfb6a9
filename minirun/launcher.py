"""How the program starts: isolated from its caller, sealed from its containers.

    main()             the installed script's entry: `python3 -ISB`, site-packages appended by it
    console_script()   pip's entry, whose interpreter is not isolated: it starts another that is

A process in a container can be looked at from inside it, and /proc/PID/exe is then a handle on the
host's interpreter: a container's root could wait for the process to end and overwrite the file
(CVE-2019-5736). So no interpreter is where a container's processes are (`kernel.trampoline`),
except in two cases, for which `require_sealed` first becomes a copy of the interpreter in a sealed
memfd: a pid namespace that others are in already, and startContainer hooks, which Python must run
inside. Copying costs 4 ms and the second start 12 ms.

Nothing but os and sys is loaded here; the command line loads what its verb needs.
"""

from __future__ import annotations

import gc
import os
import sys

from minirun import precompiled
from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

# They start programs of the container and of its hooks: in an environment reduced to what is kept.
ENTERING_VERBS = frozenset(("create", "run", "exec", "restore"))

# The global options that take a value (a test compares them with options.GLOBALS).
GLOBALS_WITH_VALUE = frozenset(("root", "log", "log-format", "criu", "rootless", "cgroup-manager"))

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_KEPT = frozenset(
    """HOME USER TERM LANG LANGUAGE XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS
    DBUS_SYSTEM_BUS_ADDRESS NOTIFY_SOCKET LISTEN_FDS LISTEN_PID LISTEN_FDNAMES SUDO_UID SUDO_GID
    SUDO_USER NO_COLOR COLUMNS LINES
    """.split()  # noqa: SIM905 - one word per line says no more
)
_KEPT_PREFIXES = ("LC_", "MINIRUN_")
# The loader, the C library or the interpreter act on these: never kept, not even when asked for.
_DANGEROUS = frozenset(
    """GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LOCALDOMAIN LOCPATH NIS_PATH NLSPATH
    RES_OPTIONS RESOLV_HOST_CONF TZDIR OPENSSL_CONF OPENSSL_MODULES __PYVENV_LAUNCHER__
    _MINIRUN_SEALED
    """.split()  # noqa: SIM905
)
_DANGEROUS_PREFIXES = ("LD_", "PYTHON", "MALLOC_")

MFD_EXEC = 0x10  # since 6.3; earlier kernels answer EINVAL
F_ADD_SEALS = 1033
ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE

_SYSTEM_GROUPS = 1000  # below: groups of the distribution, such as Debian's staff of /usr/local


def main() -> NoReturn:
    """Run the program and exit with its status. The interpreter must be isolated (-I)."""
    if not sys.flags.isolated:
        console_script()
    start(sys.argv[1:], check=True)


def console_script() -> NoReturn:
    """Start the program again in an isolated interpreter; for entries that are not."""
    boot = f"import sys; sys.path += {_import_paths()!r}; from minirun.launcher import main; main()"
    scrub_environment()
    program = interpreter()
    os.execve(program, [program, "-ISB", "-c", boot, *sys.argv[1:]], os.environ)


def interpreter() -> str:
    """Return the path of this interpreter's file.

    sys.executable is what __PYVENV_LAUNCHER__ or PYTHONEXECUTABLE say, even of an isolated one
    (CPython, Modules/getpath.py).
    """
    return os.readlink("/proc/self/exe").removesuffix(" (deleted)")


def start(argv: Sequence[str], *, check: bool) -> NoReturn:
    """Prepare the process, run the command line, and exit.

    With `check`, root refuses to run code that others can change.
    """
    # Making the modules' functions and classes, all of which stay, sets it off again and again:
    # 11 ms. The verbs for people turn it on again.
    gc.disable()
    try:
        open_streams()
        precompiled.use()
        _leave(_start(argv, check=check))
    except KeyboardInterrupt:
        sys.exit(128 + 2)
    except Exception as error:  # noqa: BLE001 - not even the means to tell errors could be loaded
        what = "cannot allocate memory" if isinstance(error, MemoryError) else f"{error!a}"
        os.write(2, f"minirun: {what}\n".encode())
        os._exit(1)


def open_streams() -> None:
    """Have /dev/null where the caller has closed a standard stream.

    Else the next file to be opened would be taken for it, and what is said be written there.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free: open(2).
            os.set_inheritable(os.open("/dev/null", os.O_RDWR | os.O_NOCTTY), True)


def _leave(status: int) -> NoReturn:
    """Exit; without taking the interpreter to pieces (3 ms) where nothing waits for the end."""
    if "atexit" in sys.modules or "threading" in sys.modules:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status & 0xFF)


def _start(argv: Sequence[str], *, check: bool) -> int:
    try:
        if not private_executable() and check and os.geteuid() == 0:
            refuse_writable(code_paths())
        name_process()
    except (MinirunError, OSError) as error:
        from minirun.cli import fail_early

        return fail_early(argv, error)
    if verb_of(argv) in ENTERING_VERBS:
        reduce_environment(argv)
    scrub_environment()
    from minirun.cli import main as run

    return run(argv)


def _import_paths() -> list[str]:
    """List where this package and what it needs are, without the user's own site-packages."""
    site = sys.modules.get("site")
    user = getattr(site, "USER_SITE", None)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ends = ("site-packages", "dist-packages")
    found = [p for p in sys.path if os.path.isabs(p) and p.endswith(ends) and p != user]
    return [package, *(path for path in found if path != package)]


def verb_of(argv: Sequence[str]) -> str:
    """Find the verb on a command line: the first word that is no global option or its value."""
    words = iter(argv)
    for word in words:
        if word == "--":
            return next(words, "")
        if len(word) < 2 or word[0] != "-":
            return word
        if word.lstrip("-") in GLOBALS_WITH_VALUE:
            next(words, None)
    return ""


def private_executable() -> bool:
    """Tell whether no path on the host names this process's executable, as a memfd has none."""
    try:
        return os.stat("/proc/self/exe").st_nlink == 0
    except FileNotFoundError as error:
        raise MinirunError(
            "/proc/self/exe does not exist", cause="/proc is not mounted", fix="mount /proc"
        ) from error


def name_process() -> None:
    """Give the process its name: env(1) has it "python3", a descriptor its number."""
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"minirun")
    os.close(fd)


def require_sealed() -> None:
    """Have this process run from a sealed copy: start again unless it does.

    For use before anything is done, since all that was done so far is done again. Raises
    MinirunError, OSError.
    """
    if not private_executable():
        become_sealed(sys.argv[1:])


def become_sealed(argv: Sequence[str]) -> NoReturn:
    """Start again from a sealed copy of the interpreter in memory. Raises MinirunError, OSError."""
    guard = "_MINIRUN_SEALED"
    if guard in os.environ:
        raise MinirunError(
            "the sealed copy of the interpreter is not what runs",
            cause="/proc/self/exe still names a file after starting from memory",
        )
    environment = clean_environment(os.environ, asked_for(argv))
    environment[guard] = "1"
    # argv[0] must stay the path: the interpreter finds its library from there.
    os.execve(sealed_copy(), [interpreter(), *sys.orig_argv[1:]], environment)


def sealed_copy(path: str = "/proc/self/exe") -> int:
    """Copy an executable into a sealed memfd, and return its close-on-exec descriptor."""
    import fcntl

    memory = _memfd()
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, done = os.fstat(source).st_size, 0
        while done < size:
            copied = os.sendfile(memory, source, done, size - done)
            if copied == 0:
                raise MinirunError(f"{path} became shorter while it was copied")
            done += copied
        fcntl.fcntl(memory, F_ADD_SEALS, ALL_SEALS)
    finally:
        os.close(source)
    return memory


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("minirun", flags | MFD_EXEC)
    except PermissionError as error:
        raise MinirunError(
            "memfd_create: permission denied",
            cause="vm.memfd_noexec=2 forbids executables in memory",
            fix="sysctl vm.memfd_noexec=1",
        ) from error
    except OSError as error:
        if error.errno != 22:  # EINVAL: before 6.3 every memfd was executable
            raise
        return os.memfd_create("minirun", flags)


def clean_environment(environment: Mapping[str, str], asked: Iterable[str] = ()) -> dict[str, str]:
    """Return what of an environment is kept: what minirun reads, and the names `asked` for."""
    names = _KEPT.union(asked)
    kept = {
        name: value
        for name, value in environment.items()
        if (name in names or name.startswith(_KEPT_PREFIXES)) and not _dangerous(name)
    }
    kept["PATH"] = SAFE_PATH
    return kept


def _dangerous(name: str) -> bool:
    return name in _DANGEROUS or name.startswith(_DANGEROUS_PREFIXES)


def reduce_environment(argv: Sequence[str]) -> None:
    """Leave in this process's environment only what is kept, and what the command line asks for."""
    kept = clean_environment(os.environ, asked_for(argv))
    os.environ.clear()
    os.environ.update(kept)


def asked_for(argv: Sequence[str]) -> Iterator[str]:
    """Give the variables that `-e NAME` on a command line passes into the container by name."""
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.lstrip("-") in ("e", "env") and name.startswith("-"):
            wanted = value if equals else "".join(argv[number + 1 : number + 2])
            if "=" not in wanted:
                yield wanted


def scrub_environment() -> None:
    """Remove from this process's environment what would act on the programs it starts."""
    for name in list(os.environ):
        if _dangerous(name):
            del os.environ[name]


def code_paths() -> list[str]:
    """List the files and directories that this program's code comes from."""
    compiled = precompiled.path()
    return [
        interpreter(),
        *[path for path in sys.orig_argv[:1] if os.path.isabs(path)],  # a link to it
        os.path.dirname(os.__file__),
        os.path.dirname(os.path.abspath(__file__)),
        *[path for path in (os.path.dirname(compiled), compiled) if os.path.exists(path)],
        os.path.abspath(sys.argv[0]) if sys.argv[0] not in ("", "-c") else "/",
    ]


def refuse_writable(paths: Iterable[str]) -> None:
    """Refuse files and directories, and the directories above them, that others than root own.

    Who can change them could have root run anything. Raises MinirunError.
    """
    seen: set[str] = set()
    for path in paths:
        for place in (path, os.path.realpath(path)):
            while place not in seen:
                seen.add(place)
                reason = _changeable(place)
                if reason:
                    raise MinirunError(
                        f"refusing to run as root from {place}: {reason}",
                        cause="whoever can change it could have root run anything",
                        fix="install minirun where only root can write (scripts/install)",
                    )
                place = os.path.dirname(place)  # noqa: PLW2901 - up to the root


def _changeable(path: str) -> str:
    status = os.stat(path)
    if status.st_uid != 0 and not _in_user_namespace():
        return f"it belongs to uid {status.st_uid}"
    sticky = status.st_mode & 0o1000 and status.st_mode & 0o040000
    if status.st_mode & 0o002 and not sticky:
        return "everyone can write to it"
    if status.st_mode & 0o020 and not sticky and status.st_gid >= _SYSTEM_GROUPS:
        return f"group {status.st_gid} can write to it"
    return ""


def _in_user_namespace() -> bool:
    """Tell whether root here is an ordinary user outside, to whom the host's files look foreign."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]
