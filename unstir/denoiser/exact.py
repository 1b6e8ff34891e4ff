"""Exact denoisers: data laws for which E[x0 | x_t] is known. They are the oracles of everything else.

All of them work in the centred state and are finite at σ = 0 and at α = 0. For one Gaussian
component N(μ, C) with eigenvalues Λ the posterior mean is

    D = μ + C α (α² C + σ²)⁻¹ (x − α μ),     log N(x; αμ, α² C + σ²)  weighs it in a mixture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._calls import count_call
from .._random import draw, sample_keys
from ..process import Process
from ..process.base import float64
from ..process.poisson import student_log_density


class _Exact(nn.Module):
    """Shared plumbing: flattening, time broadcasting, batch-independent sampling."""

    def __init__(self, process: Process, shape: tuple[int, ...]) -> None:
        super().__init__()
        if not isinstance(process, Process):
            raise TypeError(f"process is {type(process).__name__}; it must be an unstir.process.Process")
        if math.isfinite(process.tails) and not isinstance(self, Empirical):
            raise ValueError(f"{type(self).__name__} is exact for Gaussian noise; {process!r} is heavy-tailed (use Empirical)")
        self.process, self.shape = process, tuple(shape)

    def _levels(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """(x flattened to (B, n), α, σ) with α, σ of shape (B, 1) in x's dtype."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has sample shape {tuple(x.shape[1:])}; this denoiser was made for {self.shape}")
        t = float64(t).to(x.device).expand(x.shape[0])[:, None]
        return x.reshape(x.shape[0], -1), self.process.alpha(t).to(x.dtype), self.process.sigma(t).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor | float, anchor: Tensor | None = None) -> Tensor:
        """The exact data prediction E[x0 | x_t = x]."""
        data = self._posterior_mean(*self._levels(self.process.centre(x, t, anchor), t))
        count_call(data)
        return data.reshape(x.shape)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log density of the stirred state x_t, shape (B,)."""
        return torch.logsumexp(self._log_weights(*self._levels(x, t)), 1)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_weights(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError


class GaussianMixture(_Exact):
    """Mixture of K Gaussians in n dimensions.

    weights (K,), means (K, *shape), and covariances as (K, n, n), or variances as (K, n), (K,) or
    a number. Positive semi-definite covariances are allowed (data on subspaces).
    """

    log_weights: Tensor  # (K,)
    means: Tensor  # (K, n)
    spectrum: Tensor  # (K, n), eigenvalues of the covariances
    axes: Tensor | None  # (K, n, n), their eigenvectors; None if they are diagonal

    def __init__(self, process: Process, weights: Any, means: Any, covariances: Any) -> None:
        weights, means, cov = float64(weights), float64(means), float64(covariances)
        if means.ndim == 1:
            means = means[:, None]
        super().__init__(process, tuple(means.shape[1:]))
        k, n = means.shape[0], means[0].numel()
        if weights.shape != (k,) or bool((weights <= 0).any()):
            raise ValueError(f"weights must be {k} positive numbers, one per mean; got shape {tuple(weights.shape)}")
        axes: Tensor | None = None
        if cov.shape == (k, n, n) and not (n == 1 and cov.ndim == 1):
            if not torch.allclose(cov, cov.mT, atol=1e-9 * float(cov.abs().max())):
                raise ValueError("covariances must be symmetric")
            spectrum, axes = torch.linalg.eigh(cov)
        elif cov.shape in ((k, n), (k,), ()):
            spectrum = (cov[:, None] if cov.shape == (k,) else cov).expand(k, n)
        else:
            raise ValueError(f"covariances has shape {tuple(cov.shape)}; give ({k}, {n}, {n}), ({k}, {n}), ({k},) or a number")
        if float(spectrum.min()) < -1e-9 * max(1.0, float(spectrum.max())):
            raise ValueError(f"covariances must be positive semi-definite; smallest eigenvalue {float(spectrum.min()):.3g}")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means.reshape(k, n))
        self.register_buffer("spectrum", spectrum.clamp_min(0).contiguous())
        self.register_buffer("axes", axes)

    def _rotated(self, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, spectrum = self.means.to(x.dtype), self.spectrum.to(x.dtype)
        r = x[:, None] - alpha[:, None] * means  # (B, K, n)
        if self.axes is not None:
            r = torch.einsum("bkn,knm->bkm", r, self.axes.to(x.dtype))
        return r, means, spectrum

    def _log_weights(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r, _, spectrum = self._rotated(x, alpha)
        var = alpha[:, None] ** 2 * spectrum + sigma[:, None] ** 2
        return self._log_densities(r, var)

    def _log_densities(self, r: Tensor, var: Tensor) -> Tensor:
        var = var.clamp_min(torch.finfo(var.dtype).tiny)
        quadratic = (r**2 / var + var.log() + math.log(2 * math.pi)).sum(2)
        return self.log_weights.to(r.dtype) - 0.5 * quadratic

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r, means, spectrum = self._rotated(x, alpha)
        var = alpha[:, None] ** 2 * spectrum + sigma[:, None] ** 2  # (B, K, n)
        gain = alpha[:, None] * spectrum / var.clamp_min(torch.finfo(var.dtype).tiny)
        shift = gain * r
        if self.axes is not None:
            shift = torch.einsum("bkm,knm->bkn", shift, self.axes.to(x.dtype))
        if means.shape[0] == 1:
            return means + shift[:, 0]
        w = torch.softmax(self._log_densities(r, var), 1)
        return (w[:, :, None] * (means + shift)).sum(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of clean data, float64, sample i from its own stream."""
        dim = self.means.shape[1]
        z = draw(sample_keys(n, seed), (dim + 1,), 0, torch.float64)
        u = 0.5 * (1 + torch.erf(z[:, -1] / math.sqrt(2)))
        which = torch.searchsorted(self.log_weights.exp().cumsum(0), u).clamp_max(len(self.means) - 1)
        x = self.spectrum[which].sqrt() * z[:, :-1]
        if self.axes is not None:
            x = torch.einsum("bm,bnm->bn", x, self.axes[which])
        return (self.means[which] + x).reshape(n, *self.shape)


class Gaussian(GaussianMixture):
    """One Gaussian: mean of the sample's shape, and a covariance (n, n), variances of that shape, or a number.

    `std=` may be given instead of `covariance=`.
    """

    def __init__(self, process: Process, mean: Any = 0.0, covariance: Any = None, *, std: Any = None) -> None:
        if (covariance is None) == (std is None):
            raise ValueError("give exactly one of covariance= and std=")
        mean = float64(mean)
        mean = mean[None] if mean.ndim == 0 else mean
        cov = float64(std) ** 2 if covariance is None else float64(covariance)
        n = mean.numel()
        cov = cov[None] if cov.shape == (n, n) and n > 1 else cov.expand(mean.shape).reshape(1, n)
        super().__init__(process, [1.0], mean[None], cov)


class LowRankMixture(GaussianMixture):
    """Data on K subspaces, x0 = m_k + U_k a, a ~ N(0, Λ_k) (How Diffusion Models Learn Low-Dimensional Distributions, 2024).

    bases: list of (n, d_k) with orthonormal columns; eigenvalues: list of (d_k,), 1 by default.
    Costs O(n Σ d_k) per sample instead of O(K n²).
    """

    def __init__(
        self, process: Process, weights: Any, bases: list[Any], eigenvalues: list[Any] | None = None, means: Any = None
    ) -> None:
        _Exact.__init__(self, process, (int(float64(bases[0]).shape[0]),))
        u = [float64(b) for b in bases]
        n, k = u[0].shape[0], len(u)
        lam = (
            [torch.ones(b.shape[1], dtype=torch.float64) for b in u]
            if eigenvalues is None
            else [float64(e) for e in eigenvalues]
        )
        for i, (b, e) in enumerate(zip(u, lam, strict=True)):
            if b.ndim != 2 or b.shape[0] != n or not torch.allclose(b.mT @ b, torch.eye(b.shape[1], dtype=b.dtype), atol=1e-8):
                raise ValueError(f"bases[{i}] must be ({n}, d) with orthonormal columns; got {tuple(b.shape)}")
            if e.shape != (b.shape[1],) or bool((e <= 0).any()):
                raise ValueError(f"eigenvalues[{i}] must be {b.shape[1]} positive numbers")
        w = float64(weights)
        if w.shape != (k,) or bool((w <= 0).any()):
            raise ValueError(f"weights must be {k} positive numbers, one per basis")
        width = max(b.shape[1] for b in u)
        # Padded to one (K, n, d) tensor: a padded direction has eigenvalue 0 and changes nothing.
        axes = torch.stack([torch.nn.functional.pad(b, (0, width - b.shape[1])) for b in u])
        spectrum = torch.stack([torch.nn.functional.pad(e, (0, width - len(e))) for e in lam])
        self.register_buffer("log_weights", (w / w.sum()).log())
        self.register_buffer("means", torch.zeros(k, n, dtype=torch.float64) if means is None else float64(means).reshape(k, n))
        self.register_buffer("axes", axes)
        self.register_buffer("spectrum", spectrum)

    def _coordinates(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.axes is not None
        r = x[:, None] - alpha[:, None] * self.means.to(x.dtype)
        inside = torch.einsum("bkn,knd->bkd", r, self.axes.to(x.dtype))
        return r, inside, alpha[:, None] ** 2 * self.spectrum.to(x.dtype)

    def _log_weights(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # log N(r; 0, U α²Λ Uᵀ + σ²): the part outside the subspaces and the determinant of each.
        r, inside, signal = self._coordinates(x, alpha, sigma)
        s2 = (sigma[:, None] ** 2).clamp_min(torch.finfo(x.dtype).tiny)
        n = x.shape[1]
        outside = (r**2).sum(2) - (inside**2).sum(2)
        quadratic = outside / s2[..., 0] + (inside**2 / (signal + s2)).sum(2)
        log_det = torch.log1p(signal / s2).sum(2) + n * (2 * math.pi * s2[..., 0]).log()
        return self.log_weights.to(x.dtype) - 0.5 * (quadratic + log_det)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        assert self.axes is not None
        _, inside, signal = self._coordinates(x, alpha, sigma)
        tiny = torch.finfo(x.dtype).tiny
        gain = alpha[:, None] * self.spectrum.to(x.dtype) / (signal + sigma[:, None] ** 2).clamp_min(tiny)
        each = self.means.to(x.dtype) + torch.einsum("bkd,knd->bkn", gain * inside, self.axes.to(x.dtype))
        w = torch.softmax(self._log_weights(x, alpha, sigma), 1)
        return (w[:, :, None] * each).sum(1)


class Empirical(_Exact):
    """A data set itself, blurred: the mixture of N(x_i, bandwidth² I) over the rows of `data` (N, *).

    D is a softmax-weighted mean of the data (plus the kernel's own shrinkage); with bandwidth 0
    it is the nearest datum as σ → 0. On a heavy-tailed process the weights are those of its own noise,
    w_i ∝ (‖x − αx_i‖² + σ²D)^{−(n + D)/2}, and the bandwidth must be 0.
    """

    data: Tensor  # (N, n)
    norms: Tensor  # (N,), ‖x_i‖²

    def __init__(self, process: Process, data: Any, bandwidth: float = 0.0) -> None:
        data = float64(data)
        if data.ndim < 2 or len(data) < 1:
            raise ValueError(f"data must be (N, *) with N ≥ 1; got shape {tuple(data.shape)}")
        if not bool(torch.isfinite(data).all()):
            raise ValueError("data contains NaN or infinite values")
        if not bandwidth >= 0:
            raise ValueError(f"bandwidth={bandwidth} must be at least 0")
        super().__init__(process, tuple(data.shape[1:]))
        if bandwidth > 0 and math.isfinite(process.tails):
            raise ValueError(f"bandwidth={bandwidth} must be 0 on {process!r}: a Gaussian under heavy tails has no closed form")
        self.bandwidth = float(bandwidth)
        self.register_buffer("data", data.reshape(len(data), -1))
        self.register_buffer("norms", (self.data**2).sum(1))

    def _log_weights(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        var = (alpha**2 * self.bandwidth**2 + sigma**2).clamp_min(1e-30)
        data = self.data.to(x.dtype)
        square = (x**2).sum(1, keepdim=True) - 2 * alpha * (x @ data.T) + alpha**2 * self.norms.to(x.dtype)
        n = x.shape[1]
        if math.isfinite(self.process.tails):
            return student_log_density(square.clamp_min(0), n, var.sqrt(), self.process.tails) - math.log(len(data))
        return -0.5 * (square / var + n * (2 * math.pi * var).log()) - math.log(len(data))

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        mean = torch.softmax(self._log_weights(x, alpha, sigma), 1) @ self.data.to(x.dtype)
        if self.bandwidth == 0:
            return mean
        gain = alpha * self.bandwidth**2 / (alpha**2 * self.bandwidth**2 + sigma**2)
        return mean + gain * (x - alpha * mean)
