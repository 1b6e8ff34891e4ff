"""Large canvases in windows: encode, denoise or decode piece by piece, and blend where the pieces overlap.

    y = Σ_k w_k f(x_k) / Σ_k w_k,      w_k = min(distance to the border of window k, overlap)

So memory is that of one window, seams fall on places where another window has its middle, and a single window is f(x),
bit for bit. (High-Resolution Image Synthesis with Latent Diffusion Models, 2022.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser.inner import evaluate
from .codec import Codec


def windows(side: int, size: int, overlap: int) -> list[int]:
    """Where the windows of an axis begin: `size − overlap` apart, the last one ending at the end."""
    if size >= side:
        return [0]
    starts = list(range(0, side - size, size - overlap))
    return [*starts, side - size]


def border_weights(height: int, width: int, overlap: int) -> Tensor:
    """(height, width): the distance of a pixel's centre to the window's border, at most `overlap`."""
    down, across = (
        torch.minimum(torch.arange(n) + 0.5, n - 0.5 - torch.arange(n)).clamp_max(max(overlap, 0.5)) for n in (height, width)
    )
    return torch.minimum(down[:, None], across)


def blend(
    function: Callable[[Tensor, tuple[slice, slice]], Tensor], x: Tensor, size: int, overlap: int, multiple: int = 1
) -> Tensor:
    """`function(window, where)` on overlapping windows of x (B, C, H, W), joined.

    The result's sides are those of x times any rational factor, the same for every window.
    size, overlap: in pixels of x, multiples of `multiple` (the f of an encoder, whose windows must fall on its grid).

    Raises ValueError for sizes that do not fit.
    """
    if not 0 <= overlap < size or size % multiple or overlap % multiple:
        raise ValueError(f"size={size}, overlap={overlap}: need 0 ≤ overlap < size, and both multiples of {multiple}")
    height, width = x.shape[2:]
    rows, columns = windows(height, size, overlap), windows(width, size, overlap)
    if len(rows) == len(columns) == 1:
        return function(x, (slice(0, height), slice(0, width)))
    total = weight = None
    for top in rows:
        for left in columns:
            where = (slice(top, min(top + size, height)), slice(left, min(left + size, width)))
            part = x[..., where[0], where[1]]
            out = function(part, where)
            up, down = out.shape[-1], part.shape[-1]  # the factor is up/down
            if total is None or weight is None:
                total = out.new_zeros(*out.shape[:2], height * up // down, width * up // down)
                weight = out.new_zeros(total.shape[2:])
            here = tuple(slice(w.start * up // down, w.stop * up // down) for w in where)
            w = border_weights(out.shape[2], out.shape[3], overlap * up // down).to(out)
            total[..., here[0], here[1]] += w * out
            weight[here] += w
    assert total is not None
    assert weight is not None
    return total / weight


class Tiled(Codec):
    """A codec that works in windows of `size` pixels of the picture, overlapping by `overlap`.

    What depends on the whole picture (group norms, attention in the middle) is that of the window.
    """

    kind = "tiled"

    def __init__(self, codec: Codec, size: int = 256, overlap: int = 64) -> None:
        super().__init__(codec.pixels, codec.channels, codec.factor)
        blend(lambda x, _: x, torch.zeros(1, 1, 1, 1), size, overlap, codec.factor)  # refuses sizes that do not fit
        self.codec, self.size, self.overlap, self.range = codec, size, overlap, codec.range
        self.shift, self.scale = codec.shift, codec.scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def both(part: Tensor, _: Any) -> Tensor:
            return torch.cat(self.codec.posterior(part), 1)

        mean, std = blend(both, x, self.size, self.overlap, self.factor).chunk(2, 1)
        return mean, std

    def reconstruct(self, raw: Tensor) -> Tensor:
        size, overlap = self.size // self.factor, self.overlap // self.factor
        return blend(lambda part, _: self.codec.reconstruct(part), raw, size, overlap)


class TiledDenoiser(nn.Module):
    """A denoiser that sees windows of `size` entries of the state, overlapping by `overlap`: D is their blend.

    Conditions with the state's own sides (a low-resolution picture, a mask) are cut as the state is; others are shared.
    """

    def __init__(self, model: Any, size: int, overlap: int) -> None:
        super().__init__()
        blend(lambda x, _: x, torch.zeros(1, 1, 1, 1), size, overlap)
        self.model, self.size, self.overlap = model, size, overlap
        self.process, self.meta = getattr(model, "process", None), getattr(model, "meta", {})
        self.shape, self.hooks = None, getattr(model, "hooks", ())

    def forward(self, x: Tensor, t: Tensor | float, ctx: Any = None, **cond: Any) -> Tensor:
        def denoise(part: Tensor, where: tuple[slice, slice]) -> Tensor:
            def cut(value: Any) -> Any:
                spatial = isinstance(value, Tensor) and value.ndim == 4 and value.shape[2:] == x.shape[2:]
                return value[..., where[0], where[1]] if spatial else value

            return evaluate(self.model, part, t, ctx, {name: cut(value) for name, value in cond.items()})

        return blend(denoise, x, self.size, self.overlap)


def tiled(model: Any, size: int, overlap: int) -> Any:
    """A codec or a denoiser that works in overlapping windows; see `Tiled` and `TiledDenoiser`."""
    return Tiled(model, size, overlap) if isinstance(model, Codec) else TiledDenoiser(model, size, overlap)
