"""The verdict where /dev/kvm opens: how did a guest run?"""

from __future__ import annotations

from minirun.virt import fixes
from minirun.virt.kvm import native
from minirun.virt.verdict import BLOCKED, FIXABLE, LIMITED, UNKNOWN, USABLE, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts


def opened(facts: Facts) -> Verdict | None:
    """Judge by the guest that was run; None where the device does not open."""
    if facts.get("kvm.open") != "ok":
        return None
    told = facts.get("probe.ring0")
    if told is None:
        return _not_made(facts) or _unproven(facts)
    runs = native(facts, "ring0")
    if runs:
        return _works(facts, _proof(facts))
    if not told.get("ran"):
        exit_ = told.get("exit")
        return Verdict(
            "KVM_BROKEN",
            BLOCKED,
            "KVM makes machines, but a guest does not do what it should",
            [("probe.ring0", f"it left by {exit_} and not by its program")],
            [fixes.read_log()],
        )
    return _unproven(facts) if runs is None else _emulated(facts)


def _not_made(facts: Facts) -> Verdict | None:
    made = [facts.get(name) for name in ("kvm.vm", "kvm.vcpu")]
    refused = [answer for answer in made if answer not in (None, "ok")]
    if not refused:
        return None
    if refused[0] == "EBUSY":
        return _busy(facts)
    return Verdict(
        "KVM_REFUSES",
        BLOCKED,
        f"/dev/kvm opens, but the kernel makes no machine: {refused[0]}",
        [("kvm.vm", f"KVM_CREATE_VM or KVM_CREATE_VCPU: {refused[0]}")],
        [fixes.read_log()],
    )


def _busy(facts: Facts) -> Verdict:
    rivals = facts.get("kvm.rivals") or []
    who = {"vboxdrv": "VirtualBox", "vmmon": "VMware"}.get(rivals[0] if rivals else "", "")
    return Verdict(
        "KVM_BUSY",
        FIXABLE,
        f"{who or 'another hypervisor'} holds the CPU's extension",
        [
            ("kvm.vm", "KVM_CREATE_VM: EBUSY"),
            ("kvm.rivals", f"modules loaded: {' '.join(rivals) or 'none that is known'}"),
        ],
        [fixes.Fix("stop_rival", "you", "", f"end the virtual machines of {who or 'the other'}")],
    )


def _proof(facts: Facts) -> list[tuple[str, str]]:
    told = facts.get("probe.ring0")
    return [
        (
            "probe.ring0",
            f"a guest ran in ring 0: {told['ns_per_round']:.1f} ns per round, "
            f"here {facts.shown('probe.host_ns')}",
        )
    ]


def _works(facts: Facts, reasons: list[tuple[str, str]]) -> Verdict:
    name = facts.get("cpu.extension") or "the CPU's extension"
    # Hyper-V's root and Xen's dom0 do not get here: KVM does not work in them.
    nested = facts.get("cpu.hypervisor")
    if facts.get("machine.hypervisor") == "QEMU TCG":
        emulated = ("machine.hypervisor", "the CPU itself is emulated, its extension too: slow")
        reasons = [*reasons, emulated]
    if nested:
        inner = "inside this virtual machine (nested)"
        return Verdict(
            "KVM_NESTED_OK", USABLE, f"KVM works with {name} {inner}", reasons, accelerator="kvm"
        )
    if nested is None:
        why = facts.why("cpu.hypervisor")
        reasons = [*reasons, ("cpu.hypervisor", f"whether it is nested is unknown ({why})")]
    return Verdict("KVM_OK", USABLE, f"KVM works with {name}", reasons, accelerator="kvm")


def _emulated(facts: Facts) -> Verdict:
    told = facts.get("probe.ring0")
    pace = facts.get("probe.host_ns")
    slower = f"about {_rounded(told['ns_per_round'] / pace)} times" if pace else "much"
    share = f"{told['emulated']:.0%} of its instructions were emulated"
    reasons = [("probe.ring0", f"a guest ran in ring 0, and {share}")]
    todo = [fixes.use_tcg()]
    if "kvm_pvm" in (facts.get("kvm.modules") or []) and native(facts, "ring3"):
        reasons.append(("probe.ring3", "in ring 3 it ran natively"))
        return Verdict(
            "KVM_PVM",
            LIMITED,
            f"KVM works without {facts.get('cpu.extension') or 'the CPU'} (PVM): an ordinary "
            f"kernel would run {slower} slower than on the CPU",
            reasons,
            [*todo, fixes.pvm_kernel(), *fixes.nested(facts)],
        )
    return Verdict(
        "KVM_SLOW", LIMITED, f"KVM runs guests {slower} slower than the CPU could", reasons, todo
    )


def _rounded(times: float) -> int:
    """Two digits: more would be noise."""
    whole = int(times)
    return round(whole, 2 - len(str(whole)))


def _unproven(facts: Facts) -> Verdict:
    """It opens and nothing says how a guest runs."""
    why = facts.why("probe.ring0") or "the kernel does not count, and no code could be compared"
    reasons = [("kvm.open", "/dev/kvm opens"), ("probe.ring0", f"no guest proves it: {why}")]
    modules = facts.get("kvm.modules") or []
    if "was killed" in why:
        return Verdict(
            "KVM_HANGS",
            BLOCKED,
            "a guest was started under KVM and did not end",
            reasons,
            [fixes.use_tcg(), fixes.read_log()],
        )
    if "kvm_pr" in modules and "kvm_hv" not in modules:
        return Verdict(
            "KVM_SLOW",
            LIMITED,
            "KVM emulates the guest's kernel mode (kvm_pr)",
            reasons,
            [fixes.use_tcg()],
        )
    if "kvm_pvm" in modules and not {"kvm_intel", "kvm_amd"} & set(modules):
        return Verdict(
            "KVM_PVM",
            LIMITED,
            "KVM works without the CPU's extension (PVM)",
            reasons,
            [fixes.use_tcg(), fixes.pvm_kernel()],
        )
    # Of these KVM there is no other implementation than the one by the CPU.
    machine = facts.get("system.machine")
    by_hardware = machine in ("aarch64", "s390x", "riscv64") or "kvm_hv" in modules
    if by_hardware and facts.get("kvm.vcpu") == "ok":
        return _works(facts, reasons)
    return Verdict("KVM_UNPROVEN", UNKNOWN, "KVM opens; how it runs a guest is unknown", reasons)
