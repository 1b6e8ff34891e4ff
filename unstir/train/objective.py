"""The training objective: a weight w(λ) and a level density p(λ), for any network and process.

    L = E_{λ ~ p} [ w(λ) ‖D(x_t, t) − x0‖² ]        (mean over the values of a sample)

The network is asked for `raw`, and D = m x_t + n raw with the same m, n for the target at D = x0.
So D − x0 = n (raw − target), and the loss is computed as w n² ‖raw − target‖²: a product of moderate
numbers where x0-units alone would be 0 · ∞, at σ → 0 and at α → 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..process.base import expand, float64
from ..process.frames import enter
from .levels import Levels, levels, times
from .weights import Weight, weight


def target(model: Denoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) of the raw target c x0 + d z, from the line R raw = P x_t + Q x0 and x_t = α x0 + σ z:

    c = (P α + Q)/R,   d = P σ/R        (coefficients in float64: no cancellation in the state)

    On an anchored process this is in the frame of the network, where x0 is x0 or x0 − y.
    """
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    p, q, r = model.prediction.line(alpha, sigma)
    return (p * alpha + q) / r, p * sigma / r


def residual(model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """(‖raw − target‖², n) per sample: mean square over the sample's values, shape (B,), and D − x0 = n (raw − target).

    x0, noise: (B, *); t: (B,) float64 with |λ(t)| ≤ 12; cond: for the network, and on an anchored process `anchor`, the y of
    every x0. The square is float32, n float64.
    """
    process, frame, anchor = model.process, model.frame, cond.get("anchor")
    if process.anchored and not model.sees_anchor:
        cond.pop("anchor", None)
    decoder = model.decoder(t)
    x = enter(process, frame, process.stir(x0, t, noise, anchor), t, anchor)
    raw, _ = model.call(x, decoder.time.to(x.dtype), None if decoder.scale is None else expand(decoder.scale, x), cond)
    c, d = target(model, t)
    data = x0 - anchor if frame == "residual" and anchor is not None else x0
    goal = expand(c, x0) * data + expand(d, x0) * noise
    if anchor is not None and frame == "raw":  # whose state contains β y
        p, _, r = model.prediction.line(process.alpha(t), process.sigma(t))
        goal = goal + expand(p / r * process.beta(t), x0) * anchor
    error = raw.float() - goal
    return error.square().flatten(1).mean(1), decoder.n.expand(len(x0))


def data_error(model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """e₀ = ‖D − x0‖² per sample (mean square over its values), float64 of shape (B,)."""
    square, n = residual(model, x0, noise, t, **cond)
    return n**2 * square.double()


@dataclass(frozen=True)
class Objective:
    """A weight and a level density, by name (see `WEIGHTS`, `LEVELS`) or as functions.

    weight: "raw" (the default) is 1/n², so that the loss is ‖raw − target‖²: each kind of
        prediction's own published loss. Otherwise w(λ) in x0 units.
    levels: "uniform", "lognormal:-1.2,1.2", …
    cond_dropout: share of samples whose condition is replaced by the null condition.
    """

    weight: str | Weight = "raw"
    levels: str | Levels = "uniform"
    cond_dropout: float = 0.0

    def __post_init__(self) -> None:
        # Reading the names here means that a wrong one fails before any data is touched.
        if isinstance(self.weight, str) and self.weight != "raw":
            weight(self.weight)
        if isinstance(self.levels, str):
            levels(self.levels)
        if not 0 <= self.cond_dropout <= 1:
            raise ValueError(f"cond_dropout={self.cond_dropout} must be a share, 0 … 1")

    def times(self, model: Denoiser, u: Tensor) -> Tensor:
        """The times (B,) of uniform numbers u (B,)."""
        return times(levels(self.levels) if isinstance(self.levels, str) else self.levels, model.process, u)

    def factor(self, model: Denoiser, t: Tensor, n: Tensor) -> Tensor:
        """w(λ) n², by which ‖raw − target‖² is multiplied."""
        if self.weight == "raw":
            return torch.ones_like(n)
        w = weight(self.weight) if isinstance(self.weight, str) else self.weight
        return w(model.process.logsnr(t)) * n**2

    def loss(
        self, model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(L, details): the mean loss, and per sample the weighted loss and e₀.

        x0, noise: (B, *); t: (B,); cond: keywords for the network.
        """
        if noise.shape != x0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; x0 has {tuple(x0.shape)}")
        t = float64(t).to(x0.device)
        square, n = residual(model, x0, noise, t, **(cond or {}))
        each = self.factor(model, t, n).to(square.dtype) * square
        return each.mean(), {"loss": each.detach(), "data_error": n**2 * square.detach().double()}


def drop(cond: Mapping[str, Tensor], null: Mapping[str, Any], dropped: Tensor) -> dict[str, Tensor]:
    """The conditions with their null value where `dropped` (B,) is true; all of them are dropped together."""
    return {
        name: torch.where(
            dropped.reshape(-1, *[1] * (value.ndim - 1)).to(value.device),
            torch.as_tensor(null[name], dtype=value.dtype, device=value.device),
            value,
        )
        for name, value in cond.items()
    }
