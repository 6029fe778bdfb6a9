"""Groups on a real cgroup v2 tree; the witness is cgroupfs and /proc, read by path.

Where the host's tree at /sys/fs/cgroup is not version 2, one is mounted there in a mount namespace
of the test's own: it has no controllers, yet groups, freezing and killing work.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime import LIMIT

from minirun.cgroups import cgroupfs, group, limits, stats
from minirun.cgroups.cgroupfs import create, discard
from minirun.cgroups.group import Group, open_group, open_subgroup
from minirun.cgroups.hierarchy import MOUNT_POINT, Hierarchy, hierarchy, path_of
from minirun.errors import MinirunError, StateError, Unsupported
from minirun.kernel.mount import MS_PRIVATE, MS_REC, mount
from minirun.kernel.process import clone3
from minirun.kernel.unshare import CLONE_NEWNS, setns, unshare
from minirun.spec import Resources

pytestmark = pytest.mark.requires("root")

NOBODY = 2**22  # no process has this number or a higher one: proc_sys_kernel(5), pid_max
TOP = f"/minirun-test-{os.getpid()}"


@pytest.fixture(scope="module")
def tree() -> Iterator[Hierarchy]:
    found = hierarchy()
    if found.usable:
        yield found
        return
    home, here = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd()
    unshare(CLONE_NEWNS)
    try:
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("none", MOUNT_POINT, "cgroup2", 0)
        yield hierarchy()
    finally:
        setns(home, CLONE_NEWNS)
        os.close(home)
        os.chdir(here)


@pytest.fixture
def top(tree: Hierarchy) -> Iterator[str]:
    """The path of a cgroup for one test alone, killed and removed with all in it afterwards."""
    yield TOP
    left = open_group(tree, TOP)
    if left is not None:
        with left:
            left.write("cgroup.freeze", "0")
            left.kill()
            left.remove()
    assert not at(TOP).exists()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait(LIMIT)


def at(path: str) -> Path:
    return Path(MOUNT_POINT + path)


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def events(path: str) -> list[str]:
    return (at(path) / "cgroup.events").read_text().split("\n")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_create_makes_the_way_and_notes_it(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a/b") as made:
        assert at(f"{top}/a/b").is_dir()
        assert made.created == (top, f"{top}/a", f"{top}/a/b")
        assert made.ident == at(f"{top}/a/b").stat().st_ino
    with create(tree, f"{top}/a/c") as other:
        assert other.created == (f"{top}/a/c",)


def test_a_process_is_added(tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes]) -> None:
    with create(tree, f"{top}/a") as made:
        assert not made.populated()
        made.add(sleeper.pid)
        assert cgroup_of(sleeper.pid) == f"{top}/a" == path_of(tree, sleeper.pid)
        assert path_of(tree, NOBODY) is None
        assert made.procs() == [sleeper.pid]
        assert made.populated()


def test_a_process_that_is_not_there_is_not_added(tree: Hierarchy, top: str) -> None:
    with create(tree, top) as made, pytest.raises(MinirunError, match=r"cgroup\.procs.*process"):
        made.add(NOBODY)


def test_a_child_is_born_in_the_group(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        pid, pidfd = clone3(0, cgroup=made.dirfd)
        if pid == 0:
            signal.pause()
            os._exit(0)
        assert cgroup_of(pid) == f"{top}/a"
        made.kill()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(pidfd)


def test_a_group_with_strangers_is_refused(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Directly in it or further below: what runs there is not adopted, let alone killed."""
    with create(tree, f"{top}/a/deep") as deep:
        deep.add(sleeper.pid)
    for path in (f"{top}/a/deep", f"{top}/a"):
        before = descriptors()
        with pytest.raises(StateError, match=r"container's cgroup is not empty: 1 process\(es\)"):
            create(tree, path)
        assert descriptors() == before
    assert sleeper.poll() is None
    assert cgroup_of(sleeper.pid) == f"{top}/a/deep"


def test_an_empty_group_is_taken(tree: Hierarchy, top: str) -> None:
    create(tree, f"{top}/a").close()
    with create(tree, f"{top}/a") as again:
        assert again.created == ()


def test_a_frozen_group_is_refused(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        made.write("cgroup.freeze", "1")
    with pytest.raises(StateError, match="container's cgroup unexpectedly frozen"):
        create(tree, f"{top}/a")
    assert at(f"{top}/a").is_dir()


def test_a_group_below_a_frozen_one_is_refused_and_leaves_nothing(
    tree: Hierarchy, top: str
) -> None:
    with create(tree, f"{top}/a") as made:
        made.write("cgroup.freeze", "1")
    with pytest.raises(StateError, match="unexpectedly frozen"):
        create(tree, f"{top}/a/b/c")
    assert not at(f"{top}/a/b").exists()


def test_a_threaded_tree_is_refused(tree: Hierarchy, top: str) -> None:
    create(tree, f"{top}/a/b", (), ()).close()
    (at(f"{top}/a/b") / "cgroup.type").write_text("threaded")
    with pytest.raises(StateError, match="domain invalid"):
        create(tree, f"{top}/a/c")
    assert not at(f"{top}/a/c").exists()


def test_a_file_in_the_way_is_refused(tree: Hierarchy, top: str) -> None:
    create(tree, top).close()
    with pytest.raises(StateError, match="a file of that name exists"):
        create(tree, f"{top}/cpu.stat/x")


def test_a_controller_that_is_nowhere_leaves_nothing(tree: Hierarchy, top: str) -> None:
    before = descriptors()
    with pytest.raises(Unsupported, match="controller nosuch is not available"):
        create(tree, f"{top}/a", ("nosuch",))
    pretending = Hierarchy(tree.mount, tree.kind, (*tree.controllers, "nosuch"))
    with pytest.raises(Unsupported, match=f"nosuch is not available in cgroup {top}/a") as caught:
        create(pretending, f"{top}/a", ("nosuch",))
    assert caught.value.cause == "/ has no nosuch"
    assert not at(top).exists()
    assert descriptors() == before


# A signal with a handler waits for the thaw; one that would end the process does not.
HANDLER = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"


def test_a_limit_whose_controller_is_missing_names_the_level(tree: Hierarchy, top: str) -> None:
    asked = Resources.decode({"unified": {"nosuch.max": "1"}})
    with create(tree, f"{top}/a") as made:
        with pytest.raises(
            Unsupported, match=r"cannot set nosuch\.max: controller nosuch"
        ) as caught:
            limits.apply(made, asked)
    assert caught.value.cause == "linux.resources.unified.nosuch.max asks for it; / has no nosuch"


def test_freeze_and_thaw(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        process = subprocess.Popen(["sh", "-c", HANDLER], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
        made.add(process.pid)
        made.freeze()
        assert made.frozen()
        assert "frozen 1" in events(f"{top}/a")
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        made.thaw()
        assert "frozen 0" in events(f"{top}/a")
        assert process.wait(LIMIT) == 7


def test_what_does_not_freeze_is_thawed_again(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_flag", lambda text, key: False)
    with create(tree, f"{top}/a") as made:
        made.add(sleeper.pid)
        with pytest.raises(StateError, match=r"did not freeze within 0\.05 s"):
            made.freeze(timeout=0.05)
    assert (at(f"{top}/a") / "cgroup.freeze").read_text() == "0\n"


def test_thaw_below_a_frozen_group_says_so(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes]
) -> None:
    with create(tree, f"{top}/a") as made:
        made.add(sleeper.pid)
        above = open_group(tree, top)
        assert above is not None
        with above:
            above.freeze()
        with pytest.raises(StateError, match="still frozen"):
            made.thaw(timeout=0.1)


FORKS = "read go; while :; do sleep 1000 & sleep 1000 & wait; done"


@pytest.mark.parametrize("way", ["at once", "one by one"])
@pytest.mark.parametrize("frozen", [False, True])
def test_kill_ends_all_that_is_below(
    tree: Hierarchy, top: str, monkeypatch: pytest.MonkeyPatch, way: str, frozen: bool
) -> None:
    if way == "one by one":  # Linux before 5.14
        monkeypatch.setattr(Group, "_kill_at_once", lambda self: False)
    with create(tree, f"{top}/a", (), ()) as made, create(tree, f"{top}/a/b", (), ()) as below:
        first = subprocess.Popen(["sh", "-c", FORKS], stdin=subprocess.PIPE)
        made.add(first.pid)
        assert first.stdin is not None
        with first.stdin:
            first.stdin.write(b"\n")  # only now, so that all its children are in the group
        second = subprocess.Popen(["sleep", "1000"])
        below.add(second.pid)
        if frozen:
            made.freeze()
        made.kill()
        assert "populated 0" in events(f"{top}/a")
        assert first.wait(LIMIT) == second.wait(LIMIT) == -signal.SIGKILL


def test_what_survives_is_told(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "_kill_at_once", lambda self: True)
    with create(tree, f"{top}/a") as made:
        made.add(sleeper.pid)
        with pytest.raises(StateError, match=r"still has 1 process\(es\)") as caught:
            made.kill(timeout=0.05)
    assert str(sleeper.pid) in caught.value.cause


def test_a_signal_reaches_all_and_none_stays_frozen(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a", (), ()) as made, create(tree, f"{top}/a/b", (), ()) as below:
        processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
        for process, where in zip(processes, (made, made, below), strict=True):
            where.add(process.pid)
        made.signal(signal.SIGTERM)
        assert [process.wait(LIMIT) for process in processes] == [-signal.SIGTERM] * 3
        assert (at(f"{top}/a") / "cgroup.freeze").read_text() == "0\n"


def test_a_deep_tree_is_seen_killed_and_removed(tree: Hierarchy, top: str) -> None:
    """Deeper than PATH_MAX and than there may be descriptors, as a payload can make it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with create(tree, f"{top}/a") as made:
        fd = os.dup(made.dirfd)
        for _ in range(100):
            os.mkdir("x" * 200, dir_fd=fd)
            below = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        process = subprocess.Popen(["sleep", "1000"])
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
        os.write(procs, str(process.pid).encode())
        os.close(procs)
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 8, hard))
        try:
            assert made.procs() == [process.pid]
            with pytest.raises(StateError, match="not empty: 1 process"):
                create(tree, f"{top}/a")
            made.kill()
            assert process.wait(LIMIT) == -signal.SIGKILL
            made.remove()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not at(f"{top}/a").exists()


def test_a_wide_tree_is_removed(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        for number in range(100):
            (at(f"{top}/a") / str(number) / "x").mkdir(parents=True)
        made.remove()
    assert not at(f"{top}/a").exists()
    assert at(top).exists()


def test_remove_refuses_while_a_process_lives(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "REMOVE_TRIES", 2)
    with create(tree, f"{top}/a") as made:
        made.add(sleeper.pid)
        with pytest.raises(StateError, match="still holds processes"):
            made.remove()
    assert sleeper.poll() is None


def test_remove_of_what_is_gone_is_fine(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        at(f"{top}/a").rmdir()
        assert made.procs() == []
        assert not made.populated()
        made.kill()
        made.remove()
        at(top).rmdir()
        made.remove()


def test_remove_spares_a_later_namesake(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        ident = made.ident
        at(f"{top}/a").rmdir()
        at(f"{top}/a").mkdir()
        made.remove()
        assert at(f"{top}/a").is_dir()
        assert open_group(tree, f"{top}/a", ident) is None
    found = open_group(tree, f"{top}/a", at(f"{top}/a").stat().st_ino)
    assert found is not None
    found.close()
    assert open_group(tree, f"{top}/nowhere") is None


def test_discard_removes_what_create_made_and_no_more(tree: Hierarchy, top: str) -> None:
    at(top).mkdir()
    with create(tree, f"{top}/a/b/c") as made:
        at(f"{top}/a/other").mkdir()
        discard(made)
    assert sorted(path.name for path in at(f"{top}/a").iterdir() if path.is_dir()) == ["other"]


def test_delegation_gives_what_the_kernel_lists(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        made.delegate(4711)
    owners = {path.name: path.stat().st_uid for path in at(f"{top}/a").iterdir()}
    assert at(f"{top}/a").stat().st_uid == 4711
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        assert owners[name] == 4711
    for name in ("cgroup.freeze", "cgroup.kill", "cgroup.max.descendants"):
        assert owners[name] == 0


def test_sub_cgroups_stay_inside(tree: Hierarchy, top: str) -> None:
    create(tree, f"{top}/beside").close()
    with create(tree, f"{top}/a") as made:
        (at(f"{top}/a") / "in").mkdir()
        with open_subgroup(made, "in") as inner:
            assert inner.ident == (at(f"{top}/a") / "in").stat().st_ino
        for name in ("..", "../beside", "/", f"{top}/beside", "in/../..", "nowhere"):
            with pytest.raises(StateError):
                open_subgroup(made, name)


def test_the_end_of_the_last_process_is_told(
    tree: Hierarchy, top: str, sleeper: subprocess.Popen[bytes]
) -> None:
    with create(tree, f"{top}/a") as made:
        made.add(sleeper.pid)
        watch = stats.Watch(made)
        assert watch.wait(0) == []
        sleeper.kill()
        deadline = time.monotonic() + 30
        found: list[str] = []
        while not found and time.monotonic() < deadline:
            found = watch.wait(30)
        watch.close()
        assert found == ["empty"]


def cpu_time(path: str) -> int:
    line = (at(path) / "cpu.stat").read_text().splitlines()[0]
    return 1000 * int(line.removeprefix("usage_usec "))


BUSY = "read _; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"


def test_figures_are_those_of_the_group(tree: Hierarchy, top: str) -> None:
    with create(tree, f"{top}/a") as made:
        busy = subprocess.Popen(["sh", "-c", BUSY], stdin=subprocess.PIPE)
        made.add(busy.pid)
        assert stats.usage(made)["pids"]["current"] == 1
        busy.communicate(b"\n")
        before = cpu_time(f"{top}/a")
        used = stats.usage(made)["cpu"]["usage"]["total"]
        assert 0 < before <= used <= cpu_time(f"{top}/a")  # of its end a little is added late


def test_nothing_is_left_open(tree: Hierarchy, top: str) -> None:
    before = descriptors()
    with create(tree, f"{top}/a") as made:
        assert not os.get_inheritable(made.dirfd)
        made.freeze()
        made.thaw()
        made.kill()
        stats.summary(made)
        stats.Watch(made).close()
        cgroupfs.ensure(tree, f"{top}/a", ())
        discard(made)
    assert descriptors() == before
    assert not at(top).exists()
