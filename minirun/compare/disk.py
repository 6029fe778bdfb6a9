"""The disks that are compared: a container's writable layer, and an image on the same file system.

The image is raw and sparse, holds ext4, and QEMU opens it past the host's page cache (cache=none),
so that an fsync(2) in the machine reaches the host's disk as one in the container does.
"""

from __future__ import annotations

import lzma
import os
import shutil

import psutil

from minirun.errors import MinirunError
from minirun.kernel import process
from minirun.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.compare.bootfile import BootFile

SIZE = 128 << 20
CACHE = "none"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_DISK = ("tmpfs", "ramfs")
# What the guest may need of its kernel's modules, in the order in which they go in; what is built
# in has no file. A package that was only unpacked has no modules.dep, and the order is not the same
# in all versions: the guest tries all of them twice.
_MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_mmio", "virtio_blk", "crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"),
)
# The names of the devices in the guest, the better one first.
DEVICES = {"vda": "virtio-blk", "nvme0n1": "NVMe"}


def file_system(directory: str) -> str:
    """Return the type of the file system that a directory lies on; "unknown" if none is named."""
    here = os.path.realpath(directory)
    found = [
        one
        for one in psutil.disk_partitions(all=True)
        if f"{here}/".startswith(f"{one.mountpoint.rstrip('/')}/")
    ]
    return max(found, key=lambda one: len(one.mountpoint)).fstype if found else "unknown"


class Storage:
    """Where both sides' disks lie: a directory, and the type of its file system.

    `why` says why none can be compared, "" if one can; `device` how the machine sees its disk, once
    it has told.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.kind = file_system(directory)
        self.why = lack(directory)
        self.device = ""

    def words(self) -> str:
        """Describe both disks in a line."""
        if self.why:
            return f"not compared: {self.why}"
        return (
            f"container: its writable layer, overlayfs on {self.kind}; VM: ext4 in a raw, sparse "
            f"image on the same {self.kind}, {self.device or 'no driver'}, cache={CACHE}"
        )


def lack(directory: str) -> str:
    """Say why no disk can be compared with what lies in a directory; "" if one can."""
    if not os.path.isdir(directory):
        return f"{directory} does not exist yet"
    kind = file_system(directory)
    if kind in _NO_DISK:
        return f"containers' layers lie on {kind} here: no disk"
    if shutil.which("mkfs.ext4", path=_PATH) is None:
        return "mkfs.ext4 is not installed (apt-get install e2fsprogs)"
    if psutil.disk_usage(directory).free < 4 * SIZE:
        return f"less than {format_size(4 * SIZE)} are free in {directory}"
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError as error:
        return f"{kind} has no direct I/O here ({(error.strerror or '').lower()})"
    return ""


def make(path: str) -> str:
    """Make an image at `path`, anew if there is one, and return the path. Raises MinirunError."""
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(SIZE)
    program = shutil.which("mkfs.ext4", path=_PATH) or "/sbin/mkfs.ext4"
    options = ("-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0")
    status, said = process.run([os.fsencode(word) for word in (program, *options, path)])
    if status:
        raise MinirunError(f"mkfs.ext4: {(said.splitlines() or [f'status {status}'])[-1]}")
    return path


def arguments(machine: str, images: Sequence[str]) -> list[str]:
    """Return QEMU's words for the disk: by virtio, and by NVMe for kernels that have only that.

    Debian's cloud kernels have NVMe and ext4 built in, virtio as modules. The guest takes one.
    """
    devices = ["virtio-blk-device"] if machine == "microvm" else ["virtio-blk-pci", "nvme"]
    words = []
    for number, (device, image) in enumerate(zip(devices, images, strict=False)):
        serial = ",serial=minirun" if device == "nvme" else ""
        words += [
            *(
                "-drive",
                f"if=none,id=disk{number},file={image.replace(',', ',,')},format=raw,cache={CACHE}",
            ),
            *("-device", f"{device},drive=disk{number}{serial}"),
        ]
    return words


def modules(kernel: BootFile) -> list[tuple[str, bytes]]:
    """Return name and content of the modules that a disk takes, in the order of loading.

    They are looked for beside the kernel, as a package lays them, and in /lib/modules.
    """
    top = os.path.dirname(os.path.dirname(kernel.path))
    for place in (f"{top}/lib/modules", f"{top}/usr/lib/modules", "/lib/modules"):
        if kernel.version and os.path.isdir(f"{place}/{kernel.version}"):
            return _modules(f"{place}/{kernel.version}")
    return []


def _modules(place: str) -> list[tuple[str, bytes]]:
    found = {}
    for directory, _, names in os.walk(f"{place}/kernel"):
        for name in names:
            stem, _, ending = name.replace("-", "_").partition(".")
            if stem in _MODULES and ending in ("ko", "ko.xz"):
                found[stem] = os.path.join(directory, name)
    chosen = []
    for number, stem in enumerate(name for name in _MODULES if name in found):
        with open(found[stem], "rb") as file:
            data = file.read()
        plain = lzma.decompress(data) if found[stem].endswith(".xz") else data
        chosen.append((f"{number:02}-{stem}.ko", plain))
    return chosen
