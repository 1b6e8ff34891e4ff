"""Routing by noise level: which part of a residual block a noisy picture sees depends on how noisy it is.

Every block F with a residual connection is given x ⊙ m in place of x, and what the mask took away comes back behind it:

    x ← F(x ⊙ m) + (1 − m) ⊙ x

F(r) = r + branches(r), so with closed branches the block is the identity whatever m: the mask changes what the branches
see, never the residual stream. Two masks, both the same for all tokens of a picture's time t:

    m_t = window of channels                 fixed and binary (`ChannelRouter`)
    m_t = 1 + Σ_j g_{t,j} (x A_j + b_j)      a learned mixture of M linear experts (`MixtureMask`, gates by `TimeRouter`)

    p_t = softmax(W silu(e_t) + b) ∈ Δ^M,    g_{t,j} = p_{t,j} if it is one of the k largest, else 0

e_t is the network's embedding of time. The k kept gates are not normalised anew.

(Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts, 2024; Denoising Task Routing for
Diffusion Models, 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 256  # quantiles of the training levels that a router knows


class Routes(NamedTuple):
    """Gates and probabilities of the same shape (…, blocks, M): k gates of every M are not 0; probabilities sum to 1."""

    gates: Tensor
    probs: Tensor


def window(u: Tensor, units: int, on: int, alpha: float = 4.0) -> Tensor:
    """(len(u), units) booleans: row i is true at `on` neighbours, from round(u_i^α (units − on)) on; u in [0, 1].

    Rows of similar u share units, and the 2·on − units in the middle (if that is positive) are on in every row.
    """
    first = torch.round(u.double().clamp(0, 1) ** alpha * (units - on))[:, None]
    place = torch.arange(units, device=u.device)
    return (place >= first) & (place < first + on)


def top(probs: Tensor, k: int) -> Tensor:
    """1 at the k largest of the last axis, 0 elsewhere."""
    return torch.zeros_like(probs).scatter(-1, probs.topk(k, -1).indices, 1.0)


class _Levels(nn.Module):
    """What routers share: `levels`, the times (as the network is told them) of `LEVELS` quantiles of the training levels.

    A fresh one has those of times uniform on (0, 1000); `train.routing.set_levels` sets those of a model.
    """

    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", 1000 * (torch.arange(LEVELS) + 0.5) / LEVELS)


class TimeRouter(_Levels):
    """Gates of all blocks of a network from its embedding of time: (…, dim) → `Routes` of (…, blocks, experts).

    Raises ValueError unless 1 ≤ k ≤ experts.
    """

    def __init__(self, dim: int, experts: int = 3, k: int = 2, blocks: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"k={k} of experts={experts} cannot be chosen; k must be 1 … {experts}")
        self.experts, self.k = experts, k
        self.logits = nn.Linear(dim, blocks * experts)
        bound = (6 / (dim + experts)) ** 0.5  # Xavier's, for each block alone
        nn.init.uniform_(self.logits.weight, -bound, bound)
        nn.init.zeros_(self.logits.bias)

    def forward(self, e: Tensor) -> Routes:
        probs = self.logits(F.silu(e)).unflatten(-1, (-1, self.experts)).softmax(-1)
        return Routes(probs * top(probs, self.k), probs)


class ChannelRouter(_Levels):
    """The fixed mask: times (B,) → (B, 1, dim) of 0 and 1, `share` of the channels on, with no weights.

    u is the time's place among `levels`, 0 at the cleanest. Raises ValueError unless 0 < share ≤ 1.
    """

    def __init__(self, dim: int, share: float = 0.8, alpha: float = 4.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share} of the channels must be above 0 and at most 1")
        self.dim, self.on, self.alpha = dim, max(1, math.floor(share * dim + 1e-9)), alpha

    def forward(self, time: Tensor) -> Tensor:
        u = rank(time, self.levels) / (LEVELS - 1)
        return window(u, self.dim, self.on, self.alpha)[:, None].to(time.dtype)


def rank(time: Tensor, levels: Tensor) -> Tensor:
    """(B,) numbers of the nearest of the levels (G,), which rise or fall; the end beyond an end."""
    return (time.to(levels)[:, None] - levels).abs().argmin(1)


class MixtureMask(nn.Module):
    """m = 1 + Σ_j g_j (x A_j + b_j) ∈ x's shape, 1 at first: A, b are zeros until they are trained.

    x: (B, …, dim), or another place of the channels given by `axis` (1 for pictures);   gates: (B, experts).

    Experts are linear, so their mixture is one linear map: x (Σ_j g_j A_j) + Σ_j g_j b_j, one product a sample instead of
    k, without sorting the batch by expert; an expert that no sample uses has the gradient 0 (and not none).
    Raises ValueError for gates of another shape.
    """

    def __init__(self, dim: int, experts: int = 3, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.zeros(experts, dim, dim))
        self.bias = nn.Parameter(torch.zeros(experts, dim))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        experts, dim, _ = self.weight.shape
        if gates.shape != (len(x), experts) or x.shape[self.axis] != dim:
            raise ValueError(
                f"gates of shape {tuple(gates.shape)} for x of shape {tuple(x.shape)}; "
                f"({len(x)}, {experts}) and {dim} channels at axis {self.axis} are needed"
            )
        tokens = x.movedim(self.axis, -1)
        a = torch.einsum("bj,jcd->bcd", gates, self.weight)
        change = torch.baddbmm((gates @ self.bias)[:, None], tokens.reshape(len(x), -1, dim), a)
        return 1 + change.reshape(tokens.shape).movedim(-1, self.axis)


def routed(block: Callable[..., Tensor], m: Tensor, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    """block(x ⊙ m, …) + (1 − m) ⊙ x, as block(x + d) − d with d = (m − 1) ⊙ x: bit for bit block(x) where m = 1."""
    d = (m - 1) * x
    return block(x + d, *rest, **more) - d


class RoutedBlock(nn.Module):
    """Any residual block (x, …) → x with a mixture mask of its own, called as block(x, …, gates=(B, experts)).

    dim: channels of x, which are at `axis`: 1 in U-Nets, −1 in transformers. Fresh, it computes what `block` computes.
    """

    def __init__(self, block: nn.Module, dim: int, experts: int = 3, axis: int = -1) -> None:
        super().__init__()
        self.block, self.mask = block, MixtureMask(dim, experts, axis)

    def forward(self, x: Tensor, *rest: Any, gates: Tensor, **more: Any) -> Tensor:
        return routed(self.block, self.mask(x, gates), x, *rest, **more)
