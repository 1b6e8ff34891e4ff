"""Averages of the weights: a copy of the model that follows it slowly."""

from __future__ import annotations

import torch
from torch import nn

from .parallel import local


def fixed(decay: float, updates: int) -> float:
    """min(decay, (1 + n)/(10 + n)) after n updates: a fixed decay that starts by following quickly."""
    return min(decay, (1 + updates) / (10 + updates))


def half_life(images: int, batch: int, half: float, ramp: float = 0.05) -> float:
    """β = 0.5^{B/min(H, ramp · n)}: half-life H in images, ramped up with the image counter n.

    (Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, and its predecessors.)
    """
    length = min(half, ramp * images)
    return 0.5 ** (batch / length) if length > 0 else 0.0


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · model, for floating-point parameters and buffers; others are copied.

    Of weights that are cut in parts (fsdp) every process averages its own part.
    """
    pairs = [
        (local(a.detach()), local(m.detach()))
        for mine, theirs in ((average.parameters(), model.parameters()), (average.buffers(), model.buffers()))
        for a, m in zip(mine, theirs, strict=True)
    ]
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    if floats:
        torch._foreach_lerp_([a for a, _ in floats], [m for _, m in floats], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)
