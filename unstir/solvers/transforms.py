"""Plan → plan: noise added along the way, going back up, running backwards, correcting between rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ..plan.plan import Plan
from ..plan.row import Row
from ..process import Process
from .grids import karras
from .registry import compile_plan, find


def churn(plan: Plan, s_churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003) -> Plan:
    """EDM's stochastic sampler from a one-step plan: before each step go up to σ̂(1 + γ) by adding noise.

    γ = min(S_churn/N, √2 − 1) where S_min ≤ σ̂ ≤ S_max, else 0. The noise belongs to the row before
    (or to an initial row without a call), and the step is compiled again from the raised level.
    (Elucidating the Design Space of Diffusion-Based Generative Models, 2022.)
    """
    if s_max < s_min or s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn={s_churn}, s_noise={s_noise} must be at least 0 and s_min={s_min} ≤ s_max={s_max}")
    solver, nodes, options = recipe(plan)
    process, n = plan.process, len(nodes) - 1
    rows: list[Row] = []
    for t, to in pairwise(nodes):
        ratio = float(process.noise_ratio(t))
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= ratio <= s_max else 0.0
        high = min(1.0, float(process.time(-math.log(ratio * (1 + gamma))))) if gamma else t
        if high > t:
            rows.append(go_up(process, t, high, s_noise))
        rows += compile_plan(solver, process, [high, to], **options).rows
    return Plan(list(_merge_noise(rows)), process, name=f"churn({plan.name})", order=1)


def go_up(process: Process, low: float, high: float, s_noise: float = 1.0) -> Row:
    """A row without a call that stirs the state from `low` to `high`: X' = (α'/α) X + S √(σ'² − (α'σ/α)²) z."""
    a = float(process.alpha(high) / process.alpha(low))
    variance = float(process.sigma(high)) ** 2 - (a * float(process.sigma(low))) ** 2
    return Row(t=low, to=high, a=a, c=s_noise * math.sqrt(max(0.0, variance)), evaluate=False)


def _merge_noise(rows: Sequence[Row]) -> Iterator[Row]:
    """Give a stirring row's scale and noise to the row before it, where that row adds no noise of its own."""
    out: list[Row] = []
    for row in rows:
        before = out[-1] if out else None
        if row.evaluate or before is None or before.noisy or not before.evaluate:
            out.append(row)
            continue
        a = float(row.a)
        scaled = {lag: a * float(w) for lag, w in before.b.items()}
        out[-1] = replace(before, a=a * float(before.a), b=scaled, c=row.c, to=row.to)
    return iter(out)


def restart(
    plan: Plan, intervals: Sequence[tuple[int, int, float, float]], s_noise: float = 1.003, solver: str = "heun"
) -> Plan:
    """Restart sampling (Restart Sampling for Improving Generative Processes, 2023).

    intervals: (N_r, K, t_min, t_max) in σ̂: when the plan passes t_min, K times stir back up to
    t_max and come down again with N_r − 1 steps of `solver` on a ρ = 7 grid. t_min is moved to the
    nearest node of the plan.
    """
    process = plan.process
    ends = [i for i, row in enumerate(plan.rows) if row.boundary and float(process.sigma(row.to)) > 0]
    if not ends:
        raise ValueError("the plan has no inner node at which it could be restarted")
    jumps: dict[int, list[Row]] = {}
    for count, repeats, low, high in intervals:
        if not (count >= 2 and repeats >= 1 and 0 < low < high):
            raise ValueError(f"interval {(count, repeats, low, high)}: need N_r ≥ 2, K ≥ 1 and 0 < t_min < t_max")
        node = min(ends, key=lambda i: abs(float(process.noise_ratio(plan.rows[i].to)) - low))
        bottom = float(plan.rows[node].to)
        top = float(process.time(-math.log(high)))
        if top <= bottom:
            raise ValueError(f"interval {(count, repeats, low, high)}: t_max lies at or below the node t = {bottom:g}")
        down = compile_plan(solver, process, karras(process, count - 1, top, bottom))
        jumps.setdefault(node, []).extend([go_up(process, bottom, top, s_noise), *down.rows] * repeats)
    rows = [r for i, row in enumerate(plan.rows) for r in (row, *jumps.get(i, ()))]
    if any(i - lag < begin for i, begin in _steps(plan) for lag in plan.rows[i].b):
        raise ValueError(
            "restart needs a one-step plan (such as heun, ddim or dpmpp-2s); this one reads its history across nodes"
        )
    return Plan(rows, process, name=f"restart({plan.name})", order=1)


def _steps(plan: Plan) -> Iterator[tuple[int, int]]:
    """(row, first row of the step that it belongs to)."""
    begin = 0
    for i, row in enumerate(plan.rows):
        yield i, begin
        begin = i + 1 if row.boundary else begin


def corrected(plan: Plan, snr: float = 0.16, steps: int = 1) -> Plan:
    """A Langevin corrector after every step to σ > 0, static form (Score-Based Generative Modeling …, 2021).

    With ε = 2 (snr·σ)²:  X' = (1 − ε/σ²) X + (εα/σ²) D + √(2ε) z, which leaves the marginal of t
    invariant up to O(ε). (The published step scales with norms of the state; √n/σ̂ stands for them.)
    """
    if not (snr > 0 and steps >= 1):
        raise ValueError(f"snr={snr} must be > 0 and steps={steps} at least 1")
    rows: list[Row] = []
    renumbered: dict[int, int] = {}
    for i, row in enumerate(plan.rows):
        renumbered[i] = len(rows)
        rows.append(replace(row, b={len(rows) - renumbered[i - lag]: w for lag, w in row.b.items()}))
        alpha, sigma = float(plan.process.alpha(row.to)), float(plan.process.sigma(row.to))
        if row.boundary and sigma > 0 and i + 1 < len(plan.rows):
            r2 = 2 * snr**2
            again = Row(t=row.to, to=row.to, a=1 - r2, b={0: r2 * alpha}, c=math.sqrt(2 * r2) * sigma)
            rows += [again] * steps
    return Plan(rows, plan.process, name=f"corrected({plan.name})", order=1)


def reversed_plan(plan: Plan, start: float | None = None) -> Plan:
    """The same solver along the same nodes, from data towards noise: DDIM inversion and its higher orders.

    As accurate as its steps are small; where `inverse` applies, that one is exact. λ is infinite at
    σ = 0, so the way up begins at the last node with σ > 0, or at `start`.
    """
    solver, nodes, options = recipe(plan)
    up = [t for t in reversed(nodes) if float(plan.process.sigma(t)) > 0]
    if start is not None:
        up = [start, *[t for t in up if t > start]]
    entry = find(solver)
    rows = entry.compile(plan.process, up, ascending=True, **{**entry.options, **options}).rows
    return Plan(rows, plan.process, name=f"reversed({solver})", order=entry.order)


def recipe(plan: Plan) -> tuple[str, list[float], dict]:
    """(solver, nodes, options) that a plan was compiled from; ValueError for plans made otherwise."""
    if "nodes" not in plan.options:
        raise ValueError(f"plan {plan.name!r} was not made by unstir.plan from a solver, so it cannot be compiled again")
    return plan.options["solver"], [float(t) for t in plan.options["nodes"]], dict(plan.options.get("solver_options", {}))
