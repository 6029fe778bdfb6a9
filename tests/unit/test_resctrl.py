"""linux.intelRdt over a tree that stands in for resctrl: which groups, which writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from minirun import resctrl
from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.setup import Launch, Setup
from minirun.spec import IntelRdt, Spec

if TYPE_CHECKING:
    from pathlib import Path

ROOT_SCHEMATA = "L3:0=fffff;1=fffff\nMB:0=100;1=100\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Groups have their files as soon as they are made, and go with them, as in resctrl."""
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: Any, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name in ("tasks", "schemata"):
            with open(os.path.join(path, name), "w") as file:
                file.write(ROOT_SCHEMATA if name == "schemata" else "")
        if "mon_groups" not in str(path):
            mkdir(os.path.join(path, "mon_groups"))

    def remove(path: Any) -> None:
        for name in ("tasks", "schemata"):
            os.unlink(os.path.join(path, name))
        if "mon_groups" not in str(path):
            rmdir(os.path.join(path, "mon_groups"))
        rmdir(path)

    place = tmp_path / "resctrl"
    make(place)
    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)
    monkeypatch.setattr(resctrl, "mount_point", lambda: str(place))
    return place


def setup_of(**rdt: Any) -> Setup:
    spec = Spec.decode({"ociVersion": "1.3.0", "process": {}, "linux": {"intelRdt": rdt}})
    assert spec.process is not None
    setup = Setup("box", spec, spec.process, "/", Launch())
    setup.pid = 4711
    return setup


def start(**rdt: Any) -> Setup:
    setup = setup_of(**rdt)
    assert setup.spec.linux.intel_rdt is not None
    resctrl.validate(setup.spec.linux.intel_rdt)
    resctrl.check(setup)
    resctrl.assign(setup)
    return setup


def stop(setup: Setup) -> None:
    assert setup.spec.linux.intel_rdt is not None
    resctrl.remove(setup.spec.linux.intel_rdt, "box")


def groups(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()} - {"mon_groups"}


def test_a_class_of_its_own(root: Path) -> None:
    setup = start(
        l3CacheSchema="L3:0=ff;1=f\nMB:0=10", memBwSchema="MB:0=50;1=50", schemata=["L2:0=3"]
    )
    assert groups(root) == {"box"}
    # The bandwidth that stands among the lines of the cache is left out.
    text = (root / "box/schemata").read_text()
    assert text.startswith("L3:0=ff;1=f\nMB:0=50;1=50\nL2:0=3\n")
    assert (root / "box/tasks").read_text() == "4711"
    stop(setup)
    assert groups(root) == set()


def test_without_schemas(root: Path) -> None:
    start()
    assert (root / "box/schemata").read_text() == ROOT_SCHEMATA
    assert (root / "box/tasks").read_text() == "4711"


def test_a_class_that_is_there(root: Path) -> None:
    os.mkdir(root / "gold")
    setup = start(closID="gold")
    assert (root / "gold/tasks").read_text() == "4711"
    assert groups(root) == {"gold"}
    stop(setup)
    assert groups(root) == {"gold"}  # somebody's who made it


def test_a_class_that_must_be_there(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"linux.intelRdt.closID: there is no group gold"):
        start(closID="gold")
    assert groups(root) == set()


def test_a_named_class_is_made_by_its_schema(root: Path) -> None:
    setup = start(closID="gold", l3CacheSchema="L3:0=f")
    assert (root / "gold/schemata").read_text().startswith("L3:0=f\n")
    stop(setup)
    assert groups(root) == {"gold"}


@pytest.mark.parametrize("schema", ["L3:0=fffff;1=fffff", "L3:1=0FFFFF", "L3: 0 = fffff"])
def test_a_schema_that_agrees(root: Path, schema: str) -> None:
    os.mkdir(root / "gold")
    start(closID="gold", l3CacheSchema=schema)
    assert (root / "gold/schemata").read_text() == ROOT_SCHEMATA  # compared, not written


@pytest.mark.parametrize("more", [{"l3CacheSchema": "L3:0=1"}, {"memBwSchema": "MB:1=20"},
                                  {"schemata": ["L2:0=f"]}])  # fmt: skip
def test_a_schema_that_does_not_agree(root: Path, more: dict[str, Any]) -> None:
    os.mkdir(root / "gold")
    with pytest.raises(ConfigError, match="exists with another schema"):
        start(closID="gold", **more)
    assert (root / "gold/tasks").read_text() == ""


def test_the_default_class(root: Path) -> None:
    setup = start(closID="/")
    assert (root / "tasks").read_text() == "4711"
    stop(setup)
    assert root.exists()


def test_monitoring(root: Path) -> None:
    setup = start(enableMonitoring=True)
    assert (root / "box/mon_groups/box/tasks").read_text() == "4711"
    stop(setup)
    assert groups(root) == set()


def test_monitoring_in_a_class_of_others(root: Path) -> None:
    os.mkdir(root / "gold")
    setup = start(closID="gold", enableMonitoring=True)
    assert (root / "gold/tasks").read_text() == "4711"
    assert (root / "gold/mon_groups/box/tasks").read_text() == "4711"
    stop(setup)
    assert not list((root / "gold/mon_groups").iterdir())
    assert groups(root) == {"gold"}


def test_what_a_failed_create_leaves(root: Path) -> None:
    setup = start(enableMonitoring=True)
    while setup.undo:
        setup.undo.pop()()
    assert groups(root) == set()


def test_what_the_kernel_says(root: Path) -> None:
    (root / "info").mkdir()  # the real mkdir: it is no group
    for name in ("tasks", "schemata"):
        (root / "info" / name).unlink(missing_ok=True)
    (root / "info/last_cmd_status").write_text("mask f has non-consecutive 1-bits\n")
    os.mkdir(root / "box")
    (root / "box/schemata").unlink()
    (root / "box/schemata").symlink_to("/dev/full")
    with pytest.raises(MinirunError, match=r"write\(.*box/schemata") as caught:
        start(l3CacheSchema="L3:0=5")
    assert caught.value.cause == "mask f has non-consecutive 1-bits"


def test_a_host_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resctrl, "mount_point", lambda: None)
    with pytest.raises(Unsupported, match="Intel RDT is not supported or enabled"):
        resctrl.check(setup_of(closID="x"))
    resctrl.remove(IntelRdt(), "x")


def test_a_container_that_is_named_like_a_file(root: Path) -> None:
    setup = setup_of()
    setup.cid = "mon_groups"
    with pytest.raises(ConfigError, match="cannot be the name of a group"):
        resctrl.check(setup)
    assert root.exists()


# ---------------------------------------------------------------- update


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is written, by the file's last two names."""
    found: list[tuple[str, str]] = []

    def write(_root: str, path: str, value: str) -> None:
        found.append(("/".join(path.split("/")[-2:]), value))

    monkeypatch.setattr(resctrl, "_write", write)
    return found


def test_a_change_of_what_the_container_has(root: Path, written: list[tuple[str, str]]) -> None:
    changes = IntelRdt(l3_cache_schema="L3:0=f", mem_bw_schema="MB:0=20")
    resctrl.change(str(root), "box", IntelRdt(clos_id="gold"), changes, os.getpid())
    assert written == [("gold/schemata", "L3:0=f\n"), ("gold/schemata", "MB:0=20\n")]
    assert not (root / "gold").exists()  # it is there already, in earnest


def test_a_change_makes_a_group_where_there_is_none(
    root: Path, written: list[tuple[str, str]]
) -> None:
    resctrl.change(str(root), "box", None, IntelRdt(mem_bw_schema="MB:0=20"), os.getpid())
    assert written[0] == ("box/schemata", "MB:0=20\n")
    assert ("box/tasks", str(os.getpid())) in written
    assert (root / "box").is_dir()


def test_a_change_that_the_kernel_refuses_leaves_no_group(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_root: str, _path: str, _value: str) -> None:
        raise MinirunError("invalid argument")

    monkeypatch.setattr(resctrl, "_write", refuse)
    with pytest.raises(MinirunError):
        resctrl.change(str(root), "box", None, IntelRdt(mem_bw_schema="MB:0=20"), os.getpid())
    assert not (root / "box").exists()
