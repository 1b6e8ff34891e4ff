"""What the n-th training image is: all randomness of training as a function of (seed, n).

Image n of a run has its own row of the data, its own noise and its own condition dropout; a batch
is images n … n + B − 1. Nothing depends on the past, so a resumed run needs no random state, and
any worker can make its part of a batch alone.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .._random import mix
from ..process import Process

# Streams: one seed gives independent numbers for each use.
_ORDER, _NOISE, _LEVEL, _DROP, _NETWORK, _VALID, _FLIP, _TWICE, _AUGMENT = range(1, 10)


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, _ORDER, epoch) >> 1)
    return torch.randperm(count, generator=generator)


def rows(count: int, seed: int, images: range) -> list[int]:
    """The rows of the data set that images see: each epoch is a new shuffle of all rows."""
    return [int(_permutation(count, seed, n // count)[n % count]) for n in images]


def noise(seed: int, images: range, shape: Any, process: Process | None = None) -> Any:
    """z of shape (len(images), *shape), of the process's own law (normal without one); a dict for a dict of shapes."""
    return _drawn([mix(seed, _NOISE, n) for n in images], shape, process)


def _drawn(keys: list[int], shape: Any, process: Process | None) -> Any:
    process = process or Process()
    if isinstance(shape, dict):
        return {name: process.noise([mix(k, 1 + i) for k in keys], own, 0) for i, (name, own) in enumerate(shape.items())}
    return process.noise(keys, shape, 0)


def unit(seed: int, image: int) -> float:
    """One uniform number in [0, 1) for the batch that begins with this image."""
    return mix(seed, _LEVEL, image) / 2**64


def dropped(seed: int, images: range, share: float, name: str = "") -> Tensor:
    """(len(images),) booleans, each true with probability `share`: these images lose their condition.

    name: of a condition that is dropped by itself, independently of the others.
    """
    stream = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")] if name else []
    return torch.tensor([mix(seed, _DROP, n, *stream) < share * 2**64 for n in images])


def twice(seed: int, images: range, share: float) -> Tensor:
    """(len(images),) booleans, each true with probability `share`: the network sees its own first estimate of these."""
    return torch.tensor([mix(seed, _TWICE, n) < share * 2**64 for n in images])


def augmenting(seed: int, images: range, numbers: int) -> Tensor:
    """(len(images), numbers) uniform numbers in [0, 1), by which pictures are moved."""
    return torch.tensor([[mix(seed, _AUGMENT, n, i) / 2**64 for i in range(numbers)] for n in images], dtype=torch.float64)


def flipped(seed: int, images: range) -> Tensor:
    """(len(images),) booleans, each true with probability ½: these pictures are mirrored."""
    return torch.tensor([mix(seed, _FLIP, n) < 2**63 for n in images])


def network_seed(seed: int, image: int) -> int:
    """Seed of the network's own random numbers (its dropout) in the step that begins with this image."""
    return mix(seed, _NETWORK, image) >> 1


def validation_noise(seed: int, count: int, shape: Any, process: Process | None = None, first: int = 0) -> Any:
    """The fixed noise of the validation's samples first … first + count − 1; a dict for a dict of shapes."""
    return _drawn([mix(seed, _VALID, n) for n in range(first, first + count)], shape, process)
