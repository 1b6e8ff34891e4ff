"""Distribution metrics that are honest about what they measured: every one returns a `Score` with its floor.

All statistics are float64. Two sets are compared at equal n, since most of these metrics depend on
n even for two samples of one law. FID, KID and IS are names of one fixed network's features;
whatever is measured here in other features is called FD[features], MMD[features].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_alike, check_samples
from .features import Features, extractor
from .kernels import ROWS, distances, squares
from .samples import Pair, Score, shuffled

PORTION, SPARE = 4096, 3  # training samples looked at in one go, and candidates kept beyond the k nearest


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
    return PrecisionRecall(*precision_recall_on_pair(Pair.of(real, fake, features, n, seed), k))


def precision_recall_on_pair(pair: Pair, k: int = 5) -> list[Score]:
    """The four scores of two sets of features."""
    if not (isinstance(k, int) and 1 <= k < len(pair.real)):
        raise ValueError(f"k={k!r} must be an integer from 1 to {len(pair.real) - 1} for {len(pair.real)} samples of each set")
    labels = [f"{metric}@{k}" for metric in ("Precision", "Recall", "Density", "Coverage")]
    return pair.scores(labels, lambda x, y: _neighbourhoods(x, y, k), floor_needs=k + 1)


def _neighbourhoods(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float, float]:
    cross = distances(x, y)
    in_real = cross <= _radius(x, k)[:, None]  # (i, j): y_j in B(x_i)
    in_fake = cross <= _radius(y, k)[None, :]  # (i, j): x_i in B(y_j)
    precision = in_real.any(0).double().mean()
    recall = in_fake.any(1).double().mean()
    density = in_real.double().sum(0).mean() / k
    coverage = in_real.any(1).double().mean()
    return float(precision), float(recall), float(density), float(coverage)


def _radius(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th neighbour; the row itself is the first of the k + 1."""
    return torch.cat([distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(ROWS)])


def vendi(real: Any, fake: Any, features: Features = "pixel-pca:24", *, n: int | None = None, seed: int = 0) -> Score:
    """The Vendi score of `fake`: how many different samples it is worth, between 1 (copies of one) and n.

        exp H(λ),    λ the eigenvalues of K/n,  K_ij the cosine of the features of samples i and j,  H = −Σ λ ln λ

    `real` is needed for the floor, the score of a real half, from which diversity is missing or not; both depend on n.
    Source: The Vendi Score: A Diversity Evaluation Metric for Machine Learning, 2023.
    """
    return vendi_on_pair(Pair.of(real, fake, features, n, seed))[0]


def vendi_on_pair(pair: Pair) -> list[Score]:
    """The Vendi score of the second set of features."""
    return pair.scores(["Vendi-cos"], lambda x, y: [_vendi(y)])


def _vendi(y: Tensor) -> float:
    # λ of K/n with K = ŷŷᵀ are the squared singular values of ŷ/√n.
    spectrum = torch.linalg.svdvals(torch.nn.functional.normalize(y)).square() / len(y)
    return float(torch.special.entr(spectrum).sum().exp())


# -- the training set -----------------------------------------------------------------------------
class Neighbours(NamedTuple):
    """`rows` (n, k) of the training set that are nearest to each sample, nearest first, and their `distances` (n, k)."""

    rows: Tensor
    distances: Tensor


def neighbours(fake: Any, train: Any, features: Features = "pixel", *, k: int = 1) -> Neighbours:
    """The k nearest training samples of every sample, by Euclidean distance of features (axes of a PCA fitted on `train`)."""
    fake, train = check_samples(fake, "fake", 1), check_samples(train, "train")
    check_alike(train, fake, "train", "fake")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(train):
        raise ValueError(f"k={k!r} must be a whole number from 1 to {len(train)}, the size of train")
    _, function = extractor(features, train)
    return _nearest(function(fake.to(train.device)), train, function, k)


def _nearest(x: Tensor, train: Tensor, function: Any, k: int) -> Neighbours:
    """The k nearest of `train` to every row of features x; train is mapped to features in portions, and never as a whole.

    Candidates are found by ‖x‖² + ‖y‖² − 2xᵀy, which is fast, and their distances taken by the difference, which is exact
    for the small ones that copies have.
    """
    rows, far = torch.empty(len(x), 0, dtype=torch.int64, device=x.device), x.new_empty(len(x), 0)
    for start in range(0, len(train), PORTION):
        known = function(train[start : start + PORTION])
        near = torch.cat(
            [squares(part, known).topk(min(k + SPARE, len(known)), largest=False).indices for part in x.split(ROWS)]
        )
        exact = torch.stack([(x - known[column]).square().sum(1).sqrt() for column in near.unbind(1)], 1)
        rows, far = torch.cat([rows, near + start], 1), torch.cat([far, exact], 1)
        far, order = far.sort(dim=1, stable=True)
        rows, far = rows.gather(1, order)[:, :k], far[:, :k]
    return Neighbours(rows, far)


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
    near = (_nearest(function(x.to(train.device)), train, function, 1).distances for x in (fake, test))
    generated, unseen = (found[:, 0] for found in near)
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
