"""Where a container's cgroup lies, and groups over a directory that only looks like cgroupfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.cgroups import hierarchy as tree_module
from minirun.cgroups import limits, stats
from minirun.cgroups.group import Group, open_subgroup
from minirun.cgroups.hierarchy import Hierarchy, default_parent, hierarchy, location, own_path
from minirun.errors import ConfigError, MinirunError, StateError, Unsupported
from minirun.spec import Resources


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, "/minirun/web"),
        ("", "/minirun/web"),
        ("/libpod_parent/libpod-1", "/libpod_parent/libpod-1"),
        ("jobs/a", "/minirun/jobs/a"),
        ("a//b/./c", "/minirun/a/b/c"),
        ("../x", "/minirun/x"),
        ("/../../x", "/x"),
        ("/a/../../../b", "/b"),
        ("system.slice:minirun:web", "/minirun/system.slice:minirun:web"),
    ],
)
def test_location(path: str | None, expected: str) -> None:
    assert location(path, "web") == expected


def test_location_below_another_parent() -> None:
    assert location("../../a", "web", "/user.slice/x") == "/user.slice/x/a"
    assert location(None, "web", "/") == "/web"


@pytest.mark.parametrize(
    "path",
    ["/", "..", ".", "/a/..", "a\0b", "a\nb", "a\x7fb", "x" * 256, "/" + "ab/" * 2000,
     "/a/cgroup.procs", "\ud800"],
)  # fmt: skip
def test_locations_that_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.cgroupsPath"):
        location(path, "web")


@given(st.text(max_size=40))
def test_no_path_leads_out(path: str) -> None:
    try:
        found = location(path, "web")
    except ConfigError:
        return
    parts = found.split("/")[1:]
    assert found.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    assert path.startswith("/") or parts[0] == "minirun"


MEMBERSHIP = "4:memory:/process_api\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/a/b/c\n"


@pytest.mark.parametrize(
    ("text", "root", "expected"),
    [
        (MEMBERSHIP, "/", "/a/b/c"),
        (MEMBERSHIP, "/a", "/b/c"),
        (MEMBERSHIP, "/a/b/c", "/"),
        (MEMBERSHIP, "/a/b/cc", None),
        ("0::/../../x\n", "/", None),
        ("0::/x (deleted)\n", "/", "/x"),
        ("1:cpu:/\n", "/", None),
    ],
)
def test_own_cgroup(text: str, root: str, expected: str | None) -> None:
    assert own_path(text, root) == expected


def test_where_containers_go_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Hierarchy("/x", "unified", own="/user.slice/app.slice/a.scope")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_parent(tree) == "/minirun"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_parent(tree) == "/user.slice/app.slice"
    assert default_parent(Hierarchy("/x", "unified")) == "/minirun"


def test_a_directory_that_is_no_cgroup_tree(tmp_path: Path) -> None:
    tree = hierarchy(str(tmp_path))
    assert (tree.kind, tree.usable, tree.controllers) == ("none", False, ())
    with pytest.raises(Unsupported, match="resource limits need cgroup v2: memory") as caught:
        tree.require(("memory",))
    assert "no cgroup file system" in caught.value.cause
    with pytest.raises(Unsupported, match="not cgroup v2"):
        tree.open()
    assert hierarchy(str(tmp_path / "nowhere")).kind == "none"


def test_the_reason_names_who_holds_the_controllers() -> None:
    hybrid = Hierarchy("/x", "hybrid", legacy=("cpu", "memory"))
    assert "version 1 holds the controllers (cpu, memory)" in hybrid.reason
    some = Hierarchy("/x", "unified", ("cpu",), ("memory",))
    assert some.reason == ""
    some.require(("cpu",))
    with pytest.raises(Unsupported, match="controller memory") as caught:
        some.require(("memory",))
    assert "v1 hierarchy holds memory" in caught.value.cause
    assert "systemd.unified_cgroup_hierarchy=1" in caught.value.fix
    with pytest.raises(Unsupported, match="controller pids") as caught:
        some.require(("pids",))
    assert "cgroup_disable=pids" in caught.value.cause


def test_the_mounted_part_is_the_last_mount_there() -> None:
    text = (
        "30 1 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "31 1 0:29 /docker/abc /sys/fs/cgroup ro,nosuid shared:9 master:1 - cgroup2 cgroup rw\n"
        "32 1 0:29 / /elsewhere rw - cgroup2 cgroup rw\n"
    )
    assert tree_module._mounted_root(text, "/sys/fs/cgroup") == "/docker/abc"
    assert tree_module._mounted_root("", "/sys/fs/cgroup") == "/"


@pytest.mark.parametrize("char", "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_only_a_newline_ends_a_line_of_mountinfo(char: str) -> None:
    """What the kernel does not escape, others choose: names of directories, and of cgroups."""
    text = (
        f"30 1 8:1 /a{char}b /mnt rw - ext4 /dev/sda1 rw\n"
        "31 1 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
        f"32 1 8:1 /a{char}b /mnt rw - ext4 /dev/sda1 rw\n"
    )
    assert tree_module._mounted_root(text, "/sys/fs/cgroup") == "/"
    assert own_path(f"0::/a{char}0::/b\n") == f"/a{char}0::/b"
    assert tree_module._legacy(f"3:cpu:/a{char}b\n0::/c\n") == ["cpu"]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Group]:
    """A group whose files are ordinary ones: what is written can be read."""
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    group = Group(Hierarchy("/x", "unified", ("memory",)), "/x/web", os.open(tmp_path, os.O_RDONLY))
    yield group
    group.close()
    group.close()


def resources(**values: Any) -> Resources:
    return Resources.decode(values)


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_apply_writes_each_file_once(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, memory_max="", pids_max="", cpu_max="")
    asked = resources(memory={"limit": 4096}, pids={"limit": 7}, cpu={"quota": 1000})
    limits.apply(fake, asked)
    found = {name: (tmp_path / name).read_text() for name in ("memory.max", "pids.max", "cpu.max")}
    assert found == {"memory.max": "4096", "pids.max": "7", "cpu.max": "1000 100000"}


def test_a_missing_weight_file_falls_back(fake: Group, tmp_path: Path) -> None:
    (tmp_path / "io.weight").write_text("")
    limits.apply(fake, resources(blockIO={"weight": 1000}))
    assert (tmp_path / "io.weight").read_text() == "10000"


def test_a_missing_optional_file_is_passed_over(fake: Group, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("")
    limits.apply(fake, resources(memory={"limit": 4096, "swap": 4096}))
    assert sorted(os.listdir(tmp_path)) == ["cgroup.controllers", "memory.max"]


def test_a_missing_file_is_named_without_the_words_that_engines_match(fake: Group) -> None:
    with pytest.raises(Unsupported, match=r"cannot set pids.max to '7' in cgroup /x/web") as caught:
        limits.apply(fake, resources(pids={"limit": 7}))
    assert "no such file" not in str(caught.value)


def test_no_file_is_ever_made(fake: Group, tmp_path: Path) -> None:
    with pytest.raises(MinirunError):
        fake.write("memory.high", "1")
    assert os.listdir(tmp_path) == ["cgroup.controllers"]


@pytest.mark.parametrize("file", ["../escape", "/etc/hostname", "link"])
def test_files_are_only_those_of_the_group(fake: Group, tmp_path: Path, file: str) -> None:
    outside = tmp_path.parent / "escape"
    outside.write_text("before")
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(MinirunError):
        fake.write(file, "after")
    assert outside.read_text() == "before"


def test_a_limit_without_its_controller_is_refused(fake: Group, tmp_path: Path) -> None:
    (tmp_path / "hugetlb.2MB.max").write_text("")
    limits.perform(fake, [])
    unlimited = resources(unified={"hugetlb.2MB.max": "max"})
    limits.apply(fake, unlimited)
    assert (tmp_path / "hugetlb.2MB.max").read_text() == ""


def test_update_takes_back_what_it_wrote_when_a_later_write_fails(
    fake: Group, tmp_path: Path
) -> None:
    fill(tmp_path, pids_max="9", memory_max="8192")
    changes = resources(pids={"limit": 7}, memory={"limit": 4096}, cpu={"quota": 1000})
    with pytest.raises(Unsupported, match=r"cpu\.max"):
        limits.update(fake, changes)
    assert (tmp_path / "pids.max").read_text() == "9"
    assert (tmp_path / "memory.max").read_text() == "8192"


def test_update_gives_the_merged_resources(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, pids_max="9")
    stored = resources(memory={"limit": 8192}, pids={"limit": 9})
    merged = limits.update(fake, resources(pids={"limit": 7}), stored)
    assert merged.encode() == {"memory": {"limit": 8192}, "pids": {"limit": 7}}


def test_update_checks_the_usage_before_it_writes(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, memory_max="8192", memory_current="6000\n")
    with pytest.raises(ConfigError, match="rejecting limit 4096"):
        limits.update(fake, resources(memory={"limit": 4096, "checkBeforeUpdate": True}))
    assert (tmp_path / "memory.max").read_text() == "8192"


@pytest.mark.parametrize("name", ["/", "/a", "..", "a/../..", "a/../b", "a\nb", "a\0b", "none"])
def test_sub_cgroups_that_are_refused(fake: Group, tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StateError):
        open_subgroup(fake, name)


def test_a_sub_cgroup_is_no_link(fake: Group, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(StateError):
        open_subgroup(fake, "link")
    with open_subgroup(fake, "./a/") as inner, open_subgroup(fake, "") as same:
        assert (inner.path, same.path) == ("/x/web/a", "/x/web")
        assert (inner.ident, same.ident) == (
            (tmp_path / "a").stat().st_ino,
            tmp_path.stat().st_ino,
        )


CPU_STAT = (
    "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 10\nnr_throttled 2\nthrottled_usec 5\n"
)
PRESSURE = (
    "some avg10=1.50 avg60=0.00 avg300=0.00 total=123\n"
    "full avg10=0.10 avg60=0.00 avg300=0.00 total=45\n"
)
MEMORY_STAT = "anon 100\nfile 200\nkernel 30\nsock 4\ninactive_file 150\n"


@pytest.fixture
def figures(fake: Group, tmp_path: Path) -> Group:
    fill(
        tmp_path, cpu_stat=CPU_STAT, cpu_pressure=PRESSURE, cpu_max="5000 10000\n",
        cpuset_cpus_effective="0-2,7\n", memory_stat=MEMORY_STAT, memory_current="330\n",
        memory_max="4096\n", memory_peak="400\n", memory_swap_current="11\n",
        memory_swap_max="100\n", memory_events="low 0\nmax 6\noom 2\noom_kill 1\n",
        pids_current="3\n", pids_max="max\n",
        io_stat="8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n",
        hugetlb_2MB_current="4096\n", hugetlb_2MB_events="max 9\n", cgroup_procs="5\n0\n6\n",
    )  # fmt: skip
    return fake


def test_usage_has_the_shape_of_events(figures: Group) -> None:
    found = stats.usage(figures)
    assert found["cpu"]["usage"] == {"total": 7000, "kernel": 3000, "user": 4000}
    assert found["cpu"]["throttling"] == {
        "periods": 10, "throttledPeriods": 2, "throttledTime": 5000
    }  # fmt: skip
    assert found["cpu"]["psi"]["some"] == {"avg10": 1.5, "avg60": 0, "avg300": 0, "total": 123}
    assert "psi" not in found["memory"]
    assert found["cpuset"]["cpus"] == [0, 1, 2, 7]
    memory = found["memory"]
    assert memory["usage"] == {"limit": 4096, "usage": 330, "max": 400, "failcnt": 6}
    assert memory["swap"] == {"limit": 4196, "usage": 341, "max": 0, "failcnt": 0}
    assert (memory["cache"], memory["raw"]["anon"]) == (200, 100)
    assert found["pids"] == {"current": 3, "limit": 0}
    assert found["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 1},
        {"major": 8, "minor": 0, "op": "Write", "value": 2},
    ]
    assert found["hugetlb"] == {"2MB": {"usage": 4096, "failcnt": 9}}
    assert found["network_interfaces"] == []


def test_unlimited_memory_is_the_largest_number(figures: Group, tmp_path: Path) -> None:
    fill(tmp_path, memory_max="max\n", memory_swap_max="max\n")
    memory = stats.usage(figures)["memory"]
    assert memory["usage"]["limit"] == memory["swap"]["limit"] == (1 << 64) - 1
    fill(tmp_path, memory_swap_max="5\n")
    assert stats.usage(figures)["memory"]["swap"]["limit"] == (1 << 64) - 1


def test_summary_is_for_people(figures: Group) -> None:
    found = stats.summary(figures)
    assert found["memory"] == {
        "current": 330, "peak": 400, "limit": 4096, "swap": 11,
        "anon": 100, "file": 200, "kernel": 30, "working_set": 180,
    }  # fmt: skip
    assert found["pids"] == {"current": 3, "peak": None, "limit": None}
    assert found["io"] == {"read": 1, "written": 2, "reads": 3, "writes": 4}
    assert (found["cpu"]["quota"], found["cpu"]["period"]) == (5000, 10000)
    assert found["pressure"]["io"] is None


def test_each_killed_process_is_told_once(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, cgroup_events="populated 1\nfrozen 0\n", memory_events="oom_kill 1\n")
    watch = stats.Watch(fake)
    assert watch.wait(0) == []
    fill(tmp_path, memory_events="oom_kill 3\n")
    assert watch.wait(0) == ["oom", "oom"]
    assert watch.wait(0) == []
    fill(tmp_path, cgroup_events="populated 0\nfrozen 0\n")
    assert watch.wait(0) == ["empty"]
    watch.close()


def test_figures_of_a_bare_group(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, cgroup_procs="5\n0\n6\n")
    assert stats.usage(fake)["pids"] == {"current": 2, "limit": 0}
    assert stats.usage(fake)["memory"]["usage"]["limit"] == 0
    found = stats.summary(fake)
    assert found["memory"]["current"] is None
    assert found["io"]["read"] is None
    assert found["cpu"]["usage"] is None


def test_processes_that_another_pid_namespace_holds_are_left_out(
    fake: Group, tmp_path: Path
) -> None:
    fill(tmp_path, cgroup_procs="5\n0\n6\n")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/cgroup.procs").write_text("")
    (tmp_path / "a/b/cgroup.procs").write_text("7\n")
    assert sorted(fake.procs()) == [5, 6, 7]
    assert fake.procs(recursive=False) == [5, 6]


def test_flags_of_cgroup_events(fake: Group, tmp_path: Path) -> None:
    fill(tmp_path, cgroup_events="populated 1\nfrozen 0\n", cgroup_freeze="1\n")
    assert fake.populated()
    assert fake.frozen()
    fill(tmp_path, cgroup_events="populated 0\nfrozen 1\n", cgroup_freeze="0\n")
    assert not fake.populated()
    assert not fake.frozen()


def test_minirun_does_not_kill_itself(tmp_path: Path) -> None:
    (tmp_path / "cgroup.kill").write_text("")
    (tmp_path / "cgroup.events").write_text("populated 0\n")
    for own in ("/a/b", "/a/b/c"):
        tree = Hierarchy("/x", "unified", own=own)
        with Group(tree, "/a/b", os.open(tmp_path, os.O_RDONLY)) as group:
            with pytest.raises(StateError, match="minirun itself runs in cgroup /a/b"):
                group.kill()
    assert (tmp_path / "cgroup.kill").read_text() == ""
    neighbour = Hierarchy("/x", "unified", own="/a/bb")
    with Group(neighbour, "/a/b", os.open(tmp_path, os.O_RDONLY)) as group:
        group.kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1"
