"""What minirun promises a person, measured by the kernel's own figures on a machine of its own.

Witnesses: the cgroup's files read from the host, /proc/PID, the container's own output, podman.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

import pytest
from runtime import command, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs")]

LIMIT = 120  # seconds for any command; under emulation a container takes two
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
SPARE = "/mnt/spare"  # the virtual machine's second disk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with Alpine in it."""
    place = tmp_path_factory.mktemp("data")
    place.chmod(0o755)
    for parent in place.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    call("rootfs", "import", os.environ["MINIRUN_ROOTFS_TARBALL"], "--name", "alpine", data=place)
    return place


def call(*words: str, data: Path, code: int = 0) -> str:
    """Call minirun with this data directory; return what it wrote to both streams.

    Checks the exit status.
    """
    done = subprocess.run(
        [*command(), *words],
        env={**os.environ, "MINIRUN_DATA": str(data)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run(cid: str, *words: str, data: Path, code: int = 0, flags: tuple[str, ...] = ()) -> str:
    """Run a command in a foreground container of Alpine."""
    return call("run", "--rootfs", "alpine", *flags, cid, *words, data=data, code=code)


@contextlib.contextmanager
def detached(cid: str, *words: str, data: Path, flags: tuple[str, ...] = ()) -> Iterator[int]:
    """Run a command in a detached container; yields its pid."""
    run(cid, *words, data=data, flags=(*flags, "-d"))
    try:
        yield int(call("ps", "--format", "json", cid, data=data).strip("[]\n").split(",")[0])
    finally:
        call("delete", "--force", cid, data=data)


def group(pid: int) -> str:
    """The cgroup directory of a process, as the kernel has it."""
    with open(f"/proc/{pid}/cgroup") as file:
        return "/sys/fs/cgroup" + file.read().strip().removeprefix("0::")


def figure(directory: str, file: str, key: str = "") -> int:
    """A number of a cgroup file, of the line `key` if given."""
    with open(f"{directory}/{file}") as opened:
        for line in opened:
            words = line.split()
            if not key or words[0] == key:
                return int(words[-1])
    raise KeyError(key)


def test_oom_kill_is_told(data: Path) -> None:
    script = "cat /sys/fs/cgroup/memory.max; exec tail /dev/zero"
    told = run("oom", "sh", "-c", script, data=data, code=137, flags=("--memory", "64m"))
    assert str(64 << 20) in told.splitlines()
    assert "OOM-killed" in told
    assert "64 MiB" in told


def test_cpus_hold(data: Path) -> None:
    flags = ("--cpus", "0.5")
    with detached("half", "sh", "-c", "while :; do :; done", data=data, flags=flags) as pid:
        # A machine that its own host lets wait in the middle of it is measured again; more than
        # its share the container never has.
        shares = [share_of(group(pid))]
        while shares[-1] < 0.475 and len(shares) < 4:
            shares.append(share_of(group(pid)))
    assert max(shares) <= 0.525, shares
    assert shares[-1] >= 0.475, shares


def share_of(where: str) -> float:
    """Measure for 10 s which part of a processor's time a group has."""
    began, before = time.monotonic(), figure(where, "cpu.stat", "usage_usec")
    time.sleep(10)
    used = figure(where, "cpu.stat", "usage_usec") - before
    share = used / (time.monotonic() - began) / 1e6
    print(f"--cpus 0.5: {share:.3f} of a processor over 10 s")
    return share


def test_pids_limit_stops_a_fork_bomb(data: Path) -> None:
    bomb = "b() { b | b & }; b; sleep 600"
    with detached("bomb", "sh", "-c", bomb, data=data, flags=("--pids-limit", "32")) as pid:
        where = group(pid)
        until(lambda: figure(where, "pids.events", "max"))
        assert (
            figure(where, "pids.peak" if os.path.exists(f"{where}/pids.peak") else "pids.current")
            <= 32
        )
        # The host can still make processes, many more than the container may.
        waiting = [subprocess.Popen(["sleep", "30"]) for _ in range(40)]
        for process in waiting:
            process.kill()
            process.wait(LIMIT)


def test_device_write_bps_holds(data: Path) -> None:
    rate = 2 << 20
    flags = ("--device-write-bps", f"{SPARE}:2mb", "-v", f"{SPARE}:/spare")
    # As long as it is measured, whenever that is.
    write = "dd if=/dev/zero of=/spare/shown bs=256k count=64 oflag=direct conv=notrunc 2>/dev/null"
    script = f"while :; do {write}; done"
    try:
        with detached("slow", "sh", "-c", script, data=data, flags=flags) as pid:
            disk = os.stat(f"{SPARE}").st_dev
            with open(f"{group(pid)}/io.max") as file:
                limits = file.read()
            assert f"{os.major(disk)}:{os.minor(disk)}" in limits
            assert f"wbps={rate}" in limits
            speeds = [speed_of(group(pid))]
            while speeds[-1] < rate * 0.5 and len(speeds) < 4:
                speeds.append(speed_of(group(pid)))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{SPARE}/shown")
    assert max(speeds) < rate * 1.15, speeds
    assert speeds[-1] >= rate * 0.5, speeds


def speed_of(where: str) -> float:
    """Measure for 5 s how many bytes a group writes in a second."""
    began, first = time.monotonic(), _written(where)
    time.sleep(5)
    speed = (_written(where) - first) / (time.monotonic() - began)
    print(f"--device-write-bps 2mb: {speed / (1 << 20):.2f} MiB/s over 5 s")
    return speed


def _written(directory: str) -> int:
    with open(f"{directory}/io.stat") as file:
        fields = [word for line in file for word in line.split() if word.startswith("wbytes=")]
    return sum(int(word.partition("=")[2]) for word in fields)


def test_all_eight_namespaces_differ(data: Path) -> None:
    with detached("apart", "sleep", "600", data=data) as pid:
        inside = {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in NAMESPACES}
    ours = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES}
    print("namespaces:", inside)
    assert all(inside[name] != ours[name] for name in NAMESPACES)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ((), "cap_chown cap_dac_override cap_fowner cap_fsetid cap_kill cap_setgid cap_setuid "
             "cap_setpcap cap_net_bind_service"),
        (("--cap-drop", "ALL", "--cap-add", "NET_RAW"), "cap_net_raw"),
        (("--cap-drop", "ALL"), ""),
    ],
)  # fmt: skip
def test_capability_sets(data: Path, flags: tuple[str, ...], names: str) -> None:
    with detached("caps", "sleep", "600", data=data, flags=flags) as pid:
        with open(f"/proc/{pid}/status") as file:
            sets = {
                line.split()[0][3:-1]: line.split()[1] for line in file if line.startswith("Cap")
            }
    # capsh(1) of the host decodes what the kernel has.
    decoded = subprocess.run(
        ["capsh", f"--decode={sets['Bnd']}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print("capsh:", decoded)
    assert set(decoded.partition("=")[2].replace(",", " ").split()) == set(names.split())
    assert sets["Eff"] == sets["Prm"] == sets["Bnd"]
    assert int(sets["Inh"], 16) == int(sets["Amb"], 16) == 0


@pytest.mark.requires("podman")
def test_podman_runs_by_minirun() -> None:
    # podman takes no more than 50 characters.
    place = tempfile.mkdtemp(prefix="podman-", dir="/var/tmp")
    root = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run"]
    base = [*root, "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    image = os.environ["MINIRUN_ROOTFS_TARBALL"]
    done = subprocess.run(
        [*base, "import", image, "alpine"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    try:
        done = subprocess.run(
            [*base, "--runtime", command()[0], "run", "--rm", "--network", "none", "alpine",
             "echo", "by minirun"],
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "by minirun\n"), done.stderr
    finally:
        subprocess.run([*base, "system", "reset", "--force"], capture_output=True, check=False)
        shutil.rmtree(place, ignore_errors=True)
