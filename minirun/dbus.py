"""A D-Bus client, as far as asking systemd needs one: one connection, calls and signals.

A library for it takes 22 ms to import, at every create, update and delete; this takes 1. Values are
Python's, with a signature beside them; a variant is a pair of its signature and its value. Source:
the D-Bus Specification 0.43.
"""

from __future__ import annotations

import os
import struct
import time

from minirun.errors import MinirunError
from minirun.unixsocket import refuse_stranger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME = 1, 2, 3, 4  # fields of the header
_REPLY_SERIAL, _DESTINATION, _SIGNATURE = 5, 6, 8

# Basic types: how struct packs them; the size is also the alignment.
_FIXED = {
    "y": "<B", "n": "<h", "q": "<H", "i": "<i", "u": "<I", "x": "<q", "t": "<Q", "d": "<d",
}  # fmt: skip
_ALIGNMENT = {"b": 4, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8}
_MESSAGE_MAX = 1 << 27  # the specification's
_DEPTH_MAX = 32

TIMEOUT = 30.0  # seconds for any answer; runc's for a unit to start


class DBusError(MinirunError):
    """A call was answered with an error; `name` is the error's, such as org.freedesktop.…"""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Malformed(MinirunError):
    """What came is no D-Bus message."""

    def __init__(self, what: str) -> None:
        super().__init__(f"malformed d-bus message: {what}")


class Message:
    """A message that came: its kind, the header's fields by number, and the body's values."""

    def __init__(
        self, kind: int, serial: int, fields: dict[int, Any], body: tuple[Any, ...]
    ) -> None:
        self.kind = kind
        self.serial = serial
        self.fields = fields
        self.body = body

    @property
    def member(self) -> str:
        """The name of the signal or method."""
        return str(self.fields.get(_MEMBER, ""))


# ---------------------------------------------------------------- the wire format


def split(signature: str) -> list[str]:
    """Split a signature into its complete types: `sa(sv)u` is `s`, `a(sv)`, `u`."""
    found, start = [], 0
    while start < len(signature):
        end = _end_of(signature, start, 0)
        found.append(signature[start:end])
        start = end
    return found


def _end_of(signature: str, start: int, depth: int) -> int:
    if depth > _DEPTH_MAX or start >= len(signature):
        raise Malformed(f"signature {signature!r}")
    code = signature[start]
    if code == "a":
        return _end_of(signature, start + 1, depth + 1)
    if code in "({":
        close = ")" if code == "(" else "}"
        end = start + 1
        while end < len(signature) and signature[end] != close:
            end = _end_of(signature, end, depth + 1)
        if end >= len(signature) or end == start + 1:
            raise Malformed(f"signature {signature!r}")
        return end + 1
    if code not in _FIXED and code not in "bsogv":
        raise Malformed(f"signature {signature!r}")
    return start + 1


def _alignment(kind: str) -> int:
    packed = _FIXED.get(kind[0])
    return struct.calcsize(packed) if packed else _ALIGNMENT[kind[0]]


def marshal(signature: str, values: tuple[Any, ...], out: bytearray | None = None) -> bytearray:
    """Append `values` of the types in `signature` to `out`, aligned from its beginning.

    Raises ValueError, TypeError or struct.error for values that are not of these types.
    """
    out = bytearray() if out is None else out
    for kind, value in zip(split(signature), values, strict=True):
        _put(kind, value, out)
    return out


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)


def _put(kind: str, value: Any, out: bytearray) -> None:
    _pad(out, _alignment(kind))
    code = kind[0]
    if code in _FIXED:
        out += struct.pack(_FIXED[code], value)
    elif code == "b":
        out += struct.pack("<I", bool(value))
    elif code in "so":
        data = value.encode()
        if b"\0" in data:
            raise ValueError("a string with a NUL byte")
        out += struct.pack("<I", len(data)) + data + b"\0"
    elif code == "g":
        out += bytes([len(value)]) + value.encode() + b"\0"
    elif code == "v":
        inner, content = value
        _put("g", inner, out)
        _put(inner, content, out)
    elif code == "a":
        _put_array(kind[1:], value, out)
    else:
        for part, content in zip(split(kind[1:-1]), value, strict=True):
            _put(part, content, out)


def _put_array(kind: str, values: Any, out: bytearray) -> None:
    at = len(out)
    out += bytes(4)
    _pad(out, _alignment(kind))
    start = len(out)
    for value in values:
        _put(kind, value, out)
    struct.pack_into("<I", out, at, len(out) - start)


class _Reader:
    """Values from bytes, in the byte order of the message."""

    def __init__(self, data: bytes, order: str = "<", at: int = 0) -> None:
        self.data = data
        self.order = order
        self.at = at

    def values(self, signature: str) -> tuple[Any, ...]:
        return tuple([self.value(kind, 0) for kind in split(signature)])

    def value(self, kind: str, depth: int) -> Any:
        if depth > 2 * _DEPTH_MAX:
            raise Malformed("nested too deeply")
        self.align(_alignment(kind))
        code = kind[0]
        if code in _FIXED:
            return self._fixed(_FIXED[code])
        if code == "b":
            return bool(self._fixed("<I"))
        if code in "sog":
            size = self._fixed("<B" if code == "g" else "<I")
            text = self._take(size + 1)[:-1]
            return text.decode("utf-8", "replace")
        if code == "v":
            inner = str(self.value("g", depth))
            if len(split(inner)) != 1:
                raise Malformed("a variant of other than one type")
            return inner, self.value(inner, depth + 1)
        if code == "a":
            return self._array(kind[1:], depth)
        return tuple([self.value(part, depth + 1) for part in split(kind[1:-1])])

    def align(self, alignment: int) -> None:
        self.at += -self.at % alignment

    def _array(self, kind: str, depth: int) -> list[Any]:
        size = self._fixed("<I")
        self.align(_alignment(kind))
        end = self.at + size
        if end > len(self.data):
            raise Malformed("an array beyond the end")
        found = []
        while self.at < end:
            found.append(self.value(kind, depth + 1))
        return found

    def _fixed(self, packed: str) -> Any:
        packed = self.order + packed[1]
        return struct.unpack(packed, self._take(struct.calcsize(packed)))[0]

    def _take(self, size: int) -> bytes:
        data = self.data[self.at : self.at + size]
        if len(data) != size:
            raise Malformed("it ends too early")
        self.at += size
        return data


def encode(
    kind: int, serial: int, fields: dict[int, tuple[str, Any]], body: bytes, flags: int = 0
) -> bytes:
    """Make the bytes of a message; `fields` are the header's, by number, as variants."""
    out = bytearray(struct.pack("<cBBBII", b"l", kind, flags, 1, len(body), serial))
    _put("a(yv)", list(fields.items()), out)
    _pad(out, 8)
    return bytes(out) + body


def decode(data: bytes) -> tuple[Message | None, int]:
    """Read a message from the beginning of `data`; (None, how many bytes are needed) if cut off.

    Raises Malformed.
    """
    if len(data) < 16:
        return None, 16
    order = {b"l": "<", b"B": ">"}.get(data[:1])
    if order is None or data[3] != 1:
        raise Malformed("unknown byte order or version")
    body_size, serial, fields_size = struct.unpack(order + "III", data[4:16])
    start = 16 + fields_size + (-fields_size % 8)
    if start + body_size > _MESSAGE_MAX:
        raise Malformed(f"{start + body_size} bytes")
    if len(data) < start + body_size:
        return None, start + body_size
    fields = {number: value[1] for number, value in _Reader(data, order, 12).value("a(yv)", 0)}
    # The body is aligned from its own beginning, which lies at a multiple of 8.
    reader = _Reader(data[start : start + body_size], order)
    body = reader.values(str(fields.get(_SIGNATURE, "")))
    return Message(data[1], serial, fields, body), start + body_size


# ---------------------------------------------------------------- the connection


def address_of(text: str) -> str | bytes:
    """Turn the first usable address of a list into a path, or bytes for an abstract name.

    Raises MinirunError where none is a Unix socket's.
    """
    for one in text.split(";"):
        transport, _, rest = one.partition(":")
        keys = dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)
        if transport == "unix" and "path" in keys:
            return _unescaped(keys["path"])
        if transport == "unix" and "abstract" in keys:
            return b"\0" + os.fsencode(_unescaped(keys["abstract"]))
        if transport == "unix" and keys.get("runtime") == "yes":
            return os.environ.get("XDG_RUNTIME_DIR", "") + "/bus"
    raise MinirunError(f"unsupported d-bus address {text!r}", cause="only unix: sockets are used")


def _unescaped(text: str) -> str:
    head, *rest = text.split("%")
    try:
        return head + "".join([chr(int(part[:2], 16)) + part[2:] for part in rest])
    except ValueError:
        raise MinirunError(f"malformed d-bus address {text!r}") from None


class Connection:
    """A connection to a bus, or to one peer where `bus` is False. Close it, or use `with`.

    Every wait ends after `timeout` seconds with a MinirunError. So does a bus that is somebody
    else's: its address comes from the environment, which sudo(8) may have been told to keep.
    """

    def __init__(self, address: str | bytes, *, bus: bool, timeout: float = TIMEOUT) -> None:
        import _socket  # the C part of `socket` only: 1 ms instead of 12

        self.bus = bus
        self.listening = False  # whether its user has asked for signals
        self.timeout = timeout
        self._serial = 0
        self._data = b""
        self._signals: list[Message] = []
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(address)
            refuse_stranger(self._socket)
            self._authenticate()
            if bus:
                bus_object = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
                self.call(*bus_object, "org.freedesktop.DBus.Hello")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()

    def _authenticate(self) -> None:
        # Without a name: the other side takes the user that the socket tells, which in a user
        # namespace is not the number that we see.
        self._socket.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\n")
        end = time.monotonic() + self.timeout
        while b"OK " not in self._data or not self._data.endswith(b"\r\n"):
            if b"REJECTED" in self._data or len(self._data) > 4096:
                raise MinirunError("d-bus: authentication was rejected")
            self._receive(end)
        self._data = b""
        self._socket.sendall(b"BEGIN\r\n")

    def call(
        self, destination: str, path: str, method: str, signature: str = "", *values: Any
    ) -> tuple[Any, ...]:
        """Call `interface.method` and return the answer's values.

        Raises DBusError for an error that is answered, MinirunError when no answer comes in time.
        """
        interface, _, member = method.rpartition(".")
        fields: dict[int, tuple[str, Any]] = {
            _PATH: ("o", path),
            _INTERFACE: ("s", interface),
            _MEMBER: ("s", member),
            _DESTINATION: ("s", destination),
        }
        body = b""
        if signature:
            fields[_SIGNATURE] = ("g", signature)
            body = bytes(marshal(signature, values))
        self._serial += 1
        serial = self._serial
        self._socket.sendall(encode(METHOD_CALL, serial, fields, body))
        end = time.monotonic() + self.timeout
        while True:
            message = self._next(end, member)
            if message.fields.get(_REPLY_SERIAL) != serial:
                if message.kind == SIGNAL:
                    self._signals.append(message)
                continue
            if message.kind == ERROR:
                text = str(message.body[0]) if message.body else ""
                raise DBusError(str(message.fields.get(_ERROR_NAME, "")), text)
            return message.body

    def signal(self, wanted: Callable[[Message], bool], what: str) -> Message:
        """Wait for the signal that `wanted` takes, those included that came during calls."""
        end = time.monotonic() + self.timeout
        while True:
            while self._signals:
                message = self._signals.pop(0)
                if wanted(message):
                    return message
            message = self._next(end, what)
            if message.kind == SIGNAL:
                self._signals.append(message)

    def _next(self, end: float, what: str) -> Message:
        while True:
            message, size = decode(self._data)
            if message is not None:
                self._data = self._data[size:]
                return message
            if not self._receive(end):
                raise MinirunError(f"d-bus: no answer to {what} within {self.timeout:g} s")

    def _receive(self, end: float) -> bool:
        """Read what is there; False when the time is over. Raises at the end of the connection."""
        left = end - time.monotonic()
        if left <= 0:
            return False
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(self.timeout)
        if not data:
            raise MinirunError("d-bus: the connection was closed by the other side")
        self._data += data
        return True
