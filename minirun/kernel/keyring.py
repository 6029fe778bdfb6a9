"""keyctl(2): the session keyring (session-keyring(7))."""

from __future__ import annotations

from minirun.kernel.c import c_int, c_ulong, c_void_p
from minirun.kernel.libc import call, encode, quote, syscall

_KEYCTL_JOIN_SESSION_KEYRING = 1

_keyctl = syscall({"x86_64": 250, "aarch64": 219}, c_int, c_void_p, c_ulong, c_ulong, c_ulong)


def join_session_keyring(name: str | None) -> int:
    """Join a new session keyring; None makes an anonymous one, which no other can guess.

    Returns its serial number. Source: keyctl_join_session_keyring(3).
    """
    return call(
        _keyctl,
        (_KEYCTL_JOIN_SESSION_KEYRING, encode(name), 0, 0, 0),
        lambda: f"keyctl(KEYCTL_JOIN_SESSION_KEYRING, {quote(name)})",
    )
