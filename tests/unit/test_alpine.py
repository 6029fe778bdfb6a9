"""What is made of a mirror's words, with a mirror that is a dictionary."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from minirun.errors import MinirunError, UsageError
from minirun.rootfs import alpine, busybox, download, install, pull, store

MIRROR = "https://mirror.test/alpine"
ARCH = "x86_64"
SHA256, SHA512 = "ab" * 32, "cd" * 64


@pytest.fixture
def known() -> alpine.Catalogue:
    return alpine.catalogue()


def listing(version: str = "3.99.1", **changes: str) -> bytes:
    fields = {
        "branch": "v3.99",
        "arch": ARCH,
        "version": version,
        "flavor": "alpine-minirootfs",
        "file": f"alpine-minirootfs-{version}-{ARCH}.tar.gz",
        "date": "2030-01-02",
        "size": "1234",
        "sha256": SHA256,
        "sha512": SHA512,
        **changes,
    }
    rows = "".join(f"  {key}: {value}\n" for key, value in fields.items() if value)
    return f'---\n-\n  title: "Standard"\n  flavor: alpine-standard\n-\n{rows}'.encode()


def resolve(known: alpine.Catalogue, version: str, files: dict[str, bytes]) -> alpine.Release:
    def fetch(url: str) -> bytes:
        path = url.removeprefix(MIRROR + "/")
        if path not in files:
            raise download.NotFound(url)
        return files[path]

    return alpine.resolve(known, MIRROR, alpine.check_version(version), ARCH, fetch)


@pytest.mark.parametrize(
    ("version", "folder"),
    [("", "latest-stable"), ("latest", "latest-stable"), ("3.99", "v3.99"), ("v3.99", "v3.99")],
)
def test_the_newest_release_comes_from_the_list(
    known: alpine.Catalogue, version: str, folder: str
) -> None:
    place = f"{folder}/releases/{ARCH}"
    found = resolve(known, version, {f"{place}/latest-releases.yaml": listing()})
    assert found.version == "3.99.1"
    assert found.url == f"{MIRROR}/{place}/alpine-minirootfs-3.99.1-{ARCH}.tar.gz"
    assert found.digests == {"sha256": SHA256, "sha512": SHA512}
    assert found.size == 1234 and not found.pinned


def test_edge_is_a_snapshot_whose_date_is_a_number_to_yaml(known: alpine.Catalogue) -> None:
    files = {f"edge/releases/{ARCH}/latest-releases.yaml": listing("20300102")}
    assert resolve(known, "edge", files).version == "20300102"


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_one_release_comes_with_its_checksum_file(known: alpine.Catalogue, name: str) -> None:
    digest = {"sha256": SHA256, "sha512": SHA512}[name]
    url = f"v3.99/releases/{ARCH}/alpine-minirootfs-3.99.1-{ARCH}.tar.gz"
    found = resolve(known, "3.99.1", {f"{url}.{name}": f"{digest}  file\n".encode()})
    assert (found.url, found.digests) == (f"{MIRROR}/{url}", {name: digest})


def test_a_pinned_release_needs_no_checksum_file(known: alpine.Catalogue) -> None:
    found = resolve(known, "3.20.3", {})
    assert found.pinned and set(found.digests) == {"sha256", "sha512"}


def test_a_mirror_that_contradicts_a_pin_is_refused(known: alpine.Catalogue) -> None:
    files = {f"v3.20/releases/{ARCH}/latest-releases.yaml": listing("3.20.3")}
    with pytest.raises(MinirunError, match="is not the pinned one"):
        resolve(known, "3.20", files)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"<html>", "is not a release list"),
        (b"a: [", "is not a release list"),
        (b"[" * 3000, "is not a release list"),
        (b"!!python/object/apply:os.system ['true']", "is not a release list"),
        (b"- flavor: alpine-standard", "lists no alpine-minirootfs"),
        (listing(file="../../evil.tar.gz"), "unexpected file name"),
        (listing(version="3.99.1/../.."), "unexpected file name"),
        (listing(sha256="", sha512=""), "no checksum"),
        (listing(sha256="zz" * 32, sha512="ab"), "no checksum"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(
    known: alpine.Catalogue, text: bytes, words: str
) -> None:
    with pytest.raises(MinirunError, match=words):
        resolve(known, "", {f"latest-stable/releases/{ARCH}/latest-releases.yaml": text})


def test_a_release_that_is_not_there_is_said(known: alpine.Catalogue) -> None:
    with pytest.raises(MinirunError, match=r"the mirror has no Alpine 3\.98 for x86_64"):
        resolve(known, "3.98", {})
    with pytest.raises(MinirunError, match=r"the mirror has no Alpine 3\.98\.1 for x86_64"):
        resolve(known, "3.98.1", {})


@pytest.mark.parametrize(
    "version", ["3", "3.", "3.2.1.1", "3.20\n", "٣.20", "latest-stable", "../x", "3.20;x", "V3.20"]
)
def test_versions_that_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match="invalid Alpine version"):
        alpine.check_version(version)


def test_what_a_release_satisfies() -> None:
    assert alpine.satisfies("3.20.3", "") and alpine.satisfies("3.20.3", "3.20")
    assert not alpine.satisfies("3.20.3", "3.2")
    assert not alpine.satisfies("3.20.3", "edge") and alpine.satisfies("20300102", "edge")
    releases = ["3.9.6", "3.20.0", "3.20.0_rc1", "20300102", "3.20.10", "3.20.9"]
    assert sorted(releases, key=alpine.order) == [
        "20300102", "3.9.6", "3.20.0_rc1", "3.20.0", "3.20.9", "3.20.10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["", "alpine.test", "ftp://a.test", "file:///etc", "https://", "https://u:p@a.test",
     "https://a.test?x", "https://a.test/#x", "https://a.test/\n", "https://a.test:x", "https://[",
     "https://a.test/é"],
)  # fmt: skip
def test_mirrors_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="invalid mirror"):
        download.check_mirror(url)


def test_which_mirrors_nobody_can_tamper_with() -> None:
    assert download.is_private("https://a.test/x") and download.is_private("http://127.0.0.1:8/x")
    assert download.is_private("http://[::1]:8/") and download.is_private("http://localhost/")
    assert not download.is_private("http://a.test/")
    assert not download.is_private("http://127.0.0.1.evil.test/")


@pytest.mark.parametrize(
    ("mirror", "sha256", "version", "warned"),
    [
        ("http://mirror.test", "", "3.99.1", True),
        ("https://mirror.test", "", "3.99.1", False),
        ("http://127.0.0.1:1", "", "3.99.1", False),
        ("http://mirror.test", SHA256, "3.99.1", False),
        ("http://mirror.test", "", "3.20.3", False),  # pinned
    ],
)
def test_a_mirror_that_proves_nothing_is_warned_of(  # noqa: PLR0917
    known: alpine.Catalogue,
    monkeypatch: pytest.MonkeyPatch,
    mirror: str,
    sha256: str,
    version: str,
    warned: bool,
) -> None:
    warnings: list[str] = []
    order = install.Order("/nowhere", "alpine", sha256=sha256)
    monkeypatch.setattr(order.listener, "warn", warnings.append)
    monkeypatch.setattr(install, "up_to_date", lambda *_: store.RootFS(name="alpine"))
    monkeypatch.setattr(alpine.resolve, "__defaults__", (lambda _url: f"{SHA256} x".encode(),))
    pull._from_mirror(known, mirror, version, ARCH, order)
    assert [f"{mirror} is not encrypted" in text for text in warnings] == [True] * warned


def test_digests_are_checked_for_their_form() -> None:
    assert install.check_sha256("sha256:" + "AB" * 32) == SHA256
    for text in ("ab", "zz" * 32, SHA512, SHA256 + "\n"):
        with pytest.raises(UsageError):
            install.check_sha256(text)


def test_a_name_is_made_of_a_file() -> None:
    assert install.name_from_file("/x/Debian-12.tar.xz") == "debian-12"
    assert install.name_from_file("a.tgz") == install.name_from_file("a.TAR") == "a"
    for path in ("-.tar", "/x/.tar.gz", "a b.tar"):
        with pytest.raises(UsageError):
            install.name_from_file(path)


def test_the_pins_are_digests_of_tarballs_that_pull_can_use(known: alpine.Catalogue) -> None:
    for file, pin in known.pins.items():
        assert any(known.version_of(file, arch) for arch in alpine.ARCHITECTURES)
        assert {name: len(digest) for name, digest in pin.items()} == {"sha256": 64, "sha512": 128}


def test_the_pin_is_that_of_the_real_tarball(known: alpine.Catalogue) -> None:
    path = os.environ.get("MINIRUN_ROOTFS_TARBALL", "")
    if not os.path.basename(path) or os.path.basename(path) not in known.pins:
        pytest.skip("MINIRUN_ROOTFS_TARBALL names no pinned tarball")
    digest = hashlib.sha512(Path(path).read_bytes()).hexdigest()
    assert known.pins[os.path.basename(path)]["sha512"] == digest


def test_a_dynamic_program_is_no_busybox_for_a_root_filesystem(tmp_path: Path) -> None:
    python = Path(os.path.realpath("/proc/self/exe")).read_bytes()
    with pytest.raises(MinirunError, match="is dynamically linked") as caught:
        busybox.check_static("python", python)
    assert "busybox-static" in caught.value.fix
    for program, words in [
        (b"", "not a program"),
        (b"#!/bin/sh\n", "not a program"),
        (python[:60], "damaged"),
        (python[:18] + b"\xff\xff" + python[20:], "another kind of machine"),
    ]:
        with pytest.raises(MinirunError, match=words):
            busybox.check_static("x", program)
