"""--systemd-cgroup against the real systemd; the witness is systemctl, cgroupfs and /proc."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import LIMIT, Box, alive, cgroup_of, good, read, until

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "systemd")]

MIB = 1 << 20


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def show(unit: str, *names: str) -> dict[str, str]:
    text = systemctl("show", unit, *[f"--property={name}" for name in names])
    return dict(line.split("=", 1) for line in text.splitlines())


def gone(unit: str) -> bool:
    return show(unit, "LoadState", "ActiveState") == {
        "LoadState": "not-found",
        "ActiveState": "inactive",
    }


@pytest.fixture
def sd(box: Box) -> Iterator[Box]:
    """A container for the systemd driver, whose unit must be gone in the end."""
    box.command = [*box.command, "--systemd-cgroup"]
    yield box
    box.delete("--force")
    assert gone(unit_of(box))


def unit_of(box: Box) -> str:
    path = box.linux.get("cgroupsPath") or f":runc:{box.id}"
    _, prefix, name = path.split(":")
    return f"{prefix}-{name}.scope"


def files(pid: int, *names: str) -> dict[str, str]:
    return {name: read(cgroup_of(pid) / name).strip() for name in names}


def test_a_scope_of_its_own(sd: Box) -> None:
    pid = sd.up()
    unit = unit_of(sd)
    assert str(cgroup_of(pid)) == f"/sys/fs/cgroup/system.slice/{unit}"
    assert show(unit, "ActiveState", "Slice", "Delegate", "Transient", "MemoryAccounting") == {
        "ActiveState": "active",
        "Slice": "system.slice",
        "Delegate": "yes",
        "Transient": "yes",
        "MemoryAccounting": "yes",
    }
    assert {"cpu", "memory", "pids", "io"} <= set(
        read(cgroup_of(pid) / "cgroup.controllers").split()
    )
    good(sd.delete("--force"))
    assert not alive(pid)
    assert gone(unit)
    assert not Path(f"/sys/fs/cgroup/system.slice/{unit}").exists()


def test_slices_by_dashes_and_annotations(sd: Box) -> None:
    sd.linux["cgroupsPath"] = f"minirun-test.slice:pre:{sd.id}"
    sd.config["annotations"] = {
        "org.systemd.property.TimeoutStopUSec": "uint64 12000000",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
    }
    pid = sd.up()
    unit = f"pre-{sd.id}.scope"
    place = f"/sys/fs/cgroup/minirun.slice/minirun-test.slice/{unit}"
    assert str(cgroup_of(pid)) == place
    assert show(unit, "TimeoutStopUSec", "CollectMode") == {
        "TimeoutStopUSec": "12s",
        "CollectMode": "inactive-or-failed",
    }
    good(sd.delete("--force"))
    systemctl("stop", "minirun.slice")


def test_a_slice_as_the_cgroup(sd: Box) -> None:
    name = sd.id.replace("-", "_")
    sd.linux["cgroupsPath"] = f"minirun.slice:pre:minirun-{name}.slice"
    pid = sd.up()
    assert str(cgroup_of(pid)).endswith(f"/minirun.slice/minirun-{name}.slice")
    good(sd.delete("--force"))
    # Every slice can be loaded; what counts is that it does not run.
    assert show(f"minirun-{name}.slice", "ActiveState") == {"ActiveState": "inactive"}
    systemctl("stop", "minirun.slice")
    del sd.linux["cgroupsPath"]


RESOURCES: dict[str, Any] = {
    "memory": {"limit": 64 * MIB, "reservation": 32 * MIB},
    "cpu": {"shares": 512, "quota": 12345, "period": 100000, "cpus": "0"},
    "pids": {"limit": 77},
    "unified": {"memory.high": str(48 * MIB), "memory.oom.group": "1"},
    "devices": [{"allow": False, "access": "rwm"}],
}


def test_limits_in_the_files_and_in_the_unit(sd: Box) -> None:
    sd.linux["resources"] = RESOURCES
    pid = sd.up()
    expected = {
        "memory.max": str(64 * MIB),
        "memory.low": str(32 * MIB),
        "memory.high": str(48 * MIB),
        "memory.oom.group": "1",
        "cpu.max": "12345 100000",
        "cpuset.cpus": "0",
        "pids.max": "77",
    }
    assert files(pid, *expected) == expected
    told = show(
        unit_of(sd), "MemoryMax", "MemoryLow", "MemoryHigh", "TasksMax", "CPUWeight", "AllowedCPUs",
        "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "DevicePolicy",
    )  # fmt: skip
    assert told == {
        "MemoryMax": str(64 * MIB),
        "MemoryLow": str(32 * MIB),
        "MemoryHigh": str(48 * MIB),
        "TasksMax": "77",
        "CPUWeight": read(cgroup_of(pid) / "cpu.weight").strip(),
        "AllowedCPUs": "0",
        "CPUQuotaPerSecUSec": "130ms",
        "CPUQuotaPeriodUSec": "100ms",
        "DevicePolicy": "strict",
    }


def test_the_defaults_can_be_opened_and_no_disk(sd: Box) -> None:
    sd.linux["resources"] = RESOURCES
    assert sd.sh("head -c 1 /dev/zero | wc -c; echo x >/dev/null; tty <&- ; echo ok").endswith("ok")
    sd.linux["resources"] = {"devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"},
        {"allow": True, "type": "b", "major": 7, "access": "r"},
    ]}  # fmt: skip
    sd.up()
    allowed = show(unit_of(sd), "DeviceAllow")["DeviceAllow"]
    assert (
        "/dev/char/10:200 rw" in systemctl("show", unit_of(sd), "--property=DeviceAllow") + allowed
    )


def test_an_update_outlives_a_daemon_reload(sd: Box) -> None:
    sd.linux["resources"] = RESOURCES
    pid = sd.up()
    good(sd.call("update", "--memory", "96m", "--pids-limit", "55", "--cpu-quota", "20000", sd.id))
    good(sd.call("update", "--cpu-share", "2048", sd.id))
    weight = read(cgroup_of(pid) / "cpu.weight").strip()
    expected = {
        "memory.max": str(96 * MIB),
        "memory.low": str(32 * MIB),
        "cpu.max": "20000 100000",
        "cpu.weight": weight,
        "pids.max": "55",
    }
    assert files(pid, *expected) == expected
    assert show(unit_of(sd), "MemoryMax", "TasksMax", "CPUWeight") == {
        "MemoryMax": str(96 * MIB),
        "TasksMax": "55",
        "CPUWeight": weight,
    }
    systemctl("daemon-reload")
    # A change of the unit has systemd write everything again.
    systemctl("set-property", "--runtime", unit_of(sd), "MemoryMin=1M")
    assert files(pid, *expected) == expected


def test_an_update_that_fails_is_taken_back_there_too(sd: Box) -> None:
    sd.linux["resources"] = RESOURCES
    pid = sd.up()
    before = files(pid, "memory.max", "pids.max", "cpuset.cpus")
    changes = {"pids": {"limit": 9}, "cpu": {"cpus": "4000"}}
    done = sd.call("update", "-r", str(_json(sd, changes)), sd.id)
    assert done.code == 1
    assert "cpuset.cpus" in done.err
    assert files(pid, *before) == before
    assert show(unit_of(sd), "TasksMax", "AllowedCPUs") == {"TasksMax": "77", "AllowedCPUs": "0"}


def _json(box: Box, value: object) -> Path:
    path = box.place / "resources.json"
    path.write_text(json.dumps(value))
    return path


def test_the_verbs_of_a_running_container(sd: Box) -> None:
    pid = sd.up()
    assert sd.state()["status"] == "running"
    assert sd.exec("/bin/cat", "/proc/self/cgroup").out.strip().endswith(unit_of(sd))
    good(sd.call("pause", sd.id))
    assert sd.state()["status"] == "paused"
    assert files(pid, "cgroup.freeze") == {"cgroup.freeze": "1"}
    systemctl("daemon-reload")
    assert files(pid, "cgroup.freeze") == {"cgroup.freeze": "1"}
    good(sd.call("resume", sd.id))
    assert json.loads(good(sd.call("ps", "--format", "json", sd.id)).out) == [pid]
    good(sd.call("kill", sd.id, "KILL"))
    until(lambda: sd.state()["status"] == "stopped")
    good(sd.delete())
    assert gone(unit_of(sd))


def test_a_run_leaves_no_unit(sd: Box) -> None:
    assert sd.sh("cat /proc/self/cgroup").endswith(unit_of(sd))
    assert gone(unit_of(sd))
    # The name is free at once.
    assert sd.sh("echo again") == "again"


def test_a_failed_create_leaves_no_unit(sd: Box) -> None:
    sd.process["args"] = ["/nowhere"]
    sd.refused("no such file")
    assert gone(unit_of(sd))
    sd.process["args"] = ["/bin/true"]
    sd.linux["resources"] = {"memory": {"limit": 64 * MIB}, "unified": {"memory.max": "much"}}
    sd.refused("memory.max")
    assert gone(unit_of(sd))


def test_a_property_that_systemd_does_not_know(sd: Box) -> None:
    sd.config["annotations"] = {"org.systemd.property.NoSuchThing": "true"}
    message = sd.refused("NoSuchThing", "nosuchthing")
    assert f'unable to start unit "{unit_of(sd)}"' in message
    assert gone(unit_of(sd))


def test_a_unit_of_that_name_is_not_taken(sd: Box) -> None:
    unit = unit_of(sd)
    holder = subprocess.Popen(
        ["systemd-run", "--quiet", "--scope", f"--unit={unit}", "sleep", "600"]
    )
    try:
        until(lambda: show(unit, "ActiveState")["ActiveState"] == "active")
        sd.refused(f'unable to start unit "{unit}"')
        assert holder.poll() is None
    finally:
        systemctl("stop", unit)
        holder.wait(LIMIT)


@pytest.mark.parametrize(
    "path", ["/a/b", "a.slice:b", "nope:p:n", "a--b.slice:p:n", "a.slice:p:x y"]
)
def test_paths_that_are_refused(sd: Box, path: str) -> None:
    sd.linux["cgroupsPath"] = path
    sd.refused("linux.cgroupsPath")
    del sd.linux["cgroupsPath"]


def test_oom_in_a_scope(sd: Box) -> None:
    """Systemd notices it too, and the unit goes all the same."""
    sd.linux["resources"] = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}
    sd.process["args"] = ["/bin/busybox", "tail", "/dev/zero"]
    assert sd.run().code == 137
    assert gone(unit_of(sd))


def test_the_plan_names_the_unit(sd: Box) -> None:
    sd.process["args"] = ["/bin/true"]
    sd.write()
    plan = good(sd.call("plan", "--bundle", str(sd.bundle))).out
    assert (
        f"StartTransientUnit(runc-{sd.bundle.name}.scope, Slice=system.slice, Delegate=yes)" in plan
    )
    assert "sync.await_scope" in plan


def test_the_plans_script_makes_a_scope(sd: Box) -> None:
    name = sd.bundle.name
    sd.linux["cgroupsPath"] = f"system.slice:plan:{name}"
    sd.process["args"] = ["/bin/cat", "/proc/self/cgroup"]
    sd.write()
    script = sd.place / "plan.sh"
    script.write_text(good(sd.call("plan", "--shell", "--bundle", str(sd.bundle))).out)
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"0::/system.slice/plan-{name}.scope", done
    assert done.returncode == 0, done
    until(lambda: gone(f"plan-{name}.scope"))
    del sd.linux["cgroupsPath"]


def test_flags_of_run_with_a_scope(sd: Box) -> None:
    """`run --rootfs` writes a path of this form itself."""
    words = ("run", "--rootfs", str(sd.rootfs), "--memory", "32m", sd.id, "cat", "/proc/1/cgroup")
    done = good(sd.call(*words))
    assert done.out.strip() in ("0::/", f"0::/system.slice/minirun-{sd.id}.scope")
    assert gone(f"minirun-{sd.id}.scope")
