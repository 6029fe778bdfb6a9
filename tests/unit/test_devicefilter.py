"""Device rules, judged by an interpreter of the few eBPF instructions that they need."""

from __future__ import annotations

import itertools
import os
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minirun import devicefilter
from minirun.errors import ConfigError, Unsupported
from minirun.kernel import bpf
from minirun.kernel.libc import failure
from minirun.spec import Device, DeviceRule

BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}


def judge(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Run `program` as the kernel would for one open or mknod."""
    wanted = sum(BITS[letter] for letter in set(access))
    context = struct.pack("=III", wanted << 16 | KINDS[kind], major, minor)
    code = list(struct.iter_unpack("=BBhI", program))
    registers: list[int | None] = [None] * 11

    def value(number: int) -> int:
        found = registers[number]
        assert found is not None, f"r{number} is read before it is set"
        return found

    at = 0
    while True:
        op, packed, offset, constant = code[at]
        to, source = packed & 15, packed >> 4
        at += 1
        if op == 0x61:
            assert source == 1
            registers[to] = struct.unpack_from("=I", context, offset)[0]
        elif op == 0xBF:
            registers[to] = value(source)
        elif op == 0xB7:
            registers[to] = constant
        elif op == 0x57:
            registers[to] = value(to) & constant
        elif op == 0x77:
            registers[to] = value(to) >> constant
        elif op == 0x56:
            at += offset if value(to) & 0xFFFFFFFF != constant else 0
        elif op == 0x46:
            at += offset if value(to) & constant else 0
        elif op == 0x05:
            at += offset
        elif op == 0x95:
            return bool(value(0))
        else:
            raise AssertionError(f"unknown instruction {op:#x}")
        assert offset >= 0, "a loop"


def rule(
    allow: bool,
    kind: str | None = None,
    major: int | None = None,
    minor: int | None = None,
    access: str | None = "rwm",
) -> DeviceRule:
    return DeviceRule(allow=allow, type=kind, major=major, minor=minor, access=access)


def only(*rules: DeviceRule) -> bytes:
    """The program of these rules alone, without the default ones."""
    found = devicefilter.Policy()
    for number, one in enumerate(rules):
        devicefilter._apply(found, one, f"rules[{number}]")
    return devicefilter.assemble(found)


def asked(allow: bool, *args: Any) -> DeviceRule:
    return rule(allow, *args)


numbers = st.one_of(st.none(), st.sampled_from([-1, 0, 1, 3, 0xFFFFFFFF]))
rules = st.builds(
    rule,
    st.booleans(),
    st.sampled_from([None, "a", "b", "c", "u"]),
    numbers,
    numbers,
    st.sampled_from(["r", "w", "m", "rw", "wm", "rm", "rwm", "mwr"]),
)
REQUESTS = list(
    itertools.product("bc", (0, 1, 3, 0xFFFFFFFF), (0, 3, 0xFFFFFFFF), ("r", "w", "rw", "m"))
)


def matches(one: DeviceRule, kind: str, major: int, minor: int) -> bool:
    kinds = {"a": "bc", "b": "b", "c": "c", "u": "c"}[one.type or "a"]
    return (
        kind in kinds
        and (one.major in (None, -1) or one.major == major)
        and (one.minor in (None, -1) or one.minor == minor)
    )


def to_the_letter(listed: list[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """The specification's words: for each kind of access the last rule that matches decides."""
    verdict = dict.fromkeys(access, False)
    for one in listed:
        for letter in access:
            if letter in (one.access or "") and matches(one, kind, major, minor):
                verdict[letter] = one.allow
    return all(verdict.values())


@settings(max_examples=400, deadline=None)
@given(st.lists(rules, max_size=6))
@example([rule(True, "c", None, None, "m"), rule(True, "c", 1, 3, "rw")])
@example([rule(True, "c", 1, 3), rule(False, "c", 1, -1, "w")])
@example([rule(True), rule(False, "c", 1, 3, "w"), rule(True, "c", 1, None, "w")])
@example([rule(True, "a", 1, 3, "r")])
def test_nothing_is_allowed_that_the_rules_do_not_allow(listed: list[DeviceRule]) -> None:
    try:
        program = only(*listed)
    except ConfigError as refusal:
        assert "cannot except" in refusal.problem
        return
    for request in REQUESTS:
        if judge(program, *request):
            assert to_the_letter(listed, *request), request


class Emulation:
    """cgroup v1's list of exceptions, with sets of letters."""

    def __init__(self) -> None:
        self.default = False
        self.found: dict[tuple[str, int, int], set[str]] = {}

    def apply(self, one: DeviceRule) -> None:
        kind, access = one.type or "a", set(one.access or "")
        major = -1 if one.major is None else one.major
        minor = -1 if one.minor is None else one.minor
        if kind == "a" and (not one.allow or (access == set("rwm") and major == minor == -1)):
            self.default, self.found = one.allow, {}
            return
        for each in {"a": "bc", "u": "c"}.get(kind, kind):
            self.except_(one.allow, (each, major, minor), access)

    def except_(self, allow: bool, key: tuple[str, int, int], access: set[str]) -> None:
        if allow != self.default:
            self.found.setdefault(key, set()).update(access)
            return
        kind, major, minor = key
        for wider in {(kind, -1, minor), (kind, major, -1), (kind, -1, -1)} - {key}:
            if self.found.get(wider, set()) & access:
                raise ConfigError("rules", "cannot except")
        for other, letters in self.found.items():
            meets = all(-1 in (a, b) or a == b for a, b in zip(other, key, strict=True))
            inside = all(b in (-1, a) for a, b in zip(other, key, strict=True))
            if not allow and meets and not inside and letters & access:
                raise ConfigError("rules", "cannot except")  # they cross: stricter than runc
        for other in self.found:
            narrower = other[0] == kind and major in (-1, other[1]) and minor in (-1, other[2])
            if other == key or (narrower and not allow):
                self.found[other] = self.found[other] - access

    def judge(self, kind: str, major: int, minor: int, access: str) -> bool:
        for (each, one, two), letters in self.found.items():
            if each == kind and one in (-1, major) and two in (-1, minor):
                if self.default and set(access) & letters:
                    return False
                if not self.default and set(access) <= letters:
                    return True
        return self.default


@settings(max_examples=400, deadline=None)
@given(st.lists(rules, max_size=6))
def test_program_does_what_cgroup_v1_did(listed: list[DeviceRule]) -> None:
    model = Emulation()
    try:
        for one in listed:
            model.apply(one)
    except ConfigError:
        with pytest.raises(ConfigError, match="cannot except"):
            only(*listed)
        return
    program = only(*listed)
    for request in REQUESTS:
        assert judge(program, *request) == model.judge(*request), request


DENY_ALL = rule(False)


def test_without_rules_only_the_defaults_hold() -> None:
    program = devicefilter.program(())
    for minor in (3, 5, 7, 8, 9):
        assert judge(program, "c", 1, minor, "rw")
    for major, minor in ((5, 0), (5, 2), (136, 0), (136, 77)):
        assert judge(program, "c", major, minor, "rw")
    for kind, major, minor in itertools.product("bc", (1, 7, 8, 10), (1, 2, 11, 200, 229, 237)):
        assert judge(program, kind, major, minor, "m")
        for access in ("r", "w", "rw"):
            assert not judge(program, kind, major, minor, access)
    assert not judge(program, "c", 5, 1, "w")  # the host's console


def test_defaults_come_after_the_config_and_cannot_be_taken_back() -> None:
    program = devicefilter.program((rule(False, "c", 1, 3), DENY_ALL))
    assert judge(program, "c", 1, 3, "rw")


def test_a_device_of_the_config_replaces_the_default_rule_of_its_path() -> None:
    devices = [Device(path="/dev/null", type="c", major=1, minor=3)]
    assert not judge(devicefilter.program((DENY_ALL,), devices), "c", 1, 3, "r")
    assert judge(devicefilter.program((DENY_ALL,), devices), "c", 1, 5, "r")
    listed = devicefilter.effective((DENY_ALL,), devices)
    assert listed[0] is DENY_ALL
    assert len(listed) == len(devicefilter.DEFAULT_RULES)


def test_engines_way_of_privileged_needs_no_program() -> None:
    everything = DeviceRule.decode({"allow": True, "access": "rwm"})
    assert devicefilter.policy((everything,)).allows_all
    assert not devicefilter.policy((everything, DENY_ALL)).allows_all
    assert not devicefilter.policy((everything, rule(False, "c", 10, 229))).allows_all
    assert not devicefilter.Policy().allows_all


def test_large_numbers_are_compared_unsigned() -> None:
    program = only(rule(True, "c", 0x80000001, 0xFFFFFFFF, "rw"))
    assert judge(program, "c", 0x80000001, 0xFFFFFFFF, "rw")
    assert not judge(program, "c", 1, 0xFFFFFFFF, "rw")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"allow": True, "type": "p", "access": "r"}, ".type"),
        ({"allow": True, "type": "ab", "access": "r"}, ".type"),
        ({"allow": True, "type": "c", "access": ""}, ".access"),
        ({"allow": True, "type": "c"}, ".access"),
        ({"allow": True, "type": "c", "access": "x"}, ".access"),
        ({"allow": True, "type": "c", "major": 1 << 32, "access": "r"}, ".major"),
        ({"allow": True, "type": "c", "minor": 1 << 32, "access": "r"}, ".minor"),
    ],
)
def test_malformed_rules_are_named(value: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devicefilter.policy((DENY_ALL, DeviceRule.decode(value)))
    assert caught.value.path == f"linux.resources.devices[1]{field}"


def test_letters_that_are_none_are_ignored() -> None:
    """As in runc, whose own tests have a rule that denies "rwa"."""
    program = devicefilter.policy((DENY_ALL, rule(True, "c", 1, 11, "rxa")))
    assert (
        program.exceptions
        == devicefilter.policy((DENY_ALL, rule(True, "c", 1, 11, "r"))).exceptions
    )


def test_a_hole_in_a_wider_rule_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        devicefilter.policy((DENY_ALL, rule(True, "c", 10, None), rule(False, "c", 10, 229, "w")))
    assert str(caught.value) == (
        "invalid config: linux.resources.devices[2]: "
        "cannot except c 10:229 w from the earlier rule c 10:* rwm"
    )
    # What does not overlap is no hole.
    devicefilter.policy((rule(True, "c", 10, None, "r"), rule(False, "c", 10, 229, "w")))


def test_describe() -> None:
    policy = devicefilter.Policy(allow=False, exceptions={("c", 1, 3): 6, ("b", None, None): 1})
    assert devicefilter.describe(policy) == "devices: none allowed but b *:* m, c 1:3 rw"
    assert devicefilter.describe(devicefilter.Policy()) == "devices: none allowed"
    assert devicefilter.describe(devicefilter.Policy(True)) == "devices: all allowed, no filter"
    policy = devicefilter.Policy(True, {("c", 10, 229): 7})
    assert devicefilter.describe(policy) == "devices: all allowed but c 10:229 rwm"


# ---- attaching, with the binding replaced


class Kernel:
    """Remembers the commands; programs are descriptors of /dev/null."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, attached: dict[int, str]) -> None:
        self.attached = attached
        self.names: dict[int, str] = {}
        self.done: list[str] = []
        self.fail: dict[str, int] = {}
        for name in ("load_device_program", "attach_device_program", "detach_device_program"):
            monkeypatch.setattr(bpf, name, getattr(self, name))
        for name in ("query_device_programs", "open_program", "program_name", "verifier_log"):
            monkeypatch.setattr(bpf, name, getattr(self, name))

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fail:
            raise failure(self.fail[what], f"bpf({what})")

    def _open(self, name: str) -> int:
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.names[fd] = name
        return fd

    def load_device_program(self, _code: bytes, name: str) -> int:
        self._do("load")
        return self._open(name)

    def verifier_log(self, _code: bytes, _name: str) -> str:
        return "R0 !read_ok"

    def attach_device_program(self, _cgroup: int, _fd: int, replaced: int | None) -> None:
        self._do("attach" if replaced is None else "replace")

    def detach_device_program(self, _cgroup: int, fd: int) -> None:
        self._do(f"detach {self.names[fd]}")

    def query_device_programs(self, _cgroup: int) -> list[int]:
        self._do("query")
        return list(self.attached)

    def open_program(self, identity: int) -> int:
        self._do(f"open {identity}")
        return self._open(self.attached[identity])

    def program_name(self, fd: int) -> str:
        return self.names[fd]


@pytest.fixture
def descriptors() -> Any:
    """Assert that no descriptor stays open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


STRICT = devicefilter.policy(())
OURS = devicefilter.PROGRAM_NAME


@pytest.mark.usefixtures("descriptors")
def test_the_former_program_of_ours_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {1: "sd_devices", 2: OURS, 3: OURS})
    devicefilter.attach(9, STRICT)
    assert kernel.done[-3:] == ["load", "replace", f"detach {OURS}"]
    assert "detach sd_devices" not in kernel.done


@pytest.mark.usefixtures("descriptors")
def test_allowing_everything_leaves_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {1: "sd_devices", 2: OURS})
    devicefilter.attach(9, devicefilter.Policy(allow=True))
    assert kernel.done == ["query", "open 1", "open 2", f"detach {OURS}"]
    kernel.fail["query"] = 1
    devicefilter.attach(9, devicefilter.Policy(allow=True))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("number", [1, 13, 22, 38, 9])
@pytest.mark.parametrize("step", ["query", "open 2", "load", "replace"])
def test_never_silently_unfiltered(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    kernel = Kernel(monkeypatch, {2: OURS})
    kernel.fail[step] = number
    if step == "open 2" and number in (1, 13):
        devicefilter.attach(9, STRICT)  # hidden, so not ours
        assert kernel.done[-1] == "attach"
        return
    with pytest.raises(Unsupported) as caught:
        devicefilter.attach(9, STRICT)
    assert str(caught.value).startswith("cannot ")
    assert f"bpf({step})" in str(caught.value)
    if step == "load" and number in (13, 22):
        assert "R0 !read_ok" in caught.value.cause


@pytest.mark.usefixtures("descriptors")
def test_hidden_programs_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {1: "other", 2: OURS})
    kernel.fail["open 1"] = 13
    devicefilter.attach(9, STRICT)
    assert kernel.done[-1] == "replace"
