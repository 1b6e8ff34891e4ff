"""Stochastic interpolants: bridges in finite time between any two laws (Stochastic Interpolants: A Unifying Framework
for Flows and Diffusions, 2023).

    x_t = α(t) x0 + β(t) y + σ(t) z,     (α, β, σ) = (1, 0, 0) at t = 0 and (0, 1, 0) at t = 1

x0 is the data and y the source, drawn together (pairs) or apart; z ~ N(0, I) independent of both. Time is t = 1 − τ
of the paper, so 0 is data here. The source may be any law, so sampling begins with a draw of it.

Two uses, and two laws. Is y *given* (translate this picture), the process is anchored: u = x − βy is an ordinary
diffusion, and all plans apply to a network that sees y. Is it *not* (y is only where the mass comes from), the state
follows its own velocity, dx/dt = v(x, t) = E[dx_t/dt | x_t = x], or an SDE of the same marginals with any amount of
noise: that is `Marginal`, for `unstir.denoiser.Field` and the "field-…" solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .base import EDGE, Process, Time, float64


def _sigmoid(t: Tensor) -> Tensor:
    def s(u: float | Tensor) -> Tensor:
        return torch.sigmoid(float64(u))

    return (s(10 * (t - 0.5) + 1) - s(10 * (t - 0.5) - 1) - s(-4.0) + s(-6.0)).clamp_min(0)  # 0 at t = 0, not −4e-19


def _shape(gamma: str, t: Time) -> Tensor:
    # Folded at t = ½, about which every γ is symmetric, so that both ends are exactly 0.
    t = float64(t)
    return GAMMAS[gamma](torch.minimum(t, 1 - t))


# σ(t)/scale on [0, ½]; σ(1 − t) = σ(t), and 0 at the ends.
GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "brownian": lambda t: (t * (1 - t)).sqrt(),  # with `scale` = √a the Brownian bridge of variance a
    "quadratic": lambda t: t * (1 - t),
    "sine": lambda t: torch.sin(math.pi * t) ** 2,
    "sigmoid": _sigmoid,
    "zero": torch.zeros_like,
}
PATHS = ("linear", "trigonometric", "encode-decode")


class Interpolant(Process):
    """A two-sided interpolant, with the noise σ = scale · GAMMAS[gamma](t).

    path      α, β
    "linear"          1 − t, t
    "trigonometric"   ν cos ½πt, ν sin ½πt with ν = √(1 − σ²): unit variance if both ends have it and are independent
    "encode-decode"   cos² πt · [t < ½], cos² πt · [t > ½], σ = sin² πt: through N(0, I) at t = ½, so the ends are forgotten

    `conditional_ok` says whether data can be sampled from t = 1 when y is given: λ must decrease all the way to −∞.
    """

    span = (0.005, 0.995)
    anchored = True

    def __init__(self, path: str = "linear", gamma: str | None = None, scale: float = 1.0) -> None:
        if path not in PATHS:
            raise ValueError(f"path={path!r} must be one of {', '.join(PATHS)}")
        gamma = gamma or ("sine" if path == "encode-decode" else "brownian")
        _check_gamma(gamma, scale)
        if path == "encode-decode" and (gamma, scale) != ("sine", 1):
            raise ValueError(f"path='encode-decode' has the noise gamma='sine', scale=1; got {gamma!r}, scale={scale:g}")
        if path == "trigonometric" and float(scale * _shape(gamma, 0.5)) > 1 - 1e-9:
            raise ValueError(f"scale={scale:g}: path='trigonometric' needs σ < 1, since α² + β² = 1 − σ² (kinked at 0)")
        self.path_name, self.gamma, self.scale = path, gamma, float(scale)

    def spec(self) -> dict[str, Any]:
        return {"kind": "Interpolant", "path": self.path_name, "gamma": self.gamma, "scale": self.scale}

    def sigma(self, t: Time) -> Tensor:
        return self.scale * _shape(self.gamma, t)

    def _weights(self, t: Time) -> tuple[Tensor, Tensor]:
        t = float64(t)
        if self.path_name == "linear":
            return 1 - t, t.clone()
        if self.path_name == "encode-decode":
            square = torch.cos(math.pi * t) ** 2
            return torch.where(t < 0.5, square, 0.0), torch.where(t > 0.5, square, 0.0)
        norm = (1 - self.sigma(t) ** 2).sqrt()
        # cos ½πt as a sine, which is exactly 0 at t = 1.
        return norm * torch.sin(0.5 * math.pi * (1 - t)), norm * torch.sin(0.5 * math.pi * t)

    def alpha(self, t: Time) -> Tensor:
        return self._weights(t)[0]

    def beta(self, t: Time) -> Tensor:
        return self._weights(t)[1]

    def logsnr(self, t: Time) -> Tensor:
        """λ = log(α/σ); at t = 1, where both are 0, its limit: −∞ if `conditional_ok`."""
        t = float64(t)
        lam = self.alpha(t).log() - self.sigma(t).log()
        end = self._ratio(1 - EDGE)
        limit = -math.inf if end < self._ratio(1 - 1e-4) - 1 else end
        return torch.where((self.alpha(t) == 0) & (self.sigma(t) == 0), limit, lam)

    def _ratio(self, t: float) -> float:
        return float(self.alpha(t).log() - self.sigma(t).log())

    def time(self, logsnr: Time) -> Tensor:
        if not self._decreasing:
            raise ValueError(f"the log-SNR of {self!r} does not decrease with t, so it has no inverse; give times, not λ")
        return super().time(logsnr)

    @cached_property
    def _decreasing(self) -> bool:
        return bool((self.logsnr(torch.linspace(1e-4, 1, 1000, dtype=torch.float64)).diff() < 0).all())

    @property
    def conditional_ok(self) -> bool:
        """Can data be sampled from t = 1 given y? Only if λ decreases strictly to −∞, that is α = o(σ) at t = 1.

        Else x_t − βy still shows x0 near the end ("quadratic"), or the noise falls again ("sine"): no known prior.
        """
        return self._decreasing and float(self.logsnr(1.0)) == -math.inf

    def start(self, keys: Sequence[int], shape: Sequence[int], t: Time = 1.0, **where: Any) -> Tensor:
        if not self.conditional_ok:
            raise ValueError(
                f"gamma={self.gamma!r} on the path {self.path_name!r} has no known prior given y (see conditional_ok): use "
                "gamma='brownian', give the start state as x=, or integrate the velocity with a Field"
            )
        return super().start(keys, shape, t, **where)


class Mirror(Process):
    """x_t = x0 + σ(t) z with σ = 0 at both ends: data to data, which resamples a data set. σ as in `Interpolant`.

    Its ODE is the identity from end to end, by symmetry; only the SDE (diffusion > 0) moves.
    """

    span = (0.005, 0.995)

    def __init__(self, gamma: str = "brownian", scale: float = 1.0) -> None:
        _check_gamma(gamma, scale)
        self.gamma, self.scale = gamma, float(scale)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(float64(t))

    def sigma(self, t: Time) -> Tensor:
        return self.scale * _shape(self.gamma, t)


class OneSided(Process):
    """The interpolant whose source is the noise itself, x = α x0 + σ z: an ordinary process, for all plans.

    path "linear": α = 1 − t, σ = t, which is `Flow`;   "trigonometric": α = cos ½πt, σ = sin ½πt.
    """

    span = (1e-3, 1 - 1e-3)

    def __init__(self, path: str = "linear") -> None:
        if path not in PATHS[:2]:
            raise ValueError(f"path={path!r} must be 'linear' or 'trigonometric'")
        self.path_name = path

    def spec(self) -> dict[str, Any]:
        return {"kind": "OneSided", "path": self.path_name}

    def alpha(self, t: Time) -> Tensor:
        t = float64(t)
        return 1 - t if self.path_name == "linear" else torch.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t: Time) -> Tensor:
        t = float64(t)
        return t.clone() if self.path_name == "linear" else torch.sin(0.5 * math.pi * t)

    def time(self, logsnr: Time) -> Tensor:
        lam = float64(logsnr)
        return torch.sigmoid(-lam) if self.path_name == "linear" else torch.atan(torch.exp(-lam)) * (2 / math.pi)


class Marginal(Process):
    """`base` seen without its anchor: the law of x_t alone, moved by dx/dt = v(x, t). The process of a `Field`.

    The state is not α x0 + σ z with a known remainder, so solvers that work in λ refuse it; those named "field-…"
    integrate in t. Where y is the source of an interpolant, or both ends are data, a run needs its start as x=.
    """

    def __init__(self, base: Process) -> None:
        if not isinstance(base, Process) or isinstance(base, Marginal):
            raise TypeError(f"base={base!r} must be an unstir.process.Process that is not a Marginal itself")
        self.base, self.span, self.tails = base, base.span, base.tails

    def spec(self) -> dict[str, Any]:
        return {"kind": "Marginal", "base": self.base.spec()}

    def __repr__(self) -> str:
        return f"Marginal({self.base!r})"

    def alpha(self, t: Time) -> Tensor:
        return self.base.alpha(t)

    def beta(self, t: Time) -> Tensor:
        return self.base.beta(t)

    def sigma(self, t: Time) -> Tensor:
        return self.base.sigma(t)

    def logsnr(self, t: Time) -> Tensor:
        return self.base.logsnr(t)

    def dalpha(self, t: Time) -> Tensor:
        return self.base.dalpha(t)

    def dbeta(self, t: Time) -> Tensor:
        return self.base.dbeta(t)

    def dsigma(self, t: Time) -> Tensor:
        return self.base.dsigma(t)

    def stir(self, x0: Tensor, t: Time, noise: Tensor, anchor: Tensor | None = None) -> Tensor:
        return self.base.stir(x0, t, noise, anchor)

    def noise(self, keys: Sequence[int], shape: Sequence[int], stream: int, **where: Any) -> Tensor:
        return self.base.noise(keys, shape, stream, **where)

    def start(self, keys: Sequence[int], shape: Sequence[int], t: Time = 1.0, **where: Any) -> Tensor:
        if self.base.anchored or isinstance(self.base, Mirror):
            raise ValueError(f"{self!r} starts from a sample of its source: pass x=, a draw of that law (B, *)")
        return self.base.start(keys, shape, t, **where)

    def log_prior(self, x: Tensor, t: Time = 1.0) -> Tensor:
        if self.base.anchored or isinstance(self.base, Mirror):
            raise ValueError(f"{self!r} does not know the density of its source: pass log_prior=, a function of x (B, *)")
        return self.base.log_prior(x, t)


def _check_gamma(gamma: str, scale: float) -> None:
    if gamma not in GAMMAS:
        raise ValueError(f"gamma={gamma!r} must be one of {', '.join(GAMMAS)}")
    if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale!r} must be a finite number > 0; for no noise at all use gamma='zero'")
