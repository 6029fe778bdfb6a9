"""The machine as the report reads it: the one seam between what is asked and what is answered.

    RealHost             this machine
    FixtureHost(dir)     a machine that was recorded or described (`minirun.virt.fixture`)
    Recorder(host)       passes on, and remembers what was asked (`minirun.virt.recording`)

Everything that can be read raises OSError as the kernel gave it; nothing here judges. Answers are
made of what JSON has, so that a recorded machine answers as it did.
"""

from __future__ import annotations

import errno
import os
import stat

from minirun.virt import child
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST = 1 << 20  # bytes of one file
# What is looked for in the kernel's log; no other line of it is kept.
LOG_WORDS = (
    "disabled by BIOS", "disabled (by BIOS)", "virtual machine fork", "paravirtual",
    "Memory Encryption Features active", "VHE mode initialized", "Hyp mode initialized", "gVisor",
    "kvm_guest_apic_eoi_write", "PV TLB flush", "pv remote TLB flush", "PV sched yield", "PV IPIs",
    "PV spinlocks", "stealtime", "kvm-clock: Using msrs", "HYP mode not available",
    "Nested Paging enabled", "Nested Virtualization enabled",
)  # fmt: skip
# The options of the kernel that the report looks at.
CONFIG = ("KVM", "KVM_INTEL", "KVM_AMD", "KVM_PVM", "VHOST_NET", "VHOST_VSOCK", "TUN", "VFIO",
          "INTEL_IOMMU", "AMD_IOMMU", "VIRTIO_IOMMU", "X86_MSR", "MODULES")  # fmt: skip


class Host:
    """What can be asked of a machine."""

    live = False

    def read(self, path: str) -> bytes:
        """Return a file's content, at most a mebibyte."""
        raise NotImplementedError

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        raise NotImplementedError

    def status(self, path: str) -> dict[str, int]:
        """Return mode, uid, gid, rdev, ino and dev of what a path leads to."""
        raise NotImplementedError

    def ask(self, what: str) -> Any:
        """Answer what no file tells alone: uname, ids, log, config, cpuid, kvm, probe, msr:NUMBER.

        Raises OSError, or Unknown with the reason.
        """
        raise NotImplementedError

    # -- made of the above

    def text(self, path: str) -> str:
        """Return a file's content as stripped text, NULs taken for its end."""
        return self.read(path).decode("utf-8", "replace").rstrip("\0").strip()

    def present(self, path: str, under: str) -> bool:
        """Tell whether something is there. Absence counts only where `under` lists anything:

        runtimes cover directories of /sys with empty ones. Raises OSError or Unknown otherwise.
        """
        try:
            self.status(path)
        except FileNotFoundError:
            if not self.names(under):
                raise Unknown(f"{under} is empty, perhaps covered") from None
            return False
        return True


class RealHost(Host):
    """This machine."""

    live = True

    def __init__(self, probe: bool = True) -> None:
        """With `probe` false no guest is run."""
        self._probe = probe
        self._kvm: dict[str, Any] | None = None
        self._answers: dict[str, Any] = {}

    def read(self, path: str) -> bytes:
        # O_NONBLOCK: nothing that is put in a file's place may hang the report.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            parts: list[bytes] = []
            while sum(map(len, parts)) < _MOST and (part := os.read(fd, 1 << 16)):
                parts.append(part)
            return b"".join(parts)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def status(self, path: str) -> dict[str, int]:
        found = os.stat(path)
        return {
            "mode": found.st_mode,
            "uid": found.st_uid,
            "gid": found.st_gid,
            "rdev": found.st_rdev,
            "ino": found.st_ino,
            "dev": found.st_dev,
        }

    def ask(self, what: str) -> Any:
        """Answer; what was answered or refused once is not asked of the machine again."""
        if what not in self._answers:
            kind, _, which = what.partition(":")
            try:
                found = self._msr(int(which, 16)) if kind == "msr" else _ASKED[what](self)
            except (OSError, Unknown) as error:
                found = error
            self._answers[what] = found
        found = self._answers[what]
        if isinstance(found, Exception):
            raise found
        return found

    def _msr(self, number: int) -> str:
        fd = os.open("/dev/cpu/0/msr", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return hex(int.from_bytes(os.pread(fd, 8, number), "little"))
        finally:
            os.close(fd)

    def _uname(self) -> Any:
        found = os.uname()
        return {"system": found.sysname, "release": found.release, "machine": found.machine}

    def _ids(self) -> Any:
        """Who we are, and whether the group database has us in the device's group already."""
        groups = sorted({os.getegid(), *os.getgroups()})
        return {"euid": os.geteuid(), "groups": groups, **self._listed()}

    def _listed(self) -> dict[str, Any]:
        try:
            gid = os.stat("/dev/kvm").st_gid
            rows = [line.split(":") for line in self.text("/etc/group").splitlines()]
            users = [line.split(":") for line in self.text("/etc/passwd").splitlines()]
        except OSError:
            return {}  # the group then has no name: nothing is decided by it
        mine = {row[0] for row in users if len(row) > 2 and row[2] == str(os.getuid())}
        for row in rows:
            if len(row) > 3 and row[2] == str(gid):
                return {"kvm_group": row[0], "listed": bool(mine & set(row[3].split(",")))}
        return {}

    def _config(self) -> Any:
        """The kernel's own configuration, as far as it matters here; "n" for what is not set."""
        try:
            packed = self.read("/proc/config.gz")
        except FileNotFoundError:
            text = self.read(f"/boot/config-{os.uname().release}")
        else:
            import zlib

            text = zlib.decompress(packed, 31)
        found = {}
        for name in CONFIG:
            at = text.find(f"\nCONFIG_{name}=".encode()) + 1
            line = text[at : text.find(b"\n", at)] if at else b"=n"
            found[f"CONFIG_{name}"] = line.partition(b"=")[2].decode("ascii", "replace")
        return found

    def _log(self) -> Any:
        """The kernel's own messages that are looked for."""
        from minirun.kernel.syslog import read_all

        log = b"\n" + read_all()
        found = set()
        for word in LOG_WORDS:
            at = log.find(word.encode())
            while at >= 0:
                begin, end = log.rfind(b"\n", 0, at) + 1, log.find(b"\n", at)
                found.add((begin, end if end >= 0 else len(log)))
                at = log.find(word.encode(), at + 1)
        return [line for begin, end in sorted(found) if (line := _message(log[begin:end]))]

    def _cpuid(self) -> Any:
        from minirun.virt import cpuid

        return cpuid.read()

    def _kvm_and_probe(self) -> dict[str, Any]:
        """Everything about /dev/kvm happens in one child, which may hang or die alone."""
        if self._kvm is None:
            from minirun.virt import guest, kvmdevice

            steps = [kvmdevice.look, guest.run_all] if self._probe else [kvmdevice.look]
            self._kvm = child.run(steps)
        return self._kvm

    def _kvm_answer(self) -> Any:
        found = self._kvm_and_probe()
        if "open" not in found and found.get("ended"):
            raise Unknown(f"the process that opened /dev/kvm {found['ended']}")
        return {name: value for name, value in found.items() if name not in ("probe", "ended")}

    def _probe_answer(self) -> Any:
        if not self._probe:
            raise Unknown("not tried: --no-probe")
        found = self._kvm_and_probe()
        return {**found.get("probe", {}), "ended": found.get("ended", "")}


def _message(line: bytes) -> str:
    """The text of a line of the log; "" if a program wrote it, and not the kernel."""
    priority, _, rest = line.removeprefix(b"<").partition(b">")
    if not priority.isdigit() or int(priority) >= 8:  # the facility, above three bits; 0 is "kern"
        return ""
    return rest.partition(b"] ")[2].decode("utf-8", "replace")


_ASKED = {
    "uname": RealHost._uname,
    "ids": RealHost._ids,
    "config": RealHost._config,
    "log": RealHost._log,
    "cpuid": RealHost._cpuid,
    "kvm": RealHost._kvm_answer,
    "probe": RealHost._probe_answer,
}
