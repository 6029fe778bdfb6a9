"""The table of what is tested: no row without a test, none that is no longer there."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib import conformance


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tests/coverage.toml that a test may spoil."""
    path = tmp_path / "coverage.toml"
    path.write_text(conformance.MAPPING.read_text())
    monkeypatch.setattr(conformance, "MAPPING", path)
    return path


def test_every_row_has_its_tests() -> None:
    rows = conformance.covering()
    assert len(rows) > 290
    assert all(rows.values())


def test_the_rows_are_the_codes_own() -> None:
    properties, flags = conformance.properties(), conformance.flags()
    assert {
        "process.rlimits[].soft", "linux.timeOffsets.*.secs", "hooks.poststop[].timeout",
        "linux.resources.blockIO.throttleReadIOPSDevice[].rate", "mounts[].uidMappings[].hostID",
    } <= set(properties)  # fmt: skip
    assert {"--root", "run", "run --pid-file", "exec --process", "restore --bundle"} <= set(flags)
    assert "run --memory" not in flags  # an option of --rootfs is not runc's
    assert len({*properties, *flags}) == len(properties) + len(flags)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"root.path" =', '"root.pith" =', "root.pith: no such property or flag"),
        ('"root.path" =', '"root.pith" =', "root.path: no test"),
        ("test_mounts::test_what_is_no_root", "test_mounts::test_gone", "no such test"),
        (
            '"root.path" = [',
            '"root.path" = ["test_labels::test_what_is_written", ',
            "its file never says 'path'",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(mapping: Path, before: str, after: str, told: str) -> None:
    text = mapping.read_text()
    assert before in text
    mapping.write_text(text.replace(before, after))
    with pytest.raises(conformance.CoverageError, match=told):
        conformance.covering()


def test_a_row_that_somebody_adds_needs_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    more = [*conformance.properties(), "linux.somethingNew"]
    monkeypatch.setattr(conformance, "properties", lambda: more)
    with pytest.raises(conformance.CoverageError, match=r"linux\.somethingNew: no test"):
        conformance.covering()


def test_the_page_lists_rows_and_reasons() -> None:
    text = conformance.page().replace("\\-", "-")
    for row in ("process.user.uid", "run --detach", "linux.seccomp.listenerPath"):
        assert f"\\fB{row}\\fR" in text
    assert "a limit twice is an error" in text
