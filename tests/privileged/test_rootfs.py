"""`minirun rootfs` as its users see it: against a mirror on loopback, a full disk, signals, mounts.

Witnesses: GNU tar, the kernel's overlay, what is in the directories. The mirror serves the real
tarball where $MINIRUN_ROOTFS_TARBALL names it, else a small one made here.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import LIMIT, started

from minirun.errors import MinirunError
from minirun.remove import remove_tree
from minirun.rootfs import busybox, change, download, install, pull, store

pytestmark = pytest.mark.requires("root", "unshare")

PROJECT = Path(__file__).parents[2]
ARCH = os.uname().machine
CLI = "import sys; from minirun.cli import main; sys.exit(main(sys.argv[1:]))"
VERSION = "3.99.1"  # one that is not pinned
FILE = f"alpine-minirootfs-{VERSION}-{ARCH}.tar.gz"


def small_tarball() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, mode in (("./bin/sh", 0o755), ("./bin/su", 0o4755), ("./etc/passwd", 0o644)):
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, 1 << 19
            tar.addfile(info, io.BytesIO(os.urandom(1 << 19)))
    return out.getvalue()


@pytest.fixture(scope="session")
def tarball() -> bytes:
    path = os.environ.get("MINIRUN_ROOTFS_TARBALL")
    return Path(path).read_bytes() if path else small_tarball()


class Mirror:
    """An HTTP server on loopback. `files` maps paths to bytes; a callable writes the answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                answer = mirror.files.get(self.path)
                if callable(answer):
                    answer(self)
                    return
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(answer or b"")))
                self.end_headers()
                self.wfile.write(answer or b"")

            def log_message(self, *_args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # so that close() waits for them
        self.url = f"http://127.0.0.1:{self.server.server_port}/alpine"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def publish(self, data: bytes, *, sha256: str | None = None) -> str:
        """Offer `data` as the newest release; return the path of its tarball."""
        folder = f"/alpine/latest-stable/releases/{ARCH}"
        digest = sha256 or hashlib.sha256(data).hexdigest()
        self.files[f"{folder}/latest-releases.yaml"] = (
            f"---\n-\n  flavor: alpine-minirootfs\n  arch: {ARCH}\n  version: {VERSION}\n"
            f"  file: {FILE}\n  size: {len(data)}\n  sha256: {digest}\n"
        ).encode()
        self.files[f"{folder}/{FILE}"] = data
        return f"{folder}/{FILE}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()
    yield made
    made.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def left(data: Path) -> list[str]:
    """List what is in the store, hidden or not."""
    return sorted(set(os.listdir(data / "rootfs")) - {".lock"}) if data.exists() else []


def get(mirror: Mirror, data: Path, image: str = "alpine", **order: Any) -> store.RootFS:
    name = order.pop("name", "alpine")
    return pull.pull(image, install.Order(str(data), name, **order), {}, mirror=mirror.url)


def command(data: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", CLI, "rootfs", *arguments, "--data", str(data)]


def run(data: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), **options.pop("env", {})}
    return subprocess.run(
        command(data, *arguments), capture_output=True, text=True, env=environ, check=False,
        timeout=60, **options,
    )  # fmt: skip


def facts(tree: Path) -> dict[str, tuple[object, ...]]:
    """Describe every file below `tree` by what tar keeps."""
    found: dict[str, tuple[object, ...]] = {}
    for above, directories, files in os.walk(tree):
        for name in [".", *directories, *files]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            found[os.path.relpath(path, tree)] = (
                status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), content,
            )  # fmt: skip
    return found


# pull


def test_the_newest_release_is_pulled_as_tar_would_unpack_it(
    mirror: Mirror, data: Path, tarball: bytes, tmp_path: Path
) -> None:
    mirror.publish(tarball)
    made = get(mirror, data)
    (tmp_path / "tar").mkdir()
    subprocess.run(["tar", "-xpzf", "-", "-C", str(tmp_path / "tar")], input=tarball, check=True)
    theirs, ours = facts(tmp_path / "tar"), facts(Path(made.path))
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        if "." not in tar.getnames():  # else the time of the top is that of the unpacking
            del theirs["."], ours["."]
    assert ours == theirs
    assert made.version == VERSION
    assert made.digest == f"sha256:{hashlib.sha256(tarball).hexdigest()}"
    assert store.find(str(data), "alpine") == made
    assert left(data) == ["alpine"]


def test_what_is_current_is_not_downloaded_again(
    mirror: Mirror, data: Path, tarball: bytes
) -> None:
    path = mirror.publish(tarball)
    first = get(mirror, data)
    assert get(mirror, data) == first
    assert mirror.asked.count(path) == 1
    mirror.publish(small_tarball())
    with pytest.raises(MinirunError, match="root filesystem alpine already exists"):
        get(mirror, data)
    assert store.find(str(data), "alpine") == first
    changed = get(mirror, data, replace=True)
    assert changed.digest != first.digest
    assert left(data) == ["alpine"]


def test_a_wrong_checksum_is_refused(mirror: Mirror, data: Path, tarball: bytes) -> None:
    mirror.publish(tarball, sha256="ab" * 32)
    with pytest.raises(MinirunError, match="checksum mismatch") as caught:
        get(mirror, data)
    assert hashlib.sha256(tarball).hexdigest() in caught.value.cause
    assert left(data) == []


def test_a_digest_that_the_user_gives_is_the_one_that_counts(
    mirror: Mirror, data: Path, tarball: bytes
) -> None:
    mirror.publish(tarball)
    with pytest.raises(MinirunError, match="checksum mismatch"):
        get(mirror, data, sha256="1" * 64)
    assert left(data) == []
    get(mirror, data, sha256=hashlib.sha256(tarball).hexdigest())


def test_a_cut_download_is_refused(mirror: Mirror, data: Path, tarball: bytes) -> None:
    def cut(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(tarball)))
        request.end_headers()
        request.wfile.write(tarball[: len(tarball) // 2])

    mirror.files[mirror.publish(tarball)] = cut
    with pytest.raises(MinirunError, match=f"was cut: {len(tarball) // 2} of {len(tarball)} bytes"):
        get(mirror, data)
    assert left(data) == []


def test_a_cut_download_without_a_length_is_refused_by_its_checksum(
    mirror: Mirror, data: Path, tarball: bytes
) -> None:
    def cut(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(tarball[:-1])

    mirror.files[mirror.publish(tarball)] = cut
    with pytest.raises(MinirunError, match="checksum mismatch"):
        get(mirror, data)
    assert left(data) == []


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        for _ in range(1000):
            request.wfile.write(b"#" * 65536)
    except OSError:
        pass  # the client has hung up, as it should


def test_an_archive_without_end_is_not_read_to_it(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/alpine/x"] = endless
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    with pytest.raises(MinirunError, match="is larger than 1000000 bytes"):
        download.save(f"{mirror.url}/x", fd, lambda done, total: None, limit=1_000_000)
    assert os.fstat(fd).st_size < 2_000_000
    os.close(fd)


def test_a_list_without_end_is_refused(mirror: Mirror, data: Path) -> None:
    mirror.files[f"/alpine/latest-stable/releases/{ARCH}/latest-releases.yaml"] = endless
    with pytest.raises(MinirunError, match="is larger than 1048576 bytes"):
        get(mirror, data)
    assert left(data) == []


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://192.0.2.1/x"]
)
def test_redirects_to_weaker_places_are_refused(mirror: Mirror, data: Path, target: str) -> None:
    def away(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.end_headers()

    mirror.files[mirror.publish(b"x")] = away
    with pytest.raises(MinirunError, match=r"not encrypted|HTTP status 302"):
        get(mirror, data)
    assert left(data) == []


@pytest.mark.parametrize("status", [403, 500])
def test_a_refusal_of_the_server_is_told(mirror: Mirror, data: Path, status: int) -> None:
    def refuse(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_error(status)

    mirror.files[mirror.publish(b"x")] = refuse
    with pytest.raises(MinirunError, match=f"HTTP status {status}"):
        get(mirror, data)


def test_an_evil_archive_leaves_nothing(mirror: Mirror, data: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("etc/good"))
        tar.addfile(tarfile.TarInfo("../../../../evil"))
    mirror.publish(out.getvalue())
    with pytest.raises(MinirunError, match="leads out of the directory") as caught:
        get(mirror, data)
    assert caught.value.message.startswith(mirror.url)
    assert left(data) == []
    assert not list(tmp_path.rglob("evil"))


def test_the_tarball_at_hand_comes_before_the_network(
    data: Path, tarball: bytes, tmp_path: Path
) -> None:
    at_hand = tmp_path / FILE
    at_hand.write_bytes(tarball)
    environ = {"MINIRUN_ROOTFS_TARBALL": str(at_hand), "MINIRUN_MIRROR": "http://127.0.0.1:1"}
    done = run(data, "pull", "alpine", env=environ)
    assert done.returncode == 0, done.stderr
    assert f"using the tarball {at_hand}" in done.stderr
    # Another version is not made of it.
    done = run(data, "pull", "alpine:3.98", env=environ)
    assert done.returncode == 1
    assert "MINIRUN_ROOTFS_TARBALL is not used: it is not alpine:3.98" in done.stderr
    assert "127.0.0.1:1/v3.98" in done.stderr and "connection refused" in done.stderr
    assert left(data) == ["alpine"]


def test_a_pinned_name_with_other_content_is_refused(data: Path, tmp_path: Path) -> None:
    fake = tmp_path / "alpine-minirootfs-3.20.3-x86_64.tar.gz"
    fake.write_bytes(small_tarball())
    order = install.Order(str(data), "alpine")
    environ = {"MINIRUN_ROOTFS_TARBALL": str(fake)}
    with pytest.raises(MinirunError, match="checksum mismatch"):
        pull.pull("alpine", order, environ, arch="x86_64")
    assert left(data) == []


def test_people_see_progress_and_the_advice_programs_do_not(
    mirror: Mirror, data: Path, tarball: bytes
) -> None:
    def slow(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(tarball)))
        request.end_headers()
        step = len(tarball) // 4
        for start in range(0, len(tarball), step):
            request.wfile.write(tarball[start : start + step])
            time.sleep(0.2)

    mirror.files[mirror.publish(tarball)] = slow
    arguments = command(data, "pull", "alpine", "--mirror", mirror.url)
    for tail, status, words in [
        ([], 0, [b"MiB", b"checksum verified", b"try it: sudo minirun run --rootfs alpine"]),
        (["--sha256", "0" * 64], 1, [b"already exists", b"fix: ", b"--replace"]),
    ]:
        ours, theirs = os.openpty()
        with started(
            [*arguments, *tail], stderr=theirs, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm", "COLUMNS": "80"},
        ) as process:  # fmt: skip
            os.close(theirs)
            seen = read_terminal(ours)
            assert process.wait(LIMIT) == status
        os.close(ours)
        assert all(word in seen for word in words), seen
    quiet = run(data, "pull", "alpine", "--mirror", mirror.url, "-q")
    assert (quiet.stdout, quiet.stderr) == ("alpine\n", "")


def read_terminal(fd: int) -> bytes:
    seen = b""
    try:
        while chunk := os.read(fd, 65536):
            seen += chunk
    except OSError as error:
        assert error.errno == errno.EIO  # the other end was closed: pty(7)
    return seen


# What ends in the middle.


@pytest.fixture
def stuck(mirror: Mirror, tarball: bytes) -> Iterator[threading.Event]:
    """Have the mirror send half the tarball and wait; the event tells that half was sent."""
    half_sent, over = threading.Event(), threading.Event()

    def slow(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(tarball)))
        request.end_headers()
        request.wfile.write(tarball[: len(tarball) // 2])
        request.wfile.flush()
        half_sent.set()
        over.wait(LIMIT)

    mirror.files[mirror.publish(tarball)] = slow
    yield half_sent
    over.set()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_pull_that_is_stopped_leaves_nothing(
    mirror: Mirror, data: Path, stuck: threading.Event, number: int, status: int
) -> None:
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    arguments = command(data, "pull", "alpine", "--mirror", mirror.url)
    with started(arguments, env=environ, stderr=subprocess.PIPE) as process:
        assert stuck.wait(LIMIT)
        deadline = time.monotonic() + 30
        while not (hidden := left(data)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [name[:12] for name in hidden] == [".alpine.tmp-"]
        process.send_signal(number)
        assert process.wait(LIMIT) == status
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    if number == signal.SIGKILL:
        assert store.names(str(data / "rootfs")) == []
        with change.Stage(str(data), "other"):  # whoever comes next cleans up
            assert [name[:11] for name in left(data)] == [".other.tmp-"]
    assert left(data) == []


def test_the_stage_of_a_living_process_is_left_alone(data: Path) -> None:
    with change.Stage(str(data), "one"), change.Stage(str(data), "two"):
        assert len(left(data)) == 2
    assert left(data) == []


@pytest.mark.parametrize(
    ("size", "words"), [("64k", "cannot store alpine-minirootfs"), ("fits", "cannot unpack")]
)
def test_a_full_disk_is_told_and_leaves_nothing(
    mirror: Mirror, data: Path, tmp_path: Path, size: str, words: str
) -> None:
    # Compresses to less than the disk holds, unpacks to more.
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in ("etc/noise", "usr/large"):
            info = tarfile.TarInfo(name)
            info.size = 1 << 20 if name == "etc/noise" else 8 << 20
            content = os.urandom(info.size) if name == "etc/noise" else bytes(info.size)
            tar.addfile(info, io.BytesIO(content))
    mirror.publish(out.getvalue())
    data.mkdir(mode=0o711)
    script = (
        'mount -t tmpfs -o mode=711,size=$0 none "$1" || exit 99; shift; "$@"; code=$?; '
        f"ls -A {data}/rootfs; exit $code"
    )
    size = "4m" if size == "fits" else size
    pull_it = command(data, "pull", "alpine", "--mirror", mirror.url)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, size, str(data), *pull_it],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(PROJECT)},
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert words in done.stderr and "no space left on device" in done.stderr
    assert done.stdout == ".lock\n"


# Who may reach it, who uses it.


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_other_users_cannot_reach_the_set_user_id_files(
    data: Path, tmp_path: Path, umask: int
) -> None:
    tmp_path.chmod(0o755)
    tarball = tmp_path / "x.tar.gz"
    tarball.write_bytes(small_tarball())
    former = os.umask(umask)
    try:
        made = install.import_file(str(tarball), install.Order(str(data), "x"))
    finally:
        os.umask(former)
    program = Path(made.path, "bin/su")
    assert program.stat().st_mode & stat.S_ISUID
    assert stat.S_IMODE(data.stat().st_mode) & 0o066 == 0
    assert stat.S_IMODE((data / "rootfs").stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "rootfs/x").stat().st_mode) == 0o700
    for name in ("x/meta.json", ".lock"):
        assert stat.S_IMODE((data / "rootfs" / name).stat().st_mode) == 0o600
    tried = subprocess.run(
        ["stat", str(program)], user=65534, group=65534, extra_groups=[], capture_output=True,
        check=False, cwd="/",
    )  # fmt: skip
    assert tried.returncode == 1 and b"Permission denied" in tried.stderr


def test_an_open_store_is_closed(data: Path) -> None:
    (data / "rootfs").mkdir(parents=True)
    (data / "rootfs").chmod(0o755)
    with change.Stage(str(data), "x"):
        assert stat.S_IMODE((data / "rootfs").stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["overlay", "bind"])
def test_one_that_a_container_uses_is_not_removed(data: Path, tmp_path: Path, how: str) -> None:
    made = import_small(data, tmp_path)
    for name in ("mnt", "second"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/second:{made.path}"
    mounts = {
        "overlay": f"mount -t overlay -o {layers} none {tmp_path}/mnt",
        "bind": f"mount --bind {made.path}/etc {tmp_path}/mnt",
    }
    with started(  # in a mount namespace of its own, as a container's is
        ["unshare", "-m", "sh", "-c", f"{mounts[how]} && echo ready && read end"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        for act in (
            lambda: change.remove(str(data), "small"),
            lambda: import_small(data, tmp_path, replace=True),
        ):
            with pytest.raises(MinirunError, match="root filesystem small is in use") as caught:
                act()
            assert f"{tmp_path}/mnt" in caught.value.cause
            assert f"process {holder.pid}" in caught.value.cause
        assert facts(Path(made.path)) and left(data) == ["small"]
        holder.communicate(b"end\n")
    change.remove(str(data), "small")
    assert left(data) == []


def import_small(data: Path, tmp_path: Path, **order: Any) -> store.RootFS:
    path = tmp_path / "small.tar.gz"
    if not path.exists():
        path.write_bytes(small_tarball())
    return install.import_file(str(path), install.Order(str(data), "small", **order))


def test_a_tree_with_a_mount_in_it_is_not_removed_through(data: Path, tmp_path: Path) -> None:
    made = import_small(data, tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("alive")
    subprocess.run(["mount", "--bind", tmp_path / "precious", f"{made.path}/etc"], check=True)
    try:
        with pytest.raises(MinirunError, match="in use"):
            change.remove(str(data), "small")
        base = os.open(data / "rootfs", os.O_RDONLY)
        with pytest.raises(MinirunError, match="a file system is mounted on 'etc'"):
            remove_tree(base, "small")  # the check is not the only guard
        os.close(base)
    finally:
        subprocess.run(["umount", f"{made.path}/etc"], check=True)
    assert (tmp_path / "precious/file").read_text() == "alive"


@pytest.mark.requires("overlay")
def test_an_overlay_of_it_runs_its_programs(data: Path, tmp_path: Path) -> None:
    order = install.Order(str(data), "busybox")
    made = busybox.build(order)
    for name in ("tmpfs", "mnt"):
        (tmp_path / name).mkdir()
    script = (
        f"mount -t tmpfs none {tmp_path}/tmpfs && mkdir {tmp_path}/tmpfs/u {tmp_path}/tmpfs/w && "
        f"mount -t overlay -o lowerdir={made.path},upperdir={tmp_path}/tmpfs/u,"
        f"workdir={tmp_path}/tmpfs/w none {tmp_path}/mnt && exec chroot {tmp_path}/mnt "
        "/bin/sh -c 'echo new > /etc/hostname; cat /etc/hostname; exec id -u'"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, check=False)
    assert done.stdout == b"new\n0\n", done.stderr
    assert Path(made.path, "etc/hostname").read_text() == "localhost\n"


# The rest of the commands.


def test_import_reads_standard_input(data: Path, tarball: bytes) -> None:
    done = subprocess.run(
        command(data, "import", "-", "--name", "piped", "-q"), input=tarball, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"piped\n", b"")
    meta = json.loads((data / "rootfs/piped/meta.json").read_text())
    assert meta["digest"] == f"sha256:{hashlib.sha256(tarball).hexdigest()}"
    assert meta["source"] == "standard input"


def test_import_checks_the_digest_of_a_pipe_at_its_end(data: Path, tarball: bytes) -> None:
    done = subprocess.run(
        command(data, "import", "-", "--name", "piped", "--sha256", "0" * 64), input=tarball,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and b"checksum mismatch" in done.stderr
    assert left(data) == []


def test_capabilities_of_files_are_kept(data: Path, tmp_path: Path) -> None:
    value = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
    info = tarfile.TarInfo("bin/ping")
    info.uid, info.gid, info.mode = 1000, 1000, 0o755
    info.pax_headers = {"SCHILY.xattr.security.capability": value.decode("latin-1")}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    made = install.import_file(str(tmp_path / "x.tar"), install.Order(str(data), "x"))
    assert os.getxattr(f"{made.path}/bin/ping", "security.capability") == value
    status = os.stat(f"{made.path}/bin/ping")
    assert (status.st_uid, status.st_gid) == (1000, 1000)


def test_an_image_archive_is_told_from_a_root_filesystem(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))
        tar.addfile(tarfile.TarInfo("blobs/sha256/x"))
    done = run(data, "import", str(tmp_path / "image.tar"))
    assert done.returncode == 1 and "this is an image archive" in done.stderr
    assert left(data) == []


def test_what_looks_like_no_root_filesystem_is_doubted(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("top\x1b[2J/file"))
    done = run(data, "import", str(tmp_path / "x.tar"))
    assert done.returncode == 0 and "does not look like a root filesystem" in done.stderr
    assert "\x1b" not in done.stderr


def test_list_and_rm(data: Path, tmp_path: Path) -> None:
    assert run(data, "list", "-q").stdout == ""
    import_small(data, tmp_path)
    run(data, "build", "busybox")
    assert run(data, "list", "-q").stdout == "busybox\nsmall\n"
    listed = json.loads(run(data, "list", "--format", "json").stdout)
    assert [one["name"] for one in listed] == ["busybox", "small"]
    assert listed[1]["path"] == f"{data}/rootfs/small/rootfs"
    table = run(data, "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "VERSION", "SIZE", "CREATED", "DIGEST", "SOURCE"]
    assert table[2].startswith("small") and "1.5 MiB" in table[2]
    done = run(data, "rm", "small", "nothing")
    assert done.returncode == 1 and "root filesystem nothing does not exist" in done.stderr
    assert left(data) == ["busybox", "small"]
    done = run(data, "rm", "small", "busybox")
    assert (done.returncode, done.stdout) == (0, "removed small\nremoved busybox\n")
    assert left(data) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "-x", "A", "a\nb", ""])
def test_no_name_leads_out_of_the_store(data: Path, tmp_path: Path, name: str) -> None:
    import_small(data, tmp_path)
    done = run(data, "rm", "--", name)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert left(data) == ["small"]


def test_a_damaged_one_can_be_removed(data: Path, tmp_path: Path) -> None:
    made = import_small(data, tmp_path)
    (data / "rootfs/small/meta.json").unlink()
    assert "damaged" in run(data, "list").stdout
    change.remove(str(data), made.name)
    (data / "rootfs/small").symlink_to(tmp_path)
    change.remove(str(data), "small")
    assert left(data) == [] and (tmp_path / "small.tar.gz").exists()


@pytest.mark.parametrize(
    "arguments", [["pull", "alpine"], ["build", "busybox"], ["import", "x.tar"], ["rm", "a"]]
)
def test_callers_that_are_not_root_are_refused(data: Path, arguments: list[str]) -> None:
    # What is needed is loaded before: the project may lie where only root can read.
    drop = (
        "import os, sys; from minirun.rootfs import pull; "
        "from minirun.cli import human, main, rootfs; "
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", drop, *command(data, *arguments)[3:]], capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "minirun: changing root filesystems needs root\n"
    assert not data.exists()


def test_busybox_is_built(data: Path) -> None:
    made = busybox.build(install.Order(str(data), "busybox"))
    assert stat.S_IMODE(os.stat(f"{made.path}/tmp").st_mode) == 0o1777
    again = busybox.build(install.Order(str(data), "busybox"))
    assert again == made
    done = subprocess.run(
        [str(shutil.which("chroot")), made.path, "/bin/sh", "-c", "echo $((6*7)); ls /usr/bin/env"],
        capture_output=True, check=True, env={"PATH": "/bin"},
    )  # fmt: skip
    assert done.stdout == b"42\n/usr/bin/env\n"
