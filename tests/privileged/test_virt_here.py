"""`virt` on this machine: its guests, what it starts and asks, and what it says in a container.

Witnesses: strace, /proc/misc, KVM's own statistics, the container's namespaces.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import CHECKOUT, call, command

from minirun.kernel import kvm
from minirun.virt import child, guest, kvmdevice

if TYPE_CHECKING:
    from runtime import Box, Done

pytestmark = pytest.mark.requires("root")

STATUSES = {0, 10, 11, 12, 13, 14}


def virt(*words: str, before: tuple[str, ...] = ()) -> Done:
    return call([*before, *command(), "virt", *words])


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(virt("--json", *words).out)
    return found


def test_the_report() -> None:
    done = virt()
    assert done.code in STATUSES
    assert done.out.startswith("minirun virt") and not done.err
    for heading in ("VERDICT", "WHERE", "HOSTING", "RISKS"):
        assert f"\n{heading}" in done.out


@pytest.mark.requires("strace")
def test_no_program_is_started_and_no_network_asked(place: Path) -> None:
    log = place / "calls"
    trace = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=execve,execveat,socket,connect")
    assert virt(before=trace).code in STATUSES
    calls = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    made = [(pid, line) for pid, line in calls if not line.startswith(("---", "+++"))]
    # The command itself, perhaps by env(1): one process, that has begun no other program.
    assert {pid for pid, _ in made} == {made[0][0]}
    assert all(line.startswith("execve(") and "python" in line for _, line in made[1:]), made
    assert len(made) <= 2


@pytest.mark.requires("setpriv")
def test_a_user_is_told_as_much_as_a_user_may_read() -> None:
    """Anybody may run it; root's parts are unknown, and the answers do not change."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if call([*user, "test", "-r", command()[0], "-a", "-r", str(above(command()))]).code:
        pytest.skip("the checkout is closed to other users")
    theirs, ours = virt("--json", before=user), document()
    assert not theirs.err
    facts = json.loads(theirs.out)["facts"]
    for name, fact in facts.items():
        mine = ours["facts"].get(name, {}).get("value")
        if isinstance(fact["value"], bool) and mine is not None:
            assert fact["value"] == mine, name
    assert facts["machine.virtual"]["value"] == ours["facts"]["machine.virtual"]["value"]


@pytest.mark.requires("kvm")
def test_the_guests_run_and_say_so() -> None:
    found = child.run([kvmdevice.look, guest.run_all])
    assert (found["open"], found["api"], found["vm"], found["vcpu"]) == ("ok", 12, "ok", "ok")
    modes = found["probe"]["modes"]
    assert {mode: modes[mode]["exit"] for mode in modes} == {
        "real": "IO",
        "ring0": "MMIO",
        "ring3": "MMIO",
    }
    assert all(told["ran"] for told in modes.values())


@pytest.mark.requires("kvm")
def test_a_guest_that_does_something_else_is_not_taken_for_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The value that leaves the guest is its own: another one, or another port, is no proof."""
    monkeypatch.setattr(guest, "_REAL", bytes.fromhex("6649 75fc b8736d e780 f4 ebfd"))
    monkeypatch.setattr(guest, "_LONG", bytes.fromhex("0f0b"))  # ud2: a triple fault
    found = child.run([guest.run_all])["probe"]["modes"]
    assert {mode: told["ran"] for mode, told in found.items()} == dict.fromkeys(found, False)
    assert found["real"]["exit"] == "IO" and found["ring0"]["exit"] == "SHUTDOWN"


@pytest.mark.requires("kvm")
def test_a_guest_that_never_leaves_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_LONG", bytes.fromhex("ebfe"))  # jmp to itself
    for limit in (1, 5, 25):  # seconds: the one before it takes its time on a busy machine
        found = child.run([guest.run_all], limit=limit)
        assert found["ended"] == f"was killed after {limit} s"
        if "ring0" in found.get("probe", {}).get("modes", {}):
            break
    assert found["probe"]["modes"]["real"]["ran"]
    assert found["probe"]["modes"]["ring0"] == {"tried": True}


@pytest.mark.requires("kvm")
def test_the_statistics_count() -> None:
    """Of a machine that was only made nothing has been counted, and the names are KVM's."""
    device = kvm.open_device()
    machine = kvm.create_vm(device)
    cpu = kvm.create_vcpu(machine)
    try:
        counted = kvm.stats(cpu)
        assert counted["exits"] == 0 and "insn_emulation" in counted
    finally:
        for fd in (cpu, machine, device):
            os.close(fd)


# ---------------------------------------------------------------- in a container


def above(words: list[str]) -> Path:
    """Where the runtime under test is installed, else the checkout."""
    return CHECKOUT if "-c" in words else Path(words[0]).parent.parent


def with_python(box: Box) -> None:
    """Put the host's interpreter and minirun where they are on the host."""
    ours = str(above(command()))
    for path in dict.fromkeys(("/usr", "/lib", "/lib64", sys.prefix, ours)):
        if os.path.isdir(path):
            box.mount(path, os.path.realpath(path), "rbind", "ro")


@pytest.mark.requires("programs")
def test_in_a_container(box: Box) -> None:
    with_python(box)
    box.process["args"] = [*command(), "virt", "--json"]
    done = box.run()
    found = json.loads(done.out)
    assert found["layers"][0]["kind"] == "container"
    assert found["layers"][-1]["kind"] == document()["layers"][-1]["kind"]
    assert found["facts"]["container.inside"]["value"] is True
    box.process["args"] = [*command(), "virt", "--is", "container"]
    assert box.run().code == 0
    # The tests have a mount namespace: with a marker left over, and root kept from process 1, that
    # can be unknown.
    assert virt("--is", "container").code in (1, 14)


@pytest.mark.requires("programs", "kvm", "cgroup2")
def test_in_a_container_that_has_the_device(box: Box) -> None:
    with_python(box)
    box.process["args"] = [*command(), "virt", "--json"]
    without = json.loads(box.run().out)["verdict"]
    assert (without["code"], without["fixes"][0]["id"]) == ("NODE_MISSING", "allow_device")
    box.linux["devices"] = [
        {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232, "fileMode": 0o600}
    ]
    filtered = json.loads(box.run().out)["verdict"]
    assert filtered["code"] == "PERM_CGROUP"
    allowed = {"allow": True, "type": "c", "major": 10, "minor": 232, "access": "rw"}
    box.linux["resources"] = {"devices": [allowed]}
    verdict = json.loads(box.run().out)["verdict"]
    assert verdict["code"] == document()["verdict"]["code"]
