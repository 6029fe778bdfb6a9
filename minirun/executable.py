"""Why the kernel would not execute a program, in words for the person who asked for it.

execve(2) gives a number that seldom tells: ENOENT for a script whose interpreter is missing,
ENOEXEC for a program of another machine. `obstacle` looks at the file as the payload sees it, in
its root and with its rights. The verdict is a guess that is told only when execve has failed.

Sources: execve(2), "Interpreter scripts"; elf(5); fs/binfmt_elf.c.
"""

from __future__ import annotations

import os
import stat

from minirun.kernel.libc import MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    Advice = tuple[str, str]

NOTHING: Advice = ("", "")

_HEAD = 4096  # program headers and the interpreter's name are at the beginning
_SHEBANG = 256  # BINPRM_BUF_SIZE: what the kernel reads of a script's first line
_DEPTH = 5  # interpreters of interpreters; the kernel follows four
_ST_NOEXEC = 8
_PT_INTERP = 3

# e_machine (include/uapi/linux/elf-em.h) → its name, and the machines (uname -m) that run it.
_MACHINES = {
    3: ("32-bit x86", ("i386", "i486", "i586", "i686", "x86_64")),
    8: ("MIPS", ("mips", "mips64")),
    20: ("32-bit PowerPC", ("ppc", "ppc64")),
    21: ("64-bit PowerPC", ("ppc64", "ppc64le")),
    22: ("IBM S/390", ("s390", "s390x")),
    40: ("32-bit ARM", ("armv6l", "armv7l", "armv8l", "aarch64")),
    62: ("x86-64", ("x86_64",)),
    183: ("64-bit ARM", ("aarch64",)),
    243: ("RISC-V", ("riscv32", "riscv64")),
    258: ("LoongArch", ("loongarch64",)),
}
# Where the loaders of the C libraries are, to say which one a root filesystem has instead.
_LOADERS = {
    "glibc": ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux.so.2"),
    "musl": ("/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1", "/lib/ld-musl-i386.so.1"),
}


def obstacle(path: str, depth: int = 0) -> Advice:
    """Return what would keep `path` from being executed, and what helps; ("", "") if nothing.

    `path` is as execve would be given it. Never raises for what the file is; what cannot be read
    is passed over.
    """
    head = _head(path)
    if head is None:
        return NOTHING
    if head[:4] == b"\x7fELF":
        return _elf(path, head)
    if head[:2] == b"#!":
        return _script(path, head, depth)
    if not head:
        return (f"{path} is empty", "")
    return (
        f'{path} is neither a program (ELF) nor a script with "#!" in its first line',
        "put #!/bin/sh into its first line, or give it to an interpreter: sh FILE",
    )


def _head(path: str) -> bytes | None:
    """Read the beginning of a regular file; None for what is none, or not to be read."""
    try:
        # Looked at before it is opened: the mere opening of a device may do something.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return os.pread(fd, _HEAD, 0)
    except OSError:
        return None
    finally:
        os.close(fd)


def _script(path: str, head: bytes, depth: int) -> Advice:
    line = head[2:_SHEBANG].partition(b"\n")[0].partition(b"\0")[0].strip(b" \t")
    word = os.fsdecode(line.split(b" ")[0].split(b"\t")[0])
    if not word:
        return (f'{path} names no interpreter after "#!"', "")
    name = word.rstrip("\r")
    if name != word and not os.path.exists(word):
        return (
            f'the first line of {path} ends in CRLF, so that the kernel looks for "{name}\\r"',
            f"write it with Unix line ends: sed -i 's/\\r$//' {path}",
        )
    return _interpreter(path, word, depth) or NOTHING


def _interpreter(path: str, name: str, depth: int) -> Advice | None:
    try:
        status = os.stat(name)
    except OSError:
        return (
            f"{path} is a script for {name}, which this root filesystem lacks",
            f"install {name} in the root filesystem, or change the script's first line",
        )
    if not stat.S_ISREG(status.st_mode) or not os.access(name, os.X_OK, effective_ids=True):
        cause, fix = not_permitted(name)
        return (f"{path} is a script for {name}: {cause}", fix)
    return obstacle(name, depth + 1) if depth < _DEPTH else None


def _elf(path: str, head: bytes) -> Advice:
    order = "big" if head[5:6] == b"\2" else "little"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(head[offset : offset + size], order)  # type: ignore[arg-type]

    name, runs_on = _MACHINES.get(number(18, 2), ("", ()))
    if not name or MACHINE not in runs_on:
        built = name or f"a machine of number {number(18, 2)}"
        return (
            f"{path} was built for {built}, and this machine is {MACHINE}",
            f"take a root filesystem for {MACHINE}, or register an emulator (qemu-user-static)",
        )
    wide = head[4:5] == b"\2"  # ELFCLASS64
    table, size, count = (
        (number(32, 8), number(54, 2), number(56, 2))
        if wide
        else (number(28, 4), number(42, 2), number(44, 2))
    )
    for entry in range(table, table + size * min(count, 64), size or 1):
        if number(entry, 4) == _PT_INTERP:
            place, length = (
                (number(entry + 8, 8), number(entry + 32, 8))
                if wide
                else (number(entry + 4, 4), number(entry + 16, 4))
            )
            return _loader(path, os.fsdecode(head[place : place + length].partition(b"\0")[0]))
    return NOTHING


def _loader(path: str, name: str) -> Advice:
    """Say it if the dynamic loader that a program names is missing."""
    if not name or os.path.exists(name):
        return NOTHING
    wanted = "musl" if "ld-musl" in name else "glibc" if "ld-linux" in name else ""
    other = next(
        (
            library
            for library, files in _LOADERS.items()
            if library != wanted and any(os.path.exists(file) for file in files)
        ),
        "",
    )
    has = f": it has {other} instead of {wanted}" if other and wanted else ""
    return (
        f"the program {path} needs {name}, which this root filesystem lacks{has}",
        "link the program statically, or take a root filesystem with that C library",
    )


def not_permitted(path: str) -> Advice:
    """Say why a file that is there may not be executed by this process (EACCES)."""
    try:
        status = os.stat(path)
        noexec = os.statvfs(path).f_flag & _ST_NOEXEC
    except OSError:
        return NOTHING
    if stat.S_ISDIR(status.st_mode):
        return (f"{path} is a directory", "name a program in it")
    if not stat.S_ISREG(status.st_mode):
        return (f"{path} is not a regular file", "")
    if noexec:
        return (
            f"{path} is on a file system that is mounted noexec",
            "take noexec out of the options of that mount, or copy the program elsewhere",
        )
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if not status.st_mode & 0o111:
        return (f"{path} is not executable ({mode})", f"chmod +x {path}, in the root filesystem")
    return (
        f"{path} ({mode}, owner {status.st_uid}:{status.st_gid}) may not be executed by user "
        f"{os.geteuid()}:{os.getegid()}",
        "change its mode or owner, or run as another user",
    )


def missing(path: str) -> Advice:
    """Say which part of a path is not there."""
    parts = path.split("/")
    for number in range(2, len(parts)):
        above = "/".join(parts[:number])
        if not os.path.isdir(above):
            what = "is not a directory" if os.path.lexists(above) else "does not exist"
            return (f"{above} {what} in the container", "")
    if os.path.islink(path):
        target = os.readlink(path)
        return (f"{path} is a link to {target}, which does not exist in the container", "")
    return (f"{path} does not exist in the container's root filesystem", "")
