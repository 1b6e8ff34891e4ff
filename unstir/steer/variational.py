"""RED-diff: one reconstruction by stochastic optimisation, without a derivative of the network and without rows.

The posterior is approximated by N(μ, ς² I); of ς → 0 is left

    min_μ  ‖y − f(μ)‖²/(2 σ_y²) + E_{t, ε} ω_t ‖ε̂(x_t, t) − ε‖²,     x_t = α μ + σ ε,

and integrating by parts in t the gradient of the second term becomes E λ_t (ε̂ − ε), in which nothing of the network
is differentiated. As ε̂ − ε = (α/σ)(μ − D), with SNR = α/σ and λ_t = λ w(SNR),

    gradient = λ · w(SNR) SNR · (μ − D(x_t, t)).

With w = 1/SNR it is λ (μ − D): the residual of regularisation by denoising.
(A Variational Perspective on Solving Inverse Problems with Diffusion Models, 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._random import draw, sample_keys
from ..plan import Plan
from ..process.base import expand
from .operators import is_linear, pinv
from .posterior import check_measurement

# name: SNR -> w(SNR) · SNR
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.ones_like,  # w = 1/SNR
    "sqrt": torch.sqrt,
    "square": lambda snr: 1 / snr,
    "log": lambda snr: snr * torch.log1p(1 / snr),
    "trunc": lambda snr: snr.clamp_max(1.0),
    "2/3": lambda snr: snr ** (1 / 3),
    "const": lambda snr: snr,  # w = 1
}
ORDERS = ("descending", "ascending", "random")
STRAIGHT = (
    "is it rounding or JPEG? give a differentiable function, such as one with a straight-through gradient, "
    "or use steer.posterior(…, 'ddnm')"
)
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def red_diff(
    model: Any,
    operator: Any,
    y: Tensor,
    plan: Plan | Sequence[float],
    noise: float = 0.0,
    *,
    lam: float = 0.25,
    weight: str = "linear",
    rate: float = 0.1,
    sums: bool = False,
    spread: float = 0.0,
    order: str = "descending",
    start: Tensor | None = None,
    optimizer: Optimizer | None = None,
    seed: int | Sequence[int] = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    **cond: Any,
) -> Tensor:
    """The mode μ (B, *) of the variational posterior; one forward call for every time, no backward call.

    model: a denoiser that knows its process and its shape.   operator: any differentiable A (linear or not).
    y: (B, …), a measurement for every result.
    plan: where the network is called: the nodes of a plan (its rows are not run), or times. Nodes with σ = 0 are left out.
    noise: σ_y. It matters only with sums=True.
    lam, weight: λ and w(SNR), one of `WEIGHTS`.   rate: of Adam with β = (0.9, 0.99), or give `optimizer`.
    sums: the data term is ‖y − f(μ)‖²/(2σ_y²) and the other a sum over pixels, as in the formula. False takes the
        published means: ½ mean |y − f(μ)|² + λ_t mean(…), so that λ depends on the number of measurements.
    spread: ς.   order: of the times; "descending" is the best in the paper.
    start: μ at first; by default A⁺y, and 0 where A is not linear and has no A_dagger.
    seed: sample i draws its ε from a stream of its own, so a result does not depend on the batch.
    on_step: called with (number, μ).

    Raises ValueError for an f without gradient, σ_y = 0 with sums=True, and a μ that is no longer finite.
    """
    process = getattr(model, "process", None)
    if process is None:
        raise TypeError(f"red_diff needs a model that knows its process (an unstir.Denoiser); {type(model).__name__} does not")
    if weight not in WEIGHTS:
        raise ValueError(f"weight={weight!r} is unknown; one of {', '.join(WEIGHTS)}")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is unknown; one of {', '.join(ORDERS)}")
    for name, value in {"noise": noise, "lam": lam, "spread": spread}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be finite and at least 0")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate={rate} must be finite and > 0")
    if sums and noise == 0:
        raise ValueError("noise=0, by which sums=True divides; give noise=, or sums=False for the published means")
    if not callable(getattr(operator, "A", None)):
        raise TypeError(f"operator is {type(operator).__name__}; it must have a method A(x) (see steer.operators)")
    y = check_measurement(operator, y, getattr(model, "shape", None), noise)
    times = _times(plan, process, order, seed)
    mu = _begin(model, operator, y, start)
    keys = sample_keys(len(mu), seed)
    scale = 1 / noise**2 if sums else None

    mu = mu.detach().clone().requires_grad_(True)
    adam: Any = (optimizer or (lambda p: torch.optim.Adam(p, lr=rate, betas=(0.9, 0.99))))([mu])
    for i, t in enumerate(times):
        with torch.no_grad():
            x0 = mu + spread * draw(keys, mu.shape[1:], 2 * i + 2, mu.dtype, mu.device) if spread else mu.detach()
            epsilon = draw(keys, mu.shape[1:], 2 * i + 1, mu.dtype, mu.device)
            alpha, sigma = process.alpha(t), process.sigma(t)
            data = model(expand(alpha, x0) * x0 + expand(sigma, x0) * epsilon, t, **cond)
            pull = expand(lam * WEIGHTS[weight](alpha / sigma), x0) * (x0 - data)
        with torch.enable_grad():
            shifted = mu + (x0 - mu.detach()) if spread else mu
            fit = _fit(operator, shifted, y, scale)
            (slope,) = torch.autograd.grad(fit, mu)
        if i == 0 and not is_linear(operator) and not bool(slope.any()) and float(fit.detach()) > 0:
            raise ValueError(f"operator.A has the gradient 0 everywhere; {STRAIGHT}")
        mu.grad = slope + (pull if sums else pull / mu[0].numel())
        adam.step()
        if not bool(torch.isfinite(mu).all()):
            raise ValueError(f"μ became non-finite in step {i}; take a smaller rate= (now {rate}) or lam= (now {lam})")
        if on_step is not None:
            on_step(i, mu.detach())
    return mu.detach()


def _fit(operator: Any, mu: Tensor, y: Tensor, scale: float | None) -> Tensor:
    """Σ over the batch of ½ ‖y − f(μ)‖² · scale, or of ½ mean |y − f(μ)|²: samples do not feel each other."""
    made = operator.A(mu)
    if made.shape[1:] != y.shape[1:]:
        raise ValueError(f"y has shape {tuple(y.shape)}; the operator makes {tuple(made.shape)}")
    if not made.requires_grad:
        raise ValueError(f"operator.A(x) has no gradient; {STRAIGHT}")
    each = 0.5 * (y - made).square().flatten(1)
    return each.sum() * scale if scale is not None else each.mean(1).sum()


def _times(plan: Plan | Sequence[float], process: Any, order: str, seed: int | Sequence[int]) -> list[float]:
    times = [float(row.t) for row in plan.rows if row.evaluate] if isinstance(plan, Plan) else [float(t) for t in plan]
    times = [t for t in times if float(process.sigma(t)) > 0]
    if not times:
        raise ValueError("plan has no time with σ > 0; give a plan or times at which the network can be called")
    if order == "random":
        first = seed if isinstance(seed, int) else int(seed[0])
        places = torch.randperm(len(times), generator=torch.Generator().manual_seed(first))
        return [times[i] for i in places.tolist()]
    return times if order == "descending" else times[::-1]


def _begin(model: Any, operator: Any, y: Tensor, start: Tensor | None) -> Tensor:
    if start is not None:
        if not isinstance(start, Tensor) or len(start) != len(y):
            raise ValueError(f"start must be a tensor with one sample for each of the {len(y)} measurements")
        if not bool(torch.isfinite(start).all()):
            raise ValueError("start contains NaN or infinite values")
        return start
    shape = getattr(model, "shape", None)
    if shape is None:
        raise ValueError("the model does not know the shape of its samples: give start=, the first μ")
    like = y.new_zeros(1, *shape)
    if hasattr(operator, "A_dagger") or is_linear(operator):
        return pinv(operator, y, like).expand(len(y), *shape)
    return like.expand(len(y), *shape)
