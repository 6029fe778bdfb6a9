"""Labels of security modules: what is written where, and what is refused where there is none."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from minirun import labels, payload
from minirun.errors import ConfigError
from minirun.kernel.trampoline import Data
from minirun.setup import Launch, Setup
from minirun.spec import Spec


def setup_of(**process: Any) -> Setup:
    spec = Spec.decode(
        {
            "ociVersion": "1.3.0",
            "process": {"args": ["x"], "cwd": "/", **process},
            "linux": {"mountLabel": "system_u:object_r:container_file_t:s0"},
        }
    )
    assert spec.process is not None
    return Setup("box", spec, spec.process, "/", Launch())


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "selinux_enabled", lambda: False)
    monkeypatch.setattr(labels, "apparmor_enabled", lambda: False)


def written(table: list[tuple[object, ...]]) -> list[tuple[bytes, bytes]]:
    """Take the pairs of openat2 and write of the table of calls apart."""
    paths = [call[2] for call in table if call[0] == "openat2"]
    values = [call[2] for call in table if call[0] == "write"]
    assert all(isinstance(one, Data) for one in (*paths, *values))
    return [(p.content, v.content) for p, v in zip(paths, values, strict=True)]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_modules")
def test_a_process_label_needs_selinux() -> None:
    with pytest.raises(ConfigError, match=r"process.selinuxLabel: selinux label is specified"):
        labels.check(setup_of(selinuxLabel="system_u:system_r:container_t:s0"))


@pytest.mark.usefixtures("no_modules")
def test_a_mount_label_without_selinux_is_told_of() -> None:
    """As in runc, whose engines send it everywhere."""
    setup = setup_of()
    labels.check(setup)
    assert not setup.selinux
    assert any("linux.mountLabel is ignored" in note for note in setup.notes)


@pytest.mark.parametrize("field", ["selinuxLabel", "apparmorProfile"])
def test_a_label_is_one_line(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "selinux_enabled", lambda: True)
    monkeypatch.setattr(labels, "apparmor_enabled", lambda: True)
    with pytest.raises(ConfigError, match="newline"):
        labels.check(setup_of(**{field: "a\nb"}))


def test_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_apparmor_file", lambda fd: f"thread-self/attr/apparmor/{fd}")
    setup = setup_of(selinuxLabel="u:r:t:s0", apparmorProfile="box")
    setup.labelfd = 9
    table = payload._label(setup, 4)
    assert written(table) == [
        (b"thread-self/attr/apparmor/9\0", b"exec box"),
        (b"thread-self/attr/exec\0", b"u:r:t:s0"),
    ]
    assert table[-1] == ("close", 9)
    # Each write goes to what the call before it has opened: rows 4 and 6.
    assert [call[1].row for call in table if call[0] == "write"] == [4, 6]  # type: ignore[attr-defined]
    how = struct.unpack("<QQQ", table[0][3].content)  # type: ignore[attr-defined]
    assert how[0] == os.O_WRONLY | os.O_CLOEXEC
    assert how[2] & 0x8  # RESOLVE_BENEATH
