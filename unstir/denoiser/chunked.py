"""A denoiser that sees its batch in pieces: bounded memory, and results that do not depend on the batch at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .inner import Steered, call
from .parts import nested


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
        """D(x, t), piece by piece; every piece has what the run remembers of its samples, and their random numbers."""
        batch = len(x)
        before = {} if ctx is None else ctx.run.memory.get(self, {})

        def piece(value: Any, part: slice) -> Any:
            return nested(lambda u: u[part] if u.ndim > 0 and len(u) == batch else u, value)

        outs, given, memories = [], [], []
        parts = [slice(i, min(i + self.size, batch)) for i in range(0, batch, self.size)]
        for part in parts:
            here = ctx
            if ctx is not None:
                run = replace(ctx.run, keys=ctx.run.keys[part], memory=piece(before, part), aux={})
                here = replace(ctx, x=piece(ctx.x, part), run=run)
            outs.append(call(self.model, x[part], piece(t, part), here, {k: piece(v, part) for k, v in cond.items()}))
            if here is not None:
                given.append(here.run.aux)
                memories.append(here.run.memory)
        if ctx is not None:
            if given[0]:
                ctx.give(**{name: torch.cat([aux[name] for aux in given]) for name in given[0]})
            if memories[0]:
                ctx.run.memory[self] = _joined(memories, [part.stop - part.start for part in parts])
        if type(outs[0]) is Steered:
            return Steered(torch.cat([o.data for o in outs]), torch.cat([o.base for o in outs]), outs[0].carry)
        return torch.cat(outs)


def _joined(pieces: Sequence[Any], sizes: Sequence[int]) -> Any:
    """What all pieces remember: tensors with one entry a sample end to end, of anything else that of the first piece."""
    first = pieces[0]
    if isinstance(first, Tensor):
        own = all(piece.ndim > 0 and len(piece) == size for piece, size in zip(pieces, sizes, strict=True))
        return torch.cat(list(pieces)) if own else first
    if type(first) in (tuple, list):
        return type(first)(_joined(each, sizes) for each in zip(*pieces, strict=True))
    if isinstance(first, dict):
        return {key: _joined([piece[key] for piece in pieces], sizes) for key in first}
    return first


def chunked(model: Any, size: int) -> Chunked:
    """`model`, called on at most `size` samples at a time; see `Chunked`."""
    return Chunked(model, size)
