"""Weights of particles: effective sample size, resampling, and the potentials of Feynman–Kac steering.

A path of rewards r_1, r_2, … has the weight Π G_i. The potentials differ in how early they act; at the end state
x0 all of them make it exp(λ r(x0)):

    "difference"   Π_{j≤i} G_j = exp(λ r_i)
    "max"          Π_{j≤i} G_j = exp(λ Σ_{j≤i} max_{l≤j} r_l)
    "sum"          Π_{j≤i} G_j = exp(λ Σ_{j≤i} Σ_{l≤j} r_l)
    "none"         1 until the end: importance sampling, whose best particle is best-of-k

"max" and "sum" add up over the rows that are weighed, and the end has to take it all back: weigh few rows with them.
(A General Framework for Inference-time Scaling and Steering of Diffusion Models, 2025.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._random import draw

POTENTIALS, RESAMPLINGS = ("difference", "max", "sum", "none"), ("systematic", "stratified", "multinomial")
_PARTICLES = 1 << 34  # the first random stream of resampling, far from those of plans, chains and hooks


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σ w)²/Σ w² over the last axis, from 1 to its length."""
    return 1 / log_weights.softmax(-1).square().sum(-1)


def resample(weights: Tensor, u: Tensor, method: str = "systematic") -> Tensor:
    """Parents (n, k) of the next k particles, from weights (n, k) that sum to 1 and uniform numbers u (n, k).

    Particle i is drawn k w_i times on average, from the points of [0, 1) that fall into its share of w:
    "systematic" (j + u_0)/k, so ⌊k w_i⌋ or ⌈k w_i⌉ times; "stratified" (j + u_j)/k; "multinomial" u_j.
    """
    if method not in RESAMPLINGS:
        raise ValueError(f"resampling={method!r} is unknown; one of {', '.join(RESAMPLINGS)}")
    k = weights.shape[1]
    j = torch.arange(k, dtype=u.dtype)
    points = {"systematic": (j + u[:, :1]) / k, "stratified": (j + u) / k, "multinomial": u.sort(1).values}[method]
    shares = weights.cumsum(1)
    return torch.searchsorted(shares / shares[:, -1:], points.contiguous()).clamp_max(k - 1)


class Population:
    """The weights of n groups of k particles. It knows nothing of states, so it serves any sampler, of tokens too.

    keys: the n·k random keys of the particles (`unstir._random.sample_keys`), group by group.
    log_weights: (n, k) since the last resampling; log_z: (n,), the estimate of log E_p[exp(λ r)], in Z without bias;
    origin: (n, k), the place at the start of each particle's oldest ancestor.
    """

    def __init__(
        self,
        keys: Sequence[int],
        k: int,
        lam: float = 1.0,
        potential: str = "difference",
        resampling: str = "systematic",
        threshold: float = 0.5,
    ) -> None:
        check(len(keys), k, lam, potential, resampling, threshold)
        self.keys, self.k, self.lam, self.potential = list(keys), k, lam, potential
        self.resampling, self.threshold = resampling, threshold
        n = len(keys) // k
        self.log_weights = torch.zeros(n, k, dtype=torch.float64)
        self.log_potential = torch.zeros(n, k, dtype=torch.float64)  # log Π G along the own ancestry
        self.running = torch.full((n, k), -math.inf if potential == "max" else 0.0, dtype=torch.float64)
        self.log_z = torch.zeros(n, dtype=torch.float64)
        self.origin = torch.arange(k).repeat(n, 1)

    def weigh(self, rewards: Tensor) -> None:
        """log w += log G_i, from the rewards (n·k,) of the row."""
        r = rewards.reshape(self.log_weights.shape)
        if self.potential == "none":
            return
        if self.potential == "difference":
            return self._until(self.lam * r)
        self.running = torch.maximum(self.running, r) if self.potential == "max" else self.running + r
        self._until(self.log_potential + self.lam * self.running)

    def add(self, log_ratio: Tensor) -> None:
        """log w += log_ratio (n·k,), what a proposal of one's own has to pay back."""
        self.log_weights = self.log_weights + log_ratio.reshape(self.log_weights.shape)

    def finish(self, rewards: Tensor) -> None:
        """The last potential, exp(λ r(x0))/Π G, from the rewards (n·k,) of the end states; completes log Z."""
        self._until(self.lam * rewards.reshape(self.log_weights.shape))
        self.log_z = self.log_z + self.log_weights.logsumexp(1) - math.log(self.k)

    def _until(self, log_potential: Tensor) -> None:
        self.log_weights = self.log_weights + log_potential - self.log_potential
        self.log_potential = log_potential

    def resample(self, row: int) -> Tensor | None:
        """The permutation (n·k,) of all particles where some group needs one, else None. row: numbers the random stream."""
        poor = ess(self.log_weights) < self.threshold * self.k * (1 - 1e-9)
        if not bool(poor.any()):
            return None
        n = len(poor)
        u = torch.special.ndtr(draw(self.keys, (1,), _PARTICLES + row, torch.float64)).reshape(n, self.k)
        stay = torch.arange(self.k).repeat(n, 1)
        parents = torch.where(poor[:, None], resample(self.log_weights.softmax(1), u, self.resampling), stay)
        self.log_z = torch.where(poor, self.log_z + self.log_weights.logsumexp(1) - math.log(self.k), self.log_z)
        self.log_weights = torch.where(poor[:, None], 0.0, self.log_weights)
        for name in ("log_potential", "running", "origin"):
            setattr(self, name, getattr(self, name).gather(1, parents))
        return (torch.arange(n)[:, None] * self.k + parents).flatten()


def check(count: int, k: int, lam: float, potential: str, resampling: str, threshold: float) -> None:
    """ValueError for what no population can be made of."""
    if count % k:
        raise ValueError(f"{count} particles do not make groups of k={k}")
    if not math.isfinite(lam):
        raise ValueError(f"lam={lam} must be a finite number")
    if potential not in POTENTIALS:
        raise ValueError(f"potential={potential!r} is unknown; one of {', '.join(POTENTIALS)}")
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling={resampling!r} is unknown; one of {', '.join(RESAMPLINGS)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in [0, 1], the share of k below which a group is resampled")
