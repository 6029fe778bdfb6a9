"""The kernel's log by syslog(2): whole, in one call, and without consuming it."""

from __future__ import annotations

from minirun.kernel.c import addressof, c_char, c_int, c_void_p
from minirun.kernel.libc import call, function

SYSLOG_ACTION_READ_ALL = 3
SYSLOG_ACTION_SIZE_BUFFER = 10

_klogctl = function("klogctl", c_int, c_void_p, c_int)


def read_all() -> bytes:
    """Return the log: lines of `<PRIORITY>[seconds] text`, the facility in the priority's bits.

    Raises OSError: EPERM where kernel.dmesg_restrict keeps it to CAP_SYSLOG. Source: syslog(2).
    """
    size = call(
        _klogctl,
        (SYSLOG_ACTION_SIZE_BUFFER, None, 0),
        lambda: "syslog(SYSLOG_ACTION_SIZE_BUFFER, NULL, 0)",
    )
    buffer = (c_char * size)()
    length = call(
        _klogctl,
        (SYSLOG_ACTION_READ_ALL, addressof(buffer), size),
        lambda: f"syslog(SYSLOG_ACTION_READ_ALL, …, {size})",
    )
    return buffer.raw[:length]
