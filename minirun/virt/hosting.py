"""What else a host of virtual machines wants: IOMMU, vhost, memory, and what it could encrypt."""

from __future__ import annotations

from minirun.virt.cpu import kernel_config
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_IOMMU_TABLES = {"DMAR": "VT-d", "IVRS": "AMD-Vi", "VIOT": "virtio-iommu", "IORT": "ARM SMMU"}
_IOMMU_OPTIONS = ("CONFIG_INTEL_IOMMU", "CONFIG_AMD_IOMMU", "CONFIG_VIRTIO_IOMMU")
_NODES = {"vhost-net": "/dev/vhost-net", "vhost-vsock": "/dev/vhost-vsock", "tun": "/dev/net/tun",
          "vfio": "/dev/vfio/vfio"}  # fmt: skip
_OPTIONS = {"vhost-net": "CONFIG_VHOST_NET", "vhost-vsock": "CONFIG_VHOST_VSOCK",
            "tun": "CONFIG_TUN", "vfio": "CONFIG_VFIO"}  # fmt: skip
_HUGE = "/sys/kernel/mm/hugepages"


def collect(host: Host, facts: Facts) -> None:
    """Find `host.*`."""
    facts.take("host.iommu", "/sys/class/iommu, ACPI", lambda: _iommu(host))
    facts.take("host.iommu_groups", "/sys/kernel/iommu_groups",
               lambda: len(host.names("/sys/kernel/iommu_groups")))  # fmt: skip
    for name, path in _NODES.items():
        facts.take(f"host.{name}", path, _node, host, facts, name, path)
    facts.take("host.sev", "module parameters, KVM_CAP_VM_TYPES", lambda: _type(facts, "SEV"))
    facts.take("host.tdx", "module parameters, KVM_CAP_VM_TYPES", lambda: _type(facts, "TDX"))
    facts.take("host.sgx", "/dev/sgx_vepc", lambda: _sgx(host, facts))
    facts.take("host.hugepages", _HUGE, lambda: _hugepages(host))
    facts.take("host.ksm", "/sys/kernel/mm/ksm/run", lambda: _ksm(host))


def _iommu(host: Host) -> str:
    """The IOMMU in use, else why there is none: "none (…)"."""
    units = host.names("/sys/class/iommu") if host.present("/sys/class/iommu", "/sys/class") else []
    if units:
        kinds = {"dmar": "VT-d", "ivhd": "AMD-Vi", "smmu": "ARM SMMU"}
        return next((word for key, word in kinds.items() if units[0].startswith(key)), units[0])
    told = _told_of(host)
    if told:
        return f"none in use (the firmware has {told}: see intel_iommu=on, or the firmware's setup)"
    config = kernel_config(host)
    if config is not None and all(config.get(name, "n") == "n" for name in _IOMMU_OPTIONS):
        return "none (and this kernel has no driver for one)"
    return "none (the firmware has no table of one)"


def _told_of(host: Host) -> str:
    """Which IOMMU the firmware describes. The directory is readable by all, the tables are not."""
    if not host.present("/sys/firmware/acpi", "/sys/firmware"):
        return ""
    tables = host.names("/sys/firmware/acpi/tables")
    return next((name for table, name in _IOMMU_TABLES.items() if table in tables), "")


def _sgx(host: Host, facts: Facts) -> bool:
    """Whether guests can have enclaves. A container's own /dev says nothing of the host's."""
    if host.present("/dev/sgx_vepc", "/dev"):
        return True
    if facts.get("cpu.sgx") is False or facts.get("container.inside") is False:
        return False
    raise Unknown("a container has a /dev of its own")


def _node(host: Host, facts: Facts, name: str, path: str) -> str:
    """ "yes", "no", or why no module can bring it."""
    if host.present(path, "/dev"):
        return "yes"
    if facts.get("container.inside") is not False:
        return "not here (a container has a /dev of its own)"
    config = kernel_config(host)
    if config is None:
        return "no"
    option = config.get(_OPTIONS[name], "n")
    if option == "n":
        return "not in this kernel"
    return f"no (modprobe {name.replace('-', '_')} brings it)" if option == "m" else "no"


def _type(facts: Facts, which: str) -> bool:
    """Whether KVM makes machines of that kind: by its mask (6.8), before by its parameters."""
    parameters, types = facts.get("kvm.parameters"), facts.get("kvm.vm_types")
    module = {"SEV": "kvm_amd", "TDX": "kvm_intel"}[which]
    if types is not None and which in " ".join(types):
        return True
    if parameters is not None and parameters.get(f"{module}.{which.lower()}") in ("Y", "1"):
        return True
    modules = facts.get("kvm.modules")
    if types is None and (modules is None or parameters is None):
        raise Unknown(facts.why("kvm.vm_types"))
    if types is None and module in modules and f"{module}.{which.lower()}" not in parameters:
        raise Unknown(facts.why("kvm.vm_types"))
    return False


def _hugepages(host: Host) -> str:
    """How many are reserved, by size: "2048kB: 0"."""
    if not host.present(_HUGE, "/sys/kernel/mm"):
        return "not in this kernel"
    rows = [(name.removeprefix("hugepages-"), host.text(f"{_HUGE}/{name}/nr_hugepages"))
            for name in host.names(_HUGE)]  # fmt: skip
    return ", ".join(f"{size}: {count}" for size, count in rows)


def _ksm(host: Host) -> str:
    if not host.present("/sys/kernel/mm/ksm", "/sys/kernel/mm"):
        return "not in this kernel"
    return {"0": "off", "1": "on"}.get(host.text("/sys/kernel/mm/ksm/run"), "stopped")
