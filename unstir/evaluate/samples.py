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

from .checks import check_alike, check_samples, ranges
from .features import Features, extractor, label

Statistic = Callable[[Tensor, Tensor], float]


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
