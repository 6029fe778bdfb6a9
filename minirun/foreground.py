"""Staying with a process in the foreground: signals go to it, its terminal comes to us."""

from __future__ import annotations

import fcntl
import os
import select
import time

from minirun.kernel import process, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.notifysocket import Proxy
    from minirun.setup import Setup

    Modes = list[Any]

_SIGHUP, _SIGINT, _SIGKILL, _SIGCHLD, _SIGURG, _SIGWINCH = 1, 2, 9, 17, 23, 28
_KEPT = (_SIGCHLD, _SIGURG)  # SIGURG: what a Go parent sends to itself
_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_CHUNK = 1 << 16
_PATIENCE = 2.0  # seconds within which interrupts count as insisting


class Signals:
    """All signals blocked and readable, for the length of a `with` block."""

    def __enter__(self) -> Signals:
        import _signal  # type: ignore[import-not-found]  # `signal` costs 15 ms of enums

        self._module = _signal
        everything = set(range(1, 65)) - {32, 33}  # the two that the C library keeps for itself
        self._former = _signal.pthread_sigmask(_signal.SIG_BLOCK, everything)
        self.fd = signals.signalfd((1 << 64) - 1)
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)
        self._module.pthread_sigmask(self._module.SIG_SETMASK, self._former)


class Terminal:
    """The caller's terminal in raw mode, restored at the end of the `with` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._modes: Modes | None = None

    def __enter__(self) -> Terminal:
        if os.isatty(self.fd):
            import termios

            self._modes = termios.tcgetattr(self.fd)
            termios.tcsetattr(self.fd, termios.TCSADRAIN, _raw(self._modes))
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._modes is not None:
            import termios

            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._modes)


def _raw(modes: Modes) -> Modes:
    """Make raw modes, as cfmakeraw(3) does."""
    import termios as t

    iflag, oflag, cflag, lflag, ispeed, ospeed, chars = modes
    iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
    cflag = cflag & ~(t.CSIZE | t.PARENB) | t.CS8
    lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    return [iflag, oflag & ~t.OPOST, cflag, lflag, ispeed, ospeed, chars]


def size_of(fd: int) -> tuple[int, int] | None:
    """Return (rows, columns) of the terminal at `fd`; None if it is none."""
    try:
        raw = fcntl.ioctl(fd, _TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return None
    return int.from_bytes(raw[0:2], "little"), int.from_bytes(raw[2:4], "little")


class Watch:
    """One foreground process: `run` stays until it ends and returns its exit status."""

    def __init__(self, pid: int, pidfd: int, master: int, caught: Signals) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.master = master  # the pty's, or -1
        self.caught = caught
        self.poller = select.poll()
        self.pending = b""  # of the caller's input, what the terminal has not taken yet
        self.input_ended = False
        self.interrupts: list[float] = []
        self.others: dict[int, Callable[[], object]] = {}

    def listen(self, fd: int, act: Callable[[], object]) -> None:
        """Call `act` whenever `fd` can be read."""
        self.others[fd] = act
        self.poller.register(fd, select.POLLIN)

    def run(self) -> int:
        """Forward signals and terminal until the process ends; 128 + n if by signal n."""
        self.poller.register(self.pidfd, select.POLLIN)
        self.poller.register(self.caught.fd, select.POLLIN)
        if self.master >= 0:
            # A process that reads nothing would else keep us in write(2), even after its end.
            os.set_blocking(self.master, False)
            self.poller.register(self.master, select.POLLIN)
            self.poller.register(0, select.POLLIN)
            self._resize()
        while not self._turn():
            pass
        self._drain()
        return self._status()

    def _turn(self) -> bool:
        ended = False
        for fd, event in self.poller.poll():
            if fd == self.pidfd:
                ended = True
            elif fd == self.caught.fd:
                for number in signals.read_signals(fd):
                    self._signalled(number)
            elif fd == self.master:
                self._from_terminal(event)
            elif fd == 0:
                self._from_caller(event)
            else:
                self.others[fd]()
        return ended

    def _signalled(self, number: int) -> None:
        if number == _SIGWINCH and self.master >= 0:
            self._resize()
        elif number not in _KEPT:
            self._insist(number)
            self._send(number)

    def _send(self, number: int) -> None:
        try:
            process.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # it has ended; the pidfd is about to say so

    def _insist(self, number: int) -> None:
        """Help a person whose Ctrl-C a first process ignores: pid_namespaces(7)."""
        if number != _SIGINT or not os.isatty(2) or signals.catches(self.pid, number):
            return
        moment = time.monotonic()
        self.interrupts = [one for one in self.interrupts if moment - one < _PATIENCE] + [moment]
        if len(self.interrupts) == 2:
            os.write(
                2,
                b"minirun: the first process of a container ignores signals that it does not "
                b"handle; press Ctrl-C once more to kill it (--init avoids this)\n",
            )
        elif len(self.interrupts) >= 3:
            self._send(_SIGKILL)

    def _resize(self) -> None:
        size = size_of(0) or size_of(1)
        if size:
            raw = b"".join(value.to_bytes(2, "little") for value in (*size, 0, 0))
            fcntl.ioctl(self.master, _TIOCSWINSZ, raw)

    def _from_terminal(self, event: int) -> None:
        if event & select.POLLOUT:
            self._feed()
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has the pty's other end open
            data = b""
        if data:
            _write_all(1, data)
        else:
            self.poller.unregister(self.master)

    def _from_caller(self, event: int) -> None:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            data = b""
        if not data:
            self.input_ended = True
            data = b"" if event & select.POLLNVAL else b"\x04"  # as a terminal's user types it
        self.poller.unregister(0)
        self.pending = data
        self._feed()

    def _feed(self) -> None:
        """Give the terminal what it takes now; more input is read when that is all."""
        try:
            self.pending = self.pending[os.write(self.master, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:  # EIO, see above
            self.pending = b""
        if self.pending:
            self.poller.register(self.master, select.POLLIN | select.POLLOUT)
            return
        self.poller.register(self.master, select.POLLIN)
        if not self.input_ended:
            self.poller.register(0, select.POLLIN)

    def _drain(self) -> None:
        if self.master < 0:
            return
        rest = select.poll()
        rest.register(self.master, select.POLLIN)
        while rest.poll(0):
            try:
                data = os.read(self.master, _CHUNK)
            except OSError:  # EIO, see above
                break
            if not data:
                break
            _write_all(1, data)

    def _status(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:
            return  # nobody reads; the process is waited for all the same


def console_of(setup: Setup) -> Any:
    """For a foreground terminal: keep one end of a socket, give the child the other.

    Return ours, or None where no terminal is asked for or somebody else is sent it.
    """
    if not setup.process.terminal or setup.launch.console_socket is not None:
        return None
    import _socket

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    setup.console = theirs.detach()
    setup.console_size = size_of(0) or size_of(1)
    # A file or pipe gets the lines as they were written; a terminal in raw mode needs the \r.
    setup.plain_lines = not os.isatty(1)
    return ours


def attend(setup: Setup, console: Any, caught: Signals, proxy: Proxy | None = None) -> int:
    """Stay with the process of run or exec until it ends; return its exit status."""
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    if console is None:
        return _watch(Watch(setup.pid, setup.pidfd, -1, caught), proxy)
    from minirun.unixsocket import receive_fd

    master = receive_fd(console)
    console.close()
    with Terminal(0):
        return _watch(Watch(setup.pid, setup.pidfd, master, caught), proxy)


def _watch(watch: Watch, proxy: Proxy | None) -> int:
    if proxy is not None:
        # The manager's process is this one: it stays as long as the service.
        watch.listen(proxy.fileno(), lambda: proxy.take(os.getpid()))
    return watch.run()
