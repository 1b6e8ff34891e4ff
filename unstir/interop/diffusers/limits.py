"""Limits on the data prediction that a scheduler's config asks for; off unless it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Limit = Callable[[Tensor], Tensor]


def limit_of(config: Mapping[str, Any]) -> Limit | None:
    """Clipping to ±clip_sample_range, dynamic thresholding, or neither."""
    if config.get("thresholding"):
        ratio, most = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
        return lambda data: thresholded(data, ratio, most)
    if config.get("clip_sample"):
        size = float(config.get("clip_sample_range", 1.0))
        return lambda data: data.clamp(-size, size)
    return None


def thresholded(data: Tensor, ratio: float, most: float) -> Tensor:
    """D clipped to ±s and divided by s, s the `ratio` quantile of |D| of each sample, from 1 to `most` (Imagen, 2022)."""
    flat = data.reshape(len(data), -1)
    s = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp_min(1.0).clamp_max(most)
    return (flat.clamp(-s, s) / s).reshape(data.shape)
