"""linux.resources.blockIO as writes: weights and throttles per device.

The version 1 weight (10..1000) goes to io.bfq.weight as it is where the BFQ scheduler is loaded,
else converted to io.weight (1..10000). Either has an effect only on disks whose scheduler or cost
model uses it; io.max always has one, but only for whole disks (see `blockdev`).
"""

from __future__ import annotations

from minirun.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minirun.cgroups.resources import Write
    from minirun.spec import BlockIO

    Maker = Callable[..., Write]

WHERE = "linux.resources.blockIO"
THROTTLES = (
    ("rbps", "throttleReadBpsDevice", "throttle_read_bps_device"),
    ("wbps", "throttleWriteBpsDevice", "throttle_write_bps_device"),
    ("riops", "throttleReadIOPSDevice", "throttle_read_iops_device"),
    ("wiops", "throttleWriteIOPSDevice", "throttle_write_iops_device"),
)


def io_weight(weight: int) -> int:
    """Convert blkio.weight (10..1000) linearly to io.weight (1..10000)."""
    return 1 + (weight - 10) * 9999 // 990


def io_writes(block: BlockIO | None, make: Maker) -> list[Write]:
    """Give the writes of `block`; `make(file, value, field, **more)` makes one.

    Raises ConfigError for a weight out of range.
    """
    if block is None:
        return []
    result = []
    if block.weight:
        _check("weight", block.weight)
        result.append(_weight("", block.weight, "blockIO.weight", make))
    for number, item in enumerate(block.weight_device):
        if item.weight:
            field = f"weightDevice[{number}].weight"
            _check(field, item.weight)
            device = f"{item.major}:{item.minor} "
            result.append(_weight(device, item.weight, f"blockIO.{field}", make))
    return result + _throttles(block, make)


def _check(field: str, weight: int) -> None:
    if not 10 <= weight <= 1000:
        raise ConfigError(f"{WHERE}.{field}", f"must be from 10 to 1000, not {weight}")


def _weight(device: str, weight: int, field: str, make: Maker) -> Write:
    plain = make("io.weight", f"{device}{io_weight(weight)}", field)
    return make("io.bfq.weight", f"{device}{weight}", field, fallback=plain)


def _throttles(block: BlockIO, make: Maker) -> list[Write]:
    """One write per disk, so that a disk is never throttled by half; 0 takes a limit away."""
    disks: dict[str, list[str]] = {}
    fields: dict[str, str] = {}
    for key, name, attribute in THROTTLES:
        for item in getattr(block, attribute):
            device = f"{item.major}:{item.minor}"
            disks.setdefault(device, []).append(f"{key}={item.rate or 'max'}")
            fields.setdefault(device, f"blockIO.{name}")
    return [
        make("io.max", " ".join([device, *given]), fields[device])
        for device, given in disks.items()
    ]
