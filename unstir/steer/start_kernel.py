"""Starting a plan anywhere: from an estimate of the picture, stirred up to a time t and brought back.

A restorer h ≈ x0 that blurs, a sketch, a coarse sample: what is wrong with it drowns in noise at some level, and from
there an unconditional model makes it real. The start kernel is the forward law with h in the place of x0,

    x_t ~ N(α h + β y, σ² + α² S²),        S the standard deviation of h's own error, 0 if it is taken as it is,

and the tail of any plan does the rest. Against the right start it is off by KL = ½ (α/σ)² ‖x0 − h‖²: the mean error
shrinks by α ("contraction") while the noise grows. A larger t gives realism, a smaller one fidelity to h.
(DifFace: Blind Face Restoration with Diffused Error Contraction, 2024; SDEdit, 2022, is h = the input itself.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._random import PRIOR, sample_keys
from ..plan import Plan, sample
from ..process import Process
from ..process.base import expand


class Start(NamedTuple):
    """The tail of a plan, and the state that it starts from: unstir.sample(model, start.plan, x=start.x)."""

    plan: Plan
    x: Tensor


def start(
    plan: Plan,
    estimate: Tensor,
    t: float,
    *,
    spread: float | Tensor = 0.0,
    anchor: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
) -> Start:
    """The part of `plan` below time t, compiled anew on its nodes, and a draw of the start kernel round `estimate` (B, *).

    t: in (0, start of the plan]; it becomes the first node, where the network is called first.
    spread: S, a number or a tensor that broadcasts over the estimate (a frequency or a region that is less certain).
    anchor: y of an anchored process.   seed, index: as in `unstir.sample`, whose start noise this is.

    Raises ValueError for a time outside the plan, a negative spread, and a plan that cannot be compiled again.
    """
    if not (isinstance(estimate, Tensor) and estimate.is_floating_point() and estimate.ndim >= 1):
        raise TypeError("estimate must be a floating-point tensor (B, *) in the units of the model's data")
    if bool((torch.as_tensor(spread) < 0).any()):
        raise ValueError("spread must be at least 0, the standard deviation of the estimate's own error")
    process, tail = plan.process, plan.tail(t)
    keys = sample_keys(len(estimate), seed, index)
    z = process.noise(keys, estimate.shape[1:], PRIOR, dtype=estimate.dtype, device=estimate.device)
    mean = expand(process.alpha(t), estimate) * estimate
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    if isinstance(spread, Tensor):
        level: float | Tensor = (sigma**2 + (alpha * spread.to(estimate)) ** 2).sqrt()
    else:
        level = math.hypot(sigma, alpha * spread)
    return Start(tail, process.uncentre(mean + level * z, t, anchor))


def start_divergence(process: Process, t: float, error: float) -> float:
    """KL(start kernel ‖ forward law) = ½ (α/σ)² ‖x0 − h‖² at time t; `error` is ‖x0 − h‖² summed over the values."""
    return 0.5 * float(torch.exp(2 * process.logsnr(t))) * error


def start_time(process: Process, error: float, kl: float) -> float:
    """The smallest t at which the start kernel is within `kl` nats of the right one: λ(t) = ½ log(2 kl/‖x0 − h‖²).

    error: ‖x0 − h‖² summed over the values of a sample, for instance its mean on validation pairs.
    """
    for name, value in {"error": error, "kl": kl}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number > 0")
    return float(process.time(0.5 * math.log(2 * kl / error)))


def search_start_time(
    model: Any,
    plan: Plan,
    estimates: Tensor,
    truth: Tensor,
    score: Callable[[Tensor, Tensor], float],
    times: Sequence[float],
    *,
    seed: int = 0,
    **cond: Any,
) -> tuple[float, Mapping[float, float]]:
    """The best of `times` on validation pairs, and {t: score}: restores `estimates` from every t and scores it.

    score: (restored, truth), both (B, *) -> a number, smaller is better: a distance of distributions for realism, minus
        PSNR for fidelity, or what you trade between them.
    """
    if len(times) < 1 or estimates.shape != truth.shape:
        raise ValueError(
            f"times needs at least one entry, and estimates {tuple(estimates.shape)} the shape of truth {tuple(truth.shape)}"
        )
    table = {}
    for t in times:
        tail, x = start(plan, estimates, float(t), seed=seed)
        table[float(t)] = float(score(sample(model, tail, x=x, seed=seed, **cond), truth))
    return min(table, key=lambda t: table[t]), table
