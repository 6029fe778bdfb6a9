"""In which virtual machine is this: the hypervisors by their signatures, and the monitor by name.

Every base of hypervisor leaves is read: KVM with Hyper-V enlightenments shows "Microsoft Hv" first
and KVMKVMKVM behind it. Which evidence counts more: what a monitor's author wrote into the FADT,
then DMI, the firmware's devices, and last the signature, which only names what runs the CPU.
"""

from __future__ import annotations

from minirun.virt import brands
from minirun.virt.cpu import X86, signatures
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_CREATE_PARTITIONS = 1  # of 0x40000003.EBX: the root partition (TLFS, "Feature Identification")
_XEN_DOM0_BIT = 11  # XENFEAT_dom0
# gVisor's /proc/version says this of itself, and no other kernel was built then.
GVISOR = "Sun Jan 10 15:06:54 PST 2016"


def collect(host: Host, facts: Facts) -> None:
    """Find `machine.*`: whether this is a virtual machine, whose, on which hypervisor."""
    facts.take("machine.signatures", "CPUID 0x40000000…", lambda: _signatures(facts))
    facts.take("machine.xen", "/sys/hypervisor/type", lambda: _xen(host))
    facts.take("machine.xen_dom0", "/proc/xen/capabilities", lambda: _dom0(host, facts))
    facts.take("machine.hyperv_root", "CPUID 0x40000003.EBX[0]", lambda: _hyperv_root(facts))
    facts.take("machine.wsl", "uname", lambda: _wsl(facts))
    facts.take("machine.translated", "CPUID vendor, kernel", lambda: _translated(host, facts))
    facts.take("machine.hypervisor", "signatures, Xen, device tree", lambda: _hypervisor(facts))
    facts.take("machine.virtual", "hypervisor bit, Xen, firmware", lambda: _virtual(facts))
    facts.take("machine.evidence", "all of them", lambda: brands.evidence(facts))
    facts.take("machine.monitor", "FADT, DMI, devices", lambda: _monitor(facts))
    facts.take("machine.cloud", "DMI", lambda: brands.cloud(facts))


def _leaves(facts: Facts) -> dict[str, list[int]]:
    found = facts.get("cpu.cpuid")
    if found is None:
        raise Unknown(facts.why("cpu.cpuid"))
    return dict(found["leaves"])


def _signatures(facts: Facts) -> list[dict[str, str]]:
    if facts.get("cpu.hypervisor") is False or facts.get("system.machine") not in (None, *X86):
        return []  # without the bit nobody answers there; elsewhere there is no such instruction
    found = signatures(_leaves(facts))
    if not found and facts.get("cpu.cpuid")["how"] == "glibc":
        raise Unknown("the C library keeps no hypervisor leaves")
    return found


def _xen(host: Host) -> str:
    """The kind of Xen guest, such as "pv", "pvh", "hvm" or, on old kernels, "xen"; "" if none."""
    if not host.present("/sys/hypervisor", "/sys"):
        return ""
    try:
        kind = host.text("/sys/hypervisor/type")
    except FileNotFoundError:
        return ""
    if kind != "xen":
        return ""
    try:
        return host.text("/sys/hypervisor/guest_type").lower()  # since 4.10
    except FileNotFoundError:
        return "xen"


def _dom0(host: Host, facts: Facts) -> bool | None:
    if facts.get("machine.xen") == "":
        return False
    if facts.get("machine.xen") is None:
        raise Unknown(facts.why("machine.xen"))
    try:
        return "control_d" in host.text("/proc/xen/capabilities")
    except FileNotFoundError:  # xenfs is not mounted: the feature word tells as well
        features = int(host.text("/sys/hypervisor/properties/features"), 16)
        return bool(features >> _XEN_DOM0_BIT & 1)


def _hyperv_root(facts: Facts) -> bool:
    if facts.get("machine.signatures") is None:
        raise Unknown(facts.why("machine.signatures"))
    names = [one["signature"] for one in facts.get("machine.signatures")]
    if "Microsoft Hv" not in names:
        return False
    found = _leaves(facts)
    if "40000003.0" not in found:
        raise Unknown("CPUID has no leaf 0x40000003")
    return bool(found["40000003.0"][1] & _CREATE_PARTITIONS)


def _wsl(facts: Facts) -> int:
    """1 or 2 for the Windows Subsystem for Linux of that version, else 0."""
    release = facts.get("system.kernel")
    if release is None:
        raise Unknown(facts.why("system.kernel"))
    if "WSL2" in release or "microsoft-standard" in release:
        return 2
    return 1 if release.endswith("-Microsoft") else 0


def _translated(host: Host, facts: Facts) -> str:
    """What stands in for the CPU or the kernel: "Rosetta", "gVisor", "WSL1"; "" if nothing does."""
    if facts.get("cpu.vendor") == "VirtualApple":
        return "Rosetta"
    if facts.get("machine.wsl") == 1:
        return "WSL1"
    if GVISOR in host.text("/proc/version"):
        return "gVisor"
    for name in ("system.machine", "machine.wsl", "cpu.vendor"):
        if name in facts and facts.get(name) is None:
            raise Unknown(facts.why(name))
    return ""


def _hypervisor(facts: Facts) -> str:
    """The hypervisor's name; "none"; the innermost known where several are stacked."""
    for name in brands.hypervisors(facts):
        return name
    if facts.get("machine.xen") is None:
        raise Unknown(facts.why("machine.xen"))
    if facts.get("machine.signatures") == [] and facts.get("cpu.hypervisor") is False:
        return "none"
    if facts.get("cpu.hypervisor") is True:
        return "one that does not give its name"
    raise Unknown(facts.why("cpu.hypervisor"))


def _virtual(facts: Facts) -> bool | None:
    """Is this a virtual machine? Xen's dom0 and Hyper-V's root are guests that own the machine."""
    if facts.get("machine.xen_dom0") or facts.get("machine.hyperv_root"):
        return False
    if facts.get("machine.xen") and facts.get("machine.xen_dom0") is None:
        raise Unknown(facts.why("machine.xen_dom0"))
    if facts.get("machine.xen") or brands.monitors(facts):
        return True
    if facts.get("cpu.hypervisor") and facts.get("machine.hyperv_root") is False:
        return True
    if facts.get("machine.translated") and facts.get("cpu.hypervisor.raw") is None:
        raise Unknown(f"{facts.get('machine.translated')} answers as it likes")
    # A paravirtual guest of Xen has no hypervisor bit.
    for name in ("machine.xen", "machine.xen_dom0", "machine.hyperv_root"):
        if facts.get(name) is None:
            raise Unknown(facts.why(name))
    if facts.get("cpu.hypervisor") is False:
        # The bit can be switched off (QEMU's -hypervisor); then the firmware alone tells.
        if facts.get("firmware.dmi") is None and facts.get("firmware.acpi_devices") is None:
            raise Unknown(f"the CPU denies a hypervisor, but {facts.why('firmware.dmi')}")
        return False
    raise Unknown(facts.why("cpu.hypervisor"))


def _monitor(facts: Facts) -> str:
    """The virtual machine monitor's name, "none" on bare metal."""
    for name, _certain in brands.monitors(facts):
        return name
    if facts.get("machine.virtual") is False:
        return "none"
    hypervisor = facts.get("machine.hypervisor")
    if hypervisor in brands.OWN_MONITOR:
        return str(hypervisor)
    parts = [facts.why(name) for name in ("firmware.hypervisor_id", "firmware.dmi")]
    raise Unknown("; ".join(dict.fromkeys(filter(None, parts))) or "nothing names it")
