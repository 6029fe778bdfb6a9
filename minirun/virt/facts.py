"""What is known: facts with their source, and what is unknown with the reason.

A fact that could not be read has no value, and a reason. It is never False: whoever decides
something by a fact must ask whether it is known, and `get` gives None where it is not.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# What reading and parsing raise when a part of the host is missing, refused or malformed.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)


class Unknown(Exception):
    """A fact cannot be told; the message is the reason, for people."""


class Fact:
    """One fact. `value` is None when it is unknown, and `why` then says why."""

    __slots__ = ("name", "source", "value", "why")

    def __init__(self, name: str, value: Any, source: str, why: str = "") -> None:
        self.name, self.value, self.source, self.why = name, value, source, why


class Facts:
    """The facts by name, such as `cpu.svm.raw`, in the order in which they were found."""

    def __init__(self) -> None:
        self._found: dict[str, Fact] = {}

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._found.values())

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def say(self, name: str, value: Any, source: str) -> None:
        """Record a fact; None as its value is refused, for it would look unknown."""
        assert value is not None, name
        self._found[name] = Fact(name, value, source)

    def unknown(self, name: str, why: str, source: str = "") -> None:
        """Record that a fact cannot be told."""
        self._found[name] = Fact(name, None, source, why)

    def take(self, name: str, source: str, look: Callable[..., Any], *arguments: Any) -> Any:
        """Record what `look` returns; what it raises makes the fact unknown. Return the value."""
        try:
            value = look(*arguments)
        except (Unknown, *UNREADABLE) as error:
            self.unknown(name, reason(error, source), source)
            return None
        if value is None:
            self.unknown(name, f"{source} does not say", source)
        else:
            self._found[name] = Fact(name, value, source)
        return value

    def get(self, name: str) -> Any:
        """Return a fact's value; None when it is unknown, or was never asked for."""
        found = self._found.get(name)
        return None if found is None else found.value

    def why(self, name: str) -> str:
        """Say why a fact is unknown; "" when it is known."""
        found = self._found.get(name)
        return "was not looked for" if found is None else found.why

    def source(self, name: str) -> str:
        """Say where a fact comes from."""
        found = self._found.get(name)
        return "" if found is None else found.source

    def shown(self, name: str, yes: str = "yes", no: str = "no") -> str:
        """Render a fact for people: yes, no, its value, or `unknown (why)`."""
        value = self.get(name)
        if value is None:
            return f"unknown ({self.why(name)})"
        if value is True or value is False:
            return yes if value else no
        if isinstance(value, (list, tuple)):
            return " ".join(map(str, value)) or "none"
        return str(value)


def reason(error: BaseException, source: str) -> str:
    """Say in a few words why something could not be read."""
    if isinstance(error, Unknown):
        return str(error)
    if isinstance(error, OSError):
        where = error.filename if isinstance(error.filename, str) else source
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"not permitted: {where}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"{where} is not there"
        return f"{where}: {errno.errorcode.get(error.errno or 0, 'error')}"
    return f"{source} cannot be understood"
