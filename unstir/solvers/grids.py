"""Time grids: (process, n, start, end) -> nodes t_0 = start > … > t_n = end, float64.

Grids that are regular in λ or σ̂ cannot reach σ = 0 (λ = ∞). They space n nodes over the process's
`span`, whose ends have moderate λ, and then append the exact end; likewise the first node is the
exact start, even where α = 0 there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from ..process import Process
from ..process.table import label_count

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
    return _with_ends(nodes, start, end, open_end)


def _with_ends(nodes: list[float], start: float, end: float, open_end: bool) -> list[float]:
    """The first node is the start; the end is appended where the nodes stop short of it, else it is the last."""
    return [start, *nodes[1:], end] if open_end else [start, *nodes[1:-1], end]


def uniform(process: Process, n: int, start: float, end: float) -> list[float]:
    """Uniform in t."""
    return np.linspace(start, end, n + 1).tolist()


def power(process: Process, n: int, start: float, end: float, kappa: float = 2.0) -> list[float]:
    """Uniform in t^{1/κ}; κ = 2 is the quadratic grid, dense near the data."""
    if not kappa > 0:
        raise ValueError(f"kappa={kappa} must be > 0")
    nodes = (np.linspace(start ** (1 / kappa), end ** (1 / kappa), n + 1) ** kappa).tolist()
    return [start, *nodes[1:-1], end]


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


def logistic(process: Process, n: int, start: float, end: float, slope: float = 0.7, centre: float = 0.0) -> list[float]:
    """λ at the quantiles of a logistic law: uniform in u = 1/(1 + e^{slope (λ − centre)}), the default.

    Dense where D depends most on the state (σ̂ near 1), a few wide steps where it hardly does; it
    reaches σ = 0 and starts at α = 0 by itself, and as a rule in σ̂ it is the same on every process.
    """
    if not slope > 0:
        raise ValueError(f"slope={slope} must be > 0")
    ends = torch.sigmoid(-slope * (process.logsnr(torch.tensor([start, end], dtype=torch.float64)) - centre))
    u = ends[0] + (ends[1] - ends[0]) * torch.arange(n + 1, dtype=torch.float64) / n
    nodes = process.time(centre - torch.logit(u) / slope).tolist()
    return [start, *nodes[1:-1], end]


def polyexponential(process: Process, n: int, start: float, end: float, rho: float = 1.0) -> list[float]:
    """log σ̂ linear in ramp^ρ (k-diffusion); ρ = 1 is `logsnr`."""
    if not rho > 0:
        raise ValueError(f"rho={rho} must be > 0")
    return _spaced(process, n, start, end, process.logsnr, process.time, lambda u: 1 - (1 - u) ** rho)


def edm_vp(process: Process, n: int, start: float, end: float, beta_d: float = 19.9, beta_min: float = 0.1) -> list[float]:
    """σ̂ = √(e^{½ β_d s² + β_min s} − 1) with s uniform: the VP grid in EDM's table 1."""
    return _spaced(
        process, n, start, end,
        lambda t: ((beta_min**2 + 2 * beta_d * torch.log1p(torch.exp(-2 * process.logsnr(t)))).sqrt() - beta_min) / beta_d,
        lambda s: process.time(-0.5 * torch.expm1(0.5 * beta_d * s**2 + beta_min * s).log()),
    )  # fmt: skip


def edm_iddpm(
    process: Process, n: int, start: float, end: float, levels: int = 1000, c1: float = 0.001, c2: float = 0.008
) -> list[float]:
    """EDM's iDDPM grid: u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, c₁) − 1), ᾱ_j = sin²(½π j/(M (c₂ + 1))), subsampled."""
    bar = np.sin(0.5 * np.pi * np.arange(levels + 1) / levels / (c2 + 1)) ** 2
    u = np.zeros(levels + 1)
    for j in range(levels, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(bar[j - 1] / bar[j], c1) - 1)
    low, high = process.span
    top, bottom = float(process.noise_ratio(min(start, high))), float(process.noise_ratio(max(end, low)))
    kept = u[(u <= top * (1 + 1e-9)) & (u >= bottom * (1 - 1e-9))]
    inner = n if end < low else n + 1
    if inner > len(kept):
        raise ValueError(f"grid='edm-iddpm' has {len(kept)} levels in range; {n} steps do not fit")
    chosen = kept[np.linspace(0, len(kept) - 1, inner).round().astype(int)]
    nodes = process.time(-torch.as_tensor(chosen, dtype=torch.float64).log()).tolist()
    return _with_ends(nodes, start, end, end < low)


def beta(process: Process, n: int, start: float, end: float, a: float = 0.6, b: float = 0.6, of: str = "time") -> list[float]:
    """Quantiles of a Beta(a, b) law (Beta Sampling is All You Need, 2024), of the time step or, as in diffusers, of σ̂."""
    try:
        from scipy.special import betaincinv
    except ImportError:
        raise ImportError("grid='beta' needs scipy: pip install scipy") from None
    low, high = process.span
    first, last, inner = min(start, high), max(end, low), n if end < low else n + 1
    quantiles = torch.as_tensor(betaincinv(a, b, 1 - np.arange(inner) / max(1, inner - 1)))
    if of == "time":
        nodes = (last + (first - last) * quantiles).tolist()
    elif of == "sigma":
        top, bottom = process.noise_ratio(first), process.noise_ratio(last)
        nodes = process.time(-(bottom + (top - bottom) * quantiles).log()).tolist()
    else:
        raise ValueError(f"of={of!r} must be 'time' or 'sigma'")
    return _with_ends(nodes, start, end, end < low)


# σ̂ of Align Your Steps, 2024, for 10 steps; 0 is appended.
AYS = {
    "ays-sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def align_your_steps(process: Process, n: int, start: float, end: float, table: str = "ays-sd") -> list[float]:
    """The published nodes; for n ≠ 10 log σ̂ is interpolated linearly in the index (Align Your Steps, 2024).

    Nodes above the start are dropped by rescaling: the first node is the start, whatever its σ̂.
    """
    known = np.log(AYS[table])
    at = np.interp(np.linspace(0, len(known) - 1, n), np.arange(len(known)), known)
    nodes = process.time(-torch.as_tensor(at)).tolist()
    keep = [t for t in nodes[1:] if end < t < start]
    if len(keep) < n - 1:
        raise ValueError(f"grid={table!r} has only {len(keep)} nodes between t = {start:g} and {end:g}; {n} steps need {n - 1}")
    return [start, *keep, end]


def _labels(process: Process, start: float) -> tuple[int, int]:
    levels = label_count(process)
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
    "logistic": logistic,
    "karras": karras,
    "exponential": logsnr,
    "polyexponential": polyexponential,
    "edm-vp": edm_vp,
    "edm-ve": logsnr,  # σ̂² geometric, the VE grid in EDM's table 1
    "edm-iddpm": edm_iddpm,
    "beta": beta,
    **{name: partial(align_your_steps, table=name) for name in AYS},
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
        key = "logistic" if grid.lower() == "auto" else grid.lower().replace("_", "-")
        if key not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}; known: auto, {', '.join(GRIDS)}")
        grid = GRIDS[key]
    if callable(grid):
        known = list(inspect.signature(grid).parameters)[4:]
        if unknown := [key for key in options if key not in known]:
            raise ValueError(f"this grid has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
        nodes = [float(t) for t in grid(process, n, float(start), float(end), **options)]
    else:
        nodes = [float(t) for t in grid]
    if any(b >= a for a, b in pairwise(nodes)):
        raise ValueError("the grid must decrease strictly, from noise to data")
    if len(nodes) != n + 1:
        raise ValueError(f"the grid has {len(nodes)} nodes; {n} steps need {n + 1}")
    return nodes
