"""The report for people: the verdict with its proof, where we are, what a host would want, the
risks.

Every line ends in its evidence. What is unknown is said with the reason, and never as a no.
"""

from __future__ import annotations

from minirun.virt.kvm import native
from minirun.virt.layers import layers
from minirun.virt.verdict import LEVELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.verdict import Verdict

    Row = tuple[str, str]

WIDTH = 100
_LABEL = 13


def report(facts: Facts, verdict: Verdict, version: str) -> str:
    """Return the whole report as text."""
    machine = f"{facts.shown('cpu.name')}, {facts.shown('system.machine')}"
    kernel = f"Linux {facts.shown('system.kernel')}"
    lines = [*fold("minirun virt", f"{version}: {machine}, {kernel}", ""), ""]
    lines += fold(
        "VERDICT", f"{LEVELS[verdict.status].upper()} ({verdict.code}): {verdict.summary}", ""
    )
    for heading, rows in (
        ("", _verdict(facts, verdict)),
        ("WHERE", _where(facts)),
        ("GUEST", _guest(facts) if facts.get("machine.virtual") is not False else iter(())),
        ("HOSTING", _hosting(facts)),
        ("RISKS", _risks(facts)),
    ):
        body = [line for label, text in rows for line in fold(label, text)]
        if body:
            lines += ["", heading, *body] if heading else body
    return "\n".join(lines) + "\n"


def fold(label: str, text: str, indent: str = "  ") -> list[str]:
    """Put a label before a text, and break it at WIDTH columns; what follows stands below it."""
    lead = f"{indent}{label}".ljust(_LABEL)
    lines, line = [], ""
    for word in text.split():
        if line and len(lead) + len(line) + 1 + len(word) > WIDTH:
            lines.append(lead + line)
            lead, line = " " * _LABEL, word
        else:
            line = f"{line} {word}".strip()
    return [*lines, lead + line]


# ---------------------------------------------------------------- the verdict


def _verdict(facts: Facts, verdict: Verdict) -> Iterator[Row]:
    label = "why"
    for _fact, text in verdict.reasons:
        yield label, text
        label = ""
    yield label, _extension(facts)
    yield "", f"/dev/kvm: {_device(facts)}; modules: {facts.shown('kvm.modules')}"
    yield "proof", f"real mode: {_mode(facts, 'real')}"
    yield "", f"ring 0: {_mode(facts, 'ring0')}"
    yield "", f"ring 3: {_mode(facts, 'ring3')}; the same loop here: {_ns(facts)}"
    label = "do"
    for fix in verdict.fixes:
        command = f": {fix.command}" if fix.command else ""
        who = "" if fix.who == "you" else f"{fix.who}: "
        yield label, f"{who}{fix.text}{command}"
        label = ""


def _extension(facts: Facts) -> str:
    name = {"VT-x": "vmx", "AMD-V": "svm"}.get(facts.get("cpu.extension") or "")
    if name is None:
        return f"the CPU's extension: {facts.shown('cpu.extension')}"
    return (
        f"{facts.get('cpu.extension')} ({name}): in CPUID {facts.shown(f'cpu.{name}.raw')}, "
        f"in the kernel's flags {facts.shown(f'cpu.{name}.flag')}, "
        f"locked by {facts.shown('cpu.lock')}"
    )


def _device(facts: Facts) -> str:
    opened = facts.get("kvm.open")
    if opened == "ok":
        return f"opens, API {facts.shown('kvm.api')}"
    return f"open {opened}" if opened else facts.shown("kvm.open")


def _mode(facts: Facts, mode: str) -> str:
    told: dict[str, Any] | None = facts.get(f"probe.{mode}")
    if told is None:
        return facts.shown(f"probe.{mode}")
    if not told.get("ran"):
        return f"went wrong (exit {told.get('exit')})"
    how = {True: "native", False: "emulated", None: "ran, how is unknown"}[native(facts, mode)]
    count = told.get("insn_emulation")
    counted = f", instructions emulated: {count}" if count is not None else ""
    exit_ = told["exit_ns"] / 1000
    return f"{how} ({told['ns_per_round']:.1f} ns per round{counted}; exit {exit_:.1f} us)"


def _ns(facts: Facts) -> str:
    found = facts.get("probe.host_ns")
    return facts.shown("probe.host_ns") if found is None else f"{found:.1f} ns"


# ---------------------------------------------------------------- where


def _where(facts: Facts) -> Iterator[Row]:
    yield "container", _container(facts)
    machine = layers(facts)[-1]
    evidence = " · ".join(machine["evidence"])
    if machine["kind"] == "vm":
        name = machine["name"] or facts.shown("machine.monitor")
        on = f"on {facts.shown('machine.hypervisor')}"
        if facts.get("machine.hypervisor") == "none":
            on = "by its firmware, though its CPU denies a hypervisor"
        yield "machine", f"virtual: {name}, {on} · {evidence}"
    elif machine["kind"] == "host":
        yield "machine", f"{machine['name']}{' · ' if evidence else ''}{evidence}"
    else:
        yield "machine", f"{facts.shown('machine.virtual')} {evidence}"
    if machine["type"]:
        yield "type", f"{machine['type']}: {machine['note']} (minirun virt --explain type)"
    if facts.get("machine.cloud") not in (None, "none named"):
        yield "cloud", facts.shown("machine.cloud")
    confidential = facts.get("machine.confidential")
    if confidential != "none":
        yield "memory", f"encrypted against the host: {facts.shown('machine.confidential')}"
    if machine["kind"] == "vm":
        yield "origin", _origin(facts)


def _container(facts: Facts) -> str:
    inside = facts.get("container.inside")
    spaces = facts.get("container.namespaces") or {}
    own = [name for name, first in spaces.items() if first is False]
    if inside is None:
        return facts.shown("container.inside")
    unsure = [name for name, first in spaces.items() if first is None]
    if inside:
        rest = f"; unknown: {' '.join(unsure)}" if unsure else ""
        return f"{facts.shown('container.runtime')} · own namespaces: {' '.join(own)}{rest}"
    told = f"no: all {len(spaces)} namespaces are the machine's first ones"
    if own:
        told = f"no, but some namespaces of its own: {' '.join(own)}"
    elif unsure:
        told = (
            f"no: {len(spaces) - len(unsure)} of {len(spaces)} namespaces are the machine's first "
        )
        told += f"ones, unknown are {' '.join(unsure)}"
    return "; ".join([told, *(facts.get("container.contradictions") or [])])


def _origin(facts: Facts) -> str:
    restored = facts.get("guest.restored")
    told = {
        True: "restored from a snapshot: the kernel saw its generation ID change",
        False: "started, not restored (the kernel's log)",
        None: f"restored from a snapshot? {facts.shown('guest.restored')}",
    }[restored]
    if facts.get("firmware.acpi_devices") is None:
        return f"{told}; devices that would tell: {facts.shown('firmware.acpi_devices')}"
    devices = [name for name in ("vmgenid", "vmclock") if facts.get(f"guest.{name}")]
    return f"{told}; devices that would tell: {' '.join(devices) or 'none'}"


# ---------------------------------------------------------------- as a guest, as a host


def _guest(facts: Facts) -> Iterator[Row]:
    features = facts.get("guest.kvm_features")
    if features is None:
        yield "paravirt", facts.shown("guest.kvm_features")
    elif features:
        yield "paravirt", f"{len(features)} features of KVM offered: {' '.join(features)}"
        yield "", f"in use by the kernel's log: {facts.shown('guest.in_use')}"
    yield "devices", f"virtio: {facts.shown('guest.devices')}"
    yield "clock", (f"{facts.shown('guest.clock')} (available: {facts.shown('guest.clocks')}); "
                    f"stolen time since boot: {_percent(facts)}")  # fmt: skip
    cost = facts.get("guest.cpuid_ns")
    shown = facts.shown("guest.cpuid_ns") if cost is None else f"{cost / 1000:.1f} us"
    hint = " (much: a hint that the host is virtual itself)" if cost and cost > 2500 else ""
    yield "exit", f"one CPUID, which its hypervisor must answer: {shown}{hint}"


def _percent(facts: Facts) -> str:
    found = facts.get("guest.steal_percent")
    return facts.shown("guest.steal_percent") if found is None else f"{found} %"


def _hosting(facts: Facts) -> Iterator[Row]:
    yield "paging", (f"in use {facts.shown('kvm.paging')}; offered by the CPU: "
                     f"{facts.shown('cpu.nested_paging')}")  # fmt: skip
    yield "nested", f"KVM gives its guests the extension: {facts.shown('kvm.nested')}"
    yield "types", f"{facts.shown('kvm.vm_types')}; {_triple(facts)}"
    found: dict[str, int] | None = facts.get("kvm.extensions")
    if found is None:
        yield "limits", facts.shown("kvm.extensions")
    else:
        yield "limits", (f"{found.get('NR_VCPUS', 0)} CPUs for one machine advised, "
                         f"{found.get('MAX_VCPUS', 0)} at most; "
                         f"{found.get('NR_MEMSLOTS', 0)} memory slots")  # fmt: skip
    yield "IOMMU", f"{facts.shown('host.iommu')}; groups: {facts.shown('host.iommu_groups')}"
    yield "devices", "; ".join(f"{name}: {facts.shown(f'host.{name}')}" for name in
                               ("vhost-net", "vhost-vsock", "tun", "vfio"))  # fmt: skip
    yield "memory", f"huge pages {facts.shown('host.hugepages')}; KSM {facts.shown('host.ksm')}"


def _triple(facts: Facts) -> str:
    return ", ".join(
        f"{name.upper()}: {facts.shown(f'host.{name}')}" for name in ("sev", "tdx", "sgx")
    )


def _risks(facts: Facts) -> Iterator[Row]:
    if facts.get("risks.all") is None:
        yield "", facts.shown("risks.all")
        return
    for label in ("vulnerable", "mitigated", "unsure"):
        if facts.get(f"risks.{label}") or label == "vulnerable":
            yield label, facts.shown(f"risks.{label}")
    count = len(facts.get("risks.not_affected") or [])
    yield "", f"not affected by {count} others that matter to a host of virtual machines"
