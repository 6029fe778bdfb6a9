"""Why a program cannot be executed, as it is told to people."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from minirun import executable

MACHINE = next(
    number
    for number, (_, machines) in executable._MACHINES.items()
    if os.uname().machine == machines[-1]
)


def elf(machine: int, loader: str = "", *, order: str = "<", wide: bool = True) -> bytes:
    """Make the head of an ELF file, with a PT_INTERP entry if a loader is named."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    name = loader.encode() + b"\0"
    if wide:
        head = struct.pack(order + "HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        entry = struct.pack(order + "IIQQQQQQ", 3 if loader else 1, 4, 120, 0, 0, len(name), 0, 1)
    else:
        head = struct.pack(order + "HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        entry = struct.pack(order + "IIIIIIII", 3 if loader else 1, 84, 0, 0, len(name), 0, 4, 1)
    return ident + head + entry + name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "program"


def told(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    file.chmod(0o755)
    return executable.obstacle(str(file))[0]


def test_what_can_be_executed_has_no_obstacle(file: Path) -> None:
    assert executable.obstacle("/bin/sh") == ("", "")
    assert told(file, b"#!/bin/sh\n") == ""
    assert told(file, b"#! /bin/sh -e\n") == ""
    assert told(file, elf(MACHINE)) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"echo hello\n", "neither a program (ELF) nor a script"),
        (b"#!\n", "names no interpreter"),
        (b"#!/no/such/thing -x\n", "a script for /no/such/thing, which this root filesystem lacks"),
        (b"#!/no/such/sh\r\n", 'ends in CRLF, so that the kernel looks for "/no/such/sh\\r"'),
        (b"#!/etc/passwd\n", "a script for /etc/passwd: /etc/passwd is not executable (mode 0644)"),
        (b"#!/no/such/thing\0x\n", "a script for /no/such/thing, which this root filesystem"),
        (b"#!/etc\n", "a script for /etc: /etc is a directory"),
        (elf(0xF00D), "built for a machine of number 61453"),
        (elf(22, order=">"), "built for IBM S/390"),
        (elf(MACHINE, "/lib/ld-none.so.1"), "needs /lib/ld-none.so.1, which this root filesystem"),
    ],
)
def test_what_is_told(file: Path, content: bytes, words: str) -> None:
    assert words in told(file, content)


def test_a_program_of_32_bits_names_its_loader(file: Path) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("needs x86-64")
    assert "/lib/ld-none.so" in told(file, elf(3, "/lib/ld-none.so", wide=False))


def test_the_c_library_that_is_there_instead(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    musl, glibc = executable._LOADERS["musl"][0], executable._LOADERS["glibc"][0]
    monkeypatch.setattr(os.path, "exists", lambda path: path == musl)
    assert "it has musl instead of glibc" in told(file, elf(MACHINE, glibc))
    monkeypatch.setattr(os.path, "exists", lambda path: path == glibc)
    assert "it has glibc instead of musl" in told(file, elf(MACHINE, musl))


def test_the_obstacle_of_an_interpreter_is_the_scripts(file: Path) -> None:
    inner = file.with_name("inner")
    told(inner, b"#!/no/such/thing\n")
    assert "/no/such/thing" in told(file, f"#!{inner}\n".encode())


def test_a_loop_of_interpreters_ends(file: Path) -> None:
    assert told(file, f"#!{file}\n".encode()) == ""


def test_broken_heads_are_passed_over(file: Path) -> None:
    whole = elf(MACHINE, "/lib/ld-none.so.1")
    for length in range(len(whole)):
        told(file, whole[:length])
    huge = bytearray(whole)
    huge[54:58] = b"\xff" * 4  # size and number of the entries
    told(file, bytes(huge))


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert executable.obstacle(str(tmp_path / "fifo")) == ("", "")
    assert executable.obstacle(str(tmp_path)) == ("", "")
    assert executable.obstacle(str(tmp_path / "none")) == ("", "")


def test_why_it_is_not_permitted(file: Path) -> None:
    file.write_bytes(b"")
    file.chmod(0o644)
    assert "is not executable (mode 0644)" in executable.not_permitted(str(file))[0]
    file.chmod(0o700)
    assert "may not be executed by user" in executable.not_permitted(str(file))[0]
    assert "is a directory" in executable.not_permitted(str(file.parent))[0]


def test_what_of_a_path_is_missing(file: Path) -> None:
    file.write_bytes(b"")
    assert executable.missing(f"{file}/x")[0].startswith(f"{file} is not a directory")
    assert executable.missing(f"{file.parent}/a/b/c")[0].startswith(f"{file.parent}/a does not")
    link = file.with_name("link")
    link.symlink_to("/no/where")
    assert "is a link to /no/where" in executable.missing(str(link))[0]
