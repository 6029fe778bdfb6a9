"""The comparison as a picture: how many times as much the VM takes, one bar for each row.

SVG is written here. The scale is logarithmic; rows that were dropped have no bar but their reason.
"""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from minirun.compare.figures import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.compare.comparison import Outcome
    from minirun.compare.figures import Row

_LEFT, _SCALE, _RIGHT = 430, 420, 90
_ROW, _HEAD, _FOOT = 26, 84, 40
_WIDTH = _LEFT + _SCALE + _RIGHT
_MORE, _LESS, _EMULATED, _GREY = "#2f6f9f", "#3a8f5c", "#b5762a", "#777"


def svg(outcome: Outcome) -> str:
    """Return the picture as an SVG document."""
    result = outcome.result
    rows = [*result.starting(), *result.working(quick=outcome.quick), *result.holding()]
    low, high = bounds([row.ratio for row in rows if row.ratio])
    height = _HEAD + _ROW * len(rows) + _FOOT
    emulated = outcome.plan.accelerator.emulated
    body = [
        _text(16, 26, "Container and virtual machine: VM / container", size=17, weight="bold"),
        _text(16, 46, f"{outcome.here} · {outcome.rootfs}", size=11, colour=_GREY),
        _text(
            16, 63, f"VM: {outcome.plan.accelerator.label}", size=12,
            colour=_EMULATED if emulated else "#000",
        ),
        *_grid(low, high, height),
    ]  # fmt: skip
    for place, row in enumerate(rows):
        colour = _EMULATED if emulated and row.key != "disk" else _MORE
        body += _bar(row, _HEAD + _ROW * place, (low, high), colour)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def bounds(ratios: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten between which all ratios, and 1, lie."""
    logs = [math.log10(one) for one in ratios if one > 0]
    low, high = math.floor(min([0.0, *logs])), math.ceil(max([0.0, *logs]))
    return low, max(high, low + 1)


def _place(ratio: float, low: int, high: int) -> float:
    return _LEFT + _SCALE * (math.log10(ratio) - low) / (high - low)


def _grid(low: int, high: int, height: int) -> list[str]:
    lines = []
    for power in range(low, high + 1):
        x = _place(10.0**power, low, high)
        colour = "#000" if power == 0 else "#ddd"
        lines.append(
            f'<line x1="{x:.1f}" y1="{_HEAD - 8}" x2="{x:.1f}" y2="{height - _FOOT}" '
            f'stroke="{colour}"/>'
        )
        name = "equal" if power == 0 else f"{10.0**power:g} x"
        lines.append(_text(x, height - _FOOT + 16, name, size=11, anchor="middle"))
    return lines


def _bar(row: Row, top: int, span: tuple[int, int], colour: str) -> list[str]:
    label = _text(_LEFT - 10, top + 15, row.title, size=12, anchor="end")
    if not row.ratio:
        why = row.note or row.dropped or "not measured"
        return [label, _text(_place(1, *span) + 6, top + 15, why, size=11, colour=_GREY)]
    one, here = _place(1, *span), _place(row.ratio, *span)
    left, width = min(one, here), max(abs(here - one), 1.0)
    fill = colour if row.ratio >= 1 else _LESS
    return [
        label,
        f'<rect x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="16" fill="{fill}"/>',
        _text(max(one, here) + 5, top + 15, f"{number(row.ratio)} x", size=11),
    ]


def _text(
    x: float, y: float, text: str, *, size: int, colour: str = "#000", anchor: str = "start",
    weight: str = "normal",
) -> str:  # fmt: skip
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{escape(printable)}</text>'
    )
