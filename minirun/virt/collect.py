"""All facts of a machine, in the order in which they build on one another."""

from __future__ import annotations

from minirun.virt import (
    confidential,
    container,
    cpu,
    firmware,
    hosting,
    kvm,
    machine,
    paravirt,
    risks,
)
from minirun.virt.facts import Facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.host import Host


def collect(host: Host) -> Facts:
    """Find everything; never raises for what the machine lacks or refuses."""
    facts = Facts()
    facts.take("system.ids", "getuid, getgroups, /etc/group", lambda: host.ask("ids"))
    for part in (cpu, firmware, machine, confidential, container, kvm, paravirt, hosting, risks):
        part.collect(host, facts)
    return facts
