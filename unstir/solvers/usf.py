"""Any exponential integrator as a list of decisions, one a step: the unified sampling framework.

A step goes from a base node s to the new node t, with h = λ_t − λ_s and F the data or the noise prediction:

    data    x_t = (σ_t/σ_s) x_s + α_t (h φ_1(−h) F_s + Σ_{k=1}^{n−1} h^{k+1} φ_{k+1}(−h) R_k F̂_s^(k))
    noise   x_t = (α_t/α_s) x_s − σ_t (h φ_1(h) F_s + Σ_{k=1}^{n−1} h^{k+1} φ_{k+1}(h) R_k F̂_s^(k))

F̂^(k) = Σ_m c_m (F_m − F_s) estimates the k-th derivative in λ from other evaluations, δ_m = λ_m − λ_s, and is exact for
polynomials of degree M, the number of these "active points":   Σ_m c_m δ_m^j/j! = [j = k],  j = 1 … M.
R_1 is a relaxation 1 + O(h); all other R_k are 1. Every decision may differ from step to step.
(A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models, 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..plan.plan import Plan
from ..plan.row import Row
from ..plan.trace import Symbol, Tracer, trace
from ..process import Process
from .levels import Levels, phi

FORMS = ("data", "noise")
CORRECTORS = ("none", "pseudo", "implicit")

# R_1 as a function of z = h (noise) or −h (data); all are 1 + O(h).
RELAXATIONS: dict[str, Callable[[float], float]] = {
    "midpoint": lambda z: phi(1, z) / (2 * phi(2, z)),  # ½ z (e^z − 1)/(e^z − 1 − z): DPM-Solver-2, UniPC B₂
    "half": lambda z: 1 / (2 * phi(2, z)),  # ½ z²/(e^z − 1 − z): UniPC B₁
    "exp+": lambda z: 1 + math.expm1(z) / 2,
    "exp-": lambda z: 1 - math.expm1(z) / 2,
}


@dataclass(frozen=True)
class Decision:
    """How one step is made.

    form: "data" or "noise", the prediction F.   order: n, 1 to 4.
    points: active points of the first derivative, that many of the newest; 0: all n − 1, as all higher ones use.
    relax: r of R_1 = 1 + r h, or a name of `RELAXATIONS`.
    corrector: "pseudo" repeats the step with order n + 1 and all points once the new node is evaluated, at no call;
        "implicit" evaluates the corrected state again, for one call more.
    base: how many nodes before the new one the step departs from: 1 is the newest (multistep), more are stages of a
        one-step method.
    """

    form: str = "data"
    order: int = 1
    points: int = 0
    relax: float | str = 0.0
    corrector: str = "none"
    base: int = 1


def usf(
    process: Process, times: Sequence[float], decisions: Sequence[Decision], *, constant: float | Tensor | None = None
) -> Plan:
    """The plan of N decisions on N + 1 nodes, times decreasing.

    constant: replaces D at the first node, whose row then makes no call ("analytic first step": 0, or the data's mean,
        a tensor of one sample's shape). A step that starts at α = 0 or ends at σ = 0, where h is infinite, is of
        order 1; the node α = 0 is no active point. len(plan) = N + the number of implicit correctors − 1 if constant.

    Raises ValueError that names the step: order beyond the known nodes, unknown words, a corrector of the last step.
    """
    levels = Levels(process, times)
    if len(decisions) != levels.n:
        raise ValueError(f"decisions has {len(decisions)} entries for {levels.n} steps; give one for every step")
    for i, decision in enumerate(decisions):
        _check(levels, i, decision)
    plan = trace(_loop, process, levels.times, levels=levels, decisions=decisions)
    rows = list(plan.rows)
    for i in range(len(rows)):  # a node that a later step departs from before is a stage
        node = levels.times.index(rows[i].to)
        if any(levels.finite(j) and j + 1 - d.base < node <= j for j, d in enumerate(decisions)):
            rows[i] = replace(rows[i], boundary=False)
    if constant is not None:
        rows = list(_known(rows, constant))
    return Plan(rows, process, name="usf", options={"decisions": [asdict(d) for d in decisions]})


def known_nodes(levels: Levels, i: int) -> int:
    """How many of the nodes 0 … i may enter a polynomial: those of finite λ. It is the highest order of step i."""
    return sum(math.isfinite(lam) for lam in levels.lam[: i + 1]) if levels.finite(i) else 1


def _check(levels: Levels, i: int, d: Decision) -> None:
    if d.form not in FORMS or d.corrector not in CORRECTORS:
        raise ValueError(f"step {i}: form={d.form!r} is one of {', '.join(FORMS)}, corrector={d.corrector!r} of {CORRECTORS}")
    if (isinstance(d.relax, str) and d.relax not in RELAXATIONS) or not isinstance(d.relax, str | float | int):
        raise ValueError(f"step {i}: relax={d.relax!r} must be a number r (of 1 + r h) or one of {', '.join(RELAXATIONS)}")
    if not isinstance(d.relax, str) and not math.isfinite(d.relax):
        raise ValueError(f"step {i}: relax={d.relax} must be finite")
    known = known_nodes(levels, i) if levels.finite(i) else 4
    if not 1 <= d.order <= min(4, known):
        raise ValueError(f"step {i}: order={d.order} must lie in 1 … {min(4, known)}, {known} nodes being known")
    if not 0 <= d.points < max(d.order, 2) or (d.order == 1 and d.points):
        raise ValueError(f"step {i}: points={d.points} must lie in 0 … {d.order - 1} at order {d.order}")
    if not 1 <= d.base <= i + 1 or (levels.finite(i) and not math.isfinite(levels.lam[i + 1 - d.base])):
        raise ValueError(f"step {i}: base={d.base} must lie in 1 … {i + 1}, at a node of finite λ")
    if d.corrector != "none" and i + 1 == levels.n:
        raise ValueError(f"step {i}: corrector={d.corrector!r}, but the last node is not evaluated; give 'none'")


@dataclass
class _Node:
    """What is known at a node: the state x, and the prediction D with the state it was made at."""

    x: Symbol
    seen: Symbol
    data: Symbol


def _loop(tracer: Tracer, x: Symbol, process: Process, times: Sequence[float], levels: Levels, decisions: Any) -> Symbol:
    """The textbook loop, on symbols."""
    nodes: list[_Node] = []
    for i, decision in enumerate(decisions):
        nodes.append(_Node(x, x, tracer.denoise(x, times[i])))
        before = decisions[i - 1]
        if i and before.corrector != "none" and levels.finite(i - 1):
            nodes[i].x = _advance(levels, nodes, i - 1, before, corrected=True)
            if before.corrector == "implicit":
                nodes[i] = _Node(nodes[i].x, nodes[i].x, tracer.denoise(nodes[i].x, times[i]))
        x = _advance(levels, nodes, i, decision)
    return x


def _advance(levels: Levels, nodes: Sequence[_Node], i: int, d: Decision, corrected: bool = False) -> Symbol:
    """The state at node i + 1; corrected: with node i + 1 as a further active point, order n + 1 and no relaxation."""
    if not levels.finite(i):
        a = levels.sigma[i + 1] / levels.sigma[i]
        return a * nodes[i].x + (levels.alpha[i + 1] - a * levels.alpha[i]) * nodes[i].data
    s, t = i + 1 - d.base, i + 1
    h = levels.lam[t] - levels.lam[s]
    z, scale = (-h, levels.alpha[t]) if d.form == "data" else (h, -levels.sigma[t])
    level = levels.sigma if d.form == "data" else levels.alpha
    others = [m for m in range(i, -1, -1) if m != s and math.isfinite(levels.lam[m])]
    active = others[: d.order - 1]
    first = active[: d.points or len(active)]
    relax = RELAXATIONS[d.relax](z) if isinstance(d.relax, str) else 1 + d.relax * h
    if corrected:
        active = first = [t, *active]
        relax = 1.0
    here = _prediction(levels, nodes, s, d.form)
    x = (level[t] / level[s]) * nodes[s].x + (scale * h * phi(1, z)) * here
    for k in range(1, len(active) + 1):
        used = first if k == 1 else active
        c = derivative_weights([levels.lam[m] - levels.lam[s] for m in used], k)
        gain = scale * h ** (k + 1) * phi(k + 1, z) * (relax if k == 1 else 1.0)
        for m, weight in zip(used, c, strict=True):
            x = x + (gain * weight) * (_prediction(levels, nodes, m, d.form) - here)
    return x


def _prediction(levels: Levels, nodes: Sequence[_Node], m: int, form: str) -> Symbol:
    """F at node m: D, or ε̂ = (X − α D)/σ with the X that D was predicted from."""
    node = nodes[m]
    return node.data if form == "data" else (node.seen - levels.alpha[m] * node.data) / levels.sigma[m]


def derivative_weights(delta: Sequence[float], k: int) -> list[float]:
    """c with Σ_m c_m δ_m^j/j! = [j = k] for j = 1 … len(delta)."""
    m = len(delta)
    matrix = [[d**j / math.factorial(j) for d in delta] for j in range(1, m + 1)]
    return np.linalg.solve(np.array(matrix), np.eye(m)[k - 1]).tolist()


def _known(rows: Sequence[Row], constant: float | Tensor) -> Sequence[Row]:
    """Row 0 makes no call: its D is the constant, and what read it becomes an additive entry."""
    value = constant[None] if isinstance(constant, Tensor) and constant.ndim else constant
    out = [replace(rows[0], evaluate=False, b={}, e=rows[0].b.get(0, 0.0) * value)]
    for i, row in enumerate(rows[1:], 1):
        weight = row.b.get(i, 0.0)
        out.append(replace(row, b={lag: w for lag, w in row.b.items() if lag != i}, e=weight * value if weight else 0.0))
    return out
