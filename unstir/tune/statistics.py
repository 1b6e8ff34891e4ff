"""Empirical model statistics: the curves l, s, b that `unstir.solvers.ems_multistep` integrates exactly.

In the scaled state x̂ = x/α and half log-SNR λ the probability-flow equation is, on every process,

    dx̂/dλ = D − x̂,      D(x̂, λ) = E[x0 | x̂],      ' = d/dλ along it:  D' = ∂_λ D + ∂_x̂ D · (D − x̂)

At each knot, over stirred data and elementwise (DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical
Model Statistics, 2023):

    l = 1 − E[diag ∂_x̂ D]  =  1 − E[v ⊙ (∂_x̂ D · v)],      v = ±1 at random
    f = (1 − l) x̂ − D,      f' = (1 − l)(D − x̂) − l' x̂ − D'
    s, b = argmin E |f' − s f − b|²:      s = cov(f, f')/(var f + ε),      b = E f' − s E f

f and f' are linear in (x̂, D, D'), so one pass that gathers the means and covariances of these three is
enough; l' is known only when it is over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..process import Process
from ..process.base import expand
from ..solvers.ems import Statistics

AVERAGES = ("dimension", "channel", "scalar")
RIDGE = 1e-4  # ε relative to the mean square of the data: an f that varies by less than 1 % of them has no slope to trust

Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]
Jvp = Callable[[Function, Tensors, Tensors], tuple[Tensor, Tensor]]


@torch.no_grad()
def model_statistics(
    model: Any,
    data: Tensor | Dataset,
    *,
    knots: int = 120,
    samples: int = 1024,
    start: float | None = None,
    end: float | None = None,
    average: str = "dimension",
    smooth: float = 0.15,
    batch: int = 256,
    seed: int = 0,
    process: Process | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    **cond: Any,
) -> Statistics:
    """Measure l, s and b of a model with Jacobian–vector products, `knots` · `samples` · 2 of them.

    model: called as model(x, t (B,), **cond) -> data prediction, guidance included; it must be differentiable
        in x and t. Without forward-mode derivatives they are taken by double backward, or else by
        central differences, with a warning.
    data: (n, *shape) clean samples, or a `Dataset`; at each knot `samples` are drawn from it (with
        replacement if there are fewer). More samples help more than more knots.
    start, end: times of the first and the last knot (default: the span of the process); λ is uniform in between.
    average: "dimension" keeps a curve for every value of a sample, "channel" one per first axis, "scalar" one.
    smooth: width in λ of the window in which l is smoothed (0: not at all). l' amplifies its noise.
    process: of a model that has no `process` of its own.
    progress: called with {"step", "steps"} after every knot.

    Raises ValueError naming the argument: data too few or not finite, unknown average, λ infinite at an end.
    """
    process = getattr(model, "process", None) if process is None else process
    if not isinstance(process, Process) or process.anchored:
        raise TypeError(f"the model's process is {process!r}; give process=, a process without an anchor")
    data = _samples(data, samples)
    lam = _knots(process, knots, start, end)
    axes = _averaged(average, data.ndim - 1)
    if not (0 <= smooth < float("inf")):
        raise ValueError(f"smooth={smooth} must be a width in λ, at least 0")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r} must be an integer of at least 1")
    device = next((p.device for p in model.parameters()), data.device) if isinstance(model, nn.Module) else data.device
    generator = torch.Generator().manual_seed(seed)
    jvp: Jvp | None = None
    gathered = []
    with _evaluating(model):
        for i, (level, time) in enumerate(zip(lam, process.time(lam), strict=True)):
            rows = torch.randperm(len(data), generator=generator)[:samples]
            if samples > len(data):
                rows = torch.randint(len(data), (samples,), generator=generator)
            sums = None
            for part in rows.split(batch):
                x0 = data[part.to(data.device)].to(device)
                z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(device)
                v = (2.0 * torch.randint(2, x0.shape, generator=generator) - 1).to(x0)
                x = x0 + (-level).exp().to(x0) * z  # x̂ = x0 + σ̂ z
                t = time.to(device).repeat(len(x))
                jvp = jvp or working_jvp(_prediction(model, process, cond), (x, t), (v, torch.ones_like(t)))
                new = _sums(_prediction(model, process, cond), process, jvp, x, t, v)
                sums = new if sums is None else sums + new
            assert sums is not None
            gathered.append(sums / samples)
            if progress is not None:
                progress({"step": i + 1, "steps": len(lam)})
    moments = torch.stack(gathered, 1).cpu()  # (10, knots, *shape)
    if axes:
        moments = moments.mean([axis + 2 for axis in axes], keepdim=True)
    if average == "scalar":
        moments = moments.reshape(len(moments), len(lam))
    note = {"samples": str(samples), "average": average, "seed": str(seed), "conditions": ", ".join(sorted(cond))}
    return Statistics(process, lam, *curves(lam, moments, smooth), note=note)


def smoothed(curve: Tensor, lam: Tensor, width: float) -> Tensor:
    """The curve (K, *shape) replaced at each knot by a straight line fitted with weights w = exp(−½ (Δλ/width)²):

    y_i = Σ_j w_ij (S2 − S1 Δ_ij) y_j / (S0 S2 − S1²),     S_k = Σ_j w_ij Δ_ij^k
    """
    if width < 0.5 * float(lam.diff().min()):  # no neighbour in the window
        return curve
    gap = lam - lam[:, None]
    w = torch.exp(-0.5 * (gap / width) ** 2)
    s0, s1, s2 = ((w * gap**k).sum(1, keepdim=True) for k in range(3))
    return torch.einsum("ij,j...->i...", w * (s2 - s1 * gap) / (s0 * s2 - s1**2), curve)


def curves(lam: Tensor, moments: Tensor, smooth: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(l, s, b), each (K, *shape), from moments (10, K, *shape).

    These are E of diag ∂_x̂ D, of w = (x̂, D, D'), and of the products w_i w_j in the order 00, 01, 02, 11, 12, 22.
    """
    l = smoothed(1 - moments[0], lam, smooth)  # noqa: E741
    (slope,) = torch.gradient(l, spacing=(lam,), dim=0)
    mean, second = moments[1:4], moments[4:]
    cov = [[second[_place(i, j)] - mean[i] * mean[j] for j in range(3)] for i in range(3)]
    zero, one = torch.zeros_like(l), torch.ones_like(l)
    f = (1 - l, -one, zero)  # f = Σ f_i w_i
    f1 = (l - 1 - slope, 1 - l, -one)  # f' likewise

    def covariance(a: Tensors, b: Tensors) -> Tensor:
        return sum((a[i] * b[j] * cov[i][j] for i in range(3) for j in range(3)), zero)

    def expectation(a: Tensors) -> Tensor:
        return sum((a[i] * mean[i] for i in range(3)), zero)

    epsilon = RIDGE * second[3].amax(0) + torch.finfo(l.dtype).tiny  # E D² → E x0² at the clean end
    s = covariance(f, f1) / (covariance(f, f).clamp_min(0) + epsilon)
    return l, s, expectation(f1) - s * expectation(f)


def _place(i: int, j: int) -> int:
    return [[0, 1, 2], [1, 3, 4], [2, 4, 5]][i][j]


def _prediction(model: Any, process: Process, cond: Mapping[str, Any]) -> Function:
    """D as a function of x̂ (B, *) and t (B,)."""
    return lambda x, t: model(expand(process.alpha(t), x) * x, t, **cond)


def _sums(prediction: Function, process: Process, jvp: Jvp, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The moments of `curves`, summed over the batch: (10, *shape) float64."""
    data, diagonal = jvp(lambda x: prediction(x, t), (x,), (v,))
    _, rate = forward_mode(process.logsnr, (t,), (torch.ones_like(t),))  # dλ/dt
    _, change = jvp(prediction, (x, t), (data - x, 1 / rate))
    w = [u.double() for u in (x, data, change)]
    products = [w[i] * w[j] for i in range(3) for j in range(i, 3)]
    return torch.stack([u.sum(0) for u in (v.double() * diagonal, *w, *products)])


# -- Jacobian–vector products --------------------------------------------------------------------------------
def forward_mode(function: Function, at: Tensors, along: Tensors) -> tuple[Tensor, Tensor]:
    """(F, ∂F · v) by forward-mode differentiation: the cost of about two calls."""
    return torch.func.jvp(function, at, along)  # type: ignore[return-value]


def double_backward(function: Function, at: Tensors, along: Tensors) -> tuple[Tensor, Tensor]:
    """(F, ∂F · v) as the derivative of the linear map u ↦ uᵀ ∂F."""
    return torch.autograd.functional.jvp(function, at, along)  # type: ignore[return-value]


def central_differences(function: Function, at: Tensors, along: Tensors) -> tuple[Tensor, Tensor]:
    """(F, (F(x + h v) − F(x − h v))/2h), h = ε^{1/3} of the size of the first argument against its direction."""
    x, v = at[0], along[0]
    h = torch.finfo(x.dtype).eps ** (1 / 3) * float((1 + x.square().mean().sqrt()) / v.square().mean().sqrt().clamp_min(1e-12))
    ahead, behind = (function(*(u + step * du for u, du in zip(at, along, strict=True))) for step in (h, -h))
    return function(*at), (ahead - behind) / (2 * h)


def working_jvp(function: Function, at: Tensors, along: Tensors) -> Jvp:
    """The first of the three ways that this function supports; a warning if it is not the first."""
    function(*at)  # an error of the network itself is raised here, as it is
    for way, other in ((forward_mode, "double backward"), (double_backward, "central differences")):
        try:
            way(function, at, along)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"the network has no {way.__name__.replace('_', ' ')} derivative ({reason}); using {other}", stacklevel=3
            )
        else:
            return way
    return central_differences


# -- arguments -----------------------------------------------------------------------------------------------
def _samples(data: Tensor | Dataset, samples: int) -> Tensor:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples={samples!r} must be an integer of at least 2 (512 or more are advised)")
    data = data.all() if isinstance(data, Dataset) else data
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(f"data is {getattr(data, 'dtype', type(data).__name__)}; give floating-point samples (n, *shape)")
    if data.ndim < 2 or len(data) < 2:
        raise ValueError(f"data has shape {tuple(data.shape)}; give at least 2 samples (n, *shape)")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("data contains NaN or infinite values")
    return data


def _knots(process: Process, knots: int, start: float | None, end: float | None) -> Tensor:
    if isinstance(knots, bool) or not isinstance(knots, int) or knots < 3:
        raise ValueError(f"knots={knots!r} must be an integer of at least 3")
    start, end = process.span[1] if start is None else start, process.span[0] if end is None else end
    low, high = float(process.logsnr(start)), float(process.logsnr(end))
    if not (-float("inf") < low < high < float("inf")):
        raise ValueError(
            f"start={start:g}, end={end:g}: λ must be finite and increase from start to end; it is {low:g} and {high:g} "
            f"(the span of the process is t = {process.span[1]:g} … {process.span[0]:g})"
        )
    return torch.linspace(low, high, knots, dtype=torch.float64)


def _averaged(average: str, dims: int) -> list[int]:
    """The axes of a sample over which the moments are averaged."""
    if average not in AVERAGES:
        raise ValueError(f"average={average!r} must be one of {', '.join(AVERAGES)}")
    return list(range({"dimension": dims, "channel": 1, "scalar": 0}[average], dims))


class _evaluating:
    """The model in evaluation mode (no dropout), and back."""

    def __init__(self, model: Any) -> None:
        self.model, self.was = model, isinstance(model, nn.Module) and model.training

    def __enter__(self) -> None:
        if self.was:
            self.model.eval()

    def __exit__(self, *error: object) -> None:
        if self.was:
            self.model.train()
