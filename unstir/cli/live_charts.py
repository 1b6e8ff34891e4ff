"""Small line charts as SVG text, without a plotting library, so that a training run can draw them every few seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 64, 96, 8, 26
MOST = 400  # points of a line; more are averaged in groups
_TWO = ("#0072b2", "#d55e00")


def chart(series: Mapping[str, Points], title: str, fixed: bool = False) -> str:
    """A heading and the SVG of {label: [(x, y), …]}; "" without two finite points in any line.

    The y-axis is logarithmic where positive values span more than a factor of 10. fixed: the two colours of the house
    instead of a scale from cold to warm, for lines without an order.
    """
    lines = {k: _thin([p for p in v if all(map(math.isfinite, p))]) for k, v in series.items()}
    lines = {k: v for k, v in lines.items() if v}
    points = [p for v in lines.values() for p in v]
    if len(points) < 2:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    log = low > 0 and high / low > 10
    to_y = math.log10 if log else float
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _decades(low, high) if log else _steps(low, high)
    bottom, top = to_y(min(low, ticks[0]) if not log else low), to_y(max(high, ticks[-1]) if not log else high)
    if top - bottom <= 0:
        bottom, top = bottom - 0.5, top + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first or 1)
        up = (to_y(y) - bottom) / (top - bottom)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        y = place(first, tick)[1]
        if TOP - 1 <= y <= HEIGHT - BOTTOM + 1:
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    parts += [
        f'<text x="{place(x, ticks[-1])[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_short(x)}</text>'
        for x in dict.fromkeys((first, (first + last) / 2, last))
    ]
    ends = []
    for i, (label, line) in enumerate(lines.items()):
        colour = _TWO[i % 2] if fixed or len(lines) == 1 else f"hsl({240 - 240 * i / (len(lines) - 1):.0f} 75% 50%)"
        spots = [place(*p) for p in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<circle cx="{spots[-1][0]:.1f}" cy="{spots[-1][1]:.1f}" r="2.5" fill="{colour}"/>')
        ends.append((spots[-1][1], label, colour))
    for y, (_, label, colour) in zip(_apart([y for y, *_ in sorted(ends)]), sorted(ends), strict=True):
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" style="fill:{colour}">{escape(label)}</text>')
    drawing = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return f"<h3>{escape(title)}</h3>\n{drawing}"


def _thin(points: Points) -> Points:
    """At most `MOST` points: means of neighbours, and the last one as it is."""
    size = -(-len(points) // MOST)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups] + [points[-1]]


def _steps(low: float, high: float) -> list[float]:
    """Three to six round numbers from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / 3))
    step = next(unit * k for k in (1, 2, 5, 10) if span / (unit * k) <= 4.5)
    start = math.floor(low / step)
    return [step * k for k in range(start, math.ceil(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of 10 in the range, with 2 and 5 where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1, 2, 5) if len(powers) <= 3 else (1,)
    found = [h * 10.0**p for p in powers for h in heads if low <= h * 10.0**p <= high]
    return found or [low, high]


def _apart(heights: list[float], gap: float = 13.0) -> list[float]:
    """Sorted heights pushed downwards until they are `gap` apart, then shifted up if they left the picture."""
    placed: list[float] = []
    for y in heights:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    over = placed[-1] - (HEIGHT - 4) if placed else 0
    return [max(TOP, y - max(0.0, over)) for y in placed]


def _short(x: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"
