"""Training a vector field: quadratic losses whose minimisers are the fields of an interpolant, and a short loop.

For a field F with the target f(x0, y, z), one of `unstir.denoiser.FIELDS`, at a uniform time t:

    L = E[ ½ ‖F(x_t, t)‖² − f · F(x_t, t) ] = ½ E ‖F − f‖² − ½ E ‖f‖²

so its minimum is F = E[f | x_t], and unlike the mean square it stays finite where f grows like 1/σ. Velocity and score
contain z/σ, whose variance explodes at the ends of the path; with antithetic pairs x^± = αx0 + βy ± σz it cancels.
(Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._random import mix
from ..denoiser.field import Field, target
from ..process.base import float64
from .descend import descend
from .levels import stratified
from .progress import Listener

_ROWS, _SOURCE, _NOISE, _LEVEL = range(20, 24)  # streams, apart from those of `order`


def field_loss(model: Field, x0: Tensor, source: Tensor | None, noise: Tensor, t: Tensor, *, antithetic: bool = True) -> Tensor:
    """L per sample, summed over the outputs and averaged over values: (B,).

    x0, noise: (B, *); source: y (B, *), paired with x0 or not, None if the process has none; t: (B,) inside (0, 1).
    """
    process = model.process
    for name, value in {"noise": noise, "source": source}.items():
        if value is not None and value.shape != x0.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; x0 has {tuple(x0.shape)}")
    if source is None and process.base.anchored:
        raise ValueError(f"{process!r} goes from a source to the data: pass source=, a batch of it")
    t = float64(t).to(x0.device)
    if not bool(((t > 0) & (t < 1)).all()):
        raise ValueError("t must lie inside (0, 1); at the ends a target may be infinite")
    signs = (1.0, -1.0) if antithetic else (1.0,)
    total = torch.zeros(len(x0), device=x0.device)
    for sign in signs:
        z = sign * noise
        found = model.outputs(process.stir(x0, t, z, source), t)
        for name, value in zip(model.predicts, found, strict=True):
            goal = target(process, name, x0, source, z, t)
            total = total + (0.5 * value.square() - goal * value).flatten(1).mean(1).float()
    return total / len(signs)


def fit_field(
    model: Field,
    data: Tensor,
    source: Tensor | None = None,
    *,
    steps: int = 1500,
    batch: int = 256,
    lr: float = 2e-3,
    paired: bool = False,
    decay: float = 0.99,
    clip: float = 1.0,
    margin: float = 1e-3,
    seed: int = 0,
    progress: Listener | None = None,
) -> Field:
    """The field with averaged weights, trained with antithetic pairs; `model` itself is trained in place.

    data, source: (N, *) and (M, *), drawn apart, or row by row if paired. lr falls to 0 along half a cosine (AdamW).
    decay: of the weight average, per step.   margin: times are uniform in (margin, 1 − margin).

    Everything random is a function of (seed, step). Raises ValueError for shapes that differ and for steps < 1.
    """
    if source is not None and source.shape[1:] != data.shape[1:]:
        raise ValueError(f"source has samples of shape {tuple(source.shape[1:])}, data of {tuple(data.shape[1:])}")
    if paired and (source is None or len(source) != len(data)):
        raise ValueError("paired=True needs a source with one row for each row of data")
    for name, value in {"steps": steps, "batch": batch}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin={margin} must lie in [0, 0.5)")

    def loss(step: int) -> Tensor:
        rows = _rows(len(data), batch, mix(seed, _ROWS, step))
        x0 = data[rows]
        y = None if source is None else source[rows if paired else _rows(len(source), batch, mix(seed, _SOURCE, step))]
        keys = [mix(seed, _NOISE, n) for n in range(step * batch, (step + 1) * batch)]
        z = model.process.noise(keys, x0.shape[1:], 0, dtype=x0.dtype, device=x0.device)
        t = margin + (1 - 2 * margin) * stratified(batch, mix(seed, _LEVEL, step) / 2**64)
        return field_loss(model, x0, y, z, t).mean()

    return descend(model, loss, steps=steps, lr=lr, decay=decay, clip=clip, progress=progress)


def _rows(count: int, batch: int, key: int) -> Tensor:
    return torch.randint(0, count, (batch,), generator=torch.Generator().manual_seed(key >> 1))
