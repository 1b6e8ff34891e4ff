"""Kernel distances: averages of a function of two samples, over the pairs within and between two sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._random import mix
from .samples import Features, Pair, Score, choose, shuffled

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 1024  # kernel matrices are summed this many rows at a time, so memory is O(ROWS · n)


def _mean(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> float:
    """Mean of k(x_i, y_j); without y the mean of k(x_i, x_j) over i ≠ j (the U-statistic)."""
    total = sum(float(kernel(rows, x if y is None else y).sum()) for rows in x.split(ROWS))
    if y is not None:
        return total / (len(x) * len(y))
    diagonal = sum(float(kernel(rows, rows).diagonal().sum()) for rows in x.split(64))
    return (total - diagonal) / (len(x) * (len(x) - 1))


def _discrepancy(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    return _mean(kernel, x) + _mean(kernel, y) - 2 * _mean(kernel, x, y)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖ by the difference, (n, m): exact for small distances."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def squares(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖² by one product of matrices, (n, m): fast, but small distances are lost in rounding."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)


def mmd(
    real: Any,
    fake: Any,
    features: Features = "pixel-pca:24",
    *,
    kernel: str = "rbf",
    bandwidth: float | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Score:
    """Squared maximum mean discrepancy, unbiased (≈ 0, and as often below as above it, for one law):

        MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j)

    kernel "rbf":         k = exp(−‖x − y‖² / 2h²), h = `bandwidth`, by default the median distance within `real`
    kernel "polynomial":  k = (xᵀy/d + 1)³, the kernel of KID (here over all samples at once, not over subsets)

    The name says kernel and h. Sources: A Kernel Two-Sample Test, 2012; Demystifying MMD GANs, 2018.
    """
    if kernel not in ("rbf", "polynomial"):
        raise ValueError(f"kernel={kernel!r} is unknown; one of 'rbf', 'polynomial'")
    if bandwidth is not None and (kernel != "rbf" or not 0 < bandwidth < float("inf")):
        raise ValueError(f"bandwidth={bandwidth!r} must be a number > 0, and belongs to kernel='rbf' (kernel={kernel!r})")
    return mmd_on_pair(Pair.of(real, fake, features, n, seed), kernel, bandwidth)[0]


def mmd_on_pair(pair: Pair, kernel: str = "rbf", bandwidth: float | None = None) -> list[Score]:
    """MMD² of two sets of features."""
    if kernel == "polynomial":
        return [pair.score("MMD²-poly3", lambda x, y: _discrepancy(_cubic, x, y))]
    h = _median_distance(pair.real) if bandwidth is None else float(bandwidth)
    if h == 0:
        raise ValueError("the median distance within real is 0 (more than half of its pairs are equal); give bandwidth=")
    return [pair.score(f"MMD²-rbf({h:.3g})", lambda x, y: _discrepancy(partial(_rbf, h=h), x, y))]


def _cubic(u: Tensor, v: Tensor) -> Tensor:
    return (u @ v.T / u.shape[1] + 1) ** 3


def _rbf(u: Tensor, v: Tensor, h: float) -> Tensor:
    return (-squares(u, v) / (2 * h**2)).exp()


def _median_distance(x: Tensor) -> float:
    return float(torch.pdist(shuffled(x, 0)[:2000]).median())


def energy_distance(real: Any, fake: Any, features: Features = "pixel-pca:24", *, n: int | None = None, seed: int = 0) -> Score:
    """The energy distance, unbiased: MMD² with the kernel k = −‖x − y‖, so free of any bandwidth.

        E = 2 mean_{ij} ‖x_i − y_j‖ − mean_{i≠j} ‖x_i − x_j‖ − mean_{i≠j} ‖y_i − y_j‖

    Source: Energy Statistics: A Class of Statistics Based on Distances, 2013.
    """
    return energy_on_pair(Pair.of(real, fake, features, n, seed))[0]


def energy_on_pair(pair: Pair) -> list[Score]:
    """The energy distance of two sets of features."""
    return [pair.score("Energy", lambda x, y: _discrepancy(lambda u, v: -distances(u, v), x, y))]


def kid(
    real: Any,
    fake: Any,
    features: Features = "pixel-pca:24",
    *,
    subsets: int = 100,
    size: int = 1000,
    n: int | None = None,
    seed: int = 0,
) -> Score:
    """The estimator of KID: the mean over random subsets of `size` (at most n) of the unbiased MMD² with k = (xᵀy/d + 1)³.

    `error` is the deviation over the subsets, as papers print it. The name is MMD²-poly3[features]: "KID" belongs to
    Inception's features. Where n ≤ size there is one subset, all of it, and no deviation: see `mmd` and `compare`.
    Source: Demystifying MMD GANs, 2018.
    """
    for name, value, least in (("subsets", subsets, 1), ("size", size, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
    return kid_on_pair(Pair.of(real, fake, features, n, seed), subsets, size)[0]


def kid_on_pair(pair: Pair, subsets: int = 100, size: int = 1000) -> list[Score]:
    """The estimator of KID on two sets of features."""
    found: list[list[float]] = []

    def mean(x: Tensor, y: Tensor) -> float:
        # One order for both sets, so that the metric is symmetric; one subset where it is everything.
        keys = [mix(pair.seed, j) >> 1 for j in range(subsets if len(x) > size else 1)]
        found.append([_discrepancy(_cubic, choose(x, min(size, len(x)), k), choose(y, min(size, len(y)), k)) for k in keys])
        return sum(found[-1]) / len(keys)

    score = replace(pair, resamples=0).score("MMD²-poly3", mean)
    deviation = float(torch.tensor(found[0]).std()) if len(found[0]) > 1 else None
    notes = (f"{len(found[0])} subsets of {size}",) if deviation is not None else ()
    return [replace(score, error=deviation, notes=(*score.notes, *notes))]


def cmmd(real: Any, fake: Any, features: Features, *, n: int | None = None, seed: int = 0) -> Score:
    """The estimator of CMMD: 1000 times the biased MMD² on features of unit length, under a Gaussian kernel of width 10:

        1000 (mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y)),    k = exp(−‖·‖²/200),   all pairs, i = j too

    Never negative, and 0 for identical sets. Only in CLIP's features is it CMMD; the name says what it is elsewhere.
    Source: Rethinking FID: Towards a Better Evaluation Metric for Image Generation, 2024.
    """
    return cmmd_on_pair(Pair.of(real, fake, features, n, seed))[0]


def cmmd_on_pair(pair: Pair) -> list[Score]:
    """The estimator of CMMD on two sets of features."""
    k = partial(_rbf, h=10.0)

    def biased(x: Tensor, y: Tensor) -> float:
        x, y = F.normalize(x), F.normalize(y)
        return 1000 * (_mean(k, x, x) + _mean(k, y, y) - 2 * _mean(k, x, y))

    return [pair.score("1000·MMD²-rbf(10)-V-unit", biased)]
