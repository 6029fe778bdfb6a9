"""What the first process starts with: command, variables, directory, host name, rlimits."""

from __future__ import annotations

import os

from minirun import units
from minirun.engine import defaults
from minirun.errors import MinirunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_MAX_FILE = 1 << 20
_PATH_MAX = 4096 - 1
_HOSTNAME_MAX = 64  # sethostname(2)
_LABEL_MAX = 63  # of a name's part in DNS, which a default name should be
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_HOSTNAME = frozenset(_LETTERS + "-.")

# Reapers that need no library of the container's, in the order of preference.
INITS = ("/usr/bin/catatonit", "/usr/libexec/podman/catatonit", "/usr/bin/tini-static")
INIT_TARGET = "/dev/init"

RLIMITS = (
    "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE",
    "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
)  # fmt: skip
_UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY


def variables(
    fixed: Mapping[str, str], files: Iterable[str], values: Iterable[str], caller: Mapping[str, str]
) -> list[str]:
    """Give process.env: `fixed`, then what files hold, then `-e`; the last one of a name wins.

    `-e NAME` takes the value of `caller`, the caller's environment, and nothing if it has none.
    Nothing else of the caller's gets in. Raises UsageError for a name that is empty.
    """
    found = dict(fixed)
    for path in files:
        for line in _lines(path):
            name, equals, value = line.partition("=")
            if not equals:
                raise UsageError(
                    f"--env-file {path}: {line[:80]!r} has no value",
                    fix=f"write {line[:80]}=VALUE, or pass -e {line[:80]}",
                )
            found[_name(name, f"--env-file {path}")] = value
    for text in values:
        name, equals, value = text.partition("=")
        _name(name, f"--env {text[:80]!r}")
        if equals:
            found[name] = value
        elif name in caller:
            found[name] = caller[name]
    for name, value in found.items():
        if "\0" in value:
            raise UsageError(f"environment variable {name} holds a NUL byte")
    return [f"{name}={value}" for name, value in found.items()]


def _name(name: str, where: str) -> str:
    if not name or "\0" in name or any(char.isspace() for char in name):
        raise UsageError(
            f"{where}: invalid name of a variable: {name!r}", fix="write NAME=VALUE, or NAME alone"
        )
    return name


def _lines(path: str) -> list[str]:
    """Read an env file: `NAME=VALUE` lines as they are, without quotes; # begins a comment line."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise MinirunError(f"--env-file {path}: {(error.strerror or '').lower()}") from None
    try:
        data = b""
        while len(data) <= _MAX_FILE and (chunk := os.read(fd, 65536)):
            data += chunk
    except IsADirectoryError:
        raise MinirunError(f"--env-file {path}: is a directory") from None
    finally:
        os.close(fd)
    if len(data) > _MAX_FILE:
        raise MinirunError(f"--env-file {path}: larger than {_MAX_FILE >> 20} MiB")
    try:
        lines = [line.removesuffix("\r").lstrip() for line in data.decode().split("\n")]
    except UnicodeDecodeError:
        raise MinirunError(f"--env-file {path}: is not UTF-8") from None
    return [line for line in lines if line and not line.startswith("#")]


def command(words: Sequence[str], init: bool) -> list[str]:
    """Give process.args: the command (a shell by default), behind the tiny init if asked for."""
    args = list(words) or list(defaults.COMMAND)
    if any("\0" in word for word in args):
        raise UsageError("the command holds a NUL byte")
    return [INIT_TARGET, "--", *args] if init else args


def init_mount() -> dict[str, Any]:
    """Give the mount of the host's tiny init. Raises MinirunError when none is installed."""
    for path in INITS:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return {
                "destination": INIT_TARGET,
                "type": "bind",
                "source": os.path.realpath(path),
                "options": ["bind", "ro", "nosuid", "nodev"],
            }
    raise MinirunError(
        "--init: no static init program is installed",
        cause=f"looked for {', '.join(INITS)}",
        fix="apt-get install catatonit (or tini)",
    )


def directory(text: str | None) -> str:
    """Check `-w`: absolute and plain; / when not given."""
    path = "/" if text is None else text
    if not path.startswith("/") or "\0" in path or len(path) > _PATH_MAX:
        raise UsageError(f"--workdir must be an absolute path, not {path[:80]!r}")
    if ".." in path.split("/"):
        raise UsageError("--workdir must not hold '..'")
    return path


def hostname(text: str | None, cid: str) -> str:
    """Check `--hostname`; by default it is the ID, with what DNS does not allow turned into `-`."""
    if text is None:
        plain = "".join([char if char in _LETTERS else "-" for char in cid])
        return plain.strip("-")[:_LABEL_MAX].rstrip("-") or "minirun"
    ends = text[:1] in ("-", ".") or text[-1:] in ("-", ".")
    if not 0 < len(text) <= _HOSTNAME_MAX or not _HOSTNAME.issuperset(text) or ends:
        raise UsageError(
            f"invalid --hostname {text[:80]!r}",
            fix="it has at most 64 letters, digits, dots and hyphens",
        )
    return text


def rlimits(values: Iterable[str]) -> list[dict[str, Any]]:
    """Read `--ulimit TYPE=SOFT[:HARD]` over the defaults; -1 and `unlimited` are no limit."""
    found = dict(defaults.RLIMITS)
    for text in values:
        name, equals, numbers = text.partition("=")
        kind = name.upper().removeprefix("RLIMIT_")
        parts = numbers.split(":")
        if not equals or kind not in RLIMITS or len(parts) > 2:
            types = ", ".join(sorted(RLIMITS)).lower()
            raise UsageError(
                f"invalid --ulimit {text!r}: want TYPE=SOFT[:HARD]", fix=f"types: {types}"
            )
        soft, hard = _rlimit(parts[0], text), _rlimit(parts[-1], text)
        if soft > hard:
            raise UsageError(f"--ulimit {text!r}: the soft limit is above the hard one")
        found[f"RLIMIT_{kind}"] = (soft, hard)
    return [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in found.items()]


def _rlimit(text: str, whole: str) -> int:
    if text in ("-1", "unlimited"):
        return _UNLIMITED
    try:
        return units.parse_count(text)
    except UsageError as error:
        raise UsageError(f"--ulimit {whole!r}: {error.message}") from None
