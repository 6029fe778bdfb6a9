"""The flags of run --rootfs, read: limits, environment, security, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minirun import blockdev, options
from minirun.cgroups.hierarchy import Hierarchy
from minirun.engine import defaults, environment, limits, security
from minirun.engine.request import Request
from minirun.errors import MinirunError, Unsupported, UsageError
from minirun.kernel import capability
from minirun.spec import Resources

ALL = ("cpu", "cpuset", "io", "memory", "pids")
UNIFIED = Hierarchy("/sys/fs/cgroup", "unified", ALL, own="/")
HYBRID = Hierarchy("/sys/fs/cgroup", "hybrid", (), ALL)
MIB = 1 << 20


def parsed(*flags: str) -> options.Options:
    return options.parse(["run", "--rootfs", "alpine", *flags, "web"])


def resources(*flags: str, tree: Hierarchy = UNIFIED) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    found = limits.resources(parsed(*flags), notes, tree)
    Resources.decode(found)  # whatever it is, the runtime's own reader takes it
    return found, notes


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"/dev/sda": 0, "/dev/sda1": 0, "/data": 0, "/dev/sdb": 16}

    def find(path: str) -> blockdev.Disk:
        if path not in known:
            raise UsageError(f"cannot find the disk of {path!r}")
        return blockdev.Disk(8, known[path], "disk")

    monkeypatch.setattr(blockdev, "whole_disk", find)


def test_limits_hold_when_none_is_asked_for() -> None:
    found, notes = resources()
    assert found == {
        "pids": {"limit": 1024},
        "memory": {"limit": defaults.memory_total() // 2},
        "unified": {"memory.oom.group": "1"},
    }
    assert notes == []


def test_no_limits_means_none() -> None:
    assert resources("--no-limits") == ({}, [])


def test_default_limits_are_dropped_with_a_note_where_they_cannot_be() -> None:
    found, notes = resources(tree=HYBRID)
    assert found == {}
    assert len(notes) == 1
    assert "hybrid" in notes[0]


@pytest.mark.parametrize(
    "flags", [("--memory", "64m"), ("--cpus", "1"), ("--pids-limit", "5"), ("--cpuset-cpus", "0")]
)
def test_a_limit_that_was_asked_for_is_never_dropped(flags: tuple[str, ...]) -> None:
    with pytest.raises(Unsupported):
        resources(*flags, tree=HYBRID)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--memory", "64m"), {"memory": {"limit": 64 * MIB, "swap": 128 * MIB}}),
        (("-m", "-1"), {"memory": {"limit": -1, "swap": -1}}),
        (
            ("--memory", "64m", "--memory-swap", "64m"),
            {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}},
        ),
        (("--memory", "64m", "--memory-swap", "-1"), {"memory": {"limit": 64 * MIB, "swap": -1}}),
        (
            ("--memory", "64m", "--memory-reservation", "32m"),
            {"memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB}},
        ),
        (("--cpus", "0.5"), {"cpu": {"quota": 50000, "period": 100000}}),
        (("--cpu-weight", "200"), {"unified": {"cpu.weight": "200"}}),
        (("--cpu-shares", "512"), {"cpu": {"shares": 512}}),
        (("--cpuset-cpus", "0-2,7"), {"cpu": {"cpus": "0-2,7"}}),
        (("--cpuset-mems", "0"), {"cpu": {"mems": "0"}}),
        (("--pids-limit", "64"), {"pids": {"limit": 64}}),
        (("--pids-limit", "-1"), {"pids": {"limit": -1}}),
        (("--io-weight", "50"), {"unified": {"io.weight": "default 50"}}),
        (
            ("--device-read-bps", "/dev/sda1:1mb", "--device-write-iops", "/data:100"),
            {
                "blockIO": {
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": MIB}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 100}],
                }
            },
        ),
        (
            ("--device-write-bps", "/dev/sda:1mb", "--device-write-bps", "/dev/sdb:2mb"),
            {
                "blockIO": {
                    "throttleWriteBpsDevice": [
                        {"major": 8, "minor": 0, "rate": MIB},
                        {"major": 8, "minor": 16, "rate": 2 * MIB},
                    ]
                }
            },
        ),
    ],
)
@pytest.mark.usefixtures("disks")
def test_limits(flags: tuple[str, ...], expected: dict[str, Any]) -> None:
    found, notes = resources("--no-limits", *flags)
    if "memory" in found:
        assert found["unified"].pop("memory.oom.group") == "1"
    assert {key: value for key, value in found.items() if value} == expected
    assert notes == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--memory", "0"),
        ("--memory", "x"),
        ("--memory", "1_0m"),
        ("--memory-swap", "1g"),
        ("--memory", "64m", "--memory-swap", "32m"),
        ("--memory", "-1", "--memory-swap", "1g"),
        ("--memory", "64m", "--memory-reservation", "128m"),
        ("--cpus", "0"),
        ("--cpus", "-1"),
        ("--cpu-weight", "0"),
        ("--cpu-weight", "10001"),
        ("--cpu-shares", "1"),
        ("--cpu-shares", "2", "--cpu-weight", "1"),
        ("--cpuset-cpus", ""),
        ("--cpuset-cpus", "3-1"),
        ("--cpuset-cpus", "0-1-2"),
        ("--cpuset-cpus", "0,\n1"),
        ("--pids-limit", "0"),
        ("--pids-limit", "-2"),
        ("--pids-limit", "\u0661"),
        ("--io-weight", "0"),
        ("--device-read-bps", "/dev/sda"),
        ("--device-read-bps", "/dev/sda:0"),
        ("--device-read-bps", "/absent:1mb"),
        ("--device-read-bps", "/dev/sda:1mb", "--device-read-bps", "/data:2mb"),
    ],
)
@pytest.mark.usefixtures("disks")
def test_a_limit_that_makes_no_sense_names_its_option(flags: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--"):
        resources(*flags)


# ---------------------------------------------------------------- environment


def test_the_environment_is_clean_and_the_last_of_a_name_wins(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=file\r\n  B= kept \nC=a=b\nQ='x'\n")
    found = environment.variables(
        {"PATH": "/bin", "HOME": "/"},
        [str(file)],
        ["A=flag", "HOME=/h", "CALLER", "ABSENT", "NL=a\nb", "EMPTY="],
        {"CALLER": "here", "SECRET": "no"},
    )
    assert found == [
        "PATH=/bin", "HOME=/h", "A=flag", "B= kept ", "C=a=b", "Q='x'", "CALLER=here", "NL=a\nb",
        "EMPTY=",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "=a", "a b=c", "a\0=b", "a=\0b", "a\n=b"])
def test_a_malformed_variable_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        environment.variables({}, [], [text], {})


def _directory(path: Path) -> None:
    path.mkdir()


def _giant(path: Path) -> None:
    path.write_bytes(b"A=1\n" * 400_000)


def _latin(path: Path) -> None:
    path.write_bytes(b"A=\xe9\n")


def _bare(path: Path) -> None:
    path.write_text("NAME\n")


@pytest.mark.parametrize("make", [_directory, _giant, _latin, _bare, lambda _path: None])
def test_an_env_file_that_cannot_be_one_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "env")
    with pytest.raises(MinirunError, match="--env-file"):
        environment.variables({}, [str(tmp_path / "env")], [], {})


@pytest.mark.parametrize(
    ("cid", "name"),
    [
        ("web", "web"),
        ("a_b.c+d", "a-b-c-d"),
        ("_x_", "x"),
        ("...", "minirun"),
        ("a" * 100, "a" * 63),
        ("a" * 62 + "__b", "a" * 62),
    ],
)
def test_the_hostname_is_made_of_the_id(cid: str, name: str) -> None:
    assert environment.hostname(None, cid) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a_b", "a b", "a\n", "a" * 65, "é", "a/b"])
def test_an_invalid_hostname_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        environment.hostname(name, "web")


@pytest.mark.parametrize("path", ["", "relative", "./a", "/a/../b", "/a\0b", "/" + "a" * 5000])
def test_an_invalid_directory_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        environment.directory(path)


def test_rlimits() -> None:
    found = {
        entry["type"]: (entry["soft"], entry["hard"])
        for entry in environment.rlimits(["nofile=10:20", "NPROC=5", "stack=-1:unlimited"])
    }
    assert found == {
        "RLIMIT_NOFILE": (10, 20),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NPROC": (5, 5),
        "RLIMIT_STACK": ((1 << 64) - 1, (1 << 64) - 1),
    }


@pytest.mark.parametrize(
    "text", ["", "nofile", "nofile=", "nofile=2:1", "nofile=1:2:3", "what=1", "nofile=-2", "cpu=+1"]
)
def test_a_malformed_rlimit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--ulimit"):
        environment.rlimits([text])


# ---------------------------------------------------------------- security


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], set(defaults.CAPABILITIES)),
        ([], ["ALL"], set()),
        (["chown"], ["all"], {"CAP_CHOWN"}),
        (["CAP_NET_RAW"], [], {*defaults.CAPABILITIES, "CAP_NET_RAW"}),
        (["ALL"], ["sys_admin"], {*capability.NAMES} - {"CAP_SYS_ADMIN"}),
        (["CHOWN"], ["CHOWN"], {*defaults.CAPABILITIES} - {"CAP_CHOWN"}),
    ],
)
def test_capabilities(add: list[str], drop: list[str], expected: set[str]) -> None:
    found = security.capabilities(add, drop)
    assert set(found) == expected
    assert found == sorted(found, key=capability.NUMBERS.__getitem__)
    sets = security.sets(found)
    assert sets["inheritable"] == sets["ambient"] == []
    assert sets["bounding"] == sets["effective"] == sets["permitted"] == found


@pytest.mark.parametrize("name", ["", "CAP_", "what", "CAP_CAP_CHOWN", "chown,kill", "chown\0"])
def test_an_unknown_capability_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        security.capabilities([name], [])


def test_a_misspelt_capability_is_guessed() -> None:
    with pytest.raises(UsageError) as caught:
        security.capabilities(["SYS_ADMN"], [])
    assert caught.value.fix == "did you mean CAP_SYS_ADMIN?"


def test_the_default_profile_is_one() -> None:
    found = security.seccomp(None)
    assert found is not None
    assert found["defaultAction"] == "SCMP_ACT_ERRNO"
    assert security.seccomp("unconfined") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"defaultAction":"SCMP_ACT_ALLOW","archMap":[]}', '{"a":1', "null"]
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(MinirunError, match="seccomp profile"):
        security.seccomp(str(tmp_path / "profile.json"))


def test_an_absent_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinirunError, match="cannot read the seccomp profile"):
        security.seccomp(f"{tmp_path}/absent")


def test_security_options() -> None:
    found = security.parse(["seccomp=/p", "no-new-privileges:false", "dangerous-volumes"])
    assert (found.seccomp, found.no_new_privileges, found.dangerous_volumes) == ("/p", False, True)
    assert security.parse([]).no_new_privileges
    assert not security.parse([]).dangerous_volumes


@pytest.mark.parametrize(
    "text", ["", "seccomp", "seccomp=", "no-new-privileges=maybe", "what=1", "dangerous-volumes=1"]
)
def test_an_unknown_security_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        security.parse([text])


@pytest.mark.parametrize(
    "text",
    ["kernel.core_pattern=|/x", "vm.swappiness=1", "net.ipv4.ip_forward", "kernel.sem=1\n2",
     "net.ipv4.ip_forward=1\0", "fs.file-max=1", "=1", "net..core=1", "net/../kernel/panic=1",
     "kernel.hostname=x", "kernel.shmmax+kernel.core_pattern=1"],
)  # fmt: skip
def test_a_sysctl_of_the_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        security.sysctls([text], own_network=True)


def test_a_network_sysctl_needs_a_network_of_its_own() -> None:
    entry = ["net.ipv4.ip_forward=0"]
    assert security.sysctls(entry, own_network=True) == {"net.ipv4.ip_forward": "0"}
    with pytest.raises(UsageError):
        security.sysctls(entry, own_network=False)


# ---------------------------------------------------------------- together


@pytest.mark.parametrize(
    "flags",
    [
        ("--network", "what"),
        ("--network", "bridge:"),
        ("--network", "host:x"),
        ("--network", "ns:relative"),
        ("--network", "ns:/absent/namespace"),
        ("-p", "8080:80"),
        ("--network", "host", "-p", "8080:80"),
        ("--network", "bridge", "-p", "8080"*3),
        ("--userns", "what"),
        ("--timens", "what"),
        ("--shm-size", "0"),
        ("--shm-size", "x"),
        ("--oom-score-adj", "1001"),
        ("--oom-score-adj", "--5"),
        ("--oom-score-adj", "1_0"),
        ("--cgroup-parent", "relative"),
        ("--cgroup-parent", "/a/../b"),
        ("--device", "/dev/absent"),
        ("--device", "/etc/passwd:/dev/x"),
        ("--device", "/dev/null:/etc/x"),
        ("--device", "/dev/null:/dev/x:rwx"),
        ("--device", "/dev/null:/dev/../x"),
        ("--device", "null"),
        ("--dns", "not-an-address"),
        ("--add-host", "nohost"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(MinirunError):
        Request(parsed(*flags), "web", [])


def test_a_device() -> None:
    (device,) = Request(parsed("--device", "/dev/zero:/dev/nothing:r"), "web", []).devices
    assert (device.source, device.target, device.access) == ("/dev/zero", "/dev/nothing", "r")
    assert (device.kind, device.major, device.minor) == ("c", 1, 5)
    (short,) = Request(parsed("--device", "/dev/zero:r"), "web", []).devices
    assert (short.target, short.access) == ("/dev/zero", "r")


@pytest.mark.parametrize(
    ("flags", "path"),
    [((), "/minirun/web"), (("--cgroup-parent", "/a/b/"), "/a/b/web")],
)
def test_the_cgroup_lies_below_its_parent(flags: tuple[str, ...], path: str) -> None:
    assert Request(parsed(*flags), "web", []).cgroups_path == path


def test_systemd_is_asked_for_a_scope_in_a_slice() -> None:
    line = ["--systemd-cgroup", "run", "--rootfs", "x", "--cgroup-parent", "my.slice", "web"]
    assert Request(options.parse(line), "web", []).cgroups_path == "my.slice:minirun:web"
    with pytest.raises(UsageError):
        Request(options.parse([*line[:5], "my", "web"]), "web", [])
