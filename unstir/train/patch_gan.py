"""The adversarial part of autoencoder training: a discriminator of patches, its hinge loss, the weight that balances it.

    D_ψ        n 4×4 convolutions of stride 2 and two of stride 1, 64 · min(2^k, 8) channels, BatchNorm, LeakyReLU 0.2, weights
               N(0, 0.02²): a map of logits, one for each overlapping patch (70 × 70 pixels for n = 3)
    its loss   ½ [mean relu(1 − D(x)) + mean relu(1 + D(x̂))]
    for x̂      −mean D(x̂), times   λ = w · clamp(‖∇_W L_nll‖ / (‖∇_W L_g‖ + 10⁻⁴), 0, 10⁴),

W the decoder's last layer: both losses pull at it with the ratio w, whatever their units.
(Image-to-Image Translation with Conditional Adversarial Networks, 2017; Taming Transformers for High-Resolution Image
Synthesis, 2021.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON, LIMIT = 1e-4, 1e4


class PatchDiscriminator(nn.Module):
    """D_ψ: pictures (B, pixels, H, W) → logits (B, 1, H/2ⁿ − 2, W/2ⁿ − 2), n = layers.

    Raises ValueError for pictures smaller than 3 · 2ⁿ.
    """

    def __init__(self, pixels: int = 3, width: int = 64, layers: int = 3, seed: int = 0) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1")
        self.smallest = 3 * 2**layers
        widths = [width * min(2**k, 8) for k in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(pixels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k in range(1, layers + 1):
            stride = 2 if k < layers else 1
            parts += [
                nn.Conv2d(widths[k - 1], widths[k], 4, stride, 1, bias=False),
                nn.BatchNorm2d(widths[k]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        generator = torch.Generator().manual_seed(seed)
        for part in self.layers:
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
                nn.init.normal_(part.weight, 0.0 if isinstance(part, nn.Conv2d) else 1.0, 0.02, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"x has sides {tuple(x.shape[2:])}; this discriminator needs at least {self.smallest} pixels: "
                "take fewer layers (gan_layers), or train without it (gan_weight=0)"
            )
        return self.layers(x)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits of pictures and of reconstructions."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(nll: Tensor, adversarial: Tensor, layer: Tensor, weight: float = 0.5) -> Tensor:
    """λ, a detached scalar; `layer` is W, of which both losses must be functions."""
    (by_nll,) = torch.autograd.grad(nll, layer, retain_graph=True)
    (by_gan,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
    return weight * (by_nll.norm() / (by_gan.norm() + EPSILON)).clamp(0, LIMIT).detach()
