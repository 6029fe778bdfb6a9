"""The verdict where /dev/kvm does not open: what is in the way, and whose is it?"""

from __future__ import annotations

from minirun.virt import fixes
from minirun.virt.cpu import FLAGS, X86
from minirun.virt.verdict import BLOCKED, FIXABLE, IMPOSSIBLE, LIMITED, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts


def translated(facts: Facts) -> Verdict | None:
    """Is this a real kernel on a real CPU?"""
    what = facts.get("machine.translated")
    if not what:
        return None
    return Verdict(
        "TRANSLATED",
        IMPOSSIBLE,
        f"no Linux kernel on a CPU runs this program, but {what}",
        [("machine.translated", f"told by {facts.source('machine.translated')}")],
    )


def other_hypervisor(facts: Facts) -> Verdict | None:
    """Is another hypervisor, or the hardware's protection, in charge?"""
    kind = facts.get("machine.confidential")
    if kind not in (None, "none"):
        return Verdict(
            "CVM_GUEST",
            IMPOSSIBLE,
            f"a confidential guest ({kind}) cannot have guests",
            [("machine.confidential", f"told by {facts.source('machine.confidential')}")],
            accelerator="tcg",
        )
    if facts.get("machine.xen_dom0"):
        return Verdict(
            "XEN_DOM0",
            LIMITED,
            "Xen has the CPU: this is its dom0, KVM is impossible",
            [("machine.xen_dom0", "Xen tells so")],
            [fixes.use_xl()],
            accelerator="xen",
        )
    if facts.get("machine.xen") == "pv":
        return Verdict(
            "XEN_PV",
            BLOCKED,
            "a paravirtual Xen guest cannot use the CPU's extension",
            [("machine.xen", "guest_type is PV")],
            [fixes.Fix("xen_hvm", "provider", "", "an HVM guest with nestedhvm=1 can")],
        )
    if facts.get("machine.hyperv_root"):
        return Verdict(
            "HV_ROOT",
            LIMITED,
            "Hyper-V has the CPU: this is its root partition",
            [("machine.hyperv_root", "it may create partitions")],
            [fixes.Fix("mshv", "you", "", "use a monitor that speaks /dev/mshv")],
            accelerator="mshv",
        )
    return None


# ---------------------------------------------------------------- the device does not open for us


def refused(facts: Facts) -> Verdict | None:
    """Does something keep this process from the device?"""
    error, node, ids = facts.get("kvm.open"), facts.get("kvm.node"), facts.get("system.ids")
    if error == "EPERM" or (error == "EACCES" and ids and ids.get("euid") == 0):
        return Verdict(
            "PERM_CGROUP",
            FIXABLE,
            "a device filter keeps /dev/kvm from this process",
            [("kvm.open", f"open: {error}, as root")],
            [fixes.allow_device()],
        )
    return _mode(facts, node, ids) if error == "EACCES" else None


def _mode(facts: Facts, node: dict[str, Any] | None, ids: dict[str, Any] | None) -> Verdict:
    """The node's owner, group and mode are in the way."""
    reasons = [("kvm.open", "open: EACCES")]
    modules = facts.get("kvm.modules") or []
    if "kvm_pvm" in modules and not {"kvm_intel", "kvm_amd"} & set(modules):
        behind = "behind it is PVM: an ordinary kernel would be emulated even so"
        reasons.append(("kvm.modules", behind))
    if not node or not ids:
        return Verdict(
            "PERM_NODE",
            FIXABLE,
            "/dev/kvm may not be opened by this user",
            reasons,
            [fixes.node_rule()],
        )
    reasons.append(("kvm.node", f"mode {node['mode']}, group {node['gid']}"))
    shared = int(node["mode"], 8) & 0o060 == 0o060 and node["gid"] != 0
    if not shared:
        return Verdict(
            "PERM_NODE", FIXABLE, "/dev/kvm is root's alone", reasons, [fixes.node_rule()]
        )
    group = ids.get("kvm_group") or str(node["gid"])
    if node["gid"] in ids.get("groups", []):
        return Verdict(
            "PERM_ACL",
            FIXABLE,
            "something beyond its mode keeps /dev/kvm from you",
            reasons,
            [fixes.allow_device()],
        )
    return Verdict(
        "PERM_GROUP",
        FIXABLE,
        f"/dev/kvm is for the group {group}, which you are not in",
        reasons,
        [fixes.join_group(group, bool(ids.get("listed")))],
    )


# ---------------------------------------------------------------- there is no device


def no_device(facts: Facts) -> Verdict | None:
    """Why is there no device?"""
    error = facts.get("kvm.open")
    if error is None:
        return None
    if error == "ENOENT" and facts.get("kvm.registered"):
        inside = facts.get("container.inside")
        return Verdict(
            "NODE_MISSING",
            FIXABLE,
            "the kernel has KVM, but /dev/kvm is not here",
            [("kvm.registered", "/proc/misc lists it")],
            [fixes.allow_device() if inside else fixes.make_node()],
        )
    name = FLAGS.get(facts.get("cpu.extension") or "")
    has = facts.get(f"cpu.{name}") if name else None
    if name is None and facts.get("system.machine") in X86:
        has = False if {facts.get("cpu.vmx"), facts.get("cpu.svm")} == {False} else None
    if has is None:
        return _elsewhere(facts)
    if not has:
        return _lacking(facts, name or "vmx or svm")
    return _locked(facts, name or "") or _driver(facts, name or "")


def _elsewhere(facts: Facts) -> Verdict | None:
    """Off x86 there is no flag: a virtual machine that has no KVM was not given the means."""
    if facts.get("system.machine") in (None, *X86):
        return None
    if facts.get("cpu.hypervisor") or facts.get("machine.virtual"):
        maker = facts.get("machine.monitor") or facts.get("machine.hypervisor") or "unknown"
        return Verdict(
            "NO_NESTED",
            BLOCKED,
            f"this virtual machine is not given the CPU's hypervisor mode ({maker})",
            [("machine.virtual", "this is a virtual machine"), ("kvm.open", "and it has no KVM")],
            [*fixes.nested(facts), fixes.use_tcg()],
        )
    if facts.get("kvm.driver") in ("available", "not in this kernel"):
        return _driver(facts, "kvm")
    return None


def _lacking(facts: Facts, name: str) -> Verdict | None:
    absent = (f"cpu.{name}", f"{name}: absent ({facts.source(f'cpu.{name}') or 'the kernel'})")
    if facts.get("cpu.hypervisor") is False:
        return Verdict(
            "CPU_NONE",
            IMPOSSIBLE,
            "this CPU has no extension for virtual machines",
            [absent, ("cpu.hypervisor", "and this is no virtual machine")],
            [fixes.use_tcg()],
        )
    if facts.get("cpu.hypervisor"):
        maker = facts.get("machine.monitor") or facts.get("machine.hypervisor") or "the hypervisor"
        return Verdict(
            "NO_NESTED",
            BLOCKED,
            f"this virtual machine is not given {name} ({maker})",
            [absent, ("cpu.hypervisor", "this is a virtual machine")],
            [*fixes.nested(facts), fixes.use_tcg()],
        )
    return None


def _locked(facts: Facts, name: str) -> Verdict | None:
    lock, word = facts.get("cpu.lock"), facts.get("cpu.extension")
    gone = [
        (f"cpu.{name}.raw", "CPUID has it"),
        (
            f"cpu.{name}.flag",
            "the kernel lists it" if facts.get(f"cpu.{name}.flag") else "the kernel does not",
        ),
    ]
    if lock == "firmware":
        return Verdict(
            "FW_DISABLED",
            BLOCKED,
            f"{word} is switched off in the firmware",
            gone,
            [fixes.firmware(name)],
        )
    if lock == "kernel":
        return Verdict(
            "KERNEL_DISABLED",
            BLOCKED,
            f"this kernel has switched {word} off",
            gone,
            [fixes.other_kernel(name)],
        )
    if lock == "firmware or kernel":
        return Verdict(
            "MAYBE_FW",
            BLOCKED,
            f"{word} is off, probably by the firmware",
            gone,
            [fixes.confirm_firmware(name), fixes.firmware(name)],
        )
    return None


def _driver(facts: Facts, name: str) -> Verdict | None:
    state = facts.get("kvm.driver")
    module = {"vmx": "kvm_intel", "svm": "kvm_amd"}.get(name, "kvm")
    reasons = [(f"cpu.{name}", f"{name} is there"), ("kvm.driver", f"{module}: {state}")]
    if state is None:
        return None
    if state in ("not in this kernel", "modules are switched off"):
        return Verdict(
            "NOT_BUILT",
            BLOCKED,
            f"this kernel cannot load {module}",
            reasons,
            [fixes.other_kernel(name)],
        )
    if state == "loaded":
        return Verdict(
            "NODE_MISSING",
            FIXABLE,
            f"{module} is loaded, but /dev/kvm does not open",
            [("kvm.open", f"open: {facts.get('kvm.open')}"), *reasons],
            [fixes.make_node(), fixes.read_log()],
        )
    return Verdict(
        "NOT_LOADED",
        FIXABLE,
        f"the module {module} is not loaded",
        reasons,
        [
            fixes.load(
                module,
                state.removeprefix("blacklisted by ") if state.startswith("blacklisted") else "",
            )
        ],
    )
