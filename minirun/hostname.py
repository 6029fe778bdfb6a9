"""The host and domain name of the UTS namespace (uts_namespaces(7))."""

from __future__ import annotations

from minirun.kernel import process
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


@step(
    lambda setup: setup.spec.hostname,  # "" is none: else it would take the name away
    details=lambda setup: [setup.spec.hostname or ""],
    shell=lambda setup: ["hostname " + quoted(setup.spec.hostname or "")],
)
def set_hostname(setup: Setup) -> None:
    """Set the host name"""
    process.sethostname(setup.spec.hostname or "")


@step(
    lambda setup: setup.spec.domainname,
    details=lambda setup: [setup.spec.domainname or ""],
)
def set_domainname(setup: Setup) -> None:
    """Set the domain name"""
    process.setdomainname(setup.spec.domainname or "")
