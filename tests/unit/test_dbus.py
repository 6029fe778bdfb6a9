"""The D-Bus client, beside jeepney: what one writes the other must read."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import (
    Endianness,
    Header,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    Parser,
)

from minirun import dbus
from minirun.errors import MinirunError

BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(1 << 15), (1 << 15) - 1),
    "q": st.integers(0, (1 << 16) - 1),
    "i": st.integers(-(1 << 31), (1 << 31) - 1),
    "u": st.integers(0, (1 << 32) - 1),
    "x": st.integers(-(1 << 63), (1 << 63) - 1),
    "t": st.integers(0, (1 << 64) - 1),
    "d": st.floats(allow_nan=False),
    "s": st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=9),
    "g": st.sampled_from(["", "s", "a(sv)"]),
}


def typed(depth: int = 2) -> st.SearchStrategy[tuple[str, Any]]:
    """A signature of one complete type, and a value of it."""
    basic = st.sampled_from(sorted(BASIC)).flatmap(lambda c: st.tuples(st.just(c), BASIC[c]))
    if depth == 0:
        return basic
    inner = typed(depth - 1)
    variant = inner.map(lambda pair: ("v", pair))
    array = inner.map(lambda pair: (f"a{pair[0]}", [pair[1]] * 2))
    struct = st.lists(inner, min_size=1, max_size=3).map(
        lambda pairs: (f"({''.join(s for s, _ in pairs)})", tuple(v for _, v in pairs))
    )
    return basic | variant | array | struct


def bytes_as_jeepney_has_them(signature: str, value: Any) -> Any:
    """Jeepney gives an array of bytes as bytes."""
    if signature == "ay":
        return bytes(value)
    if signature == "v":
        return value[0], bytes_as_jeepney_has_them(*value)
    if signature[0] == "a":
        return [bytes_as_jeepney_has_them(signature[1:], one) for one in value]
    if signature[0] == "(":
        kinds = dbus.split(signature[1:-1])
        return tuple(map(bytes_as_jeepney_has_them, kinds, value))
    return value


def theirs(kind: MessageType, signature: str, body: tuple[Any, ...], **fields: Any) -> Message:
    named = {HeaderFields[name]: value for name, value in fields.items()}
    if signature:
        named[HeaderFields.signature] = signature
    header = Header(Endianness.little, kind, MessageFlag(0), 1, -1, 7, named)
    return Message(header, body)


@given(typed())
def test_what_is_written_is_read_by_another(pair: tuple[str, Any]) -> None:
    signature, value = pair
    body = bytes(dbus.marshal(signature, (value,)))
    data = dbus.encode(
        dbus.METHOD_CALL, 7, {1: ("o", "/x"), 3: ("s", "M"), 8: ("g", signature)}, body
    )
    parser = Parser()
    parser.add_data(data)
    message = parser.get_next_message()
    assert message is not None
    assert message.header.fields[HeaderFields.member] == "M"
    assert message.body == (bytes_as_jeepney_has_them(signature, value),)


@given(typed())
def test_what_another_writes_is_read(pair: tuple[str, Any]) -> None:
    signature, value = pair
    told = bytes_as_jeepney_has_them(signature, value)
    message = theirs(MessageType.method_return, signature, (told,), reply_serial=3)
    data = message.serialise(serial=7)
    for cut in (0, 15, len(data) - 1):
        found, needed = dbus.decode(data[:cut])
        assert found is None
        assert needed > cut
    found, size = dbus.decode(data + b"more")
    assert found is not None
    assert (size, found.serial, found.fields[5]) == (len(data), 7, 3)
    assert found.body == (value,)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_nonsense_is_told_as_such(noise: bytes, at: int) -> None:
    data = theirs(MessageType.signal, "sa(sv)", ("x", [("y", ("u", 3))])).serialise(serial=1)
    for text in (noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            dbus.decode(text)
        except MinirunError as error:
            assert "malformed d-bus message" in error.message


@pytest.mark.parametrize("signature", ["a", "(", "()", "(s", "z", "a{", "a" * 99, "s)"])
def test_signatures_that_are_none(signature: str) -> None:
    with pytest.raises(MinirunError, match="signature"):
        dbus.split(signature)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:path=/run/bus", "/run/bus"),
        ("unix:path=/a%20b,guid=12", "/a b"),
        ("tcp:host=x;unix:path=/y", "/y"),
        ("unix:abstract=/tmp/x,guid=1", b"\0/tmp/x"),
        ("unix:runtime=yes", "/run/user/7/bus"),
    ],
)
def test_addresses(text: str, address: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert dbus.address_of(text) == address


@pytest.mark.parametrize("text", ["", "tcp:host=x", "unix:tmpdir=/tmp", "unix:path=%zz"])
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(MinirunError, match="d-bus address"):
        dbus.address_of(text)


# ---------------------------------------------------------------- a peer

Answer = Callable[[Message], list[Message]]


@contextmanager
def peer(path: Path, answer: Answer) -> Iterator[list[Message]]:
    """A bus of one client at `path`, made with jeepney; yields the calls that came."""
    calls: list[Message] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    thread = threading.Thread(target=_serve, args=(listener, calls, answer))
    thread.start()
    try:
        yield calls
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


def _serve(listener: socket.socket, calls: list[Message], answer: Answer) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            client.settimeout(60)
            parser, serial = _authenticated(client), 1
            while True:
                while (message := parser.get_next_message()) is not None:
                    calls.append(message)
                    for one in answer(message):
                        serial += 1
                        client.sendall(one.serialise(serial=serial))
                data = client.recv(4096)
                if not data:
                    break
                parser.add_data(data)


def _authenticated(client: socket.socket) -> Parser:
    text = b""
    while not text.endswith(b"DATA\r\n"):
        text += client.recv(100)
    assert text == b"\0AUTH EXTERNAL\r\nDATA\r\n"
    client.sendall(b"DATA\r\nOK 1234\r\n")
    text = b""
    while b"BEGIN\r\n" not in text:
        text += client.recv(4096)
    parser = Parser()
    parser.add_data(text.partition(b"BEGIN\r\n")[2])
    return parser


def reply(call: Message, signature: str = "", *body: Any) -> Message:
    return theirs(MessageType.method_return, signature, body, reply_serial=call.header.serial)


def failure(call: Message, name: str, text: str) -> Message:
    fields = {"reply_serial": call.header.serial, "error_name": name}
    return theirs(MessageType.error, "s", (text,), **fields)


def signal_of(member: str, signature: str, *body: Any) -> Message:
    fields = {"path": "/x", "interface": "x.y", "member": member}
    return theirs(MessageType.signal, signature, body, **fields)


def member(call: Message) -> str:
    return str(call.header.fields[HeaderFields.member])


def test_a_call_is_answered_and_signals_are_kept(tmp_path: Path) -> None:
    def answer(call: Message) -> list[Message]:
        if member(call) == "Hello":
            return [reply(call, "s", ":1.5"), signal_of("NameAcquired", "s", ":1.5")]
        return [signal_of("Early", "u", 7), reply(call, "(su)", (call.body[0], 9))]

    with peer(tmp_path / "bus", answer) as calls:
        with dbus.Connection(str(tmp_path / "bus"), bus=True) as connection:
            found = connection.call("a.b", "/a", "a.b.C.Do", "sa(sv)", "x", [("k", ("ay", b"\1"))])
            assert found == (("x", 9),)
            early = connection.signal(lambda one: one.member == "Early", "it")
            assert early.body == (7,)
    fields = calls[1].header.fields
    assert fields[HeaderFields.destination] == "a.b"
    assert fields[HeaderFields.interface] == "a.b.C"
    assert calls[1].body == ("x", [("k", ("ay", b"\1"))])


def test_an_error_is_raised_with_its_name(tmp_path: Path) -> None:
    with peer(tmp_path / "bus", lambda call: [failure(call, "x.Gone", "no such unit")]):
        with dbus.Connection(str(tmp_path / "bus"), bus=False) as connection:
            with pytest.raises(dbus.DBusError, match="no such unit") as caught:
                connection.call("a.b", "/a", "a.b.Do")
    assert caught.value.name == "x.Gone"


def test_silence_ends(tmp_path: Path) -> None:
    with peer(tmp_path / "bus", lambda _call: []):
        with dbus.Connection(str(tmp_path / "bus"), bus=False) as connection:
            connection.timeout = 0.05
            with pytest.raises(MinirunError, match=r"no answer to Do within 0\.05 s"):
                connection.call("a.b", "/a", "a.b.Do")


def test_a_peer_that_hangs_up(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "bus"))
    listener.listen()

    def hang_up() -> None:
        client, _ = listener.accept()
        client.recv(100)
        client.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    with pytest.raises(MinirunError, match="closed by the other side"):
        dbus.Connection(str(tmp_path / "bus"), bus=True)
    thread.join(60)
    listener.close()


def test_a_peer_that_is_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a byte is sent to it, nor what it might answer read."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        if os.geteuid() == 0:
            # Whoever calls listen(2) is the peer: unix(7).
            os.seteuid(65534)
            listener.listen()
            os.seteuid(0)
        else:
            listener.listen()
            monkeypatch.setattr(os, "geteuid", lambda: 4242)
        with pytest.raises(MinirunError, match="listens there"):
            dbus.Connection(str(tmp_path / "bus"), bus=True)
        client, _ = listener.accept()
        with client:
            assert client.recv(100) == b""
