"""How the program starts: what it keeps, what it refuses, what it becomes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minirun import launcher
from minirun.errors import MinirunError
from minirun.grammar import FLAG
from minirun.options import GLOBALS, VERBS

REPO = Path(__file__).parents[2]
F_GET_SEALS = 1034


def test_it_knows_the_global_options_that_take_a_value() -> None:
    named = {name for option in GLOBALS if option.kind != FLAG for name in option.names}
    assert named == launcher.GLOBALS_WITH_VALUE


def test_the_verbs_with_a_reduced_environment_exist() -> None:
    assert set(VERBS) >= launcher.ENTERING_VERBS


def test_reducing_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/h", "SECRET": "s", "A": "a", "PATH": "/evil"})
    launcher.reduce_environment(["run", "-e", "A", "web"])
    assert os.environ == {"HOME": "/h", "A": "a", "PATH": launcher.SAFE_PATH}


@pytest.mark.parametrize(
    ("argv", "verb"),
    [
        ("create x", "create"),
        ("--root run state x", "state"),
        ("--root=/r --log exec -log-format json run x", "run"),
        ("--debug --systemd-cgroup --rootless true exec x", "exec"),
        ("-- run x", "run"),
        ("--root", ""),
        ("--version", ""),
        ("", ""),
    ],
)
def test_finding_the_verb(argv: str, verb: str) -> None:
    assert launcher.verb_of(argv.split()) == verb


def test_a_sealed_copy_is_whole_and_cannot_be_changed(tmp_path: Path) -> None:
    original = tmp_path / "program"
    original.write_bytes(os.urandom(300_000))
    fd = launcher.sealed_copy(str(original))
    try:
        assert os.pread(fd, 1 << 20, 0) == original.read_bytes()
        assert fcntl.fcntl(fd, F_GET_SEALS) == launcher.ALL_SEALS
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            writer = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            os.pwrite(writer, b"x", 0)
    finally:
        os.close(fd)


def say(code: str, **environment: str) -> list[str]:
    """Run code that has the launcher as `it` in an isolated interpreter; return what it prints."""
    first = f"import os, sys; sys.path.append({str(REPO)!r}); from minirun import launcher as it; "
    command = [sys.executable, "-ISB", "-c", first + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_interpreter_is_what_runs() -> None:
    """And not what a variable says, which even an isolated one heeds."""
    wrong = "/nowhere/python3"
    code = "print(it.interpreter(), *it.code_paths())"
    found = say(code, __PYVENV_LAUNCHER__=wrong, PYTHONEXECUTABLE=wrong)
    assert found[0] == os.path.realpath(sys.executable)
    assert wrong not in found


def test_closed_streams_are_opened() -> None:
    code = "os.close(0); os.close(2); it.open_streams(); print(*[os.readlink(f'/proc/self/fd/{n}') "
    code += "for n in (0, 2) if os.get_inheritable(n)])"
    assert say(code) == ["/dev/null"] * 2


def test_an_interpreter_on_disk_is_not_private() -> None:
    assert not launcher.private_executable()


SELF = """
import sys
sys.path.append({repo!r})
from minirun import launcher
if not launcher.private_executable():
    launcher.become_sealed(sys.argv[1:])
import fcntl, json, os
try:
    os.open("/proc/self/exe", os.O_WRONLY)
    failed = 0
except OSError as error:
    failed = error.errno
exe = os.open("/proc/self/exe", os.O_RDONLY)
found = {{"seals": fcntl.fcntl(exe, 1034), "argv": sys.argv[1:], "isolated": sys.flags.isolated,
         "environ": dict(os.environ), "open": failed, "site": "site" in sys.modules}}
print(json.dumps(found))
"""


def test_becoming_sealed(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SELF.format(repo=str(REPO)))
    environment = {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "NOTIFY_SOCKET": "/run/n",
        "MINIRUN_DATA": "/d",
        "SECRET": "s",
        "ASKED": "a",
        "LD_LIBRARY_PATH": "/tmp",
        "PYTHONPATH": "/tmp",
        "PATH": "/evil",
    }
    argv = [sys.executable, "-ISB", str(script), "run", "-e", "ASKED", "--", "é x"]
    done = subprocess.run(argv, env=environment, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found["seals"] == launcher.ALL_SEALS
    assert found["open"] in (errno.ETXTBSY, errno.EPERM, errno.EACCES)
    assert found["argv"] == ["run", "-e", "ASKED", "--", "é x"]
    assert found["isolated"] == 1
    assert not found["site"]
    kept = {name: found["environ"].get(name) for name in environment}
    assert kept == {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "NOTIFY_SOCKET": "/run/n",
        "MINIRUN_DATA": "/d",
        "SECRET": None,
        "ASKED": "a",
        "LD_LIBRARY_PATH": None,
        "PYTHONPATH": None,
        "PATH": launcher.SAFE_PATH,
    }


def test_becoming_sealed_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MINIRUN_SEALED", "1")
    with pytest.raises(MinirunError, match="sealed copy"):
        launcher.become_sealed([])


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ("run -e A web", ["A"]),
        ("run --env A -env=B -e C=1 -e=D web", ["A", "B", "D"]),
        ("run -e", [""]),
        ("run web", []),
    ],
)
def test_variables_that_are_asked_for_by_name(argv: str, names: list[str]) -> None:
    assert list(launcher.asked_for(argv.split())) == names


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONHOME", "GLIBC_TUNABLES", "GCONV_PATH"])
def test_what_the_loader_acts_on_is_never_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name not in launcher.clean_environment({name: "x"}, [name])
    monkeypatch.setenv(name, "x")
    launcher.scrub_environment()
    assert name not in os.environ


class Status:
    """A stand-in for os.stat_result."""

    def __init__(self, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.st_mode, self.st_uid, self.st_gid = mode, uid, gid


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status(0o040755), None),
        (Status(0o041777), None),  # /tmp: sticky
        (Status(0o042775, gid=50), None),  # Debian's /usr/local: group staff
        (Status(0o100755), None),
        (Status(0o040777), "everyone"),
        (Status(0o101777), "everyone"),  # sticky means nothing on a file
        (Status(0o100757), "everyone"),
        (Status(0o040775, gid=1000), "group 1000"),
        (Status(0o040755, uid=1000), "uid 1000"),
    ],
)
def test_who_may_change_the_code(
    status: Status, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "stat", lambda path: status)
    monkeypatch.setattr(launcher, "_in_user_namespace", lambda: False)
    if reason is None:
        launcher.refuse_writable(["/a/b"])
    else:
        with pytest.raises(MinirunError, match=reason):
            launcher.refuse_writable(["/a/b"])


def test_every_directory_above_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"/a": Status(0o040777)}
    monkeypatch.setattr(os, "stat", lambda path: bad.get(path, Status(0o040755)))
    with pytest.raises(MinirunError, match="from /a: everyone"):
        launcher.refuse_writable(["/a/b/c/d"])


def test_root_of_a_user_namespace_sees_foreign_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", lambda path: Status(0o040755, uid=65534))
    monkeypatch.setattr(launcher, "_in_user_namespace", lambda: True)
    launcher.refuse_writable(["/usr/bin"])


POISON = "import os; os.write(2, b'POISONED\\n')\n"


@pytest.mark.parametrize("argv", [["--version"], ["state", "none"], ["create", "x"], ["list"]])
def test_a_hostile_directory_and_environment(argv: list[str], tmp_path: Path) -> None:
    for name in ("json", "re", "site", "sitecustomize", "usercustomize", "click", "socket", "stat"):
        (tmp_path / f"{name}.py").write_text(POISON)
    (tmp_path / "config.json").write_text("{}")
    environment = {
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "json.py"),
        "PYTHONINSPECT": "1",
        "PYTHONUSERBASE": str(tmp_path),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
    }
    main = str(REPO / "minirun" / "__main__.py")
    done = subprocess.run(
        [sys.executable, "-ISB", main, "--root", str(tmp_path / "root"), *argv],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert b"POISONED" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "__pycache__").exists()


def test_an_entry_that_is_not_isolated_starts_one_that_is() -> None:
    code = "import sys; sys.argv[1:] = ['--version']; from minirun.launcher import console_script;"
    done = subprocess.run(
        [sys.executable, "-c", code + "console_script()"],
        cwd=REPO,
        capture_output=True,
        check=False,
        text=True,
    )
    # As root it may refuse a checkout that is not root's; that too is said by the isolated one.
    assert done.stdout.startswith("minirun version") or "refusing to run as root" in done.stderr
