"""Immutable records: what they read, refuse, and give back."""

from __future__ import annotations

from typing import Any

import pytest

from minirun.errors import ConfigError
from minirun.record import (
    UINT32,
    Record,
    anything,
    boolean,
    camel,
    integer,
    integers,
    many,
    number,
    one,
    record_map,
    string,
    string_map,
    strings,
)


class Inner(Record):
    name: str = string(required=True)


class Outer(Record):
    text: str | None = string()
    given_name: str = string("givenID", default="x")
    size: int | None = integer(0, UINT32)
    rate: float | None = number()
    on: bool = boolean(default=False)
    raw: Any = anything()
    inner: Inner | None = one(Inner)
    words: tuple[str, ...] = strings()
    counts: tuple[int, ...] = integers(0, 9)
    inners: tuple[Inner, ...] = many(Inner)
    labels: dict[str, str] = string_map()
    by_name: dict[str, Inner] = record_map(Inner)


FULL = {
    "text": "a",
    "givenID": "b",
    "size": 4294967295,
    "rate": 1.5,
    "on": True,
    "raw": {"x": [None]},
    "inner": {"name": "n"},
    "words": ["a", "b"],
    "counts": [1, 2],
    "inners": [{"name": "m"}],
    "labels": {"k": "v"},
    "byName": {"k": {"name": "o"}},
}


def test_reading_and_giving_back() -> None:
    record = Outer.decode(FULL)
    assert record.encode() == FULL
    assert (record.text, record.given_name, record.size, record.on) == ("a", "b", UINT32, True)
    assert record.words == ("a", "b")
    assert record.inner == Inner(name="n")
    assert record.by_name["k"].name == "o"


def test_absent_fields_have_defaults() -> None:
    record = Outer.decode({})
    assert (record.text, record.given_name, record.words, record.labels) == (None, "x", (), {})
    assert record.encode() == {}


def test_null_is_absent_and_the_unknown_is_ignored() -> None:
    assert Outer.decode({"text": None, "words": None, "future": 1}) == Outer()


def test_names_are_found_in_any_case() -> None:
    """As runc finds them."""
    read = Outer.decode({"Text": "a", "GIVENid": "b", "INNER": {"Name": "c"}})
    assert (read.text, read.given_name, read.inner) == ("a", "b", Inner(name="c"))
    with pytest.raises(ConfigError, match="SIZE: must be an integer"):
        Outer.decode({"SIZE": "1"})


def test_records_do_not_change() -> None:
    record = Outer.decode(FULL)
    with pytest.raises(AttributeError, match="immutable"):
        record.text = "z"  # type: ignore[misc]
    other = record.replace(text="z")
    assert (record.text, other.text, other.words) == ("a", "z", record.words)
    assert record != other
    assert record == Outer.decode(FULL)


def test_a_field_that_is_none_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="no field nope"):
        Outer(nope=1)  # type: ignore[call-arg]


WRONG: list[tuple[Any, str]] = [
    ([], "root: must be an object, not an array"),
    ("x", "root: must be an object, not a string"),
    ({"text": 1}, "root.text: must be a string, not a number"),
    ({"text": "a\0b"}, "root.text: must not hold a NUL byte"),
    ({"size": True}, "root.size: must be an integer, not a boolean"),
    ({"size": 1.0}, "root.size: must be an integer"),
    ({"size": "1"}, "root.size: must be an integer"),
    ({"size": -1}, "root.size: must be from 0 to 4294967295"),
    ({"size": 1 << 32}, "root.size: must be from 0 to"),
    ({"rate": True}, "root.rate: must be a number"),
    ({"on": 1}, "root.on: must be true or false"),
    ({"on": "true"}, "root.on: must be true or false"),
    ({"inner": {}}, "root.inner.name: is required"),
    ({"inner": {"name": None}}, "root.inner.name: is required"),
    ({"words": "a"}, "root.words: must be an array"),
    ({"words": ["a", 1]}, r"root.words\[1\]: must be a string"),
    ({"words": [None]}, r"root.words\[0\]: must be a string, not null"),
    ({"counts": [10]}, r"root.counts\[0\]: must be from 0 to 9"),
    ({"inners": [{"name": "a"}, {}]}, r"root.inners\[1\].name: is required"),
    ({"labels": {"a": 1}}, "root.labels.a: must be a string"),
    ({"labels": {"a\0": "b"}}, "root.labels: must not hold a NUL"),
    ({"byName": {"a": 1}}, "root.byName.a: must be an object"),
]


@pytest.mark.parametrize(("value", "problem"), WRONG, ids=[problem for _, problem in WRONG])
def test_wrong_values_name_their_field(value: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Outer.decode(value, "root")


def test_names() -> None:
    assert camel("no_new_privileges") == "noNewPrivileges"
    assert camel("path") == "path"


def test_inheriting_keeps_the_fields() -> None:
    class More(Inner):
        extra: int = integer(0, 9, default=0)

    assert More.decode({"name": "a", "extra": 3}).encode() == {"name": "a", "extra": 3}
    assert set(Inner._fields) == {"name"}
