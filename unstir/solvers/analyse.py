"""What a plan or a solver is like, from its numbers alone: order, stability, amplification.

Stability is looked at on linear test equations with constant steps, in the variable in which the
method is autonomous: σ̂ ("rho", dx̂/dσ̂ = μ x̂, methods on ε̂) or λ ("lambda", dx̂/dλ = ζ x̂,
exponential methods). With step h a run is stable for those z = μh, ζh for which it does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..denoiser.exact import GaussianMixture
from ..plan.plan import Plan
from ..plan.sample import sample
from ..process import EDM, Process
from .grids import make_grid
from .registry import compile_plan
from .transforms import recipe

ROWS = 160  # steps over which growth is measured


def linear_response(plan: Plan, gain: Callable[[float, float], Any]) -> list[np.ndarray]:
    """States X_1 … X_N of a plan from X_0 = 1 with D = gain(α, σ) X; gain may return complex arrays."""
    x: Any = np.asarray(1.0 + 0j)
    history: dict[int, Any] = {}
    out = []
    for i, row in enumerate(plan.rows):
        if row.evaluate:
            g = gain(float(plan.process.alpha(row.t)), float(plan.process.sigma(row.t)))
            history[i] = row.p * x + row.q * g * x + (row.s * history[i - 1] if float(row.s) else 0)
        x = row.a * x + sum(w * history[i - lag] for lag, w in row.b.items())
        out.append(np.asarray(x))
    return out


def growth(solver: str, z: Any, variable: str = "rho", **options: Any) -> np.ndarray:
    """Growth factor per step of a solver on the test equation with h·slope = z (real or complex array)."""
    z = np.asarray(z, dtype=complex)
    process = EDM(1e-9, 1e9)
    if variable == "rho":
        h = 1e-3  # the test equation does not see where on the σ̂ axis it is run
        ratios = [1.0 - h * i for i in range(ROWS + 1)]

        def gain(alpha: float, sigma: float) -> Any:
            return (1 - (sigma / alpha) * z / -h) / alpha
    elif variable == "lambda":
        h = 0.05
        ratios = [math.exp(-h * i) for i in range(ROWS + 1)]

        def gain(alpha: float, sigma: float) -> Any:
            return (1 + z / h) / alpha
    else:
        raise ValueError(f"variable={variable!r} must be 'rho' or 'lambda'")
    times = process.time(-torch.tensor(ratios, dtype=torch.float64).log()).tolist()
    plan = compile_plan(solver, process, times, **options)
    ends = [i for i, row in enumerate(plan.rows) if row.boundary]
    with np.errstate(all="ignore"):
        states = linear_response(plan, gain)
        late, early = np.abs(states[ends[-1]]), np.abs(states[ends[-1 - ROWS // 2]])
        rate = np.exp((np.log(np.maximum(late, 1e-300)) - np.log(np.maximum(early, 1e-300))) / (ROWS // 2))
    return np.where(np.isfinite(rate), rate, np.inf)


def stability_interval(solver: str, variable: str = "rho", **options: Any) -> float:
    """B such that z in (−B, 0) is stable on the real axis; 0 if nothing is, at most 50."""
    low, high = 0.0, 50.0
    for _ in range(3):  # the first unstable point of a grid, then of a finer one before it
        z = np.linspace(low, high, 200)[1:]
        unstable = growth(solver, -z, variable, **options) > 1 + 1e-3
        if not unstable.any():
            return high
        first = int(np.argmax(unstable))
        low, high = (z[first - 1] if first else low), z[first]
    return float(high)


def stability_region(
    solver: str, variable: str = "rho", real: tuple[float, float] = (-4, 1), imag: float = 3, points: int = 121, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Re z, Im z, growth) on a grid of the complex plane; the region is where growth ≤ 1."""
    re, im = np.meshgrid(np.linspace(*real, points), np.linspace(-imag, imag, points))
    return re, im, growth(solver, re + 1j * im, variable, **options)


def measured_order(
    solver: str, process: Process, steps: int = 80, end: float = 0.01, grid: str = "logsnr", **options: Any
) -> float:
    """log₂(e_N/e_2N) on a 1-D mixture of three Gaussians, against 8N third-order steps; deterministic solvers only."""
    model = GaussianMixture(process, [0.25, 0.45, 0.30], [-1.3, 0.2, 1.5], [0.35**2, 0.25**2, 0.5**2])
    start = process.span[1]
    x = float(process.sigma(start)) * torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]

    def run(name: str, n: int, **more: Any) -> torch.Tensor:
        return sample(model, compile_plan(name, process, make_grid(grid, process, n, start, end), **more), x=x)

    reference = run("dpmpp-3m", 16 * steps)
    errors = [float((run(solver, n, **options) - reference).abs().mean()) for n in (steps, 2 * steps)]
    return math.log2(errors[0] / errors[1])


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found; print it, or plot it with `unstir.evaluate.plan_plot`."""

    name: str
    nfe: int
    order: float | None
    measured_order: float | None
    invariants: tuple[float, float]
    stability: dict[str, float]
    row_gain: list[float]

    def __str__(self) -> str:
        measured = "" if self.measured_order is None else f" (measured {self.measured_order:.2f})"
        stable = ", ".join(f"{v}: ({-b:.3g}, 0)" for v, b in self.stability.items()) or "not known"
        return "\n".join(
            [
                f"{self.name}: {self.nfe} calls, order {self.order}{measured}",
                f"invariants  I1 {self.invariants[0]:.1e}, I2 {self.invariants[1]:.1e}",
                f"stable on the real axis  {stable}",
                f"amplification per row, |a| + Σ|b|  {' '.join(f'{g:.2f}' for g in self.row_gain)}",
            ]
        )


def analyse(plan: Plan, order: bool = True) -> Analysis:
    """Order, stability, invariants and amplification per row; order=False skips the runs that measure it.

    Order and stability belong to the solver, so they need a plan made by `unstir.plan`.
    """
    stability: dict[str, float] = {}
    measured = None
    if "solver" in plan.options:
        solver, _, options = recipe(plan)
        if not plan.stochastic:
            stability = {v: stability_interval(solver, v, **options) for v in ("rho", "lambda")}
            measured = measured_order(solver, plan.process, **options) if order else None
    one, two = plan.invariants()
    gains = [abs(float(row.a)) + sum(abs(float(w)) for w in row.b.values()) for row in plan.rows]
    return Analysis(plan.name, len(plan), plan.order, measured, (max(one), max(two)), stability, gains)
