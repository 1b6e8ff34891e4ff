"""What a solver sees of a process: its numbers at the nodes of a grid, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..process import Marginal, Process


class Point(NamedTuple):
    """A place on the process: time, α and σ. An aim of a step need not lie on the process (ancestral steps)."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """λ = log(α/σ), ±∞ at the ends."""
        if self.sigma == 0 or self.alpha == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    @property
    def ratio(self) -> float:
        """σ̂ = σ/α, the noise of the scaled state x/α."""
        return self.sigma / self.alpha if self.alpha else math.inf


class Levels:
    """α, σ and λ at nodes t_0 > … > t_N, as Python floats; λ = ±∞ where σ or α is 0.

    Raises ValueError unless the log-SNR increases strictly along the grid (decreases, if ascending:
    a grid towards noise, for inversion, whose λ must be finite).
    """

    def __init__(self, process: Process, times: Sequence[float], ascending: bool = False) -> None:
        if isinstance(process, Marginal):
            raise ValueError(f"{process!r} is moved by a velocity in t: use a solver named 'field-…', such as 'field-heun'")
        t = torch.as_tensor([float(u) for u in times], dtype=torch.float64)
        if len(t) < 2:
            raise ValueError(f"times has {len(t)} nodes; a grid needs at least a start and an end")
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"times must lie in [0, 1]; got {[u for u in times if not 0 <= float(u) <= 1][:3]}")
        self.process = process
        self.times: list[float] = t.tolist()
        self.alpha: list[float] = process.alpha(t).tolist()
        self.sigma: list[float] = process.sigma(t).tolist()
        self.lam: list[float] = process.logsnr(t).tolist()
        self.n = len(self.times) - 1
        if ascending and not all(math.isfinite(lam) for lam in self.lam):
            raise ValueError("a grid towards noise must stay where σ > 0 and α > 0; start it at a small t > 0")
        for i in range(self.n):
            if not (self.lam[i + 1] < self.lam[i] if ascending else self.lam[i + 1] > self.lam[i]):
                way = "decreasing" if ascending else "increasing"
                raise ValueError(
                    f"the grid must have strictly {way} log-SNR; step {i} goes from t = {self.times[i]:g} "
                    f"(λ = {self.lam[i]:g}) to t = {self.times[i + 1]:g} (λ = {self.lam[i + 1]:g})"
                )

    def kappa(self, i: int) -> float:
        """κ_i = σ̂_{i+1}/σ̂_i = e^{−h}, written so that it is 0 at σ_{i+1} = 0 and at α_i = 0."""
        return (self.sigma[i + 1] / self.sigma[i]) * (self.alpha[i] / self.alpha[i + 1])

    def h(self, i: int) -> float:
        """h_i = λ_{i+1} − λ_i; infinite in a step that touches σ = 0 or α = 0."""
        return self.lam[i + 1] - self.lam[i]

    def finite(self, i: int) -> bool:
        """Is the log-SNR finite at both ends of step i?"""
        return math.isfinite(self.h(i))

    def __getitem__(self, i: int) -> Point:
        """Node i."""
        return Point(self.times[i], self.alpha[i], self.sigma[i])

    def at(self, lam: float) -> Point:
        """The point with log-SNR λ, for inner stages."""
        t = self.process.time(lam)
        return Point(float(t), float(self.process.alpha(t)), float(self.process.sigma(t)))

    @property
    def pinned(self) -> bool:
        """Does the grid begin where α = σ = 0 (a bridge, at its anchor)?"""
        return self.alpha[0] == self.sigma[0] == 0

    @property
    def clean(self) -> bool:
        """Does the grid end at σ = 0?"""
        return self.sigma[-1] == 0


def phi(k: int, z: float) -> float:
    """φ_k(z):  φ_0 = e^z,  φ_{k+1}(z) = (φ_k(z) − 1/k!)/z,  φ_k(0) = 1/k!.

    The recursion loses ε/|z|^k, so the series Σ z^n/(n + k)! is used for |z| < 1.
    """
    if abs(z) < 1:
        total, term, n = 0.0, 1 / math.factorial(k), 0
        while abs(term) > 1e-18 and n < 40:
            total += term
            n += 1
            term *= z / (n + k)
        return total
    if k == 0:
        return math.exp(z)
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z
