"""`unstir edit --method cow`: one region of a picture stays as it is, and what is around it grows to suit it and the class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import need
from ..data.images import PICTURES, decode
from ..steer import one_way, one_way_plan

STRENGTH, NFE = 0.7, 20  # as published: t_2 of the levels (0.5, 0.7, 0.4)


def hole(mask: Path, shape: tuple[int, ...]) -> Tensor:
    """(1, H, W), true where pixels are drawn anew: white in the picture `mask`, which is cut and scaled as an IMAGE is."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"--mask: the model makes {shape}, no square pictures")
    if mask.suffix.lower() not in PICTURES or not mask.is_file():
        raise ValueError(f"--mask {str(mask)!r} is missing or no picture ({', '.join(PICTURES)})")
    try:
        pixels = decode(lambda: need("PIL.Image").open(mask), shape[1], 1)
    except OSError as error:  # what Pillow raises for files that are damaged or no pictures
        raise ValueError(f"--mask {str(mask)!r} cannot be read: {error}") from None
    white = torch.from_numpy(pixels.copy()) > 127
    if bool(white.all()) or not bool(white.any()):
        what = "white everywhere: nothing stays" if bool(white.all()) else "black everywhere: nothing is drawn anew"
        raise ValueError(f"--mask is {what}")
    return white


def region(
    model: Any, down: Any, x0: Tensor, white: Tensor, cond: dict[str, Any], strength: float, nfe: int, seed: int,
    options: dict[str, Any],
) -> tuple[Tensor, tuple[int, int]]:  # fmt: skip
    """(edited pictures, network calls up and down); strength is t_2, to which the paper's t_1 and t_f are in proportion."""
    if not 0.05 <= strength <= 1:
        raise ValueError(f"strength={strength} must lie in [0.05, 1], the share of the way up into noise")
    known = ("cycles", "solver", "fill")
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"--set {unknown[0]}: cow has no option {unknown[0]!r}; it has {', '.join(known)}")
    levels = (strength * 5 / 7, strength, strength * 4 / 7)
    if not 0 < int(levels[0] * nfe + 1e-9) < int(strength * nfe + 1e-9):
        raise ValueError(f"strength={strength} of nfe={nfe} levels leaves none to cycle between; take more of one or the other")
    fill = options.get("fill", 0.0)
    if isinstance(fill, bool) or not isinstance(fill, int | float) or not math.isfinite(fill):
        raise ValueError(f"--set fill={fill} must be a number, the value around the region at the start")
    more = {name: value for name, value in options.items() if name != "fill"}
    table = one_way_plan(model.process, nfe, levels, **more)
    keep = ~white.to(x0.device)
    edited = one_way(model, x0, keep, into=down, nfe=nfe, levels=levels, seed=seed, **options, **cond)
    return edited, (len(table.times) - 1 + table.start, len(table.plan))


def kept(x0: Tensor, white: Tensor, span: tuple[float, float]) -> Tensor:
    """The pictures with grey where they are drawn anew."""
    return torch.where(white.to(x0.device), (span[0] + span[1]) / 2, x0)


def errors(edited: Tensor, x0: Tensor, white: Tensor) -> dict[str, float]:
    """RMS of the change where the picture was to stay, and elsewhere."""
    square = (edited - x0).double().square().mean(1, keepdim=True)
    where = white.to(x0.device).expand_as(square)
    return {
        "kept region, RMS error": float(square[~where].mean().sqrt()),
        "drawn anew, RMS change": float(square[where].mean().sqrt()),
    }
