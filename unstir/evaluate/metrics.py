"""Distribution metrics that are honest about what they measured: every one returns a `Score` with its floor.

All statistics are float64. Two sets are compared at equal n, since most of these metrics depend on
n even for two samples of one law. FID, KID and IS are names of one fixed network's features;
whatever is measured here in other features is called FD[features], MMD[features].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .samples import Features, Pair, Score, check_alike, check_samples, extractor, shuffled

Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 1024  # kernel matrices are summed this many rows at a time, so memory is O(ROWS · n)


# -- Fréchet distance ---------------------------------------------------------------------------
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
    pair = Pair.of(real, fake, features, n, seed)
    count, d = pair.real.shape
    if count <= d:
        raise ValueError(
            f"n = {count} samples in d = {d} features: the Fréchet distance needs n > d for covariances of full rank; "
            f"give more samples, fewer features, or use mmd, which has no such floor"
        )
    return pair.score("FD", lambda x, y: frechet_moments(*_moments(x), *_moments(y)), floor_needs=d + 1)


# -- kernel distances ---------------------------------------------------------------------------
def _mean(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> float:
    """Mean of k(x_i, y_j); without y the mean of k(x_i, x_j) over i ≠ j (the U-statistic)."""
    total = sum(float(kernel(rows, x if y is None else y).sum()) for rows in x.split(ROWS))
    if y is not None:
        return total / (len(x) * len(y))
    diagonal = sum(float(kernel(rows, rows).diagonal().sum()) for rows in x.split(64))
    return (total - diagonal) / (len(x) * (len(x) - 1))


def _discrepancy(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    return _mean(kernel, x) + _mean(kernel, y) - 2 * _mean(kernel, x, y)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    # The direct difference: the expanded square loses the small distances that memorisation is about.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _square(x: Tensor, y: Tensor) -> Tensor:
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
    pair = Pair.of(real, fake, features, n, seed)
    if kernel == "polynomial":
        d = pair.real.shape[1]
        return pair.score("MMD²-poly3", lambda x, y: _discrepancy(lambda u, v: (u @ v.T / d + 1) ** 3, x, y))
    h = _median_distance(pair.real) if bandwidth is None else float(bandwidth)
    if h == 0:
        raise ValueError("the median distance within real is 0 (more than half of its pairs are equal); give bandwidth=")
    return pair.score(f"MMD²-rbf({h:.3g})", lambda x, y: _discrepancy(lambda u, v: (-_square(u, v) / (2 * h**2)).exp(), x, y))


def _median_distance(x: Tensor) -> float:
    return float(torch.pdist(shuffled(x, 0)[:2000]).median())


def energy_distance(real: Any, fake: Any, features: Features = "pixel-pca:24", *, n: int | None = None, seed: int = 0) -> Score:
    """The energy distance, unbiased: MMD² with the kernel k = −‖x − y‖, so free of any bandwidth.

        E = 2 mean_{ij} ‖x_i − y_j‖ − mean_{i≠j} ‖x_i − x_j‖ − mean_{i≠j} ‖y_i − y_j‖

    Source: Energy Statistics: A Class of Statistics Based on Distances, 2013.
    """
    pair = Pair.of(real, fake, features, n, seed)
    return pair.score("Energy", lambda x, y: _discrepancy(lambda u, v: -_distance(u, v), x, y))


# -- neighbourhoods -----------------------------------------------------------------------------
class PrecisionRecall(NamedTuple):
    """The four scores of `precision_recall`; their floors are what real data reaches, so ceilings."""

    precision: Score
    recall: Score
    density: Score
    coverage: Score


def precision_recall(
    real: Any,
    fake: Any,
    features: Features = "pixel-pca:24",
    *,
    k: int = 5,
    n: int | None = None,
    seed: int = 0,
) -> PrecisionRecall:
    """Precision, recall, density and coverage from k-nearest-neighbour balls.

    With B(x_i) the ball around x_i that reaches its k-th neighbour in its own set (itself not counted):

        precision = share of y_j inside some B(x_i)         recall   = share of x_i inside some B(y_j)
        density   = mean_j #{i : y_j in B(x_i)} / k          coverage = share of B(x_i) that hold some y_j

    Lost modes lower recall and coverage, noise lowers precision and density, duplicates lower recall
    and coverage while precision stays. Density may exceed 1. Memory is O(n²): use n= above 10 000.
    Sources: Improved Precision and Recall Metric …, 2019; Reliable Fidelity and Diversity Metrics …, 2020.
    """
    pair = Pair.of(real, fake, features, n, seed)
    if not (isinstance(k, int) and 1 <= k < len(pair.real)):
        raise ValueError(f"k={k!r} must be an integer from 1 to {len(pair.real) - 1} for {len(pair.real)} samples of each set")
    labels = [f"{metric}@{k}" for metric in ("Precision", "Recall", "Density", "Coverage")]
    return PrecisionRecall(*pair.scores(labels, lambda x, y: _neighbourhoods(x, y, k), floor_needs=k + 1))


def _neighbourhoods(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float, float]:
    cross = _distance(x, y)
    in_real = cross <= _radius(x, k)[:, None]  # (i, j): y_j in B(x_i)
    in_fake = cross <= _radius(y, k)[None, :]  # (i, j): x_i in B(y_j)
    precision = in_real.any(0).double().mean()
    recall = in_fake.any(1).double().mean()
    density = in_real.double().sum(0).mean() / k
    coverage = in_real.any(1).double().mean()
    return float(precision), float(recall), float(density), float(coverage)


def _radius(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th neighbour; the row itself is the first of the k + 1."""
    return torch.cat([_distance(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(ROWS)])


def memorisation(fake: Any, train: Any, test: Any, features: Features = "pixel", *, seed: int = 0) -> Score:
    """The nearest-train-distance ratio: are samples nearer to the training set than unseen real data is?

        ratio = median_j min_i ‖fake_j − train_i‖ / median_j min_i ‖test_j − train_i‖

    ≈ 1 for fresh samples, → 0 for copies of the training set; below the floor (one half of `test`
    in place of `fake`, the other in the denominator) it is an alarm.
    """
    fake, train, test = check_samples(fake, "fake"), check_samples(train, "train"), check_samples(test, "test", 4)
    check_alike(train, fake, "train", "fake")
    check_alike(train, test, "train", "test")
    name, function = extractor(features, train)
    known = function(train)

    def nearest(x: Tensor) -> Tensor:
        return torch.cat([_distance(rows, known).amin(1) for rows in x.split(ROWS)])

    generated, unseen = nearest(function(fake.to(train.device))), nearest(function(test.to(train.device)))
    half_a, half_b = shuffled(unseen, seed)[: len(unseen) // 2 * 2].chunk(2)
    if float(half_b.quantile(0.5)) == 0 or float(unseen.quantile(0.5)) == 0:
        raise ValueError("most of test is contained in train; give a test set of samples the model was not trained on")
    return Score(
        value=float(generated.quantile(0.5) / unseen.quantile(0.5)),
        name=f"NearestTrainRatio[{name}]",
        n_real=len(test),
        n_fake=len(fake),
        floor=float(half_a.quantile(0.5) / half_b.quantile(0.5)),
        seed=seed,
        floor_n=len(half_a),
    )


# -- against a reference ------------------------------------------------------------------------
@dataclass(frozen=True)
class TrajectoryError:
    """Mean, median and largest of the per-sample errors (n,)."""

    mean: float
    median: float
    worst: float
    per_sample: Tensor

    def __float__(self) -> float:
        return self.mean


def trajectory_error(x: Any, reference: Any) -> TrajectoryError:
    """Root-mean-square error of each sample to the end of a long reference trajectory from the same start.

        e_i = √( mean_k (x_ik − r_ik)² ),     x, r of shape (n, *), row i of both from one start state

    Raises ValueError when the shapes differ or a value is not finite.
    """
    x, reference = check_samples(x, "x", 1), check_samples(reference, "reference", 1)
    if x.shape != reference.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and reference {tuple(reference.shape)}; row i of both must share a start"
        )
    error = (x.double().cpu() - reference.double().cpu()).flatten(1).square().mean(1).sqrt()
    return TrajectoryError(float(error.mean()), float(error.quantile(0.5)), float(error.max()), error)
