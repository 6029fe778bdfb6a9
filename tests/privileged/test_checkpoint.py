"""checkpoint and restore, by a CRIU that works on this kernel; and what is said where none does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import LIMIT, good, read, read_until, started, until
from test_terminal import created, listening, receive

from minirun.criu.images import Images
from minirun.errors import MinirunError

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs", "cgroup2")
needs_criu = pytest.mark.requires("criu")

COUNT = "i=0; while :; do i=$((i + 1)); echo $i > /vol/count; sleep 0.05; done"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


class Counter:
    """A container that counts in a file of a directory of the host."""

    def __init__(self, box: Box, images: Path) -> None:
        self.box = box
        self.images = images
        self.volume = box.place / f"{box.id}-volume"
        self.volume.mkdir()
        box.mount("/vol", str(self.volume), "bind")
        box.process["args"] = ["/bin/sh", "-c", COUNT]

    @property
    def count(self) -> int:
        text = read(self.volume / "count") if (self.volume / "count").exists() else ""
        return int(text or "0")

    def up(self) -> None:
        # Not the test's files in memory, which are no container's to have.
        self.box.create(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.box.start()
        until(lambda: self.count > 3)

    def checkpoint(self, *flags: str) -> None:
        good(self.box.call("checkpoint", "--image-path", str(self.images), *flags, self.box.id))

    def restore(self, *flags: str) -> None:
        words = ["--bundle", str(self.box.bundle), "--image-path", str(self.images), "--detach"]
        good(self.box.call("restore", *words, *flags, self.box.id))

    def goes_on(self, former: int) -> None:
        until(lambda: self.count > former + 2)


@pytest.fixture
def counter(box: Box, images: Path) -> Counter:
    return Counter(box, images)


@needs_criu
def test_a_container_goes_on_where_it_was(counter: Counter, tmp_path: Path) -> None:
    box = counter.box
    counter.up()
    counter.checkpoint()
    assert box.left() == []
    assert not Path(f"/sys/fs/cgroup/minirun/{box.id}").exists()
    former = counter.count
    counter.restore("--pid-file", str(tmp_path / "pid"))
    assert box.state()["status"] == "running"
    assert int(read(tmp_path / "pid")) == box.pid
    assert f"/{box.id}\n" in read(f"/proc/{box.pid}/cgroup")
    counter.goes_on(former)
    # Others can enter, signal and end it as before.
    assert box.exec("/bin/hostname").out == "box\n"
    good(box.call("pause", box.id))
    good(box.call("resume", box.id))
    good(box.delete("--force"))
    assert "criu" not in read("/proc/self/mountinfo")


@needs_criu
def test_twice(counter: Counter) -> None:
    counter.up()
    for _ in range(2):
        counter.checkpoint()
        former = counter.count
        counter.restore()
        counter.goes_on(former)


@needs_criu
@pytest.mark.parametrize(
    "what", ["cgroup", "cgroup namespace", "user namespace", "seccomp", "file", "link"]
)
def test_what_a_container_may_have(counter: Counter, what: str) -> None:
    box = counter.box
    if what.startswith("cgroup"):
        box.mount("/sys/fs/cgroup", "cgroup", "ro", kind="cgroup")
    if what == "cgroup namespace":
        box.namespace("cgroup")
    elif what == "user namespace":
        box.user_namespace()
        os.chown(counter.volume, 100000, 100000)
    elif what == "seccomp":
        rule = {"names": ["chroot"], "action": "SCMP_ACT_ERRNO"}
        box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    elif what == "file":
        box.mount("/etc/hosts", "/etc/hosts", "bind", "ro")
    elif what == "link":
        (box.rootfs / "real").mkdir()
        (box.rootfs / "conf").symlink_to("/real/conf")
        (box.rootfs / "real" / "conf").mkdir()
        box.mount("/conf", ".", "bind")
    counter.up()
    counter.checkpoint()
    former = counter.count
    counter.restore()
    counter.goes_on(former)
    if what == "seccomp":
        assert "\nSeccomp:\t2\n" in read(f"/proc/{box.pid}/status")


@needs_criu
def test_the_streams_are_those_of_restore(box: Box, images: Path) -> None:
    box.process["args"] = ["/bin/sh", "-c", "echo begin; read word; echo $word; exit 7"]
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(words, text=True, **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begin\n"
        good(box.call("checkpoint", "--image-path", str(images), box.id))
        first.wait(LIMIT)
    options = ["--bundle", str(box.bundle), "--image-path", str(images)]
    words = box.words("restore", *options, box.id)
    with started(words, text=True, **pipes) as second:
        out, err = second.communicate("again\n", LIMIT)
    assert (second.returncode, out, err) == (7, "again\n", "")
    assert box.left() == []


@needs_criu
def test_a_terminal_is_sent_again(box: Box, images: Path) -> None:
    script = "echo begin; read word; echo got $word; sleep 600"
    with created(box, "/bin/sh", "-c", script, stdout=subprocess.DEVNULL) as master:
        read_until(master, b"begin\r\n")
        good(box.call("checkpoint", "--image-path", str(images), box.id))
    path = box.place / "again"
    with listening(path) as server:
        words = ["--bundle", str(box.bundle), "--image-path", str(images), "--detach"]
        good(box.call("restore", *words, "--console-socket", str(path), box.id))
        master, _ = receive(server)
    os.write(master, b"hello\n")
    assert b"got hello" in read_until(master, b"got hello\r\n")
    os.close(master)


@needs_criu
def test_left_running(counter: Counter) -> None:
    counter.up()
    pid = counter.box.pid
    counter.checkpoint("--leave-running")
    assert counter.box.pid == pid
    counter.goes_on(counter.count)


@needs_criu
def test_work_files_apart_from_images(counter: Counter, tmp_path: Path) -> None:
    counter.up()
    counter.checkpoint("--work-path", str(tmp_path / "work"))
    assert (tmp_path / "work" / "dump.log").exists()
    assert not (counter.images / "dump.log").exists()
    assert json.loads(read(counter.images / "descriptors.json"))[0] == "/dev/null"
    assert counter.images.stat().st_mode & 0o777 == 0o700
    counter.restore("--work-path", str(tmp_path / "work"))
    assert (tmp_path / "work" / "restore.log").exists()


@needs_criu
def test_hooks_make_the_network_again(counter: Counter, tmp_path: Path) -> None:
    box = counter.box
    box.hook("createRuntime", f"cat >> {tmp_path}/states; echo >> {tmp_path}/states")
    counter.up()
    counter.checkpoint()
    counter.restore()
    states = [json.loads(line) for line in read(tmp_path / "states").splitlines() if line]
    assert [one["id"] for one in states] == [box.id, box.id]
    assert states[1]["pid"] == box.pid


@needs_criu
def test_a_network_namespace_that_was_joined(counter: Counter) -> None:
    with started(["unshare", "-n", "sleep", "600"]) as holder:
        theirs = f"/proc/{holder.pid}/ns/net"
        until(lambda: os.stat(theirs).st_ino != os.stat("/proc/self/ns/net").st_ino)
        counter.box.namespace("network", theirs)
        counter.up()
        counter.checkpoint()
        counter.restore()
        assert os.stat(f"/proc/{counter.box.pid}/ns/net").st_ino == os.stat(theirs).st_ino
        holder.kill()


@needs_criu
def test_images_that_are_none_leave_nothing(counter: Counter) -> None:
    counter.up()
    counter.checkpoint()
    for path in counter.images.glob("core-*.img"):
        path.write_bytes(b"nonsense")
    words = ["--bundle", str(counter.box.bundle), "--image-path", str(counter.images), "--detach"]
    done = counter.box.call("restore", *words, counter.box.id)
    assert done.code == 1
    assert "criu failed: type " in done.err
    assert f"log file: {counter.images}/restore.log" in done.err
    assert counter.box.left() == []
    assert not Path(f"/sys/fs/cgroup/minirun/{counter.box.id}").exists()


@needs_criu
def test_a_dump_that_fails_harms_nothing(counter: Counter, tmp_path: Path) -> None:
    box = counter.box
    (tmp_path / "outside").write_text("")
    with open(tmp_path / "outside") as outside:  # a file of no mount in the container
        box.create(stdin=outside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    box.start()
    until(lambda: counter.count > 3)
    done = box.call("checkpoint", "--image-path", str(counter.images), box.id)
    assert done.code == 1
    assert done.err == (
        f"minirun: criu failed: type DUMP errno 0, log file: {counter.images}/dump.log\n"
    )
    assert box.state()["status"] == "running"
    counter.goes_on(counter.count)


@pytest.mark.parametrize("which", ["image_path", "work_path"])
@pytest.mark.parametrize(
    ("owner", "group", "mode"), [(65534, 65534, 0o700), (0, 0, 0o1777), (0, 65534, 0o770)], ids=str
)
def test_a_directory_of_others_is_refused(  # noqa: PLR0917 - pytest calls it by name
    tmp_path: Path, images: Path, which: str, owner: int, group: int, mode: int
) -> None:
    """Of whoever was first to make /tmp/checkpoint: CRIU would write where his links lead."""
    place = tmp_path / "checkpoint"
    place.mkdir()
    place.chmod(mode)
    os.chown(place, owner, group)
    before = set(os.listdir("/proc/self/fd"))
    paths: Any = {"image_path": str(images), which: str(place)}
    with pytest.raises(MinirunError, match="checkpoint is not root's alone"), Images(**paths):
        pass
    assert set(os.listdir("/proc/self/fd")) == before
    os.chown(place, 0, 0)
    place.chmod(0o770)
    with Images(**paths):
        pass


@pytest.mark.parametrize("options", [["src-nofollow"], ["dest-nofollow"]], ids=str)
def test_a_mounted_link_cannot_be_checkpointed(box: Box, images: Path, options: list[str]) -> None:
    for link in (box.bundle / "link", box.rootfs / "vol/link"):
        link.symlink_to("/etc/passwd")
    box.mount("/vol/link", "link", "bind", *options)
    box.up()
    done = box.call("checkpoint", "--image-path", str(images), box.id)
    assert done.code == 1
    assert "a mounted symbolic link cannot be checkpointed" in done.err
    assert box.state()["status"] == "running"


@needs_criu
def test_states_that_cannot_be_checkpointed(box: Box, images: Path) -> None:
    box.process["args"] = ["/bin/true"]
    box.create()
    done = box.call("checkpoint", "--image-path", str(images), box.id)
    assert "Container cannot be checkpointed in created state" in done.err
    box.start()
    until(lambda: box.state()["status"] == "stopped")
    done = box.call("checkpoint", "--image-path", str(images), box.id)
    assert (done.code, "checkpointed in stopped state" in done.err) == (1, True)
    assert not images.exists()


@needs_criu
def test_an_id_that_is_taken(counter: Counter) -> None:
    counter.up()
    counter.checkpoint("--leave-running")
    words = ["--bundle", str(counter.box.bundle), "--image-path", str(counter.images), "--detach"]
    done = counter.box.call("restore", *words, counter.box.id)
    assert (done.code, "already exists" in done.err) == (1, True)
    assert counter.box.state()["status"] == "running"


@needs_criu
def test_engines_learn_that_there_are_checkpoints(box: Box) -> None:
    assert box.call("checkpoint", "--help").code == 0


def test_nothing_is_harmed_where_criu_is_missing_or_cannot(box: Box, images: Path) -> None:
    probe = box.call("checkpoint", "--help")
    if probe.code == 0:
        pytest.skip("criu works here")
    assert "checkpoint and restore are not supported: criu " in probe.err
    pid = box.up()
    done = box.call("checkpoint", "--image-path", str(images), box.id)
    assert (done.code, done.err) == (1, probe.err)
    assert (box.pid, images.exists()) == (pid, False)
