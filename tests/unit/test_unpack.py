"""Hostile and honest archives, unpacked beside a canary that must not change.

The archives are made by tarfile or by hand, the trees are read by os alone.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirun.errors import MinirunError
from minirun.rootfs import archive, unpack

Box = Callable[..., unpack.Unpacked]


def entry(name: str, type_: bytes = tarfile.REGTYPE, **attributes: Any) -> tarfile.TarInfo:
    """Make a header that belongs to whoever runs the test."""
    info = tarfile.TarInfo(name)
    info.type = type_
    info.mode = 0o755 if type_ == tarfile.DIRTYPE else 0o644
    info.uid, info.gid = os.getuid(), os.getgid()
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def file(name: str, data: bytes = b"x", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, size=len(data), **attributes), data


def link(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def folder(name: str, **attributes: Any) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE, **attributes)


def pack(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in entries:
            info, data = one if isinstance(one, tuple) else (one, None)
            tar.addfile(info, None if data is None else io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "canary").write_text("alive")
    return path


@pytest.fixture
def box(tree: Path, outside: Path, tmp_path: Path) -> Box:
    """Unpack bytes into `tree`; fails if anything beside the tree changes or a descriptor leaks."""

    def run(data: bytes, **options: Any) -> unpack.Unpacked:
        before = descriptors()
        try:
            return unpack_bytes(data, tree, **options)
        finally:
            assert descriptors() == before
            assert sorted(os.listdir(tmp_path)) == ["outside", "tree"]
            assert os.listdir(outside) == ["canary"]
            assert (outside / "canary").read_text() == "alive"
            assert (outside / "canary").stat().st_nlink == 1

    return run


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def unpack_bytes(data: bytes, tree: Path, **options: Any) -> unpack.Unpacked:
    source = os.memfd_create("archive")
    target = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.write(source, data)
        os.lseek(source, 0, os.SEEK_SET)
        return unpack.unpack(source, target, **options)
    finally:
        os.close(source)
        os.close(target)


def refused(box: Box, data: bytes, words: str, **options: Any) -> None:
    with pytest.raises(MinirunError, match=words):
        box(data, **options)


# Honest archives.


def test_an_archive_becomes_what_it_says(box: Box, tree: Path) -> None:
    done = box(
        pack(
            folder("./", mode=0o711, mtime=1_000_000_000),
            folder("bin", mode=0o750, mtime=1_100_000_000),
            file("bin/su", b"#!", mode=0o4755, mtime=1_200_000_000),
            link("sbin", "bin"),
            hard("bin/sudo", "./bin/su"),
            entry("pipe", tarfile.FIFOTYPE, mode=0o620),
        )
    )
    su = (tree / "bin/su").stat()
    assert stat.S_IMODE(tree.stat().st_mode) == 0o711
    assert stat.S_IMODE((tree / "bin").stat().st_mode) == 0o750
    assert stat.S_IMODE(su.st_mode) == 0o4755
    assert (tree.stat().st_mtime, (tree / "bin").stat().st_mtime) == (1_000_000_000, 1_100_000_000)
    assert su.st_mtime == 1_200_000_000
    assert su.st_nlink == 2 and (tree / "bin/sudo").samefile(tree / "bin/su")
    assert os.readlink(tree / "sbin") == "bin"
    assert stat.S_ISFIFO((tree / "pipe").stat().st_mode)
    assert stat.S_IMODE((tree / "pipe").stat().st_mode) == 0o620
    assert (done.entries, done.size, done.top) == (6, 2, {"bin", "sbin", "pipe"})


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(box: Box, tree: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        box(pack(file("a/b/c", mode=0o666), entry("p", tarfile.FIFOTYPE, mode=0o666)))
    finally:
        os.umask(former)
    modes = [stat.S_IMODE((tree / name).stat().st_mode) for name in ("a", "a/b", "a/b/c", "p")]
    assert modes == [0o755, 0o755, 0o666, 0o666]


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, lzma.compress, bz2.compress],
    ids=["plain", "gzip", "xz", "bzip2"],
)
def test_compressions_are_told_apart(
    box: Box, tree: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = os.urandom(1_200_000)
    box(compress(pack(file("a", data))))
    assert (tree / "a").read_bytes() == data


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_streams_one_after_the_other_are_one(
    box: Box, tree: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = pack(file("a", b"abc" * 1000))
    box(compress(data[:700]) + compress(data[700:]) + bytes(64))
    assert (tree / "a").read_bytes() == b"abc" * 1000


def test_the_digest_is_that_of_the_whole_file(box: Box) -> None:
    data = gzip.compress(pack(file("a"))) + bytes(1000)
    witness = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True)
    assert box(data).digest == witness.stdout.decode().split()[0]


def test_long_names_are_kept(box: Box, tree: Path) -> None:
    name = "/".join(["d" * 200] * 10) + "/" + "f" * 255
    box(pack(file(name)))
    assert os.path.exists(os.path.join(tree, name))


def test_gnu_long_names_are_kept(box: Box, tree: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(link("l" * 150, "t" * 200))
    box(out.getvalue())
    assert os.readlink(tree / ("l" * 150)) == "t" * 200


def test_names_that_are_not_text_are_kept(box: Box, tree: Path) -> None:
    box(pack(file(os.fsdecode(b"caf\xe9"))))
    assert os.listdir(os.fsencode(tree)) == [b"caf\xe9"]


def test_attributes_are_kept_but_those_that_steer_an_overlay(box: Box, tree: Path) -> None:
    box(
        pack(
            file(
                "a",
                pax_headers={
                    "SCHILY.xattr.user.colour": "blue",
                    "SCHILY.xattr.user.overlay.opaque": "y",
                    "SCHILY.xattr.trusted.overlay.redirect": "/etc",
                    "SCHILY.xattr.security.selinux": "x",
                },
            )
        )
    )
    assert os.listxattr(tree / "a") == ["user.colour"]
    assert os.getxattr(tree / "a", "user.colour") == b"blue"


def test_a_sparse_file_stays_sparse(box: Box, tree: Path) -> None:
    box(sparse_archive([(1 << 30, 4)], 1 << 40, b"data"))
    status = (tree / "big").stat()
    assert status.st_size == 1 << 40 and status.st_blocks * 512 < 1 << 20
    with (tree / "big").open("rb") as opened:
        opened.seek(1 << 30)
        assert opened.read(5) == b"data\0"


def sparse_archive(extents: list[tuple[int, int]], size: int, data: bytes) -> bytes:
    """Make a file `big` in GNU tar's sparse format 1.0."""
    numbers = [len(extents), *[number for extent in extents for number in extent]]
    table = "".join(f"{number}\n" for number in numbers).encode()
    body = table + bytes(-len(table) % 512) + data
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "big",
        "GNU.sparse.realsize": str(size),
    }
    return pack(file("GNUSparseFile.0/big", body, pax_headers=headers))


# What later entries do to earlier ones.


def test_the_last_of_two_entries_wins_and_the_first_ones_link_keeps(box: Box, tree: Path) -> None:
    box(pack(file("a", b"old"), hard("b", "a"), file("a", b"new")))
    assert (tree / "a").read_text() == "new"
    assert (tree / "b").read_text() == "old"


def test_a_directory_replaces_a_link_to_one(box: Box, tree: Path) -> None:
    box(pack(folder("real"), link("a", "real"), folder("a"), file("a/f")))
    assert not (tree / "a").is_symlink() and (tree / "a/f").exists()
    assert os.listdir(tree / "real") == []


def test_a_directory_that_comes_twice_keeps_what_is_in_it(box: Box, tree: Path) -> None:
    box(pack(folder("a"), file("a/f"), folder("a", mode=0o700)))
    assert (tree / "a/f").exists()
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o700


def test_a_link_to_itself_stays(box: Box, tree: Path) -> None:
    box(pack(file("a", b"1"), hard("a", "a")))
    assert (tree / "a").read_text() == "1"


def test_a_link_inside_the_tree_is_followed_as_by_the_container(box: Box, tree: Path) -> None:
    box(pack(folder("usr/lib"), link("lib", "/usr/lib"), file("lib/x"), file("usr/lib/y")))
    assert sorted(os.listdir(tree / "usr/lib")) == ["x", "y"]


def test_whiteouts_are_files_like_any(box: Box, tree: Path) -> None:
    box(pack(file("a"), file(".wh.a", b"")))
    assert sorted(os.listdir(tree)) == [".wh.a", "a"]


# Ways out.


def test_absolute_names_stay_inside(box: Box, tree: Path, outside: Path) -> None:
    box(pack(file(str(outside / "canary"), b"dead")))
    assert (tree / str(outside / "canary").lstrip("/")).read_text() == "dead"


@pytest.mark.parametrize("name", ["../outside/canary", "a/../../outside/canary", "/..", ".."])
def test_names_with_dots_are_refused(box: Box, name: str) -> None:
    refused(box, pack(file(name, b"dead")), "leads out of the directory")
    refused(box, pack(folder(name)), "leads out of the directory")
    refused(box, pack(hard("x", name)), "leads out of the directory")


@pytest.mark.parametrize("target", ["../outside", "../../../../../..", "/"])
def test_a_file_through_a_link_that_leaves_stays_inside(
    box: Box, tree: Path, outside: Path, target: str
) -> None:
    data = pack(link("way", target), file("way/canary", b"dead"))
    if target == "../outside":
        refused(box, data, "a link that leads nowhere")
    else:
        box(data)
        assert (tree / "canary").read_text() == "dead"


def test_a_file_through_an_absolute_link_is_refused(box: Box, outside: Path) -> None:
    refused(box, pack(link("way", str(outside)), file("way/canary", b"dead")), "leads nowhere")


def test_a_file_replaces_a_link_instead_of_writing_through(
    box: Box, tree: Path, outside: Path
) -> None:
    target = str(outside / "canary")
    box(pack(link("a", target), hard("b", "a"), file("a", b"dead"), file("b", b"dead")))
    assert not (tree / "a").is_symlink() and not (tree / "b").is_symlink()


def test_a_directory_does_not_take_the_mode_of_a_link(box: Box, outside: Path) -> None:
    mode = outside.stat().st_mode
    box(pack(link("a", str(outside)), folder("a", mode=0o777)))
    assert outside.stat().st_mode == mode


@pytest.mark.parametrize("how", ["absolute", "through a link"])
def test_a_hard_link_to_a_file_of_the_host_is_refused(box: Box, outside: Path, how: str) -> None:
    target = str(outside / "canary")
    if how == "absolute":
        refused(box, pack(hard("a", target)), "no such file|not there")
    else:
        data = pack(link("way", str(outside)), hard("a", "way/canary"), file("a", b"dead"))
        refused(box, data, "a link that is not followed")


def test_a_hard_link_to_a_link_is_the_link(box: Box, tree: Path, outside: Path) -> None:
    box(pack(link("a", str(outside / "canary")), hard("b", "a")))
    assert (tree / "b").is_symlink()


def test_devices_are_left_out_with_their_links(box: Box, tree: Path) -> None:
    done = box(
        pack(
            file("a"),
            entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("whiteout", tarfile.CHRTYPE, devmajor=0, devminor=0),
            hard("null2", "null"),
        )
    )
    assert os.listdir(tree) == ["a"] and done.devices == 3


def test_the_root_cannot_be_replaced(box: Box) -> None:
    refused(box, pack(link("./", "/")), "root directory")
    refused(box, pack(hard("a", ".")), "root directory")


def test_what_is_in_the_way_is_said(box: Box) -> None:
    refused(box, pack(file("a/b"), file("a")), "'a' would replace a directory that is not empty")
    refused(box, pack(file("c"), file("c/d")), "'c' is used as a directory but is none")


# Nonsense and bombs.


@pytest.mark.parametrize("value", [-1, (1 << 32) - 1, 1 << 32, 1 << 40])
@pytest.mark.parametrize("key", ["uid", "gid"])
def test_owners_that_cannot_be_are_refused(box: Box, key: str, value: int) -> None:
    refused(box, pack(file("a", pax_headers={key: str(value)})), "which cannot be")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-5", "1e300"])
def test_times_that_cannot_be_become_the_epoch(box: Box, tree: Path, value: str) -> None:
    box(pack(file("a", pax_headers={"mtime": value})))
    assert (tree / "a").stat().st_mtime == 0


def test_names_that_cannot_be_are_refused(box: Box) -> None:
    refused(box, pack(file("a" * 256)), "file name too long")
    refused(box, pack(file("a/" * 300 + "b")), "deeper than 256")
    refused(box, pack(file("a/" * 4000)), "longer than 4096")
    refused(box, pack(file("x", pax_headers={"path": "a\0b"})), "NUL byte")
    refused(box, pack(link("x", "")), "no such file")


def test_too_many_entries_are_refused(box: Box) -> None:
    refused(box, pack(*[file(f"f{i}") for i in range(11)]), "too many entries", max_entries=10)
    # Directories that no entry names count as well.
    refused(box, pack(file("a/" * 20 + "b")), "too many entries", max_entries=10)


@pytest.mark.parametrize("type_", [tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_names_that_would_take_the_memory_are_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch, type_: bytes
) -> None:
    """Of a directory or a device the name is kept to the end: 18 GB of a million long ones."""
    monkeypatch.setattr(unpack, "_NAMES_MAX", 10_000)
    names = ["/".join([f"{number}", *["ab"] * 200]) for number in range(20)]
    few = box(pack(*[entry(name, type_) for name in names[:10]]))
    assert few.entries == 10
    refused(box, pack(*[entry(name, type_) for name in names]), "names in the archive are longer")


def test_global_headers_do_not_add_up(box: Box) -> None:
    """tarfile keeps what they say, for every entry to come."""

    def said(length: int, count: int) -> bytes:
        make = tarfile.TarInfo.create_pax_global_header  # what `git archive` writes
        found = [make({f"key{number}": "v" * length}) + file_(number) for number in range(count)]
        return b"".join(found) + bytes(1024)

    def file_(number: int) -> bytes:
        return entry(f"f{number}").tobuf(tarfile.USTAR_FORMAT)

    assert box(said(100, 3)).entries == 3
    refused(box, said(1000, 10), "global headers are larger")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_a_bomb_is_refused(box: Box, compress: Callable[[bytes], bytes]) -> None:
    data = compress(pack(file("a", bytes(5 << 20))))
    assert len(data) < 100_000
    refused(box, data, "unpacks to more than 1048576 bytes", max_bytes=1 << 20)
    # Behind the end mark too.
    refused(box, compress(pack(file("a")) + bytes(5 << 20)), "more than", max_bytes=1 << 20)


def test_a_header_of_megabytes_is_refused(box: Box) -> None:
    refused(box, pack(file("a", pax_headers={"comment": "x" * 300_000})), "header is larger")


def test_a_header_that_claims_gigabytes_is_refused_without_reading_them(box: Box) -> None:
    claim = tarfile.TarInfo("././@LongLink")
    claim.type = tarfile.GNUTYPE_LONGNAME
    claim.size = 8 << 30
    refused(box, claim.tobuf(tarfile.GNU_FORMAT), "header is larger|not a tar archive")


@pytest.mark.parametrize(
    "extents", [[(0, 4), (2, 4)], [(10, 4), (0, 4)], [(-4, 4)], [(0, -4)], [(98, 4)]]
)
def test_sparse_maps_that_make_no_sense_are_refused(
    box: Box, extents: list[tuple[int, int]]
) -> None:
    refused(box, sparse_archive(extents, 100, b"datadata"), "sparse map")


def test_a_sparse_map_that_reaches_into_the_next_entry_is_refused(box: Box) -> None:
    refused(box, sparse_archive([(0, 100_000)], 100_000, b"data"), "damaged or cut")


def test_an_unknown_type_is_refused(box: Box) -> None:
    refused(box, pack(entry("a", b"Z")), "unknown type")


def test_a_negative_size_is_refused(box: Box) -> None:
    header = entry("a", size=-1024).tobuf(tarfile.GNU_FORMAT)
    refused(box, pack(file("b", b"x" * 2000))[:2560] + header + bytes(1024), "negative size")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(1000), "a zip file"),
        (b"\x7fELF" + bytes(1000), "a program"),
        (b"<!DOCTYPE html>" + bytes(1000), "a web page"),
        (b"hello, world\n" * 1000, "not a tar archive"),
        (bytes(1024), "holds nothing"),
        (gzip.compress(b""), "not a tar archive"),
        (b"\x1f\x8b" + b"x" * 600, "not a tar archive"),
        (b"BZh9" + b"x" * 600, "not a tar archive"),
        (b"\xfd7zXZ\x00" + b"x" * 600, "not a tar archive"),
    ],
)
def test_what_is_no_archive_is_named(box: Box, data: bytes, words: str) -> None:
    refused(box, data, words)


def test_zstandard_is_read_or_says_which_python_can(box: Box, tree: Path) -> None:
    data = bytes.fromhex("28b52ffd04") + bytes(600)
    refused(box, data, "zstd archives cannot be read by this Python|not a tar archive")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_an_archive_cut_anywhere_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    # 1024 zero bytes end an archive, tarfile fills up to 10240: a cut in those loses nothing.
    whole = pack(file("a", os.urandom(700)), folder("d"), link("l", "a"))
    data = compress(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    for number, length in enumerate(range(0, len(data), 61)):
        tree = tmp_path / str(number)
        tree.mkdir()
        with pytest.raises(MinirunError):
            unpack_bytes(data[:length], tree)


def test_damage_is_not_taken_for_the_end(box: Box) -> None:
    data = bytearray(pack(file("a", b"x"), file("b", b"x"), file("c", b"x")))
    data[1024 + 150] ^= 0x55  # in the checksum of b's header
    refused(box, bytes(data), "cut short or damaged at byte")


def test_damage_of_the_compressed_data_behind_the_end_mark_is_found(box: Box) -> None:
    data = bytearray(gzip.compress(pack(file("a", os.urandom(5000)))))
    data[-6] ^= 1  # in the CRC
    refused(box, bytes(data), "damaged or cut")


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutations_are_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("mutation")
    tree = place / "tree"
    tree.mkdir()
    raw = bytearray(
        pack(
            folder("d"), link("d/l", "../.."), file("d/f", b"x" * 600), hard("h", "d/f"),
            file("p" * 120, pax_headers={"mtime": "12.5", "SCHILY.xattr.user.a": "b"}),
        )
    )  # fmt: skip
    places = st.integers(0, len(raw) - 1)
    for where, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        raw[where] = value
    for at in data.draw(st.lists(st.integers(0, len(raw) // 512 - 1), max_size=3)):
        fix_checksum(raw, at * 512)
    try:
        unpack_bytes(bytes(raw), tree, max_bytes=1 << 20, max_entries=100)
    except MinirunError:
        pass
    assert os.listdir(place) == ["tree"]


def fix_checksum(raw: bytearray, at: int) -> None:
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])


# What is opened as an archive.


def test_only_files_and_pipes_are_archives(tmp_path: Path) -> None:
    with pytest.raises(MinirunError, match="no such file"):
        archive.open_archive(str(tmp_path / "none"))
    with pytest.raises(MinirunError, match="is not an archive") as caught:
        archive.open_archive(str(tmp_path))
    assert f"tar -C {tmp_path} -c ." in caught.value.fix
    with pytest.raises(MinirunError, match="is not an archive"):
        archive.open_archive("/dev/null")
    with pytest.raises(MinirunError, match="NUL"):
        archive.open_archive("a\0b")
