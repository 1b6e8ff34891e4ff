"""A network that ranks candidates by their decisions, so that only promising ones have to be run.

Every step's decisions are embedded, read in order by a GRU, and its last state becomes one number p. Trained on the
scored candidates by a hinge on all pairs, with a margin that grows with their distance in rank u ∈ [0, 1]:

    Σ_{u_i < u_j} max(0, (u_j − u_i) − (p_j − p_i))

so p estimates the rank itself. (A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models, 2024,
ranks with such a network; its size and training here are our own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WIDTH, EPOCHS, RATE = 32, 100, 1e-2

Steps = Sequence[Sequence[float]]  # the numbers of every step of one candidate


class Ranker(nn.Module):
    """p of a batch of sequences (B, steps, F) of given lengths (B,)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, WIDTH), nn.SiLU())
        self.read = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h, _ = self.read(self.embed(x))
        return self.head(h[torch.arange(len(x)), lengths - 1])[:, 0]


def fit_ranker(candidates: Sequence[Steps], scores: Sequence[float], seed: int = 0) -> Callable[[Sequence[Steps]], list[float]]:
    """Trains on scored candidates (smaller is better, ∞ allowed); returns a function that ranks others. Deterministic."""
    x, lengths = _padded(candidates)
    known = torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
    mean, std = known.mean(0), known.std(0).clamp_min(1e-3)
    u = ranks(scores) / max(len(scores) - 1, 1)
    gap = u[None, :] - u[:, None]
    weight = (gap > 0).float() / max(int((gap > 0).sum()), 1)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = Ranker(x.shape[2])
        adam = torch.optim.Adam(net.parameters(), RATE, weight_decay=1e-4)
        for epoch in range(EPOCHS):
            adam.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
            p = net((x - mean) / std, lengths)
            loss = (weight * (gap - (p[None, :] - p[:, None])).clamp_min(0)).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()

    @torch.no_grad()
    def predict(others: Sequence[Steps]) -> list[float]:
        y, many = _padded(others)
        return net((y - mean) / std, many).tolist()

    return predict


def ranks(scores: Sequence[float]) -> Tensor:
    """0 for the smallest; equal scores share the mean of their places."""
    s = torch.tensor(list(scores), dtype=torch.float64)
    below = (s[None, :] < s[:, None]).sum(1)
    return (below + ((s[None, :] == s[:, None]).sum(1) - 1) / 2).float()


def spearman(one: Sequence[float], two: Sequence[float]) -> float:
    """Correlation of the ranks."""
    return float(torch.corrcoef(torch.stack([ranks(one), ranks(two)]))[0, 1])


def _padded(candidates: Sequence[Steps]) -> tuple[Tensor, Tensor]:
    """((B, longest, F) with zeros behind the shorter ones, lengths (B,))."""
    parts = [torch.tensor([list(step) for step in steps], dtype=torch.float32) for steps in candidates]
    return nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])
