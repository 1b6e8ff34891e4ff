"""What a latent space is: an encoder with a law, a decoder, and a shift and a scale for every channel.

    ℓ ~ N(μ(x), s(x)²)        the raw latent of a picture x in [−1, 1], (B, d, H/f, W/f); s = 0 where the encoder is no law
    z = (ℓ − shift) · scale   what a denoiser sees: mean 0 and standard deviation 1 in every channel, over the data
    x ≈ decode(z)             the decoder at ℓ = shift + z/scale

shift and scale are measured once, by `fit_stats`, and are kept with the weights: a codec without them refuses to encode,
where a scale of 1 would silently stir the data on other levels. (High-Resolution Image Synthesis with Latent Diffusion
Models, 2022, has one scale from the first batch; one for each channel, over the data: Analyzing and Improving the Training
Dynamics of Diffusion Models, 2024.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

SLACK = 1e-3  # by which pictures may leave [−1, 1]: resizing and half precision do that much
HALF = (torch.float16, torch.bfloat16)
Self = TypeVar("Self", bound="Codec")


class Codec(nn.Module):
    """The base of all codecs: a subclass has a `kind` and gives `posterior` and `reconstruct`, raw latents both.

    pixels, channels: of pictures and of latents;   factor: f, by which sides shrink.
    options: what the constructor needs to build this codec again, JSON-able.
    Pictures have values in `range`; None: any.
    """

    kind = ""
    shift: Tensor
    scale: Tensor

    def __init__(self, pixels: int, channels: int, factor: int, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.pixels, self.channels, self.factor, self.options = pixels, channels, factor, dict(options or {})
        self.range: tuple[float, float] | None = (-1.0, 1.0)
        self.frozen = False
        self.register_buffer("shift", torch.full((channels,), torch.nan))
        self.register_buffer("scale", torch.full((channels,), torch.nan))

    # -- what a subclass defines -------------------------------------------------------------
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(μ, s) of the raw latents of pictures, both (B, channels, H/f, W/f)."""
        raise NotImplementedError

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Pictures (B, pixels, H, W) of raw latents."""
        raise NotImplementedError

    # -- what follows ------------------------------------------------------------------------
    def encode(self, x: Tensor, sample: bool = True, noise: Tensor | None = None) -> Tensor:
        """z of pictures (B, pixels, H, W).

        sample: draw ℓ = μ + s ζ (ζ is `noise`, else new); False takes ℓ = μ.

        Raises ValueError for values outside [−1, 1], sides that f does not divide, another number of channels, a codec
        whose shift and scale were not measured; TypeError for integers.
        """
        self.check(x)
        self._measured()
        mean, std = self.posterior(x)
        return self.normalise(draw(mean, std, noise) if sample else mean)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents, with gradients where they are on. Half precision that overflows is decoded anew in float32.

        Raises ValueError for another number of channels, and if the pictures are not finite in float32 either.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"z has shape {tuple(z.shape)}; this codec's latents are (B, {self.channels}, h, w)")
        self._measured()
        raw = self.raw(z)
        x = self.reconstruct(raw)
        if not bool(torch.isfinite(x).all()) and x.dtype in HALF and bool(torch.isfinite(z).all()):
            x = copy.deepcopy(self).float().reconstruct(self.raw(z.float()))
        if not bool(torch.isfinite(x).all()):
            where = "the latents themselves are not" if not bool(torch.isfinite(z).all()) else f"dtype {z.dtype}"
            raise ValueError(f"the decoded pictures are not finite ({where}); sample with more steps or a lower guidance scale")
        return x

    def normalise(self, raw: Tensor) -> Tensor:
        """z = (ℓ − shift) · scale."""
        return (raw - _wide(self.shift, raw)) * _wide(self.scale, raw)

    def raw(self, z: Tensor) -> Tensor:
        """ℓ = shift + z/scale."""
        return z / _wide(self.scale, z) + _wide(self.shift, z)

    @torch.no_grad()
    def fit_stats(self: Self, batches: Iterable[Tensor], std: float = 1.0) -> Self:
        """Measures shift and scale, so that z has mean 0 and standard deviation `std` in every channel.

            shift = mean of ℓ,     scale = std/√(Var μ + mean s²)

        batches: pictures (B, pixels, H, W), as many as one likes. The moments are exact and in float64; of the law's
        own spread the mean variance is taken, so that nothing is drawn.

        Raises ValueError without pictures, and for a channel that is the same everywhere.
        """
        if not 0 < std < float("inf"):
            raise ValueError(f"std={std} must be a finite number > 0")
        count, first, second = (
            0,
            torch.zeros(self.channels, dtype=torch.float64),
            torch.zeros(self.channels, dtype=torch.float64),
        )
        for x in batches:
            self.check(x)
            mean, spread = (v.double().cpu() for v in self.posterior(x.to(self.shift.device)))
            count += mean.numel() // self.channels
            first += mean.sum((0, 2, 3))
            second += (mean**2 + spread**2).sum((0, 2, 3))
        if not count:
            raise ValueError("batches is empty; give pictures to measure the latents of")
        mean = first / count
        spread = (second / count - mean**2).clamp_min(0).sqrt()
        flat = (spread <= 1e-6 * (1 + mean.abs())).nonzero().flatten().tolist()
        if flat:
            raise ValueError(f"the latent channels {flat} are the same everywhere; train the autoencoder longer")
        self.shift.copy_(mean)
        self.scale.copy_(std / spread)
        return self

    def freeze(self: Self) -> Self:
        """In evaluation mode for good, without gradients of its weights: `train()` of a model around it changes nothing."""
        self.eval().requires_grad_(False)
        self.frozen = True
        return self

    def train(self: Self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def check(self, x: Tensor) -> None:
        """ValueError or TypeError unless x are pictures that this codec can encode."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"x is {getattr(x, 'dtype', type(x).__name__)}; pictures are floats in [−1, 1], for bytes x/127.5 − 1"
            )
        if x.ndim != 4 or x.shape[1] != self.pixels:
            raise ValueError(f"x has shape {tuple(x.shape)}; this codec's pictures are (B, {self.pixels}, H, W)")
        rest = [side % self.factor for side in x.shape[2:]]
        if any(rest):
            pad = tuple(side + (-side) % self.factor for side in x.shape[2:])
            cut = tuple(side - side % self.factor for side in x.shape[2:])
            raise ValueError(
                f"x has sides {tuple(x.shape[2:])}, which must be multiples of f = {self.factor}: pad to {pad} or crop to {cut}"
            )
        if self.range is not None:
            low, high = float(x.min()), float(x.max())
            if not (self.range[0] - SLACK <= low and high <= self.range[1] + SLACK):
                raise ValueError(
                    f"x has values from {low:.4g} to {high:.4g}; pictures lie in [{self.range[0]:g}, {self.range[1]:g}]: "
                    "for [0, 1] pass 2x − 1, for bytes x/127.5 − 1"
                )

    def _measured(self) -> None:
        if bool(torch.isnan(self.scale).any()):
            raise ValueError(f"this {type(self).__name__} codec has no latent scale: call fit_stats(batches of pictures) first")

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}, channels={self.channels}, factor={self.factor}"


class Identity(Codec):
    """Pixels as latents: f = 1, shift 0, scale 1, and exact both ways. Any range of values."""

    kind = "identity"

    def __init__(self, pixels: int = 3) -> None:
        super().__init__(pixels, pixels, 1, {"pixels": pixels})
        self.range = None
        self.shift.zero_()
        self.scale.fill_(1.0)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    def reconstruct(self, raw: Tensor) -> Tensor:
        return raw


def draw(mean: Tensor, std: Tensor, noise: Tensor | None = None) -> Tensor:
    """ℓ = μ + s ζ."""
    return mean + std * (torch.randn_like(mean) if noise is None else noise.to(mean))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(1, -1, 1, 1)
