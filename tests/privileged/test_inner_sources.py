"""Bind sources in the root filesystem itself: opened at their turn, and never outside of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from runtime import good, host_same, mounts_of, read

if TYPE_CHECKING:
    from pathlib import Path

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def bind(box: Box, source: Path | str, destination: Path | str, *options: str) -> None:
    box.mount(str(destination), str(source), *(options or ("bind",)), "rprivate")


@pytest.mark.parametrize(
    ("user", "idmap"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["root", "userns", "idmap", "userns+idmap"],
)
@pytest.mark.requires("userns", kernel=(5, 12))
def test_each_source_is_as_the_mounts_before_left_it(box: Box, user: bool, idmap: bool) -> None:
    """What runc's test of the mount order does: a tree of binds, then copies of parts of it."""
    if user:
        box.user_namespace()
    outside = box.place / "outside"
    for one in ("a/x", "b/y", "c/z"):
        (outside / one).mkdir(parents=True)
        (outside / one / "file").write_text(one)
        (outside / f"sym-{one[0]}").symlink_to(one[0])
    outside.chmod(0o750)  # root of the user namespace is nobody here
    for name in ("mnt", "final"):
        (box.rootfs / name).mkdir()
    top = box.rootfs
    bind(box, outside / "a", "/mnt")
    bind(box, outside / "sym-b", "/mnt/x")
    bind(box, outside / "c", "/mnt/x/y")
    bind(box, outside / "sym-a", "/mnt/x/y/z")
    for source, destination in (
        (top / "mnt/x", top / "mnt/x/y/z/x"),
        (top / "mnt/x/y", top / "mnt/x/y/z"),
        (top / "mnt", top / "final"),
    ):
        bind(box, source, destination, "rbind")
        if idmap:
            box.config["mounts"][-1] |= {"uidMappings": MAPS, "gidMappings": MAPS}
    assert box.sh("cat /final/x/y/z/z/x/y/z/x/file") == "a/x"


@pytest.mark.requires("userns")
def test_where_only_root_of_the_host_may_look(box: Box) -> None:
    """The container's root cannot go through the directory; the bind that leads there is asked."""
    box.user_namespace()
    closed = box.place / "closed"
    (closed / "open").mkdir(parents=True)
    (closed / "open/file").write_text("seen\n")
    closed.chmod(0o700)
    bind(box, closed, "/vol")
    bind(box, box.rootfs / "vol/open", "/tmp")
    assert box.sh("cat /vol/open/file || cat /tmp/file") == "seen"


def test_a_tmpfs_of_the_container_is_a_source(box: Box) -> None:
    box.mount("/vol", "tmpfs", "mode=755", kind="tmpfs")
    bind(box, "rootfs/vol", "/tmp")
    assert box.sh("echo same > /vol/file && cat /tmp/file") == "same"
    assert os.listdir(box.rootfs / "vol") == []


def test_a_source_of_a_file(box: Box) -> None:
    (box.rootfs / "etc/issue").write_text("an issue\n")
    bind(box, box.rootfs / "etc/issue", "/etc/motd", "bind", "ro")
    found = box.probe().mounts["/etc/motd"]
    assert "ro" in found.options
    assert box.sh("cat /etc/motd") == "an issue"


@pytest.mark.parametrize("path", ["vol/out/sub", "vol/up/sub", "vol/../vol/out/sub"])
def test_links_of_the_image_do_not_lead_out(box: Box, canary: Path, path: str) -> None:
    (box.rootfs / "vol/out").symlink_to(canary)
    (box.rootfs / "vol/up").symlink_to(os.path.relpath(canary, box.rootfs / "vol"))
    bind(box, box.rootfs / path, "/tmp")
    with host_same(canary):
        box.refused("no such file or directory")


def test_a_link_of_the_image_leads_inside(box: Box) -> None:
    (box.rootfs / "vol/sub").mkdir()
    (box.rootfs / "vol/sub/file").write_text("inside\n")
    (box.rootfs / "link").symlink_to("/vol/sub")
    bind(box, box.rootfs / "link", "/tmp")
    assert box.sh("cat /tmp/file") == "inside"


def test_by_a_link_to_the_bundle(box: Box) -> None:
    link = box.place / "link"
    link.symlink_to(box.bundle)
    box.mount("/vol", "tmpfs", "mode=755", kind="tmpfs")
    bind(box, link / "rootfs/vol", "/tmp")
    assert box.sh("echo same > /vol/file && cat /tmp/file") == "same"


def test_a_source_that_no_mount_has_brought(box: Box) -> None:
    box.mount("/vol", "tmpfs", kind="tmpfs")
    bind(box, box.rootfs / "vol/none", "/tmp")
    message = box.refused("no such file or directory")
    assert "vol/none" in message


def test_the_root_itself(box: Box) -> None:
    (box.rootfs / "vol/file").write_text("once\n")
    bind(box, box.rootfs, "/tmp")
    assert box.sh("cat /tmp/vol/file; ls /tmp/proc") == "once"


def test_a_link_that_is_copied(box: Box) -> None:
    (box.rootfs / "vol/link").symlink_to("/etc/passwd")
    box.mount("/etc/other", str(box.rootfs / "vol/link"), "bind", "copy-symlink")
    assert box.sh("readlink /etc/other") == "/etc/passwd"


def test_a_destination_by_its_path_on_the_host(box: Box) -> None:
    """runc takes a destination below the root filesystem's own path from there."""
    box.mount(str(box.rootfs / "vol/sub"), "tmpfs", kind="tmpfs")
    assert "/vol/sub" in box.probe().mounts
    assert os.listdir(box.rootfs / "vol") == ["sub"]


def test_nothing_of_it_is_the_hosts(box: Box) -> None:
    before = set(mounts_of(read("/proc/self/mountinfo")))
    box.mount("/vol", "tmpfs", kind="tmpfs")
    bind(box, box.rootfs / "vol", "/tmp")
    good(box.run())
    assert set(mounts_of(read("/proc/self/mountinfo"))) == before
