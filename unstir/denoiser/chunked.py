"""A denoiser that sees its batch in pieces: bounded memory, and results that do not depend on the batch at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .inner import Steered, call


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
        self.process, self.shape = getattr(model, "process", None), getattr(model, "shape", None)
        self.hooks, self.meta = getattr(model, "hooks", ()), getattr(model, "meta", {})
        self.sees_anchor = getattr(model, "sees_anchor", False)

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Any:
        """D(x, t), piece by piece; every piece has its own memory of the run, and the random numbers of its samples."""
        batch = len(x)

        def piece(value: Any, part: slice) -> Any:
            whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
            return value[part] if whole else value

        outs, given = [], []
        for i in range(0, batch, self.size):
            part = slice(i, i + self.size)
            here = ctx
            if ctx is not None:
                memory = ctx.run.memory.setdefault((self, i), {})
                run = replace(ctx.run, keys=ctx.run.keys[part], memory=memory, aux={})
                here = replace(ctx, x=piece(ctx.x, part), run=run)
            outs.append(call(self.model, x[part], piece(t, part), here, {k: piece(v, part) for k, v in cond.items()}))
            given.append({} if here is None else here.run.aux)
        if ctx is not None and given[0]:
            ctx.give(**{name: torch.cat([aux[name] for aux in given]) for name in given[0]})
        if type(outs[0]) is Steered:
            return Steered(torch.cat([o.data for o in outs]), torch.cat([o.base for o in outs]), outs[0].carry)
        return torch.cat(outs)


def chunked(model: Any, size: int) -> Chunked:
    """`model`, called on at most `size` samples at a time; see `Chunked`."""
    return Chunked(model, size)
