"""Anchored processes: from the data x0 to a degraded copy y of it, and noise.

    x_t = y + α(t) (x0 − y) + σ(t) z,     that is  β = 1 − α

The residual x0 − y fades while noise comes up. All published restorers and bridges below are this one
line with other curves (α, σ):

    MeanReverting   α = e^{−Θ},          σ = σ∞ √(1 − α²)         IR-SDE, Refusion, DA-CLIP
    ResShift        α = 1 − η,           σ = κ √η                 √η geometric in (label)^p
    RDDM            α = 1 − ᾱ,           σ = β̄                    two power laws
    BrownianBridge  α = 1 − t,           σ = √(2 s t (1 − t))     pinned: x_1 = y exactly
    OUVE            α = e^{−θt},         σ² ∝ r^{2t} − e^{−2θt}   speech

u = x − βy = αx0 + σz does not contain y, and x − y = α(x0 − y) + σz is the same curve with the data x0 − y. So
every solver applies as it is, to a network that sees y (`Denoiser(sees_anchor=True)`); one that does not see it
needs the one step in which y cancels, the solver "bridge".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Process, Time, expand, float64
from .schedules import _positive
from .table import Table


class Anchored(Process):
    """What processes of the form y + α(x0 − y) + σz share. Subclasses define α, σ, λ ↔ t, and β where 1 − α cancels.

    The start of sampling is the forward law with y in the place of x0, N(y, σ(1)²) at t = 1. It is exact where
    α(1) = 0; elsewhere it is off by `mismatch` standard deviations for every unit of x0 − y.
    """

    anchored = True

    def beta(self, t: Time) -> Tensor:
        return 1 - self.alpha(t) if self.anchored else torch.zeros_like(float64(t))

    def h(self, t: Time) -> Tensor:
        return -self.f(t) if self.anchored else torch.zeros_like(float64(t))

    @property
    def mismatch(self) -> float:
        """α(1)/σ(1) = e^{λ(1)}: 0 where y and noise are all that is left at t = 1.

        VP models live with 0.007. Where it is larger than about 0.1 (speech: 0.57), a start that knows more
        of x0 than y does helps: `unstir.steer.start`, or `solvers.refined`, which spends one call on it.
        """
        return math.exp(float(self.logsnr(1.0)))

    def start(
        self,
        keys: Sequence[int],
        shape: Sequence[int],
        t: Time = 1.0,
        *,
        anchor: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """α(t) y + σ(t) z, which is x_t = y + σ(t) z in the centred state: y stands in for the unknown data."""
        noise = super().start(keys, shape, t, dtype=dtype, device=device)
        if not self.anchored:
            return noise
        y = self._need(anchor).to(noise)
        return noise + expand(self.alpha(t), y) * y


class MeanReverting(Anchored):
    """dx = θ(y − x) dt + σ∞ √(2θ) dw:  α = e^{−Θ}, σ = σ∞ √(1 − α²), Θ = ∫θ (Image Restoration with
    Mean-Reverting Stochastic Differential Equations, 2023).

    theta: θ_0 … θ_T up to a factor: "cosine" (1 − ā_{k+1}/ā_0, ā of the cosine schedule with T + 2 steps),
        "linear" (from 1e-4 to 0.02), "constant", or T + 1 numbers. The factor makes α(1) = `end`.
    sigma_inf: σ∞ in units of the data. Published models say 10 … 75 of 255 for data in [0, 1]; data in [−1, 1]
        need twice that.
    first: do sums include θ_0? "skip" is IR-SDE (level i is Θ = θ_1 + … + θ_i, level 0 is clean data), "keep" is
        DA-CLIP and MR Sampler (Θ = θ_0 + … + θ_i, so that level 0 still has σ > 0, and T + 1 levels lie above clean data).

    log α is piecewise linear between the levels. u/σ∞ is thus a discrete VP process of data x0/σ∞.
    """

    def __init__(
        self,
        theta: str | Sequence[float] = "cosine",
        sigma_inf: float = 100 / 255,
        levels: int = 100,
        end: float = 0.005,
        first: str = "skip",
    ) -> None:
        _positive(sigma_inf=sigma_inf)
        if not 0 < end < 1:
            raise ValueError(f"end={end!r} must lie between 0 and 1: α at t = 1")
        if first not in ("skip", "keep"):
            raise ValueError(f"first={first!r} must be 'skip' (IR-SDE) or 'keep' (DA-CLIP, MR Sampler)")
        if isinstance(theta, str):
            speeds = _speeds(theta, levels)
        else:
            theta = [float(v) for v in theta]
            speeds, levels = float64(theta), len(theta) - 1
        if len(speeds) < 3 or not bool((torch.isfinite(speeds) & (speeds > 0))[first == "skip" :].all()):
            raise ValueError("theta must hold at least 3 positive, finite numbers, θ_0 … θ_T")
        self.theta, self.sigma_inf, self.end, self.first = theta, float(sigma_inf), float(end), first
        sums = speeds[1:].cumsum(0) if first == "skip" else speeds.cumsum(0)
        self._vp = Table(torch.exp(2 * math.log(end) * sums / sums[-1]))
        self._top = levels
        self.span = self._vp.span

    def spec(self) -> dict[str, Any]:
        count = {"levels": self._top} if isinstance(self.theta, str) else {}
        rest = {"sigma_inf": self.sigma_inf, "end": self.end, "first": self.first}
        return {"kind": "MeanReverting", "theta": self.theta, **count, **rest}

    def __repr__(self) -> str:
        theta = self.theta if isinstance(self.theta, str) else f"{self._top + 1} numbers"
        rest = f"levels={self._top}, end={self.end}, first={self.first!r}"
        return f"MeanReverting({theta!r}, sigma_inf={self.sigma_inf:.4g}, {rest})"

    @property
    def levels(self) -> int:
        """How many levels lie above clean data: T, or T + 1 with first="keep"."""
        return self._vp.levels

    def label(self, t: Time) -> Tensor:
        """The (fractional) label i that a published network is told: T t, or (T + 1) t − 1 with first="keep"; at least 0."""
        return (float64(t) * self.levels - int(self.first == "keep")).clamp_min(0)

    def alpha(self, t: Time) -> Tensor:
        return self._vp.alpha(t)

    def beta(self, t: Time) -> Tensor:
        return torch.expm1(self._vp._log_alpha_at(t)).abs()

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_inf * self._vp.sigma(t)

    def logsnr(self, t: Time) -> Tensor:
        return self._vp.logsnr(t) - math.log(self.sigma_inf)

    def time(self, logsnr: Time) -> Tensor:
        return self._vp.time(float64(logsnr) + math.log(self.sigma_inf))

    def g(self, t: Time) -> Tensor:
        return self.sigma_inf * (-2 * self.f(t)).clamp_min(0).sqrt()


def _speeds(name: str, levels: int) -> Tensor:
    """θ_0 … θ_T of a published schedule."""
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels={levels!r} must be a whole number, at least 2")
    if name == "constant":
        return torch.ones(levels + 1, dtype=torch.float64)
    if name == "linear":
        return torch.linspace(1e-4, 0.02, levels + 1, dtype=torch.float64)
    if name != "cosine":
        raise ValueError(f"theta={name!r} must be 'cosine', 'linear', 'constant', or θ_0 … θ_T themselves")
    place = torch.arange(levels + 2, dtype=torch.float64) / (levels + 2)
    bar = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
    return 1 - bar[1:] / bar[0]


class OUVE(Anchored):
    """dx = θ(y − x) dt + σ_min r^t √(2ℓ) dw, r = σ_max/σ_min, ℓ = log r (Speech Enhancement and Dereverberation with
    Diffusion-based Generative Models, 2023):

        α = e^{−θt},   σ² = σ_min² (r^{2t} − e^{−2θt}) ℓ/(θ + ℓ)

    The clean end is t = 0; published plans stop at 0.03. λ(1) = −0.56 only: `mismatch` is 0.57 and the published start
    N(y, σ(1)²) is off by 0.22 (x0 − y). A start around a better guess of x0 is exact (`unstir.steer.start`), and so is any
    plan from there. The noise of complex data has E|z|² = 1: seen as two real channels, σ_min and σ_max are to be
    divided by √2.
    """

    span = (0.03, 1.0)

    def __init__(self, theta: float = 1.5, sigma_min: float = 0.05, sigma_max: float = 0.5) -> None:
        _positive(theta=theta, sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max={sigma_max} must exceed sigma_min={sigma_min}")
        self.theta, self.sigma_min, self.sigma_max = float(theta), float(sigma_min), float(sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _size(self) -> float:
        return self.sigma_min**2 * self._log_ratio / (self.theta + self._log_ratio)

    @property
    def _rate(self) -> float:
        return 2 * (self.theta + self._log_ratio)

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-self.theta * float64(t))

    def beta(self, t: Time) -> Tensor:
        return torch.expm1(-self.theta * float64(t)).abs()

    def sigma(self, t: Time) -> Tensor:
        return self.alpha(t) * self.noise_ratio(t)

    def noise_ratio(self, t: Time) -> Tensor:
        return (self._size * torch.expm1(self._rate * float64(t))).sqrt()

    def logsnr(self, t: Time) -> Tensor:
        return -self.noise_ratio(t).log()

    def time(self, logsnr: Time) -> Tensor:
        return (torch.log1p(torch.exp(-2 * float64(logsnr)) / self._size) / self._rate).clamp(0, 1)

    def f(self, t: Time) -> Tensor:
        return torch.full_like(float64(t), -self.theta)

    def g(self, t: Time) -> Tensor:
        growth = torch.exp(self._log_ratio * float64(t))
        return self.sigma_min * growth * math.sqrt(2 * self._log_ratio)
