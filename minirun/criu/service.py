"""The conversation with CRIU: `criu swrk`, a service of one request, on a socket of its own.

CRIU looks for the descriptors of directories in the process that made the socket. So its process
makes the socket itself, before it becomes CRIU, and sends us one end: what it opens may then be in
a mount namespace that ends with it. While it works it tells us where it is (`NOTIFY`) and waits for
our word.
"""

from __future__ import annotations

import errno
import os

from minirun import log
from minirun.criu import protobuf
from minirun.criu.messages import FEATURE_CHECK, NOTIFY, PRE_DUMP, REQUEST, RESPONSE, TYPES, VERSION
from minirun.errors import MinirunError, Unsupported, describe
from minirun.kernel import process
from minirun.launcher import SAFE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    # Called with the name of the point, the pid that CRIU tells, and a descriptor it sent or -1.
    Notify = Callable[[str, int, int], None]

PROGRAM = "criu"
OLDEST = 30000  # 3.0, the first that can be asked for its version
_SOCKET = 3  # its number in CRIU's process
FIRST = 4  # … and that of the first directory
_ANSWER_MAX = 1 << 16
_NOT_STARTED = 127


class Failed(MinirunError):
    """CRIU refused or failed."""


def find() -> str:
    """Return the path of the program. Raises Unsupported if it is not installed."""
    for directory in SAFE_PATH.split(":"):
        path = f"{directory}/{PROGRAM}"
        if os.access(path, os.X_OK):
            return path
    raise Unsupported(
        "checkpoint and restore are not supported: criu is not installed",
        cause="CRIU does the work (https://criu.org)",
        fix="apt install criu",
    )


def version() -> int:
    """Ask for CRIU's version: 31701 is 3.17.1. Raises Unsupported, Failed."""
    answer = ask({"type": VERSION})["version"]
    return int(answer["major"] * 10000 + answer["minor"] * 100 + answer.get("sublevel", 0))


def shown(number: int) -> str:
    """Render a version as people write it."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def require(least: int = OLDEST) -> int:
    """Return CRIU's version. Raises Unsupported where it is not there or older than `least`."""
    found = version()
    if found < least:
        raise Unsupported(
            f"CRIU version {found} must be {least} or higher",
            cause=f"criu is of version {shown(found)}, and {shown(least)} is needed",
        )
    return found


def features() -> dict[str, bool]:
    """Tell which of mem_track and lazy_pages CRIU has on this kernel.

    Raises Unsupported where CRIU cannot work on this kernel at all.
    """
    try:
        answer = ask({"type": FEATURE_CHECK, "features": {"mem_track": True, "lazy_pages": True}})
    except Failed as error:
        if os.geteuid() != 0:
            raise Unsupported(
                "checkpoint and restore are not supported: criu needs root",
                cause="it opens what the kernel shows to root alone",
                fix="sudo minirun …",
            ) from error
        raise Unsupported(
            "checkpoint and restore are not supported: criu does not work on this kernel",
            cause=f"criu {shown(version())}, Linux {os.uname().release}; {PROGRAM} check tells why",
            fix="install a newer criu",
        ) from error
    found: dict[str, bool] = answer.get("features", {})
    return found


def probe() -> None:
    """Raise Unsupported unless CRIU is there, new enough, and works on this kernel."""
    require()
    features()


class Start:
    """What CRIU's process starts with.

    `cgroup` is the descriptor of the group it starts in. `prepare` is called in it first; what it
    raises is told as the failure. Then it opens `directories`, which become its descriptors 4, 5 …,
    and `descriptors` of ours follow them. `started` is called in this process with its pid, before
    CRIU is sent the request, which it may still change. With `streams` it has our standard streams,
    which the processes that it restores get; else it has none, for it talks before it has a log.
    """

    def __init__(
        self,
        directories: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        *,
        cgroup: int | None = None,
        prepare: Callable[[], None] | None = None,
        started: Callable[[int], None] | None = None,
        streams: bool = False,
    ) -> None:
        self.directories = directories
        self.descriptors = descriptors
        self.cgroup = cgroup
        self.prepare = prepare
        self.started = started
        self.streams = streams

    @property
    def first_descriptor(self) -> int:
        """The number that the first of `descriptors` has in CRIU's process."""
        return FIRST + len(self.directories)


def ask(
    request: dict[str, Any],
    notify: Notify | None = None,
    start: Start | None = None,
) -> dict[str, Any]:
    """Have CRIU serve a request; return its answer once its process has ended.

    Raises Failed with CRIU's words, Unsupported if there is no CRIU, and what `notify` raises.
    """
    import _socket

    path, start = find(), start or Start()
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
    pid = 0
    try:
        pid = _spawn(path, theirs, start)
        theirs.close()
        sock = _conversation(ours)
        try:
            if start.started is not None:
                start.started(pid)
            sock.send(protobuf.encode(request, REQUEST))
            answer = _converse(sock, notify)
        finally:
            sock.close()
    except ConnectionError as error:
        raise Failed("criu failed: it ended without an answer") from error
    except OSError as error:
        raise Failed(f"criu failed: type {TYPES[request['type']]}: {error.strerror}") from error
    finally:
        ours.close()
        theirs.close()
        status = os.waitpid(pid, 0)[1] if pid else 0
    # After a pre-dump CRIU waits for the dump, and is ended by the socket's end.
    if status and request["type"] != PRE_DUMP:
        end = os.waitstatus_to_exitcode(status)
        raise Failed(f"criu failed: {f'signal {-end}' if end < 0 else f'exit status {end}'}")
    return answer


def _conversation(courier: Any) -> Any:
    """Return the end of CRIU's socket that its process sends, or raise what it tells instead."""
    import _socket

    answer, fd = _receive(courier)
    if fd < 0:
        raise Failed(f"criu failed: {answer.get('cr_errmsg', '')}")
    return _socket.socket(fileno=fd)


def _converse(sock: Any, notify: Notify | None) -> dict[str, Any]:
    while True:
        answer, fd = _receive(sock)
        kind = answer.get("type", 0)
        log.debug(f"criu: {TYPES.get(kind, kind)} {answer.get('notify', {}).get('script', '')}")
        if not answer.get("success"):
            number = answer.get("cr_errno", 0)
            # Its own words are no part of the message: engines would match theirs in them.
            raise Failed(
                f"criu failed: type {TYPES.get(kind, kind)} errno {number}",
                cause=str(answer.get("cr_errmsg", "")).strip(),
            )
        if kind != NOTIFY:
            return answer
        told = answer.get("notify", {})
        try:
            if notify is not None:
                notify(told.get("script", ""), told.get("pid", 0), fd)
        finally:
            if fd >= 0:
                os.close(fd)
        sock.send(protobuf.encode({"type": NOTIFY, "notify_success": True}, REQUEST))


def _receive(sock: Any) -> tuple[dict[str, Any], int]:
    import _socket

    data, ancillary, _flags, _address = sock.recvmsg(
        _ANSWER_MAX, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        raise Failed("criu failed: it ended without an answer")
    fd = -1
    for level, kind, content in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fd = int.from_bytes(content[:4], "little")
    try:
        return protobuf.decode(data, RESPONSE), fd
    except ValueError as error:
        raise Failed(f"criu failed: its answer cannot be understood: {error}") from None


def _spawn(path: str, courier: Any, start: Start) -> int:
    pid, pidfd = process.clone3(0, cgroup=start.cgroup)
    if pid == 0:
        _become(path, courier, start)
    os.close(pidfd)
    return pid


def _become(path: str, courier: Any, start: Start) -> None:
    """In the child: become CRIU; never returns."""
    import _socket

    try:
        if start.prepare is not None:
            start.prepare()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        opened = [os.open(directory, flags) for directory in start.directories]
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        handed = [theirs.fileno(), *opened, *start.descriptors]
        # Out of the way of the numbers that they shall have.
        aside = [_duplicate(fd, _SOCKET + len(handed)) for fd in handed]
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, ours.fileno().to_bytes(4, "little"))
        courier.sendmsg([protobuf.encode({"success": True}, RESPONSE)], [rights])
        for number, fd in enumerate(aside, _SOCKET):
            os.dup2(fd, number)
        if not start.streams:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for number in range(_SOCKET):
                os.dup2(null, number)
        argv = process.string_array([b"criu", b"swrk", str(_SOCKET).encode()])
        envp = process.string_array([b"PATH=" + SAFE_PATH.encode()])
        os.umask(0o077)
        process.reset_signals()
        process.close_range(_SOCKET + len(handed))
        process.execve(os.fsencode(path), argv, envp)
    except (MinirunError, OSError) as error:
        answer = {"cr_errno": getattr(error, "errno", 0) or errno.EIO, "cr_errmsg": describe(error)}
        courier.send(protobuf.encode(answer, RESPONSE))
    finally:
        os._exit(_NOT_STARTED)


def _duplicate(fd: int, least: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
