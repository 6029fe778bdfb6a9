"""A machine that was recorded or described: a directory with `host.json`.

    {"like": "../intel-bare",             another such directory that this one differs from
     "files": {PATH: TEXT, or [LINE, …], or {"hex": …}},
     "names": {DIRECTORY: [NAME, …]},     what a file or status below it does not tell already
     "status": {PATH: {"mode", "uid", "gid", "rdev", "ino", "dev"}},
     "ask": {"uname": …, "ids": …, "log": …, "config": …, "cpuid": …, "kvm": …, "probe": …}}

Anywhere {"errno": "EACCES"} is a refusal and null takes away what `like` has; an answer may be
{"unknown": WHY}. A path that is not told of is not there.
"""

from __future__ import annotations

import errno
import os

from minirun import jsontext
from minirun.errors import MinirunError
from minirun.virt.facts import Unknown
from minirun.virt.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PARTS = ("files", "names", "status", "ask")
_MOST_LIKE = 8
_DEFAULTS = {"mode": 0o100444, "uid": 0, "gid": 0, "rdev": 0, "ino": 0, "dev": 0}


class FixtureError(MinirunError):
    """The directory describes no machine."""

    exit_code = 2  # not 1, which is the "no" of --is


class FixtureHost(Host):
    """A machine that answers from tables."""

    def __init__(self, tables: dict[str, dict[str, Any]]) -> None:
        self.tables = tables
        self._files, self._names = tables.get("files", {}), tables.get("names", {})
        self._status, self._asked = tables.get("status", {}), tables.get("ask", {})

    def read(self, path: str) -> bytes:
        found = self._files.get(path)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        _refuse(found, path)
        if isinstance(found, dict):
            return bytes.fromhex(found["hex"])
        return ("\n".join(found) if isinstance(found, list) else str(found)).encode()

    def names(self, path: str) -> list[str]:
        explicit = self._names.get(path)
        _refuse(explicit, path)
        lead = path.rstrip("/") + "/"
        below = {one[len(lead) :].partition("/")[0]
                 for table in (self._files, self._names, self._status) for one in table
                 if one.startswith(lead) and table[one] is not None}  # fmt: skip
        if explicit is None and not below:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted({*(explicit or []), *below} - {""})

    def status(self, path: str) -> dict[str, int]:
        found = self._status.get(path)
        if found is None and self._files.get(path) is None:
            lead, _, name = path.rpartition("/")
            _refuse(self._names.get(lead or "/"), lead)
            # A name in a listing has a status too, and so has a directory.
            if name not in (self._names.get(lead or "/") or []):
                self.names(path)
        _refuse(found, path)
        return {**_DEFAULTS, **(found or {})}

    def ask(self, what: str) -> Any:
        found = self._asked.get(what)
        if found is None:
            raise Unknown(f"{what.partition(':')[0]} was not recorded")
        _refuse(found, what)
        if isinstance(found, dict) and "unknown" in found:
            raise Unknown(str(found["unknown"]))
        return found


def _refuse(found: Any, path: str) -> None:
    if isinstance(found, dict) and "errno" in found:
        number = getattr(errno, str(found["errno"]), errno.EIO)
        raise OSError(number, os.strerror(number), path)


def load(directory: str) -> FixtureHost:
    """Read a directory. Raises FixtureError."""
    return FixtureHost(_tables(directory, _MOST_LIKE))


def _tables(directory: str, left: int) -> dict[str, dict[str, Any]]:
    path = os.path.join(directory, "host.json")
    try:
        found = jsontext.read(path, path)
    except OSError as error:
        strerror = os.strerror(error.errno or 0).lower()
        raise FixtureError(f"{path}: {strerror}", fix="virt --record DIR makes one") from None
    except MinirunError as error:
        raise FixtureError(error.message) from None
    if not isinstance(found, dict) or not set(found) <= {"like", "about", *PARTS}:
        raise FixtureError(f"{path}: only like, about, {', '.join(PARTS)} may stand in it")
    if not all(isinstance(found.get(part, {}), dict) for part in PARTS):
        raise FixtureError(f"{path}: {', '.join(PARTS)} must be objects")
    base: dict[str, dict[str, Any]] = {}
    if "like" in found:
        if not left or not isinstance(found["like"], str):
            raise FixtureError(f"{path}: like goes in a circle, or is no path")
        base = _tables(os.path.join(directory, found["like"]), left - 1)
    return {part: {**base.get(part, {}), **found.get(part, {})} for part in PARTS}
