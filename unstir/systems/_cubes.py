"""Hyperspectral cubes (H, W, S): scaling to [0, 1], half their size, what can be wrong with them, and a real one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._extras import need
from ..steer import operators


class Scaling(NamedTuple):
    """Two numbers a band, (S,): what becomes 0 and what becomes 1."""

    low: np.ndarray
    high: np.ndarray

    def unit(self, cube: Any) -> np.ndarray:
        """The cube (H, W, S) with low → 0 and high → 1 in every band."""
        return (np.asarray(cube) - self.low) / (self.high - self.low)

    def back(self, cube: Any) -> np.ndarray:
        """The inverse of `unit`."""
        return self.low + np.asarray(cube) * (self.high - self.low)


def quantile_scaling(cube: Any, mask: Any = None, low: float = 0.001, high: float = 0.999, *, alike: bool = False) -> Scaling:
    """The scaling of every band by the quantiles of its observed values, which outliers and dead pixels do not move.

    Noise scales with it, to σ_y/(high − low). alike: all bands by the least and the largest of these quantiles, so that
    noise which was the same in all of them stays so.

    Raises ValueError for a band of one value, and for a mask that does not fit.
    """
    cube, seen = np.asarray(cube, dtype=np.float64), observed(cube, mask)
    if not 0 <= low < high <= 1:
        raise ValueError(f"low={low} and high={high} must be quantiles with 0 ≤ low < high ≤ 1")
    ends = [np.quantile(cube[..., s][seen[..., s]], (low, high)) for s in range(cube.shape[-1])]
    for s, (a, b) in enumerate(ends):
        if not b > a:
            raise ValueError(f"cube has the same value {a:g} everywhere in band {s}, which cannot be scaled; drop the band")
    lows, highs = np.transpose(ends)
    return Scaling(np.full_like(lows, lows.min()), np.full_like(highs, highs.max())) if alike else Scaling(lows, highs)


def scene(side: int = 48, bands: int = 16) -> np.ndarray:
    """Indian Pines (AVIRIS, 1992), the part from pixel (48, 48) on, every tenth band, between the quantiles 0.1 and 99.9 %.

    (side, side, bands) in [0, 1]. The cube, 145 × 145 × 200, comes with the package tensorly, under CC BY 3.0.
    """
    cube = np.asarray(need("tensorly.datasets").load_indian_pines().tensor, dtype=np.float64)
    part = cube[48 : 48 + side, 48 : 48 + side, : 10 * bands : 10]
    return quantile_scaling(part).unit(part).clip(0, 1)


def bicubic(size: int) -> Tensor:
    """(size/2, size): one side of a picture halved by antialiased bicubic interpolation, as `torch` does it."""
    eye = torch.eye(size, dtype=torch.float64)[None, None]
    return F.interpolate(eye, (size // 2, size), mode="bicubic", antialias=True)[0, 0]


def halve(high: int, wide: int) -> operators.Spectral:
    """The measurement of "sr2": (B, S, high, wide) → (B, S, high/2, wide/2)."""
    return operators.separable(bicubic(high), bicubic(wide))


def observed(cube: Any, mask: Any) -> np.ndarray:
    """The mask as (H, W, S) of True and False, every band with something of True. ValueError if it is no such mask."""
    shape = np.shape(cube)
    if len(shape) != 3:
        raise ValueError(f"cube has shape {shape}; it must be (H, W, S): height, width, bands")
    if mask is None:
        return np.ones(shape, dtype=bool)
    seen = np.asarray(mask)
    if seen.shape not in (shape, shape[:2]):
        raise ValueError(f"mask has shape {seen.shape}; it must be {shape}, or {shape[:2]} for all bands")
    if seen.dtype != bool and not np.isin(seen, (0, 1)).all():
        raise ValueError("mask has values other than 0 and 1; give True (1) where the cube was measured")
    seen = np.broadcast_to(seen.astype(bool) if seen.ndim == 3 else seen.astype(bool)[..., None], shape)
    blind = [s for s in range(shape[-1]) if not seen[..., s].any()]
    if blind:
        raise ValueError(f"mask has no measured entry in band {', '.join(map(str, blind))}; drop what was not measured at all")
    return seen


def check_values(values: np.ndarray, seen: np.ndarray, noise: float) -> None:
    """ValueError for values that a cube in [0, 1] with this noise does not have."""
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(f"cube has {broken} NaN or infinite values among its measured entries; give mask=np.isfinite(cube)")
    low, high = float(values[seen].min()), float(values[seen].max())
    reach = 0.25 + 6 * noise
    if low < -reach or high > 1 + reach:
        raise ValueError(
            f"cube has values from {low:.4g} to {high:.4g}, too far out for data in [0, 1] with noise={noise:g}; scale it: "
            "scaling = quantile_scaling(cube, mask), restore(scaling.unit(cube), …), scaling.back(…); and mask dead pixels"
        )


VIEWS = ("false colour", "498 nm", "774 nm", "1333 nm")


def views(cube: Tensor) -> Tensor:
    """Of `scene` (1, S, H, W): near infrared, red, green shown as red, green, blue; three single bands. (4, 3, H, W)."""
    return torch.stack([cube[0, bands] for bands in ([4, 2, 1], [1] * 3, [4] * 3, [10] * 3)]).cpu()
