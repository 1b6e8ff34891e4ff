"""Level densities p(λ): which noise levels training visits, and how often.

A density is its pair (quantile, cdf) on the process's own clock: t = quantile(process, u) with u
uniform on (0, 1), u = cdf(process, t), t increasing in u. Any u will do, also stratified ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..process import Process
from ..process.base import float64
from ._named import named

# Training keeps to |λ| ≤ 12 (σ̂ from 6e-6 to 1.6e5), where every weight and target is a finite
# float64. A level nearer to σ = 0 or α = 0 teaches the network nothing else.
LIMIT = 12.0


class Levels(NamedTuple):
    """A density of levels, see the module."""

    quantile: Callable[[Process, Tensor], Tensor]
    cdf: Callable[[Process, Tensor], Tensor]


def _normal(mean: float, std: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Quantile and cdf of N(mean, std²)."""
    if not (std > 0 and math.isfinite(mean)):
        raise ValueError(f"mean={mean} and std={std} of a level density must be finite, std > 0")
    return (lambda u: mean + std * torch.special.ndtri(u)), (lambda x: torch.special.ndtr((x - mean) / std))


def uniform() -> Levels:
    """t = u: uniform on the clock of the process (the default)."""
    return Levels(lambda process, u: u, lambda process, t: t)


def uniform_logsnr() -> Levels:
    """λ uniform between the ends of the process's `span`."""

    def ends(process: Process) -> tuple[Tensor, Tensor]:
        high, low = process.logsnr(float64(process.span)).clamp(-LIMIT, LIMIT)
        return high, low

    def quantile(process: Process, u: Tensor) -> Tensor:
        high, low = ends(process)
        return process.time(high + u * (low - high))

    def cdf(process: Process, t: Tensor) -> Tensor:
        high, low = ends(process)
        return ((process.logsnr(t) - high) / (low - high)).clamp(0, 1)

    return Levels(quantile, cdf)


def lognormal(mean: float = -1.2, std: float = 1.2) -> Levels:
    """log σ̂ ~ N(mean, std²), σ̂ = σ/α (Elucidating the Design Space of Diffusion-Based Generative Models, 2022)."""
    quantile, cdf = _normal(mean, std)
    return Levels(lambda process, u: process.time(-quantile(u)), lambda process, t: cdf(-process.logsnr(t)))


def logitnormal(mean: float = 0.0, std: float = 1.0) -> Levels:
    """logit t ~ N(mean, std²) (Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024)."""
    quantile, cdf = _normal(mean, std)
    return Levels(lambda process, u: torch.sigmoid(quantile(u)), lambda process, t: cdf(torch.logit(t)))


def cosmap() -> Levels:
    """t = 1 − 1/(1 + tan(πu/2)) (Scaling Rectified Flow Transformers …, 2024): the cosine schedule's λ on a flow's clock."""
    return Levels(
        lambda process, u: 1 - 1 / (1 + torch.tan(0.5 * math.pi * u)),
        lambda process, t: 2 / math.pi * torch.atan(t / (1 - t)),
    )


LEVELS: dict[str, Callable[..., Levels]] = {
    "uniform": uniform,
    "uniform-logsnr": uniform_logsnr,
    "lognormal": lognormal,
    "logitnormal": logitnormal,
    "cosmap": cosmap,
}


def levels(text: str) -> Levels:
    """The level density named by `text`, for instance "lognormal" or "lognormal:-0.4,1.0"."""
    return named("levels", text, LEVELS)


def times(density: Levels, process: Process, u: Tensor) -> Tensor:
    """t = quantile(u), kept where |λ| ≤ 12; float64."""
    clean, stirred = process.time(LIMIT), process.time(-LIMIT)
    return density.quantile(process, float64(u)).clamp(float(clean), float(stirred))


def stratified(batch: int, u: float) -> Tensor:
    """u_i = (i + u)/B: one uniform number for a whole batch, one level in each of B equal strata.

    Every u_i is uniform, so means are unbiased; their variance is lower than with independent
    levels (Variational Diffusion Models, 2021).
    """
    return (torch.arange(batch, dtype=torch.float64) + u) / batch


def density(levels: Levels, process: Process, t: Tensor) -> Tensor:
    """p(λ) = |du/dλ| = (du/dt)/|dλ/dt| at λ(t), for t inside (0, 1)."""
    inner = float64(t).detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(levels.cdf(process, inner).sum(), inner)
        (speed,) = torch.autograd.grad(process.logsnr(inner).sum(), inner)
    return slope / speed.abs()
