"""plan --shell: the script really builds a like container."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from runtime import command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.requires("root", "cgroup2", "rootfs", "setpriv", "unshare", "runc"),
]

LOOK = """hostname; id -u; pwd; cat /proc/1/comm
grep -E '^Cap|^NoNew' /proc/self/status
mount | awk '{print $1, $3, $5}' | grep -v -e ' / ' -e devtmpfs -e '^tmpfs /proc/'
touch /x 2>/dev/null || echo root is read-only
wc -c < /proc/timer_list; ls -A /sys/firmware; ls /dev; env
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An Alpine bundle of the runtime's own `spec`, that looks about itself."""
    (tmp_path / "rootfs").mkdir()
    archive = os.environ["MINIRUN_ROOTFS_TARBALL"]
    subprocess.run(["tar", "-xzf", archive, "-C", str(tmp_path / "rootfs")], check=True)
    subprocess.run([*command(), "spec", "-b", str(tmp_path)], check=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=["sh", "-c", LOOK])
    config["hostname"] = "like"
    config["linux"]["cgroupsPath"] = "/minirun-plan"
    path.write_text(json.dumps(config))
    return tmp_path


def output(*words: str, cwd: Path) -> list[str]:
    """Run a command; return the lines of its standard output."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_script_builds_a_like_container(bundle: Path) -> None:
    made = output(*command(), "run", "plan-like", cwd=bundle)
    (bundle / "like.sh").write_text("\n".join(output(*command(), "plan", "--shell", cwd=bundle)))
    by_hand = output("sh", "like.sh", cwd=bundle)
    # The shell runs below the script's own, so its first process is sh in both.
    assert sorted(made) == sorted(by_hand)
    assert "root is read-only" in made
    assert "like" in made


def test_words_of_the_configuration_are_not_run(bundle: Path) -> None:
    trap = f"; touch {bundle}/sprung; "
    config = json.loads((bundle / "config.json").read_text())
    config["hostname"] = "a'; touch sprung; '"
    config["process"]["args"] = ["sh", "-c", "hostname; ls -d /v*/"]
    config["mounts"].append({"destination": f"/v{trap}", "type": "tmpfs", "source": "tmpfs"})
    config["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "like.sh").write_text("\n".join(output(*command(), "plan", "--shell", cwd=bundle)))
    said = output("sh", "like.sh", cwd=bundle)
    assert said[0] == config["hostname"]
    assert not (bundle / "sprung").exists()


def test_planning_does_nothing(bundle: Path) -> None:
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    output(*command(), "plan", cwd=bundle)
    with open("/proc/self/mountinfo") as file:
        assert file.read() == before
    assert not os.path.exists("/sys/fs/cgroup/minirun-plan")
