"""Plug-and-play conditions: energies of the data prediction, each within its own range of noise levels.

    through the network     D' = D − σ̂ Σ_m λ_m ∇_x̂ ℓ_m(D(x, t))      steered diffusion
    past the network        D ← D − s Σ_m λ_m ∇_D ℓ_m(D)               FlowChef

with x̂ = x/α, σ̂ = σ/α, so both are the same on every process. Linear conditions have a closed form,
`posterior(…, "steered")`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser.inner import Steered
from ..plan.hooks import Context
from ..process.base import expand, float64
from .guidance import Transform, evaluate, needs_score


@dataclass(frozen=True)
class Term:
    """λ ℓ(D) where low ≤ σ̂ ≤ high. energy: D (B, *) -> (B,), one number a sample, small where D is as wanted.

    Outside its window a term costs nothing: an inverse model that knows only clean pictures is no guide at high σ̂.
    """

    energy: Callable[[Tensor], Tensor]
    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf
    name: str = "energy"

    def __post_init__(self) -> None:
        if not callable(self.energy):
            raise TypeError(f"energy is {type(self.energy).__name__}; it must be a function D (B, *) -> (B,)")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of the term {self.name!r} must be finite")
        if not 0 <= self.low < self.high:
            raise ValueError(f"the window of the term {self.name!r} is empty: low={self.low}, high={self.high} (in σ̂)")
        if self.weight < 0:
            warnings.warn(f"weight={self.weight} < 0: the term {self.name!r} repels", stacklevel=3)


def steered(model: Any, terms: Sequence[Term] | Term) -> Transform:
    """D' = D − σ̂ Σ λ ∇_x̂ ℓ(D(x, t)), the noise estimate recomputed from D'; one backward call where a term is active.

    Several steps a level, as the paper has, are rows: `repaint_plan(plan, 1, steps)`.
    (Steered Diffusion: A Generalized Framework for Plug-and-Play Conditional Image Synthesis, 2023.)
    """
    terms = _terms(model, terms, "steered")
    needs_score(model, "steered")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
        active = _active(model, terms, t)
        if not active:
            return evaluate(model, x, t, ctx, cond)
        with torch.enable_grad():
            u = x.detach().requires_grad_(True)
            data = evaluate(model, u, t, ctx, cond)
            if not data.requires_grad:
                raise ValueError("steered differentiates the model, whose result has no graph (compiled or without autograd)")
            (slope,) = torch.autograd.grad(_total(active, data), u)
        return data.detach() - expand(model.process.sigma(t), x) * slope  # σ̂ ∇_x̂ = σ ∇_x

    return Transform(rule, model)


def flowchef(
    model: Any, terms: Sequence[Term] | Term, step: float = 1.0, *, inner: int = 1, carry: str = "velocity"
) -> Transform:
    """`inner` steps D ← D − s Σ λ ∇ℓ(D), past the network: no backward call; the last row is not steered.

    step: s.   carry: as published the velocity is kept, which belongs to straight flows; on curved processes "noise" or "data".
    For linear measurements see `posterior(…, "flowchef")`.
    (Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, 2025.)
    """
    if not (math.isfinite(step) and step >= 0):
        raise ValueError(f"step={step} must be finite and at least 0")
    if isinstance(inner, bool) or not isinstance(inner, int) or inner < 1:
        raise ValueError(f"inner={inner!r} must be an integer of at least 1")
    terms = _terms(model, terms, "flowchef")

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Any:
        base = data = evaluate(model, x, t, ctx, cond)
        active = _active(model, terms, t)
        if not active or (ctx is not None and float(model.process.sigma(float64(ctx.to)).max()) == 0):
            return base
        for _ in range(inner):
            with torch.enable_grad():
                u = data.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad(_total(active, u), u)
            data = data - step * slope
        return data if carry == "data" else Steered(data, base, carry)

    return Transform(rule, model)


def _terms(model: Any, terms: Sequence[Term] | Term, what: str) -> tuple[Term, ...]:
    if getattr(model, "process", None) is None:
        raise TypeError(f"{what} needs a model that knows its process (an unstir.Denoiser); {type(model).__name__} does not")
    terms = (terms,) if isinstance(terms, Term) else tuple(terms)
    if not terms or not all(isinstance(term, Term) for term in terms):
        raise TypeError(f"terms={terms!r} must be a steer.Term or several")
    return terms


def _active(model: Any, terms: Sequence[Term], t: Tensor | float) -> list[Term]:
    """The terms whose window contains σ̂ (of a batch with times of its own, the largest)."""
    level = float(model.process.noise_ratio(float64(t)).max())
    return [term for term in terms if term.weight != 0 and term.low <= level <= term.high]


def _total(terms: Sequence[Term], data: Tensor) -> Tensor:
    total = data.new_zeros(())
    for term in terms:
        values = term.energy(data)
        if not isinstance(values, Tensor) or values.shape != (len(data),):
            form = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the term {term.name!r} returned {form} for {len(data)} samples; return one energy a sample, (B,), "
                "so that its weight does not depend on the batch"
            )
        if not values.requires_grad:
            raise ValueError(f"the term {term.name!r} is not differentiable in D")
        total = total + term.weight * values.sum()
    return total
