"""Docker as others set it up: cgroups of its own making, other users in its containers, and a
daemon that comes and goes while they run.
"""

from __future__ import annotations

from pathlib import Path

import dockerlike
import pytest
from dockerd import Docker
from dockerlike import GENTLY, QUIET, inspect, pid_of, running
from engines import IMAGE, MIB, cgroup_of, is_ours, until

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "limits", "rootfs", "docker")]

# The machine's ordinary user has these: scripts/lib/image.sh, image_users.
SETTINGS = {
    "exec_opts": ["native.cgroupdriver=cgroupfs"],
    "userns_remap": "tester",
    "live_restore": True,
    **dict.fromkeys(("iptables", "ip6tables", "ip_forward"), False),
    "bridge": "none",
}
MAP = "0 100000 65536"


COUNT = ("sh", "-c", "trap 'exit 5' TERM; while :; do echo on; sleep 0.2; done")


def test_other_users_limits_in_files_and_a_daemon_that_comes_back(base: Path, place: Path) -> None:
    made = Docker(base / "docker-settings")
    try:
        with made.daemon(**SETTINGS) as docker:
            made.bring_images()
            _users_and_limits(made, place)
            cid = docker("run", "--detach", *QUIET, IMAGE, *COUNT)
            pid = pid_of(docker, cid)
        assert docker.call("version").returncode != 0
        assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"
        with made.daemon(**SETTINGS):
            _is_found_again(made, cid)
            docker(*docker.remove, cid)
    finally:
        made.unmount()


def _users_and_limits(made: Docker, place: Path) -> None:
    docker = made.docker
    place.chmod(0o777)
    with running(docker, *dockerlike.LIMITS, "--volume", f"{place}:/vol") as cid:
        pid = pid_of(docker, cid)
        assert str(cgroup_of(pid)) == f"/sys/fs/cgroup/docker/{cid}"
        assert Path(f"/proc/{pid}/uid_map").read_text().split() == MAP.split()
        dockerlike.limits_are(pid)
        docker("update", "--memory", "80m", "--memory-swap", "80m", "--cpus", "1", cid)
        changed = {"memory_max": str(80 * MIB), "memory_swap_max": "0", "cpu_max": "100000 100000"}
        dockerlike.limits_are(pid, **changed)
        look = "touch /vol/mine /mine; stat -c '%u %u' /mine; cat /proc/self/uid_map"
        assert docker("exec", cid, "sh", "-c", look).split() == ["0", "0", *MAP.split()]
        assert (place / "mine").stat().st_uid == 100000
        assert not is_ours("/run/minirun", cid)
    told = dockerlike.sh(docker, "cat /proc/self/uid_map", "--userns", "host").split()
    assert told == ["0", "0", "4294967295"]


def _is_found_again(made: Docker, cid: str) -> None:
    docker = made.docker
    assert is_ours(made.state, cid)
    assert inspect(docker, cid, ".State.Status") == "running"
    counted = len(docker("logs", cid).splitlines())
    until(lambda: len(docker("logs", cid).splitlines()) > counted, "its output is kept again")
    assert docker("exec", cid, "echo", "in") == "in"
    dockerlike.pause_and_unpause(docker, cid)
    docker("stop", *GENTLY, cid)
    assert inspect(docker, cid, ".State.ExitCode") == "5"
