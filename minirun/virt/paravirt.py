"""How much this machine knows that it is virtual: features, devices, clock, stolen time,
snapshots.
"""

from __future__ import annotations

from minirun.virt.cpu import kernel_log, whole_log
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

# CPUID 0x40000001.EAX (Documentation/virt/kvm/x86/cpuid.rst)
KVM_FEATURES = {
    0: "clocksource", 1: "nop-io-delay", 2: "mmu-op", 3: "clocksource2", 4: "async-pf",
    5: "steal-time", 6: "pv-eoi", 7: "pv-unhalt", 9: "pv-tlb-flush", 10: "async-pf-vmexit",
    11: "pv-send-ipi", 12: "poll-control", 13: "pv-sched-yield", 14: "async-pf-int",
    15: "msi-ext-dest-id", 16: "hc-map-gpa-range", 17: "migration-control",
    24: "clocksource-stable",
}  # fmt: skip
# What the kernel says in its log when it puts a feature to use.
_IN_USE = (
    ("pv-eoi", "kvm_guest_apic_eoi_write"),
    ("pv-tlb-flush", "PV TLB flush"),
    ("pv-tlb-flush", "pv remote TLB flush"),
    ("pv-sched-yield", "PV sched yield"),
    ("pv-send-ipi", "PV IPIs"),
    ("pv-unhalt", "PV spinlocks enabled"),
    ("steal-time", "stealtime"),
    ("clocksource", "kvm-clock: Using msrs"),
)
# include/uapi/linux/virtio_ids.h
_VIRTIO = {1: "net", 2: "blk", 3: "console", 4: "rng", 5: "balloon", 8: "scsi", 9: "9p", 16: "gpu",
           18: "input", 19: "vsock", 20: "crypto", 23: "iommu", 24: "mem", 25: "sound", 26: "fs",
           27: "pmem"}  # fmt: skip
_CLOCK = "/sys/devices/system/clocksource/clocksource0"
_FORK = "virtual machine fork"


def collect(host: Host, facts: Facts) -> None:
    """Find `guest.*`."""
    facts.take("guest.kvm_features", "CPUID 0x40000001.EAX", lambda: _kvm_features(facts))
    facts.take("guest.in_use", "the kernel's log", lambda: _in_use(host))
    facts.take("guest.devices", "/sys/bus/virtio/devices", lambda: _devices(host))
    facts.take("guest.clock", f"{_CLOCK}/current_clocksource",
               lambda: host.text(f"{_CLOCK}/current_clocksource"))  # fmt: skip
    facts.take("guest.clocks", f"{_CLOCK}/available_clocksource",
               lambda: host.text(f"{_CLOCK}/available_clocksource").split())  # fmt: skip
    facts.take("guest.steal_percent", "/proc/stat", lambda: _steal(host))
    facts.take("guest.cpuid_ns", "CPUID, timed", lambda: _cost(facts))
    facts.take("guest.vmgenid", "ACPI devices", lambda: _device(facts, "VM generation ID"))
    facts.take("guest.vmclock", "ACPI devices", lambda: _device(facts, "vmclock"))
    facts.take("guest.restored", "the kernel's log", lambda: _restored(host))


def _kvm_features(facts: Facts) -> list[str]:
    found = facts.get("cpu.cpuid")
    if found is None:
        raise Unknown(facts.why("cpu.cpuid"))
    if facts.get("machine.signatures") is None:
        raise Unknown(facts.why("machine.signatures"))
    bases = [int(one["leaf"], 16) for one in facts.get("machine.signatures")
             if one["signature"] in ("KVMKVMKVM", "Linux KVM Hv")]  # fmt: skip
    if not bases:
        return []
    registers = found["leaves"].get(f"{bases[0] + 1:x}.0")
    if registers is None:
        raise Unknown(f"CPUID has no leaf {bases[0] + 1:#x}")
    set_ = [bit for bit in range(32) if registers[0] >> bit & 1]
    return [KVM_FEATURES.get(bit, f"bit{bit}") for bit in set_]


def _in_use(host: Host) -> list[str]:
    """What the log says; where it has lost its first lines, that they are missing."""
    lines = whole_log(host)
    return list(dict.fromkeys(name for name, words in _IN_USE if any(words in x for x in lines)))


def _devices(host: Host) -> list[str]:
    if not host.present("/sys/bus/virtio", "/sys/bus"):
        return []
    found = []
    for name in host.names("/sys/bus/virtio/devices"):
        number = int(host.text(f"/sys/bus/virtio/devices/{name}/device"), 16)
        found.append(_VIRTIO.get(number, f"id{number}"))
    return sorted(set(found))


def _steal(host: Host) -> float:
    """The share of time since boot that the hypervisor gave to others, in percent."""
    first = host.text("/proc/stat").splitlines()[0].split()
    if first[:1] != ["cpu"]:
        raise Unknown("/proc/stat cannot be understood")
    times = [int(word) for word in first[1:9]]
    return round(100 * times[7] / sum(times), 1)


def _cost(facts: Facts) -> int:
    found = facts.get("cpu.cpuid")
    if found is None:
        raise Unknown(facts.why("cpu.cpuid"))
    if found.get("ns") is None:
        raise Unknown(f"not timed when CPUID comes from the {found['how']}")
    return int(found["ns"])


def _device(facts: Facts, what: str) -> bool:
    from minirun.virt.firmware import TELLING_DEVICES

    devices = facts.get("firmware.acpi_devices")
    if devices is None:
        raise Unknown(facts.why("firmware.acpi_devices"))
    return any(TELLING_DEVICES[name] == what for name in devices)


def _restored(host: Host) -> bool:
    """Whether the kernel has seen its generation ID change: it goes on from a snapshot."""
    if any(_FORK in line for line in kernel_log(host)):
        return True
    whole_log(host)
    return False
