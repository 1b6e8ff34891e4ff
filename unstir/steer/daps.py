"""DAPS: rows whose x0 is drawn from p(x0 | x_t, y), so that errors of early rows are not carried on.

    x̃0   the end of a run of `ode` Euler steps from x_t, on levels that fall from σ̂ to 0.01 with ρ = 7
    x0   ~ exp(−‖x0 − x̃0‖²/2r² − ‖A x0 − y‖²/2σ_y²)
    x'   = α' x0 + σ' z, by the hook `Renoise`

(Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, 2025.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..process.base import expand
from .operators import is_linear, prox
from .operators.derive import vjp
from .shifts import Seen, Shift

LOWEST, HIGHEST, RHO = 0.01, 100.0, 7.0  # the levels σ̂ of the inner run


def daps(noise: float, ode: int = 5, data_std: float = 1.0, langevin: int = 0, rate: float = 0.2) -> Shift:
    """D* = x0, drawn as in the module.

    ode: calls of the inner run, the first of which is the row's own; 1 takes x̃0 = D.
    data_std: σ_d of r² = σ_d² σ̂²/(σ_d² + σ̂²). With ode = 1 and data of covariance σ_d² I the method is exact. A run
        of more steps ends at a draw of p(x0 | x_t), whose spread is then counted twice: unseen parts come out wider.
        (Published is r = σ̂ with a Langevin run too short to reach its law.)
    langevin: 0 draws x0 exactly, for a linear A: x0 = prox(x̃0 + r z, y + σ_y z'). Else the number of steps
        x0 ← x0 − h ∇ + √(2h) z with h = rate/(1/r² + 1/σ_y²), for ‖∂A‖ ≤ 1; 100 as published where A is not linear.
    """
    for name, value, least in (("ode", ode, 1), ("langevin", langevin, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 4000:
            raise ValueError(f"{name}={value!r} must be an integer between {least} and 4000")
    if not 0 < rate < 2:
        raise ValueError(f"rate={rate} must lie in (0, 2), beyond which Langevin steps diverge")

    def shift(seen: Seen) -> Tensor:
        exact = is_linear(seen.operator) and not langevin
        if not exact and noise == 0:
            raise ValueError("noise=0, by which daps divides with Langevin steps; give noise=, such as 0.02")
        with torch.no_grad():
            center, r = inner_run(seen, ode), expand(seen.proxy(data_std).sqrt(), seen.data)
            if exact:
                drawn = _draw(seen, center, r, noise, data_std)
            else:
                drawn = _langevin(seen, center, r, noise, langevin or 100, rate)
        return drawn - seen.data

    return shift


def inner_run(seen: Seen, steps: int) -> Tensor:
    """x̃0: Euler's method from x_t, x̂' = D + (σ̂'/σ̂)(x̂ − D); the step to σ̂ = 0 returns the last D."""
    level = (seen.sigma / seen.alpha).clamp_max(HIGHEST)
    low = torch.minimum(torch.full_like(level, LOWEST), level / 10)
    data = seen.data
    epsilon = (seen.x - expand(seen.alpha, data) * data) / expand(seen.sigma, data)  # finite where x̂ = x/α is not
    for k in range(1, steps):
        level_k = (level ** (1 / RHO) + k / (steps - 1) * (low ** (1 / RHO) - level ** (1 / RHO))) ** RHO
        hat = data + expand(level_k, data) * epsilon
        data = seen.again(hat, level_k)
        epsilon = (hat - data) / expand(level_k, data)
    return data


def _draw(seen: Seen, center: Tensor, r: Tensor, noise: float, data_std: float) -> Tensor:
    """A draw of N(x̃0, r² I) given y: perturb both, then solve."""
    z = center + r * seen.noise(0, center)
    y = seen.y.expand(len(center), *seen.y.shape[1:])
    if noise:
        y = y + noise * seen.noise(1, y)
    return prox(seen.operator, z, y, seen.proxy(data_std) / noise**2 if noise else math.inf)


def _langevin(seen: Seen, center: Tensor, r: Tensor, noise: float, steps: int, rate: float) -> Tensor:
    x, h = center, rate / (1 / r**2 + 1 / noise**2)
    for k in range(steps):
        downhill = (center - x) / r**2 + vjp(seen.operator.A, x, (seen.y - seen.operator.A(x)) / noise**2)
        x = x + h * downhill + (2 * h).sqrt() * seen.noise(2 + k, x)
    return x
