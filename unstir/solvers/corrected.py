"""Predictor–corrector methods folded into one row per call (PEC): UniPC, SA-Solver.

A step i → i+1 predicts with weights P_i from the corrected state; when the network has been called
at the new node, that step is corrected with weights Q_{i+1}, which include the new value; a and the
noise are the same in both, so

    X^c_i = X_i + Σ_j (Q_ij − P_{i−1,j−1}) F_{i−j}
    row i:  a_i,   b_ij = P_ij + a_i (Q_ij − P_{i−1,j−1})

and no call is spent on correcting. A hook sees the predicted state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..plan.row import Row
from .adams import lagrange
from .levels import Levels
from .multistep import moments, multistep_row, usable_order, weights
from .registry import compiler

Lags = Mapping[int, float]
FEW = 15  # steps, below which the last ones are of lower order by default


def fold(predictors: Sequence[Row], correctors: Mapping[int, Lags]) -> Iterator[Row]:
    """Rows of a predictor–corrector from its predictor rows and {node i: corrector weights {lag from i: Q}}."""
    for i, row in enumerate(predictors):
        b = {lag: float(w) for lag, w in row.b.items()}
        if i in correctors:
            change = dict(correctors[i])
            for lag, weight in predictors[i - 1].b.items():
                change[lag + 1] = change.get(lag + 1, 0.0) - float(weight)
            for lag, weight in change.items():
                b[lag] = b.get(lag, 0.0) + float(row.a) * weight
        yield replace(row, b={lag: w for lag, w in sorted(b.items()) if w != 0})


def corrector(levels: Levels, i: int, order: int, form: str, kind: str, eta: float = 0.0) -> dict[int, float]:
    """Weights {lag from node i: Q} that correct the step i−1 → i with `order` values, node i included.

    The moment equations of `multistep` with the additional node r = 1.
    """
    h = levels.h(i - 1)
    z = -(1 + eta) * h if form == "data" else h
    scale = -levels.alpha[i] * z if form == "data" else -(1 + eta) * levels.sigma[i] * h
    nodes = [1.0] + [(levels.lam[i - 1 - j] - levels.lam[i - 1]) / h for j in range(order - 1)]
    return {j: scale * w for j, w in enumerate(weights(nodes, moments(order, z, kind)))}


def _with_correctors(
    levels: Levels,
    predictor: Callable[[int], Row],
    corrector_order: Callable[[int], int],
    weights_at: Callable[[int, int], Lags],
) -> Iterator[Row]:
    rows = [predictor(i) for i in range(levels.n)]
    fits = {i: corrector_order(i) for i in range(1, levels.n) if levels.finite(i - 1)}
    return fold(rows, {i: weights_at(i, o) for i, o in fits.items() if o > 1})


@compiler
def unipc(
    levels: Levels,
    order: int = 3,
    kind: str = "exact",
    form: str = "data",
    corrector_on: bool = True,
    lower_final: bool | None = None,
) -> Iterator[Row]:
    """UniPC (UniPC: A Unified Predictor-Corrector Framework …, 2023): order p, and p + 1 with the corrector.

    kind: "exact" moments, "half" (the paper's B₁) or "midpoint" (B₂), which differ at order 2 of the
    predictor and of the corrector. Predictor order min(p, i + 1), and at most the steps left if
    lower_final, by default where there are fewer than 15; the corrector at node i has the order of
    the predictor that landed there plus one.
    """
    lower = levels.n < FEW if lower_final is None else lower_final
    if not (isinstance(order, int) and 1 <= order <= 6):
        raise ValueError(f"order={order} must be an integer from 1 to 6")
    if kind not in ("exact", "half", "midpoint") or form not in ("data", "noise"):
        raise ValueError(f"kind={kind!r} must be 'exact', 'half' or 'midpoint', form={form!r} 'data' or 'noise'")

    def corrector_order(i: int) -> int:
        return usable_order(levels, i - 1, order, lower) + 1 if corrector_on else 1

    return _with_correctors(
        levels,
        lambda i: multistep_row(levels, i, order, form, kind, 0.0, lower),
        corrector_order,
        lambda i, o: corrector(levels, i, o, form, kind),
    )


@compiler
def flow_adams(levels: Levels, order: int = 2, corrector_on: bool = True, lower_final: bool | None = None) -> Iterator[Row]:
    """Adams predictor–corrector on straight paths, whatever the process: any (α, σ) path is a flow path rescaled.

    With s = α + σ, u = σ/s and x_f = X/s the equation is dx_f/du = v, v = (X/s − D)/u, and nothing in
    it is infinite at α = 0 or at σ = 0:

        X' = (s'/s) X + s' Σ_j C_j v_{i−j},     C_j = ∫_u^{u'} ℓ_j du

    The predictor has order min(order, i + 1), and at most the steps left if lower_final, by default
    where there are fewer than 15; the corrector at a node one more than the predictor that landed
    there, folded into the row.
    """
    return _flow_adams(levels, order, corrector_on, lower_final)


@compiler
def auto(levels: Levels) -> Iterator[Row]:
    """The default: `flow_adams` with a predictor of order 1 below 8 steps and 2 from there on, for the logistic grid.

    Chosen by measurement (docs/results/auto.md): a higher order is better without guidance, and
    diverges under strong guidance with few steps.
    """
    return _flow_adams(levels, 1 if levels.n < 8 else 2, True, None)


def _flow_adams(levels: Levels, order: int, corrector_on: bool, lower_final: bool | None) -> Iterator[Row]:
    lower = levels.n < FEW if lower_final is None else lower_final
    if not 1 <= order <= 6:
        raise ValueError(f"order={order} must be an integer from 1 to 6")
    s = [a + b for a, b in zip(levels.alpha, levels.sigma, strict=True)]
    u = [b / total for b, total in zip(levels.sigma, s, strict=True)]
    down = [-a / total for a, total in zip(levels.alpha, s, strict=True)]  # u − 1, without rounding near u = 1

    def usable(i: int) -> int:
        return min(order, i + 1, levels.n - i if lower else order)

    def weights_of(i: int, nodes: Sequence[int]) -> dict[int, float]:
        """{place in nodes: s' ∫ ℓ du} over step i, through the values at these nodes."""
        v = u if u[i] < 0.5 else down
        return dict(enumerate((s[i + 1] * polynomial_integrals([v[j] for j in nodes], v[i], v[i + 1])).tolist()))

    rows = [
        Row(
            t=levels.times[i],
            to=levels.times[i + 1],
            a=s[i + 1] / s[i],
            b=weights_of(i, range(i, i - usable(i), -1)),
            p=1 / levels.sigma[i],
            q=-s[i] / levels.sigma[i],
        )
        for i in range(levels.n)
    ]
    nodes = range(1, levels.n) if corrector_on else ()
    return fold(rows, {i: weights_of(i - 1, range(i, i - 1 - usable(i - 1), -1)) for i in nodes})


def polynomial_integrals(nodes: Sequence[float], start: float, end: float) -> np.ndarray:
    """∫_start^end ℓ_j for the Lagrange polynomials of `nodes`; Gauss–Legendre, exact to degree 15."""
    points, w = np.polynomial.legendre.leggauss(8)
    half = 0.5 * (end - start)
    return half * (lagrange(nodes, half * points + 0.5 * (start + end)) * w).sum(1)


def default_window(t: float) -> float:
    """τ of SA-Solver's experiments: 1 for t in [0.2, 0.8], else 0."""
    return 1.0 if 0.2 <= t <= 0.8 else 0.0


@compiler
def sa_solver(
    levels: Levels,
    order: int = 3,
    corrector_order: int = 4,
    tau: float | Callable[[float], float] = default_window,
    form: str = "data",
    kind: str = "exact",
) -> Iterator[Row]:
    """SA-Solver (Stochastic Adams Solver for Fast Sampling of Diffusion Models, 2023).

    A stochastic Adams predictor with `order` values and a corrector with `corrector_order` values,
    the new one included; noise strength η = τ(t_{i+1})². The last step is deterministic and is not
    corrected. kind "half": the paper's few-step rule M_1 = ½ at order 2.
    """
    if not (isinstance(order, int) and isinstance(corrector_order, int) and 1 <= order <= 6 and 1 <= corrector_order <= 6):
        raise ValueError(f"order={order} and corrector_order={corrector_order} must be integers from 1 to 6")
    n = levels.n

    def eta(i: int) -> float:
        """Noise strength of step i."""
        if i == n - 1:
            return 0.0
        value = tau(levels.times[i + 1]) if callable(tau) else tau
        if not value >= 0:
            raise ValueError(f"tau={value} must be at least 0")
        return value**2

    def predictor_order(i: int) -> int:
        return usable_order(levels, i, min(order, n - i))

    def order_at(i: int) -> int:
        return min(corrector_order, usable_order(levels, i - 1, corrector_order - 1) + 1, n - i + 2)

    return _with_correctors(
        levels,
        lambda i: multistep_row(levels, i, predictor_order(i), form, kind, eta(i), False),
        order_at,
        lambda i, o: corrector(levels, i, o, form, kind, eta(i - 1)),
    )


# -- ER-SDE ---------------------------------------------------------------------------------------------
NOISE_SCALES: dict[str, Callable[[float], float]] = {
    "ode": lambda u: u,
    "sde": lambda u: u**2,
    "1.5": lambda u: u**1.5,
    "2.5": lambda u: u**2.5,
    "log": lambda u: u**0.9 * math.log10(1 + 100 * u**1.5),
    "er": lambda u: u * (math.exp(min(u**0.3, 700.0)) + 10),
}


@compiler
def er_sde(levels: Levels, order: int = 3, scale: str = "er", centred: bool = True) -> Iterator[Row]:
    """Extended reverse-time SDE solver (Elucidating the Solution Space of Extended Reverse-Time SDE …, 2023).

    r = φ(σ̂')/φ(σ̂); the noise-free part integrates a Taylor model of D in σ̂:
    A₀ = 1 − r,  A_k = [(σ̂' − σ̂)^k + φ(σ̂') k ∫_{σ̂'}^{σ̂} (u − σ̂)^{k−1}/φ(u) du]/k!,  with divided
    differences as derivatives. centred: move the first difference to the node, which the published
    code does not (it is then second order instead of third). scale: φ, a name of `NOISE_SCALES`.
    """
    if order not in (1, 2, 3) or scale not in NOISE_SCALES:
        raise ValueError(f"order={order} must be 1, 2 or 3 and scale={scale!r} one of {', '.join(NOISE_SCALES)}")
    f = NOISE_SCALES[scale]
    for i in range(levels.n):
        start, end = levels[i], levels[i + 1]
        if not levels.finite(i):
            yield Row(t=start.t, to=end.t, a=0.0 if end.sigma == 0 else end.sigma / start.sigma, b={0: end.alpha})
            continue
        s, e = start.ratio, end.ratio
        r = f(e) / f(s)
        d0, d1, d2 = 1 - r, 0.0, 0.0
        o = usable_order(levels, i, order)
        if o >= 2:
            d1 = e - s + f(e) * _inverse_integral(f, e, s, lambda u: 1.0)
        if o >= 3:
            d2 = 0.5 * (e - s) ** 2 + f(e) * _inverse_integral(f, e, s, lambda u, s=s: u - s)
        b = {0: d0, 1: 0.0, 2: 0.0}
        if o >= 2:
            g = s - levels[i - 1].ratio
            b[0] += d1 / g
            b[1] -= d1 / g
        if o >= 3:
            g2, wide = levels[i - 1].ratio - levels[i - 2].ratio, s - levels[i - 2].ratio
            second = d2 + (d1 * (s - levels[i - 1].ratio) / 2 if centred else 0.0)
            # dd = 2 (d_i − d_{i−1})/(σ̂_i − σ̂_{i−2})
            for lag, w in ((0, 1 / g), (1, -1 / g - 1 / g2), (2, 1 / g2)):
                b[lag] += second * 2 / wide * w
        yield Row(
            t=start.t,
            to=end.t,
            a=end.alpha / start.alpha * r,
            b={lag: end.alpha * w for lag, w in b.items() if w != 0},
            c=end.alpha * math.sqrt(max(0.0, e**2 - (r * s) ** 2)),
        )


def _inverse_integral(f: Callable[[float], float], low: float, high: float, weight: Callable[[float], float]) -> float:
    """∫_low^high weight(u)/φ(u) du, Gauss–Legendre in log u."""
    nodes, w = np.polynomial.legendre.leggauss(48)
    a, b = math.log(low), math.log(high)
    total = 0.0
    for x, wx in zip(nodes, w, strict=True):
        u = math.exp(0.5 * (b - a) * x + 0.5 * (b + a))
        total += wx * weight(u) / f(u) * u
    return total * 0.5 * (b - a)
