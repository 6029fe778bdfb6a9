"""config.json as `run --rootfs` writes it, value by value."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

from minirun import jsontext, mountoptions, options
from minirun.cgroups.hierarchy import Hierarchy
from minirun.engine import config, defaults, environment, limits
from minirun.engine.config import Place, document
from minirun.engine.request import Request
from minirun.engine.users import Account
from minirun.errors import MinirunError, UsageError
from minirun.spec import Spec

START = 524288
NINE = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
]  # fmt: skip


@pytest.fixture(autouse=True)
def unified(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Hierarchy("/sys/fs/cgroup", "unified", ("cpu", "io", "memory", "pids"))
    monkeypatch.setattr(limits, "hierarchy", lambda: tree)


def written(
    *flags: str, command: tuple[str, ...] = (), start: int | None = START, cid: str = "web"
) -> dict[str, Any]:
    request = Request(options.parse(["run", "--rootfs", "alpine", *flags, cid]), cid, command)
    place = Place("/data/containers/web", "/data/rootfs/alpine/rootfs", start)
    return document(request, place, Account(0, 0, (), "/root"))


def namespaces(found: dict[str, Any]) -> dict[str, str | None]:
    return {entry["type"]: entry.get("path") for entry in found["linux"]["namespaces"]}


def mount_at(found: dict[str, Any], target: str) -> dict[str, Any]:
    (entry,) = [entry for entry in found["mounts"] if entry["destination"] == target]
    return dict(entry)


def test_the_process() -> None:
    process = written()["process"]
    assert process["args"] == ["/bin/sh"]
    assert process["cwd"] == "/"
    assert process["terminal"] is False
    assert process["noNewPrivileges"] is True
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022, "additionalGids": []}
    assert process["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "HOSTNAME=web",
    ]
    assert process["capabilities"] == {
        "bounding": NINE, "effective": NINE, "permitted": NINE, "inheritable": [], "ambient": [],
    }  # fmt: skip
    assert process["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    assert "apparmorProfile" not in process
    assert "oomScoreAdj" not in process


def test_flags_of_the_process() -> None:
    found = written(
        "-t", "-w", "/srv", "-e", "A=1", "--oom-score-adj", "-5", "--security-opt",
        "apparmor=mine", "--security-opt", "no-new-privileges=false", command=("httpd", "-f"),
    )  # fmt: skip
    process = found["process"]
    assert process["args"] == ["httpd", "-f"]
    assert process["cwd"] == "/srv"
    assert process["terminal"] is True
    assert "A=1" in process["env"]
    assert any(entry.startswith("TERM=") for entry in process["env"])
    assert process["oomScoreAdj"] == -5
    assert process["apparmorProfile"] == "mine"
    assert process["noNewPrivileges"] is False


def test_a_terminal_name_that_is_none_does_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm\x1b[31m")
    assert "TERM=xterm" in written("-t")["process"]["env"]


def test_root_and_annotations() -> None:
    found = written()
    assert found["root"] == {"path": "rootfs", "readonly": False}
    assert written("--read-only")["root"]["readonly"] is True
    assert found["hostname"] == "web"
    assert found["annotations"] == {
        "run.minirun.managed": "true",
        "run.minirun.rootfs": "/data/rootfs/alpine/rootfs",
    }
    assert "hooks" not in found


def test_all_namespaces_are_the_containers_own() -> None:
    names = ("mount", "pid", "ipc", "uts", "cgroup", "time", "user", "network")
    assert namespaces(written()) == dict.fromkeys(names)


def test_the_user_namespace_maps_the_leased_range() -> None:
    linux = written()["linux"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": START, "size": 65536}]
    assert linux["gidMappings"] == linux["uidMappings"]
    shared = written(start=None)
    assert "user" not in namespaces(shared)
    assert "uidMappings" not in shared["linux"]


def test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "network" not in namespaces(written("--network", "host"))
    joined = written("--network", "ns:/proc/self/ns/net")
    assert namespaces(joined)["network"] == "/proc/self/ns/net"
    monkeypatch.setattr(config, "executable", lambda: "/usr/local/bin/minirun")
    bridged = written("--network", "bridge", "-p", "8080:80")
    assert namespaces(bridged)["network"] is None
    assert bridged["hooks"]["createRuntime"][0]["path"] == "/usr/local/bin/minirun"
    assert bridged["hooks"]["poststop"]
    assert '"hostPort":8080' in str(bridged["hooks"]["createRuntime"][0]["args"])


@pytest.mark.parametrize(
    ("flags", "start", "kind"),
    [
        ((), START, "sysfs"),
        (("--network", "host"), None, "sysfs"),
        (("--network", "host"), START, "bind"),
        (("--network", "ns:/proc/self/ns/net"), START, "bind"),
    ],
)
def test_sys_is_read_only_however_it_comes(
    flags: tuple[str, ...], start: int | None, kind: str
) -> None:
    entry = mount_at(written(*flags, start=start), "/sys")
    assert entry["type"] == kind
    assert {"ro", "nosuid", "noexec", "nodev"} <= set(entry["options"])
    assert kind == "sysfs" or {"rbind", "rro"} <= set(entry["options"])


def test_the_file_systems_of_every_container() -> None:
    found = written("--shm-size", "1m")
    order = [entry["destination"] for entry in found["mounts"]]
    assert order == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup",
    ]  # fmt: skip
    for entry in found["mounts"]:
        assert "nosuid" in entry["options"]
        assert entry["destination"] in ("/dev", "/dev/pts") or "nodev" in entry["options"]
    assert {"ptmxmode=0666", "mode=0620", "gid=5", "newinstance"} <= set(
        mount_at(found, "/dev/pts")["options"]
    )
    assert "size=1048576" in mount_at(found, "/dev/shm")["options"]
    assert "ro" in mount_at(found, "/sys/fs/cgroup")["options"]


def test_what_is_asked_for_replaces_what_is_ours(tmp_path: Path) -> None:
    found = written("--tmpfs", "/dev/shm:size=1m", "-v", f"{tmp_path}:/data", start=START)
    assert "size=1048576" in mount_at(found, "/dev/shm")["options"]
    volume = mount_at(found, "/data")
    assert volume["uidMappings"] == found["linux"]["uidMappings"]
    assert "uidMappings" not in mount_at(written("-v", f"{tmp_path}:/d", start=None), "/d")


@pytest.mark.parametrize(
    "path",
    ["/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/sysrq-trigger", "/proc/interrupts",
     "/proc/timer_list", "/proc/acpi", "/sys/firmware", "/sys/devices/virtual/powercap",
     "/sys/kernel/debug", "/sys/fs/bpf", "/sys/module"],
)  # fmt: skip
def test_hidden_paths(path: str) -> None:
    assert path in written()["linux"]["maskedPaths"]


def test_read_only_paths() -> None:
    assert set(written()["linux"]["readonlyPaths"]) == {
        "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
    }  # fmt: skip


def test_devices_are_denied_but_for_the_harmless() -> None:
    rules = written()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert all(rule["allow"] and rule["access"] == "rw" for rule in rules[1:])
    numbers = {(rule["type"], rule["major"], rule.get("minor")) for rule in rules[1:]}
    assert numbers == {
        ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 1),
        ("c", 5, 2), ("c", 136, None),
    }  # fmt: skip


def test_a_device_is_a_node_or_in_a_user_namespace_a_bind() -> None:
    flags = ("--device", "/dev/zero:/dev/nothing:r")
    rule = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}
    shared = written(*flags, start=None)
    assert shared["linux"]["resources"]["devices"][-1] == rule
    (node,) = shared["linux"]["devices"]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/nothing", "c", 1, 5)
    own = written(*flags)
    assert own["linux"]["resources"]["devices"][-1] == rule
    assert "devices" not in own["linux"]
    assert mount_at(own, "/dev/nothing")["source"] == "/dev/zero"


def test_limits_hold_by_default() -> None:
    resources = written()["linux"]["resources"]
    assert resources["pids"] == {"limit": 1024}
    assert resources["memory"] == {"limit": defaults.memory_total() // 2}
    assert resources["unified"] == {"memory.oom.group": "1"}
    assert written()["linux"]["cgroupsPath"] == "/minirun/web"


def test_seccomp_is_on_unless_refused(tmp_path: Path) -> None:
    assert written()["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "seccomp" not in written("--security-opt", "seccomp=unconfined")["linux"]
    (tmp_path / "p.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    chosen = written("--security-opt", f"seccomp={tmp_path}/p.json")
    assert chosen["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_LOG"}


def test_init_stands_before_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "catatonit"
    program.touch(0o755)
    monkeypatch.setattr(environment, "INITS", ("/absent", str(program)))
    found = written("--init", command=("top",))
    assert found["process"]["args"] == ["/dev/init", "--", "top"]
    entry = mount_at(found, "/dev/init")
    assert entry["source"] == str(program)
    assert {"bind", "ro"} <= set(entry["options"])
    monkeypatch.setattr(environment, "INITS", ("/absent",))
    with pytest.raises(MinirunError, match="no static init"):
        written("--init")


def test_nobody_outside_the_range() -> None:
    config.check_ids(Account(65535, 65535), START)
    config.check_ids(Account(65536, 0), None)
    for account in (Account(65536, 0), Account(0, 65536)):
        with pytest.raises(UsageError, match="not in the container's user namespace"):
            config.check_ids(account, START)
    account = Account(0, 0, (5, 70000))
    config.check_ids(account, START)
    assert account.groups == (5,)


def test_a_hook_needs_an_installed_minirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "minirun"
    program.touch(0o755)
    monkeypatch.setattr(config, "_EXECUTABLES", ())
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert config.executable() == str(program)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py")])
    with pytest.raises(MinirunError, match="not installed"):
        config.executable()


EVERYTHING = (
    "--memory", "64m", "--cpus", "0.5", "--pids-limit", "64", "--tmpfs", "/t", "--read-only", "-t",
    "-e", "A=1", "--cap-add", "NET_RAW", "--sysctl", "kernel.shm_rmid_forced=1", "--ulimit",
    "nofile=5", "--device", "/dev/zero", "--hostname", "h", "-v", "/tmp:/data:ro",
)  # fmt: skip


@pytest.mark.parametrize("start", [START, None])
def test_the_runtime_reads_what_is_written(start: int | None) -> None:
    found = jsontext.loads(jsontext.dumps(written(*EVERYTHING, start=start), "  "))
    spec = Spec.decode(found)
    assert spec.linux.resources is not None
    for number, entry in enumerate(spec.mounts):
        mountoptions.parse(entry, f"mounts[{number}]")


def test_the_defaults_are_not_changed_by_writing() -> None:
    before = copy.deepcopy(defaults.mounts())
    found = written("--network", "host")
    for entry in found["mounts"]:
        entry["options"].append("broken")
    assert defaults.mounts() == before
    assert "broken" not in mount_at(written("--network", "host"), "/sys")["options"]
