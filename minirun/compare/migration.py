"""Whether either side could be moved to another host while it runs: told, and not measured."""

from __future__ import annotations

import os

from minirun.kernel import process

_CRIU = ("/usr/sbin/criu", "/usr/local/sbin/criu", "/usr/bin/criu", "/usr/local/bin/criu")


def lines() -> list[str]:
    """Say what is possible here; CRIU is asked, the machine is not moved."""
    return [
        f"container  by checkpoint and restore, with a pause: {criu()}",
        "VM         QEMU can, copying memory while it runs, to a host with a like CPU and the same",
        "           QEMU (`migrate` of its monitor); not measured: it takes a second host",
    ]


def criu() -> str:
    """Say whether CRIU is here and works on this kernel."""
    path = next((one for one in _CRIU if os.access(one, os.X_OK)), None)
    if path is None:
        return "CRIU is not installed"
    status, said = process.run([path.encode(), b"check"])
    if status == 0:
        return "`criu check` says it works here; not measured"
    return f"`criu check` says no ({(said.splitlines() or ['no reason'])[-1][:60]})"
