"""Hazards of an interpreter as a runtime: nothing of the container or the caller is ever loaded.

P-01 to P-05: the container's files at the host's paths. P-10 to P-14: the caller's surroundings.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import CHECKOUT, call, development, good, host_same, read, traced

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

STDLIB = os.path.dirname(os.__file__)
POISON = "open('/PWNED', 'a').write(__name__ + '\\n')\nopen('/tmp/PWNED', 'a').write(__name__)\n"
COOKIE = "# -*- coding: evil -*-\n"


def poison(box: Box) -> None:
    """Put poison at every path of the host from which Python, or the C library, loads anything."""
    library = box.rootfs / STDLIB.lstrip("/")
    (library / "encodings").mkdir(parents=True)
    for name in sorted(sys.stdlib_module_names):
        (library / f"{name}.py").write_text(POISON)
    for name in ("evil", "idna", "utf_8", "latin_1", "__init__", "punycode"):
        (library / "encodings" / f"{name}.py").write_text(POISON)
    package = box.rootfs / str(CHECKOUT / "minirun").lstrip("/")
    for path in (CHECKOUT / "minirun").rglob("*.py"):
        copy = package / path.relative_to(CHECKOUT / "minirun")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(COOKIE + POISON)
    poison_c_library(box)


def poison_c_library(box: Box) -> None:
    etc = box.rootfs / "etc"
    (etc / "nsswitch.conf").write_text("passwd: evil\ngroup: evil\nhosts: evil\n")
    (etc / "ld.so.preload").write_text("/lib/evil.so\n")
    (etc / "ld.so.cache").write_bytes(b"glibc-ld.so.cache1.1" + bytes(100))
    for name in ("libnss_evil.so.2", "libseccomp.so.2", "libgcc_s.so.1", "evil.so", "libc.so.6"):
        for place in ("lib", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"):
            (box.rootfs / place).mkdir(parents=True, exist_ok=True)
            (box.rootfs / place / name).write_bytes(b"\x7fELFevil")


def unharmed(box: Box) -> bool:
    return not any((box.rootfs / name).exists() for name in ("PWNED", "tmp/PWNED"))


# ---------------------------------------------------------------- a poisoned root: P-01 to P-05


def test_a_poisoned_root_is_never_loaded(box: Box) -> None:
    poison(box)
    (box.rootfs / "etc/ld.so.preload").unlink()  # the payload's own loader would complain of it
    box.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
    }
    box.probe()
    box.up()
    box.exec_probe()
    assert unharmed(box)


FAILING: dict[str, dict[str, Any]] = {
    "cwd": {"cwd": "/etc/passwd"}, "program": {"args": ["/nope"]}, "name": {"args": ["ÿ\u00e9"]},
    "format": {"args": ["/odd"]}, "user": {"user": {"uid": 70000, "gid": 0}},
    "long": {"env": ["A=" + "x" * 200_000]}, "encoding": {"args": ["/\u2028\U0001f4a3"]},
}  # fmt: skip


@pytest.mark.parametrize("what", FAILING)
@pytest.mark.parametrize("fifo", [False, True], ids=["", "fifo"])
def test_errors_in_a_poisoned_root(box: Box, what: str, fifo: bool) -> None:
    """A traceback opens the source of every frame, and obeys a coding cookie in it: P-01."""
    poison(box)
    (box.rootfs / "odd").write_bytes(b"\x7fELF" + bytes(200))
    (box.rootfs / "odd").chmod(0o755)
    if fifo:
        for path in (box.rootfs / str(CHECKOUT).lstrip("/")).rglob("*.py"):
            path.unlink()
            os.mkfifo(path)
    if what == "user":
        box.user_namespace()
    box.process.update(FAILING[what])
    box.refused()
    assert unharmed(box)
    if what != "user":
        other = box.another()
        other.rootfs = box.rootfs
        other.config["root"]["path"] = str(box.rootfs)
        other.up()
        process = {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["/x"], **FAILING[what]}
        (box.place / "process").write_text(json.dumps(process))
        done = box.call("exec", "--process", str(box.place / "process"), other.id)
        assert done.code == 255
    assert unharmed(box)


def opens_after(log: Path, boundary: str) -> list[str]:
    """List what processes opened after they had passed a system call, up to their own execve.

    The runtime's own descriptors are told by path relative to them; absolute paths are not allowed.
    """
    passed: set[str] = set()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if re.match(boundary, call):
            passed.add(pid)
        elif call.startswith("execve"):
            passed.discard(pid)
        elif pid in passed and re.match(r"(open|openat|stat|newfstatat|readlink|connect)\(", call):
            found.append(line)
    return found


ALLOWED_INSIDE = re.compile(r'"(/|\.|\.\.|/probe|/proc/self/.*|)"')


@pytest.mark.requires("strace")
def test_nothing_is_opened_inside(box: Box) -> None:
    """From the change of root on the runtime opens no path but what config.json names."""
    log = box.place / "trace"
    box.write()
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    good(call(traced(words, "trace=%file,%network,pivot_root,setns,execve", log=str(log))))
    opened = opens_after(log, r"pivot_root\(")
    assert "pivot_root(" in read(log)
    assert [line for line in opened if not ALLOWED_INSIDE.search(line)] == []


@pytest.mark.requires("strace")
def test_nothing_is_opened_by_what_joins(box: Box) -> None:
    box.up()
    log = box.place / "trace"
    words = box.words("exec", box.id, "/probe")
    good(call(traced(words, "trace=%file,%network,setns,execve", log=str(log))))
    assert "setns(" in read(log)
    opened = opens_after(log, r"setns\(")
    assert [line for line in opened if not ALLOWED_INSIDE.search(line)] == []


def test_the_programs_of_the_host_are_not_looked_up_by_path(box: Box) -> None:
    """P-06: find_library would run gcc and ldconfig, whoever put them into PATH."""
    place = box.place / "bin"
    place.mkdir()
    for name in ("gcc", "cc", "ld", "ldconfig", "objdump", "sh", "mount", "newuidmap", "nft", "ip"):
        (place / name).write_text(f"#!/bin/sh\necho {name} >> {box.place}/ran\n")
        (place / name).chmod(0o755)
    box.user_namespace()
    box.probe(env={"PATH": f"{place}:{os.environ['PATH']}"})
    assert not (box.place / "ran").exists()


# ---------------------------------------------------------------- what a life costs

# Each costs 7 to 300 ms, or opens a door that a runtime keeps shut.
HEAVY = {
    "argparse", "asyncio", "click", "collections", "contextlib", "dataclasses", "enum", "functools",
    "inspect", "json", "logging", "pathlib", "prctl", "psutil", "pyroute2", "re", "rich", "shutil",
    "signal", "site", "socket", "subprocess", "tempfile", "threading", "typing", "yaml",
}  # fmt: skip


def test_what_a_life_loads(box: Box) -> None:
    """Every verb of a real container, the forked processes included."""
    if os.environ.get("MINIRUN"):
        pytest.skip("looks at the imports of the checkout")
    start = box.command.index("-ISB")
    box.command = [*box.command[:start], "-X", "importtime", *box.command[start:]]
    box.user_namespace()
    box.process["args"] = ["/bin/sleep", "600"]
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    box.hook("createRuntime", "true")
    told = [box.create(), box.start(), box.call("state", box.id), box.exec("/bin/true")]
    told += [box.call("kill", box.id, "0"), box.call("list"), box.delete("--force"), box.run("-d")]
    for done in told:
        assert done.code == 0, done
        lines = [line for line in done.err.splitlines() if line.startswith("import time:")]
        loaded = {line.rpartition("|")[2].strip() for line in lines}
        assert "minirun.cli" in loaded
        assert not loaded & HEAVY


# ---------------------------------------------------------------- a hostile caller: P-10 to P-12


def evil(place: Path, ran: Path) -> Path:
    """Make a directory full of modules that tell of their import."""
    place.mkdir(parents=True)
    text = f"open({str(ran)!r}, 'a').write(__name__ + '\\n')\n"
    for name in (*sorted(sys.stdlib_module_names), "minirun", "click", "sitecustomize",
                 "usercustomize", "encodings"):  # fmt: skip
        (place / f"{name}.py").write_text(text)
    (place / "evil.pth").write_text(f"import os; open({str(ran)!r}, 'a').write('pth')\n")
    return place


VERBS = (("--version",), ("list",), ("state", "x"), ("features",), ("spec", "--help"), ("--help",))


def every_verb(box: Box, **options: Any) -> None:
    """Call what needs no container, then a whole life."""
    for words in VERBS:
        box.call(*words, **options)
    box.process["args"] = ["/bin/sleep", "600"]
    box.create(**options)
    box.start(**options)
    good(box.exec("/bin/true", **options))
    good(box.delete("--force", **options))


def test_a_hostile_working_directory(box: Box) -> None:
    ran = box.place / "ran"
    every_verb(box, cwd=evil(box.place / "evil", ran))
    assert not ran.exists()


def test_a_hostile_home(box: Box) -> None:
    ran = box.place / "ran"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    evil(box.place / f"home/.local/lib/{version}/site-packages", ran)
    every_verb(box, env={**os.environ, "HOME": str(box.place / "home")})
    assert not ran.exists()


def test_a_hostile_environment(box: Box) -> None:
    """Variables on which the interpreter, the loader and the C library act."""
    ran = box.place / "ran"
    place = str(evil(box.place / "evil", ran))
    (box.place / "startup.py").write_text(f"open({str(ran)!r}, 'a').write('startup')\n")
    hostile = {
        "PYTHONPATH": place, "PYTHONSTARTUP": str(box.place / "startup.py"), "PYTHONINSPECT": "1",
        "PYTHONUSERBASE": place, "PYTHONWARNINGS": "error", "PYTHONBREAKPOINT": "evil.hook",
        "PYTHONPYCACHEPREFIX": place, "PYTHONHOME": place, "PYTHONPLATLIBDIR": "evil",
        "PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "1", "PYTHONVERBOSE": "1", "GCONV_PATH": place,
        "LOCPATH": place, "LC_ALL": "evil.EVIL", "OPENSSL_CONF": place, "TMPDIR": place,
        "MALLOC_PERTURB_": "1", "_MINIRUN_COMPLETE": "bash_source", "PYTHONOPTIMIZE": "2",
    }  # fmt: skip
    with host_same(place):
        every_verb(box, env={**os.environ, **hostile})
    assert not ran.exists()


def test_no_variable_reaches_payload_or_hooks(box: Box) -> None:
    for kind in ("createRuntime", "createContainer", "poststop"):
        box.hook(kind, f"cat /proc/self/environ >> {box.place}/told")
    hostile = {"LD_DEBUG": "none", "PYTHONPATH": "/x", "MINIRUN_X": "1"}
    manager = {"NOTIFY_SOCKET": "/of-the-caller"}
    report = box.probe(env={**os.environ, **hostile, **manager})
    for name in (*hostile, "of-the-caller"):  # the container's NOTIFY_SOCKET is a proxy's
        assert name not in str(report["env"])
        assert name not in read(box.place / "told")
    assert "NOTIFY_SOCKET" not in read(box.place / "told")


def test_no_variable_changes_what_is_enforced(box: Box) -> None:
    names = ("ROOT", "NO_PIVOT", "CAP", "SECCOMP", "USERNS", "DEBUG", "ALLOW_NEW_PRIVILEGES")
    report = box.probe(env={**os.environ, **{f"MINIRUN_{name}": "1" for name in names}})
    assert report.caps["Bnd"] == 0x420
    assert report.status("NoNewPrivs") == "1"


@pytest.mark.parametrize("umask", ["000", "022"])
def test_nothing_is_written_beside_the_code(box: Box, umask: str) -> None:
    """P-14: a .pyc that root writes where others may, or that others left, is code of root's."""
    code = box.place / "code"
    shutil.copytree(CHECKOUT / "minirun", code / "minirun", ignore=shutil.ignore_patterns("__py*"))
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    plain = development(str(code), *libraries)
    box.command = ["sh", "-c", f'umask {umask}; exec "$0" "$@"', *plain]
    with host_same(code):
        every_verb(box)


COMPILED = f"code/minirun/__pycache__/minirun.{sys.implementation.cache_tag}.code"
PLACES = ("code", "code/minirun", "code/minirun/__pycache__", COMPILED)


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_code_that_others_can_change(box: Box, target: str, how: str) -> None:
    """P-13."""
    code = box.place / "code"
    shutil.copytree(CHECKOUT / "minirun", code / "minirun", ignore=shutil.ignore_patterns("__py*"))
    box.command = development(str(code))
    if "__pycache__" in target:
        precompile = [sys.executable, "-B", "-m", "minirun.precompile"]
        subprocess.run(precompile, cwd=code, check=True, timeout=60)
    good(box.call("list"))
    if how == "mode":
        path = box.place / target
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o002)
    else:
        os.chown(box.place / target, 1000, 1000)
    done = box.call("list")
    assert done.code == 1
    assert "refusing to run as root" in done.err


INSIDE = r"""
import os, sys
sys.path += sys.argv[2:]
from minirun import child
from minirun.setup import Launch, Setup
from minirun.spec import Process, Spec
child.lock_down(Setup("x", Spec(), Process(), "/", Launch()))
os.chroot(sys.argv[1])
os.chdir("/")
for act in (lambda: __import__("this"), lambda: "x".encode("punycode"), lambda: 1 / 0,
            lambda: b"x".decode("evil"), lambda: open("/nowhere"), lambda: getattr(os, "nothing"),
            lambda: __import__("traceback").print_exc(), lambda: "\xff".encode("idna")):
    try:
        act()
    except Exception as error:
        str(error), repr(error)
raise ValueError("\udc80\u2028 at the end")
"""


def test_an_interpreter_that_is_locked_down_loads_nothing(box: Box) -> None:
    """P-03: whatever goes wrong after the change of root, up to an uncaught exception."""
    poison(box)
    words = [sys.executable, "-ISBc", INSIDE, str(box.rootfs), str(CHECKOUT)]
    done = call(words)
    assert done.code == 1
    assert done.err.startswith("minirun: ValueError")
    assert unharmed(box)


def test_the_poison_is_one(box: Box) -> None:
    """The control: it works where it is loaded, as by a naive runtime after its chroot."""
    poison(box)
    code = "import os, sys; os.chroot(sys.argv[1]); os.chdir('/'); import this"
    good(call([sys.executable, "-ISBc", code, str(box.rootfs)]))
    assert not unharmed(box)
