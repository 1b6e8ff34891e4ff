"""Anchored processes that shift the residual: ResShift, RDDM, the Brownian bridge. See `anchored` for what they share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .anchored import Anchored
from .base import Time, float64
from .schedules import _positive


class ResShift(Anchored):
    """α = 1 − η, σ = κ√η; at the labels i = 0 … T − 1

        √η = s_1 (s_T/s_1)^τ,    τ = (i/(T − 1))^p,    t = (1 + (T − 1) τ)/T,     and √η = s_1 T t for t ≤ 1/T

    (ResShift: Efficient Diffusion Model for Image Super-Resolution by Residual Shifting, 2023).

    kappa: κ, noise per unit of residual; levels: T; power: p.
    sqrt_eta_end: s_T (published options call it etas_end); min_noise: m, with s_1 = min(m/κ, m). The 15-step models have
        min_noise=0.04, the 4-step ones 0.2.

    The published clock is i itself; ours is one on which log √η runs evenly (at i = 0 the other has an infinite slope).
    The published T-step sampler is the solver "bridge" on the grid `nodes`.
    """

    def __init__(
        self, kappa: float = 2.0, levels: int = 15, power: float = 0.3, min_noise: float = 0.04, sqrt_eta_end: float = 0.99
    ) -> None:
        _positive(kappa=kappa, power=power, min_noise=min_noise, sqrt_eta_end=sqrt_eta_end)
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels={levels!r} must be a whole number, at least 2")
        if sqrt_eta_end > 1:
            raise ValueError(f"sqrt_eta_end={sqrt_eta_end} must be at most 1: η is the share of the residual that is shifted")
        if min(min_noise / kappa, min_noise) >= sqrt_eta_end:
            raise ValueError(f"min_noise={min_noise}: √η_1 = min(m/κ, m) must lie below sqrt_eta_end={sqrt_eta_end}")
        self.kappa, self.levels, self.power = float(kappa), levels, float(power)
        self.min_noise, self.sqrt_eta_end = float(min_noise), float(sqrt_eta_end)

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return 1 / self.levels, 1.0 if self.sqrt_eta_end < 1 else 1 - 1e-3

    @property
    def _first(self) -> float:
        return min(self.min_noise / self.kappa, self.min_noise)

    def label(self, t: Time) -> Tensor:
        """The (fractional) label i = (T − 1) τ^{1/p} that a published network is told."""
        return (self.levels - 1) * self._share(t) ** (1 / self.power)

    def time_of_label(self, label: Time) -> Tensor:
        """t = (1 + (T − 1) (i/(T − 1))^p)/T."""
        return (1 + (self.levels - 1) * (float64(label) / (self.levels - 1)) ** self.power) / self.levels

    @property
    def nodes(self) -> list[float]:
        """The times of all labels, from T − 1 to 0, and 0: the published grid of T calls."""
        return [1.0, *self.time_of_label(torch.arange(self.levels - 2, -1, -1)).tolist(), 0.0]

    def _share(self, t: Time) -> Tensor:
        return ((float64(t) * self.levels - 1) / (self.levels - 1)).clamp_min(0)

    def sqrt_eta(self, t: Time) -> Tensor:
        """√η(t)."""
        place = float64(t) * self.levels
        above = self._first * torch.exp(math.log(self.sqrt_eta_end / self._first) * self._share(t))
        return torch.where(place < 1, self._first * place, above)

    def alpha(self, t: Time) -> Tensor:
        s = self.sqrt_eta(t)
        return (1 - s) * (1 + s)

    def beta(self, t: Time) -> Tensor:
        return self.sqrt_eta(t) ** 2

    def sigma(self, t: Time) -> Tensor:
        return self.kappa * self.sqrt_eta(t)

    def time(self, logsnr: Time) -> Tensor:
        # (1 − s²)/(κ s) = k  ⇒  s = 2/(κk + √(κ²k² + 4))
        k = self.kappa * torch.exp(float64(logsnr).clamp_max(700))
        s = 2 / (k + torch.sqrt(k * k + 4))
        share = (s.clamp_min(self._first) / self._first).log() / math.log(self.sqrt_eta_end / self._first)
        above = (1 + share * (self.levels - 1)) / self.levels
        return torch.where(s < self._first, s / (self._first * self.levels), above).clamp(0, 1)


class RDDM(Anchored):
    """α = 1 − ᾱ, σ = β̄ with power laws for both (Residual Denoising Diffusion Models, 2024).

        "decreasing"   ᾱ = 1 − (1 − t)^{1 + power}      most of it at small t
        "increasing"   ᾱ = t^{1 + power}                power 0 ("average") is ᾱ = t either way
        and likewise β̄²/scale

    (published as P(1 − x, a) and P(x, a): shares of T equal steps.) scale: β̄²(1). Restoration has 0.01 to 1.
    anchored: False is the case y = 0, generation from noise, with scale = 1.
    α(1) = 0, so the prior N(y, scale) is exact.
    """

    span = (1e-3, 1 - 1e-3)

    def __init__(
        self,
        residual: str = "decreasing",
        noise: str = "increasing",
        residual_power: float = 1.0,
        noise_power: float = 1.0,
        scale: float = 0.01,
        anchored: bool = True,
    ) -> None:
        _positive(scale=scale)
        for name, value in (("residual", residual), ("noise", noise)):
            if value not in ("decreasing", "increasing"):
                raise ValueError(f"{name}={value!r} must be 'decreasing' or 'increasing' (with power 0 both are the average)")
        for name, value in (("residual_power", residual_power), ("noise_power", noise_power)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} must be a finite number, at least 0")
        self.residual, self.residual_power = residual, float(residual_power)
        self.noise_shape, self.noise_power = noise, float(noise_power)
        self.scale, self.anchored = float(scale), bool(anchored)

    def spec(self) -> dict[str, Any]:
        shape = {"residual": self.residual, "noise": self.noise_shape}
        powers = {"residual_power": self.residual_power, "noise_power": self.noise_power}
        return {"kind": "RDDM", **shape, **powers, "scale": self.scale, "anchored": self.anchored}

    def alpha(self, t: Time) -> Tensor:
        return _share(1 - float64(t), self.residual == "decreasing", self.residual_power)

    def beta(self, t: Time) -> Tensor:
        if not self.anchored:
            return torch.zeros_like(float64(t))
        return _share(float64(t), self.residual == "increasing", self.residual_power)

    def sigma(self, t: Time) -> Tensor:
        return (self.scale * _share(float64(t), self.noise_shape == "increasing", self.noise_power)).sqrt()

    def time(self, logsnr: Time) -> Tensor:
        lam = float64(logsnr)
        t = super().time(lam)
        # Bisection finds t to 1e-18; one step of Newton in log t makes that relative.
        inner = t.clamp(1e-300, 1 - 1e-15)
        found, slope = self.logsnr(inner), inner * self._derivative(self.logsnr, inner)
        better = inner * torch.exp(((lam - found) / slope).clamp(-1e-3, 1e-3))
        return torch.where((t > 1e-300) & (t < 0.5), better, t)


def _share(u: Tensor, power_of_u: bool, power: float) -> Tensor:
    """u^{1 + power}, or 1 − (1 − u)^{1 + power} without cancellation; 0 at u = 0 and 1 at u = 1."""
    return u ** (1 + power) if power_of_u else torch.expm1((1 + power) * torch.log1p(-u)).abs()


class BrownianBridge(Anchored):
    """α = 1 − t, β = t, σ = √(2 s t (1 − t)):  dx = (y − x)/(1 − t) dt + √(2s) dw (BBDM: Image-to-image Translation
    with Brownian Bridge Diffusion Models, 2023).

    max_var: s, twice the variance at t = ½. The process is pinned: x_1 = y, where a plan begins with a row that
    draws the noise, X' = α' D(y, 1) + β' y + σ' z.
    """

    span = (1e-3, 1 - 1e-3)

    def __init__(self, max_var: float = 1.0) -> None:
        _positive(max_var=max_var)
        self.max_var = float(max_var)

    def alpha(self, t: Time) -> Tensor:
        return 1 - float64(t)

    def beta(self, t: Time) -> Tensor:
        return float64(t).clone()

    def sigma(self, t: Time) -> Tensor:
        t = float64(t)
        return (2 * self.max_var * t * (1 - t)).sqrt()

    def logsnr(self, t: Time) -> Tensor:
        t = float64(t)
        return 0.5 * (torch.log1p(-t) - t.log() - math.log(2 * self.max_var))

    def noise_ratio(self, t: Time) -> Tensor:
        return torch.exp(-self.logsnr(t))

    def time(self, logsnr: Time) -> Tensor:
        return torch.sigmoid(-(2 * float64(logsnr) + math.log(2 * self.max_var)))

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        ratio = 2 * float64(logsnr) + math.log(2 * self.max_var)
        alpha = torch.sigmoid(ratio)
        return alpha, (2 * self.max_var * alpha * torch.sigmoid(-ratio)).sqrt()

    def g(self, t: Time) -> Tensor:
        return torch.full_like(float64(t), math.sqrt(2 * self.max_var))
