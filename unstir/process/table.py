"""Processes made from others: discrete tables, zero terminal SNR, and shifts of the log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Process, Time, float64
from .schedules import _circle


class Table(Process):
    """A variance-preserving process known at T discrete levels, as most published networks are.

    Level n = 0 … T−1 (the network's *label*) sits at t_n = (n + 1)/T; t = 0 is clean data. log α is
    piecewise linear in t through (0, 0), (t_n, ½ log ᾱ_n) and σ² = 1 − α² (DPM-Solver, 2022). If
    ᾱ_{T−1} = 0, α itself is linear in the last interval, since its logarithm is infinite.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor | np.ndarray) -> None:
        table = float64(np.asarray(alphas_cumprod, dtype=np.float64)).flatten()
        if not len(table):
            raise ValueError("alphas_cumprod is empty; a table needs at least one level")
        if not bool(torch.isfinite(table).all()) or float(table.max()) >= 1 or float(table.min()) < 0:
            raise ValueError("alphas_cumprod must be finite, below 1 and at least 0 (0 only at the last level)")
        if not bool((table.diff() < 0).all()):
            where = int((table.diff() >= 0).nonzero()[0])
            raise ValueError(f"alphas_cumprod must decrease strictly; level {where + 1} does not")
        self.alphas_cumprod = table
        self._alpha_last = float(table[-1].sqrt())
        nodes = 0.5 * table.log()
        self._log_alpha = torch.cat([torch.zeros(1, dtype=torch.float64), nodes])
        self._levels = len(table)
        # λ at t_lo, the first level, and the last level whose λ is finite.
        self.span = (1 / self._levels, 1.0 if self._alpha_last > 0 else 1 - 1 / self._levels)

    @property
    def levels(self) -> int:
        """T, the number of discrete levels."""
        return self._levels

    def spec(self) -> dict[str, Any]:
        return {"kind": "Table", "alphas_cumprod": self.alphas_cumprod.tolist()}

    def __repr__(self) -> str:
        return f"Table({self._levels} levels, logsnr {float(self.logsnr(self.span[0])):.2f} … {float(self.logsnr(1.0)):.2f})"

    def _log_alpha_at(self, t: Time) -> Tensor:
        place = float64(t) * self._levels
        cell = place.floor().clamp(0, self._levels - 1).long()
        part = place - cell
        table = self._log_alpha.to(place.device)
        low, high = table[cell], table[cell + 1]
        last = torch.isinf(high)  # only where ᾱ_T = 0: α is linear from its value at T−1 to 0
        return torch.where(last, low + torch.log1p(-part), low + part * (torch.where(last, 0.0, high) - low))

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha_at(t).exp()

    def sigma(self, t: Time) -> Tensor:
        return torch.expm1(2 * self._log_alpha_at(t)).abs().sqrt()

    def logsnr(self, t: Time) -> Tensor:
        return self._log_alpha_at(t) - self.sigma(t).log()

    def time(self, logsnr: Time) -> Tensor:
        lam = float64(logsnr)
        goal = -0.5 * torch.nn.functional.softplus(-2 * lam, threshold=700)  # log α
        table = self._log_alpha.to(lam.device)
        # table decreases: the cell is the last node not below the goal.
        cell = (torch.searchsorted(-table, -goal, right=True) - 1).clamp(0, self._levels - 1)
        low, high = table[cell], table[cell + 1]
        linear = (goal - low) / (high - low)
        part = torch.where(torch.isinf(high), -torch.expm1(goal - low), linear)
        return ((cell + part) / self._levels).clamp(0, 1)

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        return _circle(logsnr)

    def label(self, t: Time) -> Tensor:
        """The (fractional) label T·t − 1 that the network was trained with, at least 0."""
        return (float64(t) * self._levels - 1).clamp_min(0)

    def time_of_label(self, label: Time) -> Tensor:
        """t = (label + 1)/T."""
        return (float64(label) + 1) / self._levels


def from_betas(betas: Sequence[float] | Tensor | np.ndarray, *, zero_terminal_snr: bool = False) -> Table:
    """The process of a discrete DDPM schedule, ᾱ_n = Π (1 − β_m) (Denoising Diffusion Probabilistic Models, 2020).

    zero_terminal_snr: shift and stretch √ᾱ so that the last level carries no signal, see `zero_terminal`.
    """
    beta = float64(np.asarray(betas, dtype=np.float64)).flatten()
    if len(beta) < 2:
        raise ValueError(f"betas has {len(beta)} entries; a schedule needs at least 2")
    if not bool(((beta > 0) & (beta <= 1)).all()):
        where = int((~((beta > 0) & (beta <= 1))).nonzero()[0])
        raise ValueError(f"betas must lie in (0, 1]; betas[{where}] is {float(beta[where])}")
    alphas_cumprod = torch.cumprod(1 - beta, 0)
    return Table(zero_terminal(alphas_cumprod) if zero_terminal_snr else alphas_cumprod)


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """√ᾱ' = (√ᾱ − √ᾱ_T) √ᾱ_1/(√ᾱ_1 − √ᾱ_T): no signal at the last level, the first unchanged.

    (Common Diffusion Noise Schedules and Sample Steps Are Flawed, 2024.) Such a process needs a
    network that predicts data, velocity or flow: noise says nothing about data where α = 0.
    """
    root = float64(alphas_cumprod).sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


class Shifted(Process):
    """`base` with its log-SNR translated, λ'(t) = λ(t) − log(shift), on the same (α, σ) path.

    The timestep shift of flow models, σ' = s σ/(1 + (s − 1) σ), and the resolution shift of pixel
    models are both this (simple diffusion, 2023; Stable Diffusion 3, 2024).
    """

    def __init__(self, base: Process, shift: float) -> None:
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"shift={shift} must be a finite number > 0")
        if base.anchored:
            raise ValueError("only processes without an anchor can be shifted")
        if math.isfinite(base.tails):
            raise ValueError(f"shift the process inside instead: Poisson(D={base.tails:g}, base=shifted(…))")
        self.base, self.shift = base, float(shift)
        self.span = base.span

    def spec(self) -> dict[str, Any]:
        return {"kind": "Shifted", "base": self.base.spec(), "shift": self.shift}

    def __repr__(self) -> str:
        return f"Shifted({self.base!r}, shift={self.shift})"

    def logsnr(self, t: Time) -> Tensor:
        return self.base.logsnr(t) - math.log(self.shift)

    def time(self, logsnr: Time) -> Tensor:
        return self.base.time(float64(logsnr) + math.log(self.shift))

    def alpha(self, t: Time) -> Tensor:
        return self.base.path(self.logsnr(t))[0]

    def sigma(self, t: Time) -> Tensor:
        return self.base.path(self.logsnr(t))[1]

    def path(self, logsnr: Time) -> tuple[Tensor, Tensor]:
        return self.base.path(logsnr)


def shifted(base: Process, shift: float) -> Shifted:
    """`base` with λ'(t) = λ(t) − log(shift); shift > 1 spends more of [0, 1] at high noise."""
    return Shifted(base, shift)


def resolution_shift(tokens: int, base_tokens: int) -> float:
    """s = √(tokens/base_tokens): larger pictures need more noise for the same log-SNR per object."""
    if tokens < 1 or base_tokens < 1:
        raise ValueError(f"tokens={tokens} and base_tokens={base_tokens} must be at least 1")
    return math.sqrt(tokens / base_tokens)


def label_count(process: Process) -> int:
    """T, the number of labels a network of this process was trained with: its table's, else 1000."""
    while isinstance(process, Shifted):
        process = process.base
    return process.levels if isinstance(process, Table) else 1000
