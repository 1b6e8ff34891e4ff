"""Line plots and pictures of a plan's table, as the bytes of an SVG or PNG file.

Drawn with matplotlib's objects, not with pyplot, so there is no global state and no display. Colours
are those of Okabe and Ito, told apart by colour-blind readers; lines also differ in their markers.
An SVG carries its own dark scheme, so it fits a page in either.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .._extras import need

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b7280")
MARKERS = "os^Dv<>"
INK, FAINT, LINE = "#24292f", "#57606a", "#d0d7de"
DARK = {INK: "#e6edf3", FAINT: "#9da7b1", LINE: "#3d444d", "#0072b2": "#4aa8e0"}

Number = float | int


def error_plot(
    series: Mapping[str, Sequence[tuple[Number, Number]]],
    *,
    title: str = "",
    xlabel: str = "network evaluations (NFE)",
    ylabel: str = "error",
    format: str = "svg",
) -> bytes:
    """{label: [(nfe, error), …]} on two logarithmic axes; a straight line of slope −p is order p.

    Each line is labelled at its right end, labels pushed apart where ends are close. Raises ValueError
    for values that a logarithmic axis cannot show (zero, negative, not finite): leave such points out.
    """
    if not series:
        raise ValueError("series is empty; give {label: [(nfe, error), …]}")
    for label, points in series.items():
        if len(points) == 0:
            raise ValueError(f"series[{label!r}] has no points; leave it out")
        for point in points:
            if len(point) != 2 or not all(math.isfinite(v) and v > 0 for v in point):
                raise ValueError(
                    f"series[{label!r}] has the point {point}; both numbers must be finite and > 0, or leave it out"
                )
    figure, axes = _figure(6.0, max(3.4, 0.9 + 0.22 * len(series)), format)
    ends = []
    for i, (label, points) in enumerate(series.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
        style = ("-", "--", ":")[i // len(PALETTE) % 3]
        x, y = zip(*sorted((float(a), float(b)) for a, b in points), strict=True)
        axes.plot(x, y, style, color=colour, marker=marker, markersize=4.5, linewidth=1.6, clip_on=False)
        ends.append((x[-1], y[-1], _plain(label), colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    stops = sorted({float(x) for points in series.values() for x, _ in points})
    if len(stops) <= 8:
        axes.set_xticks(stops, [f"{x:g}" for x in stops])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel))
    axes.set_title(_plain(title, 72), loc="left", fontweight="bold", color=INK)
    axes.grid(which="major", color=LINE, linewidth=0.6)
    _label_ends(figure, axes, ends)
    return _file(figure, format)


def _label_ends(figure: Any, axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names every line right of the axes, at the height of its end, at least one text height apart."""
    figure.draw_without_rendering()
    to_axes = axes.transData + axes.transAxes.inverted()
    spots: list[tuple[float, float, str, str]] = []
    for x, y, label, colour in ends:
        across, up = to_axes.transform((x, y))
        spots.append((float(across), float(up), label, colour))
    spots.sort(key=lambda spot: spot[1])
    gap = 13 / 72 * figure.dpi / axes.get_window_extent().height
    heights: list[float] = []
    for _, y, _, _ in spots:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    # Pushed up only; so shift each run of touching labels back to be centred on its ends.
    start = 0
    for stop in range(1, len(heights) + 1):
        if stop == len(heights) or heights[stop] - heights[stop - 1] > gap * 1.001:
            excess = sum(heights[i] - spots[i][1] for i in range(start, stop)) / (stop - start)
            floor = heights[start - 1] + gap if start else 0.0
            shift = min(excess, max(heights[start] - floor, 0.0))
            heights[start:stop] = [h - shift for h in heights[start:stop]]
            start = stop
    for (x, y, label, colour), height in zip(spots, heights, strict=True):
        axes.annotate(
            label,
            (x, y),
            (1.035, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def plan_plot(
    logsnr: Sequence[Number],
    coefficients: Sequence[Sequence[Number | None]],
    columns: Sequence[str],
    *,
    title: str = "",
    format: str = "svg",
) -> bytes:
    """A plan's table as a picture: row i at its λ_i (left, a point on the half log-SNR axis) with its numbers (right).

    logsnr: N numbers, ±∞ at an end drawn at the rim as an arrow; coefficients: N rows of len(columns)
    numbers, None (or NaN) for an absent entry. A cell's colour is its value over the largest of its
    column, blue below zero and orange above.
    """
    n, m = len(logsnr), len(columns)
    if n == 0 or m == 0:
        raise ValueError(f"logsnr has {n} entries and columns {m}; a plan has at least one row and one column")
    if len(coefficients) != n or any(len(row) != m for row in coefficients):
        raise ValueError(f"coefficients must be {n} rows (as logsnr) of {m} numbers (as columns)")
    lam = [float(v) for v in logsnr]
    table = [[math.nan if v is None else float(v) for v in row] for row in coefficients]
    if any(math.isnan(v) for v in lam) or any(math.isinf(v) for row in table for v in row):
        raise ValueError("logsnr must not contain NaN, nor coefficients infinite values")
    figure, (left, right) = _figure(min(2.6 + 0.62 * m, 12.0), 1.1 + 0.25 * n, format, panels=(2.0, 0.62 * m))

    rows = range(n)
    finite = [v for v in lam if math.isfinite(v)] or [0.0]
    margin = 0.12 * (max(finite) - min(finite)) or 1.0
    rim = (min(finite) - margin, max(finite) + margin)
    shown = [min(max(v, rim[0]), rim[1]) for v in lam]
    left.plot(shown, rows, "-", color=LINE, linewidth=1.2, zorder=1)
    for x, y, v in zip(shown, rows, lam, strict=True):
        left.plot(x, y, marker="o" if math.isfinite(v) else "><"[v < 0], color=PALETTE[0], markersize=5, clip_on=False)
    left.set_xlim(rim[0] - margin / 2, rim[1] + margin / 2)
    left.set_yticks(list(rows), [str(i) for i in rows])
    left.set_ylim(n - 0.5, -0.5)
    left.set_xlabel("half log-SNR λ")
    left.set_ylabel("row")
    left.grid(axis="x", color=LINE, linewidth=0.6)

    peak = [max((abs(row[j]) for row in table if not math.isnan(row[j])), default=0.0) or 1.0 for j in range(m)]
    heat = [[v / peak[j] for j, v in enumerate(row)] for row in table]
    colours = need("matplotlib.colors").LinearSegmentedColormap.from_list("plan", ["#5aa9dd", "#f6f8fa", "#f2a65a"])
    right.imshow(heat, cmap=colours.with_extremes(bad=(0, 0, 0, 0)), vmin=-1, vmax=1, aspect="auto")
    for i, row in enumerate(table):
        for j, v in enumerate(row):
            if not math.isnan(v):
                # Black on a light cell in both schemes, so not the ink that turns white in the dark one.
                right.text(j, i, _short(v), ha="center", va="center", fontsize=8, color="#1b1f24")
    right.set_xticks(range(m), [_plain(c, 12) for c in columns])
    right.xaxis.tick_top()
    right.set_yticks([])
    right.tick_params(length=0)
    for side in right.spines.values():
        side.set_visible(False)
    figure.suptitle(_plain(title, 72), x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK)
    return _file(figure, format)


def _plain(text: str, longest: int = 36) -> str:
    """`text` as it stands (to matplotlib a pair of $ would be mathematics), cut to what a figure has room for."""
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _short(v: float) -> str:
    return f"{v:.3f}".rstrip("0").rstrip(".") if 1e-3 <= abs(v) < 1000 else "0" if v == 0 else f"{v:.0e}"


def _figure(width: float, height: float, format: str, panels: tuple[float, float] | None = None) -> tuple[Any, Any]:
    if format not in ("svg", "png"):
        raise ValueError(f"format={format!r} is unknown; 'svg' or 'png'")
    figure = need("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots() if panels is None else figure.subplots(1, 2, width_ratios=panels)
    for ax in [axes] if panels is None else axes:
        ax.patch.set_alpha(0)
        ax.tick_params(colors=FAINT, labelsize=9, which="both", width=0.6)
        ax.xaxis.label.set(color=FAINT, size=10)
        ax.yaxis.label.set(color=FAINT, size=10)
        for name, side in ax.spines.items():
            side.set(color=LINE, visible=name in ("left", "bottom"))
    return figure, axes


def _file(figure: Any, format: str) -> bytes:
    """The figure as a file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    if format == "png":
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", bbox_inches="tight")
        return buffer.getvalue()
    with need("matplotlib").rc_context({"svg.hashsalt": "unstir"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    # matplotlib writes colours as inline styles; these rules override them where the reader prefers dark.
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}' for light, dark in DARK.items() for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, body = buffer.getvalue().decode().split("<defs>", 1)
    return f"{head}{style}<defs>{body}".encode()
