"""Values in GVariant's text form, as annotations give properties of a unit: `uint64 30000000`.

A number without a type is an int32, or a double if it has a point or an exponent. Source: GVariant
Text Format (GLib reference manual).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Typed = tuple[str, Any]

_TYPES = {
    "boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u",
    "int64": "x", "uint64": "t", "double": "d", "string": "s", "objectpath": "o",
}  # fmt: skip
_RANGES = {
    "y": (0, 1 << 8), "n": (-1 << 15, 1 << 15), "q": (0, 1 << 16), "i": (-1 << 31, 1 << 31),
    "u": (0, 1 << 32), "x": (-1 << 63, 1 << 63), "t": (0, 1 << 64),
}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}
_WORD_ENDS = " \t\n,])>:"


def parse(text: str) -> Typed:
    """Read a value; return its D-Bus signature and the value. Raises ValueError saying why."""
    reader = _Reader(text)
    found = reader.value("", 0)
    if reader.peek():
        raise ValueError(f"unexpected {reader.peek()!r} after the value")
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, char: str) -> None:
        if self.peek() != char:
            raise ValueError(f"expected {char!r}, not {self.peek() or 'the end'!r}")
        self.at += 1

    def word(self) -> str:
        self.peek()
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in _WORD_ENDS:
            self.at += 1
        return self.text[start : self.at]

    def value(self, kind: str, depth: int) -> Typed:
        """Read a value of type `kind`, or of the one that it has by itself if that is empty."""
        if depth > 16:
            raise ValueError("nested too deeply")
        char = self.peek()
        if char in ("'", '"'):
            return _as_string(kind, self._string(char))
        if char and char in "[(<":
            inside = {"[": self._array, "(": self._tuple, "<": self._variant}
            return inside[char](kind, depth)
        return self._word(kind, depth)

    def _word(self, kind: str, depth: int) -> Typed:
        word = self.word()
        if word[:1] == "@":
            return self.value(word[1:], depth + 1)
        if word in _TYPES and self.peek():
            return self.value(_same(kind, _TYPES[word]), depth + 1)
        if word in ("true", "false"):
            return _same(kind, "b"), word == "true"
        return _number(word, kind)

    def _string(self, quote: str) -> str:
        self.at += 1
        found: list[str] = []
        while True:
            char = self.text[self.at : self.at + 1]
            self.at += 1
            if not char:
                raise ValueError("a string without an end")
            if char == quote:
                return "".join(found)
            if char == "\\":
                char = self.text[self.at : self.at + 1]
                self.at += 1
                char = _ESCAPES.get(char, char)
            if char == "\0":
                raise ValueError("a string with a NUL character")
            found.append(char)

    def _variant(self, kind: str, depth: int) -> Typed:
        self.at += 1
        inner = self.value("", depth + 1)
        self.take(">")
        return _same(kind, "v"), inner

    def _array(self, kind: str, depth: int) -> Typed:
        self.at += 1
        inner = _same(kind[:1], "a") and kind[1:]
        found: list[Any] = []
        while self.peek() != "]":
            if found:
                self.take(",")
            inner, value = self.value(inner, depth + 1)
            found.append(value)
        self.at += 1
        if not inner:
            raise ValueError("an empty array needs its type, as in @as []")
        return f"a{inner}", found

    def _tuple(self, kind: str, depth: int) -> Typed:
        from minirun.dbus import split

        self.at += 1
        wanted = split(kind[1:-1]) if kind else []
        kinds: list[str] = []
        found: list[Any] = []
        while self.peek() != ")":
            if found:
                self.take(",")
                if self.peek() == ")":
                    break  # (1,): a tuple of one
            inner, value = self.value(wanted[len(found)] if len(found) < len(wanted) else "", depth)
            kinds.append(inner)
            found.append(value)
        self.at += 1
        if not found:
            raise ValueError("an empty tuple")
        return _same(kind, f"({''.join(kinds)})"), tuple(found)


def _same(wanted: str, found: str) -> str:
    if wanted and wanted != found:
        raise ValueError(f"a value of type {found} where {wanted} is asked for")
    return found


def _as_string(kind: str, text: str) -> Typed:
    if kind in ("o", "g"):
        return kind, text
    return _same(kind, "s"), text


def _number(word: str, kind: str) -> Typed:
    digits = word[1:] if word[:1] in "+-" else word
    if kind not in _RANGES and kind != "d" and kind:
        raise ValueError(f"{word or 'nothing'!r} where a value of type {kind} is asked for")
    if digits.isascii() and digits.isdigit() and kind != "d":
        value = int(digits) if len(digits) <= 20 else 1 << 64
    elif digits[:2] in ("0x", "0X") and digits[2:].isalnum() and kind != "d":
        value = int(digits, 16)
    else:
        return _double(word, digits, kind)
    value = -value if word[:1] == "-" else value
    low, end = _RANGES[kind or "i"]
    if not low <= value < end:
        raise ValueError(f"{word} does not fit into type {kind or 'i'}")
    return kind or "i", value


def _double(word: str, digits: str, kind: str) -> Typed:
    plain = digits.isascii() and digits[:1].isdigit() and "_" not in digits
    if not plain or kind not in ("", "d"):
        raise ValueError(f"{word or 'nothing'!r} is not a value")
    return "d", float(word)
