"""Recording a machine: what the report asked and was answered, without what names the machine.

Nothing is kept but what a collector looks at. Of each file only the words that it looks for stay,
by a list of what may; a file that is not in the list is not recorded. So no serial number, UUID,
host name, MAC address or user's name gets in.
"""

from __future__ import annotations

import errno
import os

from minirun import jsontext
from minirun.errors import MinirunError
from minirun.virt import brands, container, firmware, machine
from minirun.virt.facts import Unknown
from minirun.virt.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CPU_ROWS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "vmx flags",
             "cpu",
             "Processor", "CPU part", "uarch", "isa", "Features")  # fmt: skip
_BOOT_WORDS = ("nomodule", "clearcpuid=", "intel_iommu=", "amd_iommu=", "kvm", "mitigations=")
_FADT_KEPT = (range(9), range(10, 16), range(268, 276))


class Recorder(Host):
    """Passes questions on to a machine, and keeps them with their answers."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.live = host.live
        self.tables: dict[str, dict[str, Any]] = {
            "files": {},
            "names": {},
            "status": {},
            "ask": {},
        }

    def _keep(
        self, table: str, key: str, look: Callable[[], Any], clean: Callable[[Any], Any]
    ) -> Any:
        try:
            found = look()
        except OSError as error:
            # What is not there needs no row: that is what a path without one means.
            if error.errno != errno.ENOENT:
                name = errno.errorcode.get(error.errno or 0, "EIO")
                self.tables[table].setdefault(key, {"errno": name})
            raise
        except Unknown as error:
            self.tables[table].setdefault(key, {"unknown": str(error)})
            raise
        kept = clean(found)
        if kept is not None:
            self.tables[table][key] = kept
        return found

    def read(self, path: str) -> bytes:
        look = lambda: self._host.read(path)  # noqa: E731
        found: bytes = self._keep("files", path, look, lambda data: scrubbed(path, data))
        return found

    def names(self, path: str) -> list[str]:
        look = lambda: self._host.names(path)  # noqa: E731
        found: list[str] = self._keep("names", path, look, lambda names: _listed(path, names))
        return found

    def status(self, path: str) -> dict[str, int]:
        found: dict[str, int] = self._keep(
            "status", path, lambda: self._host.status(path), lambda found: _status(path, found)
        )
        return found

    def ask(self, what: str) -> Any:
        return self._keep(
            "ask", what, lambda: self._host.ask(what), lambda found: _asked(what, found)
        )


def _listed(path: str, names: list[str]) -> list[str]:
    """Most directories are listed only to know that they can be; their names stay private."""
    others = ["(others)"] if names else []  # that it is not empty says that it is not covered
    if path == firmware.DEVICES:
        kept = [name for name in names if name.partition(":")[0] in firmware.TELLING_DEVICES]
        return kept + others
    if path.startswith(("/sys/firmware/acpi", "/sys/bus/", "/sys/class/iommu", "/sys/kernel/",
                        "/sys/devices/system/")):  # fmt: skip
        return names
    return others


def _status(path: str, found: dict[str, int]) -> dict[str, int]:
    kept: tuple[str, ...] = ("mode", "uid", "gid", "rdev") if path == "/dev/kvm" else ()
    if "/ns/" in path or path in ("/", "/proc/1/root"):
        kept = ("dev", "ino")
    return {name: found[name] for name in kept}


def _asked(what: str, found: Any) -> Any:
    if what == "ids":
        return {**found, "euid": 1000 if found["euid"] else 0}
    return found


def scrubbed(path: str, data: bytes) -> Any:
    """Return what may be kept of a file: text, lines, or hex; None for nothing."""
    text = data.decode("utf-8", "replace")
    lines = text.splitlines()
    for start, clean in _CLEANERS:
        if path == start or (start.endswith("/") and path.startswith(start)):
            return clean(text, lines, data)
    return None


def _cpuinfo(_text: str, lines: list[str], _data: bytes) -> Any:
    first = lines[: lines.index("")] if "" in lines else lines
    return [line for line in first if line.partition(":")[0].strip() in _CPU_ROWS]


def _words_of(words: tuple[str, ...]) -> Callable[[str, list[str], bytes], Any]:
    return lambda text, lines, data: " ".join(word for word in words if word in text)


def _environment(_text: str, _lines: list[str], data: bytes) -> Any:
    kept = [word.decode("utf-8", "replace") for word in data.split(b"\0")
            if word.startswith(b"container=")]  # fmt: skip
    return "\0".join(kept)


def _fadt(_text: str, _lines: list[str], data: bytes) -> Any:
    kept = {offset for part in _FADT_KEPT for offset in part}
    return {"hex": bytes(b if n in kept else 0 for n, b in enumerate(data[:276])).hex()}


def _dmi(text: str, _lines: list[str], _data: bytes) -> Any:
    known = (brands.AZURE_TAG, *brands.MAKERS)
    return text.strip() if any(word in text for word in known) else "(another)"


def _exactly(text: str, _lines: list[str], _data: bytes) -> Any:
    return text


def _rows(*words: str) -> Callable[[str, list[str], bytes], Any]:
    return lambda text, lines, data: [line for line in lines if any(word in line for word in words)]


# What may be kept of which file; a path that ends in a slash stands for all below it.
_CLEANERS: tuple[tuple[str, Callable[[str, list[str], bytes], Any]], ...] = (
    ("/proc/cpuinfo", _cpuinfo),
    ("/proc/cmdline", lambda text, lines, data: " ".join(
        word for word in text.split() if word.startswith(_BOOT_WORDS))),
    ("/proc/version", _words_of(("Linux version", machine.GVISOR))),
    ("/proc/stat", lambda text, lines, data: lines[:1]),
    ("/proc/misc", lambda text, lines, data: [x for x in lines if x.split()[1:] == ["kvm"]]),
    ("/proc/sysinfo", _words_of(("LPAR", "VM00"))),
    ("/proc/2/comm", _exactly),
    ("/proc/xen/capabilities", _exactly),
    ("/proc/self/environ", _environment),
    ("/proc/1/environ", _environment),
    ("/proc/self/cgroup", _words_of(tuple(container.WORDS))),
    ("/proc/self/mountinfo", _words_of(tuple(container.WORDS))),
    ("/proc/device-tree/", _exactly),
    ("/run/systemd/container", _exactly),
    ("/run/host/container-manager", _exactly),
    ("/sys/firmware/acpi/tables/FACP", _fadt),
    ("/sys/firmware/uv/", _exactly),
    ("/sys/class/dmi/id/", _dmi),
    ("/sys/hypervisor/type", _exactly),
    ("/sys/hypervisor/guest_type", _exactly),
    ("/sys/hypervisor/properties/features", _exactly),
    ("/sys/module/", _exactly),
    ("/sys/bus/virtio/", _exactly),
    ("/sys/devices/system/", _exactly),
    ("/sys/kernel/mm/", _exactly),
    ("/lib/modules/", _rows("/kvm")),
    ("/etc/modprobe.d/", _rows("kvm")),
    ("/run/modprobe.d/", _rows("kvm")),
    ("/usr/lib/modprobe.d/", _rows("kvm")),
)  # fmt: skip


def save(directory: str, recorder: Recorder, expected: dict[str, Any]) -> None:
    """Write `host.json`, and the report that came of it as `expect.json`, into a new directory.

    Raises MinirunError when it exists and is not empty.
    """
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        if not os.path.isdir(directory) or os.listdir(directory):
            raise MinirunError(f"{directory}: file exists", fix="name a new directory") from None
    tables = {part: dict(sorted(rows.items())) for part, rows in recorder.tables.items()}
    # A file of which nothing may be kept, because nothing of it matters, is an empty one.
    for name, content in (("host.json", tables), ("expect.json", expected)):
        with open(os.path.join(directory, name), "x", encoding="utf-8") as file:
            file.write(jsontext.dumps(content, "  ") + "\n")
