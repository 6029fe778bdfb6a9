"""What to write to take a write back: from what the file held before."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.cgroups.resources import Write

# Files with a line per device, and what one says for a device that has no line.
_KEYED = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.weight": "default",
    "io.bfq.weight": "default",
    "rdma.max": "hca_handle=max hca_object=max",
}


def undo_value(write: Write, before: str | None) -> str | None:
    """Give the value that undoes `write`, `before` being what the file held; None if unknown."""
    if before is None:
        return undo_value(write.fallback, before) if write.fallback else None
    if write.file not in _KEYED:
        return before.strip()
    key, _, rest = write.value.partition(" ")
    if not rest:
        key = "default"  # a weight for all disks
    for line in before.splitlines():
        if line.split(" ", 1)[0] == key:
            return line
    return f"{key} {_KEYED[write.file]}" if rest else None
