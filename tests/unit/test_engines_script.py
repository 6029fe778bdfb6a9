"""scripts/engines: what it writes, that it takes back what it wrote, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/engines"
RUNTIME = "/bin/sh"  # some program that is there
FILES = {
    "podman": "containers/containers.conf.d/50-minirun.conf",
    "docker": "docker/daemon.json",
    "containerd": "containerd/config.toml",
    "crio": "crio/crio.conf.d/50-minirun.conf",
}
CRI = "io.containerd.grpc.v1.cri"


def engines(etc: Path, *words: str, runtime: str = RUNTIME) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-ISB", str(SCRIPT), *words, "--etc", str(etc), "--runtime", runtime]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def done(etc: Path, *words: str) -> str:
    ran = engines(etc, *words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("engine", FILES)
def test_add_twice_and_remove_leave_nothing(engine: str, tmp_path: Path) -> None:
    file = tmp_path / FILES[engine]
    shown = done(tmp_path, "add", engine, "--default", "--dry-run")
    assert not file.exists()
    done(tmp_path, "add", engine, "--default")
    once = file.read_text()
    assert shown == f"--- {file}\n{once}" and "minirun" in once
    done(tmp_path, "add", engine, "--default")
    assert file.read_text() == once
    done(tmp_path, "remove", engine)
    done(tmp_path, "remove", engine)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_stood_in_dockers_file_stays(tmp_path: Path) -> None:
    file = tmp_path / FILES["docker"]
    file.parent.mkdir()
    before = {"bip": "10.1.0.1/24", "runtimes": {"crun": {"path": "/usr/bin/crun"}}}
    file.write_text(json.dumps(before))
    file.chmod(0o640)
    done(tmp_path, "add", "docker", "--default")
    config = json.loads(file.read_text())
    assert config["default-runtime"] == "minirun" and config["bip"] == "10.1.0.1/24"
    assert config["runtimes"] == {**before["runtimes"], "minirun": {"path": RUNTIME}}  # type: ignore[dict-item]
    assert file.stat().st_mode & 0o777 == 0o640
    done(tmp_path, "add", "docker")
    assert "default-runtime" not in json.loads(file.read_text())
    done(tmp_path, "remove", "docker")
    assert json.loads(file.read_text()) == before


@pytest.mark.parametrize("engine", FILES)
def test_the_cgroup_driver_is_containerds_to_choose_by_runtime(engine: str, tmp_path: Path) -> None:
    done(tmp_path, "add", engine)
    plain = (tmp_path / FILES[engine]).read_text()
    done(tmp_path, "add", engine, "--systemd-cgroup")
    text = (tmp_path / FILES[engine]).read_text()
    if engine != "containerd":
        assert text == plain
        return
    runtime = tomllib.loads(text)["plugins"][CRI]["containerd"]["runtimes"]["minirun"]
    assert runtime["options"] == {"BinaryName": RUNTIME, "SystemdCgroup": True}
    done(tmp_path, "add", engine)
    assert (tmp_path / FILES[engine]).read_text() == plain


CONTAINERD = f"""\
version = 2

[plugins]
  [plugins."{CRI}".cni]
    bin_dir = "/usr/lib/cni"  # a comment
"""


def test_what_stood_in_containerds_file_stays(tmp_path: Path) -> None:
    file = tmp_path / FILES["containerd"]
    file.parent.mkdir()
    file.write_text(CONTAINERD)
    done(tmp_path, "add", "containerd")
    plugin = tomllib.loads(file.read_text())["plugins"][CRI]
    runtimes = plugin["containerd"]["runtimes"]
    assert plugin["cni"] == {"bin_dir": "/usr/lib/cni"}
    assert runtimes["minirun"]["options"] == {"BinaryName": RUNTIME}
    # With one runtime in the file containerd forgets the one that it has by itself.
    assert "runc" in runtimes
    done(tmp_path, "remove", "containerd")
    assert file.read_text() == CONTAINERD


def test_the_third_version_of_containerds_format_names_the_plugin_anew(tmp_path: Path) -> None:
    file = tmp_path / FILES["containerd"]
    file.parent.mkdir()
    file.write_text("version = 3\n")
    done(tmp_path, "add", "containerd")
    plugins = tomllib.loads(file.read_text())["plugins"]
    assert "minirun" in plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]


@pytest.mark.parametrize(
    ("engine", "text", "words"),
    [
        ("docker", "{", "is not JSON"),
        ("docker", '{"runtimes": []}', "is not an object with an object `runtimes`"),
        ("containerd", "version = 2\n[", "is not TOML"),
        ("containerd", "[plugins]\n", "has version 1 of the format"),
        (
            "containerd",
            f'version = 2\n[plugins."{CRI}".containerd.runtimes.minirun]\n',
            "has a runtime `minirun`",
        ),
    ],
)
def test_what_cannot_be_edited_is_left_alone(
    engine: str, text: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / FILES[engine]
    file.parent.mkdir()
    file.write_text(text)
    ran = engines(tmp_path, "add", engine)
    assert ran.returncode == 1 and words in ran.stderr and "Traceback" not in ran.stderr
    assert file.read_text() == text


def test_a_runtime_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ran = engines(tmp_path, "add", "podman", runtime="/no/minirun")
    assert ran.returncode == 2 and "/no/minirun is not there" in ran.stderr
    assert list(tmp_path.iterdir()) == []
