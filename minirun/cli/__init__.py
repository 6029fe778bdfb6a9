"""The command line: from the words to one call, and from its result to output and exit status.

`main` is called by the launcher. The verbs that engines use are read by `minirun.options` and load
nothing but their own module; the verbs for people are click's, in `minirun.cli.human`.
"""

from __future__ import annotations

import os
import sys

from minirun import log
from minirun.errors import MinirunError, UnknownCommand, UsageError
from minirun.grammar import Options
from minirun.options import HUMAN, VERBS, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Handler = Callable[[Options], int]

STDOUT = 1
# They start no process, to which tracing would be handed on with descriptors that it closes.
_ALONE = ("events", "kill", "pause", "resume", "state", "update")
INTERRUPTED = 128 + 2


class Ended(KeyboardInterrupt):
    """A signal asks us to end: as Ctrl-C does, so that what was begun is undone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str]) -> int:
    """Run a command line (without the program's name); return the exit status."""
    try:
        return _main(argv)
    except Ended as signal:
        return 128 + signal.number
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1  # the reader of our output has gone, as in `minirun list | head -1`
    except (MinirunError, OSError) as error:
        return _fail(error)
    except Exception as bug:  # noqa: BLE001 - the last resort: one line, not a traceback
        return _internal_error(bug)


def _main(argv: Sequence[str]) -> int:
    try:
        options = parse(argv)
    except UsageError as error:
        return _misused(error)
    if not argv and "_MINIRUN_COMPLETE" in os.environ:
        return _human(options, argv)
    if options.version or _asks_for_help(options):
        return _tell(options)
    log.configure(options)
    # Whoever ignores SIGCHLD leaves it so to us, and the kernel would reap our children: signal(7).
    import _signal  # type: ignore[import-not-found]  # `signal` costs 15 ms of enums

    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) == _signal.SIG_DFL:  # else nohup(1) has us ignore it
            _signal.signal(number, _end)
    if options.verb in HUMAN:
        return _human(options, [options.verb, *options.args])
    # What minirun makes is root's alone unless it says otherwise; the log keeps the caller's umask.
    os.umask(0o077)
    handler = _handler(options.verb)
    return _traced(handler, options) if log.debugging() else handler(options)


def _asks_for_help(options: Options) -> bool:
    if options.help or options.verb in ("", "help"):
        return True
    known = options.verb in VERBS or options.verb in HUMAN  # they have read their own options
    return not known and any(word in ("-h", "--help") for word in options.args)


def _end(number: int, _frame: object) -> None:
    raise Ended(number)


def _traced(handler: Handler, options: Options) -> int:
    """Call a verb, telling in the log what it does: its system calls, its end and its time."""
    import time

    from minirun.kernel import libc

    log.debug(f"{options.verb}: pid {os.getpid()}, {version().splitlines()[0]}")
    if options.verb in _ALONE:
        libc.set_tracer(lambda text, result, number: log.debug(f"{text} = {result}"))
    start = time.monotonic()
    try:
        status = handler(options)
    finally:
        log.debug(f"{options.verb}: done after {(time.monotonic() - start) * 1000:.1f} ms")
    log.debug(f"{options.verb}: exit status {status}")
    return status


def _tell(options: Options) -> int:
    from minirun.cli.help import meant, overview, verb_help

    if options.version:
        return write(version())
    name = "".join(options.args[:1]) if options.verb == "help" else options.verb
    if name in HUMAN:
        return _human(
            options, [name, *(options.args[1:] if options.verb == "help" else ()), "--help"]
        )
    verb = VERBS.get(name)
    if verb is None and name not in ("", "help"):
        raise UnknownCommand(f"No help topic for '{name}'", fix=meant(name))  # runc's words
    if verb is None:
        return write(overview())
    status = write(verb_help(verb))
    if verb.name == "checkpoint":
        # podman and CRI-O ask for this help to learn by its exit status whether checkpoints work.
        from minirun.criu import service

        service.probe()
    return status


def _handler(name: str) -> Handler:
    verb = VERBS.get(name)
    if verb is None:
        from minirun.cli.help import meant

        raise UnknownCommand(f'unknown command "{name}"', fix=meant(name))
    return _load(verb.handler)


def _load(place: str) -> Handler:
    module, _, function = place.partition(":")
    __import__(module)
    handler: Handler = getattr(sys.modules[module], function)
    return handler


def _human(options: Options, argv: Sequence[str]) -> int:
    try:
        from minirun.cli.human import run  # click: 30 ms
    except ModuleNotFoundError as error:
        raise MinirunError(
            f"command {options.verb} needs the Python module {error.name}",
            cause="minirun runs isolated and sees only the modules that were installed with it",
            fix="scripts/install",
        ) from error
    return run(argv, options)


def _misused(error: UsageError) -> int:
    """Say what is wrong with the command line.

    As runc does, which engines may expect: help on stdout, the error on stderr. Where a person
    reads the output, the error is one line, and what to do about it another.
    """
    options: Options | None = getattr(error, "options", None)
    if options is not None:
        log.configure(options)
    verb = VERBS.get(getattr(error, "verb", ""))
    from minirun.cli import help

    if os.isatty(STDOUT):
        if not error.fix:
            error.fix = help.advice(error, verb)
        return _fail(error)
    text = help.verb_help(verb) if verb is not None else help.overview()
    write(f"Incorrect Usage.\n\n{text}\n")
    return _fail(error)


def _fail(error: MinirunError | OSError) -> int:
    log.error(error)
    return error.exit_code if isinstance(error, MinirunError) else 1


def fail_early(argv: Sequence[str], error: MinirunError | OSError) -> int:
    """Report what went wrong before the command line was looked at; return the exit status."""
    try:
        log.configure(parse(argv))
    except MinirunError:
        return _fail(error)  # without the log: the first failure is the one to tell
    return _fail(error)


def _internal_error(bug: Exception) -> int:
    if isinstance(bug, MemoryError):
        return _fail(MinirunError("cannot allocate memory"))
    if isinstance(bug, ImportError):
        return _fail(MinirunError(f"cannot load {bug.name}: {bug}"))
    text = f"internal error: {type(bug).__name__}: {bug}"
    log.error(MinirunError(text, cause="this is a bug in minirun", fix="please report it"))
    if log.debugging():
        import traceback

        for line in traceback.format_exception(bug):
            log.debug(line)
    return 1


def version() -> str:
    """Return what --version prints, in the form that engines parse: runc's."""
    from minirun import SPEC_VERSION, __version__

    python = ".".join([str(number) for number in sys.version_info[:3]])
    lines = [f"minirun version {__version__}"]
    try:
        __import__("minirun.revision")  # scripts/install writes it; a checkout has none
        lines.append(f"commit: {sys.modules['minirun.revision'].COMMIT}")
    except ModuleNotFoundError:
        pass
    lines += [f"spec: {SPEC_VERSION}", f"python: {python}"]
    library = libseccomp_version()
    if library:
        lines.append(f"libseccomp: {library}")
    return "\n".join([*lines, ""])


def libseccomp_version() -> str:
    """Return the version of libseccomp; "" where it is not installed."""
    from minirun.kernel.libseccomp import Library

    try:
        return ".".join([str(number) for number in Library().version])
    except OSError:
        return ""


def write(text: str) -> int:
    """Write to stdout, whole; return 0."""
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(STDOUT, data) :]
    return 0
