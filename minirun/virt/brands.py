"""The names of hypervisors, monitors and clouds, and what each is told by."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from minirun.virt.facts import Facts

# CPUID signature: hypervisor. A trailing part of some is blank or NUL.
SIGNATURES = {
    "KVMKVMKVM": "KVM",
    "Linux KVM Hv": "KVM",
    "TCGTCGTCGTCG": "QEMU TCG",
    "Microsoft Hv": "Hyper-V",
    "XenVMMXenVMM": "Xen",
    "VMwareVMware": "VMware",
    "VBoxVBoxVBox": "VirtualBox",
    "bhyve bhyve": "bhyve",
    "ACRNACRNACRN": "ACRN",
    "prl hyperv": "Parallels",
    "lrpepyh vr": "Parallels",
    "QNXQVMBSQG": "QNX",
    "SRESRESRESRE": "LMHS",
    "Jailhouse": "Jailhouse",
    "UnisysSpar64": "Unisys s-Par",
    "EVMMEVMMEVMM": "Intel KGT",
    "OpenBSDVMM58": "OpenBSD vmm",
    "HAXMHAXMHAXM": "HAXM",
    "VirtualApple": "Rosetta",
}

# type 1 or 2, and what to say of it. Textbooks differ; the reason is printed with the number.
TYPES: dict[str, tuple[str, str]] = {
    "KVM": ("1", "Linux itself becomes the hypervisor; books that look at its monitors call it 2"),
    "Xen": ("1", "dom0 is a privileged guest of it"),
    "Hyper-V": ("1", "where it is on, Windows runs in its root partition"),
    "ACRN": ("1", "its service VM is a privileged guest"),
    "VMware": ("1 or 2", "ESXi (1) and Workstation (2) give the same signature"),
    "VirtualBox": ("2", "a program of its host, which may use Hyper-V or KVM below"),
    "Parallels": ("2", "a program of its host"),
    "bhyve": ("2", "a module of FreeBSD's kernel and a program; some books say 1"),
    "QEMU TCG": ("none", "emulation: every instruction is translated by a program"),
    "Rosetta": ("none", "translation of instructions, no virtual machine"),
    "PowerVM": ("1", "in the machine's firmware"),
    "z/VM": ("1", "an operating system made for this; itself in a partition of PR/SM"),
    "Jailhouse": ("1", "splits the machine, and schedules nothing"),
}

# Those whose monitor is part of them, so that the hypervisor's name is the monitor's.
OWN_MONITOR = {"Xen", "Hyper-V", "VMware", "VirtualBox", "Parallels", "bhyve", "ACRN", "QEMU TCG"}

_FADT = {"FIRECKVM": "Firecracker", "CLOUDHYP": "Cloud Hypervisor", "CROSVM": "crosvm",
         "QEMU": "QEMU", "VMWARE": "VMware", "KVMTOOL": "kvmtool"}  # fmt: skip
_OEM = {"FIRECK": "Firecracker", "CLOUDH": "Cloud Hypervisor", "CROSVM": "crosvm",
        "BOCHS": "QEMU", "VBOX": "VirtualBox", "XEN": "Xen", "PRLS": "Parallels",
        "VRTUAL": "Hyper-V", "BHYVE": "bhyve"}  # fmt: skip
# A word in DMI, the field it stands in ("" for any), and whom it names.
_DMI = (
    ("Amazon EC2", "sys_vendor", "Nitro"),
    ("Google Compute Engine", "product_name", "Google Compute Engine"),
    ("VMware", "", "VMware"),
    ("innotek GmbH", "", "VirtualBox"),
    ("VirtualBox", "", "VirtualBox"),
    ("Parallels", "", "Parallels"),
    ("Xen", "sys_vendor", "Xen"),
    ("BHYVE", "", "bhyve"),
    ("Apple Virtualization", "", "Apple Virtualization"),
    ("KubeVirt", "", "KubeVirt (QEMU)"),
    ("OpenStack", "", "QEMU"),
    ("QEMU", "", "QEMU"),
    ("Cloud Hypervisor", "", "Cloud Hypervisor"),
    ("Bochs", "bios_vendor", "QEMU"),
)
_TREE = {"linux,dummy-virt": "QEMU or kvmtool", "qemu,pseries": "QEMU", "linux,kvm": "",
         "xen,xen": "Xen", "vmware": "VMware"}  # fmt: skip
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
_CLOUDS = (("Amazon EC2", "Amazon EC2"), ("Google", "Google Cloud"), ("Alibaba Cloud", "Alibaba"),
           ("DigitalOcean", "DigitalOcean"), ("Hetzner", "Hetzner"), ("OpenStack", "OpenStack"),
           ("Scaleway", "Scaleway"), ("Oracle", ""), ("Vultr", "Vultr"))  # fmt: skip

# What may be kept of a DMI field when a machine is recorded: whoever is known by it.
MAKERS = (*(word for word, _field, _name in _DMI), *(word for word, _name in _CLOUDS),
          "Microsoft", "Standard PC", "Virtual Machine", ".metal", "SeaBIOS", "EDK II",
          "Dell", "HP", "Lenovo", "Supermicro", "Intel", "AMD", "ASUS", "LENOVO")  # fmt: skip


def hypervisors(facts: Facts) -> Iterator[str]:
    """Give the names of the hypervisors that show themselves, the real one first."""
    if facts.get("machine.xen"):
        yield "Xen"
    found = [one["signature"] for one in facts.get("machine.signatures") or []]
    names = [SIGNATURES.get(text.strip(), f'"{text}"') for text in found]
    # A mask of Hyper-V's that KVM or Xen wears for Windows stands before their own signature.
    yield from sorted(names, key=lambda name: name == "Hyper-V")
    tree = facts.get("firmware.devicetree") or []
    if "linux,kvm" in tree:
        yield "KVM"
    if "IBM,powervm" in " ".join(tree):
        yield "PowerVM"


def monitors(facts: Facts) -> list[tuple[str, bool]]:
    """List the monitors that the firmware names, the surest first; True: it names itself."""
    found: list[tuple[str, bool]] = []
    identity = facts.get("firmware.hypervisor_id")
    if identity in _FADT:
        found.append((_FADT[identity], True))
    oem = facts.get("firmware.acpi_oem") or ""
    found += [(name, True) for word, name in _OEM.items() if oem.startswith(word)]
    found += [(name, True) for name in _by_dmi(facts.get("firmware.dmi") or {}, facts)]
    found += [(_TREE[word], False) for word in facts.get("firmware.devicetree") or []
              if _TREE.get(word)]  # fmt: skip
    devices = set(facts.get("firmware.acpi_devices") or [])
    if "QEMU0002" in devices:
        found.append(("QEMU", True))
    elif "AMZNC10C" in devices and facts.get("firmware.dmi") == {}:
        found.append(("Firecracker, or one like it", False))
    return found


def _by_dmi(dmi: dict[str, Any], facts: Facts) -> list[str]:
    found = []
    for word, field, name in _DMI:
        where = [dmi.get(field, "")] if field else dmi.values()
        if any(word in str(text) for text in where):
            # The same maker's name stands on machines without a hypervisor.
            if name == "Nitro" and (".metal" in str(dmi.get("product_name"))):
                continue
            found.append(name)
    if "Microsoft" in str(dmi.get("sys_vendor")) and dmi.get("product_name") == "Virtual Machine":
        found.append("Hyper-V")
    return found


def cloud(facts: Facts) -> str | None:
    """Whose cloud this is by its firmware; "none named" where the firmware names none."""
    dmi = facts.get("firmware.dmi")
    if dmi is None:
        return None
    if dmi.get("chassis_asset_tag") == AZURE_TAG:
        return "Azure"
    maker = f"{dmi.get('sys_vendor', '')} {dmi.get('product_name', '')}"
    return next((name for word, name in _CLOUDS if name and word in maker), "none named")


def evidence(facts: Facts) -> list[str]:
    """List in words what names a hypervisor or a monitor here."""
    found = []
    if facts.get("firmware.hypervisor_id"):
        found.append(f'ACPI FADT "{facts.get("firmware.hypervisor_id")}"')
    elif facts.get("firmware.acpi_oem"):
        found.append(f'ACPI OEM "{facts.get("firmware.acpi_oem")}"')
    dmi = facts.get("firmware.dmi")
    if dmi:
        found.append(f'DMI "{dmi.get("sys_vendor", "")} {dmi.get("product_name", "")}"')
    elif dmi == {}:
        found.append("no DMI")
    found += [f'CPUID {one["leaf"]} "{one["signature"]}"'
              for one in facts.get("machine.signatures") or []]  # fmt: skip
    if facts.get("machine.xen"):
        found.append(f"/sys/hypervisor: xen {facts.get('machine.xen')}")
    found += [f"ACPI {name}" for name in facts.get("firmware.acpi_devices") or []]
    tree = facts.get("firmware.devicetree")
    if tree:
        found.append(f"device tree {tree[0]}")
    return found
