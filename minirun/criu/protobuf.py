"""Protocol Buffers, as much as CRIU's messages use: varints, strings, nested and repeated fields.

A message's shape is a table: field name → (number, kind), where kind is "int", "bool", "string" or
the table of a nested message. A value that is a list is a repeated field; None is left out. Source:
the encoding guide of Protocol Buffers (proto2).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Shape = Mapping[str, tuple[int, Any]]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_WORD = 1 << 64
_INT32 = 1 << 31


def encode(message: Mapping[str, Any], shape: Shape) -> bytes:
    """Encode a message; the fields in the order of their numbers. Raises KeyError if unknown."""
    out = bytearray()
    for name, value in sorted(message.items(), key=lambda item: shape[item[0]][0]):
        number, kind = shape[name]
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                out += _field(number, kind, one)
    return bytes(out)


def _field(number: int, kind: Any, value: Any) -> bytes:
    if kind in ("int", "bool"):
        # A negative int32 is sent as 64 bits of two's complement.
        return _varint(number << 3 | _VARINT) + _varint(int(value) % _WORD)
    data = value.encode("utf-8", "surrogateescape") if kind == "string" else encode(value, kind)
    return _varint(number << 3 | _LENGTH) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes, shape: Shape) -> dict[str, Any]:
    """Decode a message; fields that the table lacks are passed over.

    Of a field that stands there twice the last counts. Raises ValueError for what is no message.
    """
    known = {number: (name, kind) for name, (number, kind) in shape.items()}
    found: dict[str, Any] = {}
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        name, kind = known.get(key >> 3, ("", None))
        value, place = _read_value(data, place, key & 7)
        if name:
            found[name] = _value(value, kind)
    return found


def _read_value(data: bytes, place: int, wire: int) -> tuple[int | bytes, int]:
    if wire == _VARINT:
        return _read_varint(data, place)
    if wire == _LENGTH:
        length, place = _read_varint(data, place)
    elif wire in _SIZES:
        length = _SIZES[wire]
    else:
        raise ValueError(f"unknown wire type {wire}")
    if place + length > len(data):
        raise ValueError("the message ends within a field")
    return data[place : place + length], place + length


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("the message ends within a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _value(value: int | bytes, kind: Any) -> Any:
    if isinstance(value, int) != (kind in ("int", "bool")):
        raise ValueError("a field is of another type")
    if kind == "bool":
        return bool(value)
    if isinstance(value, int):
        value %= 1 << 32
        return value - (1 << 32) if value >= _INT32 else value
    return value.decode("utf-8", "replace") if kind == "string" else decode(value, kind)
