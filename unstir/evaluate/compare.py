"""Several metrics of one pair of sample sets: features are computed once a feature space, and every score has an error bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_alike, check_samples
from .features import Features, Space, space
from .kernels import cmmd_on_pair, energy_on_pair, kid_on_pair, mmd_on_pair
from .metrics import precision_recall_on_pair, vendi_on_pair
from .moments import frechet_on_pair, infinity_on_pair
from .samples import Pair, Score


class Metric(NamedTuple):
    """A metric on a `Pair`: what it is, and whether less ("min"), more ("max") or neither ("") of it is better."""

    score: Callable[[Pair], list[Score]]
    summary: str
    better: str = "min"


METRICS = {
    "fd": Metric(frechet_on_pair, "Fréchet distance of Gaussians fitted to the features; needs n > d"),
    "fd-infinity": Metric(infinity_on_pair, "Fréchet distance extrapolated to infinitely many samples; needs n ≥ 4d"),
    "mmd": Metric(mmd_on_pair, "squared maximum mean discrepancy, unbiased, Gaussian kernel of median width"),
    "kid": Metric(kid_on_pair, "the estimator of KID: unbiased MMD², cubic kernel, mean over 100 subsets"),
    "cmmd": Metric(cmmd_on_pair, "the estimator of CMMD: 1000 × biased MMD² on features of unit length"),
    "energy": Metric(energy_on_pair, "energy distance, unbiased"),
    "prdc": Metric(precision_recall_on_pair, "precision, recall, density and coverage of 5-neighbour balls", "max"),
    "vendi": Metric(vendi_on_pair, "Vendi score: how many different samples the set is worth", ""),
}


def compare(
    real: Any,
    fake: Any,
    which: Sequence[str] = ("fd", "mmd", "prdc", "vendi"),
    features: Sequence[Features] | Features = "pixel-pca:24",
    *,
    n: int | None = None,
    seed: int = 0,
    errors: int = 20,
) -> list[Score]:
    """The scores of the named metrics (`METRICS`) in every feature space, in that order.

    errors: half-samples for the error bars (`Score.error`, one standard deviation); 0 leaves them out. A metric that cannot
        be measured with so few samples raises ValueError, as it does alone.

    A metric that was optimised is no evaluation: tune with one feature space and report another.
    """
    unknown = [name for name in which if name not in METRICS]
    if unknown or not which:
        raise ValueError(f"which={list(which)!r} must be names among {', '.join(METRICS)}")
    if isinstance(errors, bool) or not isinstance(errors, int) or errors < 0 or errors == 1:
        raise ValueError(f"errors={errors!r} must be 0 or a whole number of half-samples, at least 2")
    spaces: list[Features] = [features] if isinstance(features, str | Space) or callable(features) else list(features)
    found = []
    for one in spaces:
        pair = Pair.of(real, fake, one, n, seed, errors)
        for name in which:
            found += METRICS[name].score(pair)
    return found


def per_class(
    real: Any,
    fake: Any,
    real_labels: Any,
    fake_labels: Any,
    classes: Sequence[str],
    metric: str = "fd",
    features: Features = "pixel-pca:24",
    *,
    seed: int = 0,
    errors: int = 0,
) -> dict[str, Score | str]:
    """One metric within every class, {class: score}, or the reason in words where a class has too few samples.

    The features (axes of a PCA) are those of the whole real set, so that classes can be compared with each other; floors
    and n are the class's own. Of "prdc" the first, precision, is kept.
    """
    real, fake = check_samples(real, "real"), check_samples(fake, "fake")
    check_alike(real, fake)
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is unknown; one of {', '.join(METRICS)}")
    labels = []
    for name, given, x in (("real_labels", real_labels, real), ("fake_labels", fake_labels, fake)):
        label = torch.as_tensor(given)
        if label.shape != (len(x),) or label.is_floating_point() or not bool(((label >= 0) & (label < len(classes))).all()):
            raise ValueError(f"{name} must be {len(x)} whole numbers from 0 to {len(classes) - 1}, one per sample")
        labels.append(label.cpu())
    common = space(features, real)
    found: dict[str, Score | str] = {}
    for number, name in enumerate(classes):
        mine: list[Tensor] = [x[(label == number).to(x.device)] for x, label in zip((real, fake), labels, strict=True)]
        try:
            found[name] = METRICS[metric].score(Pair.of(mine[0], mine[1], common, None, seed, errors))[0]
        except ValueError as error:
            found[name] = str(error)
    return found
