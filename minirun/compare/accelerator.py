"""What runs the virtual machine's instructions: the CPU (KVM), or QEMU, which emulates it (TCG).

The choice is the report's (`minirun virt`), for a device node proves nothing: its guests have run.
"""

from __future__ import annotations

from minirun.virt.collect import collect
from minirun.virt.decide import decide
from minirun.virt.host import RealHost

_NOT = ": not what a VM costs"
EMULATED = f"emulated CPU (TCG){_NOT}"


class Accelerator:
    """`name` is QEMU's word, `label` what the tables say, `why` the verdict it follows from."""

    def __init__(self, name: str, label: str, why: str) -> None:
        self.name, self.label, self.why = name, label, why

    @property
    def emulated(self) -> bool:
        """Whether what is measured says nothing about virtualization."""
        return self.label.endswith(_NOT)


def choose(wanted: str) -> Accelerator:
    """Ask the report; `wanted` is auto, kvm or tcg."""
    verdict = decide(collect(RealHost(True)))
    name = wanted
    if wanted == "auto":
        name = "kvm" if verdict.accelerator == "kvm" else "tcg"
    return Accelerator(name, label(name, verdict.code), f"{verdict.code}: {verdict.summary}")


def label(name: str, code: str) -> str:
    """Say what kind of machine it is, by the verdict on KVM here."""
    if name == "tcg":
        return EMULATED
    return {
        "KVM_OK": "KVM",
        "KVM_NESTED_OK": "KVM in a virtual machine (nested: slower than on the CPU itself)",
        "KVM_PVM": f"KVM without the CPU's help (PVM){_NOT}",
        "KVM_SLOW": f"KVM that emulates its guests{_NOT}",
    }.get(code, f"KVM, unproven ({code})")
