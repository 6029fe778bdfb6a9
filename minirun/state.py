"""What is kept of a container between two calls: one directory below the state root.

    <root>/<id>/            0700, made exclusively: its making is the claim on the ID;
                            flock(2) on it is held while the container is changed
        state.json          written aside and renamed, before the container's process goes on
        config.json         the configuration as it was at create; the bundle may change after
        exec.fifo, result   while created: `start` speaks and listens here

A container's process is known by pid and start time, so that a recycled pid is never taken for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from minirun import jsontext
from minirun.errors import AlreadyExists, DoesNotExist, MinirunError, NotRunning, StateError
from minirun.privilege import host_root, others_may_change
from minirun.record import INT64, UINT64, Record, boolean, integer, string, string_map, strings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from minirun.spec import Spec

FIFO = "exec.fifo"
RESULT = "exec.result"
STATE = "state.json"
CONFIG = "config.json"
_ID_MAX = 255
_TICK = 0.01  # seconds
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


class Saved(Record):
    """The content of state.json. `start_time` is in clock ticks since boot (proc_pid_stat(5))."""

    oci_version: str = string(required=True)
    id: str = string(required=True)
    pid: int = integer(0, INT64, default=0)
    start_time: int = integer(0, UINT64, default=0)
    bundle: str = string(required=True)
    rootfs: str = string(default="")
    created: str = string(default="")
    owner: str = string(default="root")
    cgroup: str | None = string()
    cgroup_ident: int | None = integer(0, UINT64)
    systemd_unit: str | None = string()
    user_manager: bool = boolean(default=False)
    annotations: dict[str, str] = string_map()
    root_mount: int | None = integer(0, UINT64)  # the root's mount in the host's mount namespace
    obstacle: tuple[str, ...] = strings()  # what would keep execve from the program, and what helps


def check_id(cid: str) -> None:
    """Refuse what cannot be the name of a container."""
    good = cid and len(cid) <= _ID_MAX and set(cid) <= _ID_CHARACTERS and cid[0] not in ".-"
    if not good:
        raise MinirunError(
            f"invalid container ID format: {cid!a}",
            cause="an ID is made of letters, digits and the characters _ + - .",
        )


def open_root(root: str, *, make: bool) -> int:
    """Open the state root, checked to be ours alone, making it if asked.

    Raises FileNotFoundError if it is absent, MinirunError if others could write to it.
    """
    path = os.path.abspath(root)
    if path == "/":
        raise MinirunError("--root may not be /")
    if os.geteuid() == 0:
        for name in {path, os.path.realpath(path)}:
            _refuse_changeable(name)
    if make:
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        try:
            os.mkdir(path, 0o711)
            runtime = os.environ.get("XDG_RUNTIME_DIR", "")
            if runtime and path.startswith(f"{os.path.abspath(runtime)}/"):
                # Else it may be tidied away: XDG Base Directory Specification, XDG_RUNTIME_DIR.
                os.chmod(path, 0o1711)
        except FileExistsError:
            pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(fd)
    # A forged state.json would name hooks that run as root, and a process to kill.
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise MinirunError(
            f"state directory {path} is not ours alone",
            cause=f"owner {status.st_uid}, mode {status.st_mode & 0o7777:o}",
            fix="name another --root, of yours and mode 700; what is in this one may be forged",
        )
    return fd


def _refuse_changeable(path: str) -> None:
    """Refuse a state root of root's to whose place others could lead elsewhere.

    Not to what is theirs: but a container's root filesystem is root's too, and may hold a forged
    state.json. Raises MinirunError.
    """
    above = path
    while above != "/":
        above = os.path.dirname(above)
        try:
            status = os.stat(above)
        except FileNotFoundError:
            continue  # it is made
        if others_may_change(status) and host_root():
            raise MinirunError(
                f"state directory {path} is below {above}, which is not root's alone",
                cause=f"owner {status.st_uid}, mode {status.st_mode & 0o7777:o}",
                fix="choose another --root",
            )


def now() -> str:
    """Return the time as RFC 3339 with nanoseconds, in UTC."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def start_time_of(pid: int) -> int | None:
    """Return a live process's start time in clock ticks; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses is the process's to choose: only what follows the last one counts.
    fields = data.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X", b"x") else int(fields[19])


class Container:
    """A container's directory, open, with what state.json says. A context manager.

    With `locked` the lock is held until the end of the block.
    """

    def __init__(self, root: str, cid: str, dirfd: int) -> None:
        self.root = root
        self.id = cid
        self.dirfd = dirfd
        self.lockfd = -1
        self.saved = Saved(oci_version="", id=cid, bundle="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and the directory."""
        for fd in (self.lockfd, self.dirfd):
            if fd >= 0:
                os.close(fd)
        self.lockfd = self.dirfd = -1

    @property
    def path(self) -> str:
        """The directory's path, for messages and sockets."""
        return os.path.join(self.root, self.id)

    def lock(self, within: float | None = None) -> bool:
        """Wait for the container's lock; False if others have it for the seconds `within`.

        Raises DoesNotExist if it was deleted meanwhile.
        """
        try:
            fd = self._reopened()
            if not _locked(fd, within):
                os.close(fd)
                return False
            self.lockfd = fd
            # The directory may have gone while we waited, and another may bear its name.
            here, there = os.fstat(self.dirfd), os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            raise DoesNotExist(self.id) from None
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise DoesNotExist(self.id)
        return True

    def read(self) -> None:
        """Read state.json. Raises StateError if it cannot be understood, DoesNotExist."""
        try:
            self.saved = Saved.decode(jsontext.read(STATE, "state.json", self.dirfd))
        except FileNotFoundError:
            if self._comes_or_goes():
                raise DoesNotExist(self.id) from None
            raise self._unusable("state.json is missing") from None
        except (MinirunError, OSError) as error:
            raise self._unusable(getattr(error, "message", error)) from None

    def _unusable(self, reason: object) -> StateError:
        return StateError(
            f"container {self.id} has no usable state: {reason}",
            fix=f"minirun delete --force {self.id}",
        )

    def _comes_or_goes(self) -> bool:
        """Whether a create or delete of this very moment is why there is no state."""
        # In this order: a delete that ends in between has removed the directory.
        return self._being_made() or os.fstat(self.dirfd).st_nlink == 0

    def save(self, **changes: Any) -> None:
        """Change fields of the state and write it, whole or not at all."""
        self.saved = self.saved.replace(**changes)
        self.write_file(STATE, jsontext.dumps(self.saved.encode()).encode())

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file of the directory aside, then rename it into place."""
        aside = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NOFOLLOW
        fd = os.open(aside, flags, 0o600, dir_fd=self.dirfd)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(aside, name, src_dir_fd=self.dirfd, dst_dir_fd=self.dirfd)

    @property
    def spec(self) -> Spec:
        """The configuration as it was at create, read anew."""
        from minirun.spec import Spec  # 2 ms, which `state` and `list` do without

        return Spec.decode(jsontext.read(CONFIG, "config.json", self.dirfd))

    def has(self, name: str) -> bool:
        """Whether the directory holds a file of this name."""
        try:
            os.stat(name, dir_fd=self.dirfd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def alive(self) -> bool:
        """Whether the container's process is there, and the one that was started."""
        pid = self.saved.pid
        return pid > 0 and start_time_of(pid) == self.saved.start_time

    def status(self) -> str:
        """creating, created, running or stopped; the freezer is not looked at."""
        if not self.saved.pid:
            return "creating" if self._being_made() else "stopped"
        if not self.alive():
            return "stopped"
        return "created" if self.has(FIFO) else "running"

    def _reopened(self) -> int:
        """Return another open file of the directory: the lock is of that, flock(2), not of ours."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.dirfd)

    def _being_made(self) -> bool:
        """Whether the lock is held: by the create that has not come to a process yet."""
        fd = self._reopened()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self.lockfd < 0
        finally:
            os.close(fd)
        return False

    def pidfd(self) -> int:
        """Return a descriptor of the container's process.

        Raises NotRunning if it is gone or its pid is another's now.
        """
        from minirun.kernel import process  # 2 ms, as above

        try:
            fd = process.pidfd_open(self.saved.pid) if self.saved.pid else -1
        except ProcessLookupError:
            fd = -1
        # Looked at after the descriptor is held: from here on the pid cannot be recycled unseen.
        if fd < 0 or not self.alive():
            if fd >= 0:
                os.close(fd)
            raise NotRunning("container not running")
        return fd

    def remove(self) -> None:
        """Remove the directory and its files."""
        for name in os.listdir(self.dirfd):
            try:
                os.unlink(name, dir_fd=self.dirfd)
            except IsADirectoryError:
                from minirun.remove import remove_tree  # few have one

                remove_tree(self.dirfd, name)
        rootfd = open_root(self.root, make=False)
        try:
            os.rmdir(self.id, dir_fd=rootfd)
        finally:
            os.close(rootfd)


def _locked(fd: int, within: float | None) -> bool:
    """Lock a directory, waiting for as long as it takes or as is said; flock(2)."""
    if within is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return True
    end = time.monotonic() + within
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_TICK)
        else:
            return True


def reserve(root: str, cid: str) -> Container:
    """Claim an ID and lock it. Raises AlreadyExists if it is taken."""
    check_id(cid)
    rootfd = open_root(root, make=True)
    try:
        os.mkdir(cid, 0o700, dir_fd=rootfd)
        dirfd = os.open(cid, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=rootfd)
    except FileExistsError:
        raise AlreadyExists(
            f"container with given ID already exists: {cid}",
            fix=f"choose another ID, or minirun delete {cid}",
        ) from None
    finally:
        os.close(rootfd)
    container = Container(os.path.abspath(root), cid, dirfd)
    container.lock()
    return container


def find(root: str, cid: str, *, lock: bool = False) -> Container:
    """Open a container's directory, without reading its state. Raises DoesNotExist."""
    check_id(cid)
    try:
        rootfd = open_root(root, make=False)
    except FileNotFoundError:
        raise DoesNotExist(cid) from None
    try:
        dirfd = os.open(cid, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=rootfd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise DoesNotExist(cid) from None
        raise
    finally:
        os.close(rootfd)
    container = Container(os.path.abspath(root), cid, dirfd)
    if lock:
        try:
            container.lock()
        except BaseException:
            container.close()
            raise
    return container


def load(root: str, cid: str, *, lock: bool = False) -> Container:
    """Open a container and read its state. Raises DoesNotExist, StateError."""
    container = find(root, cid, lock=lock)
    try:
        container.read()
    except BaseException:
        container.close()
        raise
    return container


def names(root: str) -> list[str]:
    """List the IDs below the state root, sorted."""
    try:
        rootfd = open_root(root, make=False)
    except FileNotFoundError:
        return []
    try:
        found = []
        for name in sorted(os.listdir(rootfd)):
            try:
                mode = os.stat(name, dir_fd=rootfd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # deleted meanwhile
            if stat.S_ISDIR(mode) and not name.startswith(".") and set(name) <= _ID_CHARACTERS:
                found.append(name)
        return found
    finally:
        os.close(rootfd)
