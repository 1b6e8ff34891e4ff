"""Value ranges: measurements in a user's units, such as pixels in [0, 1], for a model of data in others, such as [−1, 1].

With u = m + k x (u the user's data, x the model's), y = A u + n and n ~ N(0, σ² I):

    linear A     (y − A m)/k = A x + n/k         the same operator, another y, σ/k
    any A        y = A(m + k x) + n              another operator, the same y and σ

Here, and nowhere else, is this done.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators import Nonlinear, is_linear


class Problem(NamedTuple):
    """Operator, measurement and noise in the model's units, as `posterior` and `red_diff` take them."""

    operator: Any
    y: Tensor
    noise: float


class ValueRange(NamedTuple):
    """u in [low, high] stands for x in [to_low, to_high]."""

    low: float = 0.0
    high: float = 1.0
    to_low: float = -1.0
    to_high: float = 1.0

    def _line(self) -> tuple[float, float]:
        """(m, k) of u = m + k x."""
        if not (all(map(math.isfinite, self)) and self.low < self.high and self.to_low < self.to_high):
            raise ValueError(f"{self} must have low < high and to_low < to_high, all finite")
        k = (self.high - self.low) / (self.to_high - self.to_low)
        return self.low - k * self.to_low, k

    def user(self, x: Tensor) -> Tensor:
        """The model's data in the user's units."""
        m, k = self._line()
        return m + k * x

    def model(self, u: Tensor) -> Tensor:
        """The user's data in the model's units."""
        m, k = self._line()
        return (u - m) / k

    def problem(self, operator: Any, y: Tensor, noise: float, like: Tensor) -> Problem:
        """y = A u + n as a problem about x; like: any sample (1, *) of the data, for its shape.

        Warns where y lies far outside of what A makes of data in [low, high]: most often the ranges were mixed up.
        """
        m, k = self._line()
        if not is_linear(operator):
            return Problem(Nonlinear(lambda x: operator.A(m + k * x)), y, noise)
        ends = torch.stack([operator.A(torch.full_like(like[:1], v)) for v in (self.low, self.high)])
        reach = float(ends.abs().max())
        if float(y.abs().max()) > 2 * reach + 6 * noise:
            warnings.warn(
                f"|y| reaches {float(y.abs().max()):.3g}, but the operator makes at most about {reach:.3g} of data in "
                f"[{self.low:g}, {self.high:g}]; are the units of y right?",
                stacklevel=2,
            )
        offset = operator.A(torch.full_like(like[:1], m))
        return Problem(operator, (y - offset.to(y)) / k, noise / k)
