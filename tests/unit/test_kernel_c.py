"""The types and functions made of ctypes' core are what ctypes itself has."""

from __future__ import annotations

import ctypes
import errno

import pytest

from minirun.kernel import c, libc

TYPES = [name for name in c.__all__ if name.startswith("c_")]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_as_that_of_ctypes(name: str) -> None:
    ours, theirs = getattr(c, name), getattr(ctypes, name)
    assert c.sizeof(ours) == ctypes.sizeof(theirs)
    assert ours._type_ == theirs._type_


def test_buffers() -> None:
    assert c.create_string_buffer(b"a\0b").raw == b"a\0b\0"
    assert c.create_string_buffer(b"abc", 3).raw == b"abc"
    assert c.create_string_buffer(4).raw == b"\0" * 4
    with pytest.raises(ValueError, match="too long"):
        c.create_string_buffer(b"abc", 2)


def test_a_function_takes_its_types_and_leaves_errno() -> None:
    close = c.function("close", (c.c_int,), c.c_int)
    c.set_errno(0)
    assert close(-1) == -1
    assert c.get_errno() == errno.EBADF
    with pytest.raises(Exception, match=r"wrong type|must be"):
        close("1")


def test_arguments_are_whole_words() -> None:
    labs = c.function("labs", (c.c_long,), c.c_long)
    assert labs(-(1 << 40)) == 1 << 40


def test_what_the_library_lacks() -> None:
    with pytest.raises(AttributeError):
        c.function("no_such_function", (), c.c_int)


def test_an_unknown_system_call_is_told() -> None:
    absent = libc.syscall({"none": 1})
    with pytest.raises(OSError, match="not implemented") as told:
        libc.call(absent, (), lambda: "absent()")
    assert told.value.errno == errno.ENOSYS


def test_hooks_of_the_interpreter_return_nothing() -> None:
    hook = c.interpreter_hook("PyOS_BeforeFork")
    assert hook.restype is None
