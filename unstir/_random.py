"""Random numbers that belong to a sample, not to a batch.

The noise of sample i in row r is a pure function of (seed, i, r): it does not depend on the other
samples, on the order of evaluation, nor on the device (it is drawn on the CPU and moved). So a
picture does not change with the batch it is drawn in, and a run can be split or resumed anywhere.

Every sample has a twin, whose noise is minus its own in every row: sample ~i = −1 − i is that of sample i.
Where a run is nearly linear in its noise, the errors of the two cancel in their mean.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
PRIOR = 0  # the stream of the start state; row r of a plan uses stream r + 1


def mix(*keys: int) -> int:
    """Hash integers to 64 well-mixed bits (the SplitMix64 finaliser, chained)."""
    state = 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def child(key: int, *more: int) -> int:
    """The key of a part of a sample; parts of a twin are twins."""
    return mix(key, *more) if key >= 0 else ~mix(~key, *more)


def _mixed(keys: Sequence[int], last: int) -> list[int]:
    """[mix(key, last) for key in keys]; many at once, as fast as the draws that they are for deserve."""
    if len(keys) < 16:
        return [mix(key, last) for key in keys]
    state = np.array(keys, dtype=np.uint64)  # wraps round like & _MASK
    for add in (0, last):
        state = state + np.uint64((add + 0x9E3779B97F4A7C15) & _MASK)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state.tolist()


def _integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be an integer (or one integer per sample)") from None


def sample_keys(batch: int, seed: int | Sequence[int], index: Sequence[int] | None = None) -> list[int]:
    """One key per sample: of (seed, i) for an integer seed, or of each seed of a sequence; ~key for a twin."""
    places = list(range(batch)) if index is None else [_integer(i, "index") for i in index]
    if len(places) != batch:
        raise ValueError(f"index has {len(places)} entries for a batch of {batch}; give one per sample")
    if isinstance(seed, Sequence | np.ndarray | Tensor) and not isinstance(seed, str) and np.ndim(seed) == 1:
        if len(seed) != batch:
            raise ValueError(f"seed has {len(seed)} entries for a batch of {batch}; give one integer or one per sample")
        # A sample with a seed of its own is number 0 of it, wherever it lies in the batch.
        seeds = [_integer(s, "seed") for s in seed]
        places = places if index is not None else [0] * batch
    else:
        seeds = [_integer(seed, "seed")] * batch
    return [mix(s, i) if i >= 0 else ~mix(s, ~i) for s, i in zip(seeds, places, strict=True)]


def draw(
    keys: Sequence[int],
    shape: Sequence[int],
    stream: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of shape (len(keys), *shape), row i from the stream (keys[i], stream); −z of key for ~key."""
    # Half types are drawn in float32, so that a picture is the same up to rounding in any dtype.
    drawn = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    seeds = _mixed([key if key >= 0 else ~key for key in keys], stream)
    places = {seed: n for n, seed in enumerate(dict.fromkeys(seeds))}  # a sample and its twin draw once
    out = torch.empty((len(places), *shape), dtype=drawn)
    generator = torch.Generator()
    for row, seed in zip(out.unbind(0), places, strict=True):
        row.normal_(generator=generator.manual_seed(seed >> 1))  # in place: half the time of a draw and a copy
    if len(places) < len(keys):
        out = out[[places[seed] for seed in seeds]]
    if any(key < 0 for key in keys):
        out = out * torch.tensor([1.0 if key >= 0 else -1.0 for key in keys], dtype=drawn).reshape(-1, *[1] * len(shape))
    return out.to(device=device, dtype=dtype)


def normal(
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    index: Sequence[int] | None = None,
    stream: int = PRIOR,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of shape (B, *), sample i from its own stream; see the module."""
    if not shape or any(int(n) < 1 for n in shape):
        raise ValueError(f"shape={tuple(shape)} must be (batch, *), all sizes at least 1")
    return draw(sample_keys(shape[0], seed, index), shape[1:], stream, dtype, device)
