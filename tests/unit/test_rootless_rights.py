"""What minirun knows of a user's rights before it tries, and how it says what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from minirun import privilege, validate_rootless
from minirun.cgroups import delegation
from minirun.cgroups.hierarchy import Hierarchy
from minirun.errors import ConfigError, MinirunError, StepFailed, UsageError
from minirun.kernel.process import run
from minirun.spec import Spec

SETTINGS = {
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}


@pytest.mark.parametrize(
    ("maps", "own", "expected"),
    [
        ([(0, 1000, 1)], 1000, False),
        ([(7, 1000, 1)], 1000, False),
        ([(0, 1000, 2)], 1000, True),
        ([(0, 1001, 1)], 1000, True),
        ([(0, 1000, 1), (1, 100000, 9)], 1000, True),
        ([], 1000, True),
    ],
)
def test_who_needs_a_helper(maps: list[tuple[int, int, int]], own: int, expected: bool) -> None:
    assert privilege.needs_helper(maps, own) == expected


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("0", False), ("T", True)])
def test_the_flag(text: str, expected: bool) -> None:
    assert privilege.rootless(text) == expected


def test_nonsense_in_the_flag() -> None:
    with pytest.raises(UsageError, match="--rootless"):
        privilege.rootless("perhaps")


@pytest.mark.parametrize("name", SETTINGS)
def test_what_forbids_user_namespaces(name: str, tmp_path: Path) -> None:
    for other, bad in SETTINGS.items():
        path = tmp_path / "sys" / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(("5" if other != name else bad) + "\n")
    found = validate_rootless.obstacle(str(tmp_path))
    assert found is not None
    assert f"{name.replace('/', '.')}={SETTINGS[name]}" in found[0]
    assert "sysctl" in found[1]


def test_nothing_forbids_them(tmp_path: Path) -> None:
    assert validate_rootless.obstacle(str(tmp_path)) is None


def test_failures_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_rootless, "obstacle", lambda: ("because", "do"))
    plain = OSError(28, "No space left on device")
    plain.call = "clone3(…)"  # type: ignore[attr-defined]
    found = validate_rootless.explained(plain)
    assert isinstance(found, MinirunError)
    assert (found.message, found.cause, found.fix) == (
        "clone3(…): no space left on device", "because", "do",
    )  # fmt: skip
    step = StepFailed("a.b", PermissionError(1, "x"))
    assert validate_rootless.explained(step) is step
    assert step.cause == "because"
    other = StepFailed("a.b", FileNotFoundError(2, "x"))
    assert validate_rootless.explained(other) is other
    assert other.cause == ""


def spec(**values: Any) -> Spec:
    linux = {"namespaces": [{"type": "mount"}, {"type": "user"}], **values.pop("linux", {})}
    return Spec.decode({"ociVersion": "1.0.0", "linux": linux, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"linux": {"namespaces": [{"type": "mount"}]}}, "rootless containers require user"),
        ({"mounts": [{"destination": "/a", "source": "/a", "options": ["bind", "idmap"]}]},
         "an id-mapped mount needs root"),
        ({"linux": {"netDevices": {"eth0": {}}}}, "linux.netDevices: needs root"),
        ({"linux": {"gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]},
          "process": {"args": ["x"], "user": {"uid": 0, "gid": 0, "additionalGids": [5]}}},
         "cannot set any additional groups in a rootless container"),
    ],
)  # fmt: skip
def test_what_needs_root(
    values: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    with pytest.raises(ConfigError, match=words):
        validate_rootless.validate(spec(**values))
    validate_rootless.validate(spec())


def test_where_a_process_may_be_moved(tmp_path: Path) -> None:
    for name in ("user/app/run", "user/app/web", "user/session"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "user/app/cgroup.procs").touch()
    (tmp_path / "user/cgroup.procs").mkdir()  # root passes every access(2) but that of no file
    tree = Hierarchy(str(tmp_path), "unified", own="/user/app/run")
    assert delegation.may_enter(tree, "/user/app/web")
    assert not delegation.may_enter(Hierarchy(str(tmp_path), "unified", own="/else"), "/user/app")
    assert not delegation.may_enter(Hierarchy(str(tmp_path), "unified"), "/user/app")


def test_a_helper_is_run_and_heard() -> None:
    assert run([b"/bin/sh", b"-c", b"echo out; echo err >&2; exit 3"]) == (3, "out\nerr")
    assert run([b"/nowhere"]) == (127, "no such file or directory")
    assert run([b"/bin/sh", b"-c", b"kill -9 $$"])[0] == 137
    assert run([b"/bin/sh", b"-c", b"echo $PATH; env | wc -l"])[1].startswith("/usr/sbin")
