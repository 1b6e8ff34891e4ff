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

from .._random import mix
from .checks import check_alike, check_samples, ranges
from .features import Features, extractor, label, space

__all__ = ["Features", "Pair", "Score", "check_alike", "check_samples", "choose", "extractor", "shuffled"]

Statistic = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Score:
    """One measured number, with all that is needed to read it.

    value, and `floor`: the same metric between two disjoint halves of the real data, `floor_n`
    samples each (None where the real set is too small for it; for precision and its kin the floor
    is really a ceiling). `name` carries the feature extractor; `notes` say what was done to the input.
    `error`: one standard deviation, where it was asked for (`compare`).
    """

    value: float
    name: str
    n_real: int
    n_fake: int
    floor: float | None
    seed: int
    floor_n: int = 0
    notes: tuple[str, ...] = ()
    error: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        floor = "no floor" if self.floor is None else f"floor {self.floor:.4g} at n = {self.floor_n}"
        notes = "".join(f"; {note}" for note in self.notes)
        error = "" if self.error is None else f" ± {self.error:.2g}"
        return f"{self.name} = {self.value:.4g}{error} (n = {self.n_fake}, {floor}{notes})"


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
    resamples: int = 0

    @classmethod
    def of(cls, real: Any, fake: Any, features: Features, n: int | None, seed: int, resamples: int = 0) -> Pair:
        """Checks, features, and n samples of each set (default: as many as the smaller one has).

        resamples: half-samples that scores take their `error` from; 0 gives none.
        """
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
        if real.ndim == 4 and real.is_floating_point():
            notes += ranges(real, fake)
        name, function, more = space(features, real)
        notes += more
        x, y = function(real), function(fake.to(real.device))
        # The floor is measured at the same n wherever the real set has 2n samples.
        half = min(size, len(x) // 2)
        halves = shuffled(x, seed)[: 2 * half].chunk(2)
        chosen = choose(x, size, seed), choose(y, size, seed)
        return cls(*chosen, (halves[0], halves[1]), name, seed, tuple(notes), resamples)

    def score(self, metric: str, statistic: Statistic, floor_needs: int = 2) -> Score:
        """statistic(real, fake), and statistic(half, half) where a half has `floor_needs` samples."""
        return self.scores([metric], lambda x, y: [statistic(x, y)], floor_needs)[0]

    def scores(
        self, metrics: Sequence[str], statistic: Callable[[Tensor, Tensor], Sequence[float]], floor_needs: int = 2
    ) -> list[Score]:
        """The same for a statistic that yields several metrics at once."""
        values, half = statistic(self.real, self.fake), len(self.halves[0])
        floors = statistic(*self.halves) if half >= floor_needs else [None] * len(metrics)
        errors = self._errors(statistic, len(metrics), floor_needs)
        return [
            Score(
                value=float(value),
                name=label(metric, self.features),
                n_real=len(self.real),
                n_fake=len(self.fake),
                floor=None if floor is None else float(floor),
                seed=self.seed,
                floor_n=0 if floor is None else half,
                notes=self.notes,
                error=error,
            )
            for metric, value, floor, error in zip(metrics, values, floors, errors, strict=True)
        ]

    def _errors(self, statistic: Callable[[Tensor, Tensor], Sequence[float]], count: int, needs: int) -> list[float | None]:
        """One standard deviation of every metric, by half-sampling: its spread over random halves of both sets.

        For a mean θ of n terms the mean over a random half (drawn without replacement) has the variance
        s²/(n/2) · (1 − ½) = s²/n about θ, which is that of θ itself. Unlike the bootstrap with replacement it makes no
        duplicates, which would shrink every neighbourhood and every i ≠ j average. (The Jackknife, the Bootstrap and
        Other Resampling Plans, 1982.) Where both laws are equal, distances vary like 1/n and not like 1/√n, and this
        is up to twice too much.
        """
        half = len(self.real) // 2
        if self.resamples < 2 or half < needs:
            return [None] * count
        keys = [mix(self.seed, r) >> 1 for r in range(self.resamples)]
        found = [statistic(shuffled(self.real, key)[:half], shuffled(self.fake, key + 1)[:half]) for key in keys]
        return torch.tensor(found, dtype=torch.float64).std(0).tolist()
