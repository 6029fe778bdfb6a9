"""The device program in the kernel, judged by processes that open and make device nodes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import runc_apart

from minirun import devicefilter
from minirun.devicefilter import Policy
from minirun.errors import Unsupported
from minirun.kernel import bpf
from minirun.kernel import mount as m
from minirun.spec import DeviceRule

pytestmark = pytest.mark.requires("root")

NODES = {
    "null": ("c", 1, 3),
    "zero": ("c", 1, 5),
    "kmsg": ("c", 1, 11),
    "nothing": ("b", 250, 9),
}
MODES = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
FORMAT = {"c": 0o020000, "b": 0o060000}
FINE, REFUSED = 0, errno.EPERM


def file_system(kind: str) -> int:
    """Make a mount that is in no tree: nothing of the host changes."""
    context = m.fsopen(kind)
    try:
        m.fsconfig_create(context)
        return m.fsmount(context)
    finally:
        os.close(context)


@pytest.fixture
def group() -> Iterator[int]:
    """A new cgroup, as a directory descriptor."""
    tree = file_system("cgroup2")
    name = f"minirun-test-{os.getpid()}"
    os.mkdir(name, dir_fd=tree)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        yield fd
        os.close(fd)
    finally:
        os.rmdir(name, dir_fd=tree)
        os.close(tree)


@pytest.fixture
def nodes() -> Iterator[int]:
    """A file system with the nodes, made before any filter."""
    fd = file_system("tmpfs")
    for name, (kind, major, minor) in NODES.items():
        os.mknod(name, FORMAT[kind] | 0o666, os.makedev(major, minor), dir_fd=fd)
    yield fd
    os.close(fd)


def inside(group: int, act: Callable[[], Any], sub: str = "") -> Any:
    """Do `act` in a child that is in the group (or in the group `sub` below it)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            procs = os.open(os.path.join(sub, "cgroup.procs"), os.O_WRONLY, dir_fd=group)
            os.write(procs, b"0")
            os.write(writer, json.dumps(act()).encode())
        except BaseException as failure:  # noqa: BLE001 - it is told to the parent
            os.write(writer, json.dumps(repr(failure)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def attempt(act: Callable[[], Any]) -> int:
    try:
        act()
    except OSError as failure:
        assert failure.errno is not None
        return failure.errno
    return FINE


def opening(nodes: int, name: str, mode: str = "r") -> int:
    return attempt(lambda: os.close(os.open(name, MODES[mode] | os.O_NONBLOCK, dir_fd=nodes)))


def making(nodes: int, kind: str, major: int, minor: int) -> int:
    device = os.makedev(major, minor)
    return attempt(lambda: os.mknod("new", FORMAT[kind] | 0o600, device, dir_fd=nodes))


def policy(*rules: tuple[Any, ...]) -> Policy:
    """A policy without the default rules."""
    found = Policy()
    for allow, kind, major, minor, access in rules:
        one = DeviceRule(allow=allow, type=kind, major=major, minor=minor, access=access)
        devicefilter._apply(found, one, "rules")
    return found


def test_without_a_filter_everything_opens(group: int, nodes: int) -> None:
    """The control: what the other tests see refused is refused by the filter."""
    found = inside(group, lambda: [opening(nodes, name) for name in NODES])
    assert found == [FINE, FINE, FINE, errno.ENXIO]
    assert inside(group, lambda: making(nodes, "b", 8, 0)) == FINE


def test_defaults(group: int, nodes: int) -> None:
    devicefilter.attach(group, devicefilter.policy(()))

    def ask() -> list[int]:
        found = [opening(nodes, name, "rw") for name in NODES]
        return [*found, making(nodes, "b", 8, 0), opening(nodes, "new")]

    assert inside(group, ask) == [FINE, FINE, REFUSED, REFUSED, FINE, REFUSED]
    assert opening(nodes, "kmsg") == FINE  # outside the group


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ("r", [FINE, REFUSED, REFUSED, REFUSED]),
        ("w", [REFUSED, FINE, REFUSED, REFUSED]),
        ("rw", [FINE, FINE, FINE, REFUSED]),
        ("m", [REFUSED, REFUSED, REFUSED, FINE]),
        ("rwm", [FINE, FINE, FINE, FINE]),
    ],
)
@pytest.mark.parametrize("default", [False, True])
def test_each_access(
    group: int, nodes: int, access: str, expected: list[int], default: bool
) -> None:
    rules: list[tuple[Any, ...]] = [(True, "c", 1, 5, access)]
    if default:  # the same by taking the rest away
        rest = "".join(set("rwm") - set(access))
        rules = [(True, "a", None, None, "rwm")]
        rules += [(False, "c", 1, 5, rest)] if rest else []
    devicefilter.attach(group, policy(*rules))

    def ask() -> list[int]:
        return [opening(nodes, "zero", mode) for mode in MODES] + [making(nodes, "c", 1, 5)]

    assert inside(group, ask) == expected


def test_groups_below_are_filtered_too(group: int, nodes: int) -> None:
    devicefilter.attach(group, devicefilter.policy(()))
    os.mkdir("below", dir_fd=group)
    try:
        assert inside(group, lambda: opening(nodes, "kmsg"), "below") == REFUSED
        assert inside(group, lambda: opening(nodes, "null"), "below") == FINE
    finally:
        os.rmdir("below", dir_fd=group)


def test_update_replaces_the_program(group: int, nodes: int) -> None:
    def ask() -> list[int]:
        return [opening(nodes, "zero"), opening(nodes, "kmsg")]

    devicefilter.attach(group, policy((True, "c", 1, 5, "rwm")))
    first = bpf.query_device_programs(group)
    assert inside(group, ask) == [FINE, REFUSED]
    devicefilter.attach(group, policy((True, "c", 1, 11, "rwm")))
    second = bpf.query_device_programs(group)
    assert inside(group, ask) == [REFUSED, FINE]
    assert len(first) == len(second) == 1
    assert first != second
    devicefilter.attach(group, policy((True, None, None, None, "rwm")))
    assert inside(group, ask) == [FINE, FINE]
    assert list(bpf.query_device_programs(group)) == []


def test_an_open_descriptor_outlives_the_filter_but_reopening_does_not(
    group: int, nodes: int
) -> None:
    """What the kernel checks is the open: a descriptor passed in stays usable."""
    kept = os.open("kmsg", os.O_RDONLY | os.O_NONBLOCK, dir_fd=nodes)
    devicefilter.attach(group, devicefilter.policy(()))

    def ask() -> list[int]:
        again = attempt(lambda: os.open(f"/proc/self/fd/{kept}", os.O_RDONLY | os.O_NONBLOCK))
        return [min(attempt(lambda: os.read(kept, 8192)), FINE), again]

    try:
        assert inside(group, ask)[1] == REFUSED
    finally:
        os.close(kept)


def test_programs_of_others_stay_and_are_asked_too(group: int, nodes: int) -> None:
    other = bpf.load_device_program(
        devicefilter.assemble(policy((True, "c", 1, 5, "rwm"))), "of_another"
    )
    try:
        bpf.attach_device_program(group, other)
        for _ in range(2):
            devicefilter.attach(group, devicefilter.policy(()))
            assert len(bpf.query_device_programs(group)) == 2
        found = inside(group, lambda: [opening(nodes, "zero"), opening(nodes, "null")])
        assert found == [FINE, REFUSED]
        devicefilter.attach(group, Policy(allow=True))
        assert len(bpf.query_device_programs(group)) == 1
    finally:
        os.close(other)


def test_two_of_ours_become_one(group: int) -> None:
    code = devicefilter.assemble(devicefilter.policy(()))
    for _ in range(2):
        fd = bpf.load_device_program(code, devicefilter.PROGRAM_NAME)
        bpf.attach_device_program(group, fd)
        os.close(fd)
    assert len(bpf.query_device_programs(group)) == 2
    devicefilter.attach(group, devicefilter.policy(()))
    assert len(bpf.query_device_programs(group)) == 1


def test_many_rules_load(group: int, nodes: int) -> None:
    rules = [(True, "c", 300, minor, "rw") for minor in range(500)]
    devicefilter.attach(group, policy(*rules, (True, "c", 1, 5, "r")))
    assert inside(group, lambda: [opening(nodes, "zero"), opening(nodes, "null")]) == [
        FINE,
        REFUSED,
    ]


def test_the_verifier_is_quoted() -> None:
    broken = struct.pack("=BBhI", 0x95, 0, 0, 0)  # exit without a result
    with pytest.raises(Unsupported) as caught:
        devicefilter._load(broken)
    assert "!read_ok" in caught.value.cause
    assert "bpf(BPF_PROG_LOAD, {BPF_PROG_TYPE_CGROUP_DEVICE, insn_cnt=1" in str(caught.value)


def test_only_cgroup_v2_directories_are_accepted(nodes: int) -> None:
    with pytest.raises(Unsupported) as caught:
        devicefilter.attach(nodes, devicefilter.policy(()))
    assert "v2" in caught.value.cause


def test_without_privilege_it_fails(group: int) -> None:
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            devicefilter.attach(group, devicefilter.policy(()))
        except Unsupported as refusal:
            os._exit(0 if "operation not permitted" in str(refusal) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(bpf.query_device_programs(group)) == []


COMPARED: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "engine": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rw"},
    ],
    "privileged": [{"allow": True, "access": "rwm"}],
    "parts": [
        {"allow": True, "type": "c", "major": 1, "access": "r"},
        {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ],
    "taken back": [
        {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
        {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ],
    "all but one": [
        {"allow": True, "access": "rwm"},
        {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
    ],
}
PROBE = """
for node in /dev/null /dev/kmsg; do
  for mode in '<' '>' '<>'; do
    if eval "command exec 3${mode}${node}" 2>/dev/null; then echo fine; else echo refused; fi
  done
done
"""


@pytest.mark.requires("runc")
@pytest.mark.parametrize("name", COMPARED)
def test_runc_decides_alike(group: int, nodes: int, tmp_path: Path, name: str) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    (tmp_path / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(busybox, tmp_path / "rootfs" / "bin" / "busybox")
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            # reading /dev/kmsg needs it
            "capabilities": {
                kind: ["CAP_SYSLOG"] for kind in ("bounding", "effective", "permitted")
            },
            "args": ["/bin/busybox", "sh", "-c", PROBE],
            "cwd": "/",
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}],
            "devices": [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}],
            "resources": {"devices": COMPARED[name]},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = runc_apart(tmp_path, "minirun-devices")
    assert done.code == 0, done.err
    rules = [DeviceRule.decode(one) for one in COMPARED[name]]
    devicefilter.attach(group, devicefilter.policy(rules))

    def ask() -> list[int]:
        return [opening(nodes, node, mode) for node in ("null", "kmsg") for mode in MODES]

    ours = ["fine" if found == FINE else "refused" for found in inside(group, ask)]
    assert ours == done.out.split()
