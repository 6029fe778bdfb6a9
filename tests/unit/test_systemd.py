"""The systemd driver: names of units, properties, and its talk with a manager that is a fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Message
from test_dbus import failure, member, peer, reply, signal_of

from minirun.cgroups import gvariant, properties, systemd
from minirun.cgroups.properties import INFINITY, of_annotations, of_devices, of_writes
from minirun.cgroups.resources import writes
from minirun.cgroups.unitname import expand, unit_of
from minirun.dbus import Malformed
from minirun.errors import ConfigError, MinirunError, StateError, Unsupported
from minirun.spec import Resources


@pytest.mark.parametrize(
    ("path", "user", "name", "slice_", "cgroup"),
    [
        (None, False, "runc-web.scope", "system.slice", "/system.slice/runc-web.scope"),
        ("", True, "runc-web.scope", "user.slice", "/user.slice/runc-web.scope"),
        ("machine.slice:libpod:c1", False, "libpod-c1.scope", "machine.slice",
         "/machine.slice/libpod-c1.scope"),
        ("a-b-c.slice:p:n", False, "p-n.scope", "a-b-c.slice",
         "/a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
        (":p:n", False, "p-n.scope", "system.slice", "/system.slice/p-n.scope"),
        ("-:p:n", False, "p-n.scope", "-.slice", "/p-n.scope"),
        ("-.slice:p:n", False, "p-n.scope", "-.slice", "/p-n.scope"),
        ("a.slice:p:a-b.slice", False, "a-b.slice", "a.slice", "/a.slice/a-b.slice"),
    ],
)  # fmt: skip
def test_units(path: str | None, user: bool, name: str, slice_: str, cgroup: str) -> None:
    unit = unit_of(path, "web", user=user)
    assert (unit.name, unit.slice, unit.path) == (name, slice_, cgroup)
    assert unit.is_slice == name.endswith(".slice")


@pytest.mark.parametrize(
    "path",
    ["/a/b", "web", "a.slice:b", "a:b:c:d", "a.slice:p:", "a:p:n", ".slice:p:n", "a--b.slice:p:n",
     "-a.slice:p:n", "a-.slice:p:n", "a/b.slice:p:n", "a.slice:p:x/y", "a.slice:p:x y",
     "a.slice:p:x\n", "a.slice:p:é", "a.slice:p:" + "x" * 250, "a.slice:p:b.slice",
     "a.slice:../../x:y", "a b.slice:p:n", "a.slice:p:.slice"],
)  # fmt: skip
def test_units_that_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.cgroupsPath"):
        unit_of(path, "web")


def test_an_id_that_no_unit_can_bear() -> None:
    with pytest.raises(ConfigError, match=r"'\+' is not allowed"):
        unit_of(None, "a+b")


def test_the_words_for_another_form_are_runcs() -> None:
    text = 'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "/x"'
    with pytest.raises(ConfigError, match=text):
        unit_of("/x", "web")


@given(st.text(max_size=20))
def test_no_slice_leads_out(name: str) -> None:
    try:
        path = expand(name + ".slice")
    except ConfigError:
        return
    assert path == "/" or not {"", ".", ".."} & set(path.split("/")[1:])


# ---------------------------------------------------------------- GVariant


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("'inactive-or-failed'", ("s", "inactive-or-failed")),
        ('"it\'s"', ("s", "it's")),
        (r"'a\'b\n'", ("s", "a'b\n")),
        ("uint64 30000000", ("t", 30000000)),
        ("5", ("i", 5)),
        (" -5 ", ("i", -5)),
        ("byte 0xff", ("y", 255)),
        ("1.5", ("d", 1.5)),
        ("double 2", ("d", 2.0)),
        ("true", ("b", True)),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("@au [1, 2]", ("au", [1, 2])),
        ("[uint32 1, 2]", ("au", [1, 2])),
        ("('a', uint64 1)", ("(st)", ("a", 1))),
        ("[('/dev/sda', uint64 5)]", ("a(st)", [("/dev/sda", 5)])),
        ("<'x'>", ("v", ("s", "x"))),
        ("objectpath '/a'", ("o", "/a")),
    ],
)
def test_values(text: str, found: tuple[str, Any]) -> None:
    assert gvariant.parse(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "x", "'", "'a", "'a' 'b'", "[", "[1", "[1,]2", "[]", "()", "['a', 1]", "uint64 -1",
     "byte 256", "uint64", "uint64 'x'", "2147483648", "99999999999999999999999", "0xzz", "1_0",
     "@as 5", "nan", "[" * 40, "string 5", "'a\0b'", "\u0665"],
)  # fmt: skip
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        gvariant.parse(text)


@given(st.text("'[](){}<>@asuit0123456789 ,.-x\\\"", max_size=20))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        gvariant.parse(text)
    except (ValueError, MinirunError):
        pass


def test_annotations() -> None:
    found = of_annotations(
        {
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.systemd.property.TimeoutStopSec": "double 1.5",
            "org.systemd.property.TimeoutStopUSec": "uint64 7",
            "org.example.other": "not a value",
        }
    )
    assert found == [
        ("CollectMode", "s", "inactive-or-failed"),
        ("TimeoutStopUSec", "t", 1_500_000),
        ("TimeoutStopUSec", "t", 7),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("X", "1"), ("A_B", "1"), ("Slice/x", "1"), ("", "1"), ("Description", "oops"),
     ("TimeoutStopSec", "'a'"), ("TimeoutStopSec", "-1")],
)  # fmt: skip
def test_annotations_that_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"annotations\.org\.systemd\.property\."):
        of_annotations({f"org.systemd.property.{name}": text})


# ---------------------------------------------------------------- properties


def props(version: int = 252, **values: Any) -> dict[str, Any]:
    planned = writes(Resources.decode(values))
    return {name: value for name, _kind, value in of_writes(planned, lambda: version)}


def test_limits_as_properties() -> None:
    assert props(memory={"limit": 1 << 26, "reservation": 1 << 20, "swap": 1 << 27}) == {
        "MemoryMax": 1 << 26, "MemoryLow": 1 << 20, "MemorySwapMax": 1 << 26,
    }  # fmt: skip
    assert props(memory={"limit": -1})["MemoryMax"] == INFINITY
    assert props(pids={"limit": 7}) == {"TasksMax": 7}
    assert props(pids={"limit": -1}) == {"TasksMax": INFINITY}
    assert props(cpu={"shares": 1024}) == {"CPUWeight": 100}
    assert props(cpu={"idle": 1}) == {"CPUWeight": 0}
    assert props(251, cpu={"idle": 1}) == {}
    assert props(cpu={"cpus": "0-2,9", "mems": "0"}) == {
        "AllowedCPUs": b"\x07\x02", "AllowedMemoryNodes": b"\x01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("quota", "period", "second"),
    [(50_000, 100_000, 500_000), (12_345, 100_000, 130_000), (-1, 50_000, INFINITY)],
)
def test_a_quota_in_percent_is_rounded_up(quota: int, period: int, second: int) -> None:
    found = props(cpu={"quota": quota, "period": period})
    assert found == {"CPUQuotaPeriodUSec": period, "CPUQuotaPerSecUSec": second}


def test_io_limits_as_properties() -> None:
    rate = [{"major": 8, "minor": 0, "rate": 1000}, {"major": 8, "minor": 16, "rate": 2000}]
    found = props(blockIO={"weight": 500, "throttleReadBpsDevice": rate})
    assert found == {
        "IOWeight": 4950,
        "IOReadBandwidthMax": [("/dev/block/8:0", 1000), ("/dev/block/8:16", 2000)],
    }


def test_unified_counts_as_well_and_the_last_wins() -> None:
    found = props(memory={"limit": 1 << 26}, unified={"memory.max": "5", "memory.high": "max",
                  "io.weight": "default 7", "memory.oom.group": "1"})  # fmt: skip
    assert found == {"MemoryMax": 5, "MemoryHigh": INFINITY, "IOWeight": 7}


@pytest.mark.parametrize(
    ("text", "mask"),
    [("0", b"\1"), ("8", b"\0\1"), ("0-1,3", b"\x0b"), ("", b""), ("0-7:2/4", None), ("x", None)],
)
def test_sets_as_bits(text: str, mask: bytes | None) -> None:
    assert properties.bits(text) == mask


def test_devices_as_properties() -> None:
    groups = properties.device_groups(
        "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n136 pts\n\nBlock devices:\n  8 sd\n"
    )
    assert groups == {("c", 1): "mem", ("c", 4): "tty", ("c", 136): "pts", ("b", 8): "sd"}
    found = of_devices(
        False,
        {("c", 1, 3): 7, ("c", None, None): 1, ("b", 8, None): 2, ("c", 136, None): 6},
        groups,
    )
    assert found == [
        ("DevicePolicy", "s", "strict"),
        ("DeviceAllow", "a(ss)", []),
        ("DeviceAllow", "a(ss)", [("/dev/char/1:3", "rwm"), ("char-*", "m"), ("block-sd", "r"),
                                  ("char-pts", "rw")]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("allow", "which"), [(True, ("c", 1, 3)), (False, ("c", None, 3)), (False, ("c", 99, None))]
)
def test_what_systemd_has_no_word_for_it_does_not_forbid(allow: bool, which: Any) -> None:
    found = of_devices(allow, {which: 7}, {})
    assert found == [("DevicePolicy", "s", "auto"), ("DeviceAllow", "a(ss)", [])]


# ---------------------------------------------------------------- the talk


class Manager:
    """What a fake systemd answers: by method, an error's name or the result of the job."""

    def __init__(self) -> None:
        self.results: dict[str, list[str]] = {}
        self.job = 0

    def answer(self, call: Message) -> list[Message]:
        name = member(call)
        result = self.results.get(name, [""])
        said = result.pop(0) if result else ""
        if said.startswith("org."):
            return [failure(call, said, "It was Refused.")]
        if name == "Get":
            return [reply(call, "v", ("s", said or "252.39-1~deb12u1"))]
        if name in ("StartTransientUnit", "StopUnit"):
            self.job += 1
            path = f"/job/{self.job}"
            ended = (self.job, path, call.body[0], said or "done")
            # Other jobs end too, and ours perhaps before its number is told.
            return [
                signal_of("JobRemoved", "uoss", 99, "/job/99", "other.service", "failed"),
                signal_of("JobRemoved", "uoss", *ended),
                reply(call, "o", path),
            ]
        return [reply(call)]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Manager, Any]]:
    fake = Manager()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with peer(tmp_path / "bus", fake.answer) as calls:
        yield fake, calls


def scope(path: str | None = None, **annotations: str) -> systemd.Scope:
    given = {f"org.systemd.property.{name}": text for name, text in annotations.items()}
    return systemd.scope_of(path, "web", given, user=False)


def told(calls: list[Message], name: str) -> Message:
    return next(call for call in calls if member(call) == name)


def test_a_scope_is_started_around_a_process(manager: tuple[Manager, Any]) -> None:
    one = scope("a.slice:p:n", CollectMode="'inactive'")
    one.start(77)
    one.close()
    call = told(manager[1], "StartTransientUnit")
    name, mode, given, rest = call.body
    assert (name, mode, rest) == ("p-n.scope", "replace", [])
    found = dict(given)
    assert found["PIDs"] == ("au", [77])
    assert found["Slice"] == ("s", "a.slice")
    assert found["Delegate"] == ("b", True)
    assert found["DefaultDependencies"] == ("b", False)
    assert found["MemoryAccounting"] == found["TasksAccounting"] == ("b", True)
    assert given[-1] == ("CollectMode", ("s", "inactive"))  # last: it may replace ours
    order = [member(call) for call in manager[1]]
    assert order.index("AddMatch") < order.index("Subscribe") < order.index("StartTransientUnit")


def test_a_slice_is_given_no_process(manager: tuple[Manager, Any]) -> None:
    one = scope("a.slice:p:a-b.slice")
    one.start(77)
    one.close()
    found = dict(told(manager[1], "StartTransientUnit").body[2])
    assert found["Wants"] == ("as", ["a.slice"])
    assert not {"PIDs", "Delegate", "Slice"} & set(found)


def test_remains_of_a_failed_unit_are_cleared_once(manager: tuple[Manager, Any]) -> None:
    fake, calls = manager
    exists = "org.freedesktop.systemd1.UnitExists"
    fake.results["StartTransientUnit"] = [exists]
    one = scope()
    one.start(77)
    assert [member(call) for call in calls].count("StartTransientUnit") == 2
    assert told(calls, "ResetFailedUnit").body == ("runc-web.scope",)
    fake.results["StartTransientUnit"] = [exists, exists]
    with pytest.raises(StateError, match=r'unable to start unit "runc-web.scope": it was refused'):
        one.start(77)
    one.close()


def test_a_refusal_is_told(manager: tuple[Manager, Any]) -> None:
    manager[0].results["StartTransientUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    one = scope()
    with pytest.raises(MinirunError, match=r'unable to start unit "runc-web.scope"') as caught:
        one.start(77)
    one.close()
    assert "AccessDenied" in caught.value.cause


ODD: dict[str, tuple[str, list[Any]]] = {
    "nothing": ("", []),
    "a number": ("u", [1]),
    "two": ("ss", ["a", "b"]),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_manager_that_answers_oddly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    signature, body = ODD[kind]
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with peer(tmp_path / "bus", lambda call: [reply(call, signature, *body)]):
        one = scope()
        with pytest.raises(Malformed):
            one.version()
        if kind != "a number":
            with pytest.raises(Malformed):
                one.start(77)
        one.close()


def test_a_job_whose_end_is_told_oddly(manager: tuple[Manager, Any]) -> None:
    fake, _ = manager
    usual = fake.answer
    short = signal_of("JobRemoved", "u", 1)
    fake.answer = lambda call: [short, *usual(call)]  # type: ignore[method-assign]
    one = scope()
    one.start(77)
    one.close()


def test_a_job_that_fails(manager: tuple[Manager, Any]) -> None:
    manager[0].results["StartTransientUnit"] = ["dependency"]
    one = scope()
    with pytest.raises(MinirunError, match=r'StartTransientUnit got "dependency"'):
        one.start(77)
    one.close()
    assert told(manager[1], "ResetFailedUnit")


def test_limits_are_told(manager: tuple[Manager, Any]) -> None:
    one = scope()
    one.restrict_devices(True, {})
    one.limit(writes(Resources.decode({"memory": {"limit": 5}, "cpu": {"idle": 1}})))
    one.limit([])  # nothing left to say: no call
    one.close()
    name, runtime, given = told(manager[1], "SetUnitProperties").body
    assert (name, runtime) == ("runc-web.scope", True)
    assert given == [
        ("DevicePolicy", ("s", "auto")),
        ("DeviceAllow", ("a(ss)", [])),
        ("MemoryMax", ("t", 5)),
        ("CPUWeight", ("t", 0)),
    ]
    assert [member(call) for call in manager[1]].count("SetUnitProperties") == 1


def test_what_is_gone_is_stopped(manager: tuple[Manager, Any]) -> None:
    gone = "org.freedesktop.systemd1.NoSuchUnit"
    manager[0].results |= {"StopUnit": [gone], "ResetFailedUnit": [gone]}
    one = systemd.existing("runc-web.scope", user=False)
    one.stop()
    manager[0].results["StopUnit"] = ["org.freedesktop.DBus.Error.AccessDenied"]
    with pytest.raises(MinirunError, match="unable to stop unit"):
        one.stop()
    one.close()


@pytest.mark.parametrize(("text", "number"), [("252.39-1", 252), ("v255", 255), ("odd", 0)])
def test_the_version(manager: tuple[Manager, Any], text: str, number: int) -> None:
    manager[0].results["Get"] = [text]
    one = scope()
    assert one.version() == number
    one.close()


def test_no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    monkeypatch.setattr(systemd, "SYSTEM_PRIVATE", f"{tmp_path}/private")
    with pytest.raises(Unsupported, match="cannot reach systemd over d-bus") as caught:
        scope().start(1)
    assert f"{tmp_path}/none: no such file" in caught.value.message
    assert "run without --systemd-cgroup" in caught.value.fix


def test_no_user_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(Unsupported, match="neither DBUS_SESSION_BUS_ADDRESS nor") as caught:
        systemd.connect(user=True)
    assert "no user session" in caught.value.cause
