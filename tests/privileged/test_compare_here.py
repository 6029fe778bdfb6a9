"""`compare` on this machine, its CPU emulated: what it measured, and that nothing of it stays.

Witnesses: /proc, the listing of /run, the containers' directory, the JSON against itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import psutil
import pytest
from runtime import call, command, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.requires("root", "qemu")]

LIMIT = 600  # seconds; a quiet machine takes 20
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


@pytest.fixture
def data(place: Path) -> dict[str, str]:
    """An environment with a data directory that has a root filesystem of busybox."""
    place.chmod(0o711)
    environment = {**os.environ, "MINIRUN_DATA": str(place / "data")}
    assert call([*command(), "rootfs", "build", "busybox"], env=environment).code == 0
    return environment


def words(*more: str) -> list[str]:
    kernel = os.environ["MINIRUN_TEST_KERNEL"]
    return [*command(), "compare", "--quick", "--accel", "tcg", "--kernel", kernel, *more]


def left(environment: dict[str, str]) -> list[str]:
    """List what a comparison leaves behind, if it does."""
    containers = Path(environment["MINIRUN_DATA"], "containers")
    names = [path for path in Path("/run").iterdir() if path.name.startswith("minirun-compare-")]
    names += list(containers.iterdir()) if containers.is_dir() else []
    names += Path(environment["MINIRUN_DATA"]).glob("minirun-compare-*")
    return [*map(str, names), *machines()]


def machines() -> Iterator[str]:
    """Find the virtual machines of comparisons."""
    for process in psutil.process_iter(["cmdline"]):
        if any("rdinit=/minirun-compare-init" in word for word in process.info["cmdline"] or ()):
            yield f"process {process.pid}"


def test_both_sides_are_measured(place: Path, data: dict[str, str]) -> None:
    files = (place / "found.json", place / "found.svg")
    more = ("--json", str(files[0]), "--chart", str(files[1]))
    before = set(left(data))
    done = call(words(*more), limit=LIMIT, env=data)
    assert done.code == 0, done
    assert set(left(data)) == before
    found: dict[str, Any] = json.loads(files[0].read_text())
    told = "emulated CPU (TCG): not what a VM costs"
    assert found["machine"]["label"] == told
    assert told in done.out and told in files[1].read_text()
    ElementTree.fromstring(files[1].read_text())

    storage = found["storage"]
    without = {"write", "read", "sync"} if storage["not_compared"] else set()
    assert storage["device"] in ("virtio-blk", "NVMe") or without
    for row in [*found["starting"], *found["working"]]:
        if row["key"] not in without:
            assert row["container"] and row["vm"], row
            assert row["container"]["minimum"] > 0 and row["vm"]["minimum"] > 0, row
    assert all(row["agrees"] for row in found["working"] if row["key"] not in without)
    start = {row["key"]: row for row in found["starting"]}
    assert start["payload"]["vm"]["median"] >= start["first"]["vm"]["median"]
    assert set(found["phases"]) and all(min(times) >= 0 for times in found["phases"].values())

    facts = found["isolation"]
    release = os.uname().release
    assert facts["kernel"]["container"] == f"the host's (Linux {release})"
    assert facts["kernel"]["vm"].startswith("its own (Linux ")
    here = [name for name in NAMESPACES if os.path.exists(f"/proc/self/ns/{name}")]
    assert facts["namespaces"]["container"].startswith(f"{len(here)} of {len(here)}")
    assert facts["namespaces"]["vm"].startswith("0 of ")
    assert facts["user"]["container"] not in ("0 (root)", "unknown")
    assert facts["processes"]["container"] == "1"
    passed, _, known = facts["syscalls"]["container"].partition(" of ")
    assert 100 < int(passed) < int(known)
    assert found["machine"]["kernel_bytes"] == os.stat(os.environ["MINIRUN_TEST_KERNEL"]).st_size


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("starting: container 1", signal.SIGINT),
        ("starting: machine 1", signal.SIGINT),
        ("working: container", signal.SIGTERM),
        ("working: machine", signal.SIGINT),
        ("memory: vm 1", signal.SIGHUP),
    ],
)
def test_nothing_is_left_when_it_is_stopped(
    stage: str, number: signal.Signals, data: dict[str, str]
) -> None:
    before = set(left(data))
    with started(
        words(), env=data, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any(stage in line for line in process.stderr)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(LIMIT) == 128 + number
    assert "Traceback" not in rest
    assert set(left(data)) == before


def test_a_machine_ends_with_the_one_who_measures(data: dict[str, str]) -> None:
    """SIGKILL cannot be caught; the kernel then ends QEMU (PR_SET_PDEATHSIG)."""
    before = set(machines())
    others = set(Path("/run").glob("minirun-compare-*"))
    with started(
        words(), env=data, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any("starting: machine 1" in line for line in process.stderr)
        process.kill()
    (place,) = set(Path("/run").glob("minirun-compare-*")) - others
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()
    until(lambda: set(machines()) <= before)


def test_what_is_wrong_is_said_before_anything_is_started(
    place: Path, data: dict[str, str]
) -> None:
    before = set(left(data))
    no_kernel = place / "kernel"
    no_kernel.write_text("no kernel")
    for more, message in (
        (("--kernel", str(no_kernel)), "not a bootable image"),
        (("--kernel", "/none"), "kernel /none: no such file or directory"),
        (("--rootfs", "none"), "root filesystem none does not exist"),
        (("--chart", "x.gif"), "must end in .svg or .png"),
        (("--json", "/none/x"), "flag --json /none/x"),
    ):
        done = call(words(*more), env=data)
        assert done.code == 1 and message in done.err and "compare:" not in done.err
    assert set(left(data)) == before


@pytest.mark.requires("setpriv")
def test_a_user_is_told_that_it_needs_root() -> None:
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = call([*user, *command(), "compare"])
    if "Permission denied" in done.err or "No module" in done.err:
        pytest.skip("the checkout is closed to other users")
    assert done.code == 1 and "compare needs root" in done.err
