"""Is this a confidential guest, whose memory its host cannot read?"""

from __future__ import annotations

import struct

from minirun.virt.cpu import kernel_log, whole_log
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_ISOLATION = "4000000c.0"  # Hyper-V: EBX, bits 0-3
_ISOLATED = {1: "VBS", 2: "SEV-SNP", 3: "TDX"}
_ACTIVE = "Memory Encryption Features active:"


def collect(host: Host, facts: Facts) -> None:
    """Find `machine.confidential`: "TDX", "SEV", "SEV-ES", "SEV-SNP" and their like, or "none"."""
    where = "CPUID, the kernel's log, devices"
    facts.take("machine.confidential", where, lambda: _kind(host, facts))


def _kind(host: Host, facts: Facts) -> str:
    if facts.get("machine.virtual") is False:
        return "none"
    machine = facts.get("system.machine")
    if machine == "aarch64":
        there = host.present("/sys/devices/platform/arm-cca-dev", "/sys/devices/platform")
        return "ARM CCA" if there else "none"
    if machine == "s390x":
        path = "/sys/firmware/uv/prot_virt_guest"
        return "Secure Execution" if _flag(host, path) else "none"
    return _x86(host, facts)


def _flag(host: Host, path: str) -> bool:
    return host.present(path, "/sys/firmware") and host.text(path) == "1"


def _x86(host: Host, facts: Facts) -> str:
    raw = facts.get("cpu.cpuid")
    leaves = raw["leaves"] if raw else {}
    if "21.0" in leaves:
        _, one, three, two = leaves["21.0"]
        if struct.pack("=3I", one, two, three) == b"IntelTDX    ":
            return "TDX"
    names = [one["signature"] for one in facts.get("machine.signatures") or []]
    if "Microsoft Hv" in names and _ISOLATION in leaves:
        isolated = _ISOLATED.get(leaves[_ISOLATION][1] & 0xF)
        if isolated:
            return isolated
    by_log = _by_log(host)
    if by_log:
        return by_log
    return _by_devices(host, facts, certain=bool(leaves))


def _by_log(host: Host) -> str:
    """What the kernel's own line says: "AMD SEV SEV-ES SEV-SNP". SME is a host's and is not it."""
    try:
        lines = kernel_log(host)
    except (OSError, Unknown):
        return ""
    for line in lines:
        if _ACTIVE in line:
            words = line.partition(_ACTIVE)[2].split()
            if "TDX" in words:
                return "TDX"
            kinds = [word for word in words if word.startswith("SEV")]
            if kinds:
                return kinds[-1]
    return ""


def _by_devices(host: Host, facts: Facts, certain: bool) -> str:
    if host.present("/dev/sev-guest", "/dev"):
        return "SEV-SNP"
    if host.present("/dev/tdx_guest", "/dev"):
        return "TDX"
    # TDX always shows itself in CPUID. SEV without SNP does so only in the kernel's log: where that
    # cannot be read, an AMD guest may be one. The hypervisor offers the leaf to such guests.
    if not certain:
        raise Unknown(facts.why("cpu.cpuid"))
    encrypted = facts.get("cpu.cpuid")["leaves"].get("8000001f.0", [0])[0]
    if facts.get("cpu.extension") == "AMD-V" and encrypted >> 1 & 1:
        whole_log(host)  # it has denied it; otherwise this tells why it is unknown
    return "none"
