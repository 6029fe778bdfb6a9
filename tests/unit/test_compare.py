"""`compare` without a machine: the archive, the figures, what is dropped, the text, the chart."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.cli.compare import check_files
from minirun.compare import bootfile, bpf, chart, disk, document, figures, guest, jobs, report
from minirun.compare.accelerator import EMULATED, Accelerator, label
from minirun.compare.bootfile import BootFile
from minirun.compare.child import Child, Silent
from minirun.compare.comparison import Outcome, memory_for, own_words
from minirun.compare.cpio import Archive
from minirun.compare.figures import Row
from minirun.compare.isolation import Count
from minirun.compare.load import Load, Ticks
from minirun.compare.machine import ARCHITECTURES, Plan
from minirun.compare.measure import Effort
from minirun.compare.place import Place
from minirun.compare.result import Result
from minirun.compare.session import Session
from minirun.errors import MinirunError

# ---------------------------------------------------------------- cpio


class Entry:
    """One entry as the kernel reads it."""

    def __init__(self, fields: list[int], name: str, data: bytes) -> None:
        self.inode, self.mode, self.uid, self.gid, self.links, self.time, self.size = fields[:7]
        self.device = (fields[9], fields[10])
        self.name, self.data = name, data


def entries(archive: bytes) -> dict[str, Entry]:
    """Read an archive by the format's description; its trailer must end it."""
    at = 0
    found: dict[str, Entry] = {}
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        at += -(-(110 + fields[11]) // 4) * 4
        data = archive[at : at + fields[6]]
        at += -(-fields[6] // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        found[os.fsdecode(name[:-1])] = Entry(fields, os.fsdecode(name[:-1]), data)


def pack(tree: Path) -> bytes:
    file = io.BytesIO()
    archive = Archive(file)
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        archive.add_tree(root)
    finally:
        os.close(root)
    archive.end()
    return file.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small root filesystem with one of each kind."""
    top = tmp_path / "tree"
    (top / "bin").mkdir(parents=True)
    (top / "etc").mkdir()
    (top / "etc").chmod(0o750)
    (top / "bin/busybox").write_bytes(b"\x7fELF" + b"x" * 5)
    (top / "bin/busybox").chmod(0o4755)
    (top / "bin/sh").symlink_to("busybox")
    os.link(top / "bin/busybox", top / "bin/zz")
    (top / "etc/empty").touch()
    (top / "etc/away").symlink_to("/etc/shadow")
    os.mkfifo(top / "etc/pipe", 0o600)
    return top


def test_an_archive_has_all_of_a_tree(tree: Path) -> None:
    found = entries(pack(tree))
    names = "bin etc bin/busybox bin/sh bin/zz etc/away etc/empty etc/pipe"
    assert sorted(found) == sorted(names.split())
    assert found["bin/busybox"].data == b"\x7fELFxxxxx"
    assert found["bin/busybox"].mode == stat.S_IFREG | 0o4755
    assert found["etc"].mode == stat.S_IFDIR | 0o750
    assert found["bin/sh"].data == b"busybox" and stat.S_ISLNK(found["bin/sh"].mode)
    assert found["etc/away"].data == b"/etc/shadow"
    assert stat.S_ISFIFO(found["etc/pipe"].mode)
    assert found["bin/busybox"].uid == os.getuid()


def test_hard_links_share_a_number_and_the_first_has_the_data(tree: Path) -> None:
    found = entries(pack(tree))
    first, second = found["bin/busybox"], found["bin/zz"]
    assert first.inode == second.inode and first.links == second.links == 2
    assert first.size == 9 and second.size == 0
    others = [one.inode for one in found.values() if one.name != "bin/zz"]
    assert len(set(others)) == len(others)


def test_parents_come_first(tree: Path) -> None:
    names = list(entries(pack(tree)))
    assert all(
        not os.path.dirname(name) or names.index(os.path.dirname(name)) < names.index(name)
        for name in names
    )


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_another_program_unpacks_it(tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    words = ["busybox", "cpio", "-i"]
    subprocess.run(words, input=pack(tree), cwd=there, capture_output=True, check=True)
    for path in tree.rglob("*"):
        copy = there / path.relative_to(tree)
        assert copy.lstat().st_mode == path.lstat().st_mode, path
        if path.is_file() and not path.is_symlink():
            assert copy.read_bytes() == path.read_bytes()
    assert (there / "bin/sh").readlink() == Path("busybox")
    assert (there / "bin/zz").samefile(there / "bin/busybox")


@given(st.lists(st.tuples(st.text("abc/é", min_size=1, max_size=9), st.binary(max_size=40))))
def test_entries_made_here_are_read_back(made: list[tuple[str, bytes]]) -> None:
    file = io.BytesIO()
    archive = Archive(file)
    for name, data in made:
        archive.add(name, stat.S_IFREG | 0o644, data)
    archive.end()
    found = entries(file.getvalue())
    assert {name: one.data for name, one in found.items()} == dict(made)


def test_a_machine_gets_nodes_init_and_job(tree: Path) -> None:
    file = io.BytesIO()
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        guest.check_shell(root)
        guest.write(file, root, jobs.BOOT)
    finally:
        os.close(root)
    found = entries(file.getvalue())
    assert found["dev/console"].device == (5, 1) and stat.S_ISCHR(found["dev/console"].mode)
    assert found[guest.INIT].data.startswith(b"#!/bin/sh\n") and found[guest.INIT].mode & 0o111
    assert found[guest.JOB].data == jobs.BOOT.encode()
    assert stat.S_ISDIR(found["proc"].mode)


def test_a_machine_with_a_disk_gets_the_modules_for_it(tree: Path, tmp_path: Path) -> None:
    images = guest.Images(str(tmp_path), str(tree))
    without = entries(Path(images.boot).read_bytes())
    assert b"mount -t ext4" not in without[guest.INIT].data and guest.MODULES not in without
    path = images.write("work", "job", [("00-virtio.ko", b"\x7fELF")])
    found = entries(Path(path).read_bytes())
    assert found[f"{guest.MODULES}/00-virtio.ko"].data == b"\x7fELF"
    assert b"mount -t ext4" in found[guest.INIT].data
    assert stat.S_ISDIR(found[jobs.DISK_PLACE[1:]].mode)
    checked = subprocess.run(["sh", "-n"], input=found[guest.INIT].data, check=False)
    assert checked.returncode == 0


def test_modules_lie_beside_the_kernel_in_the_order_of_loading(tmp_path: Path) -> None:
    place = tmp_path / "lib/modules/6.1/kernel"
    for path in ("fs/ext4/ext4.ko", "drivers/virtio/virtio.ko", "drivers/block/virtio_blk.ko.xz"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        data = lzma.compress(b"elf") if path.endswith("xz") else b"elf"
        (place / path).write_bytes(data)
    (place / "fs/fuse.ko").write_bytes(b"no")
    kernel = BootFile(str(tmp_path / "boot/vmlinuz-6.1"), 1, "6.1")
    names = ["00-virtio.ko", "01-virtio_blk.ko", "02-ext4.ko"]
    assert disk.modules(kernel) == [(name, b"elf") for name in names]
    assert disk.modules(BootFile("/none/boot/vmlinuz", 1, "")) == []


def test_a_disk_is_not_compared_with_memory() -> None:
    assert disk.file_system("/proc/self") == "proc"
    assert "no disk" in disk.lack("/dev/shm")
    assert disk.lack("/none/there") == "/none/there does not exist yet"


def test_a_root_filesystem_without_a_shell_is_refused(tree: Path) -> None:
    (tree / "bin/sh").unlink()
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(MinirunError, match="has no /bin/sh"):
            guest.check_shell(root)
    finally:
        os.close(root)


# ---------------------------------------------------------------- jobs


NAMES = {one.name for one in jobs.WORKLOADS}


def here(text: str, place: Path) -> str:
    """Let a script work in directories of the test's."""
    disk_ = str(place / "v")
    return text.replace("/dev/shm/compare", str(place / "d")).replace(jobs.DISK_PLACE, disk_)


def script(text: str) -> str:
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    return done.stdout


def test_work_says_what_it_did_and_the_same_each_time(tmp_path: Path) -> None:
    text = here(jobs.work(2, NAMES, quick=True), tmp_path)
    session = Session()
    for number, line in enumerate(script(text).splitlines()):
        session.take(float(number), line)
    assert set(session.times) | set(session.lacks) == NAMES
    assert all(len(found) == 2 for found in session.times.values())
    assert all(len(found) == 1 for found in session.results.values())
    assert all("" not in found for found in session.results.values())
    assert "done" in session.marks and "up" in session.marks


def test_a_tool_that_is_missing_is_named(tmp_path: Path) -> None:
    text = here(jobs.work(1, NAMES, quick=True), tmp_path)
    session = Session()
    for line in script(text.replace("command -v expr", "command -v no-such-tool")).splitlines():
        session.take(0.0, line)
    assert session.lacks == {"fork": "expr"} and "fork" not in session.times


def test_only_the_work_that_was_asked_for_is_done(tmp_path: Path) -> None:
    session = Session()
    for line in script(here(jobs.work(1, ["shell", "sync"], quick=True), tmp_path)).splitlines():
        session.take(0.0, line)
    assert set(session.times) == {"shell", "sync"}
    assert not list((tmp_path / "v").iterdir())


def test_a_machine_without_a_disk_says_so(tmp_path: Path) -> None:
    text = f"{jobs.DISK}=; {here(jobs.work(1, NAMES, quick=True), tmp_path)}"
    session = Session()
    for line in script(text).splitlines():
        session.take(0.0, line)
    disks = {one.name for one in jobs.WORKLOADS if one.disk}
    assert session.lacks == dict.fromkeys(disks, jobs.DISK) and not set(session.times) & disks
    assert not (tmp_path / "v").exists()


def test_work_that_failed_has_no_result(tmp_path: Path) -> None:
    text = here(jobs.work(1, ["read"], quick=True), tmp_path).replace("iflag=direct", "iflag=none")
    session = Session()
    for line in script(text).splitlines():
        session.take(0.0, line)
    assert session.results == {"read": set()} and not figures.agree([set(), set()])


def test_a_session_reads_marks_amid_noise() -> None:
    session = Session()
    for when, line in (
        (1.0, "SeaBIOS (version 1.16)"),
        (2.0, "\x1b[2J@minirun init"),
        (3.0, "@minirun begin hash"),
        (5.5, "@minirun end hash"),
        (6.0, "@minirun result hash abc  -"),
        (6.5, "@minirun end copy"),
        (7.0, "@minirun fact kernel Linux 6.1"),
        (8.0, "@minirun failed mount /proc"),
        (9.0, "@minirun"),
    ):
        session.take(when, line)
    assert session.marks == {"init": 2.0}
    assert session.times == {"hash": [2.5]} and session.results == {"hash": {"abc  -"}}
    assert session.facts == {"kernel": "Linux 6.1"}
    assert session.noise == ["SeaBIOS (version 1.16)", "failed: mount /proc", "@minirun"]


# ---------------------------------------------------------------- figures


def test_a_summary() -> None:
    found = figures.Summary([10, 20, 30, 40, 100])
    assert (found.count, found.minimum, found.median, found.spread) == (5, 10, 30, 20)
    assert figures.Summary([5, 1, 3]).spread == 4
    assert figures.Summary([7]).spread == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "why", "ratio"),
    [
        ([1, 1.1, 0.9], [10, 11, 9], "", 10.0),
        ([10, 11, 9], [1, 1.1, 0.9], "", 0.1),
        ([1, 5, 9], [6, 7, 8], "the spread exceeds the difference", None),
        ([1, 1, 1], [1, 1, 1], "the spread exceeds the difference", None),
        ([1, 1], [9, 9], "fewer than 3 samples", None),
        ([], [9, 9, 9], "measured on one side only", None),
    ],
)
def test_what_is_dropped(
    ours: list[float], theirs: list[float], why: str, ratio: float | None
) -> None:
    row = Row("x", "x", "ms", ours, theirs)
    assert row.dropped == why
    assert row.ratio == (None if ratio is None else pytest.approx(ratio))


@given(
    st.lists(st.floats(0.001, 1e6), min_size=3, max_size=20),
    st.lists(st.floats(0.001, 1e6), min_size=3, max_size=20),
)
def test_a_row_that_counts_is_apart_by_more_than_it_varies(
    ours: list[float], theirs: list[float]
) -> None:
    row = Row("x", "x", "ms", ours, theirs)
    apart = abs(figures.Summary(ours).median - figures.Summary(theirs).median)
    widest = max(figures.Summary(ours).spread, figures.Summary(theirs).spread)
    assert (row.ratio is not None) == (apart > widest)


@pytest.mark.parametrize(
    ("theirs", "settled"),
    [([14, 15, 13], True), ([9, 8, 10], False), ([14, 15], False), ([], False)],
)
def test_what_is_settled_needs_no_more_samples(theirs: list[float], settled: bool) -> None:
    row = Row("x", "x", "ms", [1, 2, 3], theirs)
    assert row.settled is settled
    row.note = "never"
    assert row.settled


def test_sizes_are_counted_once() -> None:
    assert Row("x", "x", "bytes", [10], [30]).ratio == 3


def test_the_slope_leaves_out_what_all_share() -> None:
    assert figures.slope([(1, 110.0), (2, 120.0), (4, 140.0)]) == pytest.approx(10)
    with pytest.raises(ValueError, match="two different numbers"):
        figures.slope([(1, 5.0), (1, 6.0)])


def test_results_must_agree() -> None:
    assert figures.agree([{"a"}, {"a"}])
    assert not figures.agree([{"a"}, {"b"}])
    assert not figures.agree([{"a"}, set()])
    assert not figures.agree([{"a", "b"}, {"a"}])


# ---------------------------------------------------------------- filters


def filter_(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)


ALLOW, ERRNO = 0x7FFF0000, 0x00050001


def test_a_filter_that_allows_two_numbers() -> None:
    program = filter_(
        (0x20, 0, 0, 0),  # the number
        (0x15, 1, 0, 39),
        (0x15, 0, 1, 60),
        (0x06, 0, 0, ALLOW),
        (0x06, 0, 0, ERRNO),
    )
    known = bpf.allowed([], "x86_64")[1]
    assert bpf.allowed([program], "x86_64") == (2, known)
    assert bpf.allowed([program, filter_((0x06, 0, 0, ERRNO))], "x86_64") == (0, known)
    assert bpf.allowed([], "x86_64") == (known, known)


def test_arithmetic_and_memory_of_a_filter() -> None:
    program = filter_(
        (0x00, 0, 0, 6),
        (0x02, 0, 0, 3),  # M[3] = 6
        (0x04, 0, 0, 10),
        (0x61, 0, 0, 3),  # X = M[3]
        (0x0C, 0, 0, 0),  # A += X
        (0x25, 0, 1, 21),
        (0x06, 0, 0, ALLOW),
        (0x16, 0, 0, 0),
    )
    assert bpf.run(list(struct.iter_unpack("=HBBI", program)), bytes(64)) == ALLOW


def test_an_unknown_instruction_is_not_guessed() -> None:
    with pytest.raises(bpf.Unreadable):
        bpf.allowed([filter_((0xFF, 0, 0, 0))], "x86_64")


# ---------------------------------------------------------------- kernels, accelerators, plans


def test_kernels_the_running_one_first_then_the_newest() -> None:
    names = ["config-6.1", "vmlinuz-6.1", "initrd.img-6.1", "vmlinuz-6.9", "vmlinuz-5.10"]
    assert bootfile.candidates(names, "5.10") == ["vmlinuz-5.10", "vmlinuz-6.9", "vmlinuz-6.1"]


def test_a_kernel_is_known_by_its_header(tmp_path: Path) -> None:
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x400).to_bytes(2, "little")
    image[0x600:0x610] = b"6.1.0-9 (debian)"
    good = tmp_path / "vmlinuz-6.1"
    good.write_bytes(image)
    found = bootfile.find(None, "x86_64", str(tmp_path))
    assert (found.path, found.size, found.version) == (str(good), 0x1000, "6.1.0-9")
    (tmp_path / "text").write_text("no kernel")
    with pytest.raises(MinirunError, match="not a bootable image for x86_64") as caught:
        bootfile.find(str(tmp_path / "text"), "x86_64")
    assert "apt-get download" in caught.value.fix


def test_no_kernel_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MinirunError, match="no kernel to boot in") as caught:
        bootfile.find(None, "x86_64", str(tmp_path))
    assert "linux-image-cloud-amd64" in caught.value.fix and "dpkg -x" in caught.value.fix
    with pytest.raises(MinirunError, match="no such file or directory"):
        bootfile.find(str(tmp_path / "none"), "x86_64")


def test_an_emulated_cpu_is_never_called_a_machine() -> None:
    assert label("tcg", "KVM_OK") == EMULATED
    assert label("kvm", "KVM_OK") == "KVM"
    assert "not what a VM costs" in label("kvm", "KVM_PVM")
    assert "nested" in label("kvm", "KVM_NESTED_OK")
    assert Accelerator("tcg", EMULATED, "").emulated
    assert Accelerator("kvm", label("kvm", "KVM_SLOW"), "").emulated
    assert not Accelerator("kvm", "KVM", "").emulated


def plan(name: str = "tcg") -> Plan:
    told = Accelerator(name, label(name, "KVM_OK"), "KVM_OK: KVM works")
    return Plan("/usr/bin/qemu", "q35", told, BootFile("/boot/vmlinuz", 14 << 20, "6.1"), 256 << 20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_machine_is_closed_and_without_a_disk(architecture: str) -> None:
    words = plan("kvm").command("/i.cpio", 7, architecture)
    text = " ".join(words)
    assert (
        "-nodefaults" in words and "-no-user-config" in words and "elevateprivileges=deny" in text
    )
    assert "-accel kvm -cpu host" in text and "-m 256M" in text and f"rdinit=/{guest.INIT}" in text
    assert "-drive" not in words and "-netdev" not in words
    two = plan("kvm").command("/i.cpio", 7, architecture, ["/0.img", "/1.img"])
    assert [word for word in two if word.endswith("cache=none")] == [
        "if=none,id=disk0,file=/0.img,format=raw,cache=none",
        "if=none,id=disk1,file=/1.img,format=raw,cache=none",
    ]
    assert ("ttyAMA0" in text) is (architecture == "aarch64")


def test_memory_grows_with_the_root_filesystem() -> None:
    assert memory_for(2 << 20) == 256 << 20
    assert memory_for(200 << 20) >= (256 + 400 - 64) << 20
    assert memory_for(123456789) % (64 << 20) == 0


def test_own_words_are_those_without_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/minirun", "compare", "--quick"])
    monkeypatch.setattr("sys.orig_argv", ["python3", "-ISB", "/bin/minirun", "compare", "--quick"])
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    assert own_words() == ["/usr/bin/python3", "-ISB", "/bin/minirun"]


def test_files_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    check_files("-", str(tmp_path / "a.svg"))
    with pytest.raises(MinirunError, match=r"must end in \.svg or \.png"):
        check_files(None, "chart.gif")
    with pytest.raises(MinirunError, match="flag --json"):
        check_files(str(tmp_path / "none" / "x.json"), None)


def test_more_is_measured_without_quick() -> None:
    whole, quick = Effort(quick=False), Effort(quick=True)
    assert whole.machines >= 5 and quick.machines >= figures.FEW
    assert quick.sessions * quick.rounds >= figures.FEW
    assert len(whole.instances) >= 3 and len(quick.instances) >= 2


# ---------------------------------------------------------------- the report


@pytest.fixture
def outcome() -> Outcome:
    """A comparison of figures that were made up."""
    storage = disk.Storage("/")
    storage.why, storage.kind, storage.device = "", "ext4", "virtio-blk"
    result = Result(storage)
    for number in range(5):
        shift = number * 0.5
        for key, short, long in (("first", 0.04, 2.0), ("payload", 0.04, 2.1), ("spent", 0.03, 2)):
            result.add(key, "container", short + shift / 1000)
            result.add(key, "vm", long + shift / 100)
        result.add("life", "container", 1 + number)
        result.add("life", "vm", 2 + number)
        result.phase("QEMU, until the machine runs", 0.05)
    ours, theirs = Session(), Session()
    for side, pace in ((ours, 1.0), (theirs, 10.0)):
        for one in jobs.WORKLOADS:
            side.times[one.name] = [pace, pace * 1.01, pace * 1.02]
            side.results[one.name] = {f"{one.name} <&>"}
    theirs.results["copy"] = {"another"}
    del ours.times["fork"], theirs.times["fork"]
    ours.lacks = {"fork": "expr"}
    result.work("container", ours)
    result.work("vm", theirs)
    result.totals = {"container": [(1, 2e6), (2, 2.1e6)], "vm": [(1, 2e8), (2, 4e8)]}
    result.disk = {"container": 20 << 20, "vm": 64 << 20}
    result.counts = [Count("kernel", "kernel", "the host's", "its own")]
    ticks = Ticks()
    result.load = Load(ticks, ticks)
    return Outcome(plan(), "busybox", "7.2", quick=True, result=result)


def test_the_text_names_what_was_dropped_and_why(outcome: Outcome) -> None:
    text = report.report(outcome)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["start, one line said, and all over"].endswith(
        "dropped: the spread exceeds the difference"
    )
    assert lines["100 times fork, execve, exit and wait"].endswith(
        "dropped: the root filesystem lacks expr"
    )
    assert "dropped: the results differ" in text
    assert "dropped" not in lines["first byte of user space"]
    assert EMULATED in text and "VM, emulated" in text and report.EMULATED[0] in text
    assert "steal" in text and "average before" in text
    assert max(len(line) for line in text.splitlines()[:12]) <= 100


def test_with_kvm_nothing_is_said_of_emulation(outcome: Outcome) -> None:
    outcome.plan = plan("kvm")
    text = report.report(outcome)
    assert "emulated" not in text.replace("devices that are emulated", "")


def test_the_document_has_every_sample(outcome: Outcome) -> None:
    found: dict[str, Any] = json.loads(json.dumps(document.document(outcome)))
    assert found["schema"] == "minirun.compare/1" and found["machine"]["emulated"] is True
    first = found["starting"][0]
    assert len(first["vm"]["samples"]) == 5 and first["ratio"] > 40 and first["dropped"] is None
    copy = next(row for row in found["working"] if row["key"] == "copy")
    assert copy["agrees"] is False and copy["container"] is None and copy["ratio"] is None
    keys = [row["key"] for part in ("starting", "working", "holding") for row in found[part]]
    assert len(keys) == len(set(keys))
    assert found["storage"]["device"] == "virtio-blk" and found["storage"]["cache"] == "none"
    schema = json.loads(document.schema())
    jsonschema.validate(found, schema)
    del found["starting"][0]["ratio"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema)


def test_the_chart_is_well_formed_and_has_a_bar_for_what_counts(outcome: Outcome) -> None:
    outcome.rootfs = "<&>\x1b[31m"
    top = ElementTree.fromstring(chart.svg(outcome))
    space = "{http://www.w3.org/2000/svg}"
    bars = [one for one in top.iter(f"{space}rect") if one.get("height") == "16"]
    result = outcome.result
    rows = [*result.starting(), *result.working(quick=True), *result.holding()]
    assert len(bars) == sum(row.ratio is not None for row in rows) > 3
    said = [one.text or "" for one in top.iter(f"{space}text")]
    assert any("the results differ" in text for text in said)
    assert any(EMULATED in text for text in said)
    assert all(0 <= float(one.get("x", "0")) <= 940 for one in bars)


@given(st.lists(st.floats(1e-6, 1e9)))
def test_the_scale_holds_every_bar(ratios: list[float]) -> None:
    low, high = chart.bounds(ratios)
    assert low <= 0 <= high and low < high
    assert all(10.0**low <= one * 1.0001 and one <= 10.0**high * 1.0001 for one in ratios)


# ---------------------------------------------------------------- children


def test_a_child_is_read_line_by_line_and_ended(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    child = Child(
        ["/bin/sh", "-c", "printf 'one\\r\\ntw'; echo oh >&2; echo o; exec sleep 60"], log
    )
    try:
        deadline = time.monotonic() + 60
        first, second = child.line(deadline), child.line(deadline)
        assert first is not None and second is not None
        assert (first[1], second[1]) == ("one", "two") and first[0] <= second[0]
        with pytest.raises(Silent, match="sh said nothing more in time: oh"):
            child.line(time.monotonic() + 0.3)
        assert os.getpgid(child.pid) == child.pid
        assert not child.wait(0)
    finally:
        child.end()
    child.end()
    assert child.name == "sh" and child.status == -9 and child.cpu is not None and child.cpu < 5
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    child = Child(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], str(tmp_path / "log"))
    try:
        said = child.line(time.monotonic() + 60)
    finally:
        child.end()
    assert said is not None
    # Adopted by this process (tests/conftest.py), so that its end can be seen.
    _, status = os.waitpid(int(said[1]), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    child = Child(["/none/qemu"], str(tmp_path / "log"))
    try:
        assert child.line(time.monotonic() + 60) is None
        assert child.wait(60) and child.status == 127
        assert child.last_words() == ": /none/qemu: no such file or directory"
    finally:
        child.end()


def test_a_place_takes_everything_with_it(tmp_path: Path) -> None:
    class Thing:
        ended = 0

        def go(self) -> None:
            raise MinirunError("it did not start")

        def end(self) -> None:
            self.ended += 1

    thing: Any = Thing()
    with pytest.raises(MinirunError, match="did not start"), Place(str(tmp_path)) as place:
        (Path(place.path) / "file").touch()
        place.start(lambda: thing)
    assert thing.ended == 1 and not list(tmp_path.iterdir())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
