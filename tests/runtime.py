"""What the tests of the runtime share: a bundle to change, a runtime to call, a look at the host.

MINIRUN names the runtime; without it the checkout is started as it would be installed. The tests
speak runc's command line only, so that `MINIRUN=runc` runs the same suite: what fails there tests
a prejudice, or something that runc does worse.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pty
import select
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
INSIDE = Path(__file__).resolve().parent / "inside"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for whatever has to come: a command's end, a line. A healthy one takes a fraction of one;
# an emulated machine whose host is busy, several, under strace many. Less than what tests make hang
# takes (ten minutes), which is more than a test may take with all its commands.
LIMIT = 100
_LISTED = """cat chmod dd dmesg echo env false grep head hostname id kill ln ls mkdir mknod mount mv
ps readlink rm sh sleep stat touch true tty umount uname wc"""
APPLETS = tuple(_LISTED.split())


def command() -> list[str]:
    """Return the words that start the runtime under test."""
    given = os.environ.get("MINIRUN")
    if given:
        return shlex.split(given)
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return development(str(CHECKOUT), *libraries)


def development(*paths: str) -> list[str]:
    """Return the words that start the runtime from a checkout, isolated as an installed one is."""
    boot = f"import sys; sys.path += {list(paths)!r}; from minirun.launcher import main; main()"
    return [os.path.realpath(sys.executable), "-ISB", "-c", boot]


def base_spec() -> dict[str, Any]:
    """Make the configuration that each test changes: what engines send, without a filter."""
    safe = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/probe"],
            "env": [PATH],
            "cwd": "/",
            "capabilities": capabilities("CAP_KILL", "CAP_NET_BIND_SERVICE"),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def capabilities(*names: str, **others: Sequence[str]) -> dict[str, Any]:
    """Make the five sets: three of them alike, the others as given."""
    sets = {kind: list(names) for kind in ("bounding", "effective", "permitted")}
    return {**sets, **{kind: list(given) for kind, given in others.items()}}


# ---------------------------------------------------------------- the root filesystem


def build_programs(place: Path) -> None:
    """Build the programs that run inside, or take those that MINIRUN_TEST_PROGRAMS has."""
    given = os.environ.get("MINIRUN_TEST_PROGRAMS")
    if given:
        for name in ("probe", "loader"):
            shutil.copy(Path(given, name), place)
        return
    # Anywhere in memory: where the program lies whose interpreter it is, is that one's to say.
    bare = ["-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fpie", "-static-pie"]
    for name in ("probe", "loader"):
        build = [
            "gcc",
            "-static",
            "-O1",
            "-w",
            *(bare if name == "loader" else []),
            "-o",
            str(place / name),
        ]
        subprocess.run([*build, str(INSIDE / f"{name}.c")], check=True, timeout=60)


def unpack_busybox(place: Path) -> None:
    """Put a busybox, and the library it needs, below `place`: Alpine's, else the host's static."""
    tarball = os.environ.get("MINIRUN_ROOTFS_TARBALL", "")
    if not os.path.isfile(tarball):
        (place / "bin").mkdir()
        shutil.copy("/bin/busybox", place / "bin/busybox")
        return
    with tarfile.open(tarball) as archive:
        for entry in archive:
            name = entry.name.removeprefix("./")
            if name == "bin/busybox" or name.startswith("lib/ld-musl"):
                content = archive.extractfile(entry)
                assert content is not None
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(content.read())
                (place / name).chmod(0o755)


def make_rootfs(place: Path, base: Path) -> None:
    """Make a small root filesystem at `place` of the session's programs in `base`."""
    for name in ("bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp", "vol"):
        (place / name).mkdir(parents=True, exist_ok=True)
    for path in [*(base / "lib").glob("*"), base / "bin/busybox", base / "probe"]:
        shutil.copy2(path, place / path.relative_to(base))
    for applet in APPLETS:
        (place / "bin" / applet).symlink_to("busybox")
    (place / "tmp").chmod(0o1777)
    (place / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nsam:x:1000:1000::/:/bin/sh\n")
    (place / "etc/group").write_text("root:x:0:\nsam:x:1000:\n")


# ---------------------------------------------------------------- what a run says


class Done:
    """A command that has ended: exit status, standard output and error as text."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit status {self.code}\n{self.out}\n{self.err}"


class Report(dict[str, Any]):
    """What the probe found, and its parts taken apart."""

    def status(self, name: str) -> str:
        """Return a field of /proc/self/status."""
        for line in self["status"].splitlines():
            if line.startswith(f"{name}:"):
                return str(line.partition(":")[2].strip())
        raise KeyError(name)

    def bits(self, name: str) -> int:
        """Return a field of /proc/self/status that is a mask: CapEff, SigIgn …"""
        return int(self.status(name), 16)

    @property
    def caps(self) -> dict[str, int]:
        return {kind: self.bits(f"Cap{kind}") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}

    @property
    def ids(self) -> tuple[str, str, str]:
        return tuple(" ".join(self.status(n).split()) for n in ("Uid", "Gid", "Groups"))  # type: ignore[return-value]

    def limit(self, name: str) -> list[str]:
        """Return the soft and the hard limit of a line of /proc/self/limits."""
        line = next(line for line in self["limits"].splitlines() if line.startswith(name))
        return str(line[len(name) :]).split()[:2]

    @property
    def fds(self) -> dict[int, dict[str, Any]]:
        return {int(number): found for number, found in self["fds"].items()}

    @property
    def mounts(self) -> dict[str, Mountpoint]:
        return mounts_of(self["mountinfo"])

    @property
    def enforced(self) -> dict[str, Any]:
        """What a container's configuration decides of a process, to be compared with another's."""
        lines = """CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters Umask Uid
            Gid Groups SigIgn SigBlk SigCgt"""
        alike = """limits environ oom_score_adj uid_map gid_map personality cwd securebits dumpable
            nice scheduler cpus hostname"""
        mounts = {
            point: (one.root, sorted(one.options), sorted(one.tags), one.type)
            for point, one in self.mounts.items()
        }
        found = {name: self.status(name) for name in lines.split()}
        return {**found, **{name: self[name] for name in alike.split()}, "mounts": mounts}


def report_of(text: str) -> Report:
    """Read what the probe has printed, a character for each byte that it saw."""

    def decoded(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("latin-1").decode("utf-8", "surrogateescape")
        if isinstance(value, list):
            return [decoded(item) for item in value]
        if isinstance(value, dict):
            return {decoded(key): decoded(item) for key, item in value.items()}
        return value

    return Report(decoded(json.loads(text)))


class Mountpoint:
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        dash = fields.index("-")
        self.root, self.point = fields[3], fields[4]
        self.options = set(fields[5].split(","))
        self.tags = {tag.partition(":")[0] for tag in fields[6:dash]}
        self.type, self.source = fields[dash + 1], fields[dash + 2]
        self.super = set(fields[dash + 3].split(","))


def mounts_of(text: str) -> dict[str, Mountpoint]:
    """Take mountinfo apart, by mount point; the last mount on one hides the others."""
    found = [Mountpoint(line) for line in text.splitlines()]
    return {one.point: one for one in found}


# ---------------------------------------------------------------- one container


class Box:
    """One bundle, one container ID, one state root; all of it goes with the test."""

    numbers = itertools.count()

    def __init__(self, place: Path, base: Path) -> None:
        self.id = f"box-{os.getpid()}-{next(self.numbers)}"
        self.place = place
        self.base = base
        self.bundle = place / self.id
        self.rootfs = self.bundle / "rootfs"
        self.root = place / "state"
        self.command = command()
        self.config = base_spec()
        make_rootfs(self.rootfs, base)

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["process"]
        return found

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["linux"]
        return found

    def another(self) -> Box:
        """Make another container beside this one, in the same state root."""
        return Box(self.place, self.base)

    def mount(self, destination: str, source: str, *options: str, kind: str = "bind") -> None:
        """Add a mount to the configuration."""
        entry = {"destination": destination, "source": source, "options": list(options)}
        self.config["mounts"].append({**entry, "type": kind} if kind else entry)

    def unmount(self, *prefixes: str) -> None:
        """Take the mounts at or below these destinations out of the configuration."""
        self.config["mounts"] = [
            entry
            for entry in self.config["mounts"]
            if not any(f"{entry['destination']}/".startswith(f"{one}/") for one in prefixes)
        ]

    def namespace(self, kind: str, path: str | None = None) -> None:
        """Give the container a namespace of a kind: new, or joined by path."""
        rest = [one for one in self.linux["namespaces"] if one["type"] != kind]
        self.linux["namespaces"] = [*rest, {"type": kind, **({"path": path} if path else {})}]

    def share(self, *kinds: str) -> None:
        """Leave the container in the host's namespaces of these kinds."""
        rest = [one for one in self.linux["namespaces"] if one["type"] not in kinds]
        self.linux["namespaces"] = rest

    def user_namespace(self, first: int = 100000, size: int = 65536) -> None:
        """Give the container a user namespace, and the root filesystem its ids."""
        self.namespace("user")
        for kind in ("uidMappings", "gidMappings"):
            self.linux[kind] = [{"containerID": 0, "hostID": first, "size": size}]
        for directory, names, files in os.walk(self.rootfs):
            for name in (".", *names, *files):
                os.lchown(os.path.join(directory, name), first, first)

    # ------------------------------------------------------------ calls

    def write(self) -> None:
        """Write config.json as the test has it now."""
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def words(self, *words: str) -> list[str]:
        """Return a whole command line of the runtime for this state root."""
        return [*self.command, "--root", str(self.root), *words]

    def call(self, *words: str, limit: float = LIMIT, **options: Any) -> Done:
        """Call the runtime; never longer than `limit` seconds, never with a traceback."""
        return call(self.words(*words), limit, **options)

    def run(self, *flags: str, **options: Any) -> Done:
        """`run` in the foreground."""
        self.write()
        return self.call("run", "--bundle", str(self.bundle), *flags, self.id, **options)

    def create(self, *flags: str, **options: Any) -> Done:
        """`create`, which must succeed."""
        self.write()
        return good(self.call("create", "--bundle", str(self.bundle), *flags, self.id, **options))

    def start(self, **options: Any) -> Done:
        """`start`, which must succeed."""
        return good(self.call("start", self.id, **options))

    def up(self, *flags: str) -> int:
        """Create and start a container that sleeps; return its process ID."""
        self.process["args"] = ["/bin/sleep", "600"]
        self.create(*flags)
        self.start()
        return self.pid

    def exec(self, *words: str, flags: Sequence[str] = (), **options: Any) -> Done:
        """`exec` in the foreground."""
        return self.call("exec", *flags, self.id, *words, **options)

    def delete(self, *flags: str, **options: Any) -> Done:
        return self.call("delete", *flags, self.id, **options)

    def state(self) -> dict[str, Any]:
        """Return what `state` prints."""
        found: dict[str, Any] = json.loads(good(self.call("state", self.id)).out)
        return found

    @property
    def pid(self) -> int:
        return int(self.state()["pid"])

    # ------------------------------------------------------------ shapes of tests

    def sh(self, script: str, *flags: str, **options: Any) -> str:
        """Run a shell script as the payload, which must succeed; return its output."""
        self.process["args"] = ["/bin/sh", "-c", script]
        return good(self.run(*flags, **options)).out.strip()

    def probe(self, *words: str, flags: Sequence[str] = (), **options: Any) -> Report:
        """Run the probe as the payload; return what it reports."""
        self.process["args"] = ["/probe", *words]
        return report_of(good(self.run(*flags, **options)).out)

    def exec_probe(self, *words: str, flags: Sequence[str] = (), **options: Any) -> Report:
        """Run the probe by `exec`; return what it reports."""
        return report_of(good(self.exec("/probe", *words, flags=flags, **options)).out)

    def refused(self, *words: str, flags: Sequence[str] = (), **options: Any) -> str:
        """Run, which must be refused before the payload, and leave nothing; return the message.

        One of `words` must stand in it, if any are given.
        """
        done = self.run(*flags, **options)
        assert done.code != 0, done
        assert not done.out, done
        assert not words or any(word in done.err for word in words), done
        assert self.left() == [], done
        return done.err

    def confined(self, **options: Any) -> Done:
        """Run, which may be refused but must not hang; then nothing is left."""
        done = self.run(**options)
        assert done.code == 0 or (not done.out and done.err), done
        assert self.left() == []
        return done

    def left(self) -> list[str]:
        """List what the state root holds that is neither of the test's other containers."""
        found = os.listdir(self.root) if self.root.exists() else []
        return [name for name in found if name == self.id or not name.startswith("box-")]

    def hook(self, kind: str, script: str, **fields: Any) -> None:
        """Add a hook of the host that is a shell script."""
        entry = {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}
        self.config.setdefault("hooks", {}).setdefault(kind, []).append(entry)


def clean(boxes: Path) -> None:
    """End every container of a state root."""
    state = boxes / "state"
    for name in os.listdir(state) if state.is_dir() else []:
        call([*command(), "--root", str(state), "delete", "--force", name])
    reap_orphans()


def call(words: Sequence[str], limit: float = LIMIT, **options: Any) -> Done:
    """Run a command to its end, its output in files: a container may hold them open for long."""
    limited = {"stdin": subprocess.DEVNULL, **options}
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(open(os.memfd_create(name), "w+b")) for name in "oe")
        limited = {"stdout": out, "stderr": err, **limited}
        with subprocess.Popen(words, **limited) as process:
            try:
                wait_for(process.pid, limit)
                code = process.wait(1)
            except BaseException:
                process.kill()
                raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "backslashreplace"))
    done = Done(code, *texts)
    for word in ("Traceback", "internal error", "goroutine "):
        assert word not in done.err, done
    return done


def runc_apart(bundle: Path, cid: str) -> Done:
    """Run a bundle by runc, to compare with, where /sys/fs/cgroup is cgroup version 2.

    In a mount namespace of its own: the machine may have version 1 mounted there.
    """
    mounted = "[ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 none /sys/fs/cgroup"
    script = f'{mounted}; exec runc --root run run -b . "$1"'
    return call(["unshare", "-m", "sh", "-c", script, "sh", cid], cwd=bundle)


@contextlib.contextmanager
def started(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command beside the block, and wait for its end; a block that fails kills it.

    For `with Popen(…)` alone waits for it without end then.
    """
    with subprocess.Popen(words, **options) as process:
        try:
            yield process
            process.wait(LIMIT)
        finally:
            process.kill()


def wait_for(pid: int, limit: float = LIMIT) -> None:
    """Wait for a process's end. Raises TimeoutError."""
    fd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        end = time.monotonic() + limit
        while not poller.poll(50):
            reap_orphans()
            if time.monotonic() > end:
                raise TimeoutError(f"not finished after {limit} s")
    finally:
        os.close(fd)


def zombies() -> list[int]:
    """List the processes that tests have adopted, and that have ended.

    They have sessions of their own; our children are in ours, and awaited where they were started.
    """
    ended = []
    for child in _children():
        # Another thread of a test may have reaped it meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = read(f"/proc/{child}/stat").rpartition(")")[2].split()  # proc_pid_stat(5)
            if fields[0] == "Z" and int(fields[3]) != os.getsid(0):
                ended.append(child)
    return ended


def _children() -> Iterator[int]:
    """Give this process's children: every 50 ms, so not by a look at all processes there are."""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, read(f"/proc/self/task/{task}/children").split())


def reap_orphans() -> None:
    """Take notice of the end of adopted processes, as the host's init would."""
    for child in zombies():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def good(done: Done) -> Done:
    """Assert that a command succeeded."""
    assert done.code == 0, done
    return done


def until(condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Wait until `condition` is true; return what it said."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        reap_orphans()
        time.sleep(0.01)
    return found


def next_line(stream: Any, limit: float = LIMIT) -> bytes:
    """Read a line from a pipe that somebody may never write to."""
    assert select.select([stream], [], [], limit)[0], "no line came"
    line: bytes = stream.readline()
    return line


def read_until(master: int, mark: bytes | None, limit: float = LIMIT) -> bytes:
    """Read from a terminal up to and with a mark; without one, until nobody can write to it."""
    text, end = b"", time.monotonic() + limit
    while mark is None or mark not in text:
        assert time.monotonic() < end, text
        if select.select([master], [], [], 0.1)[0]:
            try:
                text += os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
    return text


@contextlib.contextmanager
def in_a_terminal(words: list[str], size: tuple[int, int] = (24, 80)) -> Iterator[tuple[int, Any]]:
    """A command whose terminal is ours: its master, and the process."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    with subprocess.Popen(words, start_new_session=True, **streams) as process:  # type: ignore[call-overload]
        try:
            os.close(slave)
            yield master, process
        finally:
            process.kill()
            os.close(master)


# ---------------------------------------------------------------- the host


def read(path: Path | str) -> str:
    """Return the text of a file."""
    with open(path, errors="surrogateescape") as file:
        return file.read()


def alive(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def cgroup_of(pid: int) -> Path:
    """Return the directory of a process's cgroup."""
    return Path(f"/sys/fs/cgroup{read(f'/proc/{pid}/cgroup').rpartition('0::')[2].strip()}")


def snapshot(*places: Path | str) -> dict[str, tuple[Any, ...]]:
    """Tell everything of files and directories by which a change could be seen."""
    found = {}
    for place in map(Path, places):
        for path in [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]:
            status = path.lstat()
            known: Any = ""
            if stat.S_ISREG(status.st_mode):
                known = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                known = path.readlink()
            ids = (status.st_mode, status.st_uid, status.st_gid, status.st_ino, status.st_rdev)
            found[str(path)] = (*ids, status.st_mtime_ns, known)
    return found


@contextlib.contextmanager
def host_same(*places: Path | str) -> Iterator[None]:
    """Assert that nothing in these places of the host changes."""
    before = snapshot(*places)
    yield
    assert snapshot(*places) == before


def make_canary(place: Path) -> Path:
    """Make a directory of the host that attacks aim at."""
    place.mkdir()
    for name in ("ptmx", "null", "console", "passwd"):
        (place / name).write_text("of the host\n")
        (place / name).chmod(0o600)
    (place / "empty").mkdir()
    (place / "sub").mkdir()
    (place / "sub/file").write_text("of the host\n")
    return place


@contextlib.contextmanager
def flipping(one: Path, other: Path, microseconds: int = 150) -> Iterator[None]:
    """Exchange two paths all the time, in a process of its own."""
    code = (
        "import ctypes, sys, time\n"
        "libc = ctypes.CDLL(None)\n"
        "a, b = (path.encode() for path in sys.argv[1:3])\n"
        "libc.renameat2(-100, a, -100, b, 2)\n"
        "print(flush=True)\n"
        "while True:\n"
        "    libc.renameat2(-100, a, -100, b, 2)\n"
        f"    time.sleep({microseconds / 1e6})\n"
    )
    words = [sys.executable, "-ISc", code, str(one), str(other)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            next_line(process.stdout)
            yield
        finally:
            process.kill()


def traced(
    words: Sequence[str], *rules: str, log: str = "/dev/null", apart: bool = False
) -> list[str]:
    """Return the words that run `words` under strace, with its -e rules.

    `apart`: strace is no parent of it, so that it need not end with what it leaves running.
    """
    trace = ["strace", "-f", "-qq", "-y", "-s", "256", "-A", "-o", log, *(["-D"] if apart else [])]
    for rule in rules:
        trace += ["-e", rule]
    return [*trace, "--", *words]
