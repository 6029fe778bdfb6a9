"""-v, --mount, --tmpfs: the grammar, what is refused, what comes into config.json."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from minirun.engine import volumes
from minirun.engine.volumes import Volume
from minirun.errors import MinirunError, UsageError

MAPPING = [{"containerID": 0, "hostID": 524288, "size": 65536}]


def one(**texts: str) -> dict[str, Any]:
    """Parse a single option and give the mount that config.json gets of it."""
    found = volumes.parse(
        *[[texts[name]] if name in texts else [] for name in ("volume", "mount", "tmpfs")]
    )
    assert len(found) == 1
    item = found[0]
    return item.encode(None) if isinstance(item, Volume) else item


def test_a_volume_is_nosuid_and_nodev_with_all_below(tmp_path: Path) -> None:
    assert one(volume=f"{tmp_path}:/data") == {
        "destination": "/data",
        "type": "bind",
        "source": str(tmp_path),
        "options": ["rbind", "rprivate", "nosuid", "nodev", "rnosuid", "rnodev"],
    }


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ("ro", {"ro", "rro", "rnosuid", "rnodev"}, {"bind"}),
        ("readonly,bind", {"ro", "bind", "nosuid", "nodev"}, {"rbind", "rro"}),
        ("rw", {"nosuid", "nodev"}, {"ro", "rro"}),
        ("ro,rw", {"nosuid"}, {"ro", "rro"}),
        ("noexec", {"noexec", "rnoexec"}, set()),
        ("nosuid,nodev,private", {"nosuid", "nodev", "rprivate"}, {"private"}),
    ],
)
def test_options_of_a_volume(
    tmp_path: Path, options: str, there: set[str], absent: set[str]
) -> None:
    found = set(one(volume=f"{tmp_path}:/data:{options}")["options"])
    assert there <= found
    assert not absent & found


def test_owners_are_kept_by_mapping_them(tmp_path: Path) -> None:
    (volume,) = volumes.parse([f"{tmp_path}:/data"], [], [])
    assert isinstance(volume, Volume)
    entry = volume.encode(MAPPING)
    assert entry["uidMappings"] == entry["gidMappings"] == MAPPING
    assert "uidMappings" not in volume.encode(None)
    (plain,) = volumes.parse([f"{tmp_path}:/data:noidmap"], [], [])
    assert isinstance(plain, Volume)
    assert "uidMappings" not in plain.encode(MAPPING)


@pytest.mark.parametrize(
    "text",
    ["", ":", "/a", "/a:", ":/a", "/a:/b:", "/a:/b:ro:rw", "name:/b", "/tmp:/b:suid", "/tmp:/b:dev",
     "/tmp:/b:shared", "/tmp:/b:ro,", "/tmp:b", "/tmp:/", "/tmp://", "/tmp:/.", "/tmp:/a/../b",
     "/tmp:/proc", "/tmp:/proc/self", "/tmp:/sys/fs", "/tmp:/dev", "/tmp:/dev/null", "/tmp:/./proc",
     "/tmp:/a\0b", "/tmp:/" + "a" * 5000],
)  # fmt: skip
def test_a_malformed_volume_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        volumes.parse([text], [], [])


def test_a_source_that_is_absent_is_refused_not_made(tmp_path: Path) -> None:
    with pytest.raises(MinirunError, match="does not exist"):
        volumes.parse([f"{tmp_path}/absent:/data"], [], [])
    assert not (tmp_path / "absent").exists()


def test_a_source_is_resolved_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert one(volume="./link:/data")["source"] == str(tmp_path / "real")


def test_the_target_is_made_plain(tmp_path: Path) -> None:
    assert one(volume=f"{tmp_path}://a/./b//")["destination"] == "/a/b"


@pytest.mark.parametrize("target", ["/dev/shm", "/dev/shm/x", "/dev/mqueue", "/device", "/process"])
def test_targets_beside_the_reserved_ones(tmp_path: Path, target: str) -> None:
    assert one(volume=f"{tmp_path}:{target}")["destination"] == target


def test_mount_of_type_bind(tmp_path: Path) -> None:
    strange = tmp_path / 'a,b:"c'
    strange.mkdir()
    quoted = str(strange).replace('"', '""')
    entry = one(mount=f'type=bind,"source={quoted}",target=/data,readonly')
    assert entry["source"] == str(strange)
    assert {"ro", "rro", "nosuid"} <= set(entry["options"])
    assert "ro" not in one(mount=f"src={tmp_path},dst=/data,ro=false")["options"]


@pytest.mark.parametrize(
    "text",
    ["", "type=bind", "type=bind,src=/tmp", "type=bind,dst=/a", "type=volume,src=a,dst=/b",
     "type=overlay,dst=/b", "src=/tmp,source=/tmp,dst=/a", "src=/tmp,dst=/a,", "src=/tmp,,dst=/a",
     '"src=/tmp,dst=/a', '"src=/tmp"x,dst=/a', "src=/tmp,dst=/a,ro=maybe", "src=/tmp,dst=/a,what",
     "src=/tmp,dst=/a,bind-propagation=shared", "type=tmpfs,src=/tmp,dst=/a",
     "type=tmpfs,dst=/a,tmpfs-size=x", "type=tmpfs"],
)  # fmt: skip
def test_a_malformed_mount_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        volumes.parse([], [text], [])


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("/t", ["nosuid", "nodev", "noexec", "mode=1777"]),
        ("/t:size=1m", ["nosuid", "nodev", "noexec", "mode=1777", "size=1048576"]),
        ("/t:exec,ro,mode=755", ["nosuid", "nodev", "ro", "mode=755"]),
        ("/t:uid=5,gid=6", ["nosuid", "nodev", "noexec", "mode=1777", "uid=5", "gid=6"]),
    ],
)
def test_tmpfs(text: str, options: list[str]) -> None:
    entry = one(tmpfs=text)
    assert (entry["destination"], entry["type"]) == ("/t", "tmpfs")
    assert sorted(entry["options"]) == sorted(options)


def test_both_spellings_of_tmpfs_are_one() -> None:
    assert one(mount="type=tmpfs,dst=/t,tmpfs-size=2m,tmpfs-mode=700,ro") == one(
        tmpfs="/t:size=2m,mode=700,ro"
    )


@pytest.mark.parametrize(
    "text",
    ["", "t", "/t:", "/t:suid", "/t:dev", "/t:size=", "/t:size=1x", "/t:mode=9", "/t:mode=77777",
     "/t:uid=-1", "/t:uid=\u0661", "/t:huge=always", "/t:size=1m,,", "/proc", "/"],
)  # fmt: skip
def test_a_malformed_tmpfs_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        volumes.parse([], [], [text])


def test_two_mounts_on_one_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two mounts on /data"):
        volumes.parse([f"{tmp_path}:/data/"], [], ["//data"])


def danger(source: str, options: str = "", private: tuple[str, ...] = ()) -> str:
    (volume,) = volumes.parse([f"{source}:/x{options}"], [], [])
    assert isinstance(volume, Volume)
    return volumes.danger(volume, private)


@pytest.mark.parametrize(
    "source",
    ["/", "/proc", "/proc/1", "/sys", "/sys/fs", "/dev", "/dev/shm", "/etc", "/run", "/var/run",
     "/boot", "/root", "/.", "//etc/"],
)  # fmt: skip
@pytest.mark.parametrize("options", ["", ":ro"])
def test_what_is_the_host_is_dangerous(source: str, options: str) -> None:
    if not os.path.exists(source):
        pytest.skip(f"this machine has no {source}")
    assert danger(source, options)


def test_what_the_host_runs_is_dangerous_to_write(tmp_path: Path) -> None:
    assert danger("/usr")
    assert not danger("/usr", ":ro")
    assert not danger("/etc/passwd", ":ro")
    assert not danger(str(tmp_path))


def test_a_link_does_not_hide_what_is_dangerous(tmp_path: Path) -> None:
    (tmp_path / "harmless").symlink_to("/etc")
    assert "/etc" in danger(f"{tmp_path}/harmless")


def test_what_containers_are_made_from_is_dangerous(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "containers").mkdir(parents=True)
    private = (str(data),)
    assert danger(str(data), "", private)
    assert danger(f"{data}/containers", ":ro", private)
    assert danger(str(tmp_path), "", private)


def test_an_engine_socket_is_dangerous_wherever_it_lies(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        assert "engine" in danger(f"{tmp_path}/docker.sock", ":ro")
