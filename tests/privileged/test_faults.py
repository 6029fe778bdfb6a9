"""No system call that isolates may fail unseen: T-FC1.

Each is made to fail, at its first, its last and one time between, in whatever process makes it:
then the container is refused, or it is exactly as without the failure.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from runtime import Report, call, capabilities, good, read, report_of, traced

if TYPE_CHECKING:
    from runtime import Box

pytestmark = [pytest.mark.slow, pytest.mark.requires("root", "programs", "strace")]

# What makes, fills, limits or leaves a namespace, or takes something away from the payload.
_LISTED = """
    unshare clone3 setns mount umount2 move_mount mount_setattr open_tree fsopen fsconfig fsmount
    pivot_root chdir fchdir openat2 mknodat symlinkat mkdirat sethostname setdomainname prctl capset
    setgroups setresgid setresuid seccomp keyctl close_range setsid prlimit64 pidfd_open
    rt_sigaction rt_sigprocmask umask ioctl bpf fchown fcntl
"""
CALLS = tuple(_LISTED.split())


def prepare(box: Box) -> None:
    box.config["domainname"] = "example.org"
    box.config["root"]["readonly"] = True
    box.process.update(
        user={"uid": 1000, "gid": 1001, "additionalGids": [7]},
        capabilities=capabilities("CAP_KILL", inheritable=["CAP_KILL"], ambient=["CAP_KILL"]),
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
    )
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
    }
    box.mount("/vol", str(box.place), "rbind", "ro", "nosuid")


def everything(report: Report, box: Box) -> dict[str, object]:
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in report["ns"]}
    shared = {name for name, link in report["ns"].items() if link == host[name]}
    streams = {fd: found["link"].split(":")[0] for fd, found in report.fds.items()}
    return {**report.enforced, "shared": shared, "domain": report["domainname"], "fds": streams}


def counts(box: Box, name: str) -> int:
    """Count the calls of the process that makes most of them: strace counts for each."""
    log = box.place / f"trace-{name}"
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    good(call(traced(words, f"trace={name}", log=str(log))))
    made = [line.split()[0] for line in read(log).splitlines() if f" {name}(" in line]
    return max(Counter(made).values(), default=0)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails(box: Box, name: str) -> None:
    prepare(box)
    expected = everything(report_of(good(box.run()).out), box)
    last = counts(box, name)
    keyring = box.probe()["keyring"]
    words = box.words("run", "--bundle", str(box.bundle), box.id)
    for number in sorted({1, (last + 1) // 2, last} - {0}):
        rule = f"inject={name}:error=EPERM:when={number}"
        done = call(traced(words, f"trace={name}", rule))
        if done.out:
            found = report_of(done.out)
            assert everything(found, box) == expected, (name, number)
            assert found["keyring"] != keyring or found["keyring"] <= 0
        else:
            assert done.code != 0, (name, number, done)
            assert done.err, (name, number)
        good(box.delete("--force"))
        assert box.left() == []
