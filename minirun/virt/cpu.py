"""The processor: whose it is, which extension it has, and who keeps it from us.

CPUID says what the CPU has (or what the hypervisor lets be seen), /proc/cpuinfo what the kernel has
left of it: since 5.6 for VT-x, and later for AMD-V, it takes the flag away where the firmware has
locked the extension. So a bit that is set there and missing here was taken by kernel or firmware.
"""

from __future__ import annotations

import struct

from minirun.virt import cpuid
from minirun.virt.facts import Unknown, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

X86 = ("x86_64", "i686", "i586", "i486", "i386")
# The extension's name by the vendor that CPUID's leaf 0 names.
EXTENSIONS = {
    "GenuineIntel": "VT-x",
    "CentaurHauls": "VT-x",
    "  Shanghai  ": "VT-x",
    "AuthenticAMD": "AMD-V",
    "HygonGenuine": "AMD-V",
}
_OTHERS = {"aarch64": "ARM EL2", "s390x": "SIE", "ppc64": "POWER HV", "ppc64le": "POWER HV",
           "riscv64": "RISC-V H"}  # fmt: skip
FLAGS = {"VT-x": "vmx", "AMD-V": "svm"}

# IA32_FEATURE_CONTROL (Intel SDM, "Enabling and Entering VMX Operation"), VM_CR (AMD APM 2, 15.30).
_FEATURE_CONTROL, _VM_CR = 0x3A, 0xC0010114
# The first version that takes the flag away when the extension is locked.
_TAKES_AWAY = {"vmx": [5, 6], "svm": [6, 8]}
_FIRMWARE_LINES = ("disabled by BIOS", "disabled (by BIOS)")


def collect(host: Host, facts: Facts) -> None:
    """Find the processor's facts: `cpu.*`."""
    machine = facts.take("system.machine", "uname", lambda: host.ask("uname")["machine"])
    facts.take("system.kernel", "uname", lambda: host.ask("uname")["release"])
    info = _cpuinfo(host, facts)
    if machine in X86:
        _x86(host, facts, info)
    elif machine is None:
        for name in ("extension", "vmx", "svm", "hypervisor", "lock"):
            facts.unknown(f"cpu.{name}", facts.why("system.machine"), "uname")
    else:
        facts.take("cpu.extension", "uname", lambda: _OTHERS.get(machine))
        facts.take(
            "cpu.hypervisor", "device tree, SMBIOS", lambda: _other_hypervisor(host, machine)
        )


def _cpuinfo(host: Host, facts: Facts) -> dict[str, str] | None:
    """Return the first processor's rows of /proc/cpuinfo; None when there are none."""

    def rows() -> dict[str, str]:
        found: dict[str, str] = {}
        for line in host.text("/proc/cpuinfo").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() not in found:
                found[name.strip()] = value.strip()
        if not found:
            raise Unknown("/proc/cpuinfo is empty")
        return found

    try:
        info = rows()
    except (OSError, Unknown) as error:
        facts.unknown("cpu.name", reason(error, "/proc/cpuinfo"), "/proc/cpuinfo")
        return None
    facts.take("cpu.name", "/proc/cpuinfo", lambda: _name(info))
    return info


def _name(info: dict[str, str]) -> str | None:
    names = ("model name", "cpu", "Processor", "uarch", "isa", "vendor_id", "CPU part")
    name = next((info[key] for key in names if info.get(key)), None)
    numbers = [info.get(key) for key in ("cpu family", "model", "stepping")]
    return f"{name} ({'/'.join(map(str, numbers))})" if name and all(numbers) else name


def _x86(host: Host, facts: Facts, info: dict[str, str] | None) -> None:
    raw = facts.take("cpu.cpuid", "CPUID", lambda: host.ask("cpuid"))
    leaves: dict[str, list[int]] = raw.get("leaves", {}) if isinstance(raw, dict) else {}
    how = f"CPUID ({raw.get('how')})" if isinstance(raw, dict) else "CPUID"
    flags = set(info["flags"].split()) if info and "flags" in info else None
    vendor = facts.take("cpu.vendor", how, lambda: _vendor(leaves, info))
    if vendor is not None:
        facts.take("cpu.extension", how, lambda: EXTENSIONS.get(vendor))
    else:
        facts.unknown("cpu.extension", facts.why("cpu.vendor"), how)

    def bit(leaf: str, register: int, number: int) -> bool:
        if leaf not in leaves:
            raise Unknown(facts.why("cpu.cpuid") or _not_offered(leaf, leaves))
        return bool(leaves[leaf][register] >> number & 1)

    def flag(name: str) -> bool:
        if flags is None:
            raise Unknown("/proc/cpuinfo has no flags")
        return name in flags

    facts.take("cpu.vmx.raw", f"{how} 1.ECX[5]", lambda: bit("1.0", 2, 5))
    facts.take("cpu.svm.raw", f"{how} 80000001.ECX[2]", lambda: bit("80000001.0", 2, 2))
    facts.take("cpu.hypervisor.raw", f"{how} 1.ECX[31]", lambda: bit("1.0", 2, 31))
    for name in ("vmx", "svm", "hypervisor"):
        facts.take(f"cpu.{name}.flag", "/proc/cpuinfo flags", flag, name)
    facts.take("cpu.sgx", f"{how} 7.EBX[2]", lambda: bit("7.0", 1, 2))
    _one_word(facts)
    _paging(facts, leaves, flags, info)
    facts.take("cpu.lock", "MSR, kernel log, kernel configuration", lambda: _lock(host, facts))


def _not_offered(leaf: str, leaves: dict[str, list[int]]) -> str:
    return f"CPUID has no leaf {leaf.partition('.')[0]}" if leaves else "CPUID was not read"


def _vendor(leaves: dict[str, list[int]], info: dict[str, str] | None) -> str | None:
    if "0.0" in leaves:
        _, one, three, two = leaves["0.0"]
        return struct.pack("=3I", one, two, three).decode("ascii")
    return info.get("vendor_id") if info else None


def _one_word(facts: Facts) -> None:
    """Merge both sources: what CPUID says counts, the flag where it is silent and yes."""
    for name in ("vmx", "svm", "hypervisor"):
        raw, flag = facts.get(f"cpu.{name}.raw"), facts.get(f"cpu.{name}.flag")
        if raw is not None or flag is not None:
            # Without CPUID a missing flag proves nothing: the kernel takes flags away.
            value = raw if raw is not None else flag or (None if name != "hypervisor" else flag)
            if value is not None:
                facts.say(f"cpu.{name}", value, facts.source(f"cpu.{name}.raw") or "/proc/cpuinfo")
                continue
        facts.unknown(f"cpu.{name}", facts.why(f"cpu.{name}.raw") or "no source", "CPUID")


def _paging(facts: Facts, leaves: dict[str, list[int]], flags: set[str] | None,
            info: dict[str, str] | None) -> None:  # fmt: skip
    """What the extension can do; the kernel lists it only where it may use the extension."""
    vmx = set(info["vmx flags"].split()) if info and "vmx flags" in info else None
    amd = facts.get("cpu.extension") == "AMD-V"

    def vmx_flag(name: str) -> bool:
        if facts.get("cpu.vmx") is False:
            return False
        if vmx is None and flags is not None and name in flags:
            return True  # before 5.10 they stood among the others
        if vmx is None:
            raise Unknown("/proc/cpuinfo has no vmx flags")
        return name in vmx

    def svm_bit(number: int) -> bool:
        if facts.get("cpu.svm") is False:
            return False
        if "8000000a.0" not in leaves:
            raise Unknown(facts.why("cpu.cpuid") or "CPUID has no leaf 8000000a")
        return bool(leaves["8000000a.0"][3] >> number & 1)

    if amd:
        facts.take("cpu.nested_paging", "CPUID 8000000A.EDX[0] (NPT)", lambda: svm_bit(0))
        facts.take("cpu.avic", "CPUID 8000000A.EDX[13]", lambda: svm_bit(13))
        facts.take("cpu.asids", "CPUID 8000000A.EBX", lambda: leaves["8000000a.0"][1])
    else:
        facts.take("cpu.nested_paging", "vmx flags: ept", lambda: vmx_flag("ept"))
        facts.take("cpu.vpid", "vmx flags: vpid", lambda: vmx_flag("vpid"))
        facts.take("cpu.unrestricted_guest", "vmx flags", lambda: vmx_flag("unrestricted_guest"))
        facts.take("cpu.apicv", "vmx flags: apicv", lambda: vmx_flag("apicv"))


# ---------------------------------------------------------------- who keeps it from us


def _lock(host: Host, facts: Facts) -> str:
    """Return "none", "firmware", "kernel" or "firmware or kernel" (nothing tells which)."""
    extension = facts.get("cpu.extension")
    name = FLAGS.get(extension or "")
    if name is None:
        raise Unknown("no extension is known of this CPU's vendor")
    raw, flag = facts.get(f"cpu.{name}.raw"), facts.get(f"cpu.{name}.flag")
    if raw is False:
        return "none"
    by_msr = _msr_locked(host, extension)
    if by_msr:
        return "firmware"
    if flag and by_msr is None and _leaves_flags(facts, name):
        raise Unknown("this kernel leaves the flag, and the MSR cannot be read")
    if flag:
        return "none"
    if raw is None or flag is None:
        raise Unknown("CPUID and /proc/cpuinfo are both needed to tell")
    return _taken_by(host, name, by_msr)


def _leaves_flags(facts: Facts, name: str) -> bool:
    """Whether the kernel is from before it took the flag of a locked extension away."""
    words = (facts.get("system.kernel") or "0.0").split(".")
    numbers = [int("".join(char for char in word if char.isdigit()) or 0) for word in words[:2]]
    return numbers < _TAKES_AWAY[name]


def _taken_by(host: Host, name: str, by_msr: bool | None) -> str:
    # The log before the configuration: a kernel without KVM locks the extension off by itself.
    if any(line in text for text in _log(host) for line in _FIRMWARE_LINES):
        return "firmware"
    words = _words(host, "/proc/cmdline")
    if any(word.startswith("clearcpuid=") for word in words):
        return "kernel"
    config = kernel_config(host)
    symbol = {"vmx": "CONFIG_KVM_INTEL", "svm": "CONFIG_KVM_AMD"}[name]
    if config is not None and config.get(symbol, "n") == "n":
        return "kernel"
    return "kernel" if by_msr is False else "firmware or kernel"


def _msr_locked(host: Host, extension: Any) -> bool | None:
    """What the MSR says; None where it cannot be read (no driver, no root, a guest)."""
    try:
        if extension == "VT-x":
            value = _msr(host, _FEATURE_CONTROL)
            return bool(value & 1 and not value & 4)
        return bool(_msr(host, _VM_CR) >> 4 & 1)
    except (OSError, ValueError, Unknown, TypeError):
        return None


def _msr(host: Host, number: int) -> int:
    found = host.ask(f"msr:{number:x}")
    return int(found, 16)


def _log(host: Host) -> list[str]:
    try:
        return kernel_log(host)
    except (OSError, Unknown):
        return []


def _words(host: Host, path: str) -> list[str]:
    try:
        return host.text(path).split()
    except OSError:
        return []


def kernel_log(host: Host) -> list[str]:
    """Return the kernel's messages that matter. Raises OSError or Unknown."""
    found = host.ask("log")
    if not isinstance(found, list):
        raise Unknown("the kernel's log cannot be understood")
    return [line for line in found if isinstance(line, str)]


def whole_log(host: Host) -> list[str]:
    """The same; Unknown too where the first messages are lost, so that absence says nothing."""
    lines = kernel_log(host)
    if not any("paravirtual" in line for line in lines):  # "Booting paravirtualized kernel on …"
        raise Unknown("the kernel's log has lost its beginning")
    return lines


def kernel_config(host: Host) -> dict[str, str] | None:
    """Return the kernel's options that matter, "n" for what is not set; None: not to be had."""
    try:
        found = host.ask("config")
    except (OSError, Unknown):
        return None
    return found if isinstance(found, dict) else None


def _other_hypervisor(host: Host, machine: str) -> bool:
    """Off x86: by the device tree's node, z's system information, or ARM's level at the start."""
    if machine == "s390x":
        text = host.text("/proc/sysinfo")
        if "LPAR" not in text and "VM00" not in text:
            raise Unknown("/proc/sysinfo names no partition")
        return "VM00" in text
    if host.present("/proc/device-tree", "/proc"):
        if host.present("/proc/device-tree/hypervisor", "/proc/device-tree"):
            return True
        if "ibm,powernv" in host.text("/proc/device-tree/compatible"):
            return False
    if any("VHE mode initialized" in line or "Hyp mode initialized" in line
           for line in kernel_log(host)):  # fmt: skip
        return False
    raise Unknown("neither the device tree nor the kernel's log tells")


def signatures(leaves: dict[str, list[int]]) -> list[dict[str, str]]:
    """List every hypervisor's signature, with the leaf where it stands."""
    found = []
    for name, registers in sorted(leaves.items()):
        leaf = name.partition(".")[0]
        if leaf.startswith("4000") and leaf.endswith("00") and len(registers) == 4:
            text = cpuid.signature(registers)
            if text:
                found.append({"leaf": f"0x{leaf}", "signature": text})
    return found
