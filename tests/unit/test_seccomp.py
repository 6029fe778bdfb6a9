"""Seccomp filters, judged by an interpreter of classic BPF written for these tests."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirun import enosys, filtercache, profiles, seccomp
from minirun.errors import ConfigError, Unsupported
from minirun.kernel import libseccomp
from minirun.kernel import seccomp as kernel
from minirun.spec import Seccomp

X86_64, X86, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
X32 = 0x40000000
ALLOW, KILL = 0x7FFF0000, 0


def error(number: int) -> int:
    return 0x00050000 | number


def judge(program: bytes, arch: int, number: int, *args: int) -> int:
    """Run `program` as the kernel does (net/core/filter.c) and return its verdict."""
    padded = (*args, *(0,) * (6 - len(args)))
    data = struct.pack("=IIQ6Q", number, arch, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    scratch = [0] * 16
    jumps = {
        0x15: lambda a, k: a == k,
        0x25: lambda a, k: a > k,
        0x35: lambda a, k: a >= k,
        0x45: lambda a, k: a & k,
    }
    for _ in range(len(code)):
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif op in jumps:
            at += yes if jumps[op](accumulator, k) else no
        elif op == 0x05:
            at += k
        elif op == 0x54:
            accumulator &= k
        elif op == 0x02:
            scratch[k] = accumulator
        elif op == 0x60:
            accumulator = scratch[k]
        elif op == 0x06:
            return int(k)
        else:
            raise AssertionError(f"unknown instruction {op:#x}")
    raise AssertionError("the program has no end")


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> Seccomp:
    value = {
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": list(rules),
        **more,
    }
    return Seccomp.decode(value, "linux.seccomp")


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def arg(index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": value_two}


# newest of these names: execveat, 322; so that the program in front says nothing about older ones
KNOWN = rule("execveat")


@pytest.mark.parametrize(
    ("action", "extra", "verdict"),
    [
        ("SCMP_ACT_KILL", {}, 0),
        ("SCMP_ACT_KILL_THREAD", {}, 0),
        ("SCMP_ACT_KILL_PROCESS", {}, 0x80000000),
        ("SCMP_ACT_TRAP", {}, 0x00030000),
        ("SCMP_ACT_ERRNO", {}, error(errno.EPERM)),
        ("SCMP_ACT_ERRNO", {"errnoRet": 0}, error(0)),
        ("SCMP_ACT_ERRNO", {"errnoRet": 4094}, error(4094)),
        ("SCMP_ACT_TRACE", {}, 0x7FF00001),
        ("SCMP_ACT_TRACE", {"errnoRet": 65535}, 0x7FF0FFFF),
        ("SCMP_ACT_LOG", {}, 0x7FFC0000),
        ("SCMP_ACT_ALLOW", {}, ALLOW),
    ],
)
def test_actions(action: str, extra: dict[str, int], verdict: int) -> None:
    compiled = seccomp.compile(
        profile(rule("read", action=action, **extra), KNOWN, defaultErrnoRet=77)
    )
    assert judge(compiled.program, X86_64, 0) == verdict
    assert judge(compiled.program, X86_64, 1) == error(77)


@pytest.mark.parametrize("default", [a for a in seccomp.ACTIONS if a != "SCMP_ACT_NOTIFY"])
def test_default_actions(default: str) -> None:
    other = "SCMP_ACT_LOG" if default == "SCMP_ACT_ALLOW" else "SCMP_ACT_ALLOW"
    compiled = seccomp.compile(profile(rule("execveat", action=other), default=default))
    data = 1 if default in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0
    assert judge(compiled.program, X86_64, 0) == seccomp.ACTIONS[default] | data
    assert judge(compiled.program, X86_64, 322) == seccomp.ACTIONS[other]


def holds(op: str, value: int, two: int, given_value: int) -> bool:
    return {
        "NE": given_value != value,
        "LT": given_value < value,
        "LE": given_value <= value,
        "EQ": given_value == value,
        "GE": given_value >= value,
        "GT": given_value > value,
        "MASKED_EQ": given_value & value == two,
    }[op]


OPERATOR_NAMES = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
EDGES = st.sampled_from([0, 1, 2, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1])
NUMBERS = st.one_of(EDGES, st.integers(0, (1 << 64) - 1))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(OPERATOR_NAMES), NUMBERS, NUMBERS, st.integers(0, 5), st.data())
def test_operators_compare_64_bits(
    op: str, value: int, two: int, index: int, data: st.DataObject
) -> None:
    if op == "MASKED_EQ":
        two &= value
    compiled = seccomp.compile(profile(rule("read", args=[arg(index, op, value, two)]), KNOWN))
    near = st.sampled_from([value, two, (value + 1) % (1 << 64), (value - 1) % (1 << 64)])
    for given_value in data.draw(st.lists(st.one_of(near, NUMBERS), min_size=4, max_size=4)):
        args = [0] * 6
        args[index] = given_value
        expected = ALLOW if holds(op, value, two, given_value) else error(errno.EPERM)
        assert judge(compiled.program, X86_64, 0, *args) == expected


def test_conditions_on_different_arguments_must_all_hold() -> None:
    compiled = seccomp.compile(
        profile(rule("read", args=[arg(0, "EQ", 1), arg(2, "GT", 5)]), KNOWN)
    )
    for first, third in itertools.product((0, 1), (5, 6)):
        expected = ALLOW if first == 1 and third > 5 else error(errno.EPERM)
        assert judge(compiled.program, X86_64, 0, first, 0, third) == expected


def test_conditions_on_one_argument_are_alternatives() -> None:
    args = [arg(0, "EQ", 1), arg(0, "EQ", 3), arg(1, "EQ", 9)]
    compiled = seccomp.compile(profile(rule("read", args=args), KNOWN))
    for first, second in itertools.product((1, 2, 3), (8, 9)):
        expected = ALLOW if first in (1, 3) or second == 9 else error(errno.EPERM)
        assert judge(compiled.program, X86_64, 0, first, second) == expected


def test_other_architecture_is_fatal_unless_listed() -> None:
    alone = seccomp.compile(profile(rule("read"), KNOWN))
    assert judge(alone.program, X86, 3) == KILL
    assert judge(alone.program, X86_64, X32 | 0) == KILL
    both = seccomp.compile(
        profile(
            rule("read"),
            KNOWN,
            architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        )
    )
    assert judge(both.program, X86, 3) == ALLOW
    assert judge(both.program, X86_64, X32 | 0) == ALLOW
    assert judge(both.program, X86, 0) == error(errno.EPERM)


def test_without_architectures_the_native_one_holds() -> None:
    library = libseccomp.Library()
    compiled = seccomp.compile(profile(rule("read"), KNOWN, architectures=[]))
    number = library.syscall("read")
    assert number is not None
    assert judge(compiled.program, library.native_arch(), number) == ALLOW


BIG_ENDIAN = {
    f"SCMP_ARCH_{name}"
    for name in (
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "PARISC",
        "PARISC64",
        "PPC",
        "PPC64",
        "S390",
        "S390X",
    )
}


@pytest.mark.parametrize("name", seccomp.ARCHITECTURES)
def test_each_architecture_compiles_or_is_refused_by_name(name: str) -> None:
    library = libseccomp.Library()
    asked = profile(rule("read"), architectures=["SCMP_ARCH_X86_64", name])
    if library.arch(name.removeprefix("SCMP_ARCH_").lower()):
        # Big-endian ones cannot share a filter with x86.
        if name in BIG_ENDIAN:
            with pytest.raises(ConfigError, match=r"linux.seccomp.architectures: libseccomp ref"):
                seccomp.compile(asked)
        else:
            assert seccomp.compile(asked).instructions > 3
    else:
        with pytest.raises(ConfigError, match=r"architectures\[1\]: libseccomp .* does not know"):
            seccomp.compile(asked)


def test_unknown_system_calls_are_skipped_and_told() -> None:
    compiled = seccomp.compile(profile(rule("read", "no_such_call"), KNOWN))
    assert compiled.skipped == ("no_such_call",)
    assert compiled.notes == ()
    assert judge(compiled.program, X86_64, 0) == ALLOW


def test_unknown_system_calls_are_noted_where_the_default_allows_them() -> None:
    strict = rule("mount", "no_such_call", action="SCMP_ACT_ERRNO")
    compiled = seccomp.compile(profile(strict, default="SCMP_ACT_ALLOW"))
    assert "no_such_call" in compiled.notes[0]


def test_rules_with_the_default_action_are_skipped() -> None:
    compiled = seccomp.compile(
        profile(rule("read", action="SCMP_ACT_ERRNO", errnoRet=1), rule("execveat"))
    )
    assert judge(compiled.program, X86_64, 0) == error(1)


# ---- the program in front


ARCHES = (
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
)


@pytest.mark.parametrize("default", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_TRAP"])
def test_calls_newer_than_the_profile_give_enosys(default: str) -> None:
    compiled = seccomp.compile(
        profile(rule("read", "openat2", "cacheflush"), default=default, architectures=list(ARCHES))
    )
    refused = seccomp.ACTIONS[default] | (1 if default == "SCMP_ACT_ERRNO" else 0)
    for arch, read, base in (
        (X86_64, 0, 0),
        (X86, 3, 0),
        (X86_64, X32, X32),
        (ARM64, 63, 0),
        (ARM, 3, 0),
    ):
        assert judge(compiled.program, arch, read) == ALLOW
        assert judge(compiled.program, arch, base + 437) == ALLOW  # openat2
        assert judge(compiled.program, arch, base + 436) == refused  # close_range
        assert judge(compiled.program, arch, base + 438) == error(errno.ENOSYS)
        assert judge(compiled.program, arch, base + 5000) == error(errno.ENOSYS)
    assert judge(compiled.program, ARM, 0xF0002) == ALLOW  # cacheflush, a call of ARM's own
    assert judge(compiled.program, ARM, 0xF0005) == refused


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"])
def test_permissive_defaults_have_no_program_in_front(default: str) -> None:
    compiled = seccomp.compile(
        profile(rule("openat2", action="SCMP_ACT_ERRNO", errnoRet=5), default=default)
    )
    data = 1 if default == "SCMP_ACT_TRACE" else 0
    assert judge(compiled.program, X86_64, 5000) == seccomp.ACTIONS[default] | data


def test_x32_numbers_are_left_to_the_filter_where_x32_is_not_listed() -> None:
    compiled = seccomp.compile(profile(rule("read", "openat2")))
    assert judge(compiled.program, X86_64, X32 | 5000) == KILL


def test_a_rule_may_answer_enosys_itself() -> None:
    compiled = seccomp.compile(
        profile(rule("clone3", action="SCMP_ACT_ERRNO", errnoRet=38), rule("faccessat2"))
    )
    assert judge(compiled.program, X86_64, 435) == error(errno.ENOSYS)
    assert judge(compiled.program, X86_64, 434) == error(errno.EPERM)


def test_prologue_of_s390_refuses_number_zero() -> None:
    library = libseccomp.Library()
    token = library.arch("s390x")
    tail = struct.pack("=HBBI", 6, 0, 0, 123)
    program = enosys.prologue(library, ["read", "openat2"], [token]) + tail
    assert judge(program, token, 0) == error(errno.ENOSYS)
    assert judge(program, token, 3) == 123
    assert judge(program, token, 438) == error(errno.ENOSYS)
    assert judge(program, X86_64, 438) == 123


def test_prologue_is_empty_when_nothing_is_named() -> None:
    library = libseccomp.Library()
    assert enosys.prologue(library, [], [library.native_arch()]) == b""


# ---- flags and listener


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (None, kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        ([], 0),
        (["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"], 3),
        (["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], 4),
    ],
)
def test_flags(flags: list[str] | None, word: int) -> None:
    assert seccomp.compile(profile(rule("read"), flags=flags)).flags == word


def test_notify_is_a_property_of_the_filter() -> None:
    compiled = seccomp.compile(
        profile(
            rule("mkdir", action="SCMP_ACT_NOTIFY"),
            KNOWN,
            listenerPath="/run/listener",
            flags=["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        )
    )
    assert compiled.notify
    assert compiled.flags == 1 | 8 | 16 | 32
    assert judge(compiled.program, X86_64, 83) == 0x7FC00000
    assert not seccomp.compile(profile(rule("read"))).notify


# ---- refusals


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"defaultAction": "SCMP_ACT_NOPE"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet"),
        ({"defaultErrnoRet": 4095}, "defaultErrnoRet"),
        ({"architectures": ["SCMP_ARCH_VAX"]}, "architectures[0]"),
        ({"architectures": ["x86_64"]}, "architectures[0]"),
        ({"architectures": ["SCMP_ARCH_x86_64"]}, "architectures[0]"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "flags[0]"),
        ({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "flags"),
        ({"listenerMetadata": "x"}, "listenerMetadata"),
        ({"syscalls": [rule("read", action="ALLOW")]}, "syscalls[0].action"),
        ({"syscalls": [rule("")]}, "syscalls[0].names"),
        ({"syscalls": [rule("read", errnoRet=1)]}, "syscalls[0].errnoRet"),
        (
            {"syscalls": [rule("read", action="SCMP_ACT_ERRNO", errnoRet=4095)]},
            "syscalls[0].errnoRet",
        ),
        (
            {"syscalls": [rule("read", action="SCMP_ACT_TRACE", errnoRet=65536)]},
            "syscalls[0].errnoRet",
        ),
        ({"syscalls": [rule("read", action="SCMP_ACT_NOTIFY")]}, "syscalls[0].action"),
        (
            {
                "syscalls": [rule("write", action="SCMP_ACT_NOTIFY")],
                "listenerPath": "/run/l",
            },
            "syscalls[0].names",
        ),
        ({"syscalls": [rule("read", args=[arg(6, "EQ", 0)])]}, "syscalls[0].args[0].index"),
        (
            {"syscalls": [rule("read"), rule("read", args=[arg(0, "EQ", 1), arg(1, "XX", 0)])]},
            "syscalls[1].args[1].op",
        ),
        (
            {
                "syscalls": [
                    rule("read", args=[arg(0, "EQ", 1)]),
                    rule("read", action="SCMP_ACT_LOG", args=[arg(0, "EQ", 1)]),
                ]
            },
            "syscalls[1]",
        ),
    ],
)
def test_refusals_name_the_field(value: dict[str, Any], path: str) -> None:
    asked = Seccomp.decode({"defaultAction": "SCMP_ACT_ERRNO", **value}, "linux.seccomp")
    with pytest.raises(ConfigError) as caught:
        seccomp.compile(asked)
    assert caught.value.path == f"linux.seccomp.{path}"


def test_missing_libseccomp_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libseccomp, "SONAME", "libseccomp-that-is-not-there.so.2")
    with pytest.raises(Unsupported, match="cannot load libseccomp-that") as caught:
        seccomp.compile(profile(rule("read")))
    assert "libseccomp2" in caught.value.fix


def test_a_filter_that_the_kernel_cannot_take_is_refused() -> None:
    args = [arg(0, "EQ", number << 33 | number) for number in range(1500)]
    with pytest.raises(ConfigError, match="the kernel takes 4096"):
        seccomp.compile(profile(rule("read", args=args)))


def test_kernel_binding_refuses_broken_programs() -> None:
    for program in (b"", b"1234567", b"\0" * 8 * 4097):
        with pytest.raises(ValueError, match="a filter has 1 to 4096"):
            kernel.prepare(program)


# ---- the cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


SAMPLE = profile(rule("read", "no_such_call"), KNOWN)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count compilations."""
    calls: list[int] = []
    original = seccomp._compile

    def counting(*args: Any) -> seccomp.Filter:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(seccomp, "_compile", counting)
    return calls


def test_second_compilation_comes_from_the_cache(cache: Path, counted: list[int]) -> None:
    first = seccomp.compile(SAMPLE, str(cache))
    second = seccomp.compile(SAMPLE, str(cache))
    assert len(counted) == 1
    assert (first.program, first.flags, first.skipped) == (
        second.program,
        second.flags,
        second.skipped,
    )
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (entry,) = cache.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_what_is_compiled_decides_the_entry(cache: Path, counted: list[int]) -> None:
    seccomp.compile(SAMPLE, str(cache))
    seccomp.compile(SAMPLE.replace(default_errno_ret=2), str(cache))
    assert len(counted) == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "replace"])
def test_damaged_entries_are_compiled_anew(cache: Path, counted: list[int], damage: str) -> None:
    good = seccomp.compile(SAMPLE, str(cache))
    (entry,) = cache.iterdir()
    data = entry.read_bytes()
    entry.write_bytes(
        {
            "truncate": data[:-3],
            "flip": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "empty": b"",
            "replace": b"allow everything",
        }[damage]
    )
    assert seccomp.compile(SAMPLE, str(cache)).program == good.program
    assert len(counted) == 2
    assert seccomp.compile(SAMPLE, str(cache)).program == good.program
    assert len(counted) == 2


def test_entries_that_others_could_write_are_not_used(cache: Path, counted: list[int]) -> None:
    seccomp.compile(SAMPLE, str(cache))
    (entry,) = cache.iterdir()
    entry.chmod(0o620)
    seccomp.compile(SAMPLE, str(cache))
    assert len(counted) == 2
    cache.chmod(0o770)
    seccomp.compile(SAMPLE, str(cache))
    assert len(counted) == 3


def test_a_symlink_or_fifo_in_the_cache_is_not_followed(cache: Path, counted: list[int]) -> None:
    seccomp.compile(SAMPLE, str(cache))
    (entry,) = cache.iterdir()
    target = cache.parent / "target"
    target.write_bytes(entry.read_bytes())
    target.chmod(0o600)
    entry.unlink()
    entry.symlink_to(target)
    seccomp.compile(SAMPLE, str(cache))
    assert len(counted) == 2
    assert not entry.is_symlink()
    entry.unlink()
    os.mkfifo(entry, 0o600)
    seccomp.compile(SAMPLE, str(cache))
    assert len(counted) == 3


@pytest.mark.parametrize("where", ["/proc/self/nothing/cache", "/dev/null", "/nonexistent/a/b"])
def test_an_unusable_cache_is_no_error(where: str) -> None:
    assert seccomp.compile(SAMPLE, where).instructions > 3


def test_an_overgrown_cache_is_emptied(cache: Path) -> None:
    entry = filtercache.Entry(b"12345678", 0, ())
    for number in range(filtercache._MAX_ENTRIES + 1):
        assert filtercache.write(str(cache), f"{number:04}", entry)
    assert [path.name for path in cache.iterdir()] == [f"{filtercache._MAX_ENTRIES:04}"]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_entry(data: bytes) -> None:
    assert filtercache._decode(data) is None


# ---- the default profile


DEFAULT = profiles.seccomp("x86_64")
DEFAULT_PROGRAM = seccomp.compile(Seccomp.decode(DEFAULT, "linux.seccomp")).program
EPERM, ENOSYS = error(errno.EPERM), error(errno.ENOSYS)


def names_of(action: str) -> list[str]:
    return [name for one in DEFAULT["syscalls"] if one["action"] == action for name in one["names"]]


CONDITIONAL = {"socketcall", "socket", "personality", "clone", "ioctl"}


def test_no_name_stands_twice() -> None:
    for one in DEFAULT["syscalls"]:
        assert one["names"] == sorted(set(one["names"]), key=lambda name: (name.lstrip("_"), name))
    plain = [name for one in DEFAULT["syscalls"] if "args" not in one for name in one["names"]]
    assert len(plain) == len(set(plain))
    conditional = {name for one in DEFAULT["syscalls"] if "args" in one for name in one["names"]}
    assert conditional == CONDITIONAL
    assert not conditional & set(plain)


def test_every_call_that_libseccomp_knows_is_decided() -> None:
    library = libseccomp.Library()
    decided = {name for one in DEFAULT["syscalls"] for name in one["names"]}
    entry = library._function("seccomp_syscall_resolve_num_arch", *(ctypes.c_uint32,) * 2)
    entry.restype = ctypes.c_char_p
    unnamed = set()
    for token, number in itertools.product((X86_64, X86, ARM64, ARM), range(470)):
        found = entry(token, number)
        if found and found.decode() not in decided:
            unnamed.add(found.decode())
    # Never implemented, or gone for so long that ENOSYS is the truth.
    assert unnamed <= {
        *("afs_syscall", "break", "ftime", "getpmsg", "gtty", "lock", "mpx", "prof", "profil"),
        *("putpmsg", "security", "stty", "tuxcall", "ulimit", "vserver"),
    }


def test_profile_is_for_the_machine() -> None:
    assert profiles.seccomp("aarch64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    compiled = seccomp.compile(
        Seccomp.decode(profiles.seccomp("aarch64") | {"flags": []}, "linux.seccomp")
    )
    assert judge(compiled.program, ARM64, 63) == ALLOW
    assert judge(compiled.program, ARM64, 40) == EPERM  # mount
    assert judge(compiled.program, ARM, 3) == ALLOW
    assert judge(compiled.program, ARM, 21) == EPERM


def test_profile_does_not_depend_on_a_listener_or_flags() -> None:
    assert set(DEFAULT) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}


TIOCSTI, TIOCLINUX = 0x5412, 0x541C
HIGH = st.sampled_from([0, 1 << 32, 0xFFFFFFFF << 32, 1 << 63])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers(0x5400, 0x5430), st.integers(0, 0xFFFFFFFF)), HIGH)
def test_ioctl_refuses_two_commands_and_compares_32_bits(command: int, high: int) -> None:
    expected = EPERM if command in (TIOCSTI, TIOCLINUX) else ALLOW
    assert judge(DEFAULT_PROGRAM, X86_64, 16, 0, high | command) == expected
    assert judge(DEFAULT_PROGRAM, X86, 54, 0, command) == expected
    assert judge(DEFAULT_PROGRAM, X86_64, X32 | 514, 0, high | command) == expected


def test_ioctl_commands_one_bit_away_are_allowed() -> None:
    for command, bit in itertools.product((TIOCSTI, TIOCLINUX), range(32)):
        assert judge(DEFAULT_PROGRAM, X86_64, 16, 0, command ^ 1 << bit) == ALLOW


def test_sockets_of_few_families() -> None:
    for family in range(64):
        expected = ALLOW if family in (1, 2, 10, 16, 17) else ENOSYS
        assert judge(DEFAULT_PROGRAM, X86_64, 41, family) == expected
        assert judge(DEFAULT_PROGRAM, X86, 359, family) == expected
    assert judge(DEFAULT_PROGRAM, X86, 102, 1) == EPERM  # socketcall(SYS_SOCKET)
    for call in (2, 3, 4, 5, 9, 10, 11, 12, 14, 15, 16, 17, 18):
        assert judge(DEFAULT_PROGRAM, X86, 102, call) == ALLOW


@given(st.integers(0, (1 << 64) - 1))
@settings(max_examples=200, deadline=None)
def test_clone_makes_no_namespace(flags: int) -> None:
    expected = EPERM if flags & 0x7E020000 else ALLOW
    assert judge(DEFAULT_PROGRAM, X86_64, 56, flags) == expected


def test_personality() -> None:
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert judge(DEFAULT_PROGRAM, X86_64, 135, value) == ALLOW
    for value in (1, 0x40000, 0x0040000 | 8, 0x400000, 1 << 32, (1 << 64) - 1):
        assert judge(DEFAULT_PROGRAM, X86_64, 135, value) == ENOSYS


def test_describe_counts() -> None:
    compiled = seccomp.compile(
        profile(
            rule("read", "write", "no_such_call"),
            rule("write", args=[arg(0, "EQ", 1)]),
            rule("mount", action="SCMP_ACT_ERRNO", errnoRet=13),
            rule("reboot", action="SCMP_ACT_KILL"),
        )
    )
    text = seccomp.describe(compiled)
    assert text.startswith(
        "system calls: 2 allowed, 1 refused with EACCES, 1 fatal, the rest refused with EPERM"
    )
    assert f"({compiled.instructions} instructions)" in text
