"""A diffusion transformer, and two that route by noise level (`routing`).

    h = patches of x, embedded, + place;      e = MLP(cos ω t, sin ω t);      c = e + class
    every block, (γ, shift, scale) twice from Linear(silu c), all zero at first ("adaLN-Zero"):
        h ← h + γ_a Attention((1 + scale_a) LN h + shift_a)
        h ← h + γ_f MLP((1 + scale_f) LN h + shift_f)
    raw = Linear((1 + scale) LN h + shift), as patches

(Scalable Diffusion Models with Transformers, 2023.) The weights have that paper's published names and shapes, so a state
dict of its authors' loads with strict=False, but for the fixed `pos_embed`; and a trained `DiT` becomes a `SwitchDiT` the
same way: only its router and its masks are missing, and they start as "no mask".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .routing import ChannelRouter, MixtureMask, Routes, TimeRouter, routed


class _TimeEmbedder(nn.Module):
    """MLP(cos ω_i t, sin ω_i t), ω_i = 10⁻⁴ⁱᐟⁿ for i = 0 … n − 1; (B,) → (B, width)."""

    omega: Tensor

    def __init__(self, width: int, waves: int) -> None:
        super().__init__()
        omega = torch.exp(-math.log(1e4) * torch.arange(waves // 2) / (waves // 2))
        self.register_buffer("omega", omega, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        phase = time[:, None] * self.omega
        return self.mlp(torch.cat([phase.cos(), phase.sin()], 1))


class _ClassEmbedder(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)  # the last row: no class

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _Attention(nn.Module):
    """Self-attention of all tokens, in heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class DiTBlock(nn.Module):
    """A block, (B, N, width) and c (B, width) → (B, N, width); the identity at first."""

    def __init__(self, width: int, heads: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width, ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gamma_a, shift_f, scale_f, gamma_f = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        h = h + gamma_a * self.attn(_modulate(h, shift_a, scale_a))
        return h + gamma_f * self.mlp(_modulate(h, shift_f, scale_f))


class _Final(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.linear(_modulate(h, *self.adaLN_modulation(c)[:, None].chunk(2, -1)))


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale) * F.layer_norm(h, h.shape[-1:], eps=1e-6) + shift


def places(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """(rows · columns, width): sines and cosines of a token's column, then of its row.

    Frequencies 10⁻⁴ʲ for j = 0, 4/width, 8/width, … below 1.
    """
    omega = 1e4 ** (-torch.arange(width // 4, device=like.device, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(
        torch.arange(rows, device=like.device), torch.arange(columns, device=like.device), indexing="ij"
    )
    phases = (p.flatten()[:, None] * omega for p in (column, row))
    return torch.cat([f(p) for p in phases for f in (torch.sin, torch.cos)], 1).to(like)


class DiT(nn.Module):
    """network(x, time, class_labels) for pictures (B, channels, H, W) whose sides are multiples of `patch`.

    channels, out: of the state and of the prediction (default: the same; less, where an anchor comes as further channels);
    classes: with K > 0, class_labels is (B,) in 0 … K, and K means "none", which is also what no labels mean;
    width, depth, heads, ratio: of the tokens, blocks, attention, and the width of an MLP in widths;
    waves: sines and cosines of `time` (B,), which is best given as 1000 t.

    Raises ValueError for options that do not divide one another, and for pictures of unfit sides.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        out: int | None = None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        classes: int = 0,
        waves: int = 256,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"width={width} must be a multiple of heads={heads} and of 4")
        if min(patch, depth) < 1 or waves < 2 or waves % 2:
            raise ValueError(f"patch={patch} and depth={depth} must be at least 1, waves={waves} even")
        out = channels if out is None else out
        self.config: dict[str, Any] = {
            **{"channels": channels, "out": out, "patch": patch, "width": width, "depth": depth},
            **{"heads": heads, "ratio": ratio, "classes": classes, "waves": waves},
        }
        self.patch, self.classes = patch, classes
        self.x_embedder, self.t_embedder = _Patches(channels, width, patch), _TimeEmbedder(width, waves)
        self.y_embedder = _ClassEmbedder(classes, width) if classes else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, ratio) for _ in range(depth))
        self.final_layer = _Final(width, out * patch**2)
        self.apply(_started)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Any:
        c = self.condition(self.t_embedder(time), class_labels)
        h = self.tokens(x)
        for block in self.blocks:
            h = block(h, c)
        return self.picture(h, c, x)

    def condition(self, e: Tensor, labels: Tensor | None) -> Tensor:
        """c = e + class."""
        if self.y_embedder is None:
            if labels is not None:
                raise ValueError("class_labels were given to a network without classes; leave them out")
            return e
        return e + self.y_embedder(e.new_full((len(e),), self.classes, dtype=torch.int64) if labels is None else labels)

    def tokens(self, x: Tensor) -> Tensor:
        """The patches of x, row by row, (B, N, width)."""
        if x.ndim != 4 or x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; (B, C, H, W) with sides a multiple of patch={self.patch} is needed"
            )
        h = self.x_embedder(x)
        return h.flatten(2).mT + places(h.shape[2], h.shape[3], h.shape[1], h)

    def picture(self, h: Tensor, c: Tensor, x: Tensor) -> Tensor:
        """The inverse of `tokens` for the prediction: (B, out, H, W)."""
        rows, columns = (side // self.patch for side in x.shape[2:])
        values = self.final_layer(h, c).reshape(len(h), rows, columns, self.patch, self.patch, -1)
        return values.permute(0, 5, 1, 3, 2, 4).reshape(len(h), -1, *x.shape[2:])


def _started(layer: nn.Module) -> None:
    """The published start: Xavier's uniform weights (a convolution's as of a linear map on patches) without biases, classes
    N(0, 0.02²), all modulations 0. But for the embedding of time, N(0, 0.02²) there, which is right for widths of about 1000
    only, and at 48 leaves time all but unheard: `nn.Linear`'s own, of variance 1/(3 inputs), 0.017² at the largest width.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    elif isinstance(layer, _TimeEmbedder):
        for linear in (layer.mlp[0], layer.mlp[2]):
            linear.reset_parameters()  # pyright: ignore[reportCallIssue]
    elif isinstance(layer, _ClassEmbedder):
        nn.init.normal_(layer.embedding_table.weight, std=0.02)
    elif isinstance(layer, DiTBlock | _Final):
        nn.init.zeros_(layer.adaLN_modulation[1].weight)  # pyright: ignore[reportArgumentType]


class SwitchDiT(DiT):
    """A DiT whose blocks see x ⊙ m_t, m_t from k of M small experts chosen by the noise level alone (`routing`).

    options: those of `DiT`; built after one of the same seed its other weights are the same, and so is its output.

    network(x, time, class_labels) → (raw, {"routing": (B, depth, experts), "routing_table": (256, depth, experts)}): the
    router's probabilities at the times of the batch, and at `router.levels`, without gradient (`train.routing` needs both).
    """

    def __init__(self, channels: int = 3, *, experts: int = 3, k: int = 2, **options: Any) -> None:
        super().__init__(channels, **options)
        self.config |= {"experts": experts, "k": k}
        width, depth = self.config["width"], self.config["depth"]
        self.router = TimeRouter(width, experts, k, depth)
        self.masks = nn.ModuleList(MixtureMask(width, experts) for _ in range(depth))

    def routes(self, time: Tensor) -> Routes:
        """Gates and probabilities (B, depth, experts) at times (B,), as the network is told them: known before any picture."""
        return self.router(self.t_embedder(time))

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Any:
        e = self.t_embedder(time)
        gates, probs = self.router(e)
        c = self.condition(e, class_labels)
        h = self.tokens(x)
        for block, mask, g in zip(self.blocks, self.masks, gates.unbind(1), strict=True):
            h = routed(block, mask(h, g), h, c)
        with torch.no_grad():
            table = self.routes(self.router.levels).probs
        return self.picture(h, c, x), {"routing": probs, "routing_table": table}


class ChannelRoutedDiT(DiT):
    """A DiT whose blocks see a fixed window of their channels that wanders with the noise level; no more weights than `DiT`.

    (Denoising Task Routing for Diffusion Models, 2024: "DTR".) share of the channels is on, alpha bends the window's way.
    """

    def __init__(self, channels: int = 3, *, share: float = 0.8, alpha: float = 4.0, **options: Any) -> None:
        super().__init__(channels, **options)
        self.config |= {"share": share, "alpha": alpha}
        self.router = ChannelRouter(self.config["width"], share, alpha)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        c = self.condition(self.t_embedder(time), class_labels)
        h, m = self.tokens(x), self.router(time)
        for block in self.blocks:
            h = routed(block, m, h, c)
        return self.picture(h, c, x)
