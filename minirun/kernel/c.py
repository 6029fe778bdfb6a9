"""C's types and functions, for the bindings: the part of ctypes that they use.

To import ctypes takes 4 ms of every verb, 3 of them to make types and a callback that are not used
here. So what is named here comes from the core below it, with the names and the behaviour that it
has in ctypes. Both may be loaded: their types do not mix.
"""

from __future__ import annotations

import struct
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    Array,
    CFuncPtr,
    Structure,
    _SimpleCData,
    addressof,
    byref,
    dlopen,
    get_errno,
    set_errno,
    sizeof,
)

__all__ = [
    "Array",
    "Library",
    "Structure",
    "addressof",
    "byref",
    "c_byte",
    "c_char",
    "c_char_p",
    "c_int",
    "c_int32",
    "c_long",
    "c_size_t",
    "c_uint",
    "c_uint32",
    "c_uint64",
    "c_ulong",
    "c_ushort",
    "c_void_p",
    "create_string_buffer",
    "function",
    "function_at",
    "get_errno",
    "interpreter_hook",
    "set_errno",
    "sizeof",
    "words",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import (
        c_byte,
        c_char,
        c_char_p,
        c_int,
        c_int32,
        c_long,
        c_size_t,
        c_uint,
        c_uint32,
        c_uint64,
        c_ulong,
        c_ushort,
        c_void_p,
    )
    from typing import Any
else:

    class c_byte(_SimpleCData):
        _type_ = "b"

    class c_char(_SimpleCData):
        _type_ = "c"

    class c_char_p(_SimpleCData):
        _type_ = "z"

    class c_void_p(_SimpleCData):
        _type_ = "P"

    class c_ushort(_SimpleCData):
        _type_ = "H"

    class c_int(_SimpleCData):
        _type_ = "i"

    class c_uint(_SimpleCData):
        _type_ = "I"

    class c_long(_SimpleCData):
        _type_ = "l"

    class c_ulong(_SimpleCData):
        _type_ = "L"

    # LP64, as on every architecture that is supported.
    c_int32, c_uint32, c_uint64, c_size_t = c_int, c_uint, c_ulong, c_ulong


class Library:
    """A shared library; without a name the C library and the interpreter, which are here already.

    Raises OSError with the dynamic linker's reason if it cannot be loaded.
    """

    def __init__(self, name: str | None = None) -> None:
        self._handle = dlopen(name, 0)  # type: ignore[arg-type]


_HERE = Library()


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = c_long


class _Hook(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI
    _restype_ = None


def function(name: str, argtypes: tuple[Any, ...], restype: Any, library: Library = _HERE) -> Any:
    """Look up a function of a library. Raises AttributeError if it has none of that name."""
    found = _Function((name, library))  # type: ignore[arg-type]
    found.argtypes = argtypes
    found.restype = restype
    return found


def function_at(address: int, argtypes: tuple[Any, ...], restype: Any) -> Any:
    """Make a function of machine code at an address of this process."""
    found = _Function(address)
    found.argtypes = argtypes
    found.restype = restype
    return found


def interpreter_hook(name: str) -> Any:
    """Look up a `void (void)` of the interpreter, to be called with its lock held."""
    found = _Hook((name, _HERE))  # type: ignore[arg-type]
    found.argtypes = ()
    return found


def words(*values: int) -> bytes:
    """Return the memory of a structure whose fields are unsigned 64-bit integers.

    To declare a Structure takes 0.1 ms, and bytes are as good for what the kernel only reads.
    """
    return struct.pack(f"={len(values)}Q", *values)


def create_string_buffer(content: bytes | int, size: int | None = None) -> Array[c_char]:
    """Make a char[]: of some bytes, with a NUL behind them unless `size` is given; or empty."""
    if isinstance(content, int):
        return (c_char * content)()
    buffer = (c_char * (len(content) + 1 if size is None else size))()
    buffer.value = content
    return buffer
