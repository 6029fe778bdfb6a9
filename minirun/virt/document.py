"""The report as JSON: `schema.json` beside this file says what stands in it."""

from __future__ import annotations

import os

from minirun.jsontext import read_bytes
from minirun.virt.layers import layers
from minirun.virt.verdict import LEVELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minirun.virt.facts import Facts
    from minirun.virt.verdict import Verdict

SCHEMA = "minirun.virt/1"


def document(facts: Facts, verdict: Verdict) -> dict[str, Any]:
    """Return the whole report. It has no times, so that the same machine gives the same text."""
    return {
        "schema": SCHEMA,
        "verdict": {
            "code": verdict.code,
            "level": LEVELS[verdict.status],
            "exit": verdict.status,
            "summary": verdict.summary,
            "accelerator": verdict.accelerator,
            "reasons": [{"fact": fact, "text": text} for fact, text in verdict.reasons],
            "fixes": [
                {"id": one.name, "who": one.who, "command": one.command or None, "text": one.text}
                for one in verdict.fixes
            ],
        },
        "layers": layers(facts),
        "facts": {
            fact.name: {
                "value": fact.value,
                "source": fact.source,
                "unknown": fact.why if fact.value is None else None,
            }
            for fact in sorted(facts, key=lambda fact: fact.name)
        },
    }


def schema() -> str:
    """Return the JSON schema of the document (draft 2020-12), as text."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schema.json")
    return read_bytes(path, "schema").decode()
