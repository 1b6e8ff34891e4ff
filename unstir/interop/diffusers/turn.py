"""One iteration of a pipeline's loop: the executor's row, fed with a raw network output."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...denoiser.denoiser import combine
from ...plan.execute import advance, line
from ...plan.hooks import carried
from .running import Run


def take_turn(
    run: Run, raw: Tensor, sample: Tensor, generator: Any = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(X', D) of the run's next turn; float32 inside (float64 for a float64 sample), X' in raw's dtype.

    generator draws the row's noise unless `noise` is that noise.
    """
    index = run.index if run.index is not None else run.first
    turn = run.turns[index - run.first]
    row, number, history, dtype = turn.row, turn.number, run.history, raw.dtype
    if raw.shape != sample.shape:
        raw = without_variance(raw, sample)
    x = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
    data = used = combine(((turn.m, x), (turn.n, raw if dtype == x.dtype else raw.to(x.dtype))))
    if run.limit is not None:
        data = used = run.limit(base := data)
        if run.keeps_noise and row.gain != 0:
            alpha = float(run.schedule.plan.process.alpha(row.to))  # pyright: ignore[reportOptionalMemberAccess]
            used = carried(data, base, "noise", row, alpha)[0]
    history[number] = now = used if row.plain else line(row, x, used, history.get(number - 1) if row.momentum else None)
    x = advance(row, x, history, now, number)
    if row.noisy:
        x = _with_noise(x, row.c, raw, generator, noise)
    for later in turn.after:
        number += 1
        x = advance(later, x, history, None, number)
        if later.noisy:
            x = _with_noise(x, later.c, raw, generator, None)
    for old in turn.release:
        del history[old]
    run.index = index + 1
    return (x if x.dtype == dtype else x.to(dtype)), data


def _with_noise(x: Tensor, c: Any, raw: Tensor, generator: Any, noise: Tensor | None) -> Tensor:
    """X + c z, z drawn as the peers draw it: of the output's shape and dtype."""
    if noise is None:
        noise = randn_tensor(raw.shape, generator=generator, device=raw.device, dtype=raw.dtype)
    return combine(((1.0, x), (c, noise if noise.dtype == x.dtype else noise.to(x.dtype))))


def without_variance(raw: Tensor, sample: Tensor) -> Tensor:
    """The prediction in an output with twice the channels; the other half, a learned variance, is not used."""
    if raw.ndim == sample.ndim > 1 and raw.shape[1] == 2 * sample.shape[1]:
        return raw[:, : sample.shape[1]]
    raise ValueError(
        f"model_output has shape {tuple(raw.shape)}, sample {tuple(sample.shape)}; they must agree "
        "(or have twice the channels, for a learned variance)"
    )
