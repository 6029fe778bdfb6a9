"""One cgroup, held by a descriptor: limit it, fill it, freeze it, kill it, remove it.

Which driver made the directory does not matter here. Every file is opened below the descriptor,
which lies on a verified cgroup2 mount, without links and without leaving it.
"""

from __future__ import annotations

import errno
import os
import select
import time

from minirun.cgroups.hierarchy import Hierarchy, open_inside, read_at
from minirun.cgroups.hints import hint
from minirun.cgroups.walk import member_pids, walk
from minirun.errors import MinirunError, StateError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

SIGKILL = 9
# Seconds. Freezing waits for tasks to leave the kernel, killing for their memory to be given back.
FREEZE_TIMEOUT = 10.0
KILL_TIMEOUT = 10.0
REMOVE_TRIES = 12  # sleeping 1, 2, 4 ... ms, 4 s in all

_GONE = (errno.ENOENT, errno.ENODEV)


class Group:
    """A cgroup, named by its path from the top of the tree and held by `dirfd`.

    `dirfd` serves clone3's CLONE_INTO_CGROUP and the device program. `created` lists the cgroups
    that were made for this one, outermost first. Use as a context manager, or `close` it.
    """

    def __init__(
        self, tree: Hierarchy, path: str, dirfd: int, created: tuple[str, ...] = ()
    ) -> None:
        self.tree = tree
        self.path = path
        self.dirfd = dirfd
        self.created = created

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; may be called twice."""
        fd, self.dirfd = self.dirfd, -1
        if fd != -1:
            os.close(fd)

    @property
    def ident(self) -> int:
        """The kernel's number of this cgroup, never used again: tells it from a later namesake."""
        return os.fstat(self.dirfd).st_ino

    # -- files

    def read(self, file: str) -> str:
        """Read an interface file, or raise OSError."""
        return read_at(self.dirfd, file)

    def get(self, file: str) -> str | None:
        """Read an interface file; None when this kernel or group has no such file."""
        try:
            return self.read(file)
        except OSError as error:
            if error.errno in (*_GONE, errno.EOPNOTSUPP):
                return None
            raise

    def write(self, file: str, value: str) -> None:
        """Write `value` to an interface file in one write(2).

        Raises MinirunError with the file, the value, the cgroup and what the errno means there.
        """
        try:
            self.put(file, value)
        except OSError as error:
            raise self.failed(file, value, error) from error

    def put(self, file: str, value: str) -> None:
        """Write `value` to an interface file in one write(2), or raise OSError."""
        fd = open_inside(self.dirfd, file, os.O_WRONLY)
        try:
            os.write(fd, os.fsencode(value))
        finally:
            os.close(fd)

    def failed(self, file: str, value: str, error: OSError) -> MinirunError:
        """Make the error of a failed `put`: file, value, cgroup, and what the errno means there."""
        what = f"cannot set {file} to {value!r} in cgroup {self.path}"
        if error.errno == errno.ENOENT:
            # "no such file or directory" would tell an engine that the program was not found.
            return Unsupported(
                f"{what}: the cgroup has no {file}",
                cause="its controller is not enabled here, or the kernel lacks this file",
            )
        return MinirunError(f"{what}: {str(error.strerror).lower()}", cause=hint(file, error))

    @property
    def controllers(self) -> tuple[str, ...]:
        """The controllers that are enabled for this group."""
        return tuple(self.read("cgroup.controllers").split())

    # -- processes

    def add(self, pid: int) -> None:
        """Move process `pid` into the group.

        A process that is still being made gives EINVAL for a moment (TASK_NEW); that is retried.
        """
        for _ in range(4):
            try:
                return self.put("cgroup.procs", str(pid))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise self.failed("cgroup.procs", str(pid), error) from error
            time.sleep(0.03)
        return self.write("cgroup.procs", str(pid))

    def procs(self, recursive: bool = True) -> list[int]:
        """Give the pids of the processes in the group and, unless told not to, below it."""
        if not recursive:
            return member_pids(self.dirfd)
        found = []
        for fd, left in walk(self.dirfd):
            if not left:
                found += member_pids(fd)
        return found

    def populated(self) -> bool:
        """Whether a live process is in the group or below it."""
        return self._event("populated")

    def frozen(self) -> bool:
        """Whether the group is asked to be frozen (`pause`)."""
        return (self.get("cgroup.freeze") or "").strip() == "1"

    def _event(self, key: str) -> bool:
        return _flag(self.get("cgroup.events") or "", key)

    def freeze(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Stop all processes of the group and below, and wait until they have stopped.

        Raises StateError after `timeout` seconds, thawing again: a process in an uninterruptible
        wait cannot be frozen.
        """
        self.write("cgroup.freeze", "1")
        if not self._wait(lambda text: _flag(text, "frozen"), timeout):
            self.thaw()
            raise StateError(
                f"cgroup {self.path} did not freeze within {timeout:g} s",
                cause="a process waits in the kernel without a way to interrupt it (state D)",
            )

    def thaw(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Let the processes run again; raises StateError when an ancestor keeps them frozen."""
        self.write("cgroup.freeze", "0")
        if not self._wait(lambda text: not _flag(text, "frozen"), timeout):
            raise StateError(
                f"cgroup {self.path} is still frozen", cause="a cgroup above it is frozen"
            )

    def kill(self, timeout: float = KILL_TIMEOUT) -> None:
        """Kill every process in the group and below, frozen or forking; wait until none is left.

        Raises StateError when one survives `timeout` seconds.
        """
        self._refuse_self()
        if not self._kill_at_once():
            self._kill_one_by_one(timeout)
        if not self._wait(lambda text: not _flag(text, "populated"), timeout):
            left = self.procs()
            raise StateError(
                f"cgroup {self.path} still has {len(left)} process(es) after SIGKILL",
                cause=f"pids {', '.join(map(str, left[:10]))} wait in the kernel (state D)",
            )

    def _refuse_self(self) -> None:
        own = self.tree.own
        if own is not None and (own + "/").startswith(self.path.rstrip("/") + "/"):
            raise StateError(f"minirun itself runs in cgroup {self.path}")

    def _kill_at_once(self) -> bool:
        try:
            self.put("cgroup.kill", "1")
        except OSError as error:
            if error.errno == errno.ENODEV:
                return True
            # Before Linux 5.14 there is no such file; a threaded group refuses it.
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                return False
            raise self.failed("cgroup.kill", "1", error) from error
        return True

    def _kill_one_by_one(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while self.populated() and time.monotonic() < end:
            self.signal(SIGKILL)
            self._wait(lambda text: not _flag(text, "populated"), 0.05)

    def signal(self, number: int) -> None:
        """Send a signal to every process in the group and below.

        The group is frozen meanwhile, so that none forks away and no pid is used again.
        """
        held = self.frozen() or not self._freeze_for_signal()
        try:
            for pid in self.procs():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        finally:
            if not held:
                self.write("cgroup.freeze", "0")

    def _freeze_for_signal(self) -> bool:
        try:
            self.freeze(timeout=2.0)
        except MinirunError:
            return False
        return True

    def await_empty(self, timeout: float) -> bool:
        """Wait until no live process is in the group or below; False after `timeout` seconds."""
        return self._wait(lambda text: not _flag(text, "populated"), timeout)

    def _wait(self, done: Callable[[str], bool], timeout: float) -> bool:
        """Wait until `done` holds for the text of cgroup.events; False after `timeout` seconds.

        A group that was removed is neither populated nor frozen.
        """
        try:
            fd = open_inside(self.dirfd, "cgroup.events", os.O_RDONLY)
        except OSError as error:
            if error.errno in _GONE:
                return done("")
            raise
        try:
            return _poll(fd, done, timeout)
        finally:
            os.close(fd)

    # -- end

    def delegate(self, uid: int) -> None:
        """Make host user `uid` the owner, so that root of a user namespace can divide the group.

        Which files belong to a delegation the kernel lists in /sys/kernel/cgroup/delegate (4.15).
        Source: config-linux.md, "Cgroup ownership"; cgroups(7), "Delegation".
        """
        os.chown(self.dirfd, uid, -1)
        for name in _delegated():
            try:
                file = open_inside(self.dirfd, name, os.O_RDONLY)
            except (FileNotFoundError, PermissionError):
                # The list names files of controllers that are not enabled; memory.reclaim is 0200.
                continue
            try:
                os.fchown(file, uid, -1)
            finally:
                os.close(file)

    def remove(self) -> None:
        """Remove the group with everything below it; a group that is gone already is fine.

        Raises StateError when it still holds processes after some seconds.
        """
        for parent, name in walk(self.dirfd):
            if name:
                _rmdir(parent, name, self.path)
        top = self.tree.open()
        try:
            above, name = os.path.split(self.path)
            try:
                parent = open_inside(top, above, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return
            try:
                if self._is_still(parent, name):
                    _rmdir(parent, name, self.path)
            finally:
                os.close(parent)
        finally:
            os.close(top)

    def _is_still(self, parent: int, name: str) -> bool:
        """Whether `name` is this group and not one that another made after its removal."""
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino == self.ident
        except FileNotFoundError:
            return False


def open_group(tree: Hierarchy, path: str, ident: int | None = None) -> Group | None:
    """Open the existing cgroup `path`; None when there is none.

    With `ident` (`Group.ident` when it was made) a later cgroup of the same path counts as none.
    """
    top = tree.open()
    try:
        fd = open_inside(top, path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    finally:
        os.close(top)
    group = Group(tree, path, fd)
    try:
        if ident is not None and group.ident != ident:
            group.close()
            return None
    except BaseException:
        group.close()
        raise
    return group


def open_subgroup(group: Group, name: str) -> Group:
    """Open a cgroup below `group` for `exec --cgroup`; "" and "." are the group itself.

    Raises StateError unless it lies below: no leading slash, no `..`, no link.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or "\n" in name:
        raise StateError(f"bad sub cgroup path: {name!r}")
    inner = "/".join(parts)
    try:
        fd = open_inside(group.dirfd, inner, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        # The words are runc's, " adding pid … to cgroups", which scripts look for.
        raise StateError(
            f"error adding pid of exec to cgroups: sub cgroup {name!r}: {why}"
        ) from error
    return Group(group.tree, f"{group.path.rstrip('/')}/{inner}".rstrip("/"), fd)


def _delegated() -> list[str]:
    """List the files that the owner of a delegated cgroup may write to."""
    try:
        with open("/sys/kernel/cgroup/delegate", "rb", 0) as file:
            return os.fsdecode(file.readall()).split()
    except FileNotFoundError:
        return ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]


def _flag(text: str, key: str) -> bool:
    return f"{key} 1" in text.split("\n")


def _poll(fd: int, done: Callable[[str], bool], timeout: float) -> bool:
    end = time.monotonic() + timeout
    poller = select.poll()
    poller.register(fd, select.POLLPRI)  # kernfs reports a change since the last read
    while True:
        try:
            text = os.fsdecode(os.pread(fd, 4096, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return done("")
            raise
        if done(text):
            return True
        left = end - time.monotonic()
        if left <= 0:
            return False
        poller.poll(int(left * 1000) + 1)


def _rmdir(parent: int, name: str, path: str) -> None:
    for attempt in range(REMOVE_TRIES + 1):
        try:
            return os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A killed process leaves its group a little after populated said 0.
            if error.errno != errno.EBUSY:
                raise StateError(
                    f"cannot remove cgroup {path}: {str(error.strerror).lower()}",
                    cause=hint("", error),
                ) from error
        if attempt < REMOVE_TRIES:
            time.sleep(0.001 * (1 << attempt))
    raise StateError(f"cgroup {path} still holds processes", fix="kill them first: minirun kill")
