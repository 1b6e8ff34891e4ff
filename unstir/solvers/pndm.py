"""F-PNDM: pseudo Runge–Kutta for three steps, then Adams–Bashforth (Pseudo Numerical Methods …, 2022).

With φ(x, e, s → t) = (α_t/α_s) x + (σ_t − (α_t/α_s) σ_s) e, a warm-up step from s to t over m, the
middle in time, takes four calls:

    e₁ at s;  e₂ at φ(x, e₁, s → m);  e₃ at φ(x, e₂, s → m);  e₄ at φ(x, e₃, s → t)
    x' = φ(x, (e₁ + 2e₂ + 2e₃ + e₄)/6, s → t)

and only e₁ enters the history of (55, −59, 37, −9)/24.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..plan.row import Row
from .adams import adams_weights, ddim_weight, noise_row
from .levels import Levels, Point
from .registry import compiler
from .singlestep import Stage, eliminate, plain_step


def pndm_stages(nfe: int, blank: bool, clean: bool) -> list[int]:
    """At most three warm-up steps of four calls; the rest, and a step from α = 0 or to σ = 0, one call each."""
    rest = nfe - blank - clean
    warm = min(3, rest // 4) if rest >= 4 else 0
    return [1] * nfe if warm == 0 else [1] * blank + [4] * warm + [1] * (rest - 4 * warm + clean)


@compiler
def pndm(levels: Levels, stages: list[int] | None = None) -> Iterator[Row]:
    """F-PNDM; see the module. N steps take N + 9 calls; order 2 in effect (constant-step weights)."""
    first = int(levels.alpha[0] == 0)
    if stages is None:
        stages = [4 if first <= i < first + 3 and levels.finite(i) else 1 for i in range(levels.n)]
    number, kept = 0, []  # row of the next call; rows whose slope is in the history
    for i in range(levels.n):
        start, end = levels[i], levels[i + 1]
        if levels.alpha[i] == 0:
            rows = [plain_step(start, end)]
        elif stages[i] == 4:
            kept.append(number)
            rows = list(_warm_up(levels, start, end))
        else:
            kept.append(number)
            w = adams_weights(min(4, len(kept)))
            step = ddim_weight(levels, i)
            rows = [noise_row(levels, i, {number - k: step * x for k, x in zip(reversed(kept), w, strict=False)})]
        number += len(rows)
        yield from rows


def _warm_up(levels: Levels, start: Point, end: Point) -> Iterator[Row]:
    t = torch.tensor(0.5 * (start.t + end.t), dtype=torch.float64)
    middle = Point(float(t), float(levels.process.alpha(t)), float(levels.process.sigma(t)))

    def stage(p: Point, *slopes: float) -> Stage:
        step = p.sigma - p.alpha / start.alpha * start.sigma
        return Stage(p, p.alpha / start.alpha, [step * w for w in slopes])

    stages = [stage(middle, 1), stage(middle, 0, 1), stage(end, 0, 0, 1), stage(end, 1 / 6, 1 / 3, 1 / 3, 1 / 6)]
    for row, at in zip(eliminate(start, stages), [start, middle, middle, end], strict=True):
        yield replace(row, p=1 / at.sigma, q=-at.alpha / at.sigma)
