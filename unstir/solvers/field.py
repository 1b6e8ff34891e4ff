"""Plans for a vector field (`unstir.denoiser.Field`): dX/dt = v(X, t), or an SDE of the same marginals, in t itself.

The "data prediction" of these rows is the field, so a = 1 and b holds classical Runge–Kutta or Adams weights:

    Euler        X' = X + h F_i                     h = t' − t, negative towards data
    Runge–Kutta  stages X + h Σ A_kj F_j, the base eliminated as in `singlestep`
    Adams        X' = X + Σ_j (∫_t^{t'} ℓ_j) F_{i−j}

With ε(t) > 0 a row asks the field for v − ε s (keyword `diffusion`) and adds √(2ε|h|) z: after the drift for Euler
(Euler–Maruyama), before the step for Runge–Kutta methods, so that their stages see one noise (weak order 1 either way).
Times need not decrease: towards t = 1 is how likelihoods are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..plan.plan import Plan
from ..plan.row import Row
from ..process import Marginal, Process
from .corrected import polynomial_integrals
from .levels import Point
from .registry import calls_per_step, one_call_each, register
from .singlestep import RHO_TABLEAUX, Stage, Tableau, eliminate

Diffusion = float | str | Callable[[float], float]

# ε(t) by name; "sbdm" is the reverse SDE of the process itself, which an interpolant with a source does not have.
DIFFUSIONS: dict[str, Callable[[Process, float], float]] = {
    "sigma": lambda process, t: float(process.sigma(t)),
    "linear": lambda process, t: t,
    "hump": lambda process, t: math.sin(math.pi * min(t, 1 - t)) ** 2,
    "sbdm": lambda process, t: 0.5 * float(process.g(t)) ** 2,
}
TABLEAUX: dict[str, Tableau] = {"euler": Tableau((0,), ((),), (1,)), **RHO_TABLEAUX}
PAPER = "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023"


def field_plan(
    process: Process,
    times: Sequence[float],
    *,
    tableau: str | None = None,
    order: int = 1,
    diffusion: Diffusion = 0.0,
    denoise: bool = False,
    stages: Sequence[int] | None = None,
) -> Plan:
    """The plan that integrates a field of `process` along `times`; see the module.

    tableau: a name of `TABLEAUX`; without one Adams–Bashforth of `order` (the first rows have what history there is).
    diffusion: ε, a number, a name of `DIFFUSIONS`, or a function of t; only towards data.
    denoise: the last step, to t = 0, is one call that returns the field "data", x̂0: no ε is too large for it.
    stages: calls of every step, where some are of lower order.
    """
    process = process if isinstance(process, Marginal) else Marginal(process)
    nodes = [float(t) for t in times]
    steps = list(pairwise(nodes))
    if not steps or any(not 0 <= t <= 1 for t in nodes) or not (all(a < b for a, b in steps) or all(a > b for a, b in steps)):
        raise ValueError(f"times must run strictly one way inside [0, 1], two or more of them; got {nodes[:4]}")
    if tableau is not None and tableau not in TABLEAUX:
        raise ValueError(f"tableau={tableau!r} must be one of {', '.join(TABLEAUX)}")
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 6:
        raise ValueError(f"order={order!r} must be an integer from 1 to 6")
    if denoise and nodes[-1] != 0:
        raise ValueError(f"denoise=True returns the data, so the plan must end at t = 0; it ends at {nodes[-1]:g}")
    run = nodes[:-1] if denoise else nodes
    levels = [_epsilon(diffusion, process, t) for t in run[:-1]]
    if any(levels) and nodes[0] < nodes[-1]:
        raise ValueError(f"diffusion={diffusion!r} needs times that fall, towards data; upwards there is the ODE, diffusion=0")
    if any(levels) and tableau is None and order > 1:
        raise ValueError(f"diffusion={diffusion!r}: Adams methods of higher order are for the ODE; use 'field-em'")
    rows: list[Row] = []
    if tableau is None:
        rows += _adams(run, order, levels)
    else:
        counts = [len(TABLEAUX[tableau].c)] * len(levels) if stages is None else list(stages)[: len(levels)]
        rows += _runge_kutta(run, [_tableau(tableau, n) for n in counts], levels)
    if denoise:
        rows.append(Row(t=run[-1], to=0.0, a=0.0, b={0: 1.0}, kwargs={"field": "data"}))
    return Plan(rows, process, name="field")


def _tableau(name: str, calls: int) -> Tableau:
    """The tableau itself, or one of as many calls as are left for a shorter step."""
    return TABLEAUX[name if calls == len(TABLEAUX[name].c) else {1: "euler", 2: "midpoint", 3: "kutta-3"}[calls]]


def _epsilon(diffusion: Diffusion, process: Marginal, t: float) -> float:
    if isinstance(diffusion, str) and diffusion not in DIFFUSIONS:
        raise ValueError(f"diffusion={diffusion!r} must be a number, a function of t, or one of {', '.join(DIFFUSIONS)}")
    if isinstance(diffusion, str):
        if diffusion == "sbdm" and process.base.anchored:
            raise ValueError(f"diffusion='sbdm' is the SDE of a process without a source; {process.base!r} has one")
        value = DIFFUSIONS[diffusion](process.base, t)
    else:
        value = float(diffusion(t) if callable(diffusion) else diffusion)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"diffusion={diffusion!r} is {value:g} at t = {t:g}; it must be finite and at least 0")
    return value


def _asks(epsilon: float) -> Mapping[str, Any]:
    return {"diffusion": epsilon} if epsilon else {}


def _adams(nodes: list[float], order: int, levels: list[float]) -> Iterator[Row]:
    for i, (t, to) in enumerate(pairwise(nodes)):
        seen = [nodes[i - j] for j in range(min(order, i + 1))]
        weights = polynomial_integrals(seen, t, to).tolist()
        c = math.sqrt(2 * levels[i] * abs(to - t))
        yield Row(t=t, to=to, a=1.0, b=dict(enumerate(weights)), c=c, kwargs=_asks(levels[i]))


def _runge_kutta(nodes: list[float], tableaux: Sequence[Tableau], levels: list[float]) -> Iterator[Row]:
    before: Row | None = None  # held back, since the noise of a step is added by the row before it
    for tableau, epsilon, (t, to) in zip(tableaux, levels, pairwise(nodes), strict=True):
        h, c = to - t, math.sqrt(2 * epsilon * abs(to - t))
        if before is not None:
            yield replace(before, c=c)
        elif c:
            yield Row(t=t, to=t, a=1.0, c=c, evaluate=False)
        points = [Point(to if ck == 1 else t + ck * h, 1.0, 1.0) for ck in (*tableau.c[1:], 1)]
        stages = [Stage(p, 1.0, [h * w for w in row]) for p, row in zip(points, [*tableau.a[1:], tableau.b], strict=True)]
        rows = [replace(row, kwargs=_asks(epsilon)) for row in eliminate(Point(t, 1.0, 1.0), stages)]
        yield from rows[:-1]
        before = rows[-1]
    if before is not None:
        yield before


def _stages(calls: int) -> Callable[[int, bool, bool], list[int]]:
    return lambda nfe, blank, clean: calls_per_step(calls)(nfe, False, False)  # v is finite at both ends


for _name, _order, _options, _calls in (
    ("field-em", 1, {}, 1),
    ("field-heun", 2, {"tableau": "heun-2"}, 2),
    ("field-midpoint", 2, {"tableau": "midpoint"}, 2),
    ("field-kutta-3", 3, {"tableau": "kutta-3"}, 3),
    ("field-rk-4", 4, {"tableau": "rk-4"}, 4),
    ("field-ab-2", 2, {"order": 2}, 1),
):
    register(_name, field_plan, _order, PAPER, _options, one_call_each if _calls == 1 else _stages(_calls), grid="uniform")
