"""What every distribution metric does first: check two sample sets, map them to features, make them equally large.

A metric is then a function of two feature matrices (n, d), and `Pair.score` evaluates it twice: on
real against fake, and on two disjoint halves of the real set, which is the floor that no honest
generator goes below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Features = str | Callable[[Tensor], Tensor]
Statistic = Callable[[Tensor, Tensor], float]

# These names mean one fixed set of weights in the literature; a number under them is only comparable with those.
RESERVED = ("inception", "dinov2", "clip", "i3d")


@dataclass(frozen=True)
class Score:
    """One measured number, with all that is needed to read it.

    value, and `floor`: the same metric between two disjoint halves of the real data, `floor_n`
    samples each (None where the real set is too small for it; for precision and its kin the floor
    is really a ceiling). `name` carries the feature extractor; `notes` say what was done to the input.
    """

    value: float
    name: str
    n_real: int
    n_fake: int
    floor: float | None
    seed: int
    floor_n: int = 0
    notes: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        floor = "no floor" if self.floor is None else f"floor {self.floor:.4g} at n = {self.floor_n}"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.name} = {self.value:.4g} (n = {self.n_fake}, {floor}{notes})"


def check_samples(samples: Any, name: str, at_least: int = 2) -> Tensor:
    """`samples` as a finite tensor (n, *) with n ≥ at_least. Raises ValueError or TypeError that names the argument."""
    try:
        x = torch.as_tensor(samples).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {type(samples).__name__}; it must be a tensor or array of shape (n, *)") from None
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; it must hold real numbers")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (n, *) with samples along the first axis")
    if len(x) < at_least:
        raise ValueError(f"{name} has {len(x)} sample(s); at least {at_least} are needed")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} contains NaN or infinite values in {int(bad.sum())} of {len(x)} samples, first in {first}")
    return x


def check_alike(real: Tensor, fake: Tensor, real_name: str = "real", fake_name: str = "fake") -> None:
    """Refuses two sets that cannot be compared: other sample shapes, or pixels as integers against floats."""
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"{fake_name} has sample shape {tuple(fake.shape[1:])} and {real_name} {tuple(real.shape[1:])}; "
            "resize or convert one of them first"
        )
    if real.is_floating_point() != fake.is_floating_point():
        raise TypeError(
            f"{real_name} is {real.dtype} and {fake_name} is {fake.dtype}, so their value ranges differ; "
            "bring both to the same range as floats"
        )


def extractor(features: Features, real: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """(name, function to float64 features (n, d)) of a feature space.

    "pixel"          the flattened sample itself
    "pixel-pca:K"    v ↦ Vᵀ(v − m), with V (·, K) the leading principal axes of the real set and m its mean (not whitened)
    callable         features(batch) -> (n, *), run in batches of 256 without gradients; named by its `name`,
                     `__name__` or class
    """
    if callable(features):
        label = getattr(features, "name", None) or getattr(features, "__name__", None) or type(features).__name__
        return str(label).strip("<>"), lambda x: _call(features, x)
    if not isinstance(features, str):
        raise TypeError(f"features is {type(features).__name__}; it must be a name such as 'pixel-pca:24', or a callable")
    if features == "pixel":
        return "pixel", _flat
    kind, _, count = features.partition(":")
    if kind == "pixel-pca":
        limit = min(len(real) - 1, real[0].numel())
        if not (count.isdigit() and 1 <= int(count) <= limit):
            raise ValueError(f"features={features!r}: give 'pixel-pca:K' with 1 ≤ K ≤ {limit} for {len(real)} real samples")
        x = _flat(real)
        mean = x.mean(0)
        axes = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], -1)).eigenvectors[:, -int(count) :].flip(1)
        return f"pixel-PCA{int(count)}", lambda v: (_flat(v) - mean) @ axes
    if kind in RESERVED:
        raise ValueError(
            f"features={features!r} needs weights that unstir does not ship and never downloads; load the network yourself "
            "and pass it as features=callable"
        )
    raise ValueError(f"features={features!r} is unknown; one of 'pixel', 'pixel-pca:K', or a callable")


def _flat(x: Tensor) -> Tensor:
    # MPS has no float64; everywhere else the features stay where the samples are.
    return (x.cpu() if x.device.type == "mps" else x).double().flatten(1)


def _call(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [features(batch) for batch in x.split(256)]
    if not all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        raise TypeError("features(batch) must return a tensor of shape (n, *)")
    out = _flat(torch.cat(parts))
    if len(out) != len(x):
        raise ValueError(f"features returned {len(out)} rows for {len(x)} samples; it must return one row per sample")
    return check_samples(out, "features(batch)", 1)


def choose(x: Tensor, n: int, seed: int) -> Tensor:
    """n rows of x drawn without replacement; x itself, in its order, when n = len(x)."""
    return x if n == len(x) else shuffled(x, seed)[:n]


def shuffled(x: Tensor, seed: int) -> Tensor:
    """The rows of x in the random order of `seed`."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)]


@dataclass(frozen=True)
class Pair:
    """Equally many real and fake features, and the two halves of the real set that give the floor."""

    real: Tensor
    fake: Tensor
    halves: tuple[Tensor, Tensor]
    features: str
    seed: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, real: Any, fake: Any, features: Features, n: int | None, seed: int) -> Pair:
        """Checks, features, and n samples of each set (default: as many as the smaller one has)."""
        real, fake = check_samples(real, "real"), check_samples(fake, "fake")
        check_alike(real, fake)
        most = min(len(real), len(fake))
        if n is not None and not (isinstance(n, int) and 2 <= n <= most):
            raise ValueError(f"n={n!r} must be an integer from 2 to {most}, the size of the smaller set")
        size = most if n is None else n
        notes = [
            f"{size} of {len(x)} {name} samples drawn with seed {seed}"
            for name, x in (("real", real), ("fake", fake))
            if len(x) > size
        ]
        name, function = extractor(features, real)
        x, y = function(real), function(fake.to(real.device))
        # The floor is measured at the same n wherever the real set has 2n samples.
        half = min(size, len(x) // 2)
        halves = shuffled(x, seed)[: 2 * half].chunk(2)
        return cls(choose(x, size, seed), choose(y, size, seed), (halves[0], halves[1]), name, seed, tuple(notes))

    def score(self, metric: str, statistic: Statistic, floor_needs: int = 2) -> Score:
        """statistic(real, fake), and statistic(half, half) where a half has `floor_needs` samples."""
        return self.scores([metric], lambda x, y: [statistic(x, y)], floor_needs)[0]

    def scores(
        self, metrics: Sequence[str], statistic: Callable[[Tensor, Tensor], Sequence[float]], floor_needs: int = 2
    ) -> list[Score]:
        """The same for a statistic that yields several metrics at once."""
        values, half = statistic(self.real, self.fake), len(self.halves[0])
        floors = statistic(*self.halves) if half >= floor_needs else [None] * len(metrics)
        return [
            Score(
                value=float(value),
                name=f"{metric}[{self.features}]",
                n_real=len(self.real),
                n_fake=len(self.fake),
                floor=None if floor is None else float(floor),
                seed=self.seed,
                floor_n=0 if floor is None else half,
                notes=self.notes,
            )
            for metric, value, floor in zip(metrics, values, floors, strict=True)
        ]
