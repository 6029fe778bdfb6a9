"""The conversation with CRIU, with a stand-in that answers as a test says; and its encoding."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun import cli, container
from minirun.cli import checkpoint
from minirun.criu import messages, protobuf, service
from minirun.criu.images import Images, config_file
from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.launcher import SAFE_PATH
from minirun.spec import Spec

REPO = Path(__file__).parents[2]

STAND_IN = """#!{python} -ISB
import array, os, socket, sys
sys.path.append({repo!r})
from minirun.criu import messages, protobuf
sock = socket.socket(fileno=int(sys.argv[2]))
request = protobuf.decode(sock.recv(1 << 16), messages.REQUEST)

def say(fd=None, **answer):
    data = protobuf.encode(answer, messages.RESPONSE)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd else []
    sock.sendmsg([data], rights)

def point(script, pid=0, fd=None):
    say(fd, type=6, success=True, notify={{"script": script, "pid": pid}})
    word = protobuf.decode(sock.recv(1 << 16), messages.REQUEST)
    assert word == {{"type": 6, "notify_success": True}}, word

{script}
"""

VERSION = """
if request["type"] == 10:
    say(type=10, success=True, version={"major": 3, "minor": 17, "sublevel": 1})
    sys.exit()
"""


class StandIn:
    def __init__(self, path: Path) -> None:
        self.path = path

    def does(self, script: str) -> None:
        text = STAND_IN.format(python=sys.executable, repo=str(REPO), script=script)
        self.path.write_text(text)
        self.path.chmod(0o755)


@pytest.fixture
def criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(tmp_path / "criu")
    monkeypatch.setattr(service, "find", lambda: str(made.path))
    return made


# ---------------------------------------------------------------- the conversation


def test_the_version(criu: StandIn) -> None:
    criu.does(VERSION)
    assert service.version() == 31701
    assert service.shown(31701) == "3.17.1"
    assert service.require(31700) == 31701
    with pytest.raises(Unsupported, match="CRIU version 31701 must be 40000 or higher"):
        service.require(40000)


def test_the_features_of_the_kernel(criu: StandIn) -> None:
    criu.does("say(type=9, success=True, features={'mem_track': False, 'lazy_pages': True})")
    assert service.features() == {"mem_track": False, "lazy_pages": True}


def test_a_kernel_that_it_does_not_know(criu: StandIn) -> None:
    criu.does(VERSION + "say(type=9, success=False)")
    with pytest.raises(Unsupported, match="criu does not work on this kernel") as caught:
        service.probe()
    assert "3.17.1" in caught.value.cause


def test_a_user_without_privileges(criu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    criu.does(VERSION + "say(type=9, success=False)")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="criu needs root"):
        service.features()


@pytest.mark.parametrize("streams", [False, True])
def test_its_talk_is_not_ours(
    streams: bool, criu: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    criu.does("print('talk', file=sys.stderr, flush=True); say(type=2, success=True)")
    service.ask({"type": messages.RESTORE}, start=service.Start(streams=streams))
    assert capfd.readouterr().err == ("talk\n" if streams else "")


def test_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SAFE_PATH", "/nonexistent")
    with pytest.raises(Unsupported, match="criu is not installed") as caught:
        service.probe()
    assert caught.value.fix == "apt install criu"


def test_points_are_told_in_order(criu: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("sent")
    criu.does(
        f"point('pre-dump'); point('post-restore', 42)\n"
        f"point('orphan-pts-master', 0, os.open({str(tmp_path / 'file')!r}, os.O_RDONLY))\n"
        "say(type=2, success=True, restore={'pid': 42})"
    )
    told = []

    def notify(script: str, pid: int, fd: int) -> None:
        told.append((script, pid, os.read(fd, 9) if fd >= 0 else b""))

    answer = service.ask({"type": messages.RESTORE}, notify)
    assert answer["restore"] == {"pid": 42}
    assert told == [
        ("pre-dump", 0, b""),
        ("post-restore", 42, b""),
        ("orphan-pts-master", 0, b"sent"),
    ]


def test_its_words_are_no_part_of_the_message(criu: StandIn) -> None:
    criu.does("say(type=1, success=False, cr_errno=3, cr_errmsg='operation not permitted\\n')")
    with pytest.raises(service.Failed) as caught:
        service.ask({"type": messages.DUMP})
    assert caught.value.message == "criu failed: type DUMP errno 3"
    assert caught.value.cause == "operation not permitted"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit(3)", "criu failed: it ended without an answer"),
        ("sock.send(b'\\xff' * 20)", "its answer cannot be understood"),
        ("say(type=1, success=True); sys.exit(3)", "criu failed: exit status 3"),
        ("say(type=1, success=True); sock.close(); os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_failures(criu: StandIn, script: str, words: str) -> None:
    criu.does(script)
    before = children()
    with pytest.raises(service.Failed, match=words):
        service.ask({"type": messages.DUMP})
    assert children() == before  # nobody is left to be waited for


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_pre_dump_ends_as_it_likes(criu: StandIn) -> None:
    criu.does("say(type=4, success=True); sys.exit(1)")
    assert service.ask({"type": messages.PRE_DUMP})["success"]


def test_what_fails_in_the_callback_is_raised(criu: StandIn) -> None:
    criu.does("point('setup-namespaces'); say(type=2, success=True)")

    def notify(_script: str, _pid: int, _fd: int) -> None:
        raise MinirunError("hook failed")

    with pytest.raises(MinirunError, match="hook failed"):
        service.ask({"type": messages.RESTORE}, notify)


def test_what_its_process_starts_with(criu: StandIn, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    criu.does(
        "said = [os.readlink(f'/proc/self/fd/{fd}') for fd in (4, 5)] + [os.environ['PATH']]\n"
        "open(said[0] + '/said', 'w').write(repr([said, sorted(os.environ)]))\n"
        "say(type=2, success=True)"
    )
    handed = os.open("/", os.O_PATH)
    os.environ["SECRET"] = "of the caller"
    prepared: list[str] = []
    try:
        start = service.Start(
            [str(tmp_path / "images")], [handed], prepare=lambda: prepared.append("here")
        )
        assert start.first_descriptor == 5
        service.ask({"type": messages.RESTORE}, start=start)
    finally:
        os.close(handed)
        del os.environ["SECRET"]
    said = (tmp_path / "images" / "said").read_text()
    assert f"['{tmp_path}/images', '/', '{SAFE_PATH}']" in said
    assert "SECRET" not in said
    assert prepared == []  # it was called in the other process


def test_what_fails_before_it_is_criu(criu: StandIn, tmp_path: Path) -> None:
    criu.does("say(type=2, success=True)")

    def prepare() -> None:
        raise MinirunError("no mount point")

    with pytest.raises(service.Failed, match="criu failed: no mount point"):
        service.ask({"type": messages.RESTORE}, start=service.Start(prepare=prepare))
    with pytest.raises(service.Failed, match="none': no such file or directory"):
        service.ask({"type": messages.RESTORE}, start=service.Start([str(tmp_path / "none")]))


# ---------------------------------------------------------------- options


def configured(path: str) -> Spec:
    return Spec.decode({"ociVersion": "1.0.0", "annotations": {"org.criu.config": path}})


def test_its_own_configuration() -> None:
    """A relative path means another file in each directory that minirun is called from."""
    assert config_file(Spec.decode({"ociVersion": "1.0.0"})) == "/etc/criu/minirun.conf"
    assert config_file(configured("")) is None
    for path in ("my.conf", "./my.conf", "../my.conf"):
        with pytest.raises(ConfigError, match="must be an absolute path"):
            config_file(configured(path))
    for path in ("/nowhere/my.conf", "/dev/null", "/etc"):
        with pytest.raises(ConfigError, match="is not a file"):
            config_file(configured(path))


def test_options_of_both(tmp_path: Path) -> None:
    conf = tmp_path / "my.conf"
    conf.touch()
    spec = configured(str(conf))
    images = Images(str(tmp_path / "i"), str(tmp_path / "w"), cgroups_mode="full", shell_job=True)
    with images:
        options = images.options(spec, "/root", "x.log")
    assert (options["images_dir_fd"], options["work_dir_fd"]) == (4, 5)
    assert options["config_file"] == str(conf)
    assert (options["manage_cgroups_mode"], options["shell_job"]) == (4, True)
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o700
    assert protobuf.decode(protobuf.encode(options, messages.OPTIONS), messages.OPTIONS) == options


def test_the_log_tells_the_cause(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_text(
        "(00.1) Error (a.c:1): first\n(00.2) fine\n"
        "(00.3)      1: Error (b.c:2): second\n(00.4) Error (c.c:3): third\n"
        "(00.5) Error (d.c:4): last\n"
    )
    error = Images(str(tmp_path)).explain(MinirunError("criu failed: type DUMP"), "dump.log")
    assert error.message == f"criu failed: type DUMP, log file: {tmp_path}/dump.log"
    assert "last" in error.cause
    assert "first" not in error.cause


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_a_log_that_is_none(tmp_path: Path, kind: str) -> None:
    """Of a directory that another has filled: nothing is waited for, nothing of the host told."""
    log = tmp_path / "dump.log"
    (tmp_path / "secret").write_text("(00.1) Error (x): secret\n")
    if kind == "fifo":
        os.mkfifo(log)
    elif kind == "link":
        log.symlink_to("secret")
    else:
        log.mkdir()
    error = Images(str(tmp_path)).explain(MinirunError("criu failed"), "dump.log")
    assert "secret" not in error.cause


def test_images_are_shared_with_a_group_to_read(tmp_path: Path) -> None:
    (tmp_path / "core-1.img").write_text("x")
    (tmp_path / "parent").symlink_to("/etc")
    with Images(str(tmp_path)) as images:
        images.share(os.getegid())
    assert (tmp_path / "core-1.img").stat().st_mode & 0o777 == 0o640
    assert tmp_path.stat().st_mode & 0o777 == 0o710


# ---------------------------------------------------------------- the command line


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    found: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(container, "checkpoint", lambda *given: found.append(given))

    def restore(*given: Any) -> int:
        found.append(given)
        return 7

    monkeypatch.setattr(container, "restore", restore)
    return found


def test_checkpoint_hands_its_flags_on(asked: list[Any], tmp_path: Path) -> None:
    flags = """--image-path i --work-path w --parent-path ../p --leave-running --tcp-established
        --tcp-skip-in-flight --link-remap --ext-unix-sk --shell-job --lazy-pages --status-fd 9
        --page-server 10.0.0.1:99 --file-locks --pre-dump --manage-cgroups-mode strict
        --empty-ns network --auto-dedup"""
    assert cli.main(["--root", "/r", "checkpoint", *flags.split(), "web"]) == 0
    ((root, cid, images),) = asked
    assert (root, cid) == ("/r", "web")
    assert (images.image_path, images.work_path) == (str(tmp_path / "i"), str(tmp_path / "w"))
    assert (images.parent_path, images.page_server) == ("../p", ("10.0.0.1", 99))
    assert (images.status_fd, images.cgroups_mode) == (9, "strict")
    assert set(images.flags) == {*checkpoint._SHARED, *checkpoint._OF_DUMP}
    assert all(images.flags.values())


def test_restore_hands_its_flags_on(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    flags = """--image-path i --detach --bundle b --pid-file p --lsm-profile apparmor:x
        --lsm-mount-context c --tcp-established --no-subreaper --file-locks --no-pivot
        --console-socket s --pidfd-socket f"""
    assert cli.main(["restore", *flags.split(), "web"]) == 7
    ((_root, _cid, launch, images),) = asked
    assert (launch.bundle, launch.pid_file, launch.detach) == ("b", "p", True)
    assert (launch.console_socket, launch.pidfd_socket) == ("s", "f")
    assert (images.lsm_profile, images.lsm_mount_context) == ("apparmor:x", "c")
    assert images.flag("tcp_established")
    assert not images.flag("shell_job")


def test_the_place_of_images_unless_said(asked: list[Any], tmp_path: Path) -> None:
    assert cli.main(["checkpoint", "web"]) == 0
    assert asked[0][2].image_path == str(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--parent-path /abs", "--parent-path must be relative"),
        ("--manage-cgroups-mode x", "Invalid manage-cgroups-mode value"),
        ("--page-server 99", "Use --page-server ADDRESS:PORT"),
        ("--page-server a:b", "Invalid port number"),
        ("--page-server a:70000", "Invalid port number"),
        ("--page-server ::1:9", "Use --page-server ADDRESS:PORT"),
        ("--status-fd x", "invalid --status-fd argument x"),
        ("--empty-ns pid", 'namespace "pid" is not supported'),
    ],
)
def test_flags_that_are_refused(
    flags: str, words: str, asked: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["checkpoint", *flags.split(), "web"]) == 1
    assert words in capfd.readouterr().err
    assert asked == []


def test_restore_needs_images(asked: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "--image-path", "none", "web"]) == 1
    assert "--image-path none is not a directory" in capfd.readouterr().err
    assert asked == []


# ---------------------------------------------------------------- the encoding


def test_known_encodings() -> None:
    shape = {"a": (1, "int"), "b": (2, "string"), "c": (3, {"a": (1, "int")}), "r": (4, "int")}
    assert protobuf.encode({"a": 150}, shape) == b"\x08\x96\x01"
    assert protobuf.encode({"b": "testing"}, shape) == b"\x12\x07testing"
    assert protobuf.encode({"c": {"a": 150}}, shape) == b"\x1a\x03\x08\x96\x01"
    assert protobuf.encode({"r": [3, 270], "a": None}, shape) == b"\x20\x03\x20\x8e\x02"
    assert protobuf.encode({"a": -1}, shape) == b"\x08" + b"\xff" * 9 + b"\x01"
    assert protobuf.decode(b"\x08" + b"\xff" * 9 + b"\x01", shape) == {"a": -1}
    # Fields that are not known, of each wire type.
    unknown = b"\x78\x01" + b"\x79" + bytes(8) + b"\x7a\x02xx" + b"\x7d" + bytes(4)
    assert protobuf.decode(unknown + b"\x08\x05", shape) == {"a": 5}


def test_answers_of_the_real_one() -> None:
    """The stand-in has its tables from us; these bytes are CRIU's."""
    version = b"\x08\x0a\x10\x01\x52\x06\x08\x03\x10\x11\x20\x01"  # 3.17.1
    assert protobuf.decode(version, messages.RESPONSE) == {
        "type": messages.VERSION,
        "success": True,
        "version": {"major": 3, "minor": 17, "sublevel": 1},
    }
    features = b"\x08\x09\x10\x01\x42\x06\x08\x00\x10\x01\x18\x00"  # 4.1.1
    assert protobuf.decode(features, messages.RESPONSE) == {
        "type": messages.FEATURE_CHECK,
        "success": True,
        "features": {"mem_track": False, "lazy_pages": True},
    }


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    try:
        protobuf.decode(data, messages.RESPONSE)
    except ValueError:
        pass
