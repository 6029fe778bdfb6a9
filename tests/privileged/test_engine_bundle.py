"""run --rootfs for real: the overlay, mapped owners, cleaning up, and peers that run the bundle.

Everything happens in a mount namespace of the test's own; the witnesses are mountinfo, stat and
what a container prints of itself under runc and under minirun.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import LIMIT, read_until, until

from minirun import cli, options
from minirun.cgroups.hierarchy import MOUNT_POINT, hierarchy
from minirun.engine import bundle, config, idrange, overlay
from minirun.engine.bundle import Prepared
from minirun.errors import AlreadyExists, MinirunError, UsageError
from minirun.kernel import mount as m
from minirun.kernel.unshare import CLONE_NEWNS, setns, unshare
from minirun.rootfs.users import users

pytestmark = pytest.mark.requires("root", "overlay", "userns", "rootfs")

TARBALL = os.environ.get("MINIRUN_ROOTFS_TARBALL", "")
MAIN = str(Path(__file__).parents[2] / "minirun" / "__main__.py")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
PROBE = """
for n in cgroup ipc mnt net pid time user uts; do echo "ns/$n=$(readlink /proc/self/ns/$n)"; done
echo "id=$(id -u):$(id -g)"
echo "hostname=$(hostname)"
echo "umask=$(umask)"
echo "nofile=$(ulimit -Sn):$(ulimit -Hn)"
echo "resolv=$(head -c 1 /etc/resolv.conf | wc -c)"
echo "map=$(cat /proc/self/uid_map | tr -s ' ')"
echo "shadow=$(stat -c %u:%g /etc/shadow)"
echo "ports=$(wc -l < /proc/net/dev)"
sed -n 's/^\\(CapInh\\|CapPrm\\|CapEff\\|CapBnd\\|CapAmb\\|NoNewPrivs\\|Seccomp\\):.\\(.*\\)/\\1=\\2/p' /proc/self/status
touch /written && echo "written=yes"
cat /proc/kcore > /dev/null 2>&1 || true; echo "keys=$(cat /proc/keys | wc -c)"
mknod /tmp/disk b 8 0 2> /dev/null && echo "mknod=yes"
(echo > /proc/sys/kernel/hostname) 2> /dev/null && echo "sysctl=yes"
true
"""  # noqa: E501


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A root filesystem, and a mount namespace with a cgroup v2 tree to use it in."""
    # Not below pytest's own directory: the root of a user namespace must be able to walk here.
    base = Path(tempfile.mkdtemp(prefix="minirun-test-", dir="/var/tmp"))
    base.chmod(0o711)
    home, here = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd()
    try:
        (base / "tree").mkdir()
        subprocess.run(["tar", "-C", base / "tree", "-xf", TARBALL], check=True)
        unshare(CLONE_NEWNS)
        m.mount(None, "/", None, m.MS_REC | m.MS_PRIVATE)
        if not hierarchy().usable:
            m.mount("none", MOUNT_POINT, "cgroup2", 0)
        yield base / "tree"
    finally:
        setns(home, CLONE_NEWNS)
        os.close(home)
        os.chdir(here)
        shutil.rmtree(base)


@pytest.fixture
def data(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory; afterwards nothing may be left of the test but the directories."""
    where = tree.parent / "data"
    monkeypatch.setenv("MINIRUN_DATA", str(where))
    before = (mounts(), descriptors())
    yield where
    containers = where / "containers"
    for name in os.listdir(containers) if containers.is_dir() else []:
        bundle.discard(str(containers / name))
    assert (mounts(), descriptors()) == before
    left = [str(path.relative_to(where)) for path in where.rglob("*")]
    assert set(left) <= {"containers", "idranges"}
    shutil.rmtree(where, ignore_errors=True)


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def prepare(tree: Path, *flags: str, command: tuple[str, ...] = (), cid: str = "web") -> Prepared:
    line = ["run", "--rootfs", str(tree), *flags, cid]
    return bundle.prepare(options.parse(line), cid, command)


def snapshot(directory: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
    return found


# ---------------------------------------------------------------- overlay and owners


def test_the_overlay_comes_and_goes(tree: Path, data: Path) -> None:
    before = mounts()
    prepared = prepare(tree)
    new = [line for line in mounts() if line not in before]
    assert len(new) == 2
    lower, merged = new
    assert f" {data}/containers/web/lower ro,nosuid,nodev" in lower
    assert "idmapped" in lower
    assert f" {data}/containers/web/rootfs rw,nodev" in merged
    assert " - overlay " in merged
    assert all("shared:" not in line for line in new)
    assert bundle.discard(prepared.bundle)
    assert mounts() == before
    assert not bundle.discard(prepared.bundle)


def test_owners_are_mapped_and_the_shared_tree_is_never_written(tree: Path, data: Path) -> None:
    before = snapshot(tree)
    rootfs = Path(prepare(tree).bundle, "rootfs")
    for path in ("", "etc", "bin/busybox"):
        status = (rootfs / path).stat()
        assert (status.st_uid, status.st_gid) == (524288, 524288)
    assert (rootfs / "etc/shadow").stat().st_gid == 524288 + (tree / "etc/shadow").stat().st_gid
    (rootfs / "etc/passwd").write_text("changed")
    (rootfs / "etc/group").unlink()
    assert (data / "containers/web/layer/upper/etc/passwd").read_text() == "changed"
    assert snapshot(tree) == before


def test_a_tree_in_use_is_known_to_be(tree: Path, data: Path) -> None:
    assert users(str(tree)) == []
    prepared = prepare(tree)
    assert any(str(data) in line for line in users(str(tree)))
    bundle.discard(prepared.bundle)
    assert users(str(tree)) == []


@pytest.mark.usefixtures("data")
def test_a_network_namespace_can_be_joined(tree: Path, runtime: str) -> None:
    holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    try:
        path = f"/proc/{holder.pid}/ns/net"
        until(lambda: os.readlink(path) != os.readlink("/proc/self/ns/net"))
        script = 'echo "net=$(readlink /proc/self/ns/net)"'
        found = probe(tree, runtime, "--network", f"ns:{path}", command=("sh", "-c", script))
        assert found["net"] == os.readlink(path)
    finally:
        holder.kill()
        holder.wait(LIMIT)


def test_the_hosts_namespace_is_an_option(tree: Path, data: Path) -> None:
    prepared = prepare(tree, "--userns", "host")
    assert Path(prepared.bundle, "rootfs/etc").stat().st_uid == 0
    assert any("root of the host" in note for note in prepared.notes)
    assert "user" not in str(document(prepared)["linux"]["namespaces"])
    assert not (data / "idranges").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "CAP_SYS_TIME allows nothing in a user namespace"),
        (["--userns", "host"], "CAP_SYS_TIME sets the clock of the machine"),
    ],
)
def test_what_a_capability_gives_away(tree: Path, data: Path, flags: list[str], told: str) -> None:
    prepared = prepare(tree, "--cap-add", "SYS_TIME", *flags)
    (note,) = [note for note in prepared.notes if "CAP_SYS_TIME" in note]
    assert note.startswith(told)


def document(prepared: Prepared) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(prepared.bundle, "config.json").read_text())
    return found


def test_a_tree_whose_owners_cannot_be_mapped(tree: Path, data: Path) -> None:
    # overlayfs itself cannot be id-mapped: fs/overlayfs/super.c has no FS_ALLOW_IDMAP.
    for name in ("upper", "work", "merged"):
        (tree.parent / name).mkdir()
    fd = m.fsopen("overlay")
    for key, name in (("lowerdir", "tree"), ("upperdir", "upper"), ("workdir", "work")):
        m.fsconfig_string(fd, key, str(tree.parent / name))
    m.fsconfig_create(fd)
    mounted = m.fsmount(fd)
    m.move_mount(mounted, -100, str(tree.parent / "merged"))
    os.close(mounted)
    os.close(fd)
    try:
        prepared = prepare(tree.parent / "merged")
        (note,) = [note for note in prepared.notes if "without a user namespace" in note]
        assert "cannot map the owners" in note
        assert Path(prepared.bundle, "rootfs/etc").stat().st_uid == 0
        assert os.listdir(data / "idranges") == []
        bundle.discard(prepared.bundle)
    finally:
        m.umount2(str(tree.parent / "merged"), m.MNT_DETACH)
        for name in ("upper", "work", "merged"):
            shutil.rmtree(tree.parent / name)


@pytest.mark.parametrize(
    "name", ["a,lowerdir=b,c", "a:b", "a\\b", "a b\nc", "-o", "%41", "a,b:c\\:d"]
)
def test_a_path_never_becomes_an_option(
    tree: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    strange = tree.parent / name
    strange.mkdir(mode=0o711)
    monkeypatch.setenv("MINIRUN_DATA", str(strange))
    try:
        os.rename(tree, strange / "tree")
        prepared = prepare(strange / "tree")
        assert Path(prepared.bundle, "rootfs/etc/alpine-release").is_file()
        assert Path(prepared.bundle, "rootfs/etc").stat().st_uid == 524288
        Path(prepared.bundle, "rootfs/new").touch()
        assert Path(prepared.bundle, "layer/upper/new").exists()
        bundle.discard(prepared.bundle)
    finally:
        os.rename(strange / "tree", tree)
        shutil.rmtree(strange)


def test_nobody_but_the_container_walks_into_it(tree: Path, data: Path) -> None:
    prepared = prepare(tree)
    assert reaches(524288, 524288, f"{prepared.bundle}/rootfs/bin/busybox")
    assert not reaches(65534, 65534, f"{prepared.bundle}/rootfs/bin/busybox")
    assert not reaches(65534, 65534, f"{prepared.bundle}/config.json")
    assert not reaches(524288, 524288, f"{prepared.bundle}/layer/upper")
    assert not reaches(524288, 524288, f"{prepared.bundle}/config.json", os.R_OK)
    bundle.discard(prepared.bundle)
    prepared = prepare(tree, "--userns", "host")
    assert not reaches(65534, 65534, f"{prepared.bundle}/rootfs/bin/busybox")


def reaches(uid: int, gid: int, path: str, mode: int = os.F_OK) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_namespace_that_is_a_slave_sees_it_come_and_go(tree: Path, data: Path) -> None:
    m.mount(None, "/", None, m.MS_REC | m.MS_SHARED)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWNS)
        m.mount(None, "/", None, m.MS_REC | m.MS_SLAVE)
        found = []
        for _ in range(2):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            found.append(str(data) in Path("/proc/self/mountinfo").read_text())
        os._exit(0 if found == [True, False] else 1)
    try:
        os.read(ready[0], 1)
        prepared = prepare(tree)
        os.write(go[1], b"x")
        os.read(ready[0], 1)
        bundle.discard(prepared.bundle)
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        for fd in (*ready, *go):
            os.close(fd)
        m.mount(None, "/", None, m.MS_REC | m.MS_PRIVATE)


def test_a_kernel_that_refuses_user_namespaces(
    tree: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_start: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(idrange, "namespace", refuse)
    prepared = prepare(tree)
    assert any("refuses a user namespace" in note for note in prepared.notes)
    assert os.listdir(data / "idranges") == []


# ---------------------------------------------------------------- undoing


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (idrange, "lease"),
        (bundle, "_mapped"),
        (overlay, "_overlay"),
        (overlay, "_make_directories"),
        (bundle, "_open_to"),
        (bundle, "_write"),
        (config, "document"),
    ],
)
@pytest.mark.parametrize(
    "error", [MinirunError("broken"), OSError(5, "broken"), KeyboardInterrupt()]
)
@pytest.mark.usefixtures("data")
def test_nothing_is_left_of_what_fails(
    tree: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: BaseException
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(where, name, fail)
    with pytest.raises(type(error)):
        prepare(tree)
    # The `data` fixture compares mounts, descriptors and files.


@pytest.mark.parametrize(
    "flags",
    [
        ("-u", "nobody-here"),
        ("-u", "70000"),
        ("-v", "/:/host"),
        ("-v", "/etc:/host:ro"),
        ("-v", "/absent-source:/x"),
        ("--memory", "what"),
        ("--security-opt", "seccomp=/absent"),
        ("--network", "bridge", "-p", "what"),
    ],
)
def test_nothing_is_left_of_flags_that_cannot_be(
    tree: Path, data: Path, flags: tuple[str, ...]
) -> None:
    with pytest.raises(MinirunError):
        prepare(tree, *flags)
    containers = data / "containers"
    assert not containers.exists() or os.listdir(containers) == []


def test_a_dangerous_volume_has_to_be_asked_for(tree: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="refusing --volume"):
        prepare(tree, "-v", f"{data.parent}:/x")
    prepared = prepare(tree, "-v", "/etc:/host:ro", "--security-opt", "dangerous-volumes")
    assert any("dangerous volume" in note for note in prepared.notes)


@pytest.fixture
def process() -> Iterator[None]:
    """What a command makes of its process is put back: the mask, handlers of signals."""
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    mask = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(mask)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("data", "process")
def test_a_volume_is_what_was_judged(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    when: str,
) -> None:
    """Who can write above it, another container say, puts a link to / in its place."""
    volume = tmp_path / "volume"
    volume.mkdir()
    judge = bundle._check_volumes

    def exchanged(*arguments: Any) -> None:
        if when == "after":
            judge(*arguments)
        volume.rmdir()
        volume.symlink_to("/")
        if when == "before":
            judge(*arguments)

    monkeypatch.setattr(bundle, "_check_volumes", exchanged)
    words = ["run", "--rootfs", str(tree), "-v", f"{volume}:/data", "web", "ls", "/data"]
    assert cli.main(["--root", str(tmp_path / "state"), *words]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert ("is not what it was" if when == "after" else "changed while it was") in said.err


def test_a_tree_that_holds_the_data_directory_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRUN_DATA", str(tree / "data"))
    for path in (tree, Path("/")):
        with pytest.raises(UsageError, match="holds the data directory"):
            prepare(path)
    assert not (tree / "data").exists()


def test_what_was_killed_half_way_is_removed_by_its_id(tree: Path, data: Path) -> None:
    pid = os.fork()
    if pid == 0:
        bundle._write = lambda *_args: os.kill(os.getpid(), 9)
        prepare(tree)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert any(str(data) in line for line in mounts())
    with pytest.raises(AlreadyExists):
        prepare(tree)
    assert not bundle.discard_leftover("web", "/run/another/root")
    assert bundle.discard_leftover("web")
    assert not any(str(data) in line for line in mounts())
    assert not bundle.discard_leftover("web")


def test_what_a_reboot_left_is_replaced(tree: Path, data: Path) -> None:
    first = prepare(tree)
    Path(first.bundle, "rootfs/old").touch()
    overlay.unmount(first.bundle)
    Path(first.bundle, "boot").write_text("an earlier one\n")
    second = prepare(tree)
    assert second.bundle == first.bundle
    assert not Path(second.bundle, "rootfs/old").exists()
    assert os.listdir(data / "idranges") == ["524288"]


def test_a_mount_inside_is_not_deleted_through(tree: Path, data: Path) -> None:
    canary = tree.parent / "canary"
    canary.mkdir()
    (canary / "file").write_text("precious")
    prepared = prepare(tree)
    inside = Path(prepared.bundle, "layer/upper/mounted")
    inside.mkdir()
    m.mount(str(canary), str(inside), None, m.MS_BIND)
    try:
        with pytest.raises(MinirunError, match="mounted"):
            bundle.discard(prepared.bundle)
        assert (canary / "file").read_text() == "precious"
    finally:
        m.umount2(str(inside), m.MNT_DETACH)
    assert bundle.discard(prepared.bundle)
    assert (canary / "file").read_text() == "precious"
    shutil.rmtree(canary)


@pytest.mark.usefixtures("data")
def test_a_hostile_layer_is_removed(tree: Path) -> None:
    canary = tree.parent / "canary"
    canary.write_text("precious")
    prepared = prepare(tree)
    here = os.getcwd()
    os.chdir(f"{prepared.bundle}/rootfs/tmp")
    try:
        for _ in range(1500):  # deeper than any path, or Python's stack
            os.mkdir("d" * 20)
            os.chdir("d" * 20)
        os.symlink(str(canary), "link")
        os.link("link", "hardlink")
        os.mkfifo("fifo")
        os.mkdir("closed", 0)
    finally:
        os.chdir(here)
    os.symlink("/", f"{prepared.bundle}/rootfs/out")
    bundle.discard(prepared.bundle)
    assert canary.read_text() == "precious"
    canary.unlink()


# ---------------------------------------------------------------- peers run it


def run(prepared: Prepared, runtime: str, cid: str) -> subprocess.CompletedProcess[str]:
    program = {
        "runc": ["runc"],
        "minirun": [sys.executable, "-ISB", MAIN],
    }[runtime]
    root = tempfile.mkdtemp(prefix="minirun-state-")
    try:
        return subprocess.run(
            [*program, "--root", root, "run", "-b", prepared.bundle, cid],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


def probe(
    tree: Path, runtime: str, *flags: str, command: tuple[str, ...] = ("sh", "-c", PROBE)
) -> dict[str, str]:
    """Prepare, run, and read the KEY=VALUE lines that the container printed."""
    if runtime == "runc":
        flags = (*flags, "--timens", "host")  # runc knows time namespaces since 1.2
    prepared = prepare(tree, *flags, command=command)
    done = run(prepared, runtime, f"test-{os.getpid()}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


@pytest.fixture(params=[pytest.param("runc", marks=pytest.mark.requires("runc")), "minirun"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.usefixtures("data")
def test_the_default_container(tree: Path, runtime: str) -> None:
    found = probe(tree, runtime)
    assert found["id"] == "0:0"
    assert found["hostname"] == "web"
    assert found["umask"] == "0022"
    assert found["nofile"] == "1024:4096"
    assert found["resolv"] == "1"
    assert found["map"].split() == ["0", "524288", "65536"]
    assert found["shadow"] == f"0:{(tree / 'etc/shadow').stat().st_gid}"
    assert found["ports"] == "3"  # two lines of heading, and lo
    nine = f"{0x5FB:016x}"
    assert [found[f"Cap{name}"] for name in ("Bnd", "Eff", "Prm")] == [nine] * 3
    assert [found[f"Cap{name}"] for name in ("Inh", "Amb")] == ["0" * 16] * 2
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert found["written"] == "yes"
    assert found["keys"] == "0"
    assert "mknod" not in found
    assert "sysctl" not in found
    for name in NAMESPACES:
        own = os.readlink(f"/proc/self/ns/{name}")
        shared = name == "time" and runtime == "runc"
        assert (found[f"ns/{name}"] == own) == shared, name


@pytest.mark.usefixtures("data")
def test_flags_reach_the_container(tree: Path, runtime: str) -> None:
    script = """
echo "id=$(id)"; echo "pwd=$PWD"; echo "A=$A"; echo "TERM=$TERM"
touch /x 2>/dev/null && echo "root=writable"
touch /t/x && echo "tmpfs=writable"
echo "t=$(df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2)"
echo "cap=$(sed -n 's/^CapBnd:.//p' /proc/self/status)"
"""
    found = probe(
        tree, runtime, "-u", "nobody", "-w", "/var", "-e", "A=b c", "--read-only", "--tmpfs",
        "/t:size=1m", "--cap-drop", "ALL", "--cap-add", "KILL", "--hostname", "other",
        command=("sh", "-c", script),
    )  # fmt: skip
    assert found["id"].startswith("uid") and "65534(nobody)" in found["id"]
    assert found["pwd"] == "/var"
    assert found["A"] == "b c"
    assert found["TERM"] == ""
    assert "root" not in found
    assert found["tmpfs"] == "writable"
    assert found["t"] == "1024"
    assert found["cap"] == f"{1 << 5:016x}"


@pytest.mark.usefixtures("data")
def test_the_hosts_network_beside_an_own_user_namespace(tree: Path, runtime: str) -> None:
    script = 'echo "net=$(readlink /proc/self/ns/net)"; touch /sys/x 2> /dev/null || echo "sys=ro"'
    found = probe(tree, runtime, "--network", "host", command=("sh", "-c", script))
    assert found == {"net": os.readlink("/proc/self/ns/net"), "sys": "ro"}


@pytest.fixture
def volume(tree: Path) -> Iterator[Path]:
    where = tree.parent / "volume"
    where.mkdir(mode=0o777)
    (where / "file").write_text("content")
    os.chown(where / "file", 1000, 1001)
    where.chmod(0o777)
    yield where
    shutil.rmtree(where)


@pytest.mark.usefixtures("data")
def test_files_in_a_volume_keep_their_owners(tree: Path, volume: Path) -> None:
    script = """
echo "file=$(stat -c %u:%g /data/file)"; touch /data/made && chown 5:6 /data/made
touch /ro/x 2> /dev/null || echo "ro=yes"
echo "flags=$(grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6)"
"""
    flags = ("-v", f"{volume}:/data", "--mount", f"src={volume},dst=/ro,ro")
    found = probe(tree, "minirun", *flags, command=("sh", "-c", script))
    assert found["file"] == "1000:1001"
    assert ((volume / "made").stat().st_uid, (volume / "made").stat().st_gid) == (5, 6)
    assert found["ro"] == "yes"
    assert {"nosuid", "nodev"} <= set(found["flags"].split(","))


@pytest.mark.requires("runc")
@pytest.mark.usefixtures("data")
def test_a_volume_under_runc_is_as_closed(tree: Path, volume: Path) -> None:
    script = """
touch /ro/x 2> /dev/null || echo "ro=yes"
echo "flags=$(grep ' /ro ' /proc/self/mountinfo | cut -d' ' -f6)"
"""
    found = probe(tree, "runc", "-v", f"{volume}:/ro:ro", command=("sh", "-c", script))
    assert found["ro"] == "yes"
    assert {"ro", "nosuid", "nodev"} <= set(found["flags"].split(","))


@pytest.mark.usefixtures("data")
def test_a_device_works(tree: Path, runtime: str) -> None:
    script = 'echo "bytes=$(head -c 5 /dev/nothing | wc -c)"'
    for userns in ("auto", "host"):
        found = probe(
            tree, runtime, "--userns", userns, "--device", "/dev/zero:/dev/nothing",
            command=("sh", "-c", script),
        )  # fmt: skip
        assert found == {"bytes": "5"}
        bundle.discard_leftover("web")


@pytest.mark.usefixtures("data")
def test_links_that_lead_nowhere_are_not_in_the_way(tree: Path, runtime: str) -> None:
    hostile = tree.parent / "hostile"
    shutil.copytree(tree, hostile, symlinks=True)
    for name, target in (
        ("resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("hosts", "hosts"),
        ("hostname", f"{tree.parent}/new"),
    ):
        (hostile / "etc" / name).unlink(missing_ok=True)
        (hostile / "etc" / name).symlink_to(target)
    before = snapshot(hostile)
    script = 'for n in resolv.conf hosts hostname; do echo "$n=$(head -c 1 /etc/$n | wc -c)"; done'
    try:
        found = probe(hostile, runtime, command=("sh", "-c", script))
        assert found == dict.fromkeys(("resolv.conf", "hosts", "hostname"), "1")
        assert snapshot(hostile) == before
        assert not (tree.parent / "new").exists()
    finally:
        bundle.discard_leftover("web")
        shutil.rmtree(hostile)


@pytest.mark.usefixtures("data")
def test_own_files_do_not_follow_the_trees_links(tree: Path, runtime: str) -> None:
    canary = tree.parent / "canary"
    canary.mkdir()
    hostile = tree.parent / "hostile"
    shutil.copytree(tree, hostile, symlinks=True)
    for name in ("hosts", "resolv.conf", "hostname"):
        (hostile / "etc" / name).unlink(missing_ok=True)
        (hostile / "etc" / name).symlink_to(canary / name)
        inside = hostile / str(canary)[1:] / name
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text("inside")
        (canary / name).write_text("precious")
    before = snapshot(canary)
    try:
        found = probe(hostile, runtime, command=("sh", "-c", 'echo "name=$(cat /etc/hostname)"'))
        assert found == {"name": "web"}
    finally:
        assert {path.read_text() for path in canary.iterdir()} == {"precious"}
        assert snapshot(canary) == before
        bundle.discard_leftover("web")
        shutil.rmtree(hostile)
        shutil.rmtree(canary)


# ---------------------------------------------------------------- detached


@pytest.fixture
def detached(tree: Path, data: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Run a detached container; return where its standard streams lead."""
    program = [sys.executable, "-ISB", MAIN, "--root", str(tmp_path / "state")]

    def run_detached(**streams: Any) -> list[str]:
        words = ["run", "-d", "--pid-file", str(tmp_path / "pid"), "--rootfs", str(tree), "web"]
        script = "echo out; echo err >&2; exec sleep 600"
        subprocess.run([*program, *words, "sh", "-c", script], timeout=LIMIT, check=True, **streams)
        pid = (tmp_path / "pid").read_text()
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]

    yield run_detached
    subprocess.run([*program, "delete", "--force", "web"], timeout=LIMIT, check=True)
    assert not (data / "containers/web").exists()


def test_a_file_keeps_what_a_detached_container_prints(
    detached: Callable[..., list[str]], tmp_path: Path
) -> None:
    with open(tmp_path / "log", "ab") as log:
        log.write(b"before\n")
        log.flush()
        streams = detached(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    assert streams == ["/dev/null", str(tmp_path / "log"), str(tmp_path / "log")]
    until(lambda: "err\n" in (tmp_path / "log").read_text())
    text = (tmp_path / "log").read_text()
    assert text.startswith("before\n") and "out\n" in text
    assert (tmp_path / "log").stat().st_uid == 0


def test_no_pipe_and_no_terminal_waits_for_a_detached_container(
    detached: Callable[..., list[str]],
) -> None:
    master, slave = pty.openpty()
    try:
        streams = detached(stdin=slave, stdout=subprocess.PIPE, stderr=slave)
        assert streams == ["/dev/null"] * 3
        told = read_until(master, b">web.log 2>&1").decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "nothing keeps what web prints on standard output and error" in told
    assert ">web.log 2>&1" in told


def test_one_that_is_late_leaves_the_next_of_its_id_alone(
    tree: Path, data: Path, tmp_path: Path
) -> None:
    """A run whose output nobody reads meets a container that was deleted and made anew."""
    program = [sys.executable, "-ISB", MAIN, "--root", str(tmp_path / "state")]
    words = [*program, "run", "--rootfs", str(tree)]

    def call(*more: str) -> None:
        quiet = subprocess.DEVNULL
        subprocess.run([*program, *more], timeout=60, check=True, stdin=quiet, stdout=quiet)

    flood = "touch /first; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
    layer = data / "containers/web/layer/upper"
    with subprocess.Popen(
        [*words, "-t", "web", "sh", "-c", flood], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as late:
        try:
            until((layer / "first").exists)
            # It waits for its reader.
            until(lambda: "pipe" in Path(f"/proc/{late.pid}/wchan").read_text())
            call("delete", "--force", "web")
            call("run", "-d", "--rootfs", str(tree), "web", "sh", "-c", "touch /second; sleep 60")
            until((layer / "second").exists)
        finally:
            late.communicate(timeout=60)
    try:
        assert (layer / "second").exists()
        assert os.listdir(data / "idranges") == ["524288"]
        call("exec", "web", "ls", "/second")
    finally:
        call("delete", "--force", "web")
    assert os.listdir(data / "containers") == os.listdir(data / "idranges") == []
