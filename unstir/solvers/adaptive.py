"""Rows made while the run goes: adaptive step sizes, and Langevin steps whose size depends on the state.

Adaptive steps come from an embedded pair: both members share their stages, DPM-Solver-12 (order 1
in 2) and -23 (order 2 in 3). A step is accepted if the scaled difference E of the two results is at
most 1; always h ← min(0.9 h E^{−1/order}, what is left). A rejected attempt keeps its first prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..plan.plan import Plan
from ..plan.row import Row
from ..plan.state import State, tree_map
from ..process import Process
from .levels import Levels
from .singlestep import eliminate, exponential_stages, order_three, order_two


@dataclass(frozen=True)
class Adaptive:
    """A row generator for `unstir.sample`: DPM-Solver adaptive 12 or 23 (DPM-Solver, 2022), in data or noise form.

    order: 2 (pair 12) or 3 (pair 23). rtol, atol: δ = max(atol, rtol · max(|x_lo|, |x_prev|)),
    E = RMS of (x_hi − x_lo)/δ per sample, the largest of the batch counts. h: first step in λ.
    start, end: times; end must have σ > 0 unless `denoise` adds the plain step to σ = 0.
    """

    process: Process
    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h: float = 0.05
    start: float = 1.0
    end: float = 1e-3
    form: str = "data"
    denoise: bool = True
    max_calls: int = 2000
    window: int = 4

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order={self.order} must be 2 (pair 12) or 3 (pair 23)")
        if not (self.rtol > 0 and self.atol >= 0 and self.h > 0):
            raise ValueError(f"rtol={self.rtol} and h={self.h} must be > 0 and atol={self.atol} at least 0")
        if not math.isfinite(float(self.process.logsnr(self.end))) or not math.isfinite(float(self.process.logsnr(self.start))):
            raise ValueError(
                f"start={self.start} and end={self.end} must have finite log-SNR; denoise=True adds the step to σ = 0"
            )

    def generate(self, state: State) -> Iterator[Row]:
        """The rows; the executor calls this. `state.x` is the state after the last row."""
        levels = Levels(self.process, [self.start, self.end])
        final, order = levels.lam[1], self.order
        place, h, calls, number = levels[0], self.h, 0, 0
        previous: Any = state.x
        first: Any = None  # D at `place`, kept over rejections
        while place.lam < final - 1e-5:
            h = min(h, final - place.lam)
            target = levels[1] if place.lam + h >= final - 1e-12 else levels.at(place.lam + h)
            base = state.x
            c2 = 1 / 2 if order == 2 else 1 / 3
            high = exponential_stages(levels, place, target, order_two if order == 2 else order_three, self.form)
            rows = list(eliminate(place, high))
            seen: list[Any] = []
            for k, row in enumerate(rows):
                if k == 0 and first is not None:
                    # The prediction at the base is known from the rejected attempt: no call.
                    state.history[number] = first
                    yield replace(row, evaluate=False)
                else:
                    yield row
                    calls += 1
                seen.append(state.history[number])
                number += 1
            if calls > self.max_calls:
                raise ValueError(f"adaptive steps made more than max_calls={self.max_calls} calls; loosen rtol={self.rtol}")
            x_high = state.x
            x_low = self._lower(levels, place, target, base, seen, c2)
            error = self._error(x_high, x_low, previous)
            if error <= 1:
                place, previous, first = target, x_low, None
            else:
                state.x, first = base, seen[0]
            h *= 0.9 * max(error, 1e-10) ** (-1 / order)
        if self.denoise and float(self.process.sigma(0.0)) == 0:
            yield Row(t=place.t, to=0.0, a=0.0, b={0: float(self.process.alpha(0.0))})

    def _lower(self, levels: Levels, place: Any, target: Any, base: Any, seen: list[Any], c2: float) -> Any:
        """The lower-order result from the same stages: order 1, or order 2 with c₂ = 1/3."""
        if self.order == 2:
            a = target.sigma / place.sigma
            weights = [target.alpha - a * place.alpha]
        else:
            stage = exponential_stages(levels, place, target, lambda z: order_two(z, c2), self.form)[-1]
            a, weights = stage.scale, stage.data
        return tree_map(
            lambda x, *d: a * x + sum(w * di for w, di in zip(weights, d, strict=False)), base, *seen[: len(weights)]
        )

    def _error(self, high: Any, low: Any, previous: Any) -> float:
        def scaled(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            delta = torch.clamp_min(self.rtol * torch.maximum(b.abs(), c.abs()), self.atol)
            return (((a - b) / delta) ** 2).flatten(1).mean(1).sqrt().max()

        if isinstance(high, dict):
            return max(float(scaled(high[k], low[k], previous[k])) for k in high)
        return float(scaled(high, low, previous))


@dataclass(frozen=True)
class LangevinCorrected:
    """`plan` with Langevin corrections after every step to σ > 0, their size from the norm of the score.

    The predictor–corrector of Score-Based Generative Modeling through SDEs, 2021: with s the score,
    ε = 2 (snr ‖z‖/‖s‖)²,  x ← x + ε s + √(2ε) z, per sample, and √n for ‖z‖, its value but for 1/√n.
    One more call per correction. `solvers.corrected` is the form with a size fixed in advance.
    """

    plan: Plan
    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        if not (self.snr > 0 and self.steps >= 1):
            raise ValueError(f"snr={self.snr} must be > 0 and steps={self.steps} at least 1")
        if any(lag for row in self.plan.rows if row.boundary for lag in row.b) and self.plan.history > 3:
            raise ValueError("the plan reads more than 3 predictions back; use a plan of lower order")
        if math.isfinite(self.plan.process.tails):
            raise ValueError(f"Langevin steps need the score of Gaussian noise; {self.plan.process!r} is heavy-tailed")

    @property
    def process(self) -> Process:
        """The plan's process."""
        return self.plan.process

    @property
    def start(self) -> float:
        """The plan's start."""
        return self.plan.start

    @property
    def window(self) -> int:
        """How many rows back a prediction may be read."""
        return 4 * (1 + 2 * self.steps)

    def generate(self, state: State) -> Iterator[Row]:
        """The rows; the executor calls this."""
        place: dict[int, int] = {}  # row of the plan -> number of the row as run
        number = 0
        for i, row in enumerate(self.plan.rows):
            place[i] = number
            yield replace(row, b={number - place[i - lag]: w for lag, w in row.b.items()})
            number += 1
            sigma = float(self.process.sigma(row.to))
            if not row.boundary or sigma == 0 or i + 1 == len(self.plan.rows):
                continue
            alpha = float(self.process.alpha(row.to))
            for _ in range(self.steps):
                yield Row(t=row.to, to=row.to, a=1.0, b={})  # call the network, leave the state
                size = self._size(state.x, state.history[number], alpha, sigma)
                yield Row(
                    t=row.to,
                    to=row.to,
                    a=1 - size / sigma**2,
                    b={1: size * alpha / sigma**2},
                    c=(2 * size).sqrt(),
                    evaluate=False,
                )
                number += 2

    def _size(self, x: torch.Tensor, data: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        score = ((alpha * data - x) / sigma**2).flatten(1).norm(dim=1)
        size = 2 * (self.snr * math.sqrt(x[0].numel()) / score.clamp_min(1e-12)) ** 2
        # A step longer than σ² would overshoot; the score of a state near the data can be that small.
        return size.clamp_max(sigma**2).reshape(-1, *[1] * (x.ndim - 1))
