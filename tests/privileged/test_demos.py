"""The lessons (scripts/demo-*, `minirun learn`): each is so on this machine, and leaves nothing.

A lesson checks itself. That its checks can fail is tested by tools that do not do what they say:
they stand before the real ones in PATH, in namespaces that a misled lesson cannot harm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runtime import CHECKOUT, PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires(
    "root", "cgroup2", "userns", "timens", "overlay", "netns", "seccomp", "setpriv", "unshare"
)

LIMIT = 500  # seconds; under emulation each command of a lesson takes some
LACKS = 77  # the status of a lesson whose matter the machine does not have

# lesson → what it must have shown, in the words of the kernel or of the tools.
AFTER = {
    "uts": r"^    lesson$",
    "pid": r"^    NSpid:\t\d+\t1$",
    "mnt": r"lesson +tmpfs +rw,relatime,size=1024k",
    "ipc": r"^    0x[0-9a-f]{8} +\d+ +root",
    "net": r"^    lo +DOWN",
    "user": r"^ +0 +1000 +1$",
    "cgroup": r"^    0::/\.\.$",
    "time": r"^    boottime +864000 +0$",
    "process": r"^ +1 sleep 1000$",
    "pivot": r"^    mounts: 2$",
    "veth": r"^    10\.9\.8\.2 dev eth0 lladdr ",
    "limits": r"^    oom_kill 1$",
    "capabilities": r"^    chown: .*Operation not permitted",
    "seccomp": r"^    Seccomp:\t2$",
    "container": r"^ +0 +200000 +65536$",
    "pod": r"^    from the web container$",
    "inspect": r"^    Seccomp:\t2$",
    "layers": r"no minirun runs for it$",
}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a disk, for the data: before Linux 6.3 a tmpfs cannot map owners."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def environment(place: Path, disk: Path) -> dict[str, str]:
    """What a lesson is run with: a `minirun` in PATH, with data of its own, and a `sudo`."""
    programs = place / "bin"
    programs.mkdir()
    if given := os.environ.get("MINIRUN"):
        (programs / "minirun").symlink_to(given)
    else:
        paths = [str(CHECKOUT), *(path for path in sys.path if path.endswith("site-packages"))]
        program(
            programs / "minirun",
            f"#!{sys.executable} -ISB\nimport sys\nsys.path += {paths!r}\n"
            "from minirun.launcher import main\nsys.exit(main())\n",
        )
    program(programs / "sudo", '#!/bin/sh\nexec "$@"\n')
    found = {"PATH": f"{programs}:{PATH.removeprefix('PATH=')}", "MINIRUN_DATA": str(disk)}
    if tarball := os.environ.get("MINIRUN_ROOTFS_TARBALL"):
        found["MINIRUN_ROOTFS_TARBALL"] = tarball
    return found


def program(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)


def run(*words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command, with both its streams in `stdout`."""
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=LIMIT,
        check=False,
    )


def traces() -> tuple[set[str], str, str, str]:
    """What a lesson may leave that the suite's own look does not see."""
    places = (Path("/tmp"), Path("/var/tmp"))
    files = {str(path) for place in places for path in place.glob("minirun-lesson.*")}
    # cgroups in any hierarchy, for what a lesson starts may use another than /sys/fs/cgroup.
    for directory, _names, _files in os.walk("/sys/fs/cgroup"):
        if "minirun-lesson" in directory:
            files.add(directory)
    segments = Path("/proc/sys/kernel/shmmni").read_text()
    return files, Path("/proc/sysvipc/msg").read_text(), segments, os.uname().nodename


def lesson(name: str) -> pytest.param:  # type: ignore[valid-type]
    """Make the parameter of a lesson; what only a machine of its own has is always tried there."""
    needs = [pytest.mark.vm, pytest.mark.requires("limits")] if name == "limits" else []
    return pytest.param(name, marks=[*needs, pytest.mark.slow] if name == "layers" else needs)


@pytest.mark.parametrize("name", [lesson(name) for name in AFTER])
def test_it_is_as_the_lesson_tells(name: str, environment: dict[str, str]) -> None:
    before = traces()
    done = run(str(CHECKOUT / "scripts" / f"demo-{name}"), environment=environment)
    assert done.returncode == 0, done.stdout
    assert re.search(AFTER[name], done.stdout, re.M), done.stdout
    assert "\n  NO  " not in done.stdout
    assert "\x1b" not in done.stdout, "colours are for terminals"
    assert "== The same by minirun\n  " in done.stdout
    if name == "limits":
        assert "4 MiB took more than" in done.stdout, "the disk's part was left out"
    assert traces() == before


def test_a_mount_of_cgroups_that_another_hides_is_not_taken(environment: dict[str, str]) -> None:
    """As where version 2 was mounted over the mixture of a machine."""
    hide = (
        "umount --recursive --lazy /sys/fs/cgroup && mount -t tmpfs tmpfs /sys/fs/cgroup && "
        "mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified && "
        'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$0"'
    )
    script = str(CHECKOUT / "scripts/demo-inspect")
    apart = ("unshare", "--mount", "--propagation", "private", "sh", "-c", hide, script)
    done = run(*apart, environment=environment)
    assert done.returncode == 0, done.stdout
    assert "$ cat /sys/fs/cgroup/minirun/" in done.stdout


def test_every_lesson_is_tried() -> None:
    found = {path.name.removeprefix("demo-") for path in (CHECKOUT / "scripts").glob("demo-*")}
    assert found == set(AFTER)


def test_what_a_machine_lacks_is_told_by_the_status(environment: dict[str, str]) -> None:
    done = run(str(CHECKOUT / "scripts/demo-limits"), environment=environment)
    with open("/sys/fs/cgroup/cgroup.controllers") as file:
        if "memory" in file.read().split():
            pytest.skip("this machine lacks nothing")
    assert done.returncode == LACKS
    assert "demo-limits: this machine lacks the memory controller in /sys/fs/cgroup" in done.stdout


# ---------------------------------------------------------------- the checks can fail

# lesson → a tool, and what it shall not do: words that match are taken out of its command line.
BROKEN = {
    "uts": ("unshare", "--uts"),
    "pid": ("unshare", "--pid"),
    "mnt": ("nsenter", "--mount"),
    "ipc": ("unshare", "--ipc"),
    "net": ("unshare", "--net"),
    "user": ("unshare", "--map-root-user"),
    "cgroup": ("unshare", "--cgroup"),
    "time": ("unshare", "--boottime|--monotonic|864000"),
    "process": ("nsenter", "--uts"),
    "pivot": ("pivot_root", "[.]|old"),
    "veth": ("ip", "up"),
    "capabilities": ("setpriv", "--bounding-set.*"),
    "seccomp": ("setpriv", "/tmp/minirun-lesson.*/filter|-I|/usr/bin/python3"),
    "container": ("setpriv", "--no-new-privs"),
    "pod": ("nsenter", "--ipc"),
    "inspect": ("nsenter", "--uts"),
}
# By its path: the one in PATH may lie, and what it leaves out would be the host's.
APART = (
    "/usr/bin/unshare --mount --uts --ipc --net --pid --cgroup --time "
    "--fork --kill-child --mount-proc"
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_lesson_notices_what_is_not_so(
    name: str, environment: dict[str, str], place: Path
) -> None:
    tool, words = BROKEN[name]
    real = shutil.which(tool, path=environment["PATH"] + ":/usr/sbin:/sbin")
    lying = place / "lying"
    lying.mkdir()
    program(
        lying / tool,
        f'#!/bin/bash\nwords=()\nfor word; do\n    [[ $word =~ ^({words})$ ]] || words+=("$word")\n'
        f'done\nexec {real} "${{words[@]}}"\n',
    )
    path = f"{lying}:{environment['PATH']}"
    misled = {**environment, "PATH": path, "LESSON_PATIENCE": "2"}
    script = CHECKOUT / "scripts" / f"demo-{name}"
    before = traces()
    done = run(*APART.split(), "timeout", "400", str(script), environment=misled)
    assert traces()[1:] == before[1:]
    # A misled lesson cannot undo what it did elsewhere than it believes: its directory may stay.
    for path in traces()[0] - before[0]:
        shutil.rmtree(path)
    assert done.returncode == 1, done.stdout
    assert "\n  NO  " in done.stdout or f"demo-{name}: ended with status" in done.stdout


# ---------------------------------------------------------------- minirun learn


def test_learn_lists_and_runs_what_is_installed(environment: dict[str, str]) -> None:
    listed = run("minirun", "learn", environment=environment).stdout
    names = [line.split()[0] for line in listed.splitlines() if "  " in line]
    pages = sorted(page.stem for page in (CHECKOUT / "minirun" / "pages").glob("*.md"))
    assert names[: len(AFTER)] == list(AFTER)
    assert sorted(names[len(AFTER) :]) == pages
    done = run("minirun", "learn", "uts", environment=environment)
    assert done.returncode == 0, done.stdout
    assert re.search(AFTER["uts"], done.stdout, re.M)
    assert done.stdout.endswith("Next: sudo minirun learn pid\n")
    assert "Enter goes on" not in done.stdout, "it waits on terminals only"


@pytest.mark.parametrize("flag, waits", [("", 5), ("--yes", 0)])
def test_learn_waits_on_a_terminal(flag: str, waits: int, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", f"minirun learn {flag} uts", "/dev/null"],
        input="\n" * 20,
        capture_output=True,
        text=True,
        env={**environment, "TERM": "xterm"},
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Enter goes on") == waits
    assert "\x1b[32mok" in done.stdout


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_a_lesson_that_is_ended_cleans_up(signal: str, environment: dict[str, str]) -> None:
    before = traces()
    script = (
        'exec 3< <("$@"); lesson=$!; grep -m 1 "has the other" <&3\n'
        f"kill -{signal} $lesson; wait $lesson"
    )
    done = run(
        "bash", "-c", script, "bash", str(CHECKOUT / "scripts/demo-veth"), environment=environment
    )
    assert done.returncode == {"INT": 130, "TERM": 143}[signal], done.stdout
    assert traces() == before


# ---------------------------------------------------------------- what they say of minirun


@pytest.mark.parametrize("name", [name for name in AFTER if name not in ("limits", "layers")])
def test_the_commands_of_minirun_that_are_named_work(
    name: str, environment: dict[str, str]
) -> None:
    text = (CHECKOUT / "scripts" / f"demo-{name}").read_text()
    said = text[text.index("\nconclude ") :].replace("conclude ", "printf '%s\\n' ", 1)
    commands = run("bash", "-c", said, environment=environment).stdout
    assert commands.count("minirun ") >= 1
    script = (
        "set -e; mount -t tmpfs tmpfs /run; ip link set lo up\n"
        "minirun rootfs build busybox --name alpine -q >/dev/null\n"
        f"set +e\n{commands}"
    )
    done = run(
        *("unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", script),
        environment=environment,
    )
    # What one command is there to show is a refusal, of the container's own program.
    assert not re.search(r"^minirun: (?!warning)", done.stdout, re.M), done.stdout
    assert "not found" not in done.stdout
