"""An untrained generator of one hyperspectral cube: few maps of the ground, each with a spectrum of its own.

A scene of few materials is a matrix of low rank (pixels × bands). Both of its factors are made by networks from fixed
noise, so that what is learned from one degraded cube is smooth in space before it is noisy:

    x = 2 Σ_r U_r(z_U) v_r(z_v) − 1,     r = 1 … R,     x (1, S, H, W) in about [−1, 1]

U_r (H, W) are the R outputs of `spatial`, a convolutional network (`Hourglass`), of z_U (1, 1, H, W); v_r (S) the R outputs
of `spectral`, a multilayer perceptron, of z_v (S). Both inputs are uniform on [0, 1], drawn once, and never learned.
(DDS2M: Self-Supervised Denoising Diffusion Spatio-Spectral Model for Hyperspectral Image Restoration, 2023; there every
r has networks of its own, here both networks have R outputs, which is some R times faster.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Hourglass(nn.Module):
    """(1, inputs, H, W) → (1, outputs, H, W), down and up again, one entry of `channels` a scale, any H and W.

        down   s_i = block₁(h),   h ← block_k(½ h)         ½: mean of 2 × 2, of what is left at an odd border
        up     h ← block_k([h at the size of s_i, bilinear; s_i])
        end    1 × 1 convolution, without a bound on its values

    block_k: convolution k × k with reflected borders, normalisation over the picture (batch normalisation of a batch of
    one, without memory), LeakyReLU. skips: channels of the s_i; 0 leaves one out, and with it what is as fine as that scale.
    """

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        channels: Sequence[int] = (24, 24, 24),
        kernels: Sequence[int] | int = 3,
        skips: Sequence[int] | int = 4,
    ) -> None:
        super().__init__()
        scales = len(channels)
        kernels = [kernels] * scales if isinstance(kernels, int) else list(kernels)
        skips = [skips] * scales if isinstance(skips, int) else list(skips)
        if scales < 1 or len(kernels) != scales or len(skips) != scales:
            raise ValueError(f"kernels={kernels} and skips={skips} need one entry for each of the {scales} channels")
        if any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernels={kernels} must be odd")
        before = [inputs, *channels[:-1]]
        self.skips = nn.ModuleList(_block(c, s, 1) if s else nn.Identity() for c, s in zip(before, skips, strict=True))
        self.down = nn.ModuleList(_block(c, d, k) for c, d, k in zip(before, channels, kernels, strict=True))
        above = [channels[0], *channels[:-1]]
        self.up = nn.ModuleList(_block(c + s, a, k) for c, s, a, k in zip(channels, skips, above, kernels, strict=True))
        self.end = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, z: Tensor) -> Tensor:
        kept, h = [], z
        for skip, down in zip(self.skips, self.down, strict=True):
            kept.append((h.shape[-2:], None if isinstance(skip, nn.Identity) else skip(h)))
            h = down(F.avg_pool2d(h, 2, ceil_mode=True))
        for (size, side), up in zip(reversed(kept), reversed(self.up), strict=True):
            h = F.interpolate(h, size, mode="bilinear")
            h = up(h if side is None else torch.cat([h, side], 1))
        return self.end(h)


def _block(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect" if kernel > 1 else "zeros", bias=False),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(0.2),
    )


class LowRank(nn.Module):
    """network() → x (1, S, H, W), see the module. shape: (S, H, W).

    spatial: (1, 1, H, W) → (1, R, H, W).   spectral: (S) → (S R).   seed: of the two fixed inputs.

    Raises ValueError for a rank that no S × H W matrix has, and for networks with outputs of another size.
    """

    place: Tensor
    wave: Tensor

    def __init__(self, spatial: nn.Module, spectral: nn.Module, rank: int, shape: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        bands, high, wide = check_rank(rank, shape)
        self.spatial, self.spectral, self.rank, self.shape = spatial, spectral, rank, (bands, high, wide)
        dice = torch.Generator().manual_seed(seed)
        self.register_buffer("place", torch.rand(1, 1, high, wide, generator=dice))  # z_U
        self.register_buffer("wave", torch.rand(bands, generator=dice))  # z_v
        with torch.no_grad():
            for name, made, size in (
                ("spatial", spatial(self.place), (1, rank, high, wide)),
                ("spectral", spectral(self.wave), (bands * rank,)),
            ):
                if tuple(made.shape) != size:
                    raise ValueError(f"{name} returned shape {tuple(made.shape)}; rank={rank}, shape={self.shape} need {size}")

    def factors(self) -> tuple[Tensor, Tensor]:
        """(U (R, H, W), v (S, R)), the maps and the spectra; their scale is shared between them arbitrarily."""
        return self.spatial(self.place)[0], self.spectral(self.wave).reshape(self.shape[0], self.rank)

    def forward(self) -> Tensor:
        maps, spectra = self.factors()
        return 2 * torch.einsum("rhw,sr->shw", maps, spectra)[None] - 1


def check_rank(rank: int, shape: Sequence[int]) -> tuple[int, int, int]:
    """(S, H, W), if a cube of this shape can have the rank."""
    if len(shape) != 3 or any(int(n) < 1 for n in shape):
        raise ValueError(f"shape={tuple(shape)} must be (bands, height, width), all at least 1")
    bands, high, wide = (int(n) for n in shape)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(bands, high * wide):
        raise ValueError(
            f"rank={rank!r} must be an integer from 1 to {min(bands, high * wide)}, the most that "
            f"{bands} bands of {high} × {wide} pixels can have"
        )
    return bands, high, wide


def low_rank(
    shape: Sequence[int],
    rank: int,
    width: int = 24,
    scales: int = 3,
    hidden: Sequence[int] = (128, 256, 256, 128),
    seed: int = 0,
) -> LowRank:
    """The generator of cubes (S, H, W) with new networks of the seed; small pictures get fewer scales than `scales`.

    width: channels of the hourglass, whose two finest scales have no side branch, as published, unless there is no other.
    hidden: of the perceptron, S → hidden → S R with ReLU6 first and ReLU after.
    """
    bands, high, wide = check_rank(rank, shape)
    if scales < 1 or width < 1:
        raise ValueError(f"scales={scales} and width={width} must be at least 1")
    if min(high, wide) < 4:
        raise ValueError(f"shape={tuple(shape)}: pictures need at least 4 × 4 pixels")
    scales = min(scales, min(high, wide).bit_length() - 2)  # 2 pixels at the coarsest have something to reflect
    skips = [4 if i >= 2 or i == scales - 1 else 0 for i in range(scales)]
    sizes, layers = [bands, *hidden, bands * rank], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spatial = Hourglass(1, rank, [width] * scales, 3, skips)
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(a, b), nn.ReLU6() if i == 0 else nn.ReLU()]
    return LowRank(spatial, nn.Sequential(*layers[:-1]), rank, (bands, high, wide), seed)  # nothing bounds the spectra
