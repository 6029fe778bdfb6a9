"""The comparison as JSON: every sample, times in milliseconds, sizes in bytes.

`schema.json` beside this file says what stands in it.
"""

from __future__ import annotations

import os

from minirun.compare.disk import CACHE
from minirun.compare.figures import Row
from minirun.compare.result import SIDES
from minirun.jsontext import read_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.compare.comparison import Outcome

SCHEMA = "minirun.compare/1"


def document(outcome: Outcome) -> dict[str, Any]:
    """Return all that was measured, and on what."""
    result, plan = outcome.result, outcome.plan
    load = result.load
    return {
        "schema": SCHEMA,
        "quick": outcome.quick,
        "host": outcome.here,
        "rootfs": outcome.rootfs,
        "machine": {
            "qemu": outcome.qemu,
            "type": plan.machine,
            "accelerator": plan.accelerator.name,
            "label": plan.accelerator.label,
            "verdict": plan.accelerator.why,
            "emulated": plan.accelerator.emulated,
            "kernel": plan.kernel.path,
            "kernel_version": plan.kernel.version,
            "kernel_bytes": plan.kernel.size,
            "initrd_bytes": result.initrd,
            "memory_bytes": plan.memory,
        },
        "load": {
            "average_before": list(result.averages),
            "others_cpus": None if load is None else round(load.others, 3),
            "steal": None if load is None else round(load.stolen, 4),
            "idle": None if load is None else load.idle,
        },
        "storage": {
            "directory": result.storage.directory,
            "file_system": result.storage.kind,
            "image": None if result.storage.why else "raw, sparse, ext4",
            "cache": None if result.storage.why else CACHE,
            "device": result.storage.device or None,
            "not_compared": result.storage.why or None,
        },
        "starting": [encode(row) for row in result.starting()],
        "phases": {
            title: [round(one, 3) for one in found] for title, found in result.phases.items()
        },
        "working": [
            {**encode(row), "agrees": result.agrees(row.key)}
            for row in result.working(quick=outcome.quick)
        ],
        "holding": [encode(row) for row in result.holding()],
        "pss_totals": {side: [list(point) for point in result.totals[side]] for side in SIDES},
        "cgroup_memory_bytes": result.group,
        "isolation": {
            one.key: {"title": one.title, "container": one.container, "vm": one.machine}
            for one in result.counts
        },
        "migration": outcome.migration,
    }


def schema() -> str:
    """Return the JSON schema of the document (draft 2020-12), as text."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schema.json")
    return read_bytes(path, "schema").decode()


def encode(row: Row) -> dict[str, Any]:
    """Return one row; a side that was not measured is null."""
    found: dict[str, Any] = {"key": row.key, "title": row.title, "unit": row.unit}
    for side in SIDES:
        summary = row.summary(side)
        found[side] = (
            None
            if summary is None
            else {
                "median": round(summary.median, 3),
                "minimum": round(summary.minimum, 3),
                "spread": round(summary.spread, 3),
                "samples": [round(one, 3) for one in row.samples[side]],
            }
        )
    why = row.note or row.dropped
    ratio = None if row.ratio is None else round(row.ratio, 3)
    return {**found, "ratio": ratio, "dropped": why or None}
