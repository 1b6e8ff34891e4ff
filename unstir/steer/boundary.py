"""The start state as a parameter: one x_T, found on a few references, that serves every later input.

The end of a deterministic plan is a function h(x_T, y) of its start and its condition. Good starts are good for most y,
so the best of K candidates on a reference set R of pairs (y_r, x_r),

    x̃_T = argmin_k 1/|R| Σ_r M(h(x_T^(k), y_r), x_r),

is kept and used for all inputs, with the same plan. It is a search, no gradient: K |R| runs, fewer by halving.
(Solving Diffusion ODEs with Optimal Boundary Conditions for Better Image Super-Resolution, 2024.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._random import draw, mix
from ..plan import Plan, sample

Metric = Callable[[Tensor, Tensor], Tensor]
FEW, FLAT = 4, 1e-6  # references of the first round of halving; a spread of scores that says nothing


@dataclass(frozen=True)
class StartState:
    """x̃_T: `x` (1, *) broadcasts over a batch by `expand`. It belongs to one plan, whose fingerprint is `plan`.

    index: number of the candidate, drawn from (seed, index); −1 is x_T = 0, and user candidates count down from −2.
    score: mean of M over the references; table: {index: M (r,) of the references it was measured on}.
    correlation: rank correlation of the candidates' scores on two halves of the references, 1 if sharing is perfect,
    and NaN where fewer than three candidates saw all references.
    """

    x: Tensor
    seed: int
    index: int
    plan: str
    score: float
    table: Mapping[int, Tensor]
    correlation: float

    def expand(self, plan: Plan, count: int) -> Tensor:
        """The start of `count` samples; ValueError for another plan than that of the search."""
        if plan.fingerprint() != self.plan:
            raise ValueError(
                f"this start was found for the plan {self.plan}, not for {plan.name} {plan.fingerprint()}; search again, "
                "since solver, grid and number of calls decide which start is good"
            )
        return self.x.expand(count, *self.x.shape[1:])


def candidate(plan: Plan, shape: tuple[int, ...], seed: int, index: int, like: Tensor) -> Tensor:
    """x_T^(k) (1, *shape): σ(t_0) z with z from the stream (seed, k), on the CPU, so that it can be made again to the bit."""
    z = draw([mix(seed, index)], shape, 0, like.dtype, like.device)
    return float(plan.process.sigma(plan.start)) * z


def search_start(
    model: Any,
    plan: Plan,
    truth: Tensor,
    metric: Metric,
    cond: Mapping[str, Tensor] | None = None,
    *,
    candidates: int = 60,
    halving: bool = True,
    extra: Tensor | None = None,
    chunk: int = 1024,
    seed: int = 0,
) -> StartState:
    """The best of `candidates` random starts, x_T = 0 and `extra` (n, *) on the references; see the module.

    model: conditional; cond: its keywords, tensors with one entry for each of the references `truth` (R, *).
    metric: (x, truth), both (n, *) -> (n,), smaller is better.
    halving: all candidates on 4 references, the best quarter on 16, and so on; False measures all on all.
    chunk: samples in one network call; it does not change the result.

    Raises ValueError for a plan with noise, references that do not fit, a metric that is not one number a sample, and
    a model whose results do not depend on the start.
    """
    cond = dict(cond or {})
    _check(plan, truth, cond, candidates, chunk)
    shape = tuple(truth.shape[1:])
    starts = {-1: torch.zeros(1, *shape, dtype=truth.dtype, device=truth.device)}
    if extra is not None:
        if extra.shape[1:] != truth.shape[1:]:
            raise ValueError(f"extra has shape {tuple(extra.shape)}; candidates must be (n, {', '.join(map(str, shape))})")
        starts |= {-2 - i: x[None] for i, x in enumerate(extra)}
    starts |= {k: candidate(plan, shape, seed, k, truth) for k in range(candidates)}

    table: dict[int, Tensor] = {k: torch.empty(0, dtype=torch.float64) for k in starts}
    alive, done = list(starts), 0
    sizes = [n for n in (FEW * 4**i for i in range(12)) if n < len(truth)] if halving else []
    for seen in [*sizes, len(truth)]:
        part = slice(done, seen)
        found = _measure(
            model, plan, [starts[k] for k in alive], truth[part], {n: c[part] for n, c in cond.items()}, metric, chunk
        )
        for k, row in zip(alive, found, strict=True):
            table[k] = torch.cat([table[k], row])
        if done == 0 and len(alive) > 1 and float(found.std(0).max()) < FLAT:
            raise ValueError(f"the scores of {len(alive)} starts differ by less than {FLAT}: the model ignores its start")
        done = seen
        alive.sort(key=lambda k: float(table[k].mean()))
        if seen < len(truth):
            alive = alive[: max(1, -(-len(alive) // 4))]
    best = alive[0]
    whole = torch.stack([table[k] for k in alive])
    return StartState(
        starts[best], seed, best, plan.fingerprint(), float(table[best].mean()), table, rank_correlation_of_halves(whole)
    )


def _check(plan: Plan, truth: Tensor, cond: Mapping[str, Tensor], candidates: int, chunk: int) -> None:
    if plan.stochastic:
        raise ValueError(
            f"plan {plan.name!r} adds noise; a start decides the result only of a deterministic plan, such as 'ddim'"
        )
    for name, value in {"candidates": candidates, "chunk": chunk}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if not bool(torch.isfinite(truth).all()):
        raise ValueError("truth contains NaN or infinite values")
    for name, value in cond.items():
        if not isinstance(value, Tensor) or len(value) != len(truth):
            raise ValueError(f"cond[{name!r}] must be a tensor with one entry for each of the {len(truth)} references")
    if len(truth) == 1:
        warnings.warn("one reference: the start will fit it and nothing else; give a few dozen", stacklevel=3)


def _measure(
    model: Any, plan: Plan, starts: list[Tensor], truth: Tensor, cond: Mapping[str, Tensor], metric: Metric, chunk: int
) -> Tensor:
    """M of every start on every reference, (K, r) float64."""
    pairs = [(k, r) for k in range(len(starts)) for r in range(len(truth))]
    rows = []
    for first in range(0, len(pairs), chunk):
        these = pairs[first : first + chunk]
        x, who = torch.cat([starts[k] for k, _ in these]), torch.tensor([r for _, r in these], device=truth.device)
        keywords: dict[str, Any] = {name: value[who] for name, value in cond.items()}
        end = sample(model, plan, x=x, **keywords)
        scores = metric(end, truth[who])
        if not isinstance(scores, Tensor) or scores.shape != (len(these),):
            form = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"metric returned {form} for {len(these)} pairs; it must return one number a sample, (n,)")
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("metric returned NaN or infinite scores")
        rows.append(scores.double().cpu())
    return torch.cat(rows).reshape(len(starts), len(truth))


def rank_correlation_of_halves(table: Tensor) -> float:
    """Spearman's correlation of the rows' means over even and over odd columns; NaN for fewer than 3 rows or 2 columns."""
    if table.shape[0] < 3 or table.shape[1] < 2:
        return float("nan")
    return rank_correlation(table[:, ::2].mean(1), table[:, 1::2].mean(1))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two lists without ties."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])
