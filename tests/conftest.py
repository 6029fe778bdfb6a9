"""What tests may ask of the machine, and the check that they leave it as it was.

`@pytest.mark.requires("root", "limits", kernel=(5, 12))` skips a test where a word does not hold.
MINIRUN_MUST_WORK names the environment that is promised: `host` (root on a machine with cgroup v2,
without controllers), `vm` (a machine of its own, where everything must work) or `1`. There a skip
is a failure. An unknown word is an error everywhere.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prctl
import psutil
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, os.path.dirname(__file__))

import dealing

if TYPE_CHECKING:
    from runtime import Box

pytest.register_assert_rewrite("dockerlike")

CGROUP = "/sys/fs/cgroup"
_PATIENCE = 20.0  # seconds
_CASES = 1  # of a parametrised test in the VM


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _cgroup2() -> bool:
    return os.path.exists(f"{CGROUP}/cgroup.controllers") and os.access(CGROUP, os.W_OK)


def _limits() -> bool:
    return {"cpu", "memory", "io", "pids"} <= set(_read(f"{CGROUP}/cgroup.controllers").split())


def _status(*words: str) -> int:
    return subprocess.run(words, capture_output=True, check=False).returncode


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


ENGINES = ("podman", "docker", "containerd")

# word → what it means here; what the host of the development machine cannot have is only
# promised by the VM.
WORDS: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "cgroup2": _cgroup2,
    "limits": _limits,
    "userns": lambda: os.path.exists("/proc/self/ns/user"),
    "timens": lambda: os.path.exists("/proc/self/ns/time"),
    "overlay": lambda: "overlay" in _read("/proc/filesystems") or bool(shutil.which("modprobe")),
    "netns": _program("ip"),
    "nft": _program("nft"),
    "seccomp": lambda: "Seccomp:" in _read("/proc/self/status"),
    "rootfs": lambda: os.path.isfile(os.environ.get("MINIRUN_ROOTFS_TARBALL", "")),
    "schema": lambda: os.path.isdir(os.environ.get("MINIRUN_OCI_SCHEMA", "")),
    # What runs inside the containers: built here, or brought along.
    "programs": lambda: bool(os.environ.get("MINIRUN_TEST_PROGRAMS") or shutil.which("gcc")),
    # Installed, and able to work on this kernel: each CRIU knows the kernels of its time.
    "criu": lambda: shutil.which("criu") is not None and not _status("criu", "check"),
    "systemd": lambda: os.path.isdir("/run/systemd/system"),
    # Ubuntu's: user namespaces without rights for whom no profile of AppArmor grants them.
    "restriction": lambda: _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1\n",
    "kvm": lambda: os.access("/dev/kvm", os.R_OK | os.W_OK),
    # What a virtual machine takes: QEMU, and a kernel that somebody points to.
    "qemu": lambda: bool(
        shutil.which(f"qemu-system-{os.uname().machine}")
        and os.path.isfile(os.environ.get("MINIRUN_TEST_KERNEL", ""))
    ),
    "vm": lambda: os.environ.get("MINIRUN_MUST_WORK") == "vm",
    **{
        name: _program(name)
        for name in ("runc", "crun", "strace", "bwrap", "gcc", "setpriv", "unshare", *ENGINES)
    },
}
# Words that the promise `host` does not cover, and those that none does.
ONLY_VM = {"vm", "systemd", "limits", "crun", "criu", *ENGINES}
UNPROMISED = {"kvm", "qemu", "restriction"}
if "ID=ubuntu\n" in _read("/etc/os-release"):
    UNPROMISED.add("criu")  # 24.04 has no package of it


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()) or 0)


def missing(words: tuple[str, ...], kernel: tuple[int, int] | None) -> list[str]:
    """Return what of `words` does not hold here; an unknown word raises."""
    for word in words:
        if word not in WORDS:
            raise pytest.UsageError(f"BUG: requires({word!r}) is not a known word")
    lacking = [word for word in words if not WORDS[word]()]
    if kernel is not None and _kernel() < kernel:
        lacking.append(f"kernel {kernel[0]}.{kernel[1]}")
    return lacking


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = list(item.iter_markers("requires"))
    if item.get_closest_marker("vm"):
        marks.append(pytest.mark.requires("vm").mark)
    for mark in marks:
        lacking = missing(mark.args, mark.kwargs.get("kernel"))
        if lacking:
            reason = f"needs {', '.join(lacking)}"
            if _promised(lacking):
                pytest.fail(f"{reason}, which this environment promises", pytrace=False)
            pytest.skip(reason)


def _promised(lacking: list[str]) -> bool:
    promise = os.environ.get("MINIRUN_MUST_WORK", "")
    if UNPROMISED & set(lacking):
        return False
    if promise == "host":
        return not ONLY_VM & set(lacking)
    return bool(promise)


# ---------------------------------------------------------------- containers


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A directory of this run, with the programs that root filesystems are made of.

    Below /tmp, with a short name: sockets are made here, whose paths are short (unix(7)).
    """
    import runtime

    place = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))
    try:
        with _kept(place):
            place.chmod(0o711)  # who runs in a user namespace must get through
            runtime.unpack_busybox(place)
            runtime.build_programs(place)
            yield place
    finally:
        _remove(place)


@contextlib.contextmanager
def _kept(place: Path) -> Iterator[None]:
    """Have somebody clean up after this run, should it be killed: see keeper.py."""
    import keeper

    prefix = f"box-{os.getpid()}-"
    words = [sys.executable, "-ISB", keeper.__file__, str(place), prefix]
    reader, writer = os.pipe()
    # A session of its own: what ends this run, and its process group, must not end it.
    with subprocess.Popen(words, stdin=reader, start_new_session=True) as process:
        os.close(reader)
        try:
            yield
        finally:
            os.write(writer, b"x")
            os.close(writer)
            process.wait(_PATIENCE)
            keeper.sweep(prefix)


@pytest.fixture
def place(base: Path) -> Iterator[Path]:
    """A directory for one test; its containers end with it."""
    import runtime

    made = Path(tempfile.mkdtemp(dir=base))
    made.chmod(0o711)
    try:
        yield made
    finally:
        runtime.clean(made)
        _remove(made)


def _remove(place: Path) -> None:
    # Deeper than shutil.rmtree goes, and never into a mount that a bug has left.
    subprocess.run(["rm", "-rf", "--one-file-system", str(place)], check=True)


@pytest.fixture
def box(place: Path, base: Path) -> Box:
    """A container to be: see `runtime.Box`."""
    import runtime

    return runtime.Box(place, base)


@pytest.fixture
def canary(place: Path) -> Path:
    """A directory of the host that nothing may change: see `runtime.host_same`."""
    import runtime

    return runtime.make_canary(place / "host")


# ---------------------------------------------------------------- nothing is left


def _cgroups() -> set[str]:
    found = set()
    for directory, _names, _files in os.walk(CGROUP):
        # The parent of all containers stays: making it anew each time would race.
        # Nor what another suite makes at this moment, in a group of its own.
        ours = "/minirun" in directory and "/tst-" not in directory
        if ours and directory != f"{CGROUP}/minirun":
            found.add(directory)
    return found


def _lines(*command: str) -> set[str]:
    if shutil.which(command[0]) is None:
        return set()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines())


def _mounts() -> set[str]:
    """Mount points, without the numbers that change when something else mounts."""
    found = set()
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        found.add(f"{fields[4]} {fields[fields.index('-') + 1]}")
    return found


def _processes() -> set[str]:
    """Processes below this one; orphans too, since this one adopts them (`pytest_configure`)."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                found.add(f"{child.pid} {child.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def pytest_configure() -> None:
    """Adopt the orphans of the tests: whatever is left then is below this process.

    Property tests try the same examples each time, so that a failure is the change's.
    """
    settings.register_profile(
        "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("repeatable")
    prctl.set_child_subreaper(True)
    # A shell without job control has what it starts beside itself ignore it, and all below that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _listing(path: str) -> set[str]:
    try:
        return {f"{path}/{name}" for name in os.listdir(path) if not name.startswith(".")}
    except FileNotFoundError:
        return set()


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def snapshot(*, rules: bool) -> dict[str, set[str]]:
    """What of the machine a test may leave behind; nft's `rules` take a process to look at."""
    return {
        "mount": _mounts(),
        "cgroup": _cgroups(),
        "link": _listing("/sys/class/net"),
        "nft table": _lines("nft", "list", "tables") if rules else set(),
        "network namespace": _listing("/run/netns"),
        "container": _listing("/run/minirun"),
        "process": _processes(),
        "descriptor": _descriptors(),
        "mask": {line for line in _read("/proc/self/status").splitlines() if "Umask" in line},
    }


def _left(before: dict[str, set[str]], *, rules: bool) -> dict[str, list[str]]:
    after = snapshot(rules=rules)
    left = {kind: sorted(after[kind] - before[kind]) for kind in before}
    return {kind: names for kind, names in left.items() if names}


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a privileged test that leaves a mount, cgroup, link, rule, state, fd or process."""
    if "privileged" not in str(request.node.path) or os.geteuid() != 0:
        yield
        return
    if "base" in request.fixturenames:
        request.getfixturevalue("base")  # what it makes stays for the others
    rules = "box" not in request.fixturenames  # a bundle of its own, without a network
    before = snapshot(rules=rules)
    yield
    told = _left(before, rules=rules)
    # What was killed as the test ended may take a moment to be gone.
    deadline = time.monotonic() + _PATIENCE
    while told and time.monotonic() < deadline:
        time.sleep(0.1)
        told = _left(before, rules=rules)
    if told:
        pytest.fail(f"left behind: {told}", pytrace=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many bundles were compared, where some were."""
    compared = sys.modules.get("differences")
    if compared is not None and compared.TALLY.bundles:
        terminalreporter.write_line(str(compared.TALLY))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what an emulated machine needs: less of the same, and sharing it with others."""
    parser.addoption("--every-case", action="store_true", help="in the VM too: all parameters")
    parser.addoption("--deal", metavar="HAND/HANDS", default="1/1", help="one machine's share")


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """The fast ones first; in the VM, which is emulated, some cases of each parametrised test.

    All cases run on the host, except those that only a machine of its own can have (`vm`).
    """
    items.sort(key=lambda item: bool(item.get_closest_marker("slow")))
    if os.environ.get("MINIRUN_MUST_WORK") == "vm" and not config.getoption("--every-case"):
        _keep(config, items, _thinned(items))
    hand, hands = (int(number) for number in config.getoption("--deal").split("/"))
    tests = collections.Counter(item.path.stem for item in items)
    mine = dealing.deal(tests, hands)[hand - 1]
    _keep(config, items, [item for item in items if item.path.stem in mine])


def _thinned(items: list[Any]) -> list[Any]:
    """The first cases of each test, and all that run nowhere else."""
    seen: collections.Counter[str] = collections.Counter()
    kept = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        if seen[function] <= _CASES or item.get_closest_marker("vm"):
            kept.append(item)
    return kept


def _keep(config: pytest.Config, items: list[Any], kept: list[Any]) -> None:
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept
