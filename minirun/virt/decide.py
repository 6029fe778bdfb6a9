"""What this machine can run, why, and who can change it: the first rule that matches.

A rule looks at facts and returns a verdict or None. None of them takes an unknown fact for a no:
what is decisive and unknown ends in UNKNOWN, which names what was refused.
"""

from __future__ import annotations

from minirun.virt.obstacles import no_device, other_hypervisor, refused, translated
from minirun.virt.opened import opened
from minirun.virt.verdict import UNKNOWN, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts

RULES = (translated, opened, other_hypervisor, refused, no_device)


def decide(facts: Facts) -> Verdict:
    """Return the verdict on a machine."""
    for rule in RULES:
        found = rule(facts)
        if found is not None:
            return found
    return _unknown(facts)


def _unknown(facts: Facts) -> Verdict:
    names = (
        "kvm.open",
        "cpu.extension",
        "cpu.vmx",
        "cpu.svm",
        "cpu.hypervisor",
        "cpu.lock",
        "kvm.driver",
    )
    reasons = [
        (name, facts.why(name)) for name in names if facts.get(name) is None and name in facts
    ]
    if facts.get("kvm.open") is not None:
        reasons.insert(0, ("kvm.open", f"open: {facts.get('kvm.open')}"))
    return Verdict("UNKNOWN", UNKNOWN, "what was needed to tell could not be read", reasons)
