"""Gauss–Newton on the few numbers of a table.

A table has some tens of free numbers θ and the residual has millions of entries, R = X_N(θ) − teacher. So the Jacobian
J = ∂R/∂θ is taken column by column, by difference quotients of forward runs that begin at the row a number touches:
no graph is kept, memory does not grow with the calls, and any callable is a model (guided, compiled, quantised).

    minimise  L(θ) = mean R² + pull ‖θ − θ_0‖²
    step      (JᵀJ + pull I + μ diag) Δθ = −Jᵀ R − pull (θ − θ_0)        (Levenberg–Marquardt; means over the samples)

μ falls after a step that lowers L and rises after one that does not.

Samples have weights w with sum 1, and means are Σ w. A few trajectories that pass near a boundary between modes make up
most of L. JᵀJ and JᵀR are therefore estimated on `focus` samples drawn with probability p = ½ (w + w R²/Σ w R²) and
weighted by w/p, unbiased, and afresh in every step; L itself is always that of all S samples.

A trajectory that ends in another mode is far from where its linearisation holds, and pulls θ away from what suits the
others. The first stage therefore minimises the robust

    L_1(θ) = Σ w c² log(1 + R_s²/c²),      c = 10 medians of R_s,

by the same step with weights w/(1 + R_s²/c²) (iteratively reweighted least squares); the second stage minimises L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser.denoiser import combine
from .table import Table
from .teacher import Chunk, weights

Features = Callable[[Tensor], Tensor] | None
FOCUS = 512  # samples on which a Jacobian is taken
ROBUST = 10.0  # c in medians
STEP = {torch.float64: 1e-6, torch.float32: 3e-3}  # of a difference quotient: rounding against curvature


@dataclass
class Runner:
    """Runs tables on chunks, in the centred state, from any row on."""

    model: Any
    features: Features = None

    def predict(self, table: Table, row: int, x: Tensor, cond: dict[str, Any]) -> Tensor:
        """D_row at the state x."""
        if row == 0 and table.constant is not None:
            constant = torch.as_tensor(table.constant, dtype=x.dtype, device=x.device)
            return constant.expand_as(x)
        told = table.told()[row]
        anchor = cond.get("anchor")
        if anchor is not None and not getattr(self.model, "sees_anchor", False):
            cond = {k: v for k, v in cond.items() if k != "anchor"}
        return self.model(table.process.uncentre(x, told, anchor), told, **cond)

    def run(
        self, table: Table, chunk: Chunk, states: Sequence[Tensor] = (), data: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(X_0 … X_N, D_0 …), given the first of each; what is given is not computed again."""
        x, d = list(states) or [chunk.x], list(data)
        a, b = table.coefficients()
        for i in range(len(x) - 1, table.n):
            if len(d) == i:
                d.append(self.predict(table, i, x[i], dict(chunk.cond)))
            x.append(combine([(a[i], x[i]), *((w, d[j]) for j, w in enumerate(b[i, : i + 1].tolist()))]))
        return x, d

    def end(self, table: Table, chunk: Chunk) -> Tensor:
        """What is compared with the teacher: X_N, or its features."""
        return self.seen(self.run(table, chunk)[0][-1], chunk)

    def seen(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Features of an end state (the data are where β = 0: the centred end state is the picture)."""
        return (x if self.features is None else self.features(x)).flatten(1)

    def squares(self, table: Table, chunks: Sequence[Chunk]) -> Tensor:
        """Mean square residual of every sample, float64 (S,), on the CPU."""
        return torch.cat([(self.end(table, c) - self.seen(c.goal, c)).double().square().mean(1).cpu() for c in chunks])

    def error(self, table: Table, chunks: Sequence[Chunk]) -> float:
        """Root of the weighted mean square of the residual; infinite if a run fails."""
        value = float((weights(chunks) * self.squares(table, chunks)).sum().sqrt())
        return value if math.isfinite(value) else math.inf

    def normal(self, table: Table, chunks: Sequence[Chunk], each: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(JᵀJ, JᵀR), means over samples and entries with a weight for every sample, float64."""
        theta, layout = table.theta(), table.layout()
        size = len(layout)
        square, slope = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for chunk, weight in zip(chunks, each, strict=True):
            x, d = self.run(table, chunk)
            end = self.seen(x[-1], chunk)
            step = STEP.get(end.dtype, 3e-3)
            root = (weight.to(end.device) / end.shape[1]).sqrt()[:, None]
            columns = []
            for k, (row, kind, _) in enumerate(layout):
                moved = table.with_theta(theta + step * torch.eye(size, dtype=torch.float64)[k])
                known = row if kind == "shift" else row + 1
                x2, _ = self.run(moved, chunk, x[: row + 1], d[:known])
                columns.append((root * ((self.seen(x2[-1], chunk) - end) / step).double()).flatten())
            jacobian = torch.stack(columns)
            r = (root * (end - self.seen(chunk.goal, chunk)).double()).flatten()
            square += (jacobian @ jacobian.T).cpu()
            slope += (jacobian @ r).cpu()
        return square, slope


def focused(
    chunks: Sequence[Chunk], squares: Tensor, count: int, seed: int, each: Tensor | None = None
) -> tuple[list[Chunk], list[Tensor]]:
    """`count` draws of samples, p = ½ (w + w R²/Σ w R²), with the weights w/(p · draws) that make their sums means.

    each: the w, by default the samples' own.
    """
    w = weights(chunks) if each is None else each
    sizes = [len(c.x) for c in chunks]
    if count >= len(w):
        return list(chunks), list(w.split(sizes))
    loss = w * squares
    p = 0.5 * w / w.sum() + 0.5 * loss / loss.sum().clamp_min(1e-300)
    drawn = torch.multinomial(p, count, True, generator=torch.Generator().manual_seed(seed))
    times = torch.bincount(drawn, minlength=len(w))
    parts, found = [], []
    for chunk, own, ratio in zip(chunks, times.split(sizes), (w / p / count).split(sizes), strict=True):
        rows = own.nonzero()[:, 0]
        if len(rows):
            parts.append(chunk.rows(rows))
            found.append(own[rows] * ratio[rows])
    return parts, found


@dataclass
class Fit:
    """Where a fit stands: the table, θ_0, the damping μ, the best table on validation and its error there.

    stage: 0 begun, 1 robust, 2 mean square.   hard: the samples beside the plain ones that it is fitted to in this stage,
    and those that it is chosen by, see `pool`.
    """

    table: Table
    origin: Tensor
    damping: float = 1e-2
    best: Table | None = None
    best_error: float = float("inf")
    done: int = 0
    waited: int = 0
    stage: int = 0
    hard: tuple[list[int], list[int]] = ([], [])


def gauss_newton(
    runner: Runner,
    fit: Fit,
    train: Sequence[Chunk],
    validation: Sequence[Chunk],
    steps: int,
    *,
    robust: bool = False,
    focus: int = FOCUS,
    pull: float = 0.0,
    patience: int = 12,
    tolerance: float = 1e-4,
    report: Callable[[Fit], None] = lambda fit: None,
) -> Fit:
    """Accepted steps until `fit.done` is `steps`, on L, or with robust=True on L_1.

    Ends early when that falls by less than `tolerance` three times, or validation for `patience` steps. The result's
    `best` is the table with the smallest validation error seen. `report` is called after every step.
    """
    w, squares = weights(train), runner.squares(fit.table, train)
    if fit.best is None:
        fit.best, fit.best_error = fit.table, runner.error(fit.table, validation)
    failed = 0
    while fit.table.layout() and fit.done < steps and fit.waited < patience and failed < 3:
        theta = fit.table.theta()
        scale = (ROBUST * median(squares.sqrt(), w)) ** 2 if robust else math.inf
        before = _loss(squares, w, scale) + pull * float((theta - fit.origin).square().sum())
        each = w / (1 + squares / scale)
        square, slope = runner.normal(fit.table, *focused(train, squares, focus, 10 * fit.done + failed, each))
        square = square + pull * torch.eye(len(theta), dtype=torch.float64)
        slope = slope + pull * (theta - fit.origin)
        diagonal = torch.diag(square.diagonal() + 1e-9 * square.diagonal().max())
        value, table = math.inf, fit.table
        for _ in range(5):
            table = fit.table.with_theta(theta - torch.linalg.solve(square + fit.damping * diagonal, slope))
            if table.valid():
                tried = runner.squares(table, train)
                value = _loss(tried, w, scale) + pull * float((table.theta() - fit.origin).square().sum())
                if value < before:
                    squares = tried
                    break
            fit.damping *= 4
        if not value < before * (1 - tolerance):
            failed += 1
        else:
            failed = 0
        if not value < before:
            continue
        fit.table, fit.damping, fit.done = table, max(fit.damping / 3, 1e-9), fit.done + 1
        error = runner.error(table, validation)
        fit.waited = 0 if error < fit.best_error * (1 - 1e-3) else fit.waited + 1
        if error < fit.best_error:
            fit.best, fit.best_error = table, error
        report(fit)
    return fit


def _loss(squares: Tensor, w: Tensor, scale: float) -> float:
    """Σ w c² log(1 + R²/c²); the mean square for c² = ∞."""
    return float((w * (squares if math.isinf(scale) else scale * torch.log1p(squares / scale))).sum())


def median(values: Tensor, w: Tensor) -> float:
    """The least value up to which half of the weight lies."""
    order = values.argsort()
    half = torch.searchsorted(w[order].cumsum(0), 0.5 * float(w.sum()))
    return float(values[order[min(int(half), len(values) - 1)]])
