"""The free numbers of a deterministic plan: every table that keeps both row invariants, as one vector θ.

A row in data form keeps constant data and zero data (invariants I1 and I2, see `Plan.invariants`) exactly if it is a
DDIM step on a weighted mean of predictions:

    X_{i+1} = r X_i + (α_{i+1} − r α_i) Σ_j u_ij D_{i−j},     r = σ_{i+1}/σ_i,     Σ_j u_ij = 1
    D_i = denoiser(X_i, time(λ_i + δ_i))

Free are u_ij for j ≥ 1 (u_i0 makes the sum 1), and for each inner node its half log-SNR λ_i and the shift δ_i of the
level that the network is told. θ = (δ_i, λ_i) of the nodes followed by the u of the rows, see `Table.theta`. The first
and the last node do not move. With full history that is n(n + 3)/2 − 2 numbers for n calls (n ≥ 2).

With `free=True` the invariants are given up: row i also has a gain g_i on r and h_i on the weight of the mean.

Pure noise says nothing about the data: where λ(start) is very low, D_0 is the same for every sample, the data's mean.
A `constant` is put in its place, the first row makes no call, and n calls do the work of n + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..plan.row import Row
from ..process import Process


@dataclass(frozen=True)
class Table:
    """θ and where it belongs.

    lam, shift: (n − 1,), inner nodes. mix: (n, n) lower triangular, mix[i, j] weighs D_j in row i and its rows sum
    to 1. gain: (n, 2), the (g, h) of `free`. lags: how far back a row may reach. shifts: are the δ free?
    constant: D_0, a number or a tensor of one sample's shape; None if the network is asked for it.
    """

    process: Process
    start: float
    end: float
    lam: Tensor
    shift: Tensor
    mix: Tensor
    gain: Tensor
    lags: int
    free: bool = False
    shifts: bool = True
    constant: float | Tensor | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.mix)

    @property
    def nfe(self) -> int:
        """Network calls."""
        return self.n - (self.constant is not None)

    # -- θ as a vector ------------------------------------------------------------------------------------
    def layout(self) -> list[tuple[int, str, int]]:
        """(row, kind, index) of every entry of θ; changing it changes D_row ("shift") or X_{row+1} (the others)."""
        entries: list[tuple[int, str, int]] = []
        for i in range(self.n):
            if i > 0:
                entries += [(i, "shift", i - 1)] if self.shifts else []
                entries += [(i - 1, "lam", i - 1)]
            entries += [(i, "mix", j) for j in range(max(0, i - self.lags), i)]
            entries += [(i, "gain", k) for k in range(2) if not (k == 0 and i + 1 == self.n)] if self.free else []
        return entries

    def theta(self) -> Tensor:
        """The free numbers, float64 (P,)."""
        read = {"shift": self.shift, "lam": self.lam}
        values = [
            self.mix[i, j] if kind == "mix" else self.gain[i, j] if kind == "gain" else read[kind][j]
            for i, kind, j in self.layout()
        ]
        return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)

    def with_theta(self, theta: Tensor) -> Table:
        """The same table with other free numbers."""
        lam, shift, mix, gain = self.lam.clone(), self.shift.clone(), self.mix.clone(), self.gain.clone()
        for value, (i, kind, j) in zip(theta, self.layout(), strict=True):
            if kind == "mix":
                mix[i, i] += mix[i, j] - value  # the newest prediction takes the rest
                mix[i, j] = value
            elif kind == "gain":
                gain[i, j] = value
            else:
                (lam if kind == "lam" else shift)[j] = value
        return replace(self, lam=lam, shift=shift, mix=mix, gain=gain)

    def valid(self) -> bool:
        """Do the nodes decrease strictly from start to end?"""
        times = torch.tensor(self.times())
        return bool(torch.isfinite(self.theta()).all()) and bool((times[1:] < times[:-1]).all())

    # -- θ as rows ------------------------------------------------------------------------------------------
    def times(self) -> list[float]:
        """t_0 = start, the inner nodes, t_n = end."""
        return [self.start, *self.process.time(self.lam).tolist(), self.end]

    def told(self) -> list[float]:
        """The time that the network is told in every row."""
        return [self.start, *self.process.time(self.lam + self.shift).tolist()]

    def coefficients(self) -> tuple[list[float], Tensor]:
        """(a_i of every row, weights (n, n) of D_j in row i), float64."""
        t = torch.tensor(self.times(), dtype=torch.float64)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        r = sigma[1:] / sigma[:-1]
        a = r * (1 + self.gain[:, 0])
        weight = (alpha[1:] - r * alpha[:-1]) * (1 + self.gain[:, 1])
        return a.tolist(), weight[:, None] * self.mix

    def plan(self, name: str = "learned", options: Mapping[str, Any] = MappingProxyType({})) -> Plan:
        """The table as a `Plan`; the weights of a row sum to α_{i+1} − r α_i to the last digit."""
        times, (a, b) = self.times(), self.coefficients()
        first = 0 if self.constant is None else 1
        rows = []
        for i, (told, to) in enumerate(zip(self.told(), times[1:], strict=True)):
            lags = {i - j: float(b[i, j]) for j in range(first, i + 1) if b[i, j] != 0 or j == i}
            e = 0.0 if self.constant is None or b[i, 0] == 0 else float(b[i, 0]) * self.constant
            rows.append(Row(t=told, to=to, a=a[i], b=lags, e=e, evaluate=i >= first))
        return Plan(rows, self.process, name=name, options=options)


def project(
    plan: Plan,
    *,
    lags: int | None = None,
    free: bool = False,
    shifts: bool = True,
    constant: float | Tensor | None = None,
) -> Table:
    """The `Table` of a deterministic plan, by elimination of its F:

        X_i = x_i X_0 + Σ_j w_ij D_j   ⇒   b_ij = w_{i+1,j} − r w_ij,   u_ij = b_ij/(α_{i+1} − r α_i)

    Weights that reach further back than `lags` are added to the oldest that is kept. ValueError for a plan with
    noise, tensors, rows without a call or with repeated times, and for one that breaks the invariants.
    """
    n, process = len(plan.rows), plan.process
    if plan.stochastic or plan.offset or not all(row.evaluate and row.numeric for row in plan.rows):
        raise ValueError(f"base={plan.name!r} must be a deterministic plan of numbers in which every row calls the network")
    nodes = [row.t for row in plan.rows] + [plan.end]
    t = torch.tensor(nodes, dtype=torch.float64)
    if not bool((t[1:] < t[:-1]).all()):
        raise ValueError(f"base={plan.name!r} visits a time twice or goes back; its rows are no steps forward")
    weights = torch.zeros(n + 1, n, dtype=torch.float64)  # w
    remembered: list[Tensor] = []
    start = torch.ones(n + 1, dtype=torch.float64)  # x
    remembered_start: list[float] = []
    for i, row in enumerate(plan.rows):
        own = torch.zeros(n, dtype=torch.float64)
        own[i] = row.q
        previous, previous_start = (remembered[-1], remembered_start[-1]) if row.momentum else (0.0, 0.0)
        remembered.append(row.p * weights[i] + own + row.s * previous)
        remembered_start.append(float(row.p * start[i] + row.s * previous_start))
        weights[i + 1] = row.a * weights[i] + sum(w * remembered[i - lag] for lag, w in row.b.items())
        start[i + 1] = row.a * start[i] + sum(w * remembered_start[i - lag] for lag, w in row.b.items())
    alpha, sigma = process.alpha(t), process.sigma(t)
    r = sigma[1:] / sigma[:-1]
    b = weights[1:] - r[:, None] * weights[:-1]
    total = alpha[1:] - r * alpha[:-1]
    broken = (b.sum(1) - total).abs() + (start[1:] - r * start[:-1]).abs()
    if bool((broken > 1e-6).any()):
        raise ValueError(
            f"base={plan.name!r} breaks the row invariants in row {int(broken.argmax())}; it cannot be learned from"
        )
    mix = b / total[:, None]
    lags = n - 1 if lags is None else min(lags, n - 1)
    for i in range(n):
        first = max(0, i - lags)
        mix[i, first] += mix[i, :first].sum()
        mix[i, :first] = 0
        mix[i, i] = 1 - mix[i, first:i].sum()
    lam = process.logsnr(t[1:-1])
    gain = torch.zeros(n, 2, dtype=torch.float64)
    return Table(process, nodes[0], nodes[-1], lam, torch.zeros_like(lam), mix, gain, lags, free, shifts, constant)
