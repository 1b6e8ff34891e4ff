"""Exponential Adams–Bashforth methods of any order, for the ODE and for the SDE of strength η.

In half log-SNR time both forms of the equation are linear plus one unknown, the prediction:

    data    x_t = (σ_t/σ_s) e^{−ηh} x_s + α_t ∫ … D(λ) dλ + σ_t √(1 − e^{−2ηh}) z
    noise   x_t = (α_t/α_s) x_s − (1 + η) σ_t ∫ … ε̂(λ) dλ + σ_t √(η (e^{2h} − 1)) z

The prediction is extrapolated by the polynomial through its last `order` values. Its weights solve
Σ_j w_j r_j^k = M_k with r_j = (λ_{i−j} − λ_i)/h and moments M_k = k! φ_{k+1}(z).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..plan.row import Row
from .levels import Levels, phi
from .registry import compiler

KINDS = ("exact", "midpoint", "half", "published", "taylor")


def moments(order: int, z: float, kind: str = "exact") -> list[float]:
    """M_0 … M_{order−1}. Variants change one moment only:

    "midpoint" (DPM-Solver++ 2M, UniPC B2): M_1 = φ_1/2 at order 2; "half" (UniPC B1): M_1 = ½ at
    order 2; "published" (the third-order update as printed and coded everywhere): "midpoint" at
    order 2, and M_2 lacks its factor 2 at order 3, which makes the method second order; "taylor" (MR Sampler): the same
    third-order update, exact at order 2.
    """
    m = [math.factorial(k) * phi(k + 1, z) for k in range(order)]
    if order == 2 and kind in ("midpoint", "published"):
        m[1] = phi(1, z) / 2
    elif order == 2 and kind == "half":
        m[1] = 0.5
    elif order == 3 and kind in ("published", "taylor"):
        m[2] /= 2
    return m


def weights(nodes: Sequence[float], target: Sequence[float]) -> list[float]:
    """w with Σ_j w_j r_j^k = target_k for k = 0 … len(nodes) − 1."""
    vandermonde = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(vandermonde, np.asarray(target, dtype=np.float64)).tolist()


def _check(order: int, form: str, kind: str, eta: float) -> None:
    if not (isinstance(order, int) and 1 <= order <= 8):
        raise ValueError(f"order={order} must be an integer from 1 to 8")
    if form not in ("data", "noise"):
        raise ValueError(f"form={form!r} must be 'data' or 'noise'")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if not eta >= 0:
        raise ValueError(f"eta={eta} must be at least 0")


@compiler
def multistep(
    levels: Levels, order: int = 2, form: str = "data", kind: str = "exact", eta: float = 0.0, lower_final: bool = False
) -> Iterator[Row]:
    """Exponential Adams–Bashforth of the given order; see the module.

    The first steps use what history there is. A step that starts at α = 0 or ends at σ = 0 has an
    infinite h and is of order 1 in data form, where it is exact in form; the node α = 0 (λ = −∞)
    never enters a polynomial. lower_final: use order min(order, steps left), for few steps.
    """
    _check(order, form, kind, eta)
    for i in range(levels.n):
        yield multistep_row(levels, i, order, form, kind, eta, lower_final)


def usable_order(levels: Levels, i: int, order: int, lower_final: bool = False) -> int:
    """How many past predictions step i may use: existing nodes with finite λ, 1 if the step's own h is infinite."""
    if not levels.finite(i):
        return 1
    known = sum(math.isfinite(levels.lam[j]) for j in range(i + 1))
    return max(1, min(order, known, levels.n - i if lower_final else order))


def multistep_row(levels: Levels, i: int, order: int, form: str, kind: str, eta: float, lower_final: bool) -> Row:
    """Row i of `multistep`."""
    t, to = levels.times[i], levels.times[i + 1]
    alpha, sigma, alpha2, sigma2 = levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1]
    kappa, o = levels.kappa(i), usable_order(levels, i, order, lower_final)
    if form == "data" or not levels.finite(i):
        rho = kappa**eta if eta else 1.0
        a = rho * sigma2 / sigma
        c = sigma2 * math.sqrt(1 - rho * rho)
        if o == 1:
            return Row(t=t, to=to, a=a, b={0: alpha2 - a * alpha}, c=c)
        h = levels.h(i)
        z = -(1 + eta) * h
        scale = -alpha2 * z
        p, q = 0.0, 1.0
    else:
        a = alpha2 / alpha
        p, q = 1 / sigma, -alpha / sigma
        c = math.sqrt(eta * max(0.0, (a * sigma) ** 2 - sigma2**2))
        if o == 1:
            return Row(t=t, to=to, a=a, b={0: (1 + eta) * (sigma2 - a * sigma)}, c=c, p=p, q=q)
        h = z = levels.h(i)
        scale = -(1 + eta) * sigma2 * h
    nodes = [(levels.lam[i - j] - levels.lam[i]) / h for j in range(o)]
    w = weights(nodes, moments(o, z, kind))
    return Row(t=t, to=to, a=a, b={j: scale * w[j] for j in range(o)}, c=c, p=p, q=q)
