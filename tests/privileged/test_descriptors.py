"""Descriptors, the executable, and what a container's processes can get hold of. T-FD1 to T-FD6."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runtime import CHECKOUT, call, capabilities, good, host_same, read, traced, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime import Box, Report

pytestmark = pytest.mark.requires("root", "programs")


@contextlib.contextmanager
def callers_descriptors(place: Path) -> Iterator[list[int]]:
    """Open what a careless caller may hold: directories, files, sockets, pipes."""
    (place / "file").write_text("secret")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        made = [
            os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            os.open("/", os.O_PATH),
            os.open(place / "file", os.O_RDWR),
            os.open("/proc", os.O_RDONLY),
            os.memfd_create("callers"),
            *os.pipe(),
            os.dup(listening.fileno()),
        ]
        high = os.dup2(made[0], 41)
        try:
            yield [*made, high]
        finally:
            for fd in [*made, high]:
                os.close(fd)


def numbers(report: Report) -> set[int]:
    return set(report.fds)


# ---------------------------------------------------------------- what the payload has: T-FD1


def test_the_payload_has_its_streams_only(box: Box) -> None:
    with callers_descriptors(box.place) as fds:
        assert numbers(box.probe(pass_fds=fds)) == {0, 1, 2}


def test_a_process_of_exec_has_its_streams_only(box: Box) -> None:
    box.up()
    with callers_descriptors(box.place) as fds:
        assert numbers(box.exec_probe(pass_fds=fds)) == {0, 1, 2}


def test_a_created_container_has_its_streams_only(box: Box) -> None:
    with callers_descriptors(box.place) as fds, open(box.place / "out", "w") as out:
        box.create(pass_fds=fds, stdout=out)
        box.start(pass_fds=fds)
        text = until(lambda: read(box.place / "out").endswith("}\n") and read(box.place / "out"))
    assert '"3"' not in text[text.index('"fds"') :]


@contextlib.contextmanager
def low_descriptors(count: int) -> Iterator[Sequence[str]]:
    """Words that start a command with files at descriptors 3, 4 … and a directory after them."""
    opened = [*(f"exec {3 + n}</proc/version" for n in range(count)), f"exec {3 + count}</"]
    yield ["sh", "-c", "; ".join([*opened, 'exec "$0" "$@"'])]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_preserved_descriptors(box: Box, count: int) -> None:
    with low_descriptors(count) as words:
        box.command = [*words, *box.command]
        report = box.probe(flags=["--preserve-fds", str(count)])
        assert numbers(report) == {0, 1, 2, *range(3, 3 + count)}
        box.up()
        report = box.exec_probe(flags=["--preserve-fds", str(count)])
        assert numbers(report) == {0, 1, 2, *range(3, 3 + count)}


@pytest.mark.parametrize("count", ["9", "-1", "1_0", "99999999999", "x"])
def test_descriptors_to_preserve_must_be_there(box: Box, count: str) -> None:
    done = box.run(f"--preserve-fds={count}")
    assert done.code == 1
    assert box.left() == []


def test_descriptors_of_the_runtime_are_not_preserved(box: Box) -> None:
    """The log takes the lowest number that is free, and the container could write to it."""
    box.process["args"] = ["/probe"]
    box.write()
    log = str(box.place / "log")
    flags = ["--bundle", str(box.bundle), "--preserve-fds", "1"]
    done = call(box.words("--log", log, "run", *flags, box.id))
    assert done.code == 1
    assert "preserved-fd 0 (of 1), descriptor 3: bad file descriptor" in done.err
    assert box.left() == []
    box.up()
    done = call(box.words("--log", log, "exec", "--preserve-fds", "1", box.id, "/probe"))
    assert done.code == 255
    assert "preserved-fd" in done.err


def test_streams_that_are_closed(box: Box) -> None:
    """A caller without standard input: no file of the runtime may come to stand there."""
    box.command = ["sh", "-c", 'exec 0<&-; exec "$0" "$@"', *box.command]
    done = box.run()
    if done.code == 0:
        assert '"mode":' in done.out  # the probe has run, and saw:
        assert not re.search(r'"0":\{"link":"/(?!dev/null|null)', done.out)


# ---------------------------------------------------------------- what waits: T-FD2, T-FD5


def open_of(pid: int) -> dict[int, str]:
    place = Path(f"/proc/{pid}/fd")
    return {int(path.name): os.readlink(path) for path in place.iterdir()}


def test_what_waits_for_start_holds_nothing_of_the_host(box: Box) -> None:
    """CVE-2016-9962, CVE-2024-21626: a directory would be a way out."""
    with callers_descriptors(box.place) as fds:
        box.create(pass_fds=fds)
    pid = box.pid
    for fd, target in open_of(pid).items():
        kind = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
        if fd > 2:
            assert stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or target.startswith("/memfd:"), (
                target
            )
    assert "rootfs" not in str(open_of(pid))
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:")
    assert "SECRET" not in read(f"/proc/{pid}/environ")


@pytest.mark.requires("strace")
def test_a_created_container_is_no_interpreter_any_more(box: Box) -> None:
    """However late it becomes what waits: an exec after create could get hold of the host's."""
    box.write()
    words = box.words("create", "--bundle", str(box.bundle), box.id)
    slow = ("trace=execveat", "inject=execveat:delay_enter=500000")
    with open(os.devnull, "w") as null:
        good(call(traced(words, *slow, apart=True), stdout=null, stderr=null))
    assert os.readlink(f"/proc/{box.pid}/exe").startswith("/memfd:")


def test_what_waits_for_start_is_nobodys_prey(box: Box) -> None:
    """Not to be traced or dumped, whoever it will be: prctl(2), PR_SET_DUMPABLE."""
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.process["args"] = ["/bin/sleep", "600"]
    box.create()
    pid = box.pid
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0
    box.start()
    until(lambda: read(f"/proc/{pid}/comm") == "sleep\n")
    assert os.stat(f"/proc/{pid}/mem").st_uid == 1000


def test_what_makes_the_container_is_nobodys_prey(box: Box) -> None:
    """Before pivot_root: a hook's parent is the process that will be the payload."""
    box.user_namespace()  # else it belongs to root one way or the other
    script = (
        f"exec > {box.place}/told; "
        'while read k v; do [ "$k" = PPid: ] && p=$v; done < /proc/self/status; '
        "stat -c %u /proc/$p/mem /proc/self/mem; grep 'core file' /proc/$p/limits"
    )
    box.hook("createContainer", script)
    (box.place / "told").touch()
    (box.place / "told").chmod(0o666)
    box.probe()
    theirs, own, limit = read(box.place / "told").splitlines()
    assert (theirs, own) == ("65534", "0")  # the host's root is nobody there
    assert limit.split()[4] == "0"


def test_the_payload_may_be_dumped(box: Box) -> None:
    assert box.probe()["dumpable"] == 1
    box.up()
    assert box.exec_probe()["dumpable"] == 1


# ---------------------------------------------------------------- spying on exec: T-FD3, T-FD6

HARMLESS = re.compile(
    r"/(bin/busybox|probe|null|dev/null)?|/memfd:.*|pipe:\[\d+\]|socket:\[\d+\]|anon_inode:.*|\s*"
)


@pytest.mark.parametrize("ptrace", [False, True], ids=["plain", "ptrace"])
def test_a_process_that_joins_shows_nothing_of_the_host(box: Box, ptrace: bool) -> None:
    """A root of the container that looks at every new process, as often as it can."""
    names = ["CAP_KILL", *(["CAP_SYS_PTRACE"] if ptrace else [])]
    box.process["capabilities"] = capabilities(*names)
    box.process["args"] = ["/probe", "spy"]
    with open(box.place / "seen", "w") as out:
        box.create(stdout=out)
        box.start()
        for _ in range(8):
            good(box.exec("/bin/true", env={**os.environ, "SECRET": "of-the-host"}))
    (box.rootfs / "spy.stop").write_text("")
    until(lambda: read(box.place / "seen").endswith("}\n"))
    text = read(box.place / "seen")
    assert "of-the-host" not in text
    found = re.findall(r'"(\d+ (?:exe|cwd|root|fd \d+))":"([^"]*)"', text)
    assert {target for _, target in found if not HARMLESS.fullmatch(target)} == set()


# ---------------------------------------------------------------- the executable: T-FD4, P-20


def interpreter_of(program: str) -> str:
    """Return the dynamic loader that a program names: what the container must bring."""
    with open(program, "rb") as file:
        found = re.search(rb"/lib[\w/.-]*ld-linux[\w.-]*", file.read(1 << 16))
    assert found is not None
    return found.group().decode()


def of_the_host(box: Box) -> list[str]:
    """List the files of the host that a handle on /proc/self/exe may be one of."""
    program = os.path.realpath(sys.executable)
    maps = {line.split()[-1] for line in read("/proc/self/maps").splitlines() if ".so" in line}
    tool = box.command[0] if os.path.isabs(box.command[0]) else program
    return [program, os.path.realpath(tool), *maps, str(CHECKOUT / "minirun/launcher.py")]


def make_hostile_loader(box: Box) -> None:
    place = box.rootfs / interpreter_of(os.path.realpath(sys.executable)).lstrip("/")
    place.parent.mkdir(exist_ok=True)
    place.write_bytes((box.base / "loader").read_bytes())
    place.chmod(0o755)
    (box.rootfs / "script").write_text("#!/proc/self/exe\n")
    (box.rootfs / "script").chmod(0o755)


@pytest.mark.parametrize("program", ["/proc/self/exe", "/script"])
@pytest.mark.parametrize("hook", [False, True], ids=["", "startContainer"])
def test_the_hosts_program_cannot_be_overwritten(box: Box, program: str, hook: bool) -> None:
    """CVE-2019-5736. The witness is the content: opening a sealed copy for writing may succeed."""
    make_hostile_loader(box)
    if hook:
        box.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    box.process["args"] = [program]
    with host_same(*of_the_host(box)):
        done = box.run()
    assert '"written":15' not in done.out


@pytest.mark.parametrize("program", ["/proc/self/exe", "/script"])
def test_nor_by_exec(box: Box, program: str) -> None:
    make_hostile_loader(box)
    box.up()
    with host_same(*of_the_host(box)):
        done = box.exec(program)
    assert '"written":15' not in done.out


def test_the_hostile_loader_is_one(box: Box) -> None:
    """The control: a copy of the host's interpreter, executed as a naive runtime would be."""
    make_hostile_loader(box)
    copy = box.rootfs / "interpreter"
    copy.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    copy.chmod(0o755)
    script = 'mount -t proc proc "$0"/proc && exec chroot "$0" /interpreter'
    done = call(["unshare", "--mount", "sh", "-c", script, str(box.rootfs)])
    assert '"written":15' in done.out
    assert copy.read_bytes().startswith(b"#!/OVERWRITTEN")
