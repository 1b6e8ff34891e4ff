"""Time shift: tell the network the noise level that the state really has, read off its variance.

With few steps the states of a sampler drift off the training marginals. For large d the variance over the
d pixels of one sample is nearly that of its marginal,

    v(x) ≈ V(τ) = α(τ)² V₀ + σ(τ)²,      V₀ = mean variance over the pixels of clean data,

so x is best explained by the time τ with V(τ) = v(x), searched in a window round the nominal t. Only the network
sees τ: the rows keep their coefficients, so any solver and any plan can be used.
(Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps, 2024.)
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser.inner import call, evaluate
from ..process import Process, Table
from ..process.base import expand, float64

VARIANCES, READS = ("full", "noise"), ("noise", "data")


@lru_cache(maxsize=32)
def _table(process: Process, x0_var: float) -> Tensor:
    """V at the levels t_n = (n + 1)/T. ValueError unless it increases: otherwise it says nothing of the time."""
    count = process.levels if isinstance(process, Table) else 1000
    t = (torch.arange(count, dtype=torch.float64) + 1) / count
    table = process.alpha(t) ** 2 * x0_var + process.sigma(t) ** 2
    if not bool((table.diff() > 0).all()):
        raise ValueError(
            f"with x0_var={x0_var:g} the variance of x_t does not grow with t, so it carries no time information; "
            "rescale the data so that x0_var is well below the variance of the prior"
        )
    return table


def matched_time(x: Tensor, t: Tensor | float, process: Process, window: int, x0_var: float = 0.0) -> Tensor:
    """The level τ = (n + 1)/T of a T-level table (T = 1000 unless the process has its own) with V(τ) nearest to v(x).

    x: (B, *); v is the unbiased variance over all values of a sample. The search is over the levels within
    window/2 of t, both ends of the table clamped. Returns float64 times (B,).
    """
    table = _table(process, x0_var).to(x.device)
    v = x.flatten(1).double().var(1)
    nearest = torch.searchsorted((table[1:] + table[:-1]) / 2, v)
    here = float64(t).to(x.device) * len(table) - 1
    low, high = (here - window // 2).ceil(), (here + window // 2).floor()
    # V increases, so the best level of the window is the best of all, clamped to it.
    n = torch.minimum(torch.maximum(nearest.double(), low), high).clamp(0, len(table) - 1)
    return (n + 1) / len(table)


def time_shift(
    model: Any, window: int, cutoff: int = 300, variance: str = "full", x0_var: float | None = None, read: str = "noise"
) -> TimeShift:
    """`model` with the network evaluated at the matched time of each sample instead of t.

    window: width of the search in levels; wider for fewer steps (200 for 5 … 50 steps on small pictures).
    cutoff: levels at and below it are left alone (published: 200 … 400); so is the first row of a run.
    variance: "full" matches V(τ) and needs x0_var = V₀; "noise" matches σ² alone, as the published code does, which is
        right only where α² V₀ is negligible.
    read: what of the network's answer at τ is kept, its "noise" (as published: D = (x − σ_t ε̂)/α_t) or its "data".
    """
    if not (isinstance(window, int) and window >= 0 and window % 2 == 0):
        raise ValueError(f"window={window!r} must be an even number of levels, at least 0")
    if variance not in VARIANCES or read not in READS:
        raise ValueError(f"variance={variance!r} must be one of {VARIANCES} and read={read!r} one of {READS}")
    if variance == "full" and not (x0_var is not None and x0_var > 0):
        raise ValueError(f"x0_var={x0_var} must be > 0 for variance='full'; estimate it with data.flatten(1).var(1).mean()")
    v0 = float(x0_var) if variance == "full" and x0_var is not None else 0.0
    count = len(_table(model.process, v0))
    if not 0 <= cutoff < count:
        raise ValueError(f"cutoff={cutoff} must lie in 0 … {count - 1}, the levels of the process")
    return TimeShift(model, window, cutoff, v0, read, count)


class TimeShift(nn.Module):
    """See `time_shift`."""

    def __init__(self, model: Any, window: int, cutoff: int, x0_var: float, read: str, levels: int) -> None:
        super().__init__()
        self.model, self.process, self.shape = model, model.process, getattr(model, "shape", None)
        self.window, self.cutoff, self.x0_var, self.read, self.levels = window, cutoff, x0_var, read, levels

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Any:
        if self.window == 0 or (ctx is not None and ctx.first):
            return call(self.model, x, t, ctx, cond)
        if x[0].numel() < 64:
            warnings.warn(
                f"a sample has {x[0].numel()} values: its variance is known to ±{(2 / x[0].numel()) ** 0.5:.0%} only",
                stacklevel=2,
            )
        here = float64(t).to(x.device).expand(x.shape[0])
        active = here * self.levels - 1 > self.cutoff
        if not bool(active.any()):
            return call(self.model, x, t, ctx, cond)
        tau = torch.where(active, matched_time(x, here, self.process, self.window, self.x0_var), here)
        data = evaluate(self.model, x, tau, ctx, cond)
        if self.read == "data":
            return data
        # ε̂ = (x − α_τ D)/σ_τ, read at t:  D' = (x − σ_t ε̂)/α_t = x (1 − r)/α_t + D r α_τ/α_t with r = σ_t/σ_τ.
        r = self.process.sigma(here) / self.process.sigma(tau)
        alpha = self.process.alpha(here)
        return expand((1 - r) / alpha, x) * x + expand(r * self.process.alpha(tau) / alpha, x) * data
