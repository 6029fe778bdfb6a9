"""KVM as a fact: its node, its modules, what the device answered and what its guests did."""

from __future__ import annotations

import stat

from minirun.virt import extensions
from minirun.virt.cpu import kernel_config
from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

NODE = "/dev/kvm"
MODULES = ("kvm", "kvm_intel", "kvm_amd", "kvm_pvm", "kvm_hv", "kvm_pr")
_RIVALS = ("vboxdrv", "vmmon", "xen_evtchn")
_PARAMETERS = {
    "kvm_intel": ("ept", "vpid", "nested", "unrestricted_guest", "enable_apicv", "tdx", "sgx"),
    "kvm_amd": ("npt", "nested", "avic", "sev", "sev_es", "sev_snp"),
    "kvm_pvm": ("pvm_native", "pvm_emul_batch"),
    "kvm": ("tdp_mmu", "nx_huge_pages", "mmio_caching"),
}
# KVM_CAP_VM_TYPES, a mask (KVM_X86_*_VM)
_VM_TYPES = ("default", "software-protected", "SEV", "SEV-ES", "SEV-SNP", "TDX")


def collect(host: Host, facts: Facts) -> None:
    """Find `kvm.*` and `probe.*`."""
    facts.take("kvm.modules", "/sys/module", lambda: _modules(host))
    facts.take("kvm.parameters", "/sys/module/*/parameters", lambda: _parameters(host, facts))
    facts.take("kvm.rivals", "/sys/module", lambda: _loaded(host, _RIVALS))
    facts.take("kvm.node", NODE, lambda: _node(host))
    facts.take("kvm.registered", "/proc/misc", lambda: _registered(host))
    _device(host, facts)
    _guests(host, facts)
    if facts.get("cpu.lock") is None and native(facts, "ring0"):
        facts.say("cpu.lock", "none", "a guest ran")  # the best proof there is
    facts.take("kvm.driver", "/sys/module, /lib/modules", lambda: _driver(host, facts))


def _loaded(host: Host, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if host.present(f"/sys/module/{name}", "/sys/module")]


def _modules(host: Host) -> list[str]:
    return _loaded(host, MODULES)


def _parameters(host: Host, facts: Facts) -> dict[str, str]:
    """The parameters that matter, such as {"kvm_amd.nested": "1"}."""
    if facts.get("kvm.modules") is None:
        raise Unknown(facts.why("kvm.modules"))
    found: dict[str, str] = {}
    refused: list[OSError] = []
    for module in facts.get("kvm.modules"):
        for name in _PARAMETERS.get(module, ()):
            try:
                value = host.text(f"/sys/module/{module}/parameters/{name}")
            except FileNotFoundError:
                continue  # this version has none of the name
            except OSError as error:
                refused.append(error)
                continue
            found[f"{module}.{name}"] = value
    if refused and not found:
        raise refused[0]
    return found


def _node(host: Host) -> dict[str, Any]:
    """The device node: {} where there is none."""
    if not host.present(NODE, "/dev"):
        return {}
    found = host.status(NODE)
    return {
        "mode": f"{stat.S_IMODE(found['mode']):04o}",
        "uid": found["uid"],
        "gid": found["gid"],
        "device": f"{found['rdev'] >> 8 & 0xFFF}:{found['rdev'] & 0xFF}",
    }


def _registered(host: Host) -> bool:
    """Whether the kernel has the device, node or not."""
    rows = [line.split() for line in host.text("/proc/misc").splitlines()]
    return any(row[1:] == ["kvm"] for row in rows)


def _device(host: Host, facts: Facts) -> None:
    try:
        answer = host.ask("kvm")
        if not isinstance(answer, dict):
            raise Unknown("the answer of /dev/kvm cannot be understood")
    except (OSError, Unknown) as error:
        answer = {"why": str(error)}
    lost = str(answer.get("why") or answer.get("error") or "")

    def told(name: str) -> Any:
        if name not in answer:
            opened = answer.get("open", "ok")
            raise Unknown(
                lost or f"{NODE} did not answer" if opened == "ok" else f"{NODE}: {opened}"
            )
        return answer[name]

    def table(name: str) -> dict[str, Any]:
        found = told(name)
        if not isinstance(found, dict):
            raise Unknown(f"the kernel answered {found}")
        return found

    facts.take("kvm.open", f"open({NODE}, O_RDWR)", lambda: told("open"))
    facts.take("kvm.api", "KVM_GET_API_VERSION", lambda: told("api"))
    facts.take("kvm.vm", "KVM_CREATE_VM", lambda: told("vm"))
    facts.take("kvm.vcpu", "KVM_CREATE_VCPU", lambda: told("vcpu"))
    facts.take("kvm.extensions", "KVM_CHECK_EXTENSION",
               lambda: extensions.named(table("extensions")))  # fmt: skip
    facts.take("kvm.vm_types", "KVM_CAP_VM_TYPES", lambda: _vm_types(facts))
    facts.take("kvm.nested", "KVM_GET_SUPPORTED_CPUID", lambda: _nested(table("supported")))
    facts.take("kvm.msrs", "KVM_GET_MSRS", lambda: table("msrs"))
    facts.take("kvm.paging", "module parameters", lambda: _paging(facts))


def _vm_types(facts: Facts) -> list[str]:
    found = facts.get("kvm.extensions")
    if found is None:
        raise Unknown(facts.why("kvm.extensions"))
    mask = found.get("VM_TYPES", 1)  # before 6.8 there was the default type only, and no name
    return [_VM_TYPES[bit] if bit < len(_VM_TYPES) else f"type{bit}"
            for bit in range(mask.bit_length()) if mask >> bit & 1]  # fmt: skip


def _nested(supported: dict[str, list[int]]) -> bool:
    """Whether KVM gives its own guests the extension: they could then run guests of theirs."""
    vmx = supported["1.0"][2] >> 5 & 1
    svm = supported.get("80000001.0", [0] * 4)[2] >> 2 & 1
    return bool(vmx or svm)


def _paging(facts: Facts) -> str:
    """Who translates a guest's addresses: "EPT", "NPT" or "shadow"."""
    found, modules = facts.get("kvm.parameters"), facts.get("kvm.modules")
    if found is None or modules is None:
        raise Unknown(facts.why("kvm.parameters"))
    if "kvm_pvm" in modules and "kvm_intel" not in modules and "kvm_amd" not in modules:
        return "shadow"
    for name, word in (("kvm_intel.ept", "EPT"), ("kvm_amd.npt", "NPT")):
        if name in found:
            return word if found[name] in ("Y", "1") else "shadow"
    raise Unknown("no module tells")


def _guests(host: Host, facts: Facts) -> None:
    try:
        found = host.ask("probe")
        if not isinstance(found, dict):
            raise Unknown("the answer of the guests cannot be understood")
    except (OSError, Unknown) as error:
        found = {"skipped": str(error)}
    modes = found.get("modes")
    if not isinstance(modes, dict):
        modes = {}
    lost = found.get("skipped") or found.get("ended") or "the guest was not reached"
    if found.get("ended"):
        lost = f"the process that ran it {found['ended']}"
    for mode in ("real", "ring0", "ring3"):
        facts.take(f"probe.{mode}", "a guest", _one, modes.get(mode), lost)
    facts.take("probe.host_ns", "the same loop here", lambda: _pace(found, lost))


def _pace(found: dict[str, Any], lost: Any) -> float:
    if "host_ns" not in found:
        raise Unknown(str(lost))
    if found["host_ns"] is None:
        raise Unknown("no code could be run here to compare with")
    return float(found["host_ns"])


def _one(told: Any, lost: str) -> dict[str, Any]:
    """One guest's story; what it was only tried, or did not get done, is unknown."""
    if not isinstance(told, dict):
        raise Unknown(str(lost))
    if told.get("error"):
        raise Unknown(str(told["error"]))
    if "ran" not in told:
        raise Unknown(str(lost))
    return {name: value for name, value in told.items() if name != "tried"}


def native(facts: Facts, mode: str) -> bool | None:
    """Whether a guest ran natively: True, False (emulated, or it went wrong), None: unknown."""
    told = facts.get(f"probe.{mode}")
    if told is None or (told.get("ran") and told.get("emulated") is None):
        return None
    return bool(told.get("ran")) and float(told["emulated"]) < 0.5


def _driver(host: Host, facts: Facts) -> str:
    """Where the driver of this CPU's extension is.

    "loaded", "available", "blacklisted by FILE", "not in this kernel", "modules are switched off".
    """
    wanted = {"VT-x": "kvm_intel", "AMD-V": "kvm_amd"}.get(facts.get("cpu.extension") or "", "kvm")
    loaded = facts.get("kvm.modules")
    if loaded is None:
        raise Unknown(facts.why("kvm.modules"))
    if wanted in loaded:
        return "loaded"
    if kernel_config_says(host, wanted) == "n":
        return "not in this kernel"
    if "nomodule" in host.text("/proc/cmdline").split():
        return "modules are switched off"
    place = f"/lib/modules/{facts.get('system.kernel')}"
    names = (wanted.replace("_", "-") + ".ko", wanted + ".ko")
    if not any(name in host.text(f"{place}/modules.dep") for name in names):
        return "not in this kernel"
    blacklist = _blacklist(host, wanted)
    return f"blacklisted by {blacklist}" if blacklist else "available"


def kernel_config_says(host: Host, module: str) -> str:
    """Return "y", "m", "n", or "" where the configuration is not to be had."""
    config = kernel_config(host)
    return "" if config is None else config.get(f"CONFIG_{module.upper()}", "")


def _blacklist(host: Host, module: str) -> str:
    for directory in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d"):
        try:
            names = host.names(directory)
        except OSError:
            continue  # not every system has all of them
        for name in names:
            path = f"{directory}/{name}"
            rows = [line.split() for line in host.text(path).splitlines()]
            if any(row[:2] in (["blacklist", module], ["install", module]) for row in rows):
                return path
    return ""
