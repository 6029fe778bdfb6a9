"""Where a mount is, by its words: sources and destinations below the root; attributes of a bind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minirun import mountoptions
from minirun.kernel import mount as m
from minirun.mounts.entries import below, place, shell_mount
from minirun.spec import Mount


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A root filesystem, its path without links, and links to it and into it beside it."""
    made = tmp_path.resolve() / "bundle/rootfs"
    (made / "mnt").mkdir(parents=True)
    (made.parent.parent / "link").symlink_to("bundle")
    (made.parent.parent / "direct").symlink_to("bundle/rootfs")
    (made / "out").symlink_to("/etc")
    return str(made)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{root}", "/"),
        ("{root}/", "/"),
        ("{root}/mnt", "/mnt"),
        ("{root}/none/yet", "/none/yet"),
        ("{root}//mnt/./x", "/mnt/x"),
        ("{root}/out/passwd", "/out/passwd"),
        ("{root}/../rootfs/mnt", "/mnt"),
        ("{top}/link/rootfs/mnt", "/mnt"),
        ("{top}/link/rootfs", "/"),
        ("{top}/direct/none", "/none"),
        ("{root}/../config.json", None),
        ("{root}/mnt/../../x", None),
        ("{root}-other/mnt", None),
        ("{top}", None),
        ("/etc/passwd", None),
        ("/", None),
    ],
)
def test_what_is_below_the_root(root: str, path: str, expected: str | None) -> None:
    path = path.format(root=root, top=Path(root).parents[1])
    assert below(root, path) == expected


def test_the_host_as_the_root_has_nothing_below() -> None:
    """The container's mounts are on a copy of it: what a path of the host names is the host's."""
    assert below("/", "/etc") is None


def entry(**fields: Any) -> Mount:
    return Mount.decode({"destination": "/vol", **fields}, "mounts[0]")


@pytest.mark.parametrize(
    ("root", "destination", "expected"),
    [
        ("/b/rootfs", "/vol", "/vol"),
        ("/b/rootfs", "vol/../x", "/x"),
        ("/b/rootfs", "/b/rootfs/vol", "/vol"),
        ("/b/rootfs", "/b/rootfs/a/../vol/", "/vol"),
        ("/b/rootfs", "/b/rootfs2/vol", "/b/rootfs2/vol"),
        ("/b/rootfs", "/b/rootfs", "/b/rootfs"),
        ("/", "/vol", "/vol"),
    ],
)
def test_destinations(root: str, destination: str, expected: str) -> None:
    assert place(root, entry(destination=destination)) == expected


def test_the_script_looks_for_what_is_there_only_then(root: str) -> None:
    line = shell_mount(entry(type="bind", source=f"{root}/none"), root)
    assert line.startswith(f"if [ -d {root}/none ]; then mkdir -p")
    assert "if [" not in shell_mount(entry(type="bind", source="/etc"), root)


RO, DEV, SUID, EXEC, LINKS = (
    m.MOUNT_ATTR_RDONLY, m.MOUNT_ATTR_NODEV, m.MOUNT_ATTR_NOSUID, m.MOUNT_ATTR_NOEXEC,
    m.MOUNT_ATTR_NOSYMFOLLOW,
)  # fmt: skip
FIVE = RO | DEV | SUID | EXEC | LINKS
TIMES = m.MOUNT_ATTR__ATIME | m.MOUNT_ATTR_NODIRATIME


def of_bind(options: list[str], held: int | None = None) -> tuple[int, int]:
    return mountoptions.of_bind(mountoptions.parse(entry(type="bind", options=options), "x"), held)


@pytest.mark.parametrize(
    ("options", "set_", "clear"),
    [
        ([], 0, 0),
        (["rbind", "rprivate"], 0, 0),
        (["rro", "rnosuid"], 0, 0),
        (["ro"], RO, FIVE & ~RO),
        (["rw"], 0, FIVE),
        (["ro", "rw", "nosuid"], SUID, FIVE & ~SUID),
        (["atime"], 0, FIVE),
        (["noatime", "atime"], 0, FIVE),
        (["noatime"], m.MOUNT_ATTR_NOATIME, FIVE | TIMES),
        (["relatime"], 0, FIVE | TIMES),
        (["noatime", "norelatime"], m.MOUNT_ATTR_NOATIME, FIVE | TIMES),
        (["noatime", "strictatime"], m.MOUNT_ATTR_STRICTATIME, FIVE | TIMES),
        (["nodiratime"], m.MOUNT_ATTR_NODIRATIME, FIVE | m.MOUNT_ATTR__ATIME),
    ],
    ids=lambda value: ",".join(value) or "none" if isinstance(value, list) else "",
)
def test_attributes_of_a_bind(options: list[str], set_: int, clear: int) -> None:
    assert of_bind(options) == (set_, clear)


def test_what_is_held_stays_or_is_refused() -> None:
    assert of_bind(["ro"], SUID | DEV) == (RO | SUID | DEV, EXEC | LINKS)
    assert of_bind([], SUID) == (0, 0)
    assert of_bind(["ro"], LINKS) == (RO, FIVE & ~RO)
    for options, held in ((["rw"], RO), (["exec"], EXEC), (["relatime"], m.MOUNT_ATTR_NOATIME)):
        with pytest.raises(PermissionError):
            of_bind(options, held)
    assert of_bind(["relatime", "ro"], 0)[0] == RO


def test_flags_of_statvfs() -> None:
    assert mountoptions.held_by(0x1 | 0x2 | 0x1000) == RO | SUID
    assert mountoptions.held_by(0x400 | 0x800) == m.MOUNT_ATTR_NOATIME | m.MOUNT_ATTR_NODIRATIME
    assert mountoptions.held_by(0) == m.MOUNT_ATTR_STRICTATIME
