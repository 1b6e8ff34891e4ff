"""Posterior methods as shifts D* − D of the data prediction; `posterior` makes denoisers of them.

In hats, x̂ = x/α, σ̂ = σ/α, with D = D(x, t), J = ∂D/∂x̂ = α ∂D/∂x (Tweedie: Cov[x0 | x] = σ̂² J) and the
proxy r² = σ_d² σ̂²/(σ_d² + σ̂²) of that covariance. All but two are made from one shift towards the data,

    Δ(γ) = argmin_u γ/2 ‖A u − (y − A D)‖² + ½ ‖u‖² = (1/γ + AᵀA)⁻¹ Aᵀ (y − A D),      Δ(∞) = A⁺ (y − A D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..process.base import expand, float64
from .operators import conjugate_gradients, is_linear, norm, pinv, prox
from .operators.derive import adjoint, vjp


@dataclass
class Seen:
    """What a method knows in one row."""

    operator: Any
    y: Tensor
    x: Tensor  # the state, which `data` was computed from
    data: Tensor  # D; with a graph back to x if the method differentiates
    alpha: Tensor  # α and σ at t, float64, a number or (B,)
    sigma: Tensor
    to: Tensor  # σ̂ of the next state (of this one, where no row is known)
    again: Callable[[Tensor, Tensor], Tensor]  # (x, σ̂) -> D: one more call of the model
    noise: Callable[[int, Tensor], Tensor]  # (k, like) -> the k-th normal of this row, from the samples' own streams

    @property
    def residual(self) -> Tensor:
        """y − A D."""
        return self.y - self.operator.A(self.data)

    def proxy(self, data_std: float) -> Tensor:
        """r² = σ_d² σ²/(α² σ_d² + σ²), finite at α = 0."""
        return (self.sigma * data_std) ** 2 / ((self.alpha * data_std) ** 2 + self.sigma**2)

    def slope(self, v: Tensor) -> Tensor:
        """(∂D/∂x)ᵀ v, one backward call."""
        return torch.autograd.grad(self.data, self.x, v, retain_graph=True)[0]

    def pulled(self, v: Tensor, factor: Tensor, blank: Tensor | float, below: float = math.inf) -> Tensor:
        """factor · (∂D/∂x)ᵀ v where σ̂ ≤ below, else blank · v.

        So it is always at α = 0, where D does not depend on x and factor is infinite: blank is their limit.
        """
        known = (self.alpha > 0) & (self.sigma <= below * self.alpha)
        rough = expand(float64(blank), v) * v
        if not bool(known.any()):
            return rough
        return torch.where(expand(known.double(), v).bool(), expand(factor, v) * self.slope(v), rough)

    def fit(self, gamma: Any) -> Tensor:
        """Δ(γ); for an operator that is not linear h⁺(y) − h⁺(h(D))."""
        if is_linear(self.operator):
            return prox(self.operator, torch.zeros_like(self.data), self.residual, gamma)
        return self.operator.A_dagger(self.y) - self.operator.A_dagger(self.operator.A(self.data))


Shift = Callable[[Seen], Tensor]  # D* − D


def ddnm(noise: float) -> Shift:
    """D* = D + A⁺ (y − A D) (Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, 2023)."""
    return lambda seen: seen.fit(math.inf)


def diffpir(noise: float, lam: float = 7.0, data_std: float | None = None) -> Shift:
    """D* = argmin ‖y − A x‖² + ρ ‖x − D‖² = D + Δ(1/ρ),  ρ = λ σ_y²/σ̂².

    lam: λ, 1 … 25. data_std: σ_d; then ρ = σ_y²/r², the exact posterior mean of Gaussian data of
    covariance σ_d² I. The published noise, c = √ζ σ', belongs to the plan.
    (Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023.)
    """
    if not lam > 0:
        raise ValueError(f"lam={lam} must be > 0")

    def shift(seen: Seen) -> Tensor:
        variance = seen.proxy(data_std) if data_std else seen.sigma**2 / (seen.alpha**2 * lam)
        return seen.fit(_ratio(variance, noise))

    return shift


def pigdm(noise: float, data_std: float = 1.0) -> Shift:
    """D* = D + σ̂² Jᵀ Aᵀ (r² A Aᵀ + σ_y²)⁻¹ (y − A D) = D + (σ̂²/r²) Jᵀ Δ(r²/σ_y²).

    data_std: σ_d of the proxy r², the spread of the data round its mean. Exact for Gaussian data of
    covariance σ_d² I. (Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023.)
    """

    def shift(seen: Seen) -> Tensor:
        towards = seen.fit(_ratio(seen.proxy(data_std), noise))
        factor = (seen.alpha**2 + (seen.sigma / data_std) ** 2) / seen.alpha  # (σ̂²/r²) J = factor · ∂D/∂x
        return seen.pulled(towards, factor, 1.0)

    return shift


def tmpd(noise: float, data_std: float = 1.0, steps: int = 5, below: float = math.inf) -> Shift:
    """D* = D + C Aᵀ (A C Aᵀ + σ_y²)⁻¹ (y − A D),  C = σ̂² J, by conjugate gradients.

    steps: of the solver, one backward call each, and one more. Exact for every Gaussian, with as many
    steps as there are measurements.
    below: where σ̂ is larger, r² I with σ_d = data_std stands for C and costs no backward call. σ̂² multiplies
    every error of a trained network's Jacobian, so networks need it.
    (Tweedie Moment Projected Diffusions for Inverse Problems, 2023.)
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 1")
    if not below > 0:
        raise ValueError(f"below={below} must be > 0, the σ̂ from which on the Jacobian is used")

    def shift(seen: Seen) -> Tensor:
        def spread(u: Tensor) -> Tensor:  # C Aᵀ u
            v = adjoint(seen.operator, u, seen.data)
            return seen.pulled(v, seen.sigma**2 / seen.alpha, seen.proxy(data_std), below)

        weights = conjugate_gradients(lambda u: seen.operator.A(spread(u)) + noise**2 * u, seen.residual, steps, 1e-10)
        return spread(weights)

    return shift


def dps(noise: float) -> Shift:
    """x' ← x' − ζ ∇_x ‖y − A D‖, where ζ is `strength`, 0.3 … 1.

    ζ is meant in VP units, x_vp = x̂/√(1 + σ̂²), on every process; as the noise estimate is kept,
    D* = D − ζ √(1 + σ̂²) √(1 + σ̂'²) ∇_x̂ ‖y − A D‖. Any differentiable A. Biased: a step of fixed length
    knows neither σ_y nor the spread of the data.
    (Diffusion Posterior Sampling for General Noisy Inverse Problems, 2023.)
    """

    def shift(seen: Seen) -> Tensor:
        r = seen.residual
        unit = r / expand(r.flatten(1).norm(dim=1).clamp_min(1e-12), r)  # the norm has no gradient at 0
        downhill = seen.slope(vjp(seen.operator.A, seen.data, unit))
        factor = (seen.alpha**2 + seen.sigma**2).sqrt() * (1 + seen.to**2).sqrt()  # √(1 + σ̂²) ∇_x̂ = √(α² + σ²) ∇_x
        return expand(factor, downhill) * downhill

    return shift


def mcg(noise: float) -> Shift:
    """DPS's step within the null space, (I − A⁺A)(D* − D); the hook `Replace` draws the seen part anew from y.

    (Improving Diffusion Models for Inverse Problems using Manifold Constraints, 2022.)
    """
    step = dps(noise)

    def shift(seen: Seen) -> Tensor:
        move = step(seen)
        return move - pinv(seen.operator, seen.operator.A(move), move)

    return shift


def flowchef(noise: float, step: float | None = None, inner: int = 1) -> Shift:
    """D* = D after `inner` gradient steps D ← D − s Aᵀ (A D − y), without the network's Jacobian; none in the last row.

    step: s, by default 0.15/‖A‖² (0.15 where A is not linear). As published the velocity is kept, so that
    x' moves by D* − D, whatever the row's own weight of D is.
    (Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, 2025.)
    """
    if step is not None and not 0 < step < math.inf:
        raise ValueError(f"step={step} must be a finite number > 0")
    if isinstance(inner, bool) or not isinstance(inner, int) or inner < 1:
        raise ValueError(f"inner={inner!r} must be an integer of at least 1")
    rates: list[float] = []  # s, once ‖A‖ is known

    def shift(seen: Seen) -> Tensor:
        if not rates:
            size = norm(seen.operator, seen.data) if is_linear(seen.operator) else 1.0
            rates.append(0.15 / max(size, 1e-12) ** 2 if step is None else step)
            if is_linear(seen.operator) and rates[0] * size**2 >= 2:
                raise ValueError(f"step={step} diverges: it must be below 2/‖A‖² = {2 / size**2:.4g}")
        data = seen.data
        for _ in range(inner):
            data = data + rates[0] * vjp(seen.operator.A, data, seen.y - seen.operator.A(data))
        return expand((seen.to > 0).double(), data) * (data - seen.data)

    return shift


def _ratio(variance: Tensor, noise: float) -> Tensor | float:
    return variance / noise**2 if noise else math.inf
