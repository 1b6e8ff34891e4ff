"""Time grids: (process, n, start, end) -> nodes t_0 = start > … > t_n = end, float64.

Grids that are regular in λ or σ̂ cannot reach σ = 0 (λ = ∞). They space n nodes over the process's
`span`, whose ends have moderate λ, and then append the exact end; likewise the first node is the
exact start, even where α = 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..process import Process, Table

Grid = Callable[..., list[float]]


def _spaced(
    process: Process, n: int, start: float, end: float, to: Callable, back: Callable, ramp: Callable = lambda u: u
) -> list[float]:
    """n + 1 nodes regular in to(t), with the ends replaced as the module says."""
    low, high = process.span
    open_end = end < low
    first, last = min(start, high), max(end, low)
    if n == 1 or first <= last:
        return np.linspace(start, end, n + 1).tolist()
    inner = n if open_end else n + 1
    u = torch.as_tensor([ramp(i / (inner - 1)) for i in range(inner)], dtype=torch.float64)
    a, b = to(torch.tensor(first, dtype=torch.float64)), to(torch.tensor(last, dtype=torch.float64))
    nodes = back(a + u * (b - a)).tolist()
    nodes[0] = start
    if open_end:
        return [*nodes, end]
    nodes[-1] = end
    return nodes


def uniform(process: Process, n: int, start: float, end: float) -> list[float]:
    """Uniform in t."""
    return np.linspace(start, end, n + 1).tolist()


def power(process: Process, n: int, start: float, end: float, kappa: float = 2.0) -> list[float]:
    """Uniform in t^{1/κ}; κ = 2 is the quadratic grid, dense near the data."""
    if not kappa > 0:
        raise ValueError(f"kappa={kappa} must be > 0")
    return (np.linspace(start ** (1 / kappa), end ** (1 / kappa), n + 1) ** kappa).tolist()


def logsnr(process: Process, n: int, start: float, end: float) -> list[float]:
    """Uniform in λ (log-linear in σ̂), the grid of DPM-Solver for small pictures."""
    return _spaced(process, n, start, end, process.logsnr, process.time)


def karras(process: Process, n: int, start: float, end: float, rho: float = 7.0) -> list[float]:
    """Uniform in σ̂^{1/ρ} (Elucidating the Design Space of Diffusion-Based Generative Models, 2022)."""
    if not rho > 0:
        raise ValueError(f"rho={rho} must be > 0")
    return _spaced(
        process,
        n,
        start,
        end,
        lambda t: torch.exp(-process.logsnr(t) / rho),
        lambda s: process.time(-rho * s.clamp_min(1e-300).log()),
    )


def _labels(process: Process, start: float) -> tuple[int, int]:
    levels = process.levels if isinstance(process, Table) else 1000
    return levels, max(1, round(start * levels))


def _from_labels(labels: Sequence[float], levels: int, end: float, n: int, name: str) -> list[float]:
    nodes = [(label + 1) / levels for label in labels]
    if nodes[-1] <= end or len(set(nodes)) < n:
        raise ValueError(f"grid={name!r} has no {n} different labels above t = {end}; use fewer steps or another grid")
    return [*nodes, end]


def leading(process: Process, n: int, start: float, end: float, offset: int = 0) -> list[float]:
    """Labels i ⌊T/n⌋ + offset (DDPM/DDIM code): starts below the last label."""
    levels, top = _labels(process, start)
    return _from_labels([i * (top // n) + offset for i in reversed(range(n))], levels, end, n, "leading")


def linspace(process: Process, n: int, start: float, end: float) -> list[float]:
    """Labels round(linspace(0, T − 1, n + 1)), the cleanest dropped since the end is appended."""
    levels, top = _labels(process, start)
    return _from_labels(np.linspace(0, top - 1, n + 1).round()[::-1][:-1].tolist(), levels, end, n, "linspace")


def trailing(process: Process, n: int, start: float, end: float) -> list[float]:
    """Labels round(T − i T/n) − 1: starts at the last label (Common Diffusion Noise Schedules … Are Flawed, 2024)."""
    levels, top = _labels(process, start)
    return _from_labels([round(top - i * top / n) - 1 for i in range(n)], levels, end, n, "trailing")


GRIDS: dict[str, Grid] = {
    "uniform": uniform,
    "time": uniform,
    "quadratic": power,
    "logsnr": logsnr,
    "karras": karras,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}


def make_grid(
    grid: str | Grid | Sequence[float], process: Process, n: int, start: float, end: float, **options: float
) -> list[float]:
    """Nodes from a grid's name, a function like the ones here, or the nodes themselves."""
    if not (isinstance(n, int) and not isinstance(n, bool) and n >= 1):
        raise ValueError(f"a grid needs at least 1 step; got {n}")
    if not (0 <= end < start <= 1 and math.isfinite(start)):
        raise ValueError(f"start={start}, end={end}: need 0 ≤ end < start ≤ 1")
    if isinstance(grid, str):
        if grid.lower() not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}; known: {', '.join(GRIDS)}")
        grid = GRIDS[grid.lower()]
    if callable(grid):
        nodes = [float(t) for t in grid(process, n, float(start), float(end), **options)]
    else:
        nodes = [float(t) for t in grid]
    if len(nodes) != n + 1:
        raise ValueError(f"the grid has {len(nodes)} nodes; {n} steps need {n + 1}")
    return nodes
