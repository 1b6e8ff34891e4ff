"""Adams methods for dx̂/dσ̂ = ε̂ with x̂ = x/α: DEIS in any variable, iPNDM, PLMS, heavy balls.

    X' = (α'/α) X + Σ_j C_j ε̂_{i−j},       C_j = α' ∫_{σ̂}^{σ̂'} ℓ_j(s) dσ̂

with ℓ_j the Lagrange polynomials through the nodes in the variable s: t (tAB), σ̂ (ρAB, LMS) or λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..plan.row import Row
from ..process import Process
from .levels import Levels
from .registry import compiler
from .singlestep import plain_step

Variable = Callable[[Process, torch.Tensor], torch.Tensor]
VARIABLES: dict[str, Variable] = {
    "t": lambda process, t: t,
    "rho": lambda process, t: process.noise_ratio(t),
    "lambda": lambda process, t: process.logsnr(t),
}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def lagrange(nodes: Sequence[float], at: np.ndarray) -> np.ndarray:
    """ℓ_j(at) for every node j: shape (len(nodes), *at.shape)."""
    out = np.ones((len(nodes), *at.shape))
    for j, sj in enumerate(nodes):
        for m, sm in enumerate(nodes):
            if m != j:
                out[j] *= (at - sm) / (sj - sm)
    return out


def integrals(process: Process, variable: Variable, nodes: Sequence[float], start: float, end: float) -> np.ndarray:
    """∫ ℓ_j(s) dσ̂ from σ̂ = start to end, by Gauss–Legendre in asinh σ̂, which is smooth from 0 to ∞."""
    low, high = math.asinh(start), math.asinh(end)
    u = 0.5 * (high - low) * _NODES + 0.5 * (high + low)
    ratio = torch.as_tensor(np.sinh(u))
    s = variable(process, process.time(-ratio.log())).numpy()
    return (lagrange(nodes, s) * np.cosh(u) * _WEIGHTS).sum(1) * 0.5 * (high - low)


def noise_row(levels: Levels, i: int, b: dict[int, float]) -> Row:
    """A row X' = (α'/α) X + Σ b F with F = ε̂ = (X − αD)/σ."""
    alpha, sigma = levels.alpha[i], levels.sigma[i]
    return Row(
        t=levels.times[i], to=levels.times[i + 1], a=levels.alpha[i + 1] / alpha, b=b, p=1 / sigma, q=-alpha / sigma
    )  # fmt: skip


def ddim_weight(levels: Levels, i: int) -> float:
    """σ' − (α'/α) σ, the weight of a constant ε̂."""
    return levels.sigma[i + 1] - levels.alpha[i + 1] / levels.alpha[i] * levels.sigma[i]


@compiler
def deis(levels: Levels, order: int = 3, variable: str | Variable = "t") -> Iterator[Row]:
    """DEIS-AB of the given order (history of `order` values) in the variable "t", "rho", "lambda" or a function.

    (Fast Sampling of Diffusion Models with Exponential Integrator, 2023; there tAB-r has order r + 1.)
    Weights by Gauss quadrature; the published code's left Riemann sum has relative error 1e-4. In
    λ, which is infinite at σ' = 0, the last step is of order 1; in t and σ̂ it keeps its order.
    """
    if not (isinstance(order, int) and 1 <= order <= 8):
        raise ValueError(f"order={order} must be an integer from 1 to 8")
    if isinstance(variable, str) and variable not in VARIABLES:
        raise ValueError(f"variable={variable!r} must be one of {', '.join(VARIABLES)} or a function (process, t)")
    s = VARIABLES[variable] if isinstance(variable, str) else variable
    nodes = s(levels.process, torch.tensor(levels.times, dtype=torch.float64)).tolist()
    first = int(levels.alpha[0] == 0)
    for i in range(levels.n):
        if levels.alpha[i] == 0:
            yield plain_step(levels[i], levels[i + 1])
            continue
        o = min(order, i + 1 - first)
        if o == 1 or not math.isfinite(nodes[i + 1]):
            yield noise_row(levels, i, {0: ddim_weight(levels, i)})
            continue
        here = [nodes[i - j] for j in range(o)]
        c = levels.alpha[i + 1] * integrals(levels.process, s, here, levels[i].ratio, levels[i + 1].ratio)
        yield noise_row(levels, i, dict(enumerate(c.tolist())))


def adams_gammas(count: int) -> list[float]:
    """γ_j of Adams–Bashforth in backward differences: γ_j = 1 − Σ_{m<j} γ_m/(j + 1 − m)."""
    g: list[float] = []
    for j in range(count):
        g.append(1 - sum(gm / (j + 1 - m) for m, gm in enumerate(g)))
    return g


def adams_weights(order: int, damping: float = 1.0) -> list[float]:
    """Weights of F_i, F_{i−1}, …: Σ_j c_j ∇^j with c_j = γ_j + ((1 − β)/β) γ_{j−1}, c_0 = 1.

    β = 1 is plain Adams–Bashforth with constant step; β < 1 the generalised heavy ball's.
    """
    g = adams_gammas(order)
    c = [1.0] + [g[j] + (1 - damping) / damping * g[j - 1] for j in range(1, order)]
    return [sum(c[j] * (-1) ** lag * math.comb(j, lag) for j in range(lag, order)) for lag in range(order)]


@compiler
def ipndm(levels: Levels, order: int = 4) -> Iterator[Row]:
    """iPNDM: constant-step Adams–Bashforth weights on whatever grid, lower orders at first (DEIS, 2023). Order 2 in effect."""
    return _constant_step(levels, order, 1.0)


@compiler
def ghvb(levels: Levels, order: int = 2, damping: float = 0.8) -> Iterator[Row]:
    """Generalised heavy ball: v_i = (1 − β) v_{i−1} + β ε̂_i, x̂' = x̂ + h Σ w_l(β) v_{i−l}, v_0 = ε̂_0.

    damping = β in (0, 1], 1 = no momentum (PLMS). Smaller β widens the stability interval, which
    suppresses the artefacts of strong guidance (Diffusion Sampling with Momentum …, 2024).
    """
    return _constant_step(levels, order, damping)


def _constant_step(levels: Levels, order: int, damping: float) -> Iterator[Row]:
    if not (isinstance(order, int) and 1 <= order <= 8):
        raise ValueError(f"order={order} must be an integer from 1 to 8")
    if not 0 < damping <= 1:
        raise ValueError(f"damping={damping} must lie in (0, 1]; 1 is no momentum")
    first = int(levels.alpha[0] == 0)
    for i in range(levels.n):
        if levels.alpha[i] == 0:
            yield plain_step(levels[i], levels[i + 1])
            continue
        known = i + 1 - first
        step = ddim_weight(levels, i)
        row = noise_row(levels, i, {j: step * w for j, w in enumerate(adams_weights(min(order, known), damping))})
        beta = 1.0 if known == 1 else damping
        yield Row(t=row.t, to=row.to, a=row.a, b=row.b, p=beta * row.p, q=beta * row.q, s=1 - beta)


@compiler
def heavy_ball(levels: Levels, order: int = 4, damping: float = 0.8, kind: str = "hb") -> Iterator[Row]:
    """Polyak's ("hb") or Nesterov's ("nesterov") momentum on the Adams direction of the given order; order 1 in effect.

    v_i = (1 − β) v_{i−1} + β Σ w_l ε̂_{i−l};  x̂' = x̂ + h v_i, or x̂' = x̂ + h[(1 − β) v_i + β Σ w_l ε̂_{i−l}].
    The low-pass is unrolled over the full history; weights below 1e-17 are dropped.
    """
    if kind not in ("hb", "nesterov"):
        raise ValueError(f"kind={kind!r} must be 'hb' or 'nesterov'")
    if not (isinstance(order, int) and 1 <= order <= 8 and 0 < damping <= 1):
        raise ValueError(f"order={order} must be an integer from 1 to 8 and damping={damping} in (0, 1]")
    first = int(levels.alpha[0] == 0)
    v = np.zeros(levels.n)
    for i in range(levels.n):
        if levels.alpha[i] == 0:
            yield plain_step(levels[i], levels[i + 1])
            continue
        known = i + 1 - first
        direction = np.zeros(levels.n)
        for lag, w in enumerate(adams_weights(min(order, known))):
            direction[i - lag] = w
        v = direction if known == 1 else (1 - damping) * v + damping * direction
        u = v if kind == "hb" else (1 - damping) * v + damping * direction
        step = ddim_weight(levels, i)
        yield noise_row(levels, i, {i - m: step * u[m] for m in range(i, -1, -1) if abs(u[m]) > 1e-17})


def plms_stages(nfe: int, blank: bool, clean: bool) -> list[int]:
    """The first step that can be repeated takes two calls, every other one."""
    if nfe - blank < 3:
        return [1] * nfe
    return [1] * blank + [2] + [1] * (nfe - blank - 2)


@compiler
def plms(levels: Levels, stages: list[int] | None = None) -> Iterator[Row]:
    """PLMS, PNDM without its Runge–Kutta warm-up: N steps in N + 1 calls (Pseudo Numerical Methods …, 2022).

    The first step is repeated with the mean of the slopes at its two ends; then Adams–Bashforth 2,
    3, 4 with constant-step weights. Order 2 in effect.
    """
    first = int(levels.alpha[0] == 0)
    stages = plms_stages(levels.n + 1, first == 1, levels.clean) if stages is None else stages
    repeated = 0
    for i in range(levels.n):
        if levels.alpha[i] == 0:
            yield plain_step(levels[i], levels[i + 1])
            continue
        step, known = ddim_weight(levels, i), i - first
        # One lag per earlier step; the slope at the end of the repeated step is skipped.
        lags = [*range(known), known + repeated]
        w = adams_weights(min(4, known + 1))
        row = noise_row(levels, i, {lag: step * weight for lag, weight in zip(lags, w, strict=False)})
        if stages[i] == 1 or levels.sigma[i + 1] == 0:
            yield row
            continue
        yield replace(row, boundary=False)
        again = noise_row(levels, i + 1, {0: step / 2, 1: -step / 2}) if i + 1 < levels.n else None
        assert again is not None, "a repeated step is never the last"
        yield replace(again, to=again.t, a=1.0)
        repeated = 1
