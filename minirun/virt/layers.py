"""Where this process is: the layers around it, the innermost first."""

from __future__ import annotations

from minirun.virt import brands
from minirun.virt.kvm import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.verdict import Verdict


def layers(facts: Facts) -> list[dict[str, Any]]:
    """List the layers: {"kind", "name", "hypervisor", "type", "note", "evidence"}.

    Kinds: translation, container, namespaces, vm, host (bare metal, dom0, root partition), unknown.
    """
    found = []
    if facts.get("machine.translated"):
        found.append(_layer("translation", facts.get("machine.translated"), []))
    container = _container(facts)
    if container:
        found.append(container)
    found.append(_machine(facts))
    return found


def _layer(kind: str, name: str | None, evidence: list[str], **more: str) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "name": name, "hypervisor": "", "type": "", "note": ""}
    return {**row, **more, "evidence": evidence}


def _container(facts: Facts) -> dict[str, Any] | None:
    spaces = facts.get("container.namespaces") or {}
    own = [f"own {name} namespace" for name, first in spaces.items() if first is False]
    inside = facts.get("container.inside")
    markers = [f"{path}: {name}" for path, name in (facts.get("container.markers") or {}).items()]
    if inside:
        return _layer("container", facts.get("container.runtime"), own + markers)
    if inside is None:
        return _layer("unknown", None, [], note=f"a container? {facts.why('container.inside')}")
    return _layer("namespaces", None, own) if own else None


def _machine(facts: Facts) -> dict[str, Any]:
    evidence = facts.get("machine.evidence") or []
    hypervisor = str(facts.get("machine.hypervisor") or "")
    kind, note = brands.TYPES.get(hypervisor, ("", ""))
    virtual = facts.get("machine.virtual")
    if virtual:
        return _layer("vm", facts.get("machine.monitor"), evidence, hypervisor=hypervisor,
                      type=kind, note=note)  # fmt: skip
    if virtual is None:
        return _layer("unknown", None, evidence, note=f"a machine? {facts.why('machine.virtual')}")
    if facts.get("machine.xen_dom0"):
        return _layer("host", "Xen's dom0", evidence, hypervisor="Xen", type=kind, note=note)
    if facts.get("machine.hyperv_root"):
        return _layer("host", "Hyper-V's root partition", evidence, hypervisor=hypervisor,
                      type=kind, note=note)  # fmt: skip
    return _layer("host", "bare metal", evidence)


# ---------------------------------------------------------------- yes, no, unknown

KINDS = ("vm", "container", "kvm", "nested", "cvm")


def question(kind: str, facts: Facts, verdict: Verdict) -> tuple[bool | None, str]:
    """Answer `--is KIND`: True, False or None, and for None the reason."""
    if kind == "vm":
        return facts.get("machine.virtual"), facts.why("machine.virtual")
    if kind == "container":
        return facts.get("container.inside"), facts.why("container.inside")
    if kind == "cvm":
        found = facts.get("machine.confidential")
        return None if found is None else found != "none", facts.why("machine.confidential")
    if kind == "kvm":
        return _kvm(facts, verdict)
    return _nested(facts)


def _kvm(facts: Facts, verdict: Verdict) -> tuple[bool | None, str]:
    """Whether a guest runs under KVM at the CPU's speed, for this user, now."""
    if verdict.code in ("KVM_UNPROVEN", "UNKNOWN"):
        why = facts.why("probe.ring0") or facts.why("kvm.open") or verdict.summary
        return None, why
    return verdict.status == 0, ""


def _nested(facts: Facts) -> tuple[bool | None, str]:
    """Whether this is a virtual machine which is given the CPU's extension."""
    virtual = facts.get("machine.virtual")
    if virtual is False:
        return False, ""
    if virtual is None:
        return None, facts.why("machine.virtual")
    if native(facts, "ring0"):
        return True, ""
    given = [facts.get(name) for name in ("cpu.vmx", "cpu.svm")]
    if True in given:
        return True, ""
    if None in given:
        return None, facts.why("cpu.vmx") or facts.why("cpu.svm")
    return False, ""
