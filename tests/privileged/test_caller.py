"""A caller that is careless or hostile: how minirun is reached, and with what. P-10 to P-14.

sudo(8) resets the environment and closes descriptors above 2; all else is the caller's to choose.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from runtime import Done, call, good, read, report_of, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime import Box, Report

pytestmark = pytest.mark.requires("root", "programs")


def by_shell(box: Box, before: str) -> None:
    """Have the runtime started by a shell that has done something before."""
    box.command = ["sh", "-c", f'{before}; exec "$0" "$@"', *box.command]


def told(box: Box) -> Report:
    path = box.rootfs / "tmp/report"
    return report_of(until(lambda: path.exists() and read(path).endswith("}\n") and read(path)))


def life(box: Box, **options: Any) -> Report:
    """Lead a container through its life, in which every call must succeed; return its report."""
    box.process["args"] = ["/bin/sh", "-c", "/probe into /tmp/report report; exec sleep 600"]
    box.create(**options)
    box.start(**options)
    found = told(box)
    good(box.call("state", box.id, **options))
    good(box.exec("/bin/true", **options))
    good(box.call("list", **options))
    good(box.delete("--force", **options))
    (box.rootfs / "tmp/report").unlink()
    assert box.left() == []
    return found


# ---------------------------------------------------------------- what others have mounted


def test_a_mount_of_a_directory_with_any_name(box: Box) -> None:
    """A kubelet binds the directory that a pod names as its subPath, in the host's namespace."""
    odd = box.place / "a\r\v\f\x1c\x1d\x1e\x85\u2028b"
    odd.mkdir()
    (box.place / "point").mkdir()
    mount = f"mount --bind {box.place}/a* {box.place}/point"
    words = ["unshare", "--mount", "sh", "-c", f'{mount}; exec "$0" "$@"', *box.command]
    box.command = words
    box.process["args"] = ["/bin/true"]
    good(box.run())


# ---------------------------------------------------------------- where it is started from


@pytest.mark.parametrize("how", ["link", "relative", "relative link", "no slash"])
def test_however_it_is_reached(box: Box, how: str) -> None:
    """From a directory that everybody may write to, where modules of well-known names lie."""
    if len(box.command) != 1:
        pytest.skip("needs the installed command")
    place = box.place / "open"
    place.mkdir()
    place.chmod(0o1777)
    for name in ("os", "sys", "posix", "marshal", "minirun", "encodings", "site", "_imp"):
        (place / f"{name}.py").write_text(f"open('{box.place}/ran', 'w')")
    target = os.path.realpath(box.command[0])
    environment = dict(os.environ)
    if how == "link":
        (place / "minirun").symlink_to(target)
        box.command = [str(place / "minirun")]
    elif how == "relative":
        box.command = [os.path.relpath(target, place)]
    elif how == "relative link":
        (place / "m").symlink_to(os.path.relpath(target, place))
        box.command = ["./m"]
    else:
        environment["PATH"] = f"{os.path.dirname(target)}:{environment['PATH']}"
        box.command = ["minirun"]
    life(box, cwd=place, env=environment)
    assert not (box.place / "ran").exists()


@pytest.mark.parametrize("name", ["__PYVENV_LAUNCHER__", "PYTHONEXECUTABLE", "PYTHONHOME"])
def test_no_variable_leads_to_another_library(box: Box, name: str) -> None:
    """The first two are heeded even by an isolated interpreter: CPython, Modules/getpath.py."""
    if len(box.command) != 1:
        pytest.skip("needs the installed command")
    library = box.place / f"evil/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    (library / "encodings").mkdir(parents=True)
    (library / "lib-dynload").mkdir()
    for path in ("os.py", "encodings/__init__.py", "types.py"):
        (library / path).write_text(f"open({str(box.place / 'ran')!r}, 'w')\n")
    program = box.place / "evil/bin/python3"
    program.parent.mkdir()
    program.symlink_to(os.path.realpath(sys.executable))
    value = str(box.place / "evil") if name == "PYTHONHOME" else str(program)
    life(box, env={**os.environ, name: value})
    box.hook("startContainer", "true")  # for which minirun starts again, from memory
    life(box, env={**os.environ, name: value})
    assert not (box.place / "ran").exists()


def test_a_directory_that_is_gone(box: Box) -> None:
    gone = box.place / "gone"
    gone.mkdir()
    by_shell(box, f"cd {gone}; rmdir {gone}")
    life(box)


# ---------------------------------------------------------------- descriptors, masks, limits


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1", "1 2", "0 1 2"])
def test_closed_streams(box: Box, closed: str) -> None:
    """No file of the runtime may come to stand where a program reads or writes."""
    shell = "; ".join(f"exec {fd}{'<' if fd == '0' else '>'}&-" for fd in closed.split())
    by_shell(box, shell)
    report = life(box)
    for fd, what in report.fds.items():
        link = what["link"]
        ours = link.startswith(("pipe:", "/memfd:e", "/memfd:o")) or link == "/dev/null"
        assert ours or link == "/null", (fd, what)
    assert set(report.fds) <= {0, 1, 2}


@pytest.mark.parametrize("mask", ["0777", "0", "0177"])
def test_a_mask(box: Box, mask: str) -> None:
    by_shell(box, f"umask {mask}")
    assert life(box).status("Umask") == "0022"


LIMITS: dict[str, tuple[int, int]] = {
    "few files": (resource.RLIMIT_NOFILE, 32),
    "small stack": (resource.RLIMIT_STACK, 256 << 10),
    "no core": (resource.RLIMIT_CORE, 0),
    "no locked memory": (resource.RLIMIT_MEMLOCK, 0),
    "no messages": (resource.RLIMIT_MSGQUEUE, 0),
    "no queue of signals": (resource.RLIMIT_SIGPENDING, 0),
}


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.mark.parametrize("what", LIMITS)
def test_limits_with_which_it_works(box: Box, what: str) -> None:
    life(box, preexec_fn=limited(*LIMITS[what]))


TOO_LOW: dict[str, tuple[int, int]] = {
    "hardly a file": (resource.RLIMIT_NOFILE, 8),
    "16 files": (resource.RLIMIT_NOFILE, 16),
    "empty files": (resource.RLIMIT_FSIZE, 0),
    "small files": (resource.RLIMIT_FSIZE, 600),
    "little memory": (resource.RLIMIT_AS, 24 << 20),
    "hardly memory": (resource.RLIMIT_AS, 14 << 20),
    "little data": (resource.RLIMIT_DATA, 6 << 20),  # without care CPython 3.11 hangs
    "less data": (resource.RLIMIT_DATA, 5 << 20),
    "hardly data": (resource.RLIMIT_DATA, 4 << 20),
}


@pytest.mark.parametrize("what", TOO_LOW)
@pytest.mark.parametrize("verb", ["run", "create"])
def test_limits_that_may_be_too_low(box: Box, what: str, verb: str) -> None:
    """It works, or says in a line what fails, and leaves nothing."""
    limit = limited(*TOO_LOW[what])
    box.process["args"] = ["/bin/true"]
    box.write()
    words = box.words(verb, "--bundle", str(box.bundle), box.id)
    with open(os.devnull, "w") as null:
        done = without_traceback(call(words, preexec_fn=limit, stdout=null))
    if done.code == 0 and verb == "create":
        good(box.delete("--force"))
    assert done.code == 0 or done.err.count("\n") <= 1, done
    assert box.left() == []


def without_traceback(done: Done) -> Done:
    for word in ("Traceback", "Exception", "internal error", 'File "'):
        assert word not in done.err, done
    return done


def test_a_log_that_cannot_grow(box: Box) -> None:
    log = box.place / "log"
    box.process["args"] = ["/nope"]
    box.write()
    words = box.words("--log", str(log), "run", "--bundle", str(box.bundle), box.id)
    with open(os.devnull, "w") as null:
        done = call(words, preexec_fn=limited(resource.RLIMIT_FSIZE, 0), stdout=null)
    assert done.code == 1
    assert box.left() == []


# ---------------------------------------------------------------- signals


def ignoring() -> None:
    for number in range(1, 65):
        if number not in (9, 19, 32, 33):
            signal.signal(number, signal.SIG_IGN)


def blocking() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {32, 33})


@pytest.mark.parametrize("prepare", [ignoring, blocking])
def test_signals(box: Box, prepare: Callable[[], None]) -> None:
    report = life(box, preexec_fn=prepare)
    assert [report.bits(name) for name in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]
    box.process["args"] = ["/bin/sh", "-c", "exit 3"]
    assert box.run(preexec_fn=prepare).code == 3


# ---------------------------------------------------------------- the environment


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "huge": {f"V{number}": "x" * 100_000 for number in range(15)},
    "many": {f"V{number}": "" for number in range(20_000)},
    "locale": {"LC_ALL": "tr_TR.UTF-8", "LANG": "xx", "LANGUAGE": "../../etc", "LC_X": "\n"},
    "odd bytes": {"LANG": "\udcff", "TERM": "\x1b[2J", "HOME": "\udc80", "XDG_RUNTIME_DIR": "x"},
    "interpreter": {"PYTHONHOME": "/x", "PYTHONPATH": "/x", "PYTHONINSPECT": "1",
                    "PYTHONUTF8": "0", "PYTHONIOENCODING": "evil", "PYTHONMALLOC": "debug",
                    "PYTHONFAULTHANDLER": "1", "PYTHONASYNCIODEBUG": "1",
                    "__PYVENV_LAUNCHER__": "/x"},
    "library": {"MALLOC_CHECK_": "3", "MALLOC_TRACE": "/trace", "GLIBC_TUNABLES": "x=y",
                "LD_BIND_NOW": "1", "LD_LIBRARY_PATH": "/x", "LD_DEBUG_OUTPUT": "/x",
                "GCONV_PATH": "/x", "LOCPATH": "/x", "TZDIR": "/x", "TZ": ":/etc/shadow"},
    "sockets": {"LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b",
                "DBUS_SYSTEM_BUS_ADDRESS": "unixexec:path=/bin/sh", "DBUS": "x",
                "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"},
    "sudo": {"SUDO_UID": "\u0663", "SUDO_GID": "-1", "SUDO_USER": "../x", "COLUMNS": "x",
             "LINES": "1e9", "MINIRUN_DATA": "\n"},
}  # fmt: skip


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environments(box: Box, what: str) -> None:
    report = life(box, env={**os.environ, **ENVIRONMENTS[what]})
    names = {entry.partition("=")[0] for entry in report["env"]}
    assert names <= {"PATH", "HOME", "SHLVL", "PWD", "_", "OLDPWD"}


def test_no_environment_at_all(box: Box) -> None:
    life(box, env={})


@pytest.mark.parametrize("count", ["-1", "99999", "1e3", "\u0663", "1\n", " 1", "999999999999", ""])
def test_counts_of_sockets(box: Box, count: str) -> None:
    """Of our own process: what is no count passes nothing on, what is missing is refused."""
    box.process["args"] = ["/probe"]
    by_shell(box, "export LISTEN_PID=$$")
    done = without_traceback(box.run(env={**os.environ, "LISTEN_FDS": count}))
    if done.code == 0:
        assert set(report_of(done.out).fds) == {0, 1, 2}
    else:
        assert "preserved-fd" in done.err
    assert box.left() == []


@pytest.mark.parametrize(
    "address", ["/nowhere", "@nobody", "relative", "vsock:2:1234", "/" + "x" * 200, "@", "\udcff"]
)
def test_managers_that_are_not_there(box: Box, address: str, place: Path) -> None:
    """A service's first word is lost, which is told; nothing of it stays."""
    box.process["args"] = ["/probe", "notify", "READY=1"]
    environment = {**os.environ, "NOTIFY_SOCKET": address}
    done = without_traceback(box.run("--detach", env=environment, cwd=place))
    assert done.code == 1
    assert "cannot notify" in done.err
    assert box.left() == []
