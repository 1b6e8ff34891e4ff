"""Where `learn` starts: the fixed plans that it has to beat, and the best of a few first attempts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..plan.state import NonFiniteError
from ..solvers import plan as make_plan
from .fit import Fit, Runner, gauss_newton
from .table import Table, project
from .teacher import Chunk, Source, weights

SOLVERS = (
    "auto", "unipc-bh2", "unipc", "ab-2", "dpmpp-2m", "dpmpp-3m", "ghvb-4", "plms", "dpm-3m", "ddim",
    "flow-adams-3", "flow-adams", "ipndm", "tab-4",
)  # fmt: skip
GRIDS = ("logistic", "quadratic", "logsnr")
PROBE = 32  # samples on which all fixed plans run
FINAL = 8  # of them, the best on these, that run on all validation noises
BLANK = 0.15  # D_0 is taken for a constant if it varies by less than this part of the data's root mean square
FEW = 64  # samples of first attempts
TRIALS = 6  # steps of every first attempt
STARTS = 2  # fixed plans that are attempted
SMALL = 65536  # entries of the largest constant that is kept as a tensor


class Fixed(NamedTuple):
    """A fixed plan and its error on the validation noises."""

    error: float
    plan: Plan


def fixed_plans(
    source: Source, runner: Runner, held: Sequence[Chunk], nfe: int, end: float, base: Any
) -> tuple[list[Fixed], dict[str, float]]:
    """The best fixed plans of `nfe` calls, best first; and {plan: its error on a few samples}, of all that were tried.

    Only the given plan if there is one.
    """
    if isinstance(base, Plan):
        plans = {base.name: base}
    elif isinstance(base, str):
        plans = {base: make_plan(base, source.process, nfe=nfe, start=source.start, end=end)}
    else:
        plans = _catalogue(source, nfe, end)
    errors = {name: plan_error(source, runner, plan, probe(held)) for name, plan in plans.items()}
    tried = dict(sorted(errors.items(), key=lambda item: item[1]))
    best = [Fixed(plan_error(source, runner, plans[name], held), plans[name]) for name in list(tried)[:FINAL]]
    return sorted(best, key=lambda fixed: fixed.error), tried


def probe(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The few samples on which every plan is tried."""
    return [chunks[0].rows(torch.arange(min(PROBE, len(chunks[0].x))))]


def _catalogue(source: Source, nfe: int, end: float) -> dict[str, Plan]:
    """{solver × grid: plan}, equal tables once."""
    plans: dict[str, Plan] = {}
    known: set[str] = set()
    for grid in GRIDS:
        for name in SOLVERS:
            try:
                plan = make_plan(name, source.process, nfe=nfe, grid=grid, start=source.start, end=end)
            except ValueError:  # too few calls for this solver or grid
                continue
            if plan.fingerprint() not in known:
                plans[f"{name} × {grid}"] = plan
                known.add(plan.fingerprint())
    return plans


def squared_errors(source: Source, runner: Runner, plan: Plan, chunks: Sequence[Chunk]) -> list[Tensor]:
    """Mean square distance of every end of a plan from the teacher's, in the runner's features, chunk by chunk, float64."""
    squares = []
    for chunk in chunks:
        try:
            end = runner.seen(source.run(plan, chunk.x, chunk.cond), chunk)
        except NonFiniteError:
            end = torch.full_like(runner.seen(chunk.goal, chunk), torch.inf)
        r = (end - runner.seen(chunk.goal, chunk)).double()
        squares.append(r.square().mean(1).cpu())
    return squares


def plan_error(source: Source, runner: Runner, plan: Plan, chunks: Sequence[Chunk]) -> float:
    """Root (weighted) mean square distance of the ends of any plan from the teacher's, in the runner's features."""
    return float((weights(chunks) * torch.cat(squared_errors(source, runner, plan, chunks))).sum().sqrt())


def best_start(
    source: Source,
    runner: Runner,
    fixed: Sequence[Fixed],
    train: Sequence[Chunk],
    held: Sequence[Chunk],
    nfe: int,
    end: float,
    constant: bool | str,
    form: dict[str, Any],
) -> Fit:
    """The fit, begun on few samples from the most promising tables, that is best on the validation noises.

    If `constant` allows, the tables have D_0 replaced by its mean, and so one row more.
    """
    few = [train[0].rows(torch.arange(min(FEW, len(train[0].x))))]
    mean = _mean_data(source, train, constant)
    if mean is None:
        tables = _projected([plan for _, plan in fixed], form)
    else:
        tables = _projected(list(_catalogue(source, nfe + 1, end).values()), {**form, "constant": mean})
        tables.sort(key=lambda table: runner.error(table, probe(few)))
    if not tables:
        raise ValueError("no fixed plan can be started from; give base=, a deterministic plan that visits every time once")
    fits = [gauss_newton(runner, Fit(table, table.theta()), few, held, TRIALS, patience=TRIALS) for table in tables[:STARTS]]
    best = min(fits, key=lambda fit: fit.best_error)
    assert best.best is not None
    return Fit(best.best, best.origin, best=best.best, best_error=best.best_error)


def _projected(plans: Sequence[Plan], form: dict[str, Any]) -> list[Table]:
    tables: list[Table] = []
    for plan in plans:
        with suppress(ValueError):  # a plan that visits a time twice
            tables.append(project(plan, **form))
    return tables


def _mean_data(source: Source, train: Sequence[Chunk], constant: bool | str) -> float | Tensor | None:
    """The mean of D at the start over noises and conditions, of one sample's shape (a number if that is large).

    None if `constant` is False, or "auto" and D there is not the same for all.
    """
    if constant is False:
        return None
    parts = []
    for chunk in train:
        cond = dict(chunk.cond)
        anchor = cond.get("anchor")
        if anchor is not None and not getattr(source.model, "sees_anchor", False):
            cond.pop("anchor")
        x = source.process.uncentre(chunk.x, source.start, anchor)
        parts.append(source.model(x, source.start, **cond).cpu().double())
    data = torch.cat(parts)
    mean = data.mean(0)
    size = torch.cat([chunk.goal.cpu() for chunk in train]).double().square().mean().sqrt()
    if constant == "auto" and float((data - mean).square().mean().sqrt()) > BLANK * float(size):
        return None
    return mean if mean.numel() <= SMALL else float(mean.mean())
