"""Charts of ratios as SVG: bars from the line of equal speed, on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

from bench.table import times

LEFT, PLOT, RIGHT = 330, 300, 170  # of names, of the axis, of the last labels; pixels
BAR, GAP, HEAD, FOOT = 15, 9, 30, 8
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.case { text-anchor: end } .tick { text-anchor: middle; fill: #656d76; font-size: 11px }
.faster { fill: #2f6fde } .slower { fill: #c8591a }
.grid { stroke: #d0d7de } .equal { stroke: #656d76; stroke-width: 1.5 }
.room { fill: #2f6fde; fill-opacity: .12; stroke: #2f6fde; stroke-opacity: .6 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .tick { fill: #9198a1 } .faster { fill: #6ea8ff } .slower { fill: #f0904f }
  .grid { stroke: #3d444d } .equal { stroke: #9198a1 } .room { fill: #6ea8ff; stroke: #6ea8ff }
}
"""


def svg(
    title: str,
    cases: Sequence[tuple[str, Mapping[str, float]]],
    most: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> str:
    """A chart of (case, ratio of this server to each other) pairs. The bar of equal speed has no length.

    `most` has the largest ratio that a (case, other) can have: it gets an outline that far.
    """
    ratios = [*(ratio for _, found in cases for ratio in found.values()), *most.values()]
    low = min(-2, math.floor(math.log2(min(ratios))))
    high = max(2, math.ceil(math.log2(max(ratios))))
    wide = PLOT / (high - low)

    def x(ratio: float) -> float:
        return LEFT + (math.log2(ratio) - low) * wide

    heights = [len(found) * BAR + GAP for _, found in cases]
    height = HEAD + sum(heights) + FOOT
    lines = []
    every = 1 if high - low <= 8 else 2
    for power in range(low, high + 1):
        if power % every == 0:
            at = x(2.0**power)
            kind = "grid" if power else "equal"
            lines.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{HEAD - 6}" y2="{height - FOOT}"/>')
            name = f"{2**power} x" if power >= 0 else f"1/{2**-power} x"
            lines.append(f'<text class="tick" x="{at:.1f}" y="{HEAD - 12}">{name}</text>')
    top = float(HEAD)
    for (name, found), tall in zip(cases, heights, strict=True):
        middle = top + len(found) * BAR / 2 + 4
        lines.append(f'<text class="case" x="{LEFT - 10}" y="{middle:.1f}">{escape(name)}</text>')
        for number, (other, ratio) in enumerate(found.items()):
            room = x(most[name, other]) if (name, other) in most else x(1)
            lines += _bar(x(1), x(ratio), room, top + number * BAR, f"{times(ratio)} {other}")
        top += tall
    box = f"0 0 {LEFT + PLOT + RIGHT} {height:.0f}"
    size = f'width="{LEFT + PLOT + RIGHT}" height="{height:.0f}" viewBox="{box}"'
    inside = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n{inside}\n</svg>\n"
    )


def _bar(equal: float, end: float, room: float, top: float, label: str) -> list[str]:
    left, wide = min(equal, end), max(1.0, abs(end - equal))
    kind = "faster" if end >= equal else "slower"
    shown = [f'<rect class="{kind}" x="{left:.1f}" y="{top + 2:.1f}" width="{wide:.1f}" height="{BAR - 4}"/>']
    if room > equal:
        size = f'width="{room - equal:.1f}" height="{BAR - 5}"'
        shown.append(f'<rect class="room" x="{equal:.1f}" y="{top + 2.5:.1f}" {size}/>')
    at = max(equal, end, room) + 5
    return [*shown, f'<text x="{at:.1f}" y="{top + BAR - 4:.1f}">{escape(label)}</text>']
