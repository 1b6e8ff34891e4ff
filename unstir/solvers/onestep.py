"""One-step solvers. All first-order steps, deterministic or stochastic, are one number ρ in [0, 1]:

    X' = ρ (σ'/σ) X + (α' − ρ (σ'/σ) α) D + σ' √(1 − ρ²) z

ρ = 1 is the probability-flow ODE (DDIM), ρ = κ = σ̂'/σ̂ the posterior of DDPM, ρ = 0 renoising.
The mean lands on α' for constant data and the variance on σ'² whatever ρ is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..plan.row import Row
from .levels import Levels
from .registry import compiler


def one_number(levels: Levels, rho: Callable[[int, float], float]) -> Iterator[Row]:
    """The rows of ρ_i = rho(i, κ_i), see the module."""
    for i in range(levels.n):
        r = rho(i, levels.kappa(i))
        if not 0 <= r <= 1:
            raise ValueError(f"step {i}: ρ = {r:g} must lie in [0, 1]; the noise variance would be negative")
        a = r * levels.sigma[i + 1] / levels.sigma[i]
        b = levels.alpha[i + 1] - a * levels.alpha[i]
        yield Row(t=levels.times[i], to=levels.times[i + 1], a=a, b={0: b}, c=levels.sigma[i + 1] * math.sqrt(1 - r * r))


def non_negative(**options: float) -> None:
    """ValueError for an option that is negative or not a number."""
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0")


@compiler
def ddim(levels: Levels, eta: float = 0.0) -> Iterator[Row]:
    """DDIM-η, which is also Euler's method in (x/α, σ/α) and k-diffusion's ancestral step.

    ρ² = 1 − min(1, η² (1 − κ²)): η = 0 is deterministic, η = 1 adds the variance of the posterior.
    """
    non_negative(eta=eta)
    # 1 − η² + η²κ² is the same without cancellation at small κ.
    return one_number(levels, lambda i, kappa: math.sqrt(max(0.0, (1 - eta**2) + (eta * kappa) ** 2)))


@compiler
def ddpm(levels: Levels, variance: str = "small") -> Iterator[Row]:
    """Ancestral sampling, ρ = κ, noise of the posterior ("small", σ'√(1 − κ²)) or of the forward step ("large", σ√(1 − κ²)).

    "large" leaves the marginals (it overshoots σ'), as published; it adds no noise in a step to σ = 0.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance={variance!r} must be 'small' or 'large'")
    for i, row in enumerate(one_number(levels, lambda i, kappa: kappa)):
        if variance == "large" and levels.sigma[i + 1] > 0:
            c = levels.sigma[i] * math.sqrt(1 - levels.kappa(i) ** 2)
            yield Row(t=row.t, to=row.to, a=row.a, b=row.b, c=c)
        else:
            yield row


@compiler
def renoise(levels: Levels) -> Iterator[Row]:
    """ρ = 0: throw the state away and stir the prediction again, X' = α' D + σ' z (does not converge as N → ∞)."""
    return one_number(levels, lambda i, kappa: 0.0)


@compiler
def sde(levels: Levels, eta: float = 1.0) -> Iterator[Row]:
    """The exponential stochastic step, ρ = κ^η: η = 0 is DDIM, η = 1 is DDPM, larger η churns more."""
    non_negative(eta=eta)
    return one_number(levels, lambda i, kappa: kappa**eta if eta else 1.0)
