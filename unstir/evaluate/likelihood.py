"""Exact likelihood by the probability-flow ODE: how probable a model says that a sample is.

With dx/dt = v(x, t) the density of x_t obeys d log p_t(x_t)/dt = −∇·v, so from the data at t₀ up to the prior at t₁

    log p_{t₀}(x) = log p_{t₁}(X_{t₁}) + ∫_{t₀}^{t₁} ∇·v(X_t, t) dt,     X_{t₀} = x.

A state {x, change} runs through a "field-…" plan upwards, with the derivative (v, ∇·v). The divergence is exact, n
vector–Jacobian products for n values, or Hutchinson's estimate e·(∂v/∂x)e with random signs e, which is unbiased and
costs one. (Score-Based Generative Modeling through SDEs, 2021; FFJORD, 2019; Stochastic Interpolants, 2023.)

An ordinary denoiser is run on straight paths whatever its process: with s = α + σ and u = σ/s the state x_f = x/s
moves by dx_f/du = (x_f − D)/u, finite at both ends, and log p(x) = log p_f(x/s) − n log s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._random import draw, sample_keys
from ..denoiser.inner import evaluate
from ..plan import sample
from ..process import Flow, Marginal, Poisson, Process
from ..process.base import expand, float64
from ..solvers import make_grid
from ..solvers import plan as make_plan

_SIGNS = 1 << 36  # the noise stream of Hutchinson's signs


def log_likelihood(
    model: Any,
    x: Tensor,
    *,
    nfe: int = 128,
    solver: str = "field-rk-4",
    divergence: str = "exact",
    probes: int = 1,
    seed: int = 0,
    at: float | None = None,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    anchor: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """log p(x) in nats, (B,) float64, of states x (B, *) at time `at` of the model's process.

    model: a `Denoiser` (any callable D(x, t) with a process), or a `Field`.
    at: time that x belongs to; by default the clean end of the process's span (an ODE cannot start at σ = 0,
        where a density may not exist), so data count as stirred by that little.
    nfe, solver: calls, and a solver of `unstir.solvers.FIELD_SOLVERS`. Its error is of that solver's order.
    divergence: "exact" or "hutchinson", with `probes` draws of signs from the samples' own streams.
    log_prior: log density of the end of the path, (B, *) -> (B,): needed where the source is no Gaussian. By default
        the prior of the process; what of the data is still seen at t = 1 is neglected (α²/σ² times its variance).
    anchor: y of an anchored process whose network sees it: log p(x | y).

    Raises ValueError for an unknown divergence, a time outside the process, and a source whose density is not given.
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence={divergence!r} must be 'exact' or 'hutchinson'")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r} must be an integer of at least 1")
    process = getattr(model, "process", None)
    if not isinstance(process, Process):
        raise TypeError(f"model {type(model).__name__} has no process; give an unstir.Denoiser or an unstir.denoiser.Field")
    start = process.span[0] if at is None else float(at)
    if not 0 < start < 1:
        raise ValueError(f"at={at} must lie inside (0, 1), where the state has a density")
    jacobian = 0.0
    if isinstance(process, Marginal):
        velocity, run, top = lambda u, t: model(u, t, **cond), process, process.span[1]
        nodes, prior = [start, top], log_prior or (lambda z: process.log_prior(z, top))
        times: Any = "uniform"
    else:
        straight = Poisson(process.tails, Flow()) if math.isfinite(process.tails) else Flow()
        start_u, top = (float(straight.time(process.logsnr(t))) for t in (start, 1.0))
        scale = float(process.alpha(start) + process.sigma(start))
        x = process.centre(x, start, anchor) / scale
        jacobian = -x[0].numel() * math.log(scale)
        velocity = _straightened(model, process, straight, anchor, cond)
        run, nodes, times = Marginal(straight), [start_u, top], "logistic"
        prior = log_prior or partial(_last, velocity, straight, top)
    up = _upward(solver, run, nfe, nodes, times)
    signs = None if divergence == "exact" else _rademacher(sample_keys(len(x), seed), x, probes)
    state = {"x": x, "change": torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)}
    end = sample(_Transport(velocity, signs), {"x": up, "change": up}, x=state)
    return prior(end["x"]).double() + end["change"][:, 0] + jacobian


def _last(velocity: Callable[[Tensor, Any], Tensor], straight: Process, top: float, z: Tensor) -> Tensor:
    """log density of z at the end of the path, N((1 − u) D, u²) or its heavy-tailed kin: (1 − u) D is nearly 0."""
    with torch.no_grad():
        data = z - top * velocity(z, top)
    return straight.log_prior(z - (1 - top) * data, top)


def _upward(solver: str, run: Process, nfe: int, ends: list[float], grid: str) -> Any:
    """The solver's plan with its nodes turned round, from the data up."""
    straight = run.base if isinstance(run, Marginal) else run
    count = len(make_plan(solver, run, nfe, "uniform", ends[1], ends[0]).options["nodes"]) - 1
    nodes = make_grid(grid, straight, count, ends[1], ends[0])
    return make_plan(solver, run, grid=nodes[::-1])


def _straightened(model: Any, process: Process, straight: Process, anchor: Tensor | None, cond: dict[str, Any]) -> Any:
    """(x_f − D)/u, the velocity on straight paths, from a denoiser of any process."""
    sees = anchor is not None and process.anchored and getattr(model, "sees_anchor", False)
    more = {**cond, "anchor": anchor} if sees else cond

    def velocity(xf: Tensor, u: Any) -> Tensor:
        t = process.time(straight.logsnr(u))
        s = expand(process.alpha(t) + process.sigma(t), xf)
        data = evaluate(model, process.uncentre(s * xf, t, anchor), t, None, more)
        return (xf - data) / expand(float64(u), xf)

    return velocity


class _Transport(nn.Module):
    """d/dt of {x, change}: {v, ∇·v}."""

    def __init__(self, velocity: Callable[[Tensor, Any], Tensor], signs: Tensor | None) -> None:
        super().__init__()
        self.velocity, self.signs = velocity, signs

    def forward(self, state: dict[str, Tensor], t: Any) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = state["x"].detach().requires_grad_(True)
            v = self.velocity(x, t)
            if not v.requires_grad:
                raise ValueError("the model's result has no graph, so it has no divergence (compiled, or run without autograd)")
            change = _trace(v, x) if self.signs is None else _estimate(v, x, self.signs)
        return {"x": v.detach(), "change": change.double()[:, None]}


def _trace(v: Tensor, x: Tensor) -> Tensor:
    """Σ_i ∂v_i/∂x_i per sample."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for i, column in enumerate(v.flatten(1).unbind(1)):
        (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
        total = total + slope.flatten(1)[:, i]
    return total


def _estimate(v: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """Mean over the probes of e·(∂v/∂x)ᵀe per sample."""
    found = [(torch.autograd.grad((v * e).sum(), x, retain_graph=True)[0] * e).flatten(1).sum(1) for e in signs]
    return torch.stack(found).mean(0)


def _rademacher(keys: list[int], like: Tensor, probes: int) -> Tensor:
    """(probes, B, *) of ±1."""
    z = torch.stack([draw(keys, like.shape[1:], _SIGNS + k, like.dtype, like.device) for k in range(probes)])
    return torch.where(z < 0, -1.0, 1.0).to(like)
