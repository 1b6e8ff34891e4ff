"""Adaptive step sizes: rows made while the run goes, from an embedded pair.

Both members of a pair share their stages: DPM-Solver-12 (order 1 in 2) and -23 (order 2 in 3). The
step is accepted if the scaled difference E of the two results is at most 1; always
h ← min(0.9 h E^{−1/order}, what is left). A rejected attempt keeps its first prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

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
