"""How good is a plan? One number, smaller is better, from the same noises for every candidate.

    error     mean over the samples of min(RMS distance from the teacher's end, CAP · RMS of the teacher's ends)
    frechet   Fréchet distance of the features of the ends from those of the data (`frechet_moments`)
    mmd       squared maximum mean discrepancy with the kernel (xᵀy/d + 1)³ of KID, unbiased: fit for few samples

Common noises make the differences between candidates far less noisy than the scores themselves. The best of many scores is
still too good to be true, so the last few candidates are scored again on other noises (`fresh`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..evaluate import frechet_moments, mmd
from ..evaluate.samples import check_samples, extractor
from ..plan.plan import Plan
from ..plan.state import NonFiniteError
from .teacher import Chunk, Source

SCORES = ("error", "frechet", "mmd")
CAP = 3.0
DIMS = 24  # principal components by default, fewer for few samples or entries


@dataclass(frozen=True)
class Score:
    """`score(plan)` on the noises of the search, `score(plan, fresh=True)` on others; infinite for a run that fails."""

    name: str
    source: Source
    chunks: tuple[Sequence[Chunk], Sequence[Chunk]]
    judge: Callable[[Tensor, Sequence[Chunk]], float]

    def __call__(self, plan: Plan, fresh: bool = False) -> float:
        chunks = self.chunks[fresh]
        try:
            ends = torch.cat([self.source.run(plan, chunk.x, chunk.cond).cpu() for chunk in chunks])
            value = float(self.judge(ends, chunks))
        except NonFiniteError:
            return math.inf
        return value if math.isfinite(value) else math.inf


def make_score(
    score: str | Callable[[Tensor], Any],
    source: Source,
    teacher: Plan,
    samples: int,
    validation: int,
    data: Tensor | Dataset | None,
    features: Any,
    folder: Path | None,
) -> Score:
    """The named score, or that of a function of the end states (S, *) -> number.

    The teacher runs only where it is needed: for "error", and as the data of the other two where `data` is None.
    ValueError for an unknown name, for features or data that go unused, and for fewer samples than features.
    """
    index = (range(samples), range(samples, samples + validation))
    if not callable(score) and score not in SCORES:
        raise ValueError(f"score={score!r} must be one of {', '.join(SCORES)}, or a function of end states (S, *)")
    if (callable(score) or score == "error") and not (data is None and features is None):
        raise ValueError(f"data and features belong to score='frechet' and 'mmd'; score={score!r} uses neither")
    if score == "error" or (not callable(score) and data is None):
        chunks = tuple(source.teach(teacher, part, folder) for part in index)
    else:
        chunks = tuple(_unlabelled(source, part) for part in index)
    if callable(score):
        name = getattr(score, "__qualname__", type(score).__name__)
        return Score(name, source, chunks, lambda ends, _: float(score(ends)))  # type: ignore[arg-type]
    if score == "error":
        size = float(_goals(chunks[0]).double().square().mean().sqrt())
        return Score("error", source, chunks, lambda ends, chunks: _error(ends, _goals(chunks), CAP * size))  # type: ignore[arg-type]
    real = _goals(chunks[0]) if data is None else data.all() if isinstance(data, Dataset) else data
    real = check_samples(real, "data").cpu()
    if tuple(real.shape[1:]) != source.shape:
        raise ValueError(f"data has samples of shape {tuple(real.shape[1:])}; the model's are {source.shape}")
    features = f"pixel-pca:{min(DIMS, real[0].numel(), (min(samples, len(real)) - 1) // 2)}" if features is None else features
    label, function = extractor(features, real)
    known = function(real)
    if score == "mmd":
        return Score(f"mmd[{label}]", source, chunks, lambda ends, _: _mmd(known, function(ends)))  # type: ignore[arg-type]
    if min(samples, len(real)) <= known.shape[1]:
        raise ValueError(
            f"samples={samples}, data of {len(real)}: the Fréchet distance in {known.shape[1]} features needs more of both; "
            "give more samples, fewer features, or score='mmd'"
        )
    mean, cov = known.mean(0), torch.cov(known.T).reshape(known.shape[1], -1)

    def distance(ends: Tensor, _: Any) -> float:
        own = function(ends)
        return frechet_moments(mean, cov, own.mean(0), torch.cov(own.T).reshape(len(mean), -1))

    return Score(f"frechet[{label}]", source, chunks, distance)  # type: ignore[arg-type]


def _unlabelled(source: Source, index: Sequence[int]) -> list[Chunk]:
    """Chunks without a teacher; the goal is not read."""
    parts = [(source.start_state(part), source.conditions(part)) for part in source.chunks(index)]
    return [Chunk(x, x, cond) for x, cond in parts]


def _goals(chunks: Sequence[Chunk]) -> Tensor:
    return torch.cat([chunk.goal.cpu() for chunk in chunks])


def _error(ends: Tensor, goal: Tensor, cap: float) -> float:
    return float((ends - goal).double().flatten(1).square().mean(1).sqrt().clamp_max(cap).mean())


def _mmd(real: Tensor, own: Tensor) -> float:
    n = min(len(real), len(own))
    return mmd(real[:n], own[:n], "pixel", kernel="polynomial").value
