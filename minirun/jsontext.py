"""JSON as OCI uses it, without importing `json`: that costs 10 ms, most of it `re` and `enum`.

The interpreter's own C scanner and string encoder do the work. Reading is stricter than json.loads:
no NaN or Infinity, no duplicate keys, no lone surrogates, bounded size and depth.
"""

from __future__ import annotations

import os
import stat

from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_BYTES = 16 << 20  # a config.json; runc's largest known ones are below 1 MiB


class JSONError(MinirunError):
    """A text is not the JSON that is expected; the message says where."""


class _Context:
    """What the C scanner asks of its caller (CPython Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - the C code fills and clears it

    @staticmethod
    def object_pairs_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"key {twice!r} appears twice")
        return found

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")


def loads(data: bytes | str, what: str = "JSON") -> Any:
    """Parse one JSON text. `what` names it in the error.

    Raises JSONError for anything that is not exactly one valid, bounded JSON value.
    """
    if len(data) > MAX_BYTES:
        raise JSONError(f"{what}: larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return _scan(text)
    except UnicodeDecodeError as error:
        raise JSONError(f"{what}: invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise JSONError(f"{what}: nested too deeply") from None
    except StopIteration as stop:
        raise JSONError(f"{what}: no value at {_place(text, stop.value)}") from None
    except ValueError as error:
        raise JSONError(f"{what}: {error}") from None


def _scan(text: str) -> Any:
    from _json import make_scanner

    start = len(text) - len(text.lstrip(" \t\n\r"))
    hooks: Any = _Context
    scanner: Any = make_scanner(hooks)
    try:
        value, end = scanner(text, start)
    except SystemError:
        # The scanner makes its error with json.decoder, which is not loaded: only now it is needed.
        import json

        value, end = json.JSONDecoder().raw_decode(text, start)
    rest = text[end:].lstrip(" \t\n\r")
    if rest:
        raise ValueError(f"extra data at {_place(text, len(text) - len(rest))}")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _place(text: str, offset: object) -> str:
    if not isinstance(offset, int):
        return "the start"
    before = text[:offset]
    return f"line {before.count(chr(10)) + 1} column {offset - before.rfind(chr(10))}"


def _refuse_surrogates(value: Any) -> None:
    """Refuse lone surrogates, which would reach the kernel as bytes nobody wrote."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError(f"lone surrogate in {item!a}")
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def dumps(value: Any, indent: str | None = None) -> str:
    """Render `value` (dict, list, tuple, str, int, float, bool, None) as JSON.

    `indent` is the text of one level, such as two spaces; None gives one line. Non-ASCII text is
    kept; what is not valid Unicode becomes U+FFFD, so that the text is always UTF-8.
    """
    return "".join(_render(value, indent, ""))


def _render(value: Any, indent: str | None, lead: str) -> list[str]:
    if isinstance(value, str):
        return [_string(value)]
    if value is None or value is True or value is False:
        return [{None: "null", True: "true", False: "false"}[value]]
    if isinstance(value, (int, float)):
        return [repr(value)]
    deeper = lead + (indent or "")
    if isinstance(value, dict):
        items = [
            [_string(str(key)), ":" if indent is None else ": ", *_render(item, indent, deeper)]
            for key, item in value.items()
        ]
        return _enclose("{", items, "}", indent, lead)
    items = [_render(item, indent, deeper) for item in value]
    return _enclose("[", items, "]", indent, lead)


def _enclose(
    opening: str, items: list[list[str]], closing: str, indent: str | None, lead: str
) -> list[str]:
    if not items:
        return [opening + closing]
    start = "" if indent is None else f"\n{lead}{indent}"
    out = [opening]
    for number, item in enumerate(items):
        out.append(("," if number else "") + start)
        out.extend(item)
    out.append(closing if indent is None else f"\n{lead}{closing}")
    return out


def _string(value: str) -> str:
    from _json import encode_basestring

    return str(encode_basestring(value.encode("utf-8", "replace").decode("utf-8")))


def read(path: str, what: str, dirfd: int | None = None, *, pipe: bool = False) -> Any:
    """Read and parse a JSON file; a device, directory or, unless `pipe`, a FIFO is refused.

    Raises OSError if it cannot be opened, JSONError if it is not a regular file or not JSON.
    """
    return loads(read_bytes(path, what, dirfd, pipe=pipe), what)


def read_bytes(path: str, what: str, dirfd: int | None = None, *, pipe: bool = False) -> bytes:
    """Read a regular file of at most MAX_BYTES (a byte more tells that it is larger).

    With `pipe` a FIFO is read to its end too, as a shell's <(…) makes one; without a writer it is
    empty.
    """
    # O_NONBLOCK: opening a FIFO put in the file's place must not hang.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=dirfd)
    try:
        mode = os.fstat(fd).st_mode
        if pipe and stat.S_ISFIFO(mode):
            os.set_blocking(fd, True)
        elif not stat.S_ISREG(mode):
            raise JSONError(f"{what}: {path} is not a regular file")
        data = b""
        while chunk := os.read(fd, MAX_BYTES + 1 - len(data)):
            data += chunk
        return data
    finally:
        os.close(fd)
