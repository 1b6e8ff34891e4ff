"""The continuous processes: VP, Cosine, SubVP, VE, EDM, Flow.

Each is written in the form that stays finite at σ = 0 and at α = 0; λ ↔ t is closed form in all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import EDGE, Process, Time, float64


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a finite number > 0")


class VP(Process):
    """Variance preserving with linear β (Score-Based Generative Modeling through SDEs, 2021).

    log α = −¼ t² (β₁ − β₀) − ½ t β₀,   σ = √(1 − α²);   dx = −½ β x dt + √β dw, β(t) = β₀ + t(β₁ − β₀).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        _positive(beta_min=beta_min, beta_max=beta_max)
        if beta_max < beta_min:
            raise ValueError(f"beta_max={beta_max} must be at least beta_min={beta_min}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _log_alpha(self, t: Time) -> Tensor:
        t = float64(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of ¼ t² Δ + ½ t β₀ + log α = 0, in the form without cancellation.
        delta, b = self.beta_max - self.beta_min, self.beta_min
        t = -4 * log_alpha / (b + (b**2 - 4 * delta * log_alpha).sqrt())
        return torch.where(log_alpha.isinf(), 1.0, t).clamp(0, 1)

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        return torch.expm1(2 * self._log_alpha(t)).abs().sqrt()

    def logsnr(self, t: Time) -> Tensor:
        return self._log_alpha(t) - self.sigma(t).log()

    def time(self, logsnr: Time) -> Tensor:
        # log α = −½ log(1 + e^(−2λ))
        return self._time_of_log_alpha(-0.5 * torch.nn.functional.softplus(-2 * float64(logsnr), threshold=700))

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        return _circle(logsnr)

    def f(self, t: Time) -> Tensor:
        return -0.5 * (self.beta_min + float64(t) * (self.beta_max - self.beta_min))

    def g(self, t: Time) -> Tensor:
        return (-2 * self.f(t)).sqrt()


def _circle(logsnr: Time) -> tuple[Tensor, Tensor]:
    """(α, σ) on α² + σ² = 1."""
    lam = float64(logsnr)
    return torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()


class Cosine(Process):
    """Variance preserving with a cosine (Improved DDPM, 2021; continuous, unclipped).

    α = cos θ / cos θ₀,  θ = ½π (t + s)/(1 + s),  θ₀ = θ(0);  σ² = 1 − α² = sin(θ − θ₀) sin(θ + θ₀)/cos² θ₀.
    α(1) = 0 exactly (zero terminal SNR); `span` ends at 0.9946 (λ ≈ −5.1), where solvers clip it.
    """

    span = (1e-3, 0.9946)

    def __init__(self, s: float = 0.008) -> None:
        _positive(s=s)
        self.s = float(s)

    @property
    def _theta0(self) -> float:
        return 0.5 * math.pi * self.s / (1 + self.s)

    def alpha(self, t: Time) -> Tensor:
        # cos θ = sin(½π − θ), and ½π − θ is exactly 0 at t = 1.
        return torch.sin(0.5 * math.pi * (1 - float64(t)) / (1 + self.s)) / math.cos(self._theta0)

    def sigma(self, t: Time) -> Tensor:
        turn = 0.5 * math.pi * float64(t) / (1 + self.s)
        return (torch.sin(turn) * torch.sin(turn + 2 * self._theta0)).sqrt() / math.cos(self._theta0)

    def time(self, logsnr: Time) -> Tensor:
        alpha, sigma = _circle(logsnr)
        # cos θ = α cos θ₀ and sin² θ = sin² θ₀ + σ² cos² θ₀; the angle from θ₀ by its own sine and
        # cosine, sin(θ − θ₀) = σ² cos² θ₀/sin(θ + θ₀), so that nothing cancels near t = 0.
        sin0, cos0 = math.sin(self._theta0), math.cos(self._theta0)
        cos, sin = alpha * cos0, (sin0**2 + (sigma * cos0) ** 2).sqrt()
        turn = torch.atan2((sigma * cos0) ** 2 / (sin * cos0 + cos * sin0), cos * cos0 + sin * sin0)
        return (turn * (2 / math.pi) * (1 + self.s)).clamp(0, 1)

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        return _circle(logsnr)


class SubVP(VP):
    """Sub-variance preserving (Score-Based Generative Modeling through SDEs, 2021): σ = 1 − α², α as in VP."""

    def sigma(self, t: Time) -> Tensor:
        return torch.expm1(2 * self._log_alpha(t)).abs()

    def time(self, logsnr: Time) -> Tensor:
        # α/(1 − α²) = k  ⇒  α = 2k/(1 + √(1 + 4k²)) = 2/(1/k + √(1/k² + 4)); log α = −asinh(1/(2k)).
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-float64(logsnr))))

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        log_alpha = -torch.asinh(0.5 * torch.exp(-float64(logsnr)))
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)

    def g(self, t: Time) -> Tensor:
        return (-2 * self.f(t) * -torch.expm1(4 * self._log_alpha(t))).sqrt()


class _Exploding(Process):
    """What processes with α = 1 share; σ_min sets where the inner nodes of a grid end."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        _positive(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max={sigma_max} must exceed sigma_min={sigma_min}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    @property
    def span(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self.time(-math.log(self.sigma_min))), 1.0

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(float64(t))

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(-float64(logsnr))
        return torch.ones_like(sigma), sigma

    def f(self, t: Time) -> Tensor:
        return torch.zeros_like(float64(t))


class VE(_Exploding):
    """Variance exploding (Score-Based Generative Modeling through SDEs, 2021).

    α = 1,  σ² = σ_min² ((σ_max/σ_min)^(2t) − 1): the exact marginal of the equation, so σ(0) = 0
    (the published code writes σ_min (σ_max/σ_min)^t, which differs only near σ_min).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__(sigma_min, sigma_max)

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.expm1(self._rate * float64(t)).sqrt()

    def time(self, logsnr: Time) -> Tensor:
        return (torch.log1p(torch.exp(-2 * float64(logsnr)) / self.sigma_min**2) / self._rate).clamp(0, 1)

    def g(self, t: Time) -> Tensor:
        return self.sigma_min * (self._rate * torch.exp(self._rate * float64(t))).sqrt()


class EDM(_Exploding):
    """α = 1, σ = σ_max t (Elucidating the Design Space of Diffusion-Based Generative Models, 2022).

    The paper's time is σ itself; here it is rescaled to [0, 1].
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_max * float64(t)

    def time(self, logsnr: Time) -> Tensor:
        return (torch.exp(-float64(logsnr)) / self.sigma_max).clamp(0, 1)

    def g(self, t: Time) -> Tensor:
        return self.sigma_max * (2 * float64(t)).sqrt()


class Flow(Process):
    """Straight paths, α = 1 − t, σ = t (Flow Matching, 2023; rectified flow, 2023).

    t in [0, 1] runs from data to noise; z − x0 is the velocity. λ = log((1 − t)/t).
    """

    span = (1e-3, 1 - 1e-3)

    def alpha(self, t: Time) -> Tensor:
        return 1 - float64(t)

    def sigma(self, t: Time) -> Tensor:
        return float64(t).clone()

    def time(self, logsnr: Time) -> Tensor:
        return torch.sigmoid(-float64(logsnr))

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        lam = float64(logsnr)
        return torch.sigmoid(lam), torch.sigmoid(-lam)

    def f(self, t: Time) -> Tensor:
        return -1 / (1 - float64(t)).clamp_min(EDGE)

    def g(self, t: Time) -> Tensor:
        t = float64(t)
        return (2 * t / (1 - t).clamp_min(EDGE)).sqrt()
