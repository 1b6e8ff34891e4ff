"""The Fréchet distance of two sample sets: closed form, estimate, and the estimate without its sample-size bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .samples import Features, Pair, Score, choose

SIZES = 12


def frechet_moments(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> float:
    """The Fréchet distance of N(μ, C) and N(ν, S), means (d,) and covariances (d, d):

        FD = ‖μ − ν‖² + tr C + tr S − 2 tr (CS)^½

    With C = AᵀA and S = BᵀB the eigenvalues of CS are the squared singular values of ABᵀ, so
    tr (CS)^½ = Σ svd(ABᵀ): no square root of a rounding error, hence exact to ~1e-15 tr C where
    the usual matrix square root loses half the digits.
    Source: GANs Trained by a Two Time-Scale Update Rule …, 2017 (the distance: Dowson & Landau, 1982).
    """
    a, b = _root(cov_p), _root(cov_q)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float((mean_p - mean_q).square().sum() + cov_p.trace() + cov_q.trace() - 2 * cross)


def _root(cov: Tensor) -> Tensor:
    """A with AᵀA = C, for a positive semi-definite C: Λ^½ Vᵀ."""
    spectrum, axes = torch.linalg.eigh(cov)
    return spectrum.clamp_min(0).sqrt()[:, None] * axes.T


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], -1)


def frechet(real: Any, fake: Any, features: Features = "pixel-pca:24", *, n: int | None = None, seed: int = 0) -> Score:
    """The Fréchet distance of Gaussians fitted to the features of two sample sets (n, *).

    FD = ‖μ − ν‖² + tr(C + S − 2(CS)^½), see `frechet_moments`; name FD[features]. `features` as in
    `samples.extractor`: "pixel", "pixel-pca:K" (axes fitted on `real`), or a callable. It needs
    n > d for covariances of full rank. Even for one law E FD ≈ (2d + d(d+1)/2)/n in whitened
    features: compare with the floor, and only at equal n. Raises ValueError for n ≤ d, NaN, and
    sample shapes that differ.
    """
    return frechet_on_pair(Pair.of(real, fake, features, n, seed))[0]


def frechet_on_pair(pair: Pair) -> list[Score]:
    """FD of two sets of features."""
    _enough(pair)
    return [pair.score("FD", _distance, floor_needs=pair.real.shape[1] + 1)]


def _distance(x: Tensor, y: Tensor) -> float:
    return frechet_moments(*_moments(x), *_moments(y))


def _enough(pair: Pair) -> None:
    count, d = pair.real.shape
    if count <= d:
        raise ValueError(
            f"n = {count} samples in d = {d} features: the Fréchet distance needs n > d for covariances of full rank; "
            f"give more samples, fewer features, or use mmd, which has no such floor"
        )


def frechet_infinity(
    real: Any, fake: Any, features: Features = "pixel-pca:24", *, n: int | None = None, seed: int = 0
) -> Score:
    """The Fréchet distance freed of its sample-size bias: the intercept of FD against 1/n.

        FD(n) ≈ FD_∞ + c/n,     least squares over 12 sizes with equal steps of 1/n from max(2d, n/8) to n

    Both sets are cut to the same size, each size from another random subset; values may fall a little below 0. The floor
    is that of two real halves, so ≈ 0. Raises ValueError for n < 4d, where there is no range to extrapolate from.
    Source: Effectively Unbiased FID and Inception Score and Where to Find Them, 2020.
    """
    return infinity_on_pair(Pair.of(real, fake, features, n, seed))[0]


def infinity_on_pair(pair: Pair) -> list[Score]:
    """FD_∞ of two sets of features."""
    count, d = pair.real.shape
    if count < 4 * d:
        raise ValueError(
            f"n = {count} samples in d = {d} features: FD∞ needs n ≥ 4d = {4 * d} to extrapolate; "
            f"give more samples or fewer features"
        )

    def intercept(x: Tensor, y: Tensor) -> float:
        smallest = max(2 * d, len(x) // 8)
        steps = torch.linspace(1 / len(x), 1 / smallest, SIZES, dtype=torch.float64)
        sizes = [round(1 / float(step)) for step in steps]
        values = [_distance(choose(x, size, pair.seed + i), choose(y, size, pair.seed + i)) for i, size in enumerate(sizes)]
        inverse = torch.tensor([[1.0, 1 / size] for size in sizes], dtype=torch.float64)
        return float(torch.linalg.lstsq(inverse, torch.tensor(values, dtype=torch.float64)[:, None]).solution[0])

    return [pair.score("FD∞", intercept, floor_needs=4 * d)]
