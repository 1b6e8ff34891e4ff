"""Learned weights: every part of a loss is divided by what it is expected to be.

    L = 1/B Σ_i Σ_k [ ℓ_k,i e^{−s_k(λ_i)} + s_k(λ_i) ],       ∂L/∂s_k = 0  ⇔  e^{s_k(λ)} = E[ℓ_k at λ]

so at the optimum every part, at every level, has the expectation 1: no part and no level dominates the gradient. s is
learned with the network, saved in its checkpoints, and not needed at sampling.

    "levels"   s_k(λ) = W_k · √(2/F) cos(2π f c + 2π φ),  c = −λ/4 (¼ log σ̂),  f ~ N(0, 1), φ ~ U(0, 1), F = 128
    "tasks"    s_k a number

(Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, 2018; Analyzing and Improving the
Training Dynamics of Diffusion Models, 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KINDS = ("none", "levels", "tasks")
FEATURES = 128


class Uncertainty(nn.Module):
    """s_k(λ) for every part k of a loss, 0 at first. names: the parts; kind: "levels" or "tasks"."""

    frequency: Tensor
    phase: Tensor

    def __init__(self, names: Sequence[str], kind: str = "levels") -> None:
        super().__init__()
        if kind not in KINDS[1:]:
            raise ValueError(f"uncertainty={kind!r} is unknown; one of {', '.join(KINDS)}")
        self.names, self.kind = tuple(names), kind
        features = FEATURES if kind == "levels" else 1
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", 2 * math.pi * torch.randn(features, generator=generator))
        self.register_buffer("phase", 2 * math.pi * torch.rand(features, generator=generator))
        self.weight = nn.Parameter(torch.zeros(len(self.names), features))

    def forward(self, logsnr: Tensor) -> dict[str, Tensor]:
        """{part: s (B,)} at λ (B,), in float32."""
        if self.kind == "tasks":
            s = self.weight.expand(-1, len(logsnr))
        else:
            c = (-0.25 * logsnr).to(self.weight.device, torch.float32)
            waves = math.sqrt(2 / FEATURES) * torch.cos(c[:, None] * self.frequency + self.phase)
            s = self.weight @ waves.T
        return dict(zip(self.names, s, strict=True))
