"""Exact inversion: data → latent → data without error, for plans that can be run backwards.

A two-step plan (solver "bdia" or "obelm") carries a state X and one remembered F, so its latent is a pair. From a
clean picture at the plan's end the missing F comes from one DDIM step towards noise; after that every row is
undone exactly, one call each, and what is sampled from the pair is the picture again, to rounding.
(Exact Diffusion Inversion via Bi-directional Integration Approximation, 2024.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..plan import Plan, State, sample
from ..solvers import compile_plan, inverse, reversed_plan


class Latent(NamedTuple):
    """What inversion finds at the top of a plan: X_0 and the F_0 of its first row. Both are needed to come back."""

    x: Tensor
    f: Tensor


def invert(model: Any, plan: Plan, x: Tensor, **cond: Any) -> Latent:
    """The latent from which `regenerate` brings back x (B, *), taken as the state at the plan's end; NFE as sampling.

    The model must be deterministic. Raises ValueError if the plan cannot be run backwards, or would multiply the
    rounding of x's dtype beyond 1e-3.
    """
    back = inverse(plan, x.dtype)
    last = plan.rows[-1]
    before = ddim_invert(model, compile_plan("ddim", plan.process, [last.t, last.to]), x, **cond)
    # X_N = a X_{N−1} + b F_{N−1}
    f = (x - float(last.a) * before) / float(last.b[0])
    state = sample(model, back, x=State(before, [0] * len(x), {0: f}), full=True, **cond)
    return Latent(state.x, state.history[max(state.history)])


def regenerate(model: Any, plan: Plan, latent: Latent, **cond: Any) -> Tensor:
    """Sampling from a pair: exact with the model and conditions of `invert`, an edit with other conditions."""
    if not isinstance(latent, tuple) or len(latent) != 2:
        raise TypeError(f"latent is {type(latent).__name__}; pass the pair (X_0, F_0) that invert returned, not X_0 alone")
    first, tail = plan.rows[0], plan.split(row=1)[1]
    x = float(first.a) * latent.x + float(first.b[0]) * latent.f
    return sample(model, tail, x=State(x, [0] * len(x), {0: latent.f}), **cond)


def ddim_invert(model: Any, plan: Plan, x: Tensor, **cond: Any) -> Tensor:
    """Plain DDIM towards noise along the nodes of a one-call-a-step plan: as exact as its steps are small."""
    return sample(model, reversed_plan(compile_plan("ddim", plan.process, plan.times)), x=x, **cond)
