"""Noise that more steps refine: the rows of any plan read one Brownian path.

In the clock u = e^{2λ} the scaled state y = e^λ x/σ of the exact reverse diffusion moves as dy = … + dB(u), so a row from u to
u' adds B(u') − B(u), and its unit noise is

    z = (B(u') − B(u))/√(u' − u)

The path is a function of (seed, sample) alone: the same picture with 20 steps and with 40, up to the error of the solver.
A Brownian motion on [0, ∞) is a bridge b on [0, 1],

    B(u) = (1 + u) b(s),   s = u/(1 + u)

and b is found by halving: at the middle of an interval of length ℓ it is the mean of both ends plus √ℓ/2 times a normal
number that belongs to (seed, sample, interval) (the Brownian bridge; Scalable Gradients for Stochastic Differential Equations,
2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._random import child, draw, sample_keys
from .plan import Plan

DEPTH = 44  # halvings: s is resolved to 6e-14, λ to 1e-3 at λ = 12


def brownian(
    plan: Plan,
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[int], Tensor]:
    """row -> z (B, *) for `unstir.sample(model, plan, shape=shape, seed=seed, noise=brownian(plan, shape, seed=seed))`.

    plan: every noisy row leads from one solution value to the next (no inner stages), towards smaller noise.
    seed, index: as in `unstir.sample`; a sample does not depend on its batch.

    Values are float32, sums float64. A run of N noisy rows draws about 2 · `DEPTH` · N normal tensors.

    Raises ValueError for a plan with noise in inner stages.
    """
    keys = sample_keys(int(shape[0]), seed, index)
    for i, row in enumerate(plan.rows):
        inner = not row.boundary or (i > 0 and not plan.rows[i - 1].boundary)
        if row.noisy and inner:
            raise ValueError(f"row {i} of {plan.name} adds noise in an inner stage; take a solver whose rows are whole steps")
    ends: dict[float, Tensor] = {}

    def at(t: float) -> Tensor:
        """b at s(t), remembered for the next row, which begins there."""
        if t not in ends:
            if len(ends) > 1:
                ends.pop(next(iter(ends)))
            ends[t] = bridge(keys, shape[1:], _place(plan, t))
        return ends[t]

    def noise(number: int) -> Tensor:
        row = plan.rows[number - plan.offset]
        u, v = (_clock(plan, t) for t in (row.t, row.to))
        # B(v) − B(u) over √(v − u), with 1 + u = 1/(1 − s) taken out, so that nothing overflows.
        ratio = (1 + v) / (1 + u)
        z = (ratio * at(row.to) - at(row.t)) * ((1 + u) / math.sqrt(v - u))
        return z.float().to(device)

    return noise


def bridge(keys: Sequence[int], shape: Sequence[int], s: float) -> Tensor:
    """b(s) of shape (len(keys), *shape), float64; b(0) = b(1) = 0, variance s (1 − s)."""
    low, high, place = 0.0, 1.0, 0
    left = right = torch.zeros(len(keys), *shape, dtype=torch.float64)
    for level in range(DEPTH):
        if s in (low, high):
            break
        middle = (low + high) / 2
        z = draw([child(key, _STREAM, level, place) for key in keys], shape, 0).double()
        value = (left + right) / 2 + math.sqrt(high - low) / 2 * z
        if s < middle:
            high, right, place = middle, value, 2 * place
        else:
            low, left, place = middle, value, 2 * place + 1
    share = (s - low) / (high - low)
    return left + share * (right - left)


_STREAM = 0xB407


def _clock(plan: Any, t: float) -> float:
    """u = e^{2λ(t)}."""
    return math.exp(2 * float(plan.process.logsnr(t)))


def _place(plan: Any, t: float) -> float:
    """s = u/(1 + u) = 1/(1 + e^{−2λ})."""
    return 1 / (1 + math.exp(-2 * float(plan.process.logsnr(t))))
