from __future__ import annotations

import os
from pathlib import Path

import pytest

from minirun.blockdev import Disk, Mounted, disk_of, unescape, whole_disk
from minirun.errors import UsageError


@pytest.fixture
def sysfs(tmp_path: Path) -> str:
    """A /sys with the disk sda (8:0), its partition sda2 (8:2) and dm-0 (253:0)."""
    root = tmp_path / "sys"
    for place, numbers in (("sda", "8:0"), ("sda/sda2", "8:2"), ("dm-0", "253:0")):
        folder = root / "devices" / place
        folder.mkdir(parents=True)
        (folder / "dev").write_text(numbers + "\n")
        (root / "dev/block").mkdir(parents=True, exist_ok=True)
        (root / "dev/block" / numbers).symlink_to(folder)
    (root / "devices/sda/sda2/partition").write_text("2\n")
    return str(root)


def test_a_disk_is_itself_and_a_partition_is_its_disk(sysfs: str) -> None:
    assert disk_of(8, 0, sysfs) == Disk(8, 0, "sda")
    assert disk_of(8, 2, sysfs) == Disk(8, 0, "sda")
    assert disk_of(253, 0, sysfs) == Disk(253, 0, "dm-0")
    assert str(disk_of(8, 2, sysfs)) == "8:0"


def test_a_number_without_a_device_is_refused(sysfs: str) -> None:
    with pytest.raises(UsageError, match="no block device has the number 9:9"):
        disk_of(9, 9, sysfs)


def proc_with(tmp_path: Path, line: str) -> str:
    """A /proc whose every descriptor is on mount 50, described by `line`."""
    folder = tmp_path / "proc/self"
    (folder / "fdinfo").mkdir(parents=True)
    for number in range(64):
        (folder / "fdinfo" / str(number)).write_text("pos:\t0\nflags:\t0\nmnt_id:\t50\n")
    (folder / "mountinfo").write_text(f"49 1 0:9 / /else rw - proc proc rw\n{line}\n")
    return str(tmp_path / "proc")


# tmp_path may lie on any file system; /proc never has a device number of its own.
ANONYMOUS = "/proc/self"


@pytest.mark.parametrize(
    ("fstype", "words"),
    [
        ("tmpfs", "no block device carries"),
        ("nfs4", "another machine"),
        ("fuse.sshfs", "program"),
        ("proc", "the kernel makes up"),
        ("zfs", "does not tell its disk"),
    ],
)
def test_file_systems_without_a_disk_say_why(
    tmp_path: Path, sysfs: str, fstype: str, words: str
) -> None:
    proc = proc_with(tmp_path, f"50 1 0:40 / / rw - {fstype} none rw")
    with pytest.raises(UsageError, match=f"/proc/self is on {fstype}, .*{words}"):
        whole_disk(ANONYMOUS, sysfs, proc)


def test_an_overlay_is_on_the_disk_of_its_upper_layer(
    tmp_path: Path, sysfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper = tmp_path / "up per"
    upper.mkdir()
    shown = str(upper).replace(" ", "\\040")
    options = f"rw,lowerdir=/nowhere:/nowhere2,upperdir={shown},workdir=/w"
    proc = proc_with(tmp_path, f"50 1 0:40 / / rw,relatime shared:1 - overlay overlay {options}")
    seen = []
    real = os.open

    def spy(path: str, flags: int, *more: int) -> int:
        seen.append(path)
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", spy)
    try:
        whole_disk(ANONYMOUS, sysfs, proc)
    except UsageError:
        pass  # what carries tmp_path differs between machines
    assert str(upper) in seen
    assert "/nowhere" not in seen


def test_overlays_over_themselves_come_to_an_end(tmp_path: Path, sysfs: str) -> None:
    line = "50 1 0:40 / / rw - overlay overlay rw,lowerdir=/proc/self"
    with pytest.raises(UsageError, match="overlay"):
        whole_disk(ANONYMOUS, sysfs, proc_with(tmp_path, line))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "", "a\0b"])
def test_paths_that_are_not_there(path: str, sysfs: str) -> None:
    with pytest.raises(UsageError, match="cannot find the disk"):
        whole_disk(path, sysfs)


def test_a_character_device_is_no_disk(sysfs: str) -> None:
    with pytest.raises(UsageError, match="character device"):
        whole_disk("/dev/null", sysfs)


def test_no_descriptor_is_left_open(sysfs: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/dev/null", "/nowhere", "/proc/self"):
        with pytest.raises(UsageError):
            whole_disk(path, sysfs)
    assert len(os.listdir("/proc/self/fd")) == before


def test_mountinfo_is_unescaped() -> None:
    mount = Mounted("36 35 98:0 /a\\040b /mnt\\011x rw shared:1 - btrfs /dev/sd\\134a rw,subvol=/v")
    assert (mount.number, mount.device, mount.point) == ("36", "98:0", "/mnt\tx")
    assert (mount.fstype, mount.source, mount.option("subvol")) == ("btrfs", "/dev/sd\\a", "/v")
    assert mount.option("rw") is None
    assert unescape("a\\9b\\") == "a\\9b\\"
    assert unescape("\\303\\251") == "é"
