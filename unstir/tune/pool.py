"""Which noises to fit to: plain ones, and those whose trajectories are hard to follow.

A few trajectories pass near a boundary between modes, and a small error on the way sends them into another one. They are
rare (one in a thousand, say) and decide the mean square; samples drawn at random hold too few of them to fit to or to
choose by, and a fit to those few does not carry over. Their teacher's ends are dear (a hundred calls), but where they
are is cheap to see: two plans of few calls end at different places. So of a pool of P noises the K on which two plans
differ most are all taken, and the others are represented by plain ones:

    weights:  1 for the K hard samples,   (P − K)/U for the U plain samples that are not among them,

which makes every weighted mean an estimate of the mean over the pool. A fit that follows the hard samples may lose others;
so they are looked for twice, with the plan of each stage (`fit`), and those of the first stage are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..solvers import plan as make_plan
from .fit import Runner
from .teacher import Chunk, Source

FINE = "auto"  # the solver of the second plan if the base's cannot make twice as many calls


def finer(source: Source, base: Plan, nfe: int, end: float) -> Plan:
    """The base's solver with twice as many calls."""
    for solver in (base.options.get("solver"), FINE):
        try:
            return make_plan(str(solver), source.process, nfe=2 * nfe, start=source.start, end=end)
        except (ValueError, TypeError):  # a plan that no solver made, or one that wants more than a name
            continue
    raise AssertionError("unreachable: the default solver makes any even number of calls")  # pragma: no cover


def hardest(
    source: Source, runner: Runner, plans: tuple[Plan, Plan], pool: Sequence[int], count: int, known: Sequence[int] = ()
) -> list[int]:
    """The `count` samples of the pool on which the ends of two plans differ most, by number, and those known before."""
    if count == 0:
        return []
    gaps: list[Tensor] = []
    for part in source.chunks(pool):
        x, cond = source.start_state(part), source.conditions(part)
        one, two = (runner.seen(source.run(plan, x, cond), Chunk(x, x, cond)) for plan in plans)
        gaps.append((one - two).double().square().mean(1).cpu())
    order = torch.cat(gaps).nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
    return sorted({*known, *(pool[k] for k in order[:count].tolist())})


def stratified(
    source: Source, teacher: Plan, pool: Sequence[int], plain: Sequence[Chunk], hard: Sequence[int], folder: Path | None
) -> list[Chunk]:
    """The hard samples and those of the plain chunks, the first of the pool, that are not among them, with their weights."""
    known, rest, first = set(hard), [], 0
    for chunk in plain:
        rows = [k for k in range(len(chunk.x)) if pool[first + k] not in known]
        first += len(chunk.x)
        if rows:
            rest.append(chunk.rows(torch.tensor(rows)))
    weight = (len(pool) - len(hard)) / max(sum(len(chunk.x) for chunk in rest), 1)
    return [_weighing(c, 1.0) for c in source.teach(teacher, hard, folder)] + [_weighing(c, weight) for c in rest]


def _weighing(chunk: Chunk, weight: float) -> Chunk:
    return replace(chunk, weight=torch.full((len(chunk.x),), weight, dtype=torch.float64))
