"""Fetching from an HTTP mirror: bounded in size and time, never weaker than what was asked for."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request

from minirun.errors import MinirunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte

SMALL = 1 << 20  # a release list or a checksum
LARGE = 4 << 30  # an archive


def check_mirror(url: str) -> str:
    """Return `url` without trailing slashes if it can be a mirror's base; raises UsageError."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"invalid mirror {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        problem = "it must start with http:// or https:// and name a host"
    elif parts.username is not None or parts.query or parts.fragment:
        problem = "it must hold no user name, query or fragment"
    elif not url.isascii() or not url.isprintable() or " " in url:
        problem = "it holds characters that no URL has"
    else:
        return url.rstrip("/")
    raise UsageError(f"invalid mirror {url!r}: {problem}")


def is_private(url: str) -> bool:
    """Tell whether nobody between us and the server can change what comes: https or loopback."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return True
    if parts.scheme != "http":
        return False
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False  # a name, even one like 127.0.0.1.example, is whatever its owner says


def fetch(url: str, limit: int = SMALL) -> bytes:
    """Fetch a small document. Raises MinirunError (NotFound for 404) with the reason."""
    with _Open(url, limit) as response:
        data = b""
        while chunk := response.read(limit + 1 - len(data)):
            data += chunk
        _check_length(url, response, len(data), limit)
        return data


def save(
    url: str, fd: int, progress: Callable[[int, int], None], limit: int = LARGE
) -> dict[str, str]:
    """Fetch `url` into the file `fd`; return its digests by algorithm (sha256, sha512).

    `progress(done, total)` is called in bytes, total 0 if the server does not say it. Raises
    MinirunError if the transfer is cut or too large, OSError if the disk is full.
    """
    hashes = {"sha256": hashlib.sha256(), "sha512": hashlib.sha512()}
    done = 0
    with _Open(url, limit) as response:
        total = _length(response)
        while chunk := response.read(_CHUNK):
            _write(fd, chunk)
            for one in hashes.values():
                one.update(chunk)
            done += len(chunk)
            if done > limit:
                break
            progress(done, total)
        _check_length(url, response, done, limit)
    return {name: one.hexdigest() for name, one in hashes.items()}


class NotFound(MinirunError):
    """The server does not have the file."""


class _SaferRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects as usual, but never from https to http; other schemes have no handler here."""

    def redirect_request(  # noqa: PLR0917 - urllib calls it so
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        if is_private(req.full_url) and not is_private(newurl):
            raise MinirunError(f"{req.full_url} redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Make an opener for http and https alone: a redirect to file: or ftp: finds no handler."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _SaferRedirects,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "minirun")]
    return opener


class _Open:
    """`with _Open(url, limit) as response`: every failure in the block is a MinirunError."""

    def __init__(self, url: str, limit: int) -> None:
        self.url = url
        self.limit = limit

    def __enter__(self) -> Any:
        try:
            self.response = _opener().open(self.url, timeout=_TIMEOUT)
        except (OSError, http.client.HTTPException) as error:
            raise _explain(self.url, error) from None
        if _length(self.response) > self.limit:
            self.response.close()
            raise _too_large(self.url, self.limit)
        return _Response(self.url, self.response)

    def __exit__(self, *_: object) -> None:
        self.response.close()


class _Response:
    def __init__(self, url: str, response: Any) -> None:
        self.url = url
        self.response = response
        self.headers = response.headers

    def read(self, size: int) -> bytes:
        try:
            return bytes(self.response.read(size))
        except (OSError, http.client.HTTPException) as error:
            raise _explain(self.url, error) from None


def _length(response: Any) -> int:
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _check_length(url: str, response: Any, got: int, limit: int) -> None:
    if got > limit:
        raise _too_large(url, limit)
    promised = _length(response)
    if promised and got != promised:
        raise MinirunError(
            f"download of {url} was cut: {got} of {promised} bytes came", fix="try again"
        )


def _too_large(url: str, limit: int) -> MinirunError:
    return MinirunError(f"{url} is larger than {limit} bytes")


def _explain(url: str, error: Exception) -> MinirunError:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (404, 410):
            return NotFound(f"{url} does not exist on the mirror")
        return MinirunError(f"cannot fetch {url}: HTTP status {error.code} {error.reason}")
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return MinirunError(
            f"cannot fetch {url}: the server's certificate is not trusted",
            cause=f"{reason.verify_message}",
            fix="check the clock and the package ca-certificates, or the mirror's address",
        )
    if isinstance(reason, TimeoutError):
        text = f"no answer for {_TIMEOUT} seconds"
    elif isinstance(reason, OSError) and reason.strerror:
        text = reason.strerror.lower()
    else:
        text = str(reason) or type(reason).__name__
    return MinirunError(
        f"cannot fetch {url}: {text}",
        fix="check the network and the mirror (--mirror, $MINIRUN_MIRROR), or use a tarball: "
        "minirun rootfs import FILE",
    )


def _write(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
