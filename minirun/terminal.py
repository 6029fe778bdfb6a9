"""The container's terminal: a pty of its own devpts, its master sent to the console socket."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from minirun import inroot
from minirun.errors import MinirunError
from minirun.kernel import libc
from minirun.kernel import mount as m
from minirun.kernel.libc import AT_EMPTY_PATH
from minirun.kernel.statfs import DEVPTS_SUPER_MAGIC, fstatfs_type
from minirun.step import step
from minirun.unixsocket import connect, send_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

# include/uapi/asm-generic/ioctls.h
_TCGETS = 0x5401
_TCSETS = 0x5402
_TIOCSCTTY = 0x540E
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCGPTN = 0x80045430
_TIOCSWINSZ = 0x5414
# include/uapi/asm-generic/termbits.h: struct termios begins with c_iflag, c_oflag; NCCS is 19
_TERMIOS_SIZE = 36
_ONLCR = 0x4


def _wanted(setup: Setup) -> bool:
    return setup.process.terminal


@step(
    lambda setup: setup.process.terminal and setup.launch.console_socket is not None,
    details=lambda setup: [setup.launch.console_socket or ""],
)
def open_console_socket(setup: Setup) -> None:
    """Connect to the console socket"""
    sock = connect(setup.launch.console_socket or "")
    setup.console = sock.detach()


@step(
    lambda setup: setup.launch.silent and not setup.process.terminal,
    why="whoever reads our output must not wait for a container that runs on by itself",
)
def silence(setup: Setup) -> None:
    """Let the standard streams that are no files lead to /dev/null"""
    streams = [fd for fd in (0, 1, 2) if not stat.S_ISREG(os.fstat(fd).st_mode)]
    lost = " and ".join([name for fd, name in ((1, "output"), (2, "error")) if fd in streams])
    if lost and os.isatty(2):
        setup.notes.append(
            f"nothing keeps what {setup.cid} prints on standard {lost}; a file does: "
            f">{setup.cid}.log 2>&1"
        )
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    for stream in streams:
        os.dup2(fd, stream)
    os.close(fd)


@step(why="a signal or ioctl of the payload must not reach the caller's terminal: setsid(2)")
def new_session(_setup: Setup) -> None:
    """Start a session of its own"""
    os.setsid()
    libc.trace(lambda: "setsid()")


@step(_wanted)
def open_pty(setup: Setup) -> None:
    """Open a pty in the container, for create put it at /dev/console, send its master away"""
    master = _open_master(setup.rootfd)
    fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
    # By ioctl, not by name: a link over /dev/pts/N would be followed (CVE-2025-52565).
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    libc.trace(lambda: f"ioctl({master}, TIOCGPTPEER) = {slave}")
    number = int.from_bytes(fcntl.ioctl(master, _TIOCGPTN, b"\0\0\0\0"), "little")
    os.fchown(slave, setup.process.user.uid, -1)
    _set_size(setup, slave)
    if setup.plain_lines:
        _keep_newlines(slave)
    if not setup.target_pid:  # of exec it would take the first process's console away
        _place_console(setup, slave)
    send_fd(setup.console, master, f"/dev/pts/{number}".encode())
    os.close(master)
    os.close(setup.console)
    setup.terminal_fd = slave


def _open_master(rootfd: int) -> int:
    try:
        fd = inroot.open_path(
            rootfd, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK, links=False
        )
    except FileNotFoundError:
        raise MinirunError("a terminal needs a devpts mounted on /dev/pts") from None
    if fstatfs_type(fd) != DEVPTS_SUPER_MAGIC:
        os.close(fd)
        raise MinirunError("a terminal needs a devpts mounted on /dev/pts")
    os.set_blocking(fd, True)
    return fd


def _set_size(setup: Setup, slave: int) -> None:
    box = setup.process.console_size
    size = (box.height, box.width) if box else setup.console_size
    if size and all(size):
        raw = b"".join(value.to_bytes(2, "little") for value in (*size, 0, 0))
        fcntl.ioctl(slave, _TIOCSWINSZ, raw)


def _keep_newlines(slave: int) -> None:
    """Have the pty pass a newline on as it is: termios(3), ONLCR."""
    modes = bytearray(fcntl.ioctl(slave, _TCGETS, bytes(_TERMIOS_SIZE)))
    modes[4] &= ~_ONLCR
    fcntl.ioctl(slave, _TCSETS, bytes(modes))


def _place_console(setup: Setup, slave: int) -> None:
    """Bind the pty on /dev/console; a link there is refused (CVE-2026-88264 in crun)."""
    dev = inroot.open_path(setup.rootfd, "/dev", os.O_PATH | os.O_DIRECTORY, links=False)
    try:
        target = _open_console(dev)
        copy = m.open_tree(slave, "", m.OPEN_TREE_CLONE | AT_EMPTY_PATH)
        m.move_mount(copy, target)
        os.close(copy)
        os.close(target)
    finally:
        os.close(dev)


def _open_console(dev: int) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open("console", flags, 0o620, dir_fd=dev))
    except FileExistsError:
        pass
    fd = os.open("console", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
        return fd
    os.close(fd)
    raise libc.failure(errno.ELOOP, 'open("/dev/console") which is not a file')


@step(_wanted)
def take_terminal(setup: Setup) -> None:
    """Make the pty the controlling terminal and the standard streams"""
    fcntl.ioctl(setup.terminal_fd, _TIOCSCTTY, 0)
    _use_terminal(setup)


@step(_wanted)
def lend_terminal(setup: Setup) -> None:
    """Make the pty the standard streams; the session comes with the process to be made"""
    _use_terminal(setup)


def _use_terminal(setup: Setup) -> None:
    for fd in (0, 1, 2):
        os.dup2(setup.terminal_fd, fd)
    os.close(setup.terminal_fd)


@step(
    lambda setup: not setup.process.terminal,
    why="root of a container without a user namespace could chmod the host's node by it",
)
def reopen_null(setup: Setup) -> None:
    """Let streams that lead to the host's /dev/null lead to the container's"""
    null = os.makedev(1, 3)
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == null:
            _replace_null(setup.rootfd, fd)


def _replace_null(rootfd: int, stream: int) -> None:
    try:
        fd = inroot.open_path(rootfd, "/dev/null", os.O_RDWR | os.O_NOCTTY, links=False)
    except OSError as error:
        # None there, or one that the device program or a link keeps away: the stream stays.
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EPERM, errno.EACCES, errno.ENOTDIR,
                           errno.ENXIO, errno.EISDIR):  # fmt: skip
            return
        raise
    status = os.fstat(fd)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
        os.dup2(fd, stream)
    os.close(fd)


@step(lambda setup: not setup.process.terminal)
def own_streams(setup: Setup) -> None:
    """Give pipes and terminals of the standard streams to the payload's user"""
    # So that /dev/stdout can be opened again. Never a device such as /dev/null, never a file.
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
            own = stat.S_ISFIFO(status.st_mode) or os.isatty(fd)
            if own and status.st_uid != setup.process.user.uid:
                os.fchown(fd, setup.process.user.uid, -1)
        except OSError as error:
            # EBADF: closed by the caller. EPERM, EINVAL: not ours, or an id outside the user
            # namespace: then the payload uses the descriptor as it is.
            if error.errno not in (errno.EBADF, errno.EPERM, errno.EINVAL, errno.EROFS):
                raise
