"""What the words mean, told with this machine's values: `minirun virt --explain TOPIC`."""

from __future__ import annotations

from minirun.virt import brands, container, kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minirun.virt.facts import Facts
    from minirun.virt.verdict import Verdict

    Topic = Callable[[Facts, Verdict], list[str]]


def text(topic: str, facts: Facts, verdict: Verdict) -> str:
    """Return a topic's paragraphs; "here" begins what is about this machine."""
    from minirun.virt.report import fold

    lines: list[str] = []
    for paragraph in TOPICS[topic](facts, verdict):
        here = paragraph.startswith("Here: ")
        words = paragraph.removeprefix("Here: ")
        lines += [*fold("here:" if here else "", words, ""), ""] if here else [*_plain(words), ""]
    return "\n".join(lines)


def _plain(words: str) -> list[str]:
    from minirun.virt.report import WIDTH

    lines, line = [], ""
    for word in words.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def _ns(facts: Facts, mode: str) -> str:
    told = facts.get(f"probe.{mode}")
    if told is None or not told.get("ran"):
        return facts.shown(f"probe.{mode}") if told is None else "went wrong"
    return f"{told['ns_per_round']:.1f} ns per round"


def _type(facts: Facts, _verdict: Verdict) -> list[str]:
    hypervisor = facts.shown("machine.hypervisor")
    kind, note = brands.TYPES.get(hypervisor, ("", ""))
    here = f"no type is known of {hypervisor}"
    if hypervisor == "none":
        here = "no hypervisor shows itself below this system"
    elif kind == "none":
        here = f"{hypervisor} is no hypervisor: {note}"
    elif kind:
        here = f"{hypervisor} is of type {kind}: {note}"
    monitor = facts.shown("machine.monitor")
    return [
        "A hypervisor of type 1 runs on the hardware itself and is in charge of it (Xen, Hyper-V, "
        "ESXi). "
        "One of type 2 is a program of an operating system, which stays in charge (VirtualBox, "
        "Parallels).",
        "KVM fits neither well: a module makes the running Linux the hypervisor, on the hardware, "
        "and a "
        "program on it, the monitor (QEMU, Firecracker), plays the devices. Books differ, and the "
        "division says nothing about speed.",
        f"Here: {here}. The monitor: {monitor}.",
    ]


def _paravirt(facts: Facts, _verdict: Verdict) -> list[str]:
    features = facts.get("guest.kvm_features")
    told = f"KVM's features: {facts.shown('guest.kvm_features')}"
    if features:
        told = f"KVM offers {len(features)} features: {' '.join(features)}"
    return [
        "Full virtualization: the guest runs unchanged and cannot tell; what it may not do is "
        "trapped or "
        "translated. Paravirtualization: the guest knows, and asks the hypervisor instead of being "
        "trapped. Hardware-assisted: the CPU has a mode of its own for guests (VT-x, AMD-V, ARM's "
        "EL2), so "
        "that trapping costs little and nothing need be translated.",
        "They are no classes but parts: an ordinary Linux guest today is hardware-assisted for "
        "its CPU and "
        "paravirtual for its clock, interrupts and devices.",
        f"Here: {told}. In use by the kernel's log: {facts.shown('guest.in_use')}. Paravirtual "
        "devices "
        f"(virtio): {facts.shown('guest.devices')}. The CPU offers an extension for guests of this "
        f"system: {_extension(facts)}.",
    ]


def _extension(facts: Facts) -> str:
    name = {"VT-x": "vmx", "AMD-V": "svm"}.get(facts.get("cpu.extension") or "")
    if name is None:
        return facts.shown("cpu.extension")
    return f"{facts.get('cpu.extension')} ({name}): {facts.shown(f'cpu.{name}')}"


def _hardware(facts: Facts, verdict: Verdict) -> list[str]:
    exit_ = (facts.get("probe.ring0") or {}).get("exit_ns")
    cost = f"{exit_ / 1000:.1f} us of CPU time" if exit_ else facts.shown("probe.ring0")
    return [
        "VT-x (flag vmx) adds to the four rings of x86 a second set of them: root mode for the "
        "hypervisor, "
        "non-root mode for guests. A guest's kernel has a ring 0 of its own and runs its "
        "instructions on "
        "the CPU; those that would reach the machine end in an exit to root mode. AMD-V (flag "
        "svm) does "
        "the same by VMRUN and #VMEXIT; on ARM the hypervisor has a level of its own, EL2.",
        "That the flag is there does not mean that a guest runs, nor the contrary: so one is run.",
        f"Here: {_extension(facts)}; ring 0 of a guest: {_ns(facts, 'ring0')}, ring 3: "
        f"{_ns(facts, 'ring3')}, the same loop outside: {facts.shown('probe.host_ns')} ns. "
        "Leaving a guest "
        f"for its monitor and coming back: {cost}. {verdict.summary}.",
    ]


def _emulation(facts: Facts, _verdict: Verdict) -> list[str]:
    told = facts.get("probe.ring0") or {}
    count = told.get("insn_emulation")
    counted = "the kernel has no count of emulated instructions"
    if count is not None:
        counted = f"the kernel counted {count} emulated instructions"
    elif not told:
        counted = facts.shown("probe.ring0")
    return [
        "KVM can work where the CPU offers no extension: PVM runs the guest's kernel in ring 3 on "
        "shadow "
        "page tables. A kernel that was made for it (CONFIG_PVM_GUEST) is quick there. Of any "
        "other kernel "
        "each instruction of ring 0 and of real mode is emulated one by one: it works, a thousand "
        "times "
        "slower, and looks as if it hung. A translator such as QEMU's TCG is then far quicker "
        "than KVM, "
        "though /dev/kvm opens and answers.",
        f"Here: modules {facts.shown('kvm.modules')}; in a loop in ring 0 {counted}; ring 0 "
        f"{_ns(facts, 'ring0')}, ring 3 {_ns(facts, 'ring3')}.",
    ]


def _paging(facts: Facts, _verdict: Verdict) -> list[str]:
    return [
        "A guest's addresses are translated twice: by the guest's page tables into what it takes "
        "for "
        "memory, then into the machine's. With nested paging (EPT of Intel, NPT of AMD, stage 2 "
        "of ARM) the "
        "CPU walks both tables itself. Without, the hypervisor keeps shadow tables with the "
        "product of "
        "both, and each change of the guest's costs an exit.",
        "VPID and ASID mark translations with the guest they belong to, so that they outlive an "
        "exit.",
        f"Here: in use {facts.shown('kvm.paging')}; the CPU offers nested paging: "
        f"{facts.shown('cpu.nested_paging')}; {_marks(facts)}.",
    ]


def _marks(facts: Facts) -> str:
    if "cpu.asids" in facts:
        return f"ASIDs: {facts.shown('cpu.asids')}"
    return f"VPID: {facts.shown('cpu.vpid')}"


def _nested(facts: Facts, verdict: Verdict) -> list[str]:
    fixes = [fix.text for fix in verdict.fixes if fix.name == "nested"]
    help_ = f" What switches it on: {fixes[0]}." if fixes else ""
    return [
        "A guest that runs guests is nested: the hypervisor below plays the extension for it, and "
        "each "
        "exit of the inner guest costs several of the outer. It must be offered by whoever runs "
        "the "
        "machine; a flag that is not there cannot be switched on from inside.",
        f"Here: a virtual machine: {facts.shown('machine.virtual')}; the extension is offered: "
        f"{_extension(facts)}; KVM here passes it on to its own guests: "
        f"{facts.shown('kvm.nested')}; one "
        f"CPUID, which a hypervisor has to answer: {facts.shown('guest.cpuid_ns')} ns.{help_}",
    ]


def _firmware(facts: Facts, _verdict: Verdict) -> list[str]:
    return [
        "The firmware can lock the extension off until the next power-on: bits 0 and 2 of the MSR "
        "0x3a "
        "(Intel), bit 4 of 0xc0010114 (AMD). The kernel then takes the flag out of /proc/cpuinfo "
        "(since 5.6; "
        "6.8 for AMD), so that whoever reads only that says that the CPU has no extension. CPUID "
        "still has "
        "the bit. But a kernel without KVM locks VT-x off by itself, and then the firmware is "
        "innocent.",
        f"Here: {_extension(facts)}; in /proc/cpuinfo vmx {facts.shown('cpu.vmx.flag')}, svm "
        f"{facts.shown('cpu.svm.flag')}; locked by: {facts.shown('cpu.lock')}.",
    ]


def _container(facts: Facts, _verdict: Verdict) -> list[str]:
    spaces = facts.get("container.namespaces")
    shown = facts.shown("container.namespaces")
    if spaces:
        words = {True: "the machine's", False: "its own", None: "unknown"}
        shown = ", ".join(f"{name} {words[first]}" for name, first in spaces.items())
    found = facts.get("container.markers")
    markers = facts.shown("container.markers") if found is None else " ".join(found) or "none"
    numbers = ", ".join(f"{name} {0xEFFFFF00 + low:#x}" for name, low in container.INITIAL.items())
    return [
        "A container is processes of this kernel in namespaces of their own; a virtual machine "
        "has a kernel "
        "of its own. Marker files such as /.dockerenv are left behind by images and prove "
        "nothing. The "
        "numbers of the kernel's first namespaces are fixed, and a process that has them all is "
        "in no "
        f"container: {numbers}.",
        f"Here: {shown}. Markers: {markers}. In a container: {facts.shown('container.inside')}.",
    ]


def _confidential(facts: Facts, _verdict: Verdict) -> list[str]:
    return [
        "A confidential guest's memory is encrypted by the CPU so that its host cannot read it: "
        "SEV, SEV-ES "
        "and SEV-SNP of AMD, TDX of Intel, CCA of ARM. Such a guest cannot have guests of its own "
        "with the "
        "CPU's help.",
        f"Here: as a guest: {facts.shown('machine.confidential')}. As a host: SEV "
        f"{facts.shown('host.sev')}, "
        f"TDX {facts.shown('host.tdx')}, SGX {facts.shown('host.sgx')}; KVM makes machines of the "
        "types "
        f"{facts.shown('kvm.vm_types')}.",
    ]


def _iommu(facts: Facts, _verdict: Verdict) -> list[str]:
    return [
        "An IOMMU translates the addresses that devices use, as the MMU does for programs. With "
        "one a "
        "device can be handed to a guest (VFIO) and reaches that guest's memory only. VT-d and "
        "AMD-Vi are "
        "told of by the firmware in the ACPI tables DMAR and IVRS.",
        f"Here: {facts.shown('host.iommu')}; groups of devices: "
        f"{facts.shown('host.iommu_groups')}; "
        f"VFIO: {facts.shown('host.vfio')}.",
    ]


def _clock(facts: Facts, _verdict: Verdict) -> list[str]:
    return [
        "A guest's time is the hypervisor's to give. Stolen time is what the guest wanted and "
        "another got: "
        "figures measured meanwhile are too high. After a snapshot has been restored a guest has "
        "lived "
        "twice; a generation ID that changes tells its kernel to make new random numbers.",
        f"Here: clock {facts.shown('guest.clock')} of {facts.shown('guest.clocks')}; stolen since "
        "boot: "
        f"{facts.shown('guest.steal_percent')} %; restored from a snapshot: "
        f"{facts.shown('guest.restored')}; generation ID: {facts.shown('guest.vmgenid')}; vmclock: "
        f"{facts.shown('guest.vmclock')}.",
    ]


def _device(facts: Facts, verdict: Verdict) -> list[str]:
    node = facts.get("kvm.node")
    shown = f"mode {node['mode']}, owner {node['uid']}:{node['gid']}" if node else (
        "not there" if node == {} else facts.shown("kvm.node"))  # fmt: skip
    found = facts.get("kvm.extensions")
    count = (
        f"{len(found)} extensions (--facts lists them)" if found else facts.shown("kvm.extensions")
    )
    return [
        f"{kvm.NODE} is opened by every monitor; who may open it may make virtual machines, and "
        "needs no "
        "other right. That it exists means little: it can be another's, be kept away by a device "
        "filter, "
        "or have no driver behind it.",
        f"Here: {shown}; open: {facts.shown('kvm.open')}; API {facts.shown('kvm.api')}; a machine: "
        f"{facts.shown('kvm.vm')}; a CPU in it: {facts.shown('kvm.vcpu')}; {count}. "
        f"{verdict.summary}.",
    ]


TOPICS: dict[str, Topic] = {
    "type": _type,
    "paravirt": _paravirt,
    "hardware": _hardware,
    "emulation": _emulation,
    "paging": _paging,
    "nested": _nested,
    "firmware": _firmware,
    "container": _container,
    "confidential": _confidential,
    "iommu": _iommu,
    "clock": _clock,
    "device": _device,
}
