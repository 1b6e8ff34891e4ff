"""Denoisers inside denoisers: how a transform calls the model that it wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .denoiser import accepts


class Steered(NamedTuple):
    """A transformed data prediction and what of the original the row keeps (inverse-toolbox, E5).

    carry="data": only the row's own combination; the noise estimate is recomputed from the new
    data (shift B_i(D' − D)). carry="noise": the noise estimate of `base` is kept (shift
    α_{i+1}(D' − D)). carry="velocity": the velocity is kept (shift D' − D).
    """

    data: Tensor
    base: Tensor
    carry: str = "data"


def call(model: Any, x: Any, t: Any, ctx: Any, cond: Mapping[str, Any]) -> Any:
    """What an inner model returns, D or `Steered`; it gets the row context if it asks for it."""
    return model(x, t, ctx=ctx, **cond) if ctx is not None and accepts(model, "ctx") else model(x, t, **cond)


def evaluate(model: Any, x: Any, t: Any, ctx: Any, cond: Mapping[str, Any]) -> Any:
    """D of an inner model; of a steered one the data that it was steered to."""
    out = call(model, x, t, ctx, cond)
    return out.data if type(out) is Steered else out
