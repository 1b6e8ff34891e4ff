"""Learned codecs around the autoencoders of `diffusers`: KL (a Gaussian law) and VQ (a codebook).

    KL    encoder → 1×1 → (μ, log s²), log s² clamped to [−30, 20];    x = decoder(1×1(ℓ))
    VQ    encoder → 1×1 → h, and ℓ = h;                                 x = decoder(1×1(e(ℓ))),   e(h) the nearest codeword

A diffusion model of a VQ codec works on h, before the codebook, which stands in the decoder.

Small ones are built from a few numbers; any trained one is taken as it is: KL(AutoencoderKL.from_pretrained(…)).
(High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Neural Discrete Representation Learning, 2017.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._extras import need
from .codec import Codec

WIDTHS = (16, 32, 48)  # channels of the levels of a small one: f = 4, 0.4 M weights
GROUPS = 8


class Pass(NamedTuple):
    """A picture through a codec in training. code: mean over the batch of the code's own loss, on one sample of it."""

    x: Tensor
    code: Tensor


class Autoencoder(Codec):
    """What KL and VQ share: a network of diffusers, its shift and scale, and the layer at which losses are compared.

    network: of diffusers, trained or not; its own scale (scaling_factor, shift_factor, latents_mean, latents_std of the
        config) is taken as ours. Without it a small one is built:
    pixels, channels: of pictures and latents;   widths: channels of the levels (multiples of 8), f = 2^(levels − 1);
    layers: residual blocks a level;   attention: in the middle;   seed: of the initial weights.
    """

    library = ""

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        pixels: int = 3,
        channels: int = 4,
        widths: Sequence[int] = WIDTHS,
        layers: int = 1,
        attention: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        own = network is None
        if own:
            if not widths or any(w < GROUPS or w % GROUPS for w in widths):
                raise ValueError(f"widths={list(widths)} must be multiples of {GROUPS}, one for each level")
            options = {
                "in_channels": pixels,
                "out_channels": pixels,
                "down_block_types": ["DownEncoderBlock2D"] * len(widths),
                "up_block_types": ["UpDecoderBlock2D"] * len(widths),
                "block_out_channels": list(widths),
                "layers_per_block": layers,
                "latent_channels": channels,
                "norm_num_groups": GROUPS,
                "mid_block_add_attention": attention,
                **options,
            }
            network = self._build(options, seed)
        elif type(network).__name__ != self.library:
            raise TypeError(f"network is {type(network).__name__}; {type(self).__name__} is a codec around {self.library}")
        assert network is not None
        config: Any = network.config
        depth = len(config["block_out_channels"])
        kept = {k: v for k, v in config.items() if not k.startswith("_")}
        super().__init__(config["in_channels"], self._latents(config), 2 ** (depth - 1), {"config": kept})
        self.network = network
        if not own:
            self._take_scale(config)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Autoencoder:
        """The untrained codec whose `options` these were."""
        codec = cls(cls._build(options["config"], 0))
        codec.shift.fill_(torch.nan)
        codec.scale.fill_(torch.nan)
        return codec

    @classmethod
    def _build(cls, options: Mapping[str, Any], seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return getattr(need("diffusers"), cls.library)(**options)

    @staticmethod
    def _latents(config: Any) -> int:
        return int(config["latent_channels"])

    def _take_scale(self, config: Any) -> None:
        """z = (ℓ − mean)/std · scaling_factor, as the pipelines of diffusers normalise latents."""
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self.shift.copy_(torch.as_tensor(config.get("shift_factor") or 0.0 if mean is None else mean))
        self.scale.copy_(float(config.get("scaling_factor") or 1.0) / torch.as_tensor(1.0 if std is None else std))

    @property
    def last_layer(self) -> nn.Parameter:
        """W, the weight of the decoder's last convolution: where gradients of the losses are compared."""
        return self.network.decoder.conv_out.weight  # type: ignore[union-attr,return-value]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Pass:
        """The reconstruction of pictures x, and the loss of their codes; noise: ζ of the law, else drawn."""
        raise NotImplementedError


class KL(Autoencoder):
    """The codec with a Gaussian law, nearly without a prior: its KL term has a weight of about 1e-6. See the module."""

    kind, library = "kl", "AutoencoderKL"

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        law = self.network.encode(x).latent_dist  # type: ignore[operator]
        return law.mean, law.std

    def reconstruct(self, raw: Tensor) -> Tensor:
        return self.network.decode(raw).sample  # type: ignore[operator]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Pass:
        mean, std = self.posterior(x)
        zeta = torch.randn_like(mean) if noise is None else noise.to(mean)
        return Pass(self.reconstruct(mean + std * zeta), kl(mean, std).mean())


class VQ(Autoencoder):
    """The codec with a codebook of `codes` words of `channels` numbers. See the module.

    Its loss has the weight β = 0.25 on the encoder's side, as published; the quantiser of diffusers puts it, by default and
    for old weights' sake, on the codebook's, and is not asked.
    """

    kind, library, beta = "vq", "VQModel", 0.25

    def __init__(self, network: nn.Module | None = None, *, codes: int = 256, **options: Any) -> None:
        if network is None:
            options["num_vq_embeddings"] = codes
        super().__init__(network, **options)

    @staticmethod
    def _latents(config: Any) -> int:
        return int(config["vq_embed_dim"] or config["latent_channels"])

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.network.encode(x).latents  # type: ignore[operator]
        return h, torch.zeros_like(h)

    def nearest(self, h: Tensor) -> Tensor:
        """e(h), the nearest codeword at every place."""
        words: Tensor = self.network.quantize.embedding.weight  # type: ignore[union-attr,assignment]
        flat = h.movedim(1, -1).reshape(-1, h.shape[1])
        return words[torch.cdist(flat, words).argmin(1)].reshape(len(h), *h.shape[2:], -1).movedim(-1, 1)

    def reconstruct(self, raw: Tensor) -> Tensor:
        return self._decoded(self.nearest(raw))

    def _decoded(self, quantised: Tensor) -> Tensor:
        return self.network.decode(quantised, force_not_quantize=True).sample  # type: ignore[operator]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Pass:
        h = self.posterior(x)[0]
        e = self.nearest(h)
        loss = (e - h.detach()).square().mean() + self.beta * (e.detach() - h).square().mean()
        return Pass(self._decoded(h + (e - h).detach()), loss)  # straight through: dx/dh = dx/de


def kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(μ, s²) ‖ N(0, 1)) = Σ ½ (μ² + s² − 1 − log s²), (B,)."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1)
