"""Restoring what is larger than the network: overlapping windows of one picture, or of one sound.

A run of an anchored process starts from the degraded y and noise. Where y is cut into windows, each
gets its own part of ONE field of noise, so that two windows agree where they overlap but for what
only one of them sees; there they are blended by linear ramps. The field is drawn in blocks as they
are needed, so that it may be of any size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._random import PRIOR, child, draw, mix, sample_keys
from ..plan import Plan, sample
from ..process.base import expand

Listener = Callable[[Any], None]
BLOCK = 64  # side of the blocks in which noise is drawn; part of what a seed means


def restore(model: Any, plan: Plan, y: Tensor, noise: Callable[[int], Tensor], on_step: Listener | None = None) -> Tensor:
    """One run of a plan from y (B, *): noise(0) is the normal noise of the start, noise(r + 1) that of row r.

    The start is the forward law with y in the place of the unknown data, x = (α + β) y + σ z (`Process.start`).
    Raises ValueError for a model whose process has no anchor: it makes samples, and restores nothing.
    """
    process = model.process
    if not process.anchored:
        raise ValueError(f"the model's process {process!r} has no anchor: it draws samples and does not restore")
    t = plan.start
    x = expand(process.alpha(t) + process.beta(t), y) * y + expand(process.sigma(t), y) * noise(PRIOR)
    return sample(model, plan, x=x, anchor=y, noise=lambda row: noise(row + 1), on_step=on_step)


# -- geometry ---------------------------------------------------------------------------------------
def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where windows of `size` begin that cover `length`, evenly spread, each two sharing at least `overlap`.

    One window at 0 if length ≤ size; else ⌈(length − overlap)/(size − overlap)⌉, the last at length − size.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap={overlap} must be at least 0 and below the size of a window, {size}")
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def ramps(places: Sequence[int], size: int, overlap: int) -> Tensor:
    """Weights (windows, size) whose sum is 1 at every place: linear from window to window where two overlap.

    w_i = min(i + 1, size − i, overlap + 1), divided by the sum over the windows at the same place.
    """
    up = torch.arange(1, size + 1, dtype=torch.float64)
    w = torch.minimum(up, up.flip(0)).clamp_max(overlap + 1)
    total = torch.zeros(max(places) + size, dtype=torch.float64)
    for place in places:
        total[place : place + size] += w
    return torch.stack([w / total[place : place + size] for place in places])


def noise_at(keys: Sequence[int], stream: int, shape: Sequence[int], top: int = 0, left: int = 0) -> Tensor:
    """The part (len(keys), C, h, w) at (top, left) of the normal fields of these keys; shape = (C, h, w).

    Block (i, j) of a field is drawn from the key (key, i, j), so a part never depends on what else is drawn.
    """
    channels, height, width = shape
    rows, columns = range(top // BLOCK, -(-(top + height) // BLOCK)), range(left // BLOCK, -(-(left + width) // BLOCK))
    field = torch.cat(
        [torch.cat([draw([child(k, i, j) for k in keys], (channels, BLOCK, BLOCK), stream) for j in columns], 3) for i in rows],
        2,
    )
    y, x = top - rows.start * BLOCK, left - columns.start * BLOCK
    return field[:, :, y : y + height, x : x + width]


# -- pictures ---------------------------------------------------------------------------------------
def restore_picture(
    model: Any,
    plan: Plan,
    y: Tensor,
    *,
    size: tuple[int, int],
    overlap: int = 16,
    seed: int = 0,
    index: int = 0,
    samples: int = 1,
    batch: int = 16,
    on_step: Listener | None = None,
) -> Tensor:
    """`samples` restorations (samples, C, H, W) of a picture y (C, H, W), in windows of `size` = (h, w), `batch` at a time.

    A smaller picture is extended to the window by reflection and cut back. Sample k depends on
    (seed, index, k) and not on the windows' batches; `index` numbers the pictures of a job.
    """
    if y.ndim != 3 or 0 in y.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}; it must be one picture (C, H, W)")
    _, height, width = y.shape
    whole = _extended(y, max(size[0], height), max(size[1], width))
    tops, lefts = (starts(whole.shape[a], size[a - 1], min(overlap, size[a - 1] - 1)) for a in (1, 2))
    weights = [ramps(p, s, min(overlap, s - 1)) for p, s in ((tops, size[0]), (lefts, size[1]))]
    keys = [mix(key, index) for key in sample_keys(samples, seed)]
    out = torch.zeros(samples, *whole.shape, dtype=torch.float64)
    jobs = list(itertools.product(range(samples), range(len(tops)), range(len(lefts))))
    for part in (jobs[i : i + batch] for i in range(0, len(jobs), batch)):
        cut = torch.stack([whole[:, tops[i] : tops[i] + size[0], lefts[j] : lefts[j] + size[1]] for _, i, j in part])

        def noise(stream: int, part: Any = part, cut: Tensor = cut) -> Tensor:
            fields = [noise_at([keys[k]], stream, cut.shape[1:], tops[i], lefts[j]) for k, i, j in part]
            return torch.cat(fields).to(cut)

        for (k, i, j), x in zip(part, restore(model, plan, cut, noise, on_step).cpu().double(), strict=True):
            w = weights[0][i][:, None] * weights[1][j]
            out[k, :, tops[i] : tops[i] + size[0], lefts[j] : lefts[j] + size[1]] += w * x
    return out[:, :, :height, :width].to(y.dtype)


def _extended(y: Tensor, height: int, width: int) -> Tensor:
    """y (C, H, W) with its mirror image to the right and below, as often as needed: (C, height, width)."""
    for axis, size in ((1, height), (2, width)):
        while y.shape[axis] < size:
            more = min(y.shape[axis], size - y.shape[axis])
            y = torch.cat([y, y.flip(axis).narrow(axis, 0, more)], axis)
    return y


# -- sound ------------------------------------------------------------------------------------------
def restore_sound(
    model: Any,
    plan: Plan,
    sound: Tensor,
    transform: Any,
    *,
    seed: int = 0,
    index: int = 0,
    samples: int = 1,
    frame: int = 0,
    on_step: Listener | None = None,
) -> Tensor:
    """`samples` restorations (samples, B, T) of sounds (B, T) at transform.rate Hz, of which frame number `frame` is the first.

    transform: a `data.spectrogram.Spectrogram`. Each sound is divided by its peak before, and
    multiplied by it after; silence stays silence. All B, the channels of one recording, get the
    same noise, and windows of it, which begin at multiples of transform.fold frames, parts of one field.
    """
    if frame % transform.fold:
        raise ValueError(f"frame={frame} must be a multiple of fold={transform.fold}")
    top = sound.abs().amax(1, keepdim=True)
    y = transform(sound / top.clamp_min(torch.finfo(sound.dtype).tiny))
    keys = [mix(key, index) for key in sample_keys(samples, seed)]

    def noise(stream: int) -> Tensor:
        field = noise_at(keys, stream, y.shape[1:], 0, frame // transform.fold)
        return field.repeat_interleave(len(y), 0).to(y)

    x = restore(model, plan, y.repeat(samples, 1, 1, 1), noise, on_step)
    back = transform.inverse(x, sound.shape[1]).reshape(samples, *sound.shape)
    return torch.where(top > 0, back * top, 0.0)
