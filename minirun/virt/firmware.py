"""What the firmware's tables tell of the maker of this machine: ACPI, SMBIOS (DMI), device tree.

A virtual machine's monitor writes them, so they name it where CPUID only names the hypervisor
below.
"""

from __future__ import annotations

from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_TABLES = "/sys/firmware/acpi/tables"
DEVICES = "/sys/bus/acpi/devices"
DMI = "/sys/class/dmi/id"
DMI_NAMES = ("sys_vendor", "product_name", "board_vendor", "bios_vendor", "chassis_asset_tag")
# The devices that only a virtual machine has (their ACPI _HID).
TELLING_DEVICES = {
    "VMGENCTR": "VM generation ID",
    "VMGENID": "VM generation ID",
    "QEMUVGID": "VM generation ID",
    "AMZNC10C": "vmclock",
    "QEMU0002": "QEMU fw_cfg",
    "MSFT1000": "VMBus",
    "VMBUS": "VMBus",
    "XEN0000": "Xen platform device",
    "PRL4005": "Parallels tools gate",
}


def collect(host: Host, facts: Facts) -> None:
    """Find the firmware's facts: `firmware.*`."""
    facts.take("firmware.acpi_oem", f"{_TABLES}/FACP", lambda: _oem(host))
    facts.take("firmware.hypervisor_id", f"{_TABLES}/FACP bytes 268-275", lambda: _vendor(host))
    facts.take("firmware.acpi_devices", f"{DEVICES}/*/hid", lambda: _devices(host))
    facts.take("firmware.dmi", DMI, lambda: _dmi(host))
    facts.take("firmware.devicetree", "/proc/device-tree/compatible", lambda: _tree(host))


def _table(host: Host) -> bytes:
    if not host.present("/sys/firmware/acpi", "/sys/firmware"):
        return b""
    found = host.read(f"{_TABLES}/FACP")
    if found[:4] != b"FACP":
        raise Unknown("the FADT cannot be understood")
    return found


def _oem(host: Host) -> str:
    return _word(_table(host)[10:16])


def _vendor(host: Host) -> str:
    """ "Hypervisor Vendor Identity" of the FADT, since ACPI 6.0; "" where there is none."""
    table = _table(host)
    return _word(table[268:276]) if table[8:9] >= b"\x06" else ""


def _word(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip("\0 ") if any(raw) else ""


def _devices(host: Host) -> list[str]:
    if not host.present("/sys/firmware/acpi", "/sys/firmware"):
        return []
    found = set()
    names = host.names(DEVICES)
    if not names:
        raise Unknown(f"{DEVICES} is empty, perhaps covered")
    for name in names:
        # NAME is the _HID and an instance number; only a number stands for one without a _HID.
        found.add(name.partition(":")[0])
    return sorted(found & set(TELLING_DEVICES))


def _dmi(host: Host) -> dict[str, str]:
    """The fields that name makers, never serial numbers; {} where the firmware has none."""
    if not host.present(DMI, "/sys/class"):
        return {}
    found = {}
    for name in DMI_NAMES:
        try:
            found[name] = host.text(f"{DMI}/{name}")
        except FileNotFoundError:
            continue
    if not found:
        raise Unknown(f"{DMI} is empty, perhaps covered")
    return found


def _tree(host: Host) -> list[str]:
    """The device tree's `compatible` of the machine and of its hypervisor; [] without a tree."""
    if not host.present("/proc/device-tree", "/proc"):
        return []
    found = host.read("/proc/device-tree/compatible").decode("ascii", "replace").split("\0")
    try:
        above = host.read("/proc/device-tree/hypervisor/compatible")
        found += above.decode("ascii", "replace").split("\0")
    except FileNotFoundError:
        pass  # no hypervisor is told of
    return [word for word in found if word]
