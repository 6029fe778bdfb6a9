"""The root filesystem as a virtual machine's: its initial RAM file system, with an init of ours.

Nothing but the root filesystem's own shell and mount is used, so that both sides run the same
programs. The kernel makes no device nodes for a RAM file system: the archive brings them.
"""

from __future__ import annotations

import os
import stat

from minirun import inroot
from minirun.compare import disk, jobs
from minirun.compare.cpio import Archive
from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

INIT = "minirun-compare-init"
JOB = "minirun-compare-job"
MODULES = "minirun-compare-modules"
DEVICES = "minirun-compare-dev"
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
"""
# The disk shows itself a while after the kernel has started; where none does, jobs are told.
_DISK = f"""{jobs.DISK}=
export {jobs.DISK}
mount -t devtmpfs dev /{DEVICES}
for one in /{MODULES}/* /{MODULES}/*; do insmod "$one" 2>/dev/null; done
tries=0
while [ $tries -lt 50 ]; do
    for one in {" ".join(disk.DEVICES)}; do
        if [ -b "/{DEVICES}/$one" ] && mount -t ext4 "/{DEVICES}/$one" {jobs.DISK_PLACE}; then
            echo "@minirun fact disk $one"
            {jobs.DISK}={jobs.DISK_PLACE} tries=50
            break
        fi
    done
    tries=$((tries + 1))
    [ $tries -ge 50 ] || sleep 0.1 2>/dev/null || sleep 1
done
"""
_END = f"""{SHELL} /{JOB}
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


class Images:
    """The machines' initial RAM file systems, written in a directory of one root filesystem.

    Raises MinirunError for one that cannot be copied or has no shell.
    """

    def __init__(self, place: str, rootfs: str) -> None:
        self.place, self.rootfs = place, rootfs
        self.boot = self.write("boot", jobs.BOOT)
        self.idle = self.write("idle", jobs.INSPECT)

    def write(self, name: str, job: str, modules: Sequence[tuple[str, bytes]] | None = None) -> str:
        """Write one, anew if there is one of that name; return its path. See `write`."""
        path = f"{self.place}/{name}.cpio"
        root = os.open(self.rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_shell(root)
            with open(path, "wb") as file:
                write(file, root, job, modules)
        except OSError as error:
            said = f"{error.filename}: {(error.strerror or '').lower()}"
            raise MinirunError(f"cannot copy the root filesystem: {said}") from None
        finally:
            os.close(root)
        return path


def write(
    file: BinaryIO, root: int, job: str, modules: Sequence[tuple[str, bytes]] | None = None
) -> None:
    """Write the initial RAM file system that runs `job`, a shell script, to an open file.

    With `modules`, kernel modules by name, it mounts a disk first.
    """
    archive = Archive(file)
    archive.add_tree(root)
    more = (MODULES, DEVICES, jobs.DISK_PLACE[1:]) if modules is not None else ()
    for name in ("dev", "proc", "sys", "dev/shm", *more):
        if name not in archive.names:
            archive.add(name, stat.S_IFDIR | 0o755)
    for name, major, minor, mode in _NODES:
        if f"dev/{name}" not in archive.names:
            archive.add(f"dev/{name}", stat.S_IFCHR | mode, device=(major, minor))
    for name, data in modules or ():
        archive.add(f"{MODULES}/{name}", stat.S_IFREG | 0o644, data)
    init = f"{_INIT}{_DISK if modules is not None else ''}{_END}"
    archive.add(INIT, stat.S_IFREG | 0o755, init.encode())
    archive.add(JOB, stat.S_IFREG | 0o644, job.encode())
    archive.end()
