"""Filters in the kernel: what a process under them is answered, and that nothing else is needed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prctl
import pytest
from runtime import runc_apart

from minirun import profiles, seccomp
from minirun.kernel.libseccomp import Library
from minirun.spec import Seccomp

pytestmark = pytest.mark.requires("root", "seccomp")

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
CLONE_NEWUSER = 0x10000000


def call(number: int, *args: int) -> int:
    """Make a system call; return its result or -errno."""
    ctypes.set_errno(0)
    result: int = _syscall(
        ctypes.c_long(number), *(ctypes.c_ulong(one & (1 << 64) - 1) for one in args)
    )
    return -ctypes.get_errno() if result == -1 else result


def default_filter() -> seccomp.Filter:
    return seccomp.compile(Seccomp.decode(profiles.seccomp(), "linux.seccomp"))


def small(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> seccomp.Filter:
    value = {"defaultAction": default, "syscalls": list(rules), **more}
    return seccomp.compile(Seccomp.decode(value, "linux.seccomp"))


def under(compiled: seccomp.Filter, act: Callable[[], Any]) -> Any:
    """Do `act` in a child under the filter and return its JSON result."""
    install = seccomp.prepare(compiled)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            install()
            os.write(writer, json.dumps(act()).encode())
        except BaseException as failure:  # noqa: BLE001 - it is told to the parent
            os.write(writer, json.dumps({"failed": repr(failure)}).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    assert text, f"the child ended with status {status:#x}"
    return json.loads(text)


CATEGORIES = {
    "namespaces": "unshare setns",
    "mounts": "mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree move_mount"
    " mount_setattr",
    "modules and boot": "init_module finit_module delete_module kexec_load kexec_file_load reboot",
    "tracing": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd perf_event_open"
    " process_madvise",
    "kernel attack surface": "bpf userfaultfd io_uring_setup io_uring_enter io_uring_register"
    " add_key request_key keyctl vmsplice fanotify_init",
    "clock": "settimeofday clock_settime",
    "host": "swapon swapoff acct quotactl quotactl_fd sethostname setdomainname syslog"
    " lookup_dcookie nfsservctl iopl ioperm modify_ldt vhangup",
    "file handles": "open_by_handle_at",
    "numa": "mbind move_pages set_mempolicy set_mempolicy_home_node migrate_pages",
    "obsolete": "uselib ustat sysfs _sysctl create_module get_kernel_syms",
}
DENIED = [(category, name) for category, names in CATEGORIES.items() for name in names.split()]


@pytest.fixture(scope="module")
def answers() -> dict[str, int]:
    """What the kernel answers under the default profile, with arguments that no call accepts."""
    library = Library()
    numbers = {name: library.syscall(name) for _, name in DENIED}

    def ask() -> dict[str, int]:
        return {
            name: call(number, *(-1,) * 6)
            for name, number in numbers.items()
            if number is not None and number >= 0
        }

    found: dict[str, int] = under(default_filter(), ask)
    return found


@pytest.mark.parametrize(("category", "name"), DENIED)
def test_default_profile_denies(answers: dict[str, int], category: str, name: str) -> None:
    if name not in answers:
        assert platform.machine() != "x86_64"
        return  # arm64 never had it
    assert answers[name] == -errno.EPERM, category


def test_new_mount_calls_unknown_to_libseccomp_are_denied() -> None:
    open_tree_attr = 467
    assert under(default_filter(), lambda: call(open_tree_attr, -1, 0, 0, 0, 0)) in (
        -errno.ENOSYS,
        -errno.EPERM,
    )


def test_unknown_calls_give_enosys() -> None:
    assert under(default_filter(), lambda: [call(463 + 40, 0), call(9999)]) == [-errno.ENOSYS] * 2


@on_x86
def test_clone_refuses_each_namespace_and_clone3_is_absent() -> None:
    flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, CLONE_NEWUSER, 0x20000000, 0x40000000]

    def ask() -> list[int]:
        found = []
        for flag in [*flags, flags[4] | flags[0], flags[4] | 1 << 32]:
            result = call(56, flag | signal.SIGCHLD, 0, 0, 0, 0)
            if result == 0:
                os._exit(9)
            found.append(result)
        return [*found, call(435, -1, -1)]

    assert under(default_filter(), ask) == [-errno.EPERM] * 9 + [-errno.ENOSYS]


def test_processes_and_threads_start() -> None:
    def ask() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert under(default_filter(), ask) == 7


@on_x86
def test_terminal_injection_is_refused_whatever_the_high_bits() -> None:
    ours, theirs = os.openpty()

    def ask() -> list[int]:
        fcntl.ioctl(theirs, 0x540E, 0)  # TIOCSCTTY
        letter = ctypes.create_string_buffer(b"x")
        where = ctypes.addressof(letter)
        found = [call(16, theirs, command, where) for command in (0x5412, 1 << 32 | 0x5412)]
        found += [call(16, theirs, 0xFFFFFFFF << 32 | 0x541C, where)]
        size = ctypes.create_string_buffer(8)
        found += [call(16, theirs, 0x5413, ctypes.addressof(size))]
        found += [call(16, theirs, 0xFFFFFFFF << 32 | 0x5413, ctypes.addressof(size))]
        return found

    try:
        assert under(default_filter(), ask) == [-errno.EPERM] * 3 + [0, 0]
        os.set_blocking(theirs, False)
        with pytest.raises(BlockingIOError):
            os.read(theirs, 1)
    finally:
        os.close(ours)
        os.close(theirs)


@on_x86
def test_sockets_and_personality() -> None:
    def ask() -> list[list[int]]:
        families = [call(41, family, 2, 0) for family in (38, 40, 15, 31)]
        usual = [min(call(41, family, 2, 0), 0) for family in (1, 2, 10)]
        odd = [call(135, value) for value in (0x40000, 0x400000, 1)]
        return [families, usual, odd, [min(call(135, 0xFFFFFFFF), 0), min(call(135, 8), 0)]]

    families, usual, odd, known = under(default_filter(), ask)
    assert families == [-errno.ENOSYS] * 4
    assert usual == [0, 0, 0]
    assert odd == [-errno.ENOSYS] * 3
    assert known == [0, 0]


def machine_code(code: bytes) -> Callable[..., int]:
    """Make a function of machine code; it is kept for the rest of the process."""
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _kept.append(memory)
    return ctypes.CFUNCTYPE(ctypes.c_long, *(ctypes.c_long,) * 4)(where)


_kept: list[Any] = []
# The arguments go to eax, ebx, ecx, edx; then int 0x80.
INT80 = bytes.fromhex("53 89f8 89f3 4189c8 89d1 4489c2 cd80 5b 4898 c3")


@on_x86
def test_32_bit_calls_from_a_64_bit_program_are_filtered_too() -> None:
    i386 = machine_code(INT80)
    assert i386(20, 0, 0, 0) == os.getpid()  # the way in works

    def ask() -> list[int]:
        found = [i386(number, -1, -1, -1) for number in (21, 26, 217, 288, 310, 357, 374, 425, 429)]
        alg = (ctypes.c_uint32 * 3)(38, 5, 0)
        found.append(i386(102, 1, ctypes.addressof(alg) & 0xFFFFFFFF, 0))  # socketcall
        found.append(i386(359, 38, 5, 0))
        return [*found, i386(20, 0, 0, 0) - os.getpid()]

    # mount ptrace pivot_root keyctl unshare bpf userfaultfd io_uring_setup move_mount
    assert under(default_filter(), ask) == [-errno.EPERM] * 10 + [-errno.ENOSYS, 0]


@on_x86
def test_32_bit_calls_are_fatal_when_the_profile_does_not_list_them() -> None:
    compiled = small(default="SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_X86_64"])
    i386 = machine_code(INT80)
    pid = os.fork()
    if pid == 0:
        seccomp.prepare(compiled)()
        i386(20, 0, 0, 0)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


@on_x86
def test_x32_numbers_are_filtered_too() -> None:
    x32 = 0x40000000
    # This kernel may lack x32, so that the call itself would give ENOSYS: EPERM is the filter's.
    assert under(default_filter(), lambda: [call(x32 | 165, -1), call(x32 | 520, -1)]) == [
        -errno.EPERM,
        pytest.approx(-errno.ENOSYS, abs=100),
    ]


@on_x86
def test_arguments_are_compared_in_64_bits() -> None:
    compiled = small(
        {
            "names": ["dup"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 99,
            "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 1 << 32 | 1}],
        },
        default="SCMP_ACT_ALLOW",
    )
    assert under(compiled, lambda: [call(32, 1 << 32 | 1), min(call(32, 1), 0)]) == [-99, 0]


def program_of(code: str) -> bytes:
    """Make an executable of x86-64 machine code in hex."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHHIIQQQQQQ",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0),
        *(1, 5, 0, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000),
    )
    return header + bytes.fromhex(code)


EXIT_42 = program_of("bf2a000000 b8e7000000 0f05")  # exit_group(42)
# exit_group(-socket(AF_ALG, SOCK_SEQPACKET, 0)): the status is the errno
ASK_FOR_ALG = program_of("bf26000000 be05000000 31d2 b829000000 0f05 89c7 f7df b8e7000000 0f05")


@on_x86
def test_nothing_but_the_payload_is_needed_after_the_filter(tmp_path: Path) -> None:
    """One system call to install, then execve: any other would be fatal (P-16, T-SC1)."""
    program = tmp_path / "exit42"
    program.write_bytes(EXIT_42)
    program.chmod(0o755)
    compiled = small(
        {"names": ["execve", "exit_group"], "action": "SCMP_ACT_ALLOW"},
        default="SCMP_ACT_KILL_PROCESS",
    )
    path = ctypes.create_string_buffer(os.fsencode(program))
    argv = (ctypes.c_char_p * 2)(b"exit42", None)
    execve = _libc.execve
    execve.argtypes = (ctypes.c_void_p,) * 3
    args = (ctypes.addressof(path), ctypes.addressof(argv), None)
    install = seccomp.prepare(compiled)
    pid = os.fork()
    if pid == 0:
        install()
        execve(*args)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_minimal_filter_is_really_in_force() -> None:
    compiled = small(
        {"names": ["execve"], "action": "SCMP_ACT_ALLOW"}, default="SCMP_ACT_KILL_PROCESS"
    )
    pid = os.fork()
    if pid == 0:
        seccomp.prepare(compiled)()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def test_kernel_shows_the_filter_and_its_flags_are_taken() -> None:
    def ask() -> list[str]:
        with open("/proc/self/status") as status:
            return [line.split()[1] for line in status if line.startswith("Seccomp")]

    for flags in (None, [], list(seccomp.FLAGS)[:3]):
        compiled = small(default="SCMP_ACT_ALLOW", flags=flags)
        before = ask()
        after = under(compiled, ask)
        assert after == ["2", str(int(before[1]) + 1)]


def test_without_privilege_and_no_new_privs_it_is_refused() -> None:
    install = seccomp.prepare(default_filter())
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            install()
        except PermissionError as failure:
            named = "seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, {len="
            os._exit(0 if str(getattr(failure, "call", "")).startswith(named) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_with_no_new_privs_anybody_may_install_it() -> None:
    install = seccomp.prepare(default_filter())
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        prctl.set_no_new_privs(1)
        install()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


PYTHON = """
import concurrent.futures, os, select, socket, subprocess, tempfile, threading, time
import multiprocessing
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(lambda n: n * n, range(10))) == 285
assert subprocess.run(["/bin/echo", "hello"], capture_output=True).stdout == b"hello\\n"
with tempfile.TemporaryDirectory() as where:
    open(where + "/a", "w").write("x"); os.rename(where + "/a", where + "/b")
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
poll = select.epoll(); poll.register(client, select.EPOLLOUT); assert poll.poll(1)
queue = multiprocessing.get_context("spawn").Queue(); queue.put(1); assert queue.get() == 1
os.getxattr; os.sched_getaffinity(0); time.sleep(0.001)
print("fine")
"""
PROGRAMS = {
    "shell": ("fine", ["/bin/sh", "-c", "ls / | sort | head -1 >/dev/null && echo fine"]),
    "python": ("fine", [sys.executable, "-c", PYTHON]),
    "busybox": ("fine", ["busybox", "sh", "-c", "busybox find /etc -name passwd; echo fine"]),
    "perl": ("fine", ["perl", "-e", 'open my $f, "-|", "echo fine"; print <$f>']),
    "go": ("runc version", ["runc", "--version"]),
    "java": ("fine", ["java", "-Xmx64m", "-Xint", "Fine.java"]),
    "node": ("fine", ["node", "-e", "setTimeout(() => console.log('fine'), 1)"]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordinary_programs_run_under_the_default_profile(name: str, tmp_path: Path) -> None:
    expected, argv = PROGRAMS[name]
    found = shutil.which(argv[0])
    if found is None:
        pytest.skip(f"{argv[0]} is not installed")
    (tmp_path / "Fine.java").write_text(
        "class Fine { public static void main(String[] a) throws Exception {"
        ' Thread t = new Thread(() -> System.out.println("fine")); t.start(); t.join(); } }'
    )
    install = seccomp.prepare(default_filter())
    done = subprocess.run(
        [found, *argv[1:]],
        cwd=tmp_path,
        preexec_fn=install,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.requires("runc")
@on_x86
def test_runc_accepts_the_default_profile(tmp_path: Path) -> None:
    """The profile is an ordinary OCI object: another runtime enforces the same."""
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "ask").write_bytes(ASK_FOR_ALG)
    (root / "ask").chmod(0o755)
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/ask"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}],
            "seccomp": profiles.seccomp(),
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = runc_apart(tmp_path, "minirun-profile")
    assert done.code == errno.ENOSYS, done.err
