"""A filter forbids the payload's calls, not ours: what of minirun is left when it is in force."""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING, Any

import pytest
from runtime import capabilities, good, read, until

if TYPE_CHECKING:
    from runtime import Box

pytestmark = [
    pytest.mark.requires("root", "programs", "seccomp"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64"),
]

EXIT = "b8e7000000 bf2a000000 0f05"  # exit_group(42)
PAUSE = "b822000000 0f05 ebf7"  # again: pause(); jmp again
SYS_ADMIN = 1 << 21

either = pytest.mark.parametrize("nnp", [True, False], ids=["nnp", "without"])
users = pytest.mark.parametrize("uid", [0, 1000])


def program(code: str) -> bytes:
    """Make an ELF file of this code and nothing else."""
    body = bytes.fromhex(code)
    base, size = 0x400000, 120 + len(body)
    head = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + body


def tiny(box: Box, name: str, code: str) -> None:
    (box.rootfs / name).write_bytes(program(code))
    (box.rootfs / name).chmod(0o755)


def allow(box: Box, *names: str, default: str = "SCMP_ACT_ERRNO", **more: Any) -> None:
    box.linux["seccomp"] = {
        "defaultAction": default,
        "syscalls": [{"names": list(names), "action": "SCMP_ACT_ALLOW"}],
        **more,
    }


@either
@users
@pytest.mark.parametrize("default", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"])
def test_execve_alone_is_ours(box: Box, nnp: bool, uid: int, default: str) -> None:
    """No directory, id, capability or descriptor is changed under the filter."""
    tiny(box, "exit", EXIT)
    box.process.update({"noNewPrivileges": nnp, "args": ["/exit"], "cwd": "/tmp"})
    box.process["user"] = {"uid": uid, "gid": uid, "additionalGids": [uid + 1]}
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]
    allow(box, "execve", "exit_group", default=default)
    assert box.run().code == 42


@either
@users
def test_of_exec_too(box: Box, nnp: bool, uid: int) -> None:
    for name, code in (("exit", EXIT), ("pause", PAUSE)):
        tiny(box, name, code)
    box.process.update({"noNewPrivileges": nnp, "args": ["/pause"]})
    box.process["user"] = {"uid": uid, "gid": uid}
    allow(box, "execve", "exit_group", "pause", default="SCMP_ACT_KILL_PROCESS")
    box.create()
    box.start()
    until(lambda: "Seccomp:\t2" in read(f"/proc/{box.pid}/status"))
    done = box.exec("/exit", flags=[] if nnp else ["--user", f"{uid}:{uid}"])
    assert done.code == 42, done


@either
def test_getcwd_denied(box: Box, nnp: bool) -> None:
    """runc looks for the working directory under the filter, and fails."""
    box.process["noNewPrivileges"] = nnp
    names = ["getcwd", "chdir", "setgroups", "setresuid", "setresgid", "capset", "close_range"]
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO"}],
    }
    assert box.sh("echo there") == "there"


@pytest.mark.parametrize(
    "sets",
    [
        {},
        {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        {"inheritable": ["CAP_SYS_ADMIN", "CAP_KILL"]},
    ],
    ids=["plain", "ambient", "inheritable"],
)
@users
def test_what_the_filter_needs_stays_behind(box: Box, uid: int, sets: dict[str, list[str]]) -> None:
    """CAP_SYS_ADMIN is there to load it, and nobody's afterwards: as without a filter."""
    names = ["CAP_KILL", "CAP_CHOWN"]
    if "CAP_SYS_ADMIN" in sets.get("inheritable", ()):
        names.append("CAP_SYS_ADMIN")
    box.process.update({"noNewPrivileges": False, "capabilities": capabilities(*names, **sets)})
    box.process["user"] = {"uid": uid, "gid": uid}
    without = box.probe().caps
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    report = box.probe()
    assert report.status("Seccomp") == "2"
    assert report.caps == without


@users
def test_nor_does_a_hook_or_exec_have_it(box: Box, uid: int) -> None:
    tiny(box, "exit", EXIT)
    box.process.update({"noNewPrivileges": False, "capabilities": capabilities("CAP_KILL")})
    box.process["user"] = {"uid": uid, "gid": uid}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    (box.rootfs / "tmp").chmod(0o777)
    hook = ["sh", "-c", "cat /proc/self/status > /tmp/of-hook"]
    box.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": hook}]}
    box.up()
    for text in (read(box.rootfs / "tmp/of-hook"), good(box.exec("cat", "/proc/self/status")).out):
        lines = dict(line.split(":\t", 1) for line in text.splitlines())
        assert lines["Seccomp"] == "2"
        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert not int(lines[f"Cap{kind}"], 16) & SYS_ADMIN, kind


@users
def test_while_it_waits_for_start(box: Box, uid: int) -> None:
    """The program of ours has it in the sets that no execve hands on."""
    box.process.update({"noNewPrivileges": False, "capabilities": capabilities("CAP_KILL")})
    box.process["user"] = {"uid": uid, "gid": uid}
    allow(box, "execve", default="SCMP_ACT_ALLOW")
    box.create()
    lines = dict(line.split(":\t", 1) for line in read(f"/proc/{box.pid}/status").splitlines())
    for kind in ("Inh", "Bnd", "Amb"):
        assert not int(lines[f"Cap{kind}"], 16) & SYS_ADMIN, kind


@either
def test_a_filter_without_execve(box: Box, nnp: bool) -> None:
    """The message names the call, and what would have to be in the profile."""
    box.process["noNewPrivileges"] = nnp
    allow(box, "exit_group", "write", "read")
    message = box.refused("operation not permitted")
    assert "exec /probe" in message
