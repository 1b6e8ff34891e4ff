"""Grids made for one model: shortest paths over a fine grid (GITS, OSS), and nodes moved by Gauss–Newton.

    nodes = tune.grid.gits(model, 6, shape=(1, 8, 8));    plan = unstir.plan("ddim", model, grid=nodes)

Both searches compare one student step, DDIM from t_j to t_k,

    step(x, j → k) = r x + (α_k − r α_j) D(x, t_j),    r = σ_k/σ_j,

with the teacher's states X_j on a fine grid of M steps, and choose n of its nodes by dynamic programming:

    GITS   C_jk = mean ‖step(X_j, j → k) − X_k‖, the path start → end of n edges with the least sum
    OSS    Z^m_j = the student's state at t_j after m steps; its last node is argmin_r mean ‖step(Z^{m−1}_r, r → j) − X_j‖

GITS sums errors of single steps from the teacher's states (M calls on every sample); OSS follows the student, so
errors may cancel (n M calls).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..plan.sample import sample
from ..process import Process
from ..solvers import compile_plan, make_grid
from ..solvers import plan as make_plan
from .teacher import Cond, Source

STEP = 1e-4  # of λ in a difference quotient
REFINE = 8  # teacher steps within a step of the fine grid


def gits(model: Any, nfe: int, *, samples: int = 64, fine: int = 60, **where: Any) -> list[float]:
    """The nodes of GITS (On the Trajectory Regularity of ODE-based Diffusion Sampling, 2024), n + 1 decreasing times.

    samples: teacher trajectories.   fine: steps of the fine grid, uniform in the logistic of λ unless where has
    `grid`.   where: process, shape, start, end, seed, cond, dtype, device, grid. ValueError for nfe > fine.
    """
    source, nodes, x, cond = _setting(model, nfe, samples, fine, **where)
    states = _teacher(source, nodes, x, cond)
    alpha, sigma = _levels(source.process, nodes)
    cost = torch.full((fine + 1, fine + 1), math.inf, dtype=torch.float64)
    with torch.no_grad():
        for j in range(fine):
            data = model(states[j], nodes[j], **cond)
            later = torch.arange(j + 1, fine + 1)
            ends = _ddim(states[j], data, alpha[j], sigma[j], alpha[later], sigma[later])
            cost[j, later] = _distance(ends, states[j + 1 :])
    total = torch.full((fine + 1,), math.inf, dtype=torch.float64)
    total[0] = 0.0
    came: list[Tensor] = []
    for _ in range(nfe):
        total, previous = (total[:, None] + cost).min(0)
        came.append(previous)
    return [nodes[j] for j in _walk(came, fine)]


def oss(model: Any, nfe: int, *, samples: int = 64, fine: int = 60, **where: Any) -> list[float]:
    """The nodes of OSS (Optimal Stepsize for Diffusion Sampling, 2025); arguments as in `gits`."""
    source, nodes, x, cond = _setting(model, nfe, samples, fine, **where)
    states = _teacher(source, nodes, x, cond)
    alpha, sigma = _levels(source.process, nodes)
    student: dict[int, Tensor] = {0: states[0]}
    came: list[Tensor] = []
    with torch.no_grad():
        for _ in range(nfe):
            best = torch.full((fine + 1,), math.inf, dtype=torch.float64)
            previous = torch.zeros(fine + 1, dtype=torch.long)
            new: dict[int, Tensor] = {}
            for r, z in student.items():
                if r == fine:
                    continue
                later = torch.arange(r + 1, fine + 1)
                ends = _ddim(z, model(z, nodes[r], **cond), alpha[r], sigma[r], alpha[later], sigma[later])
                distance = _distance(ends, states[r + 1 :])
                for k in (distance < best[later]).nonzero()[:, 0].tolist():
                    j = r + 1 + k
                    best[j], previous[j], new[j] = distance[k], r, ends[k]
            student = new
            came.append(previous)
    return [nodes[j] for j in _walk(came, fine)]


def fitted(
    model: Any, nfe: int, solver: str = "auto", *, samples: int = 256, steps: int = 15, teacher: int = 100, **where: Any
) -> list[float]:
    """The nodes whose plan of `solver` ends nearest the teacher's ends in the mean square, by Gauss–Newton on their λ.

    The solver's coefficients follow the nodes. It must make one call a step. Arguments as in `gits`.
    """
    source, nodes, x, cond = _setting(model, nfe, samples, nfe, **where)
    process, (start, end) = source.process, (nodes[0], nodes[-1])
    goal = sample(model, make_plan("auto", process, teacher, start=start, end=end), x=x, **cond)

    def residual(lam: Tensor) -> Tensor | None:
        times = [start, *process.time(lam).tolist(), end]
        if any(b >= a for a, b in pairwise(times)):
            return None
        return (sample(model, compile_plan(solver, process, times), x=x, **cond) - goal).double().flatten().cpu()

    lam, damping = process.logsnr(torch.tensor(nodes[1:-1], dtype=torch.float64)), 1e-2
    r = residual(lam)
    assert r is not None
    step = STEP if x.dtype == torch.float64 else 30 * STEP
    for _ in range(steps if len(lam) else 0):
        moved = [residual(lam + step * unit) for unit in torch.eye(len(lam), dtype=torch.float64)]
        jacobian = torch.stack([torch.zeros_like(r) if m is None else (m - r) / step for m in moved], 1)
        square = jacobian.T @ jacobian
        for _ in range(8):
            new = lam - torch.linalg.solve(square + damping * torch.diag(square.diagonal() + 1e-12), jacobian.T @ r)
            tried = residual(new)
            if tried is not None and tried.square().sum() < r.square().sum():
                break
            damping *= 4
        else:
            break
        gain = 1 - float(tried.square().sum() / r.square().sum())
        lam, r, damping = new, tried, damping / 3
        if gain < 1e-4:
            break
    return [start, *process.time(lam).tolist(), end]


def _setting(
    model: Any,
    nfe: int,
    samples: int,
    fine: int,
    *,
    process: Process | None = None,
    shape: Sequence[int] | None = None,
    start: float = 1.0,
    end: float = 0.0,
    grid: Any = "auto",
    seed: int = 0,
    cond: Cond = None,
    dtype: Any = None,
    device: Any = None,
) -> tuple[Source, list[float], Tensor, dict[str, Any]]:
    if isinstance(nfe, bool) or not isinstance(nfe, int) or not 1 <= nfe <= fine:
        raise ValueError(f"nfe={nfe!r} must be an integer from 1 to fine={fine}, the steps of the fine grid")
    source = Source.of(model, process, shape, seed, cond, start, samples, dtype, device)
    if source.process.anchored:
        raise ValueError(f"{source.process!r} is anchored; grids are searched on processes without an anchor")
    return (
        source,
        make_grid(grid, source.process, fine, start, end),
        source.start_state(range(samples)),
        source.conditions(range(samples)),
    )


def _teacher(source: Source, nodes: Sequence[float], x: Tensor, cond: dict[str, Any]) -> Tensor:
    """States on the nodes (M + 1, S, *), from `REFINE` third-order steps within every step (one where λ is infinite)."""
    process = source.process
    lam = process.logsnr(torch.tensor(list(nodes), dtype=torch.float64))
    times = [nodes[0]]
    for a, b, to in zip(lam[:-1], lam[1:], nodes[1:], strict=True):
        if bool(torch.isfinite(a)) and bool(torch.isfinite(b)):
            times += process.time(a + (b - a) * torch.arange(1, REFINE, dtype=torch.float64) / REFINE).tolist()
        times.append(to)
    plan = compile_plan("ab-2", process, times)
    wanted, states = set(nodes), [x]
    sample(source.model, plan, x=x, on_step=lambda step: states.append(step.x) if step.to in wanted else None, **cond)
    return torch.stack(states)


def _levels(process: Process, nodes: Sequence[float]) -> tuple[Tensor, Tensor]:
    t = torch.tensor(list(nodes), dtype=torch.float64)
    return process.alpha(t), process.sigma(t)


def _ddim(x: Tensor, data: Tensor, alpha: Tensor, sigma: Tensor, to_alpha: Tensor, to_sigma: Tensor) -> Tensor:
    """One DDIM step to many levels at once, (K, S, *)."""
    r = to_sigma / sigma
    wide = (-1,) + (1,) * x.ndim
    return r.to(x).view(wide) * x + (to_alpha - r * alpha).to(x).view(wide) * data


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the samples of ‖x − y‖, per level (K,)."""
    return (x - y).double().flatten(2).norm(dim=2).mean(1).cpu()


def _walk(came: Sequence[Tensor], last: int) -> list[int]:
    path = [last]
    for previous in reversed(came):
        path.append(int(previous[path[-1]]))
    return path[::-1]
