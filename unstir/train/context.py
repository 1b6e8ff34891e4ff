"""Context prediction: every point of what a network denoises also foretells what surrounds it.

h_i is the network's feature at point i, N_i^s the points at distance s from i, s = 1 … K. A small decoder turns h_i into a
*distribution* of neighbours, so that it need not say which neighbour is where:

    P_i^s  = 1/|N_i^s| Σ_{u ∈ N_i^s} δ(x0_u),        P̂_i^s = law of ψ_s(μ_s(h_i) + exp(ς_s(h_i)) ⊙ ξ),   ξ ~ N(0, I)

    loss   = 1/(P v) Σ_i Σ_s W₂²(P_i^s, P̂_i^s)        over P points i of a sample, v the data's variance

W₂² is estimated from Q neighbours and Q draws, by the matching π that is best for them, 1/Q min_π Σ_j ‖x0_{u_j} − x̂_π(j)‖²;
gradients flow through the matched pairs. Neighbours that do not exist (a border, a node of few) are left out. The targets
are clean data, which do not change with the network. The decoder serves training alone (`train.auxiliary`).

(Improving Diffusion-Based Image Synthesis with Context Prediction, 2023; no code was published. The decoder and the
matching are those of neighbourhood Wasserstein reconstruction, 2022.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._random import draw, mix
from .auxiliary import Record

_LOG_SCALE = (-6.0, 3.0)  # of the decoder: exp(ς) neither vanishes nor explodes
_DIRECTIONS = 32


class Ring(NamedTuple):
    """The neighbours at one distance: index (N, n) of the neighbours of each of N points, valid (N, n): which exist."""

    index: Tensor
    valid: Tensor


def grid_rings(shape: Sequence[int], radius: int = 2) -> list[Ring]:
    """Rings s = 1 … radius of a grid (W), (H, W) or (D, H, W): the points at Chebyshev distance s, (2s+1)^d − (2s−1)^d."""
    if len(shape) not in (1, 2, 3) or any(n < 2 for n in shape):
        raise ValueError(f"shape={tuple(shape)} must be a grid of one to three axes of at least 2 points")
    if not 1 <= radius < max(shape):
        raise ValueError(f"radius={radius} must be at least 1 and below the largest axis of {tuple(shape)}")
    size = torch.tensor(shape)
    points = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape))
    step = torch.tensor([math.prod(shape[k + 1 :]) for k in range(len(shape))])
    rings = []
    for s in range(1, radius + 1):
        offsets = [o for o in itertools.product(range(-s, s + 1), repeat=len(shape)) if max(map(abs, o)) == s]
        places = points[:, None] + torch.tensor(offsets)
        valid = ((places >= 0) & (places < size)).all(-1)
        rings.append(Ring(torch.where(valid, (places * step).sum(-1), 0), valid))
    return rings


def graph_rings(edges: Tensor, nodes: int, radius: int = 1) -> list[Ring]:
    """Rings of a graph: the nodes that are s edges away. edges: (2, E) integers; an edge given one way counts both ways."""
    if edges.ndim != 2 or len(edges) != 2 or edges.is_floating_point():
        raise ValueError(f"edges has shape {tuple(edges.shape)} and dtype {edges.dtype}; give (2, E) integers")
    if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < nodes):
        raise ValueError(f"edges names node {int(edges.max())}; there are {nodes}")
    near = torch.zeros(nodes, nodes, dtype=torch.bool)
    near[edges[0], edges[1]] = near[edges[1], edges[0]] = True
    reached, front, rings = torch.eye(nodes, dtype=torch.bool), torch.eye(nodes, dtype=torch.bool), []
    for _ in range(radius):
        front = (front.float() @ near.float() > 0) & ~reached
        reached |= front
        width = max(int(front.sum(1).max()), 1)
        order = front.float().argsort(dim=1, descending=True, stable=True)[:, :width]
        rings.append(Ring(order, front.gather(1, order)))
    return rings


def matching(x: Tensor, y: Tensor, mask: Tensor | None = None, method: str = "auto", seed: int = 0) -> Tensor:
    """W₂² of two sets of Q points each: 1/m min_π Σ_j ‖y_j − x_π(j)‖² over the m points that mask keeps; (*,).

    x, y: (*, Q, C), x: with gradients, y: a target without.   mask: (*, Q) booleans; a set without a point costs 0. The first
    m points of x are matched.
    method: "exact" (Hungarian), "sliced" (mean of 32 fixed random directions of the one-dimensional distance: at most the
        exact one), or "auto": exact, and sliced on an accelerator. One-dimensional points are sorted, which is exact.

    Raises ValueError for shapes that differ, an unknown method, and values that are not finite.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be two sets of equal shape (*, Q, C)")
    if method not in ("auto", "exact", "sliced"):
        raise ValueError(f"method={method!r} must be 'auto', 'exact' or 'sliced'")
    x, y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, y.detach().to(x.dtype)
    if mask is None:
        mask = torch.ones(y.shape[:-1], dtype=torch.bool, device=y.device)
    count = mask.sum(-1, keepdim=True)
    kept = torch.arange(y.shape[-2], device=y.device) < count  # of x: as many as y has
    y = y.gather(-2, (~mask).long().argsort(dim=-1, stable=True)[..., None].expand(y.shape))  # its own points first
    if x.shape[-1] == 1 or method == "sliced" or (method == "auto" and x.is_cuda):
        return _sorted(x, y, kept, count, seed)
    cost = torch.cdist(x.detach(), y).square()
    if not bool(torch.isfinite(cost).all()):
        raise ValueError("the context decoder returned values that are not finite; a smaller learning rate may help")
    far = 1 + cost.shape[-1] * cost.amax((-2, -1), keepdim=True)  # a pair with a missing point is dearer than all others
    both = kept[..., :, None] & kept[..., None, :]
    alone = ~kept[..., :, None] & ~kept[..., None, :]
    order = _hungarian(torch.where(both, cost, torch.where(alone, 0.0, far)))
    pairs = (x.gather(-2, order[..., None].expand(x.shape)) - y).square().sum(-1)
    return (pairs * kept).sum(-1) / count.squeeze(-1).clamp_min(1)


def _sorted(x: Tensor, y: Tensor, kept: Tensor, count: Tensor, seed: int) -> Tensor:
    """Σ over sorted projections, the mean over directions."""
    if x.shape[-1] > 1:
        directions = draw([mix(seed, r) for r in range(_DIRECTIONS)], (x.shape[-1],), 0, x.dtype, x.device)
        directions = directions / directions.norm(dim=1, keepdim=True)
        x, y = x @ directions.T, y @ directions.T
    last = torch.finfo(x.dtype).max
    x, y = (v.masked_fill(~kept[..., None], last).sort(-2).values for v in (x, y))
    gap = torch.where(kept[..., None], x - y, 0.0)  # the missing sort last, on both sides
    return gap.square().mean(-1).sum(-1) / count.squeeze(-1).clamp_min(1)


def _hungarian(cost: Tensor) -> Tensor:
    """order (*, Q): the row that is matched to each column of cost (*, Q, Q)."""
    from scipy.optimize import linear_sum_assignment

    flat = cost.reshape(-1, *cost.shape[-2:]).cpu().double().numpy()
    order = torch.tensor([linear_sum_assignment(one.T)[1].tolist() for one in flat], device=cost.device)
    return order.reshape(cost.shape[:-1])


class ContextHead(nn.Module):
    """The loss above, of shape (B,), as an auxiliary of `fit`:

        head = ContextHead(16, 1, grid_rings((16, 16)), variance=dataset.std() ** 2)
        model = Denoiser(nets.Tapped(network, "conv_act"), …)                 # whose extras hold "features"
        fit(model, dataset, config, objective=Objective(auxiliary={"context": (head, fading(0.1))}))

    channels: of h.   values: channels of the data.   rings: `grid_rings` or `graph_rings`.
    samples: Q.   points: P, drawn anew for every sample and step (with replacement), or None: all.
    width: of the three layers of ψ; by default `channels`.
    source: the name of the network's extra that is h, (B, channels, *grid); None: h_i = D_i, the denoised point itself.
    variance: v.   method: see `matching`.   seed: of all that is drawn.

    What is drawn is a function of (seed, a sample's t) alone, so the network sees the same random numbers with the head as
    without it, and a run that goes on is the same run.

    Raises ValueError for sizes below 1, more samples than the smallest ring has neighbours, features that are missing or on
    another grid than the data.
    """

    def __init__(
        self,
        channels: int,
        values: int,
        rings: Sequence[Ring],
        *,
        samples: int = 8,
        points: int | None = 32,
        width: int | None = None,
        source: str | None = "features",
        variance: float = 1.0,
        method: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "values": values, "samples": samples, "points": points or 1, "width": width or channels}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if not rings:
            raise ValueError("rings is empty; see grid_rings and graph_rings")
        few = min(ring.index.shape[1] for ring in rings)
        if samples > few:
            raise ValueError(f"samples={samples} is more than the {few} neighbours of the smallest ring")
        if not variance > 0:
            raise ValueError(f"variance={variance} must be positive: the data's")
        self.values, self.samples, self.points = values, samples, points
        self.source, self.variance, self.method, self.seed = source, variance, method, seed
        for s, ring in enumerate(rings):  # which are known from the arguments, and so in no checkpoint
            self.register_buffer(f"index{s}", ring.index, persistent=False)
            self.register_buffer(f"valid{s}", ring.valid, persistent=False)
        hidden = width or channels
        self.moments = nn.ModuleList(nn.Linear(channels, 2 * channels) for _ in rings)
        self.decoders = nn.ModuleList(_mlp(channels, hidden, values) for _ in rings)

    def forward(self, record: Record) -> Tensor:
        return self.distance(record, self.draws)

    def distance(self, record: Record, guess: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """The loss with `guess`(ring, h (B, P, C), ξ (B, P, Q, C)) -> (B, P, Q, values) for the decoders."""
        y = record.x0.detach().flatten(2).float()
        h = self._features(record)
        if h.shape[2] != y.shape[2]:
            raise ValueError(f"the features have {h.shape[2]} points and the data {y.shape[2]}; tap a part of full resolution")
        if h.shape[2] != len(self.get_buffer("index0")):
            raise ValueError(f"the rings are of {len(self.get_buffer('index0'))} points and the data has {h.shape[2]}")
        keys = [mix(self.seed, bits) for bits in record.t.detach().cpu().double().view(torch.int64).tolist()]
        count, dtype, device = y.shape[2], torch.float32, y.device
        if self.points is None:
            places = torch.arange(count, device=device).expand(len(y), -1)
        else:
            u = torch.special.ndtr(draw(keys, (self.points,), 0, dtype, device))
            places = (u * count).long().clamp_max(count - 1)
        chosen = h.gather(2, places[:, None].expand(-1, h.shape[1], -1)).movedim(1, 2)
        total = torch.zeros(len(y), device=device)
        for s in range(len(self.moments)):
            index, valid = self.get_buffer(f"index{s}")[places], self.get_buffer(f"valid{s}")[places]  # (B, P, n)
            order = draw(keys, tuple(index.shape[1:]), 2 * s + 1, dtype, device).masked_fill(~valid, -math.inf)
            drawn = order.topk(self.samples, -1).indices  # without replacement, those that exist first
            index, valid = index.gather(2, drawn), valid.gather(2, drawn)
            near = y.gather(2, index.flatten(1)[:, None].expand(-1, y.shape[1], -1)).movedim(1, 2)
            xi = draw(keys, (*index.shape[1:], chosen.shape[-1]), 2 * s + 2, dtype, device)
            found = guess(s, chosen, xi)
            total = total + matching(found, near.reshape(*index.shape, -1), valid, self.method, self.seed).mean(1)
        return total / self.variance

    def draws(self, ring: int, h: Tensor, xi: Tensor) -> Tensor:
        """ψ_s(μ_s(h) + exp(ς_s(h)) ⊙ ξ)."""
        mean, log_scale = self.moments[ring](h)[:, :, None].chunk(2, -1)
        return self.decoders[ring](mean + log_scale.clamp(*_LOG_SCALE).exp() * xi)

    def _features(self, record: Record) -> Tensor:
        if self.source is None:
            return record.data.flatten(2).float()
        if self.source not in record.extras:
            known = ", ".join(record.extras) or "nothing"
            raise ValueError(f"the network returned no {self.source!r} (but {known}); nets.Tapped returns a part's output")
        return record.extras[self.source].flatten(2).float()


def _mlp(inputs: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))


def fading(scale: float = 0.1) -> Callable[[Tensor], Tensor]:
    """The weight c · min(SNR, 1), SNR = exp(2 λ): what surrounds a point of pure noise is noise."""
    if not scale >= 0:
        raise ValueError(f"scale={scale} must be at least 0")
    return lambda logsnr: scale * torch.exp(2 * logsnr).clamp_max(1)
