"""One-step methods with inner stages, as rows.

Any such step from s has stages X_k = T_k X_s + Σ_{j<k} c_kj D_j (k = 1 … K, the last is the end).
A plan keeps one state, not the base X_s, so the base is eliminated:

    a_k = T_{k+1}/T_k,   b_{k,0} = c_{k+1,k},   b_{k,j} = c_{k+1,k−j} − a_k c_{k,k−j}

With D in the rows, T_k = σ_k/σ_s for every consistent method (the zero-data invariant).
Stochastic stages carry noise e_k; the row then adds √(e_{k+1}² − a_k² e_k²), the
Ornstein–Uhlenbeck coupling, which needs one fresh normal a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..plan.row import Row
from .levels import Levels, Point, phi
from .multistep import moments, weights
from .registry import compiler


class Tableau(NamedTuple):
    """Nodes c_0 = 0, c_1 … (fractions of the step), stage rows A[k] and final weights b."""

    c: Sequence[float]
    a: Sequence[Sequence[float]]
    b: Sequence[float]


class Stage(NamedTuple):
    """A stage: where it lies, T, the weights of D_0 …, and its noise level e."""

    at: Point
    scale: float
    data: Sequence[float]
    noise: float = 0.0


def eliminate(start: Point, stages: Sequence[Stage]) -> Iterator[Row]:
    """The rows of one step; see the module. The last stage is the step's end."""
    chain = [Stage(start, 1.0, ()), *stages]
    for k, (here, there) in enumerate(pairwise(chain)):
        a = there.scale / here.scale if here.scale else 0.0
        old = [*here.data, *[0.0] * (k + 1 - len(here.data))]
        b = {k - j: w - a * o for j, (w, o) in enumerate(zip(there.data, old, strict=True))}
        variance = there.noise**2 - (a * here.noise) ** 2
        if variance < -1e-12 * max(1.0, there.noise**2):
            raise ValueError(f"t = {here.at.t:g}: the inner stage has more noise than the step can carry; use a smaller eta")
        yield Row(
            t=here.at.t,
            to=there.at.t,
            a=a,
            b={lag: w for lag, w in b.items() if w != 0},
            c=math.sqrt(max(0.0, variance)),
            boundary=k + 1 == len(stages),
        )


# -- exponential Runge–Kutta, λ as time ---------------------------------------------------------------
def order_two(z: float, c2: float = 0.5, kind: str = "midpoint") -> Tableau:
    """b₂ = φ₁/(2c₂) ("midpoint", DPM-Solver-2, 2S) or φ₂/c₂ ("taylor", stiff order 2)."""
    b2 = phi(1, z) / (2 * c2) if kind == "midpoint" else phi(2, z) / c2
    return Tableau((0, c2), ((), (c2 * phi(1, c2 * z),)), (phi(1, z) - b2, b2))


def order_three(z: float, c2: float = 1 / 3, c3: float = 2 / 3, kind: str = "midpoint") -> Tableau:
    """DPM-Solver-3 and 3S: b₃ = φ₂/c₃, b₂ = 0; kind "taylor": the quadratic through all three nodes."""
    a32 = (c3**2 / c2) * phi(2, c3 * z)
    stages = ((), (c2 * phi(1, c2 * z),), (c3 * phi(1, c3 * z) - a32, a32))
    if kind == "taylor":
        return Tableau((0, c2, c3), stages, weights((0, c2, c3), moments(3, z)))
    b3 = phi(2, z) / c3
    return Tableau((0, c2, c3), stages, (phi(1, z) - b3, 0.0, b3))


def krogstad(z: float) -> Tableau:
    """Four stages, order 4 (Generalized integrating factor methods for stiff PDEs, 2005)."""
    p1, p2, p3 = phi(1, z), phi(2, z), phi(3, z)
    h1, h2 = phi(1, z / 2), phi(2, z / 2)
    return Tableau(
        (0, 0.5, 0.5, 1),
        ((), (h1 / 2,), (h1 / 2 - h2, h2), (p1 - 2 * p2, 0.0, 2 * p2)),
        (p1 - 3 * p2 + 4 * p3, 2 * p2 - 4 * p3, 2 * p2 - 4 * p3, 4 * p3 - p2),
    )


def hochbruck_ostermann(z: float) -> Tableau:
    """Five stages, stiff order 4 (Explicit exponential Runge–Kutta methods for semilinear parabolic problems, 2005)."""
    p1, p2, p3 = phi(1, z), phi(2, z), phi(3, z)
    h1, h2, h3 = phi(1, z / 2), phi(2, z / 2), phi(3, z / 2)
    a52 = h2 / 2 - p3 + p2 / 4 - h3 / 2
    a54 = h2 / 4 - a52
    return Tableau(
        (0, 0.5, 0.5, 1, 0.5),
        ((), (h1 / 2,), (h1 / 2 - h2, h2), (p1 - 2 * p2, p2, p2), (h1 / 2 - 2 * a52 - a54, a52, a52, a54)),
        (p1 - 3 * p2 + 4 * p3, 0.0, 0.0, 4 * p3 - p2, 4 * p2 - 8 * p3),
    )


def exponential_stages(levels: Levels, start: Point, end: Point, table: Callable[[float], Tableau], form: str) -> list[Stage]:
    """Stages of an exponential step in data form, D as unknown (z = −h), or noise form, ε̂ (z = h).

    data   X_k = (σ_k/σ_s) X_s + α_k h Σ A_kj D_j;    noise   X_k = (α_k/α_s) X_s − σ_k h Σ A_kj ε̂_j,
    the latter rewritten in D, so that rows of both forms look alike.
    """
    h = end.lam - start.lam
    c, a, b = table(-h if form == "data" else h)
    points = [start, *(end if ck == 1 else levels.at(start.lam + ck * h) for ck in c[1:]), end]
    pairs = list(zip(points[1:], [*a[1:], b], strict=True))
    if form == "data":
        return [Stage(p, p.sigma / start.sigma, [p.alpha * h * w for w in row]) for p, row in pairs]
    return in_data_form(points, [[-p.sigma * h * w for w in row] for p, row in pairs])


def in_data_form(points: Sequence[Point], noise_weights: Sequence[Sequence[float]]) -> list[Stage]:
    """Stages X_k = (α_k/α_s) X_s + Σ c_kj ε̂_j rewritten with ε̂_j = (X_j − α_j D_j)/σ_j.

    By substitution c'_km = Σ_j c_kj c'_jm/σ_j − c_km α_m/σ_m; T_k = σ_k/σ_s.
    """
    start = points[0]
    stages: list[Stage] = [Stage(start, 1.0, ())]
    for p, row in zip(points[1:], noise_weights, strict=True):
        data = [-w * points[m].alpha / points[m].sigma for m, w in enumerate(row)]
        for j, w in enumerate(row):
            for m, inner in enumerate(stages[j].data):
                data[m] += w * inner / points[j].sigma
        stages.append(Stage(p, p.sigma / start.sigma, data))
    return stages[1:]


def down(end: Point, start: Point, eta: float) -> tuple[Point, float]:
    """(aim, noise) of an ancestral step: go to σ_down by the ODE, then add noise to reach σ' again.

    σ_up = σ' min(1, η √(1 − κ²)), σ_down = √(σ'² − σ_up²).
    """
    if eta == 0:
        return end, 0.0
    kappa = end.ratio / start.ratio
    up = min(1.0, eta * math.sqrt(1 - kappa**2))
    return Point(end.t, end.alpha, end.sigma * math.sqrt(1 - up**2)), end.sigma * up


def plain_step(start: Point, end: Point, noise: float = 0.0) -> Row:
    """The one-call step to `end`, plus noise."""
    a = end.sigma / start.sigma
    return Row(t=start.t, to=end.t, a=a, b={0: end.alpha - a * start.alpha}, c=noise)


def steps_with(
    levels: Levels, stages: list[int] | None, calls: int, make: Callable[[Point, Point, int], list[Stage]], eta: float = 0.0
) -> Iterator[Row]:
    """Every step of the grid: `make(start, aim, calls)` gives its stages; infinite steps take one call."""
    for i in range(levels.n):
        start, end = levels[i], levels[i + 1]
        n = calls if stages is None else stages[i]
        if not levels.finite(i):
            yield plain_step(start, end)
            continue
        aim, up = down(end, start, eta)
        if n == 1 or aim.sigma == 0:
            yield plain_step(start, aim, up)
            continue
        rows = list(eliminate(start, make(start, aim, n)))
        last = rows[-1]
        yield from rows[:-1]
        yield Row(t=last.t, to=end.t, a=last.a, b=last.b, c=up)


@compiler
def exp_rk(
    levels: Levels,
    order: int = 2,
    form: str = "data",
    kind: str = "midpoint",
    eta: float = 0.0,
    stages: list[int] | None = None,
) -> Iterator[Row]:
    """Exponential Runge–Kutta of order 1 … 4: DPM-Solver-2/3 (noise form), DPM-Solver++ 2S/3S (data form) and beyond.

    kind: "midpoint" or "taylor" for orders 2 and 3; "krogstad" (4 calls) or "stiff" (5) for order 4.
    A step of n calls in `stages` has order n, so an order mix ("fast") is a list of calls.
    eta: ancestral noise after every step.   (DPM-Solver, 2022; DPM-Solver++, 2022)
    """
    if order not in (1, 2, 3, 4) or form not in ("data", "noise") or not eta >= 0:
        raise ValueError(f"order={order} (1 … 4), form={form!r} ('data', 'noise'), eta={eta} (≥ 0) do not fit exp_rk")
    kinds = ("midpoint", "taylor") if order < 4 else ("krogstad", "stiff")
    if kind not in kinds:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(kinds)} at order {order}")
    flat = kind if kind in ("midpoint", "taylor") else "taylor"

    def make(start: Point, end: Point, calls: int) -> list[Stage]:
        tables = {2: lambda z: order_two(z, kind=flat), 3: lambda z: order_three(z, kind=flat)}
        table = {4: krogstad, 5: hochbruck_ostermann}.get(calls) or tables[calls]
        return exponential_stages(levels, start, end, table, form)

    return steps_with(levels, stages, 5 if kind == "stiff" else order, make, eta)


def fast_orders(nfe: int, blank: bool = False, clean: bool = False) -> list[int]:
    """The order mix of DPM-Solver-fast: as many third-order steps as fit, then 2 and 1 so that the calls add up.

    A clean end takes its one-call step from the budget if the mix does not end with one.
    """
    if blank and nfe > 1:
        return [1, *fast_orders(nfe - 1, False, clean)]
    threes, rest = divmod(nfe, 3)
    mix = [3] * (threes - 1) + [2, 1] if rest == 0 else [3] * threes + [rest]
    return [*fast_orders(nfe - 1), 1] if clean and mix[-1] != 1 else mix


# -- Runge–Kutta in ρ = σ̂ -----------------------------------------------------------------------------
RHO_TABLEAUX: dict[str, Tableau] = {
    "midpoint": Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun-2": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "kutta-3": Tableau((0, 1 / 2, 1), ((), (1 / 2,), (-1, 2)), (1 / 6, 4 / 6, 1 / 6)),
    "heun-3": Tableau((0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "ralston-3": Tableau((0, 1 / 2, 3 / 4), ((), (1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "houwen-3": Tableau((0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0, 3 / 4)),
    "ssp-3": Tableau((0, 1, 1 / 2), ((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk-4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@compiler
def rho_rk(levels: Levels, tableau: str = "kutta-3", eta: float = 0.0, stages: list[int] | None = None) -> Iterator[Row]:
    """A classical Runge–Kutta method for dx̂/dσ̂ = ε̂ (ρRK of DEIS, 2023); eta: ancestral noise after every step.

    tableau: a name of `RHO_TABLEAUX`, or "dpm-2", the midpoint method whose inner node is the
    geometric mean of σ̂ and σ̂'. A shorter step in `stages` uses the midpoint (2) or Heun-3 (3).
    """
    if tableau != "dpm-2" and tableau not in RHO_TABLEAUX:
        raise ValueError(f"tableau={tableau!r} must be 'dpm-2' or one of {', '.join(RHO_TABLEAUX)}")
    calls = 2 if tableau == "dpm-2" else len(RHO_TABLEAUX[tableau].c)

    def make(start: Point, end: Point, n: int) -> list[Stage]:
        name = tableau if n == calls else {2: "midpoint", 3: "heun-3"}[n]
        step = end.ratio - start.ratio
        if name == "dpm-2":
            c2 = (math.sqrt(start.ratio * end.ratio) - start.ratio) / step
            c, a, b = Tableau((0, c2), ((), (c2,)), (0, 1))
        else:
            c, a, b = RHO_TABLEAUX[name]
        points = [start, *(end if ck == 1 else levels.at(-math.log(start.ratio + ck * step)) for ck in c[1:]), end]
        return in_data_form(points, [[p.alpha * step * w for w in row] for p, row in zip(points[1:], [*a[1:], b], strict=True)])

    return steps_with(levels, stages, calls, make, eta)


@compiler
def dpmpp_sde(levels: Levels, eta: float = 1.0, r: float = 0.5, stages: list[int] | None = None) -> Iterator[Row]:
    """DPM-Solver++ SDE with two calls a step (k-diffusion's sample_dpmpp_sde, 2022).

    The inner stage is an ancestral step to λ + r h, the end an ancestral step from the start with
    D = (1 − 1/(2r)) D_s + D_m/(2r). Inner and end noise are coupled as in the module (k-diffusion
    couples them through a Brownian path in σ̂: another joint law, also of weak order 1).
    """
    if not (eta >= 0 and 0 < r <= 1):
        raise ValueError(f"eta={eta} must be at least 0 and r={r} in (0, 1]")

    def ancestral(start: Point, end: Point) -> tuple[float, float]:
        aim, up = down(end, start, eta)
        return aim.sigma / start.sigma, up

    for i in range(levels.n):
        start, end = levels[i], levels[i + 1]
        if not levels.finite(i) or (stages is not None and stages[i] == 1):
            aim, up = (end, 0.0) if not levels.finite(i) else down(end, start, eta)
            yield plain_step(start, aim, up)
            continue
        middle = levels.at(start.lam + r * levels.h(i))
        scale, noise = ancestral(start, middle)
        scale2, noise2 = ancestral(start, end)
        total = end.alpha - scale2 * start.alpha
        yield from eliminate(
            start,
            [
                Stage(middle, scale, [middle.alpha - scale * start.alpha], noise),
                Stage(end, scale2, [total * (1 - 1 / (2 * r)), total / (2 * r)], noise2),
            ],
        )
