"""How well two masks agree: Dice, and the distance of their surfaces in millimetres.

Masks are (B, *spatial) of booleans or of 0 and 1, two or three spatial axes. Cases on which a metric is undefined (an empty
mask) are NaN and counted, never averaged away in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import distances

ROWS = 2048  # surface points compared at a time


@dataclass(frozen=True)
class Segmentation:
    """Means over the cases where they are defined, and how many are not.

    dice: mean over cases;  aggregate: 2 Σ|A∩B| / Σ(|A| + |B|), where large structures count more;  hd95 in the unit of the
    spacing. `undefined_dice`: both masks empty; `undefined_hd95`: one of them empty.
    """

    dice: float
    aggregate: float
    hd95: float
    n: int
    undefined_dice: int
    undefined_hd95: int

    def __str__(self) -> str:
        left = f"; undefined in {self.undefined_dice} and {self.undefined_hd95}" if self.undefined_hd95 else ""
        return f"Dice {self.dice:.4g} (aggregate {self.aggregate:.4g}), HD95 {self.hd95:.4g} (n = {self.n}{left})"


def dice(x: Any, reference: Any) -> Tensor:
    """2|A ∩ B| / (|A| + |B|) per case, (B,) float64; NaN where both are empty."""
    a, b = _masks(x, reference)
    return 2 * (a & b).flatten(1).sum(1).double() / (a.flatten(1).sum(1) + b.flatten(1).sum(1)).double()


def hd95(x: Any, reference: Any, spacing: Sequence[float] | float, percentile: float = 95.0) -> Tensor:
    """The larger of the two directed 95th percentiles of surface distances, (B,) float64; NaN where one mask is empty.

        max( P₉₅ { min_b ‖a − b‖ : a ∈ ∂A },  P₉₅ { min_a ‖a − b‖ : b ∈ ∂B } )

    ∂A are the pixels of A with a neighbour across a face outside of A (the picture's border counts as outside).
    spacing: distance between neighbouring pixels, one number an axis (mm); there is no default, since 1 is nearly always
        wrong. percentile=100 is the Hausdorff distance itself.
    """
    a, b = _masks(x, reference)
    if isinstance(spacing, int | float) and not isinstance(spacing, bool):
        spacing = [float(spacing)] * (a.ndim - 1)
    if spacing is None or isinstance(spacing, str | bool) or len(spacing) != a.ndim - 1:
        raise ValueError(f"spacing={spacing!r} must be {a.ndim - 1} numbers, one per spatial axis (or one for all), in mm")
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing={list(spacing)!r} must be finite numbers above 0")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r} must lie in (0, 100]")
    step = torch.tensor(list(spacing), dtype=torch.float64)
    found = []
    for one, other in zip(_surface(a), _surface(b), strict=True):
        p, q = one.nonzero().double() * step, other.nonzero().double() * step
        if not len(p) or not len(q):
            found.append(math.nan)
            continue
        there, back = (_nearest(u, v).quantile(percentile / 100) for u, v in ((p, q), (q, p)))
        found.append(max(float(there), float(back)))
    return torch.tensor(found, dtype=torch.float64)


def segmentation(x: Any, reference: Any, spacing: Sequence[float] | float) -> Segmentation:
    """Dice and HD95 of B cases; see `Segmentation`."""
    overlap, distance = dice(x, reference), hd95(x, reference, spacing)
    a, b = _masks(x, reference)
    total = int(a.sum() + b.sum())
    return Segmentation(
        dice=float(overlap.nanmean()),
        aggregate=2 * int((a & b).sum()) / total if total else math.nan,
        hd95=float(distance.nanmean()),
        n=len(a),
        undefined_dice=int(overlap.isnan().sum()),
        undefined_hd95=int(distance.isnan().sum()),
    )


def _masks(x: Any, reference: Any) -> tuple[Tensor, Tensor]:
    found = []
    for name, given in (("x", x), ("reference", reference)):
        mask = torch.as_tensor(given).cpu()
        if mask.ndim not in (3, 4) or mask.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be (cases, height, width) or (cases, d, h, w)")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{name} must be a mask of 0 and 1; threshold it, or take one label at a time")
        found.append(mask.bool())
    if found[0].shape != found[1].shape:
        raise ValueError(f"x has shape {tuple(found[0].shape)} and reference {tuple(found[1].shape)}; they must be equal")
    return found[0], found[1]


def _surface(mask: Tensor) -> Tensor:
    """Pixels of the mask that lose a face neighbour: mask minus its erosion by a cross."""
    padded = F.pad(mask, [1, 1] * (mask.ndim - 1))
    inside = mask.clone()
    middle = [slice(None)] + [slice(1, -1)] * (mask.ndim - 1)
    for axis in range(1, mask.ndim):
        for end in (slice(0, -2), slice(2, None)):
            inside &= padded[(*middle[:axis], end, *middle[axis + 1 :])]
    return mask & ~inside


def _nearest(p: Tensor, q: Tensor) -> Tensor:
    return torch.cat([distances(rows, q).amin(1) for rows in p.split(ROWS)])
