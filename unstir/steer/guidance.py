"""Guidance: denoisers made from denoisers. All of them compose, and run under every plan and process.

Hats are the scaled frame, x̂ = x/α, σ̂ = σ/α; D_c and D_u are the conditional and the unconditional
data prediction. Linear rules are the same in D, ε̂ and v; the others say that they act on D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser.inner import Steered, evaluate
from ..plan.hooks import Context
from ..process.base import expand, float64

Schedule = float | Callable[[float], float]


class Transform(nn.Module):
    """A denoiser made from others: forward(x, t, **cond) = rule(x, t, ctx, cond). The first gives process and shape.

    hooks: what has to run between its rows; the executor runs them, and those of the inner models, by itself.
    """

    def __init__(self, rule: Callable[..., Any], model: Any, *others: Any, hooks: Sequence[Any] = ()) -> None:
        super().__init__()
        self.rule = rule
        self.parts = nn.ModuleList([m for m in (model, *others) if isinstance(m, nn.Module)])
        self.process, self.shape = getattr(model, "process", None), getattr(model, "shape", None)
        self.meta = getattr(model, "meta", {})
        self.sees_anchor = getattr(model, "sees_anchor", False)
        self.hooks = (*(hook for m in (model, *others) for hook in getattr(m, "hooks", ())), *hooks)

    def forward(self, x: Tensor, t: Tensor | float, ctx: Context | None = None, **cond: Any) -> Any:
        """The transformed prediction: a tensor, or `Steered` where something of the original is kept."""
        return self.rule(x, t, ctx, cond)


def _needs_process(model: Any, what: str) -> None:
    if getattr(model, "process", None) is None:
        raise TypeError(f"{what} needs a model that knows its process (an unstir.Denoiser); {type(model).__name__} does not")


def needs_score(model: Any, what: str) -> None:
    """ValueError if the process has no Tweedie formula, D = (x + σ²∇ log p_t(x))/α, on which `what` rests."""
    tails = getattr(getattr(model, "process", None), "tails", math.inf)
    if math.isfinite(tails):
        raise ValueError(
            f"{what} moves D by a score, and with heavy-tailed noise (D = {tails:g}) Tweedie's formula does not relate the two"
            "; use a model of Gaussian noise"
        )


def _scale_at(scale: Schedule, model: Any, t: Tensor | float) -> float:
    return float(scale(float(model.process.logsnr(float64(t).flatten()[0])))) if callable(scale) else float(scale)


def _inside(interval: tuple[float, float] | None, model: Any, t: Tensor | float) -> bool:
    if interval is None:
        return True
    ratio = float(model.process.noise_ratio(float64(t).flatten()[0]))
    return interval[0] <= ratio <= interval[1]


def cfg(
    model: Any,
    scale: Schedule,
    *,
    null: Mapping[str, Any] | None = None,
    base: Any = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    plus: bool = False,
) -> Transform:
    """Classifier-free guidance, D' = D_u + w (D_c − D_u) (Classifier-Free Diffusion Guidance, 2022).

    scale: w, a number or a function of λ; 1 is no guidance.
    null: keywords of the unconditional call, by default the model's own (`meta["null"]`).
    base: another model for D_u: a weaker one is autoguidance (Guiding a Diffusion Model with a Bad
        Version of Itself, 2024); it gets the same conditions unless null is given.
    interval: (σ̂_low, σ̂_high) outside which w = 1, which saves a call (Limited Interval Guidance, 2024).
    rescale: φ in D' ← φ D' · std(D_c)/std(D') + (1 − φ) D', per sample (Common Diffusion Noise
        Schedules … Are Flawed, 2024); acts on D, and is not the published rule on ε̂ or v.
    plus: CFG++ (2024): the noise of D_u is kept, so w in [0, 1] interpolates.
    """
    if not callable(scale) and not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be a finite number or a function of the log-SNR")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale={rescale} must lie in [0, 1]")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"interval={interval} must be (low, high) in σ̂ with 0 ≤ low < high")
    if callable(scale) or interval is not None:
        _needs_process(model, "a schedule or interval of the scale")
    if null is None and base is None:
        null = getattr(model, "meta", {}).get("null")
        if not null:
            raise ValueError("the model names no null condition: give null=, the keywords of the unconditional call, or base=")
    weak = model if base is None else base

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Any:
        with _branch(ctx, "conditional"):
            sharp = evaluate(model, x, t, ctx, cond)
        w = _scale_at(scale, model, t)
        if (w == 1 and not plus) or not _inside(interval, model, t):
            return sharp
        with _branch(ctx, "unconditional"):
            blunt = evaluate(weak, x, t, ctx, cond if null is None else {**cond, **null})
        data = blunt + w * (sharp - blunt)
        if rescale:
            data = rescale * data * (_std(sharp) / _std(data)) + (1 - rescale) * data
        return Steered(data, blunt, "noise") if plus else data

    return Transform(rule, model, *([] if base is None else [base]))


def _branch(ctx: Context | None, name: str) -> Any:
    """`Context.within`, where there is a context."""
    return nullcontext() if ctx is None else ctx.within(name)


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(1).clamp_min(1e-12).reshape(-1, *[1] * (x.ndim - 1))


def apg(
    model: Any,
    scale: float,
    *,
    null: Mapping[str, Any] | None = None,
    momentum: float = -0.5,
    cap: float = math.inf,
    parallel: float = 0.0,
) -> Transform:
    """Adaptive projected guidance (Eliminating Oversaturation and Artifacts of High Guidance Scales …, 2024), on D.

    Δ = D_c − D_u + momentum · Δ_before;  Δ ← Δ min(1, cap/‖Δ‖);  with Δ = Δ_∥ + Δ_⊥ along D_c:
    D' = D_c + (w − 1)(Δ_⊥ + parallel · Δ_∥). The momentum lives for one run and starts anew when the
    noise rises. parallel = 1 without momentum and cap is classifier-free guidance.
    """
    null = null or getattr(model, "meta", {}).get("null")
    if not null:
        raise ValueError("the model names no null condition: give null=, the keywords of the unconditional call")
    if not cap > 0:
        raise ValueError(f"cap={cap} must be > 0")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
        with _branch(ctx, "conditional"):
            sharp = evaluate(model, x, t, ctx, cond)
        with _branch(ctx, "unconditional"):
            delta = sharp - evaluate(model, x, t, ctx, {**cond, **null})
        if momentum and ctx is not None:
            level = float(float64(t).flatten()[0])
            before, last = ctx.run.memory.get(transform, (None, -1.0))
            if before is not None and level <= last:
                delta = delta + momentum * before
            ctx.run.memory[transform] = (delta, level)
        flat = (-1, *[1] * (x.ndim - 1))
        norm = delta.flatten(1).norm(dim=1).reshape(flat)
        delta = delta * (cap / norm.clamp_min(1e-12)).clamp_max(1.0)
        unit = sharp / sharp.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(flat)
        along = (delta * unit).flatten(1).sum(1).reshape(flat) * unit
        return sharp + (scale - 1) * (delta - along + parallel * along)

    transform = Transform(rule, model)
    return transform


def classifier(model: Any, log_prob: Callable[[Tensor, Any], Tensor], scale: float = 1.0) -> Transform:
    """Classifier guidance, D' = D + w (σ²/α) ∇_x log p(c | x_t) (Diffusion Models Beat GANs on Image Synthesis, 2021).

    log_prob(x, t): (B,) log-probability of what is wanted, given the *stirred* state. Where α = 0
    the state says nothing, and D is left alone.
    """
    _needs_process(model, "classifier guidance")
    needs_score(model, "classifier guidance")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
        data = evaluate(model, x, t, ctx, cond)
        return data + scale * _pull(model, x, t) * _gradient(lambda u: log_prob(u, t), x)

    return Transform(rule, model)


def energy(model: Any, energy: Callable[[Tensor], Tensor], scale: float = 1.0) -> Transform:
    """Loss guidance, D' = D − w (σ²/α) ∇_x ℓ(D(x, t)), through the network (Universal Guidance for Diffusion Models, 2023).

    energy(D): (B,), small where the data prediction is as wanted. One backward call a row.
    """
    _needs_process(model, "loss guidance")
    needs_score(model, "loss guidance")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
        with torch.enable_grad():
            u = x.detach().requires_grad_(True)
            data = evaluate(model, u, t, ctx, cond)
            (slope,) = torch.autograd.grad(energy(data).sum(), u)
        return data.detach() - scale * _pull(model, x, t) * slope

    return Transform(rule, model)


def _pull(model: Any, x: Tensor, t: Tensor | float) -> Tensor:
    """σ²/α, 0 where α = 0."""
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    return expand(torch.where(alpha > 0, sigma**2 / alpha.clamp_min(1e-300), 0.0), x)


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        u = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(u).sum(), u)
    return slope


def threshold(model: Any, quantile: float | None = 0.995, limit: float = 1.0) -> Transform:
    """Dynamic thresholding of pixel models, per sample: s = max(limit, quantile of |D|), D' = limit · clip(D, −s, s)/s.

    quantile=None is static clipping to [−limit, limit]. Only for data that is bounded; never for latents.
    (Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022.)
    """
    if not ((quantile is None or 0 <= quantile <= 1) and limit > 0):
        raise ValueError(f"quantile={quantile} must lie in [0, 1] (or be None) and limit={limit} be > 0")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
        data = evaluate(model, x, t, ctx, cond)
        if quantile is None:
            return data.clamp(-limit, limit)
        sizes = data.abs().flatten(1)
        sizes = sizes if sizes.dtype == torch.float64 else sizes.float()  # quantiles of half types do not exist
        s = torch.quantile(sizes, quantile, dim=1).clamp_min(limit).to(data)
        s = s.reshape(-1, *[1] * (data.ndim - 1))
        return data.clamp(-s, s) * (limit / s)

    return Transform(rule, model)
