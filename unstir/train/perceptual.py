"""The part of a reconstruction loss that looks at more than single pixels, under the name of what it is.

    "lpips"     learned perceptual distance on AlexNet, only where its weights already lie in the cache of torch.hub
    "pyramid"   Σ_{s = 2, 4} mean |pool_s(x) − pool_s(x̂)|, pool_s the mean over s × s pixels: with the loss of pixels beside it
                the ℓ1 distance of a pyramid of scales 1, 2, 4. It knows nothing of what pictures show
    "none"      0

"auto" takes the first that is there. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._extras import need

KINDS = ("auto", "lpips", "pyramid", "none")
SCALES = (2, 4)
SMALLEST = 32  # pixels that AlexNet needs


class Perceptual(NamedTuple):
    """What is measured, and the function (x, x̂) → (B,)."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]


def perceptual(kind: str = "auto") -> Perceptual:
    """The loss of this name. ValueError for another one, ImportError where "lpips" is asked for and is not there."""
    from ..evaluate.quality import lpips_missing

    if kind not in KINDS:
        raise ValueError(f"perceptual={kind!r} is unknown; one of {', '.join(KINDS)}")
    missing = lpips_missing() if kind in ("auto", "lpips") else ""
    if kind == "lpips" and missing:
        raise ImportError(missing)
    if kind == "none":
        return Perceptual("none", lambda x, y: x.new_zeros(len(x)))
    if kind == "pyramid" or missing:
        return Perceptual("pyramid-l1", pyramid)
    return Perceptual("lpips[alex]", _Lpips())


def pyramid(x: Tensor, y: Tensor) -> Tensor:
    """Σ_s mean |pool_s(x) − pool_s(y)| over the scales 2 and 4 that fit into the pictures, (B,)."""
    difference = x - y  # pooling is linear
    scales = [s for s in SCALES if s <= min(x.shape[2:])]
    parts = [F.avg_pool2d(difference, s).abs().flatten(1).mean(1) for s in scales]
    return torch.stack(parts).sum(0) if parts else x.new_zeros(len(x))


class _Lpips:
    """LPIPS of torchmetrics with gradients, its network made once for each device."""

    def __init__(self) -> None:
        self.net: Any = need("torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity(net_type="alex").net
        self.net.eval().requires_grad_(False)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[2:]) < SMALLEST:
            raise ValueError(f"x has sides {tuple(x.shape[2:])}; LPIPS needs at least {SMALLEST}: pass perceptual='pyramid'")
        colour = (v.expand(-1, 3, -1, -1) for v in (x, y))
        return self.net.to(x.device)(*colour).flatten()
