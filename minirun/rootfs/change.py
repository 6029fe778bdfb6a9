"""Changing the store: a new root filesystem appears whole or not at all, an old one goes at once.

A `Stage` is a hidden directory, locked by its maker for as long as it lives (flock(2), which the
kernel drops with the process). Whoever changes the store next removes the stages of the dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from minirun import jsontext
from minirun.errors import MinirunError, describe
from minirun.kernel.file import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, syncfs
from minirun.remove import remove_tree
from minirun.rootfs import store
from minirun.rootfs.users import users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Locked:
    """The store's directory, opened and held alone: `with Locked(base) as fd`."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __enter__(self) -> int:
        self.fd = os.open(self.base, _DIRECTORY)
        self.lock = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self.lock = os.open(".lock", flags, 0o600, dir_fd=self.fd)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        except BaseException:
            self.__exit__()
            raise
        return self.fd

    def __exit__(self, *_error: object) -> None:
        if self.lock >= 0:
            os.close(self.lock)
        os.close(self.fd)


class Stage:
    """A root filesystem in the making: `with Stage(data, name) as stage`.

    `tree` is a descriptor of the tree to be filled. What is not published is removed at the end of
    the block, whatever ended it.
    """

    def __init__(self, data: str, name: str) -> None:
        self.base = store.base_directory(data)
        self.name = store.check_name(name)
        self.hidden = _hidden_name(name)
        self.fd = self.tree = -1
        self.there = False

    def __enter__(self) -> Self:
        require_root()
        _make_base(self.base)
        try:
            with Locked(self.base) as base:
                _sweep(base)
                os.mkdir(self.hidden, 0o700, dir_fd=base)
                self.there = True
                self.fd = os.open(self.hidden, _DIRECTORY, dir_fd=base)
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.mkdir("rootfs", 0o755, dir_fd=self.fd)
            self.tree = os.open("rootfs", _DIRECTORY, dir_fd=self.fd)
            os.fchmod(self.tree, 0o755)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            if self.there:
                base = os.open(self.base, _DIRECTORY)
                try:
                    remove_tree(base, self.hidden)
                finally:
                    os.close(base)
        finally:
            for fd in (self.tree, self.fd):
                if fd >= 0:
                    os.close(fd)

    def scratch(self) -> int:
        """Open a nameless file beside the tree, for a download; the caller closes it."""
        fd = os.open("download", _NEW, 0o600, dir_fd=self.fd)
        os.unlink("download", dir_fd=self.fd)
        return fd

    def publish(self, about: store.RootFS, *, replace: bool) -> store.RootFS:
        """Give the tree its name and return its record; `about` says what it is.

        All is on the disk before. Raises MinirunError if the name is taken and `replace` is false,
        or if the one to be replaced is in use.
        """
        about = about.replace(name=self.name, created=int(time.time()))
        self._write(about)
        syncfs(self.fd)
        with Locked(self.base) as base:
            try:
                renameat2(base, self.hidden, base, self.name, RENAME_NOREPLACE)
                self.there = False
            except FileExistsError:
                if not replace:
                    raise taken(self.name) from None
                self._exchange(base)
            os.fsync(base)
        return about.replace(path=f"{self.base}/{self.name}/rootfs")

    def _exchange(self, base: int) -> None:
        refuse_if_used(self.base, self.name)
        old = os.open(self.name, _DIRECTORY, dir_fd=base)
        # The old tree gets our hidden name: it must be locked before, or a sweep would race us.
        fcntl.flock(old, fcntl.LOCK_EX)
        renameat2(base, self.hidden, base, self.name, RENAME_EXCHANGE)
        os.close(self.fd)
        self.fd = old

    def _write(self, about: store.RootFS) -> None:
        fd = os.open("meta.json", _NEW, 0o600, dir_fd=self.fd)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(jsontext.dumps(about.encode(), "  ") + "\n")


def remove(data: str, name: str) -> None:
    """Remove the root filesystem `name`, which may be damaged.

    It vanishes at once; then its files are removed. Raises MinirunError if there is none or if it
    is in use, UsageError for what can be no name.
    """
    require_root()
    name = store.stored_name(name)
    base = store.base_directory(data)
    if name not in store.names(base):
        raise store.missing(base, name, wanted=False)
    store.check_trusted(base)
    hidden = _hidden_name(name)
    with Locked(base) as fd:
        _sweep(fd)
        refuse_if_used(base, name)
        try:
            held = os.open(name, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            return  # somebody else removed it in this moment
        except NotADirectoryError:
            os.unlink(name, dir_fd=fd)
            return
        fcntl.flock(held, fcntl.LOCK_EX)  # under its hidden name a sweep must not race us
        os.rename(name, hidden, src_dir_fd=fd, dst_dir_fd=fd)
    base_fd = os.open(base, _DIRECTORY)
    try:
        remove_tree(base_fd, hidden)
    except OSError as error:
        raise MinirunError(f"cannot remove {base}/{hidden}: {describe(error)}") from None
    finally:
        os.close(base_fd)
        os.close(held)


def refuse_if_used(base: str, name: str) -> None:
    """Raise MinirunError while a mount, of whatever namespace, shows the tree of `name`."""
    try:
        found = users(f"{base}/{name}")
    except FileNotFoundError:
        return
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise MinirunError(
            f"root filesystem {name} is in use",
            cause=f"{found[0]}{more}",
            fix="stop and delete the containers that use it: minirun list",
        )


def taken(name: str) -> MinirunError:
    """Say that `name` is taken."""
    return MinirunError(
        f"root filesystem {name} already exists",
        fix="replace it with --replace, or choose another name with --name",
    )


def require_root() -> None:
    """Refuse callers that are not root: owners and set-uid bits could not be kept."""
    if os.geteuid() != 0:
        raise MinirunError(
            "changing root filesystems needs root",
            cause="their files belong to many users, which only root can set",
            fix="run it with sudo",
        )


def _hidden_name(name: str) -> str:
    return f".{name}.tmp-{os.urandom(8).hex()}"


def _make_base(base: str) -> None:
    missing = []
    path = base
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    if missing:
        store.check_trusted(path)
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o700 if path == base else 0o711)
        except FileExistsError:
            continue  # another minirun was faster; it is checked below
    store.check_trusted(base)
    if stat.S_IMODE(os.stat(base).st_mode) & 0o077:
        os.chmod(base, 0o700)  # CVE-2021-41103: others must not reach the set-uid files in it


def _sweep(base: int) -> None:
    """Remove the stages whose makers are dead: nobody holds their lock."""
    for name in os.listdir(base):
        if not name.startswith(".") or ".tmp-" not in name:
            continue
        fd = _abandoned(base, name)
        if fd < 0:
            continue
        try:
            remove_tree(base, name)
        except MinirunError:
            continue  # something is mounted in it: another time
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOTEMPTY, errno.EROFS):
                raise
        finally:
            os.close(fd)


def _abandoned(base: int, name: str) -> int:
    """Lock the stage `name` and return its descriptor, or -1 while its maker lives."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=base)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd
