"""The root filesystem as a virtual machine's: its initial RAM file system, with an init of ours.

Nothing but the root filesystem's own shell and mount is used, so that both sides run the same
programs. The kernel makes no device nodes for a RAM file system: the archive brings them.
"""

from __future__ import annotations

import os
import stat

from minirun import inroot
from minirun.compare.cpio import Archive
from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

INIT = "minirun-compare-init"
JOB = "minirun-compare-job"
SHELL = "/bin/sh"
_NODES = (
    ("console", 5, 1, 0o600),
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
)
# A container's /dev/shm is a tmpfs too, so that files are made in the same file system.
_INIT = f"""#!{SHELL}
echo "@minirun init"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc || echo "@minirun failed mount /proc"
mount -t sysfs sysfs /sys || echo "@minirun failed mount /sys"
mount -t tmpfs -o size=64m shm /dev/shm || echo "@minirun failed mount /dev/shm"
{SHELL} /{JOB}
reboot -f
"""


def check_shell(root: int) -> None:
    """Refuse a root filesystem (its directory's descriptor) that has no /bin/sh."""
    try:
        os.close(inroot.open_path(root, SHELL))
    except OSError:
        raise MinirunError(
            f"the root filesystem has no {SHELL}: what is measured is a shell's work",
            fix="take another: sudo minirun rootfs build busybox, then --rootfs busybox",
        ) from None


def write(file: BinaryIO, root: int, job: str) -> None:
    """Write the initial RAM file system that runs `job`, a shell script, to an open file."""
    archive = Archive(file)
    archive.add_tree(root)
    for name in ("dev", "proc", "sys", "dev/shm"):
        if name not in archive.names:
            archive.add(name, stat.S_IFDIR | 0o755)
    for name, major, minor, mode in _NODES:
        if f"dev/{name}" not in archive.names:
            archive.add(f"dev/{name}", stat.S_IFCHR | mode, device=(major, minor))
    archive.add(INIT, stat.S_IFREG | 0o755, _INIT.encode())
    archive.add(JOB, stat.S_IFREG | 0o644, job.encode())
    archive.end()
