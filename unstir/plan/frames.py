"""What the rows of an anchored plan act on: one of the frames of `process.frames`.

    "centred"    the default: an ordinary diffusion, so that every solver applies
    "residual"   what is published as Euler's method in x is a table in x − y and D − y only
    "raw"        for rows in which y cancels, see the solver "bridge"

Centred and residual agree for every plan that lands constant data on α (`Plan.invariants`), so for all solvers of the
catalogue. Whatever the frame, a caller gives and gets x, and the model is given x.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoiser.inner import Steered


def residual(data: Any, anchor: Tensor) -> Any:
    """D − y of a model's result."""
    if type(data) is Steered:
        return Steered(data.data - anchor, data.base - anchor, data.carry)
    return data - anchor


def blind(plan: Any) -> bool:
    """Does y cancel in every row, x' = a x + Σ b F + c z? Then a network that does not see the anchor will do."""
    if hasattr(plan, "generate") or not all(row.numeric and isinstance(row.t, float) for row in plan.rows):
        return False
    if plan.frame == "residual":  # x' − y = a (x − y) + b (D − y)
        return all(abs(row.a + sum(row.b.values()) - 1) <= 1e-9 for row in plan.rows)
    beta = plan.process.beta
    return plan.frame == "raw" or all(abs(row.a * float(beta(row.t)) - float(beta(row.to))) <= 1e-9 for row in plan.rows)
