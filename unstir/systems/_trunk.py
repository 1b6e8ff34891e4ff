"""The small network of many systems on 8 × 8 pictures: a multilayer perceptron of residual blocks that are told the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualMLP(nn.Module):
    """h = W x,   blocks times h ← h + B silu(A LayerNorm(h) + E e),   e = MLP(sin f t, cos f t, what else is told).

    Subclasses add heads. inputs: values of x.   frequencies: f.   told: values beside the time.   layers: of the MLP.
    """

    frequencies: Tensor

    def __init__(
        self, inputs: int, frequencies: Tensor, *, told: int = 0, width: int = 256, blocks: int = 3, layers: int = 2
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        sizes = [2 * len(frequencies) + told, *[width] * layers]
        pairs = [(nn.Linear(size, width), nn.SiLU()) for size in sizes[:-1]]
        self.embed = nn.Sequential(*(layer for pair in pairs for layer in pair))
        self.enter = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.a, self.b, self.e = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(3))

    def trunk(self, x: Tensor, time: Tensor, *told: Tensor) -> Tensor:
        """h (B, width) of x (B, *), time (B,) and what else is told, (B, n) each."""
        phase = time[:, None] * self.frequencies
        e = self.embed(torch.cat([phase.sin(), phase.cos(), *told], 1))
        h = self.enter(x.flatten(1))
        for norm, a, b, emb in zip(self.norms, self.a, self.b, self.e, strict=True):
            h = h + b(F.silu(a(norm(h)) + emb(e)))
        return h

    def close(self) -> None:
        """Every block begins as the identity."""
        for layer in self.b:
            zero(layer)


def zero(layer: Any) -> Any:
    """The same layer with weights and bias 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
