"""State: names, owners, corruption, recycled pids, many at once, a runtime killed. T-ST*, T-LC*."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from runtime import (
    Done,
    alive,
    call,
    command,
    good,
    host_same,
    read,
    started,
    traced,
    until,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

BAD_IDS = [
    "..", ".", "a/b", "../x", "-x", "a b", "abc\n", "\u00e9", "\u0663", "x" * 300, "%2e%2e", "",
    ".x", "a\tb", "a;b", "$(x)", "a\\b", "a:b",
]  # fmt: skip


# ---------------------------------------------------------------- names: T-ST1


@pytest.mark.parametrize("name", BAD_IDS)
def test_what_is_no_id(box: Box, name: str) -> None:
    """A regular expression's $ takes "abc\\n", and \\w takes digits of other scripts: P-41."""
    box.write()
    before = sorted(path.name for path in box.place.iterdir())
    for words in (
        ("create", "--bundle", str(box.bundle), "--", name),
        ("state", "--", name),
        ("delete", "--force", "--", name),
        ("kill", "--", name),
    ):
        assert box.call(*words).code != 0, words
    assert box.left() == []
    assert sorted(path.name for path in box.place.iterdir()) in (before, sorted([*before, "state"]))


@pytest.mark.parametrize("name", ["a", "A-b_c+d.e", "0", "x" * 200])
def test_what_is_an_id(box: Box, name: str) -> None:
    box.id = name
    box.process["args"] = ["/bin/true"]
    good(box.run())


# ---------------------------------------------------------------- owners: T-ST2, T-ST3


@pytest.mark.parametrize("umask", ["000", "077"])
def test_modes_whatever_the_callers_umask(box: Box, umask: str) -> None:
    plain = box.command
    box.command = ["sh", "-c", f'umask {umask}; exec "$0" "$@"', *plain]
    box.create()
    assert stat.S_IMODE(box.root.stat().st_mode) in (0o700, 0o711)
    place = box.root / box.id
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for path in place.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700), path
        assert path.stat().st_uid == 0


@pytest.mark.parametrize("how", ["owner", "mode", "link", "file"])
def test_a_root_that_is_not_ours(box: Box, how: str) -> None:
    """A forged state.json would name hooks that run as root."""
    box.root.mkdir()
    forge(box)
    if how == "owner":
        os.chown(box.root, 1000, 1000)
    elif how == "mode":
        box.root.chmod(0o777)
    elif how == "link":
        box.root.rename(box.place / "real")
        os.chown(box.place / "real", 1000, 1000)
        box.root.symlink_to("real")
    else:
        shutil.rmtree(box.root)
        box.root.write_text("")
    for words in (("delete", box.id), ("delete", "--force", box.id), ("kill", box.id, "KILL")):
        assert box.call(*words).code != 0
    box.call("list")
    assert not (box.place / "pwned").exists()
    if how == "file":
        box.root.unlink()
    else:
        (box.place / "real" if how == "link" else box.root).chmod(0o755)
        shutil.rmtree(box.place / "real" if how == "link" else box.root)


@pytest.mark.parametrize("how", ["owner", "mode", "link", "link of links"])
def test_a_root_to_whose_place_others_can_lead(box: Box, how: str) -> None:
    """T-ST2: by a link to what is root's and yet not ours, such as a container's files."""
    box.root.mkdir()
    forge(box)
    theirs = box.place / "theirs"
    theirs.mkdir()
    real, box.root = box.root, theirs / "state"
    box.root.symlink_to(real)
    if how == "owner":
        os.chown(theirs, 1000, 1000)
    elif how == "mode":
        theirs.chmod(0o777)
    else:
        os.chown(theirs, 1000, 1000)
        (box.place / "link").symlink_to(theirs if how == "link" else theirs / "state")
        box.root = box.place / ("link/state" if how == "link" else "link")
        if how != "link":
            (theirs / "state").unlink()
            (theirs / "state").mkdir()
    for words in (("delete", box.id), ("delete", "--force", box.id), ("state", box.id), ("list",)):
        done = box.call(*words)
        assert done.code != 0
        assert "not root's alone" in done.err
    assert "not root's alone" in box.run().err
    theirs.chmod(0o775)  # of a user's own group, and the user has become root
    os.chown(theirs, 1000, 1000)
    for user, code in (("1000", 0), ("1001", 1), ("", 1)):
        sudo = {**os.environ, "SUDO_UID": user, "SUDO_GID": "1000"}
        assert (box.call("list", env=sudo).code == 0) is (code == 0)
    theirs.chmod(0o1777)  # as /tmp is: what is root's there, root alone renames
    os.chown(theirs, 0, 0)
    good(box.call("list"))
    assert not (box.place / "pwned").exists()
    box.root = real
    shutil.rmtree(real)


def forge(box: Box) -> None:
    place = box.root / box.id
    place.mkdir()
    box.hook("poststop", f"touch {box.place}/pwned")
    (place / "config.json").write_text(json.dumps(box.config))
    content = {"ociVersion": "1.0.2", "id": box.id, "pid": 0, "startTime": 0, "bundle": "/"}
    (place / "state.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["link", "file"])
def test_an_id_that_is_taken_by_something_else(box: Box, canary: Path, name: str) -> None:
    box.root.mkdir(mode=0o711)
    place = box.root / box.id
    place.symlink_to(canary) if name == "link" else place.write_text("")
    with host_same(canary):
        assert box.run().code == 1
        for verb in ("state", "delete", "start"):
            assert box.call(verb, box.id).code == 1
        box.delete("--force")
    if place.is_symlink() or place.exists():
        place.unlink()


def test_the_top_is_no_root(box: Box) -> None:
    assert call([*box.command, "--root", "/", "list"]).code != 0


# ---------------------------------------------------------------- corruption: T-ST6


def corrupt(text: str | None) -> Callable[[Path], object]:
    return lambda path: path.unlink() if text is None else path.write_text(text)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "gone": corrupt(None), "empty": corrupt(""), "truncated": corrupt('{"ociVersion": "1'),
    "list": corrupt("[]"), "types": corrupt('{"ociVersion": 1, "id": [], "pid": "x"}'),
    "deep": corrupt("[" * 100_000), "huge": corrupt(" " * (17 << 20)),
    "nan": corrupt('{"pid": NaN}'),
    "negative": corrupt('{"ociVersion": "1", "id": "x", "bundle": "/", "pid": -1}'),
    "fifo": as_fifo, "directory": as_directory,
    "binary": lambda path: path.write_bytes(b"\xff\0" * 50),
}  # fmt: skip


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_a_state_that_cannot_be_read(box: Box, how: str) -> None:
    pid = box.up()
    other = box.another()
    other.up()
    CORRUPTIONS[how](box.root / box.id / "state.json")
    for words in (("state", box.id), ("kill", box.id, "TERM"), ("exec", box.id, "true")):
        done = box.call(*words)
        assert (done.code != 0, done.out) == (True, ""), words
        assert box.id in done.err
    listed = good(box.call("list", "--quiet"))
    assert listed.out.split() == [other.id]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    good(box.delete("--force"))
    assert box.left() == []


@pytest.mark.parametrize("how", ["gone", "empty", "list", "fifo"])
def test_a_saved_configuration_that_cannot_be_read(box: Box, how: str) -> None:
    pid = box.up()
    CORRUPTIONS[how](box.root / box.id / "config.json")
    assert box.exec("/bin/true").code == 255
    good(box.delete("--force"))
    assert not alive(pid)
    assert box.left() == []


def test_a_rootfs_that_is_gone(box: Box) -> None:
    box.up()
    shutil.rmtree(box.rootfs, ignore_errors=True)
    good(box.delete("--force"))
    assert box.left() == []


# ---------------------------------------------------------------- the configuration: T-CF1, T-CF3

BAD_JSON: dict[str, bytes] = {
    "empty": b"", "truncated": b'{"ociVersion": "1.0.2"', "trailing": b"{} {}", "list": b"[]",
    "deep": b"[" * 100_000, "number": b'{"process": {"user": {"uid": ' + b"9" * 100_000 + b"}}}",
    "nan": b'{"ociVersion": NaN}', "infinity": b'{"ociVersion": 1e999}', "bom": b"\xef\xbb\xbf{}",
    "utf-8": b'{"ociVersion": "\xff"}', "surrogate": b'{"ociVersion": "\\ud800"}', "null": b"null",
    "twice": b'{"ociVersion": "1.0.2", "ociVersion": "1.0.2"}', "version": b'{"ociVersion": "9.0"}',
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_JSON)
def test_a_configuration_that_is_none(box: Box, what: str) -> None:
    (box.bundle / "config.json").write_bytes(BAD_JSON[what])
    done = box.call("run", "--bundle", str(box.bundle), box.id)
    assert (done.code, done.out) == (1, "")
    assert len(done.err) < 1000
    assert done.err.count("\n") == 1
    assert box.left() == []


@pytest.mark.parametrize("kind", ["fifo", "directory", "zero", "nothing", "loop"])
def test_a_configuration_that_is_no_file(box: Box, kind: str) -> None:
    path = box.bundle / "config.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to("/dev/zero" if kind == "zero" else "config.json")
    done = box.call("run", "--bundle", str(box.bundle), box.id)
    assert (done.code, done.out) == (1, "")
    assert kind in ("nothing", "loop") or "is not a regular file" in done.err
    assert box.left() == []


def strings_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of all strings of a configuration."""
    if isinstance(value, str):
        return [path]
    if not isinstance(value, (dict, list)):
        return []
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for key, item in items for found in strings_of(item, (*path, key))]


def test_no_string_holds_a_nul(box: Box) -> None:
    """The kernel would cut it there: P-21. Every string of the configuration, one at a time."""
    from minirun.errors import MinirunError
    from minirun.spec import Spec
    from minirun.validate import validate

    box.hook("prestart", "true", env=["A=1"])
    box.linux.update(
        cgroupsPath="/x", sysctl={"net.ipv4.ip_forward": "1"}, rootfsPropagation="private",
        devices=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}],
    )  # fmt: skip
    places = [place for place in strings_of(box.config) if place[0] != "annotations"]
    assert len(places) > 50
    for place in places:
        config = json.loads(json.dumps(box.config))
        parent = config
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] += "\0x"
        with pytest.raises(MinirunError):
            validate(Spec.decode(config))


# ---------------------------------------------------------------- recycled pids: T-LC1


def test_a_pid_that_is_anothers_now(box: Box) -> None:
    box.process["args"] = ["/bin/true"]
    good(box.run("--keep"))
    state = box.root / box.id / "state.json"
    time.sleep(0.02)  # start times are told in hundredths of a second
    with started(["sleep", "600"]) as stranger:
        try:
            content = json.loads(read(state))
            assert content["startTime"] > 0
            state.write_text(json.dumps({**content, "pid": stranger.pid}))
            assert box.state()["status"] == "stopped"
            assert "container not running" in box.call("kill", box.id, "KILL").err
            assert "cannot exec in a stopped container" in box.exec("/bin/true").err
            good(box.delete("--force"))
            assert alive(stranger.pid)
        finally:
            stranger.kill()


def test_a_name_that_looks_like_a_state(box: Box) -> None:
    """/proc/PID/stat holds the process's own name: what follows the last parenthesis counts."""
    script = "printf 'x) Z 1 1 (y' > /proc/self/comm; touch /there; read x"
    box.process["args"] = ["/bin/sh", "-c", script]
    (box.rootfs / "bin/printf").symlink_to("busybox")
    reader, writer = os.pipe()
    try:
        box.create(stdin=reader)
        box.start()
        until((box.rootfs / "there").exists)
        assert box.state()["status"] == "running"
        assert "x) Z" in read(f"/proc/{box.pid}/comm")
        assert psutil.Process(box.pid).status() == psutil.STATUS_SLEEPING
    finally:
        os.close(reader)
        os.close(writer)


# ---------------------------------------------------------------- many at once: T-LC2


def at_once(*calls: Callable[[], Done]) -> list[Done]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda one: one(), calls))


@pytest.mark.parametrize("verb", ["start", "delete", "exec"])
def test_a_change_waits_for_another(box: Box, verb: str) -> None:
    """While one holds the lock; looking does not wait."""
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    lock = os.open(box.root / box.id, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = {"start": (), "delete": ("--force",), "exec": ()}[verb]
        command = box.words(verb, *words, box.id, *(["/bin/true"] if verb == "exec" else []))
        with started(command, stdin=subprocess.DEVNULL) as waiting:
            until(lambda: waits_for(waiting.pid))
            if verb != "delete":  # which ends the processes after a moment
                assert box.state()["status"] == "created"
            assert waiting.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            wait_for(waiting.pid)
            assert waiting.wait(1) == 0
    finally:
        os.close(lock)


def waits_for(pid: int) -> bool:
    """Tell whether a process waits for a lock: a line of /proc/locks that begins with an arrow.

    Or tries again and again: by force it does not wait for ever.
    """
    if any(word in read(f"/proc/{pid}/wchan") for word in ("flock", "nanosleep")):
        return True
    waiting = [line.split() for line in read("/proc/locks").splitlines() if "->" in line]
    return any(str(pid) in fields for fields in waiting)


def test_one_of_many_creates_wins(box: Box) -> None:
    box.process["args"] = ["/bin/sleep", "600"]
    box.write()
    words = ("create", "--bundle", str(box.bundle), box.id)
    done = at_once(*[lambda: box.call(*words)] * 6)
    assert sorted(one.code for one in done) == [0, 1, 1, 1, 1, 1]
    assert all("already exists" in one.err for one in done if one.code)
    assert box.state()["status"] == "created"


def test_one_of_many_starts_wins(box: Box) -> None:
    box.process["args"] = ["/bin/sh", "-c", "echo x >> /starts; sleep 600"]
    box.create()
    done = at_once(*[lambda: box.call("start", box.id)] * 6)
    assert sorted(one.code for one in done) == [0, 1, 1, 1, 1, 1]
    until((box.rootfs / "starts").exists)
    assert read(box.rootfs / "starts") == "x\n"


def test_start_and_delete(box: Box) -> None:
    for _ in range(3):
        box.process["args"] = ["/bin/sleep", "600"]
        box.create()
        pid = box.pid
        at_once(lambda: box.call("start", box.id), lambda: box.delete("--force"))
        box.delete("--force")
        until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        assert box.left() == []


def test_exec_and_delete(box: Box) -> None:
    box.up()
    done = at_once(
        *[lambda: box.exec("/bin/sleep", "600")] * 3, lambda: box.delete("--force"),
        lambda: box.call("kill", box.id, "KILL"),
    )  # fmt: skip
    assert done[3].code == 0, done
    assert all(one.code for one in done[:3])
    assert box.left() == []


def test_many_deletes(box: Box) -> None:
    box.up()
    done = at_once(*[lambda: box.delete("--force")] * 5)
    assert [one.code for one in done] == [0] * 5, done
    assert box.left() == []


# ---------------------------------------------------------------- start by others: T-LC3


def test_a_fifo_that_was_replaced(box: Box) -> None:
    box.create()
    place = box.root / box.id
    fifos = [path for path in place.iterdir() if stat.S_ISFIFO(path.stat().st_mode)]
    for path in fifos:
        path.unlink()
        path.write_text("")
    done = box.call("start", box.id)
    assert done.code == 1
    good(box.delete("--force"))


def test_start_of_a_container_whose_process_was_killed(box: Box) -> None:
    box.create()
    pid = box.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    done = box.call("start", box.id)
    assert done.code == 1
    assert "cannot start a container that has stopped" in done.err


# ---------------------------------------------------------------- a runtime that is killed: T-ST7


@pytest.mark.slow
@pytest.mark.requires("strace")
@pytest.mark.parametrize("verb", ["create", "start", "delete"])
def test_a_runtime_that_is_killed_anywhere(box: Box, verb: str) -> None:
    """After SIGKILL at any moment `delete --force` takes away what there is."""
    box.process["args"] = ["/bin/sleep", "600"]
    plain = command()
    for name in ("clone3", "openat2", "move_mount", "unshare", "rename", "capset", "write")[
        : 7 if verb == "create" else 2
    ]:
        for number in (1, 3, 9):
            box.write()
            if verb != "create":
                box.create()
            rule = f"inject={name}:signal=KILL:when={number}"
            box.command = traced(plain, f"trace={name}", rule, apart=True)
            flags = ["--bundle", str(box.bundle)] if verb == "create" else []
            flags += ["--force"] if verb == "delete" else []
            box.call(verb, *flags, box.id)
            box.command = plain
            good(box.delete("--force"))
            assert box.left() == [], (name, number)
            assert groups_of(box) == [], (name, number)


def groups_of(box: Box) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{box.id}")]
