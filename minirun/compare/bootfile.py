"""The kernel that the virtual machine boots: the one that was named, or this machine's in /boot."""

from __future__ import annotations

import os

from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BOOT = "/boot"
_HEAD = 0x240
# Documentation/arch/x86/boot.rst: "HdrS" at 0x202, xloadflags' bit 0 in 0x236 is a 64-bit entry.
_X86, _X86_FLAGS = 0x202, 0x236
# Documentation/arch/arm64/booting.rst: the magic at 56; compressed images are gzip's or EFI's.
_ARM64 = 56

PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}


class BootFile:
    """A kernel's image: its path, its size in bytes, and the version that it says it has."""

    def __init__(self, path: str, size: int, version: str) -> None:
        self.path, self.size, self.version = path, size, version


def find(given: str | None, architecture: str, directory: str = BOOT) -> BootFile:
    """Return the kernel `given`, or one of `directory`. Raises MinirunError with what helps."""
    if given is not None:
        return read(given, architecture)
    names = candidates(_names(directory), os.uname().release)
    problem = ""
    for name in names:
        try:
            return read(f"{directory}/{name}", architecture)
        except MinirunError as error:
            problem = problem or f": {error.message}"
    raise MinirunError(f"no kernel to boot in {directory}{problem}", fix=advice(architecture))


def advice(architecture: str) -> str:
    """Say how a kernel is got."""
    package = PACKAGES.get(architecture, "linux-image")
    return (
        "name one by --kernel FILE. Debian's, without installing it: apt-get download "
        f"$(apt-cache depends {package} | sed -n 's/.*Depends: \\(linux-image-.*\\)/\\1/p'); "
        "dpkg -x linux-image-*.deb here; then --kernel here/boot/vmlinuz-*"
    )


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []  # as good as empty: the error names the directory


def candidates(names: Sequence[str], release: str) -> list[str]:
    """Order what may be kernels: the running one's first, then the newest by name."""
    found = [name for name in names if name.startswith(("vmlinuz", "Image", "bzImage"))]
    return sorted(found, key=lambda name: (name == f"vmlinuz-{release}", name), reverse=True)


def read(path: str, architecture: str) -> BootFile:
    """Look into a kernel's image. Raises MinirunError if QEMU could not boot it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
            version = _version(file, head) if architecture == "x86_64" else ""
    except OSError as error:
        raise MinirunError(f"kernel {path}: {(error.strerror or '').lower()}") from None
    if architecture == "x86_64":
        good = head[_X86 : _X86 + 4] == b"HdrS" and head[_X86_FLAGS : _X86_FLAGS + 1] != b""
    else:
        good = head[_ARM64 : _ARM64 + 4] == b"ARM\x64" or head[:2] in (b"\x1f\x8b", b"MZ")
    if not good:
        raise MinirunError(
            f"kernel {path}: not a bootable image for {architecture}", fix=advice(architecture)
        )
    return BootFile(os.path.abspath(path), size, version)


def _version(file: object, head: bytes) -> str:
    """Read the text that an x86 image's header points to (kernel_version, 0x20E)."""
    if len(head) < 0x210:
        return ""
    at = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    file.seek(at)  # type: ignore[attr-defined]
    text = file.read(100)  # type: ignore[attr-defined]
    return str(text.split(b"\0")[0].split(b" ")[0].decode("ascii", "replace"))
