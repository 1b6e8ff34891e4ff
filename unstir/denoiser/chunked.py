"""A denoiser that sees its batch in pieces: bounded memory, and results that do not depend on the batch at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Chunked(nn.Module):
    """`model`, called on at most `size` samples at a time.

    The engine's own arithmetic never mixes samples, but matrix products of different batch sizes
    may round differently (about 1e-7). With size=1 a sample is the same to the last bit in any batch.
    Conditions that are tensors with the batch's length are split with it, everything else is shared.
    """

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r} must be an integer of at least 1, the samples of one call")
        self.model, self.size = model, size
        self.process, self.shape = model.process, getattr(model, "shape", None)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """D(x, t), piece by piece."""
        batch = len(x)

        def piece(value: Any, part: slice) -> Any:
            whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
            return value[part] if whole else value

        parts = [slice(i, i + self.size) for i in range(0, batch, self.size)]
        return torch.cat([self.model(x[p], piece(t, p), **{k: piece(v, p) for k, v in cond.items()}) for p in parts])


def chunked(model: Any, size: int) -> Chunked:
    """`model`, called on at most `size` samples at a time; see `Chunked`."""
    return Chunked(model, size)
