"""The CPU's vulnerabilities that a guest could use against its host or another guest."""

from __future__ import annotations

from minirun.virt.facts import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host

_PLACE = "/sys/devices/system/cpu/vulnerabilities"
# The others concern a program and its own kernel.
ACROSS_GUESTS = (
    "l1tf", "mds", "itlb_multihit", "tsx_async_abort", "mmio_stale_data", "retbleed", "spectre_v2",
    "spec_store_bypass", "spec_rstack_overflow", "srbds", "gather_data_sampling",
    "reg_file_data_sampling", "indirect_target_selection", "tsa", "vmscape",
)  # fmt: skip


def collect(host: Host, facts: Facts) -> None:
    """Find `risks.*`: by the kernel's own judgement of this CPU."""
    states = facts.take("risks.all", _PLACE, lambda: _states(host))
    if states is None:
        facts.unknown("risks.vulnerable", facts.why("risks.all"), _PLACE)
        return
    words = {name: text for name, text in states.items() if name in ACROSS_GUESTS}
    groups: dict[str, list[str]] = {"vulnerable": [], "mitigated": [], "not_affected": []}
    for name, text in sorted(words.items()):
        if "Mitigation" in text:  # perhaps behind "KVM: "
            groups["mitigated"].append(name)
        elif "ulnerable" in text:
            groups["vulnerable"].append(name)
        elif text.startswith("Not affected"):
            groups["not_affected"].append(name)
    for group, names in groups.items():
        facts.say(f"risks.{group}", names, _PLACE)
    unsure = [name for name in words if not any(name in names for names in groups.values())]
    facts.say("risks.unsure", unsure, _PLACE)


def _states(host: Host) -> dict[str, str]:
    found = {}
    for name in host.names(_PLACE):
        found[name] = host.text(f"{_PLACE}/{name}")
    if not found:
        raise Unknown(f"{_PLACE} is empty")
    return found
