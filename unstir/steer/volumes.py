"""Volumes (B, C, Z, H, W) seen slice by slice: by a denoiser of pictures, and by an operator that measures pictures.

Slices along `axis` become samples of a batch, volume after volume, and come back:

    folded(x)[b · Z + k] = x[b] at index k of axis

A model of slices knows nothing of its neighbours; `admm` ties them together. Steer the volume rather than its
slices: posterior(SliceWise(model), sliced(operator), y).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .._random import child
from ..denoiser import chunked
from ..denoiser.denoiser import accepts
from ..denoiser.inner import Steered, call
from ..denoiser.parts import nested
from .operators import Spectral, is_linear, is_spectral
from .operators.derive import singular


def fold(x: Tensor, axis: int) -> Tensor:
    """The slices of volumes (B, *) along `axis`, as a batch (B · Z, *)."""
    return x.movedim(axis, 1).flatten(0, 1)


def unfold(slices: Tensor, batch: int, axis: int) -> Tensor:
    """The volumes whose slices these are: the inverse of `fold`."""
    return slices.unflatten(0, (batch, -1)).movedim(1, axis)


class SliceWise(nn.Module):
    """A denoiser of volumes from one of slices: D of every slice, each for itself.

    model: a denoiser of pictures, without hooks of its own.
    axis: of the volume (B, C, Z, H, W) along which the slices lie, 2, 3 or 4 (any but the batch's).
    chunk: slices of one network call, which bounds the memory; None for all at once. A chunk above Z is all.

    Conditions of the volumes' shape are cut into slices too; those with one entry a volume go to all of its slices.
    """

    def __init__(self, model: Any, axis: int = 2, chunk: int | None = None) -> None:
        super().__init__()
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 1:
            raise ValueError(f"axis={axis!r} must be an integer of at least 1, counted in the volume (B, C, Z, H, W)")
        if getattr(model, "hooks", ()):
            raise ValueError("model brings hooks, which would see volumes instead of slices; steer SliceWise(model) instead")
        self.model, self.axis = model if chunk is None else chunked(model, chunk), axis
        self.process, self.shape = getattr(model, "process", None), None
        self.meta, self.sees_anchor = getattr(model, "meta", {}), getattr(model, "sees_anchor", False)

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Any:
        """D(x, t) of volumes; every slice has random numbers of its own, and the slices a memory of their own."""
        if x.ndim <= self.axis:
            raise ValueError(f"x has shape {tuple(x.shape)}; slices along axis={self.axis} need volumes (B, C, Z, H, W)")
        batch, count = len(x), x.shape[self.axis]

        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0:
                return value
            if value.shape == x.shape:
                return fold(value, self.axis)
            return value.repeat_interleave(count, 0) if len(value) == batch else value

        def together(value: Any) -> Any:  # one entry a volume, which follows it where samples are permuted
            return nested(lambda u: u.unflatten(0, (batch, count)) if u.ndim and len(u) == batch * count else u, value)

        here = None
        if ctx is not None and accepts(self.model, "ctx"):
            keys = [child(key, k) for key in ctx.run.keys for k in range(count)]
            known = ctx.run.memory.get(self, {})
            memory = nested(lambda u: u.flatten(0, 1) if u.shape[:2] == (batch, count) else u, known)
            here = replace(ctx, x=cut(ctx.x), run=replace(ctx.run, keys=keys, memory=memory, aux={}))
        out = call(self.model, fold(x, self.axis), cut(t), here, {k: cut(v) for k, v in cond.items()})
        if ctx is not None and here is not None:
            ctx.give(**together(here.run.aux))
            if here.run.memory:
                ctx.run.memory[self] = together(here.run.memory)
        if type(out) is Steered:
            return Steered(unfold(out.data, batch, self.axis), unfold(out.base, batch, self.axis), out.carry)
        return unfold(out, batch, self.axis)


class _Sliced:
    """An operator on every slice, with those of the derived maps that the operator itself brings."""

    def __init__(self, operator: Any, axis: int) -> None:
        self.linear, self.A = is_linear(operator), _onto(operator.A, axis)
        for name in ("A_adjoint", "A_dagger"):
            if hasattr(operator, name):
                setattr(self, name, _back(getattr(operator, name), axis))


def sliced(operator: Any, axis: int = 2) -> Any:
    """An operator of pictures, applied to every slice of a volume along `axis`: y is (B, Z, …), y[:, k] that of slice k.

    It is spectral if the operator is, and has the operator's norm.
    """
    if not is_spectral(operator):
        return _Sliced(operator, axis)
    return Spectral(
        singular(operator),  # type: ignore[arg-type]
        _back(operator.V, axis),
        _onto(operator.V_adjoint, axis),
        _within(operator.U),
        _within(operator.U_adjoint),
    )


def _onto(function: Callable[[Tensor], Tensor], axis: int) -> Callable[[Tensor], Tensor]:
    """A map of slices, as one from volumes to (B, Z, …)."""
    return lambda x: function(fold(x, axis)).unflatten(0, (len(x), -1))


def _back(function: Callable[[Tensor], Tensor], axis: int) -> Callable[[Tensor], Tensor]:
    """A map onto slices, as one from (B, Z, …) to volumes."""
    return lambda y: unfold(function(y.flatten(0, 1)), len(y), axis)


def _within(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A map of one slice's numbers, as one from (B, Z, …) to (B, Z, …)."""
    return lambda y: function(y.flatten(0, 1)).unflatten(0, (len(y), -1))
