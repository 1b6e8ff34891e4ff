"""Heavy-tailed noise: the Poisson flows of PFGM++, on any process.

    x_t = α(t) x0 + σ(t) ξ z,     z ~ N(0, I),  ξ = √(D/w),  w ~ χ²_D, one w per sample

ξ z is the multivariate Student law with D degrees of freedom, and σ ξ z has the density ∝ (‖x‖² + r²)^{−(n+D)/2} in
n dimensions with r = σ√D: the electric field of D extra dimensions at the distance r from the data
(PFGM++: Unlocking the Potential of Physics-Inspired Generative Models, 2023). D → ∞ is Gaussian noise, D = 1 the
Poisson flow of PFGM (2022), and the variance per value is σ²D/(D − 2), infinite for D ≤ 2.

The noise of one sample keeps its ξz and only grows with σ, so its path is the straight line of Gaussian noise,
dx̂/dσ̂ = (x̂ − D̂)/σ̂ holds with D̂ = E[x0 | x_t] of *this* law, and every deterministic plan is right as it stands.
Nothing else of the Gaussian case is: the score is not (αD̂ − x)/σ² (no Tweedie formula), and a Student law plus
Gaussian noise is no Student law, so there are no SDEs, ancestral steps, churn, or guidance by gradients of the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .._random import mix
from .base import Process, Time
from .schedules import EDM

_TAIL = 1 << 35  # streams of w, far from those of plans and hooks
_MANY = 1e4  # D/n from which ξ is computed, not drawn


class Poisson(Process):
    """`base` with Student noise of D degrees of freedom (D > 0, real; inf is `base` itself); see the module.

    α, β, σ, λ and the grids are those of the base, EDM unless given. Training draws the same noise, so a
    `Denoiser` on this process learns the right D̂, with EDM's preconditioning, weights and levels unchanged.
    """

    def __init__(self, D: float = 128.0, base: Process | None = None) -> None:
        base = EDM() if base is None else base
        if not isinstance(base, Process) or isinstance(base, Poisson):
            raise TypeError(f"base={base!r} must be an unstir.process.Process with Gaussian noise")
        if base.anchored:
            raise ValueError(f"base={base!r} is anchored; heavy-tailed noise is for processes without an anchor")
        try:
            dof = math.nan if isinstance(D, bool) else float(D)
        except (TypeError, ValueError):
            dof = math.nan
        if not dof > 0:
            raise ValueError(f"D={D!r} must be a number > 0, the count of extra dimensions (inf: Gaussian noise)")
        self.base, self.tails = base, dof
        self.span = base.span

    def spec(self) -> dict[str, Any]:
        return {"kind": "Poisson", "D": "inf" if math.isinf(self.tails) else self.tails, "base": self.base.spec()}

    def __repr__(self) -> str:
        return f"Poisson(D={self.tails:g}, base={self.base!r})"

    def alpha(self, t: Time) -> Tensor:
        return self.base.alpha(t)

    def sigma(self, t: Time) -> Tensor:
        return self.base.sigma(t)

    def logsnr(self, t: Time) -> Tensor:
        return self.base.logsnr(t)

    def time(self, logsnr: Time) -> Tensor:
        return self.base.time(logsnr)

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        return self.base.path(logsnr)

    def radius(self, t: Time) -> Tensor:
        """r = σ√D, the distance from the data in the D extra dimensions."""
        return self.sigma(t) * math.sqrt(self.tails)

    def f(self, t: Time) -> Tensor:
        return self.base.f(t)

    def g(self, t: Time) -> Tensor:
        return self.base.g(t) if math.isinf(self.tails) else self._refuse("diffusion g")

    def posterior(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        return self.base.posterior(s, t) if math.isinf(self.tails) else self._refuse("linear-Gaussian posterior")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self!r} has no {what}: its noise is heavy-tailed, so only its probability-flow ODE exists")

    def noise(
        self,
        keys: Sequence[int],
        shape: Sequence[int],
        stream: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """ξ z, with the same z as Gaussian noise of these keys, and one ξ for all values of a sample.

        From D = 10⁴ n on, ξ is the map of ‖z‖ to the quantile of the right radius, ξ² = 1 + (‖z‖² − n + 2)/(2D) up to
        (n/D)², rather than a draw of w: so samples of equal seeds tend to Gaussian ones like 1/D, not like 1/√D.
        """
        z = self.base.noise(keys, shape, stream, dtype=dtype, device=device)
        if math.isinf(self.tails):
            return z
        n = math.prod(shape)
        if self.tails >= _MANY * n:
            square = z.flatten(1).double().square().sum(1)
            xi = (1 + (square - n + 2) / (2 * self.tails)).sqrt()
        else:
            w = [np.random.Generator(np.random.Philox(key=mix(k, _TAIL + stream))).chisquare(self.tails) for k in keys]
            # At a small D the smallest w of a long run may underflow; ξ then stays finite all the same.
            xi = torch.as_tensor(self.tails / np.maximum(w, 1e-60), dtype=torch.float64).sqrt()
        return xi.to(device, dtype).reshape(-1, *[1] * (z.ndim - 1)) * z

    def log_prior(self, x: Tensor, t: Time = 1.0) -> Tensor:
        return student_log_density(x.flatten(1).square().sum(1), x[0].numel(), self.sigma(t).to(x), self.tails)


def student_log_density(square: Tensor, n: int, sigma: Tensor, dof: float) -> Tensor:
    """log of the Student density in n dimensions at ‖x‖² = square, scale σ, D = dof degrees of freedom:

        log Γ((D + n)/2) − log Γ(D/2) − ½ n log(π D σ²) − ½ (D + n) log(1 + ‖x‖²/(D σ²))

    for dof = inf its limit, the normal density.
    """
    if math.isinf(dof):
        return -0.5 * (square / sigma**2 + n * (2 * math.pi * sigma**2).log())
    constant = _log_gamma_ratio(dof / 2, n / 2) - 0.5 * n * math.log(math.pi * dof)
    return constant - n * sigma.log() - 0.5 * (dof + n) * torch.log1p(square / (dof * sigma**2))


def _log_gamma_ratio(z: float, a: float) -> float:
    """log Γ(z + a) − log Γ(z), by Stirling's series where both are so large that their difference would be rounding."""
    if z < 100:
        return math.lgamma(z + a) - math.lgamma(z)
    tail = (1 / (z + a) - 1 / z) / 12 - ((z + a) ** -3 - z**-3) / 360
    return (z - 0.5) * math.log1p(a / z) + a * math.log(z + a) - a + tail
