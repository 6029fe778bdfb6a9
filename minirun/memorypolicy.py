"""linux.memoryPolicy: on which NUMA nodes the payload's memory lies (set_mempolicy(2))."""

from __future__ import annotations

from minirun import ranges
from minirun.errors import ConfigError
from minirun.kernel import process
from minirun.kernel.process import MPOL_FLAGS as FLAGS
from minirun.kernel.process import MPOL_MODES as MODES
from minirun.refuse import refuse_unless
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup
    from minirun.spec import MemoryPolicy

_WHERE = "linux.memoryPolicy"
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_EITHER = ("MPOL_PREFERRED",)


def check(policy: MemoryPolicy) -> None:
    """Refuse what the kernel would, by the field's name, in runc's words. Raises ConfigError."""
    mode = policy.mode
    refuse_unless(mode in MODES, f"{_WHERE}.mode", f"invalid memory policy mode {mode!r}")
    for number, name in enumerate(policy.flags):
        where = f"{_WHERE}.flags[{number}]"
        refuse_unless(name in FLAGS, where, f"invalid memory policy flag {name!r}")
    both = {"MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"} <= set(policy.flags)
    _allowed(not both, "flags", "relative and static nodes exclude each other")
    balanced = "MPOL_F_NUMA_BALANCING" in policy.flags
    _allowed(
        not balanced or mode == "MPOL_BIND",
        "flags",
        "MPOL_F_NUMA_BALANCING goes with MPOL_BIND only",
    )
    try:
        nodes = ranges.parse(policy.nodes or "", "")
    except ConfigError as error:
        text = f"invalid memory policy nodes {(policy.nodes or '')[:80]!r}: {error.problem}"
        raise ConfigError(f"{_WHERE}.nodes", text) from None
    if mode in _WITHOUT_NODES:
        _allowed(not nodes, "nodes", f"{mode} takes no nodes")
    elif mode not in _EITHER:
        _allowed(nodes, "nodes", f"{mode} needs at least one node")


def _allowed(condition: object, field: str, rule: str) -> None:
    refuse_unless(condition, f"{_WHERE}.{field}", f"set_mempolicy: invalid argument: {rule}")


def _describe(setup: Setup) -> list[str]:
    policy = setup.spec.linux.memory_policy
    return [] if policy is None else [f"{policy.mode} {policy.nodes or ''}".strip()]


@step(_describe, details=_describe, why="it is the thread's own, and stays across execve(2)")
def apply(setup: Setup) -> None:
    """Set the NUMA memory policy"""
    policy = setup.spec.linux.memory_policy
    assert policy is not None
    mode = MODES[policy.mode]
    for name in policy.flags:
        mode |= FLAGS[name]
    mask = 0
    for node in ranges.parse(policy.nodes or "", f"{_WHERE}.nodes"):
        mask |= 1 << node
    process.set_mempolicy(mode, mask)
