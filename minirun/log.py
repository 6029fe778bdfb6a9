"""Where errors, warnings and debug lines go: as engines read them, or as people do.

Without --log an error is one line on stderr, `minirun: <message>`; on a terminal its cause and fix
follow. With --log FILE it is appended to FILE as one record and goes to stderr as well. Under
--log-format json a record is one object `{"level":…,"msg":…,"time":…}` per line, which is how
containerd, podman and CRI-O read it; podman reads the whole file as a single object, so nothing but
the error may stand in it: warnings are left out there.
"""

from __future__ import annotations

import errno
import os

from minirun.errors import MinirunError, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.grammar import Options

STDERR = 2

# A full disk, a closed pipe or descriptor: there is nobody left to tell.
_NOBODY_LEFT = (
    errno.EPIPE, errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EAGAIN,
)  # fmt: skip


class _Sink:
    """Where this process logs to; `fd` is STDERR until a log file is opened."""

    fd = STDERR
    json = False
    debug = False


def configure(options: Options) -> None:
    """Open the log that the global options ask for. Raises MinirunError if it cannot be opened."""
    _Sink.debug = bool(options.debug)
    _Sink.json = options.log_format == "json"
    if options.log:
        _Sink.fd = _open(options.log)


def _open(path: str) -> int:
    # O_NONBLOCK: a FIFO without a reader in the log's place must be an error, not a hang.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_SYNC | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags | os.O_NONBLOCK, 0o644)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MinirunError(f"open log {path}: {reason.lower()}") from None


def error(failure: MinirunError | OSError) -> None:
    """Report the failure that ends this process: to the log, and to people on stderr."""
    message = describe(failure)
    if _Sink.fd != STDERR or _Sink.json:
        _record("error", message)
    if _Sink.fd != STDERR or not _Sink.json:
        _say(message)
    if isinstance(failure, MinirunError) and not _Sink.json and os.isatty(STDERR):
        for label, text in (("cause", failure.cause), ("fix", failure.fix)):
            if text:
                _write(STDERR, f"  {label}: {printable(text)}\n")


def warning(message: str, *, always: bool = False, shown: bool = False) -> None:
    """Log something that is wrong but stops nothing.

    On stderr it is shown to people only, unless `always`: engines give it to the container's log.
    So it is with a log in JSON, of which engines read the errors. With `shown` it is on stderr for
    everybody, and yet not in such a log.
    """
    if _Sink.fd != STDERR:
        if always or not _Sink.json:
            _record("warning", message)
    elif always or shown or os.isatty(STDERR):
        _say(f"warning: {message}")


def debug(message: str) -> None:
    """Log a step or a system call, with --debug only."""
    if not _Sink.debug:
        return
    if _Sink.fd != STDERR or _Sink.json:
        _record("debug", message)
    else:
        _say(f"debug: {message}")


def step(event: dict[str, Any]) -> None:
    """Log what a step did: its time, then each system call with its result."""
    debug(f"{event['stage']}: {event['step']}: {event['what']} ({event['us']} µs)")
    for text, result, number in event["calls"]:
        end = f" ({errno.errorcode.get(number, number)})" if number else ""
        debug(f"{event['stage']}: {event['step']}: {text} = {result}{end}")


def debugging() -> bool:
    """Tell whether --debug was given."""
    return _Sink.debug


def _record(level: str, message: str) -> None:
    now = timestamp()
    if _Sink.json:
        from minirun import jsontext

        line = jsontext.dumps({"level": level, "msg": message, "time": now})
    else:
        line = f'time="{now}" level={level} msg="{_quoted(message)}"'
    _write(_Sink.fd, line + "\n")


def _say(message: str) -> None:
    _write(STDERR, f"minirun: {printable(message)}\n")


def _write(fd: int, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        if error.errno not in _NOBODY_LEFT:
            raise


def timestamp() -> str:
    """Return the time as RFC 3339 has it, in UTC; containerd drops a record whose time it cannot
    parse."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _quoted(message: str) -> str:
    return printable(message.replace("\\", "\\\\").replace('"', '\\"'))


def printable(text: str) -> str:
    """Escape what a terminal would act on: a container chooses names that end up in messages."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else _escape(char) for char in text])


def _escape(char: str) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode gives it
        code -= 0xDC00
    return known.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
