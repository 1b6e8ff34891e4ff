"""The forward process: how data is stirred.

    x_t = α(t) x0 + β(t) y + σ(t) z,      t in [0, 1],  z ~ N(0, I),  y = anchor (optional)

0 is clean, 1 is fully stirred. Everything downstream (solvers, plans, training weights) sees a
process only through α, β, σ and the *half* log-SNR λ = log(α/σ). Times are floats or tensors of
any shape; every result is a float64 tensor of that shape on the same device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._random import PRIOR, draw, sample_keys

Time = float | Tensor

# Derivatives that are truly infinite at an end are given at this distance from it, so that f, g
# and h are finite everywhere.
EDGE = 1e-9


def float64(value: Any) -> Tensor:
    """`value` as a float64 tensor (device kept)."""
    return torch.as_tensor(value, dtype=torch.float64)


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A scalar or (B,) coefficient, cast and shaped to broadcast over a state (B, *)."""
    c = coefficient.to(like.dtype).to(like.device)
    return c.reshape(c.shape + (1,) * (like.ndim - c.ndim)) if c.ndim == 1 else c


class Process:
    """Base of all processes: subclasses define α, σ and their λ ↔ t map, the rest follows.

    A subclass overrides `alpha`, `sigma`, `logsnr`, `time` (closed forms that are finite, or
    correctly infinite, at both ends) and `drift`, `diffusion2`. `span` = (t_lo, t_hi) is the
    part of [0, 1] on which λ is moderate: grids space their inner nodes on it and then reach the
    exact ends 0 and 1.
    """

    span: tuple[float, float] = (1e-3, 1.0)
    anchored: bool = False
    tails: float = math.inf  # degrees of freedom of the noise: ∞ is Gaussian, see `process.Poisson`

    # -- what a subclass defines -------------------------------------------------------------
    def alpha(self, t: Time) -> Tensor:
        """α(t), the weight of the data x0."""
        raise NotImplementedError

    def sigma(self, t: Time) -> Tensor:
        """σ(t), the standard deviation of the noise."""
        raise NotImplementedError

    def beta(self, t: Time) -> Tensor:
        """β(t), the weight of the anchor y; zero unless the process is anchored."""
        return torch.zeros_like(float64(t))

    def logsnr(self, t: Time) -> Tensor:
        """The half log-SNR λ(t) = log(α/σ), the convention of the solver literature; +∞ at σ = 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, logsnr: Time) -> Tensor:
        """The inverse of `logsnr`: the t in [0, 1] with λ(t) = logsnr, by safe bisection.

        λ is decreasing, so 60 halvings of [0, 1] find t to 1e-18; a λ outside the range of the
        process gives the nearer end.
        """
        lam = float64(logsnr)
        lo, hi = torch.zeros_like(lam), torch.ones_like(lam)
        for _ in range(60):
            mid = (lo + hi) / 2
            cleaner = self.logsnr(mid) > lam
            lo, hi = torch.where(cleaner, mid, lo), torch.where(cleaner, hi, mid)
        t = (lo + hi) / 2
        t = torch.where(lam >= self.logsnr(torch.zeros_like(lam)), 0.0, t)
        return torch.where(lam <= self.logsnr(torch.ones_like(lam)), 1.0, t)

    def spec(self) -> dict[str, Any]:
        """A JSON-able description from which `process.from_spec` rebuilds the process."""
        return {"kind": type(self).__name__, **vars(self)}

    # -- derivatives and the stochastic differential equation ----------------------------------
    def _derivative(self, function: Any, t: Time) -> Tensor:
        inner = float64(t).clamp(EDGE, 1 - EDGE).detach().requires_grad_(True)
        with torch.enable_grad():
            value = function(inner)
            if not value.requires_grad:
                return torch.zeros_like(inner)
            (slope,) = torch.autograd.grad(value.sum(), inner)
        return slope

    def dalpha(self, t: Time) -> Tensor:
        """dα/dt, at distance `EDGE` from an end where it is infinite."""
        return self._derivative(self.alpha, t)

    def dsigma(self, t: Time) -> Tensor:
        """dσ/dt (for VP it grows like t^(-1/2) at 0: the value at `EDGE` is returned)."""
        return self._derivative(self.sigma, t)

    def dbeta(self, t: Time) -> Tensor:
        """dβ/dt."""
        return self._derivative(self.beta, t) if self.anchored else torch.zeros_like(float64(t))

    def f(self, t: Time) -> Tensor:
        """Drift of dx = (f x + h y) dt + g dw:  f = α'/α."""
        return self.dalpha(t) / self.alpha(float64(t).clamp(EDGE, 1 - EDGE))

    def g(self, t: Time) -> Tensor:
        """Diffusion of the same equation:  g² = 2σσ' − 2fσ² = −2σ²λ'."""
        t = float64(t).clamp(EDGE, 1 - EDGE)
        sigma = self.sigma(t)
        return (2 * sigma * self.dsigma(t) - 2 * self.f(t) * sigma**2).clamp_min(0).sqrt()

    def h(self, t: Time) -> Tensor:
        """Anchor drift of the same equation:  h = β' − fβ."""
        return self.dbeta(t) - self.f(t) * self.beta(t) if self.anchored else self.beta(t)

    # -- noise ratio, paths ---------------------------------------------------------------------
    def noise_ratio(self, t: Time) -> Tensor:
        """σ̂(t) = σ/α = exp(−λ), the noise level of the scaled state x/α."""
        return self.sigma(t) / self.alpha(t)

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        """(α, σ) as a function of λ: the curve that the process runs along, whatever its speed."""
        t = self.time(logsnr)
        return self.alpha(t), self.sigma(t)

    # -- states -----------------------------------------------------------------------------------
    def stir(self, x0: Tensor, t: Time, noise: Tensor, anchor: Tensor | None = None) -> Tensor:
        """x_t = α(t) x0 + β(t) y + σ(t) z for t a scalar or (B,); x0, noise, anchor of shape (B, *)."""
        if noise.shape != x0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; x0 has {tuple(x0.shape)}")
        x = expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise
        return self.uncentre(x, t, anchor)

    def centre(self, x: Tensor, t: Time, anchor: Tensor | None = None) -> Tensor:
        """u = x − β(t) y, the centred state: it obeys the plain (α, σ) process."""
        if not self.anchored:
            return x
        return x - expand(self.beta(t), x) * self._need(anchor)

    def uncentre(self, u: Tensor, t: Time, anchor: Tensor | None = None) -> Tensor:
        """x = u + β(t) y, the inverse of `centre`."""
        if not self.anchored:
            return u
        return u + expand(self.beta(t), u) * self._need(anchor)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        seed: int = 0,
        t: float = 1.0,
        anchor: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The start of sampling, β(t) y + σ(t) z: the forward law at t with the data forgotten (see `start`).

        Sample i of the batch has its own random stream (seed, i), see `unstir.sample`.
        """
        if not shape or any(int(n) < 1 for n in shape):
            raise ValueError(f"shape={tuple(shape)} must be (batch, *), all sizes at least 1")
        start = self.start(sample_keys(shape[0], seed), shape[1:], t, anchor=anchor, dtype=dtype, device=device)
        return self.uncentre(start, t, anchor)

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
        """σ(t) z, the centred prior, one sample per key: where a run begins that is given no state.

        (Processes whose anchor is like the data start around it, see `process.Anchored`.)
        """
        z = self.noise(keys, shape, PRIOR, dtype=dtype, device=device)
        return expand(self.sigma(t), z) * z

    def noise(
        self,
        keys: Sequence[int],
        shape: Sequence[int],
        stream: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The z of `stir`, (len(keys), *shape), row i from the stream (keys[i], stream): standard normal here.

        Training and the start of sampling draw it; noise in between is the plan's, and always normal.
        """
        return draw(keys, shape, stream, dtype, device)

    def log_prior(self, x: Tensor, t: Time = 1.0) -> Tensor:
        """log density of σ(t) z at the centred states x (B, *), shape (B,)."""
        sigma = self.sigma(t).to(x)
        return -0.5 * ((x.flatten(1) / sigma) ** 2 + math.log(2 * math.pi) + 2 * sigma.log()).sum(1)

    def posterior(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) of the linear-Gaussian step x_s | x_t, x0 ~ N(a x_t + b x0, c²), s cleaner than t.

        With κ = σ_s α_t / (σ_t α_s) = exp(λ_t − λ_s):  a = κ σ_s/σ_t,  b = α_s − a α_t,
        c = σ_s √(1 − κ²). For anchored processes the formula is in the centred state.
        """
        alpha_s, sigma_s, alpha_t, sigma_t = self.alpha(s), self.sigma(s), self.alpha(t), self.sigma(t)
        if bool((self.logsnr(s) < self.logsnr(t)).any()):
            raise ValueError(f"posterior(s, t) needs s cleaner than t; got s={s}, t={t}")
        ratio = torch.where(sigma_t > 0, sigma_s / sigma_t.clamp_min(1e-300), 1.0)
        kappa = ratio * torch.where(alpha_s > 0, alpha_t / alpha_s.clamp_min(1e-300), 1.0)
        a = kappa * ratio
        return a, alpha_s - a * alpha_t, sigma_s * (1 - kappa**2).clamp_min(0).sqrt()

    def _need(self, anchor: Tensor | None) -> Tensor:
        if anchor is None:
            raise ValueError(f"{type(self).__name__} is anchored: pass anchor=, a tensor of the data's shape")
        return anchor

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.spec().items() if k != "kind")
        return f"{type(self).__name__}({options})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash(repr(self))
