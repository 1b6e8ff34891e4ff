"""What an operator does not bring itself, derived from what it has: adjoint, pseudo-inverse, proximal map, norm.

An operator is any object with `A(x)`; the methods `A_adjoint(y)`, `A_dagger(y)` and `prox_l2(z, y, gamma)`
are used where they exist. The names and meanings are those of `deepinv.physics`, whose operators work as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._random import normal
from ...process.base import expand, float64

Map = Callable[[Tensor], Tensor]


def is_linear(operator: Any) -> bool:
    """What the operator says of itself (`linear`), else whether it has an adjoint."""
    return bool(getattr(operator, "linear", hasattr(operator, "A_adjoint")))


def is_spectral(operator: Any) -> bool:
    """Does the operator bring its singular value decomposition (V, V_adjoint, U, U_adjoint, and `s` or deepinv's `mask`)?"""
    return all(hasattr(operator, name) for name in ("V", "V_adjoint", "U", "U_adjoint")) and singular(operator) is not None


def singular(operator: Any) -> Tensor | None:
    """The singular values of a spectral operator, shaped to broadcast over Vᵀx."""
    return getattr(operator, "s", getattr(operator, "mask", None))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ per sample, (B,)."""
    return (a * b).flatten(1).sum(1)


def vjp(function: Map, x: Tensor, v: Tensor) -> Tensor:
    """(∂f/∂x)ᵀ v."""
    with torch.enable_grad():
        u = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(u), u, v)
    return slope


def conjugate_gradients(apply: Map, b: Tensor, steps: int = 100, tolerance: float = 1e-12) -> Tensor:
    """u with apply(u) = b, per sample, for a symmetric positive semi-definite `apply` and b in its range.

    A sample stops at a residual of tolerance · ‖b‖, or in a direction without positive curvature (the
    Jacobian of a network is symmetric only approximately).
    """
    u, r, p = torch.zeros_like(b), b, b
    rr = dot(r, r)
    small = tolerance**2 * rr
    for _ in range(steps):
        q = apply(p)
        curvature = dot(p, q)
        go = (rr > small) & (curvature > 0)
        if not bool(go.any()):
            break
        step = torch.where(go, rr / curvature, 0.0)
        u, r = u + expand(step, b) * p, r - expand(step, b) * q
        new = dot(r, r)
        p = r + expand(torch.where(go, new / rr, 0.0), b) * p
        rr = new
    return u


def adjoint(operator: Any, y: Tensor, like: Tensor) -> Tensor:
    """Aᵀ y (B, *shape): the operator's own, or the vector–Jacobian product of a linear A. like: any x of that shape."""
    if hasattr(operator, "A_adjoint"):
        return operator.A_adjoint(y)
    return vjp(operator.A, like.new_zeros(len(y), *like.shape[1:]), y)


def pinv(operator: Any, y: Tensor, like: Tensor) -> Tensor:
    """A⁺ y: the operator's own, or the least-squares solution of least norm, AᵀA x = Aᵀ y by conjugate gradients from 0."""
    if hasattr(operator, "A_dagger"):
        return operator.A_dagger(y)
    return conjugate_gradients(lambda x: adjoint(operator, operator.A(x), like), adjoint(operator, y, like))


def prox(operator: Any, z: Tensor, y: Tensor, gamma: Any) -> Tensor:
    """argmin_x γ/2 ‖A x − y‖² + ½ ‖x − z‖²  =  z + (1/γ + AᵀA)⁻¹ Aᵀ (y − A z).

    gamma: γ ≥ 0, a number or (B,). γ = ∞ is the projection z + A⁺ (y − A z).
    """
    gamma = float64(gamma)
    if bool(gamma.isinf().all()):
        return z + pinv(operator, y - operator.A(z), z)
    if hasattr(operator, "prox_l2"):
        return operator.prox_l2(z, y, expand(gamma, z))
    # Multiplied by γ, the system stays finite at γ = 0; 1e12 stands for ∞ in single samples.
    g = expand(gamma.clamp_max(1e12), z)
    right = g * adjoint(operator, y - operator.A(z), z)
    return z + conjugate_gradients(lambda x: x + g * adjoint(operator, operator.A(x), z), right)


def norm(operator: Any, like: Tensor, steps: int = 60) -> float:
    """‖A‖, the largest singular value, by the power method on AᵀA from a fixed start. like: any x, for shape and dtype."""
    x = normal((1, *like.shape[1:]), dtype=like.dtype, device=like.device)
    size = 0.0
    for _ in range(steps):
        x = x / x.norm().clamp_min(1e-300)
        x = adjoint(operator, operator.A(x), like)
        size = float(x.norm())
    return size**0.5


def check_operator(operator: Any, x: Tensor, tolerance: float = 1e-4) -> dict[str, float]:
    """Measure whether an operator is what the samplers take it for; relative errors by name, and ‖A‖.

        adjoint    ⟨A x, y⟩ = ⟨x, Aᵀ y⟩
        pinv       A A⁺ A x = A x
        symmetric  ⟨A⁺A x, w⟩ = ⟨x, A⁺A w⟩
        prox       x* − z + γ Aᵀ(A x* − y) = 0 at γ = 1

    x: (B, *shape) of the operator's input; float64 shows rounding apart from mistakes.
    Raises ValueError for an error above `tolerance` (∞ only measures), and for an operator that is not linear.
    """
    if not is_linear(operator):
        raise ValueError(f"operator {type(operator).__name__} is not linear; it has no adjoint to check")
    x = normal(tuple(x.shape), seed=1, dtype=x.dtype, device=x.device)
    w = normal(tuple(x.shape), seed=2, dtype=x.dtype, device=x.device)
    ax = operator.A(x)
    y = normal(tuple(ax.shape), seed=3, dtype=x.dtype, device=x.device)

    def project(v: Tensor) -> Tensor:
        return pinv(operator, operator.A(v), v)

    size_x, size_y = x.flatten(1).norm(dim=1), y.flatten(1).norm(dim=1)
    largest = norm(operator, x)
    off = operator.A(project(x)) - ax
    best = prox(operator, x, y, 1.0)
    uphill = best - x + adjoint(operator, operator.A(best) - y, x)
    errors = {
        "adjoint": float(((dot(ax, y) - dot(x, adjoint(operator, y, x))).abs() / (largest * size_x * size_y + 1e-30)).max()),
        "pinv": float(off.norm() / ax.norm().clamp_min(1e-30)),
        "symmetric": float(((dot(project(x), w) - dot(x, project(w))).abs() / (size_x * w.flatten(1).norm(dim=1))).max()),
        "prox": float(uphill.norm() / x.norm()),
    }
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > tolerance:
        raise ValueError(
            f"operator {type(operator).__name__} fails the check {worst!r}: relative error {errors[worst]:.2e} > {tolerance:g}"
        )
    return {**errors, "norm": largest}
