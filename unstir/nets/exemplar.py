"""A denoising network that imitates one given picture, the exemplar: as a whole, and detail by detail.

The two paths of exemplar-guided Brownian bridges (EBDM, 2024), on `diffusers`' UNet2DConditionModel:

    whole     c = MLP(g(e)), g a vision transformer's [CLS] state: tokens that every block attends to after itself
    details   F = R(e): a second network of the same shape runs once on the exemplar e, and its features f_e before
              each self-attention are kept; there the denoiser's own features f, h w × channels, become

                  softmax(Q Kᵀ/√d) V,     Q = f W_q,   K = [f; f_e] W_k,   V = [f; f_e] W_v

A query sees h w + h_e w_e keys. Without an exemplar [f; f_e] is f, plain self-attention, and c = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Exemplar(NamedTuple):
    """What a denoiser reads of B exemplars, or of one for all: the result of `ExemplarUNet.prepare`.

    tokens: c, (B, n, width);   features: {name of an attention: f_e, (B, h_e w_e, its channels)}.
    """

    tokens: Tensor
    features: Mapping[str, Tensor]


class _Written(Exception):
    """The last feature of an exemplar is kept; what would follow is never read."""


class ExemplarAttention:
    """The processor of one attention in both networks: writes f into `write`, or reads f_e from `read`, under its name.

    Cross-attention (to the tokens c) is left as it is.
    """

    def __init__(self, name: str, of: int) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.name, self.of, self.plain = name, of, AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        read: Mapping[str, Tensor] | None = None,
        write: dict[str, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is None:
            if write is not None:
                write[self.name] = hidden_states
                if len(write) == self.of:
                    raise _Written
            if read is not None:
                kept = read[self.name].to(hidden_states).expand(len(hidden_states), -1, -1)
                encoder_hidden_states = torch.cat([hidden_states, kept], 1)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class GlobalEncoder(nn.Module):
    """g: the [CLS] state of a small vision transformer on patches of the exemplar, resized to size × size.

    (B, channels, H, W) → (B, width). For pictures of the world, a frozen pretrained one sees more: `ExemplarUNet(encoder=…)`.
    """

    def __init__(self, channels: int = 3, width: int = 64, size: int = 32, patch: int = 8, layers: int = 2) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"size={size} must be a multiple of patch={patch}")
        self.size, self.width = size, width
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        e = F.interpolate(e, (self.size, self.size), mode="bilinear", antialias=True) if e.shape[-2:] != (self.size,) * 2 else e
        h = self.patches(e).flatten(2).mT
        h = torch.cat([self.first.expand(len(h), -1, -1), h], 1) + self.place
        for block in self.blocks:
            h = block(h)
        return self.norm(h[:, 0])


class ExemplarUNet(nn.Module):
    """network(x, time, exemplar) for x (B, channels, H, W); exemplar: pictures (B or 1, channels, H', W'), what `prepare`
    made of them, or None.

    widths: channels of the levels, multiples of 8; attention: which levels attend (the first is the finest);
    layers: residual blocks a level; tokens, width: n and size of c; heads: of the attentions.
    patch: both networks see patch × patch pixels as one, with that many times the channels: a latent without an autoencoder.
    encoder: g, any module (B, channels, H', W') → (B, encoder_width) instead of `GlobalEncoder`; freeze it if it is pretrained.
    Sides of x and of exemplars are multiples of patch · 2^(levels − 1).

    Raises ValueError for exemplars of another number of channels, of another batch size or of unfit sides.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 64),
        attention: Sequence[bool] | None = None,
        layers: int = 1,
        *,
        patch: int = 1,
        tokens: int = 4,
        width: int = 64,
        heads: int = 4,
        encoder: nn.Module | None = None,
        encoder_width: int = 64,
    ) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DConditionModel  # type: ignore[attr-defined]
        except ImportError:
            raise ImportError('this network is built on diffusers: pip install "unstir[diffusers]"') from None
        attends = [i > 0 for i in range(len(widths))] if attention is None else list(attention)
        if len(attends) != len(widths) or len(widths) < 2:
            raise ValueError(
                f"attention={attention!r} needs an entry for each level, widths={list(widths)} at least two levels"
            )
        if any(w % 8 for w in widths):
            raise ValueError(f"widths={list(widths)} must be multiples of 8")
        self.channels, self.patch, self.tokens, self.width = channels, patch, tokens, width
        self.step = patch * 2 ** (len(widths) - 1)

        def unet() -> Any:
            return UNet2DConditionModel(
                in_channels=channels * patch**2,
                out_channels=channels * patch**2,
                block_out_channels=tuple(widths),
                layers_per_block=layers,
                down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                norm_num_groups=8,
                cross_attention_dim=width,
                attention_head_dim=heads,  # which this class takes for the number of heads
            )

        self.unet, self.reader = unet(), unet()
        for net in (self.unet, self.reader):
            names = list(net.attn_processors)
            count = sum(".attn1." in name for name in names)
            net.set_attn_processor({name: ExemplarAttention(name, count) for name in names})
        self.encoder = encoder or GlobalEncoder(channels, encoder_width)
        self.project = nn.Sequential(nn.Linear(encoder_width, width), nn.SiLU(), nn.Linear(width, tokens * width))
        self._forget_unread()

    def _forget_unread(self) -> None:
        """No gradient for those weights of R that come after the last feature, which nobody reads."""
        with torch.enable_grad():
            c = torch.zeros(1, self.tokens, self.width)
            kept = self._read(torch.zeros(1, self.channels, 2 * self.step, 2 * self.step), c)
            total = torch.stack([f.sum() for f in kept.values()]).sum()
            used = torch.autograd.grad(total, list(self.reader.parameters()), allow_unused=True)
        for weight, slope in zip(self.reader.parameters(), used, strict=True):
            weight.requires_grad_(slope is not None)

    def _read(self, e: Tensor, c: Tensor) -> dict[str, Tensor]:
        """F = R(e), at time 0."""
        kept: dict[str, Tensor] = {}
        with suppress(_Written):
            self.reader(F.pixel_unshuffle(e, self.patch), 0, c, cross_attention_kwargs={"write": kept})
        return kept

    def prepare(self, e: Tensor) -> Exemplar:
        """Both paths of the exemplars e, once for all steps of a run."""
        if e.ndim != 4 or e.shape[1] != self.channels:
            raise ValueError(f"exemplar has shape {tuple(e.shape)}; it must be (B, {self.channels}, H, W)")
        if any(side % self.step for side in e.shape[2:]):
            raise ValueError(f"exemplar has sides {tuple(e.shape[2:])}; they must be multiples of {self.step}")
        c = self.project(self.encoder(e)).reshape(len(e), self.tokens, self.width)
        return Exemplar(c, self._read(e, c))

    def forward(self, x: Tensor, time: Tensor, exemplar: Tensor | Exemplar | None = None) -> Tensor:
        if isinstance(exemplar, Tensor):
            exemplar = self.prepare(exemplar)
        seen = F.pixel_unshuffle(x, self.patch)
        if exemplar is None:
            c, kept = x.new_zeros(len(x), self.tokens, self.width), None
        else:
            c, kept = exemplar
            if len(c) not in (1, len(x)):
                raise ValueError(f"exemplar is a batch of {len(c)} for a state of {len(x)}; give one for all, or one for each")
            c = c.to(x).expand(len(x), -1, -1)
        out: Any = self.unet(seen, time, c, cross_attention_kwargs={"read": kept}, return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch)
