"""JSON without `json`: reads what it reads, refuses more, writes what it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun import jsontext
from minirun.jsontext import JSONError

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_it_reads_what_json_writes(value: Any) -> None:
    assert jsontext.loads(json.dumps(value)) == value
    assert jsontext.loads(json.dumps(value, ensure_ascii=False).encode()) == value


@given(values, st.sampled_from([None, "\t", "  "]))
def test_json_reads_what_it_writes(value: Any, indent: str | None) -> None:
    assert json.loads(jsontext.dumps(value, indent)) == value


@given(values)
def test_it_indents_as_json_does(value: Any) -> None:
    assert jsontext.dumps(value, "\t") == json.dumps(value, indent="\t", ensure_ascii=False)


@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        value = jsontext.loads(text)
    except JSONError:
        return
    assert json.loads(text) == value


BAD = {
    "": "no value at",
    " ": "no value at",
    "{]": "line 1 column 2",
    '{"a": 1,}': "line 1 column",
    "[1 2]": "line 1 column",
    "{} x": "extra data at line 1 column 4",
    '{\n"a": 1,\n"a": 2}': "'a' appears twice",
    "NaN": "NaN is not JSON",
    "[Infinity]": "Infinity is not JSON",
    "-Infinity": "-Infinity is not JSON",
    '"\\ud800"': "lone surrogate",
    '{"\\udc00": 1}': "lone surrogate",
    '[["\\ud800"]]': "lone surrogate",
    '"a\nb"': "control character",
    "[" * 100_000: "nested too deeply",
    '{"a":' * 100_000: "nested too deeply",
    "\ufeff{}": "line 1 column 1",
    "'a'": "no value",
    "nul": "no value",
    "01": "extra data",
    "/* */ 1": "no value",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_bad_texts(text: str) -> None:
    with pytest.raises(JSONError, match=r"^config: ") as caught:
        jsontext.loads(text, "config")
    assert BAD[text].lower() in str(caught.value).lower()


def test_utf8_is_checked() -> None:
    with pytest.raises(JSONError, match="invalid UTF-8 at byte 1"):
        jsontext.loads(b'"\xff"')


def test_long_numbers_are_bounded() -> None:
    with pytest.raises(JSONError):
        jsontext.loads("1" * 100_000)


def test_infinite_floats() -> None:
    assert jsontext.loads("1e999") == float("inf"), "left to the fields, none of which takes it"


def test_large_texts_are_refused_unread() -> None:
    with pytest.raises(JSONError, match="larger than 16 MiB"):
        jsontext.loads(b" " * (jsontext.MAX_BYTES + 1))


def test_surrogate_pairs_are_characters() -> None:
    assert jsontext.loads('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_bytes_that_are_no_text_are_written_as_text() -> None:
    written = jsontext.dumps({"a": os.fsdecode(b"\xff")})
    assert written.encode("utf-8")
    assert json.loads(written)["a"] in ("?", "\ufffd")


def test_reading_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert jsontext.read(str(tmp_path / "a.json"), "a") == {"a": [1]}
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert jsontext.read("a.json", "a", fd) == {"a": [1]}
    finally:
        os.close(fd)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    source, written = os.pipe()
    os.write(written, b"[7]")
    os.close(written)
    assert jsontext.read(f"/dev/fd/{source}", "it", pipe=True) == [7]
    os.close(source)
    os.mkfifo(tmp_path / "fifo")  # must not hang
    with pytest.raises(JSONError):
        jsontext.read(str(tmp_path / "fifo"), "it", pipe=True)
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(JSONError, match="not a regular file"):
            jsontext.read(str(path), "x")
    with pytest.raises(FileNotFoundError):
        jsontext.read(str(tmp_path / "none"), "x")
