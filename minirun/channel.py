"""The messages between the parent and the container's processes, and how a failure crosses.

    sender  tag         payload                 the other side then
    outer   unshared    {}                      writes the id maps, says go
    outer   timed       {}                      writes the clock offsets, says go
    outer   init        {"pid"}                 reaps the outer process
    inner   joined      {}                      finishes cgroup, limits, saves state, says go
    inner   source      {"mount", "root"}       opens a bind's source in the container, sends it
    inner   mounted     {}                      runs prestart and createRuntime hooks, says go
    any     listener    {"fd"}                  takes the filter's listener, sends it on, says go
    inner   ready       {"notes", "obstacle"}   create: exits; run, exec: sends WORD
    any     report      kind, result            of the trampoline: exec's pid, or a failed call
    any     error       {"message", …}          ends the creation with this error
    inner   events      {"events"}              keeps them for --explain
    parent  go          {}

Each message is a 4-byte length and a JSON object, over two pipes. The end of the pipe where the
payload was to start is success: the descriptors are closed by execve. A parent that dies ends the
pipe too, and the child with it.
"""

from __future__ import annotations

import errno
import os

from minirun import jsontext
from minirun.errors import CannotExecute, MinirunError

# What lets the trampoline go on. Eight bytes: its number is used as sizeof(sigset_t), which makes
# the next call fail where the end of the pipe gave 0.
WORD = b"go ahead"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_REPORT = 0xFFFFFFFF  # the first half of the trampoline's mark
_LIMIT = 8 << 20  # an --explain of thousands of system calls is below 1 MiB


class ChannelClosed(MinirunError):
    """The other side is gone."""


class RemoteError(MinirunError):
    """A failure that the child told; `message` is the child's, `errno` its number or 0."""

    def __init__(self, message: str, errno: int, cause: str = "", fix: str = "") -> None:
        super().__init__(message, cause=cause, fix=fix)
        self.errno = errno


def failed(
    args: tuple[str, ...], kind: str, error: int, obstacle: tuple[str, str] = ("", "")
) -> CannotExecute:
    """Make the error of a trampoline's report: which call of its table failed, and how.

    `obstacle` is what was seen of the program beforehand: cause and fix, for people.
    """
    strerror = os.strerror(error).lower()
    if kind == "execve":
        cause, fix = obstacle
        if error == errno.E2BIG:
            cause, fix = "arguments and environment are too long together", "shorten them"
        return CannotExecute(f"exec {args[0]}: {strerror}", cause=cause, fix=fix)
    return CannotExecute(f"payload: {kind}: {strerror}")


class Channel:
    """One end: a descriptor to read from and one to write to."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, tag: str, payload: dict[str, Any] | None = None) -> None:
        """Send one message. Raises ChannelClosed if nobody can read it."""
        data = jsontext.dumps({"tag": tag, **(payload or {})}).encode()
        data = len(data).to_bytes(4, "big") + data
        try:
            while data:
                data = data[os.write(self.writer, data) :]
        except BrokenPipeError:
            raise ChannelClosed("the other process is gone") from None

    def hand_over(self, listener: int) -> None:
        """Tell the number of a descriptor and wait until the other side has taken it.

        Nothing but write(2) may happen before: the filter that the listener belongs to may stop
        any other call until somebody answers, and nobody listens yet.
        """
        data = b'{"tag":"listener","fd":%d}' % listener
        os.write(self.writer, len(data).to_bytes(4, "big") + data)
        self.expect("go")

    def release(self) -> None:
        """Send the word for which the trampoline waits."""
        try:
            os.write(self.writer, WORD)
        except BrokenPipeError:
            raise ChannelClosed("the other process is gone") from None

    def receive(self) -> dict[str, Any]:
        """Wait for a message. Raises ChannelClosed at the end, RemoteError for an `error`."""
        size = int.from_bytes(self._read(4), "big")
        if size == _REPORT:
            from minirun.kernel import trampoline  # 1 ms, which `start` without a failure saves

            try:
                report = self._read(trampoline.REPORT_SIZE - 4)[4:]
                kind, result = trampoline.read_report(report)
            except ValueError as error:
                raise MinirunError(str(error)) from None
            return {"tag": "report", "kind": kind, "result": result}
        if size > _LIMIT:
            raise MinirunError(f"message of {size} bytes between the processes")
        message = jsontext.loads(self._read(size), "message")
        if not isinstance(message, dict) or "tag" not in message:
            raise MinirunError("malformed message between the processes")
        if message["tag"] == "error":
            raise RemoteError(
                message["message"], message["errno"], message["cause"], message["fix"]
            )
        return message

    def expect(self, tag: str) -> dict[str, Any]:
        """Wait for a message of this kind; any other is an error that names both."""
        message = self.receive()
        if message["tag"] != tag:
            raise MinirunError(f"expected message {tag!r}, got {message['tag']!r}")
        return message

    def await_payload(self, args: tuple[str, ...], obstacle: tuple[str, str] = ("", "")) -> None:
        """Wait for the end of the channel, which execve makes. Raises the failure that is told."""
        try:
            message = self.receive()
        except ChannelClosed:
            return  # or it was killed: then its exit status tells
        if message["tag"] == "report":
            raise failed(args, message["kind"], -message["result"], obstacle)
        raise MinirunError(f"unexpected message {message['tag']!r}")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = os.read(self.reader, size - len(data))
            if not chunk:
                raise ChannelClosed("the other process is gone")
            data += chunk
        return data

    def close(self) -> None:
        """Close both descriptors; the other side sees the end."""
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)
        self.reader = self.writer = -1


def pair() -> tuple[Channel, Channel]:
    """Make the two ends of a channel."""
    down_reader, down_writer = os.pipe2(os.O_CLOEXEC)
    up_reader, up_writer = os.pipe2(os.O_CLOEXEC)
    return Channel(up_reader, down_writer), Channel(down_reader, up_writer)
