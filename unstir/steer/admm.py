"""Consistency with a measurement and across slices: a few ADMM iterations in every row of a run.

    minimise  ½‖A x − y‖² + Σ_r λ_r ‖D_r x‖₁        over x, from where the run is

D_r x are the differences along an axis. With s = D x and the scaled dual w, an iteration is

    b = Aᵀy + Σ ρ Dᵀ(s − w)
    x ← M steps of conjugate gradients on (AᵀA + Σ ρ DᵀD) x = b, from x
    s ← shrink(D x + w, λ/ρ)
    w ← w + D x − s

One iteration with M = 1 a row is enough, because s and w are kept from row to row. A is scaled to ‖A‖ = 1 (y likewise), so
λ and ρ mean the same for every operator. Where ρ is not small against 1, M = 1 may diverge.
(Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models, 2023; on the data prediction: Decomposed Diffusion
Sampler for Accelerating Large-Scale Inverse Problems, 2024.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._random import normal
from ..plan.hooks import CARRIES, Context, Steered
from ..process.base import expand
from .guidance import Transform, evaluate
from .operators import adjoint, conjugate_gradients, is_linear, is_spectral, norm
from .operators.derive import dot, singular

BOUNDARIES = ("reflect", "circular")
Duals = tuple[tuple[Tensor, Tensor], ...]  # (s, w) of every term


# -- differences ---------------------------------------------------------------------------------------------------
def finite_difference(x: Tensor, axis: int, boundary: str = "reflect") -> Tensor:
    """(D x)_k = x_{k+1} − x_k along `axis`, of x's shape; the last entry is 0 ("reflect") or x_0 − x_last ("circular")."""
    return _inner(x.roll(-1, axis) - x, axis, boundary)


def finite_difference_adjoint(u: Tensor, axis: int, boundary: str = "reflect") -> Tensor:
    """(Dᵀ u)_k = u_{k−1} − u_k, the exact adjoint of `finite_difference`."""
    u = _inner(u, axis, boundary)
    return u.roll(1, axis) - u


def _inner(u: Tensor, axis: int, boundary: str) -> Tensor:
    """u with a last entry of 0 along `axis`, unless the axis is a circle."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary={boundary!r} must be one of {', '.join(BOUNDARIES)}")
    if boundary == "circular":
        return u
    return torch.cat([u.narrow(axis, 0, u.shape[axis] - 1), torch.zeros_like(u.narrow(axis, 0, 1))], axis)


def shrink(v: Tensor, threshold: float) -> Tensor:
    """argmin_s τ Σ‖s_i‖ + ½‖s − v‖²:  s_i = v_i max(0, 1 − τ/‖v_i‖), ‖v_i‖ over axis 1 (soft thresholding for one entry)."""
    size = v.norm(dim=1, keepdim=True)
    return v * (1 - threshold / size.clamp_min(torch.finfo(v.dtype).tiny)).clamp_min(0)


class TV(NamedTuple):
    """λ ‖D x‖₁, the total variation along one axis of the state; with several axes the isotropic one, λ Σ √(Σ_axes |D x|²).

    weight: λ ≥ 0.   rho: ρ > 0 (0 only with λ = 0), which sets the speed and not the solution.
    boundary: "reflect" (nothing beyond the ends), or "circular" (the last slice adjoins the first), as published.
    """

    axis: int | tuple[int, ...]
    weight: float
    rho: float
    boundary: str = "reflect"

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)

    def D(self, x: Tensor) -> Tensor:
        """(B, axes, *)."""
        return torch.stack([finite_difference(x, axis, self.boundary) for axis in self.axes], 1)

    def D_adjoint(self, u: Tensor) -> Tensor:
        """(B, *)."""
        pairs = zip(u.unbind(1), self.axes, strict=True)
        return torch.stack([finite_difference_adjoint(part, axis, self.boundary) for part, axis in pairs]).sum(0)

    def check(self, shape: Sequence[int] | None = None) -> None:
        """ValueError for a term that means nothing, or not on states of this shape."""
        if not (0 <= self.weight < math.inf and 0 <= self.rho < math.inf):
            raise ValueError(f"{self}: weight and rho must be finite and at least 0")
        if self.weight > 0 and self.rho == 0:
            raise ValueError(f"{self}: rho must be > 0 where weight is; try 0.01")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"{self}: boundary must be one of {', '.join(BOUNDARIES)}")
        if not self.axes or len(set(self.axes)) < len(self.axes) or any(axis < 1 for axis in self.axes):
            raise ValueError(f"{self}: axis must be one or several different axes of the state, counted with the batch as 0")
        for axis in self.axes if shape is not None else ():
            if axis >= len(shape) or shape[axis] < 2:  # type: ignore[arg-type,index]
                raise ValueError(f"{self}: a state of shape {tuple(shape or ())} has no two neighbours along axis {axis}")


# -- the iteration -------------------------------------------------------------------------------------------------
def admm(
    operator: Any,
    y: Tensor,
    terms: Sequence[TV],
    x: Tensor,
    duals: Duals | None = None,
    *,
    admm_steps: int = 1,
    cg_steps: int = 1,
    size: float | None = None,
) -> tuple[Tensor, Duals]:
    """`admm_steps` iterations of the module from x and (s, w) = `duals` (0 by default): the new x and duals.

    With many steps it solves the problem: reconstruction by total variation, without any model.
    size: ‖A‖, measured if not given (see `measured_norm`).
    """
    for term in terms:
        term.check(x.shape)
    scale = (measured_norm(operator, x) if size is None else size) ** -2

    def curvature(v: Tensor) -> Tensor:
        out = scale * _gram(operator, v)
        for term in terms:
            out = out + term.rho * term.D_adjoint(term.D(v))
        return out

    if duals is None:
        duals = tuple((torch.zeros_like(d), torch.zeros_like(d)) for d in (term.D(x) for term in terms))
    seen = scale * adjoint(operator, y, x)
    for _ in range(admm_steps):
        b = seen
        for term, (s, w) in zip(terms, duals, strict=True):
            b = b + term.rho * term.D_adjoint(s - w)
        x = x + conjugate_gradients(curvature, b - curvature(x), cg_steps)
        moved = []
        for term, (_, w) in zip(terms, duals, strict=True):
            v = term.D(x) + w
            s = shrink(v, term.weight / term.rho) if term.rho else v
            moved.append((s, v - s))
        duals = tuple(moved)
    return x, duals


def _gram(operator: Any, v: Tensor) -> Tensor:
    """AᵀA v, which is V s² Vᵀ v where that is known."""
    if not is_spectral(operator):
        return adjoint(operator, operator.A(v), v)
    c = operator.V_adjoint(v)
    s = singular(operator).to(c.device, c.real.dtype)  # type: ignore[union-attr]
    return operator.V(s**2 * c)


def measured_norm(operator: Any, like: Tensor) -> float:
    """‖A‖: the largest singular value, known or by the power method. like: any state, for its shape.

    Tests the adjoint on the way: with u = x + v of random x and v the gap |⟨A x, A u⟩ − ⟨x, AᵀA u⟩|/‖A x‖‖A u‖ is 0.
    Warns above 0.001, and raises ValueError above 0.1: such a back-projection is not the adjoint.
    """
    x, v = (normal((1, *like.shape[1:]), seed=seed, dtype=like.dtype, device=like.device) for seed in (1, 2))
    ax, au = operator.A(x), operator.A(x + v)
    scale = float(ax.norm() * au.norm())
    if scale == 0:
        raise ValueError(f"operator {type(operator).__name__} gives 0 for random data: it measures nothing")
    gap = float((dot(ax, au) - dot(x, adjoint(operator, au, x))).abs()) / scale
    name = type(operator).__name__
    if not gap <= 0.1:
        raise ValueError(
            f"operator {name} has no exact adjoint: ⟨A x, y⟩ and ⟨x, Aᵀy⟩ differ by {gap:.2g} of their size; "
            "leave A_adjoint out, and the exact one is derived (a filtered back-projection is A_dagger)"
        )
    if gap > 1e-3:
        warnings.warn(f"operator {name}: ⟨A x, y⟩ and ⟨x, Aᵀy⟩ differ by {gap:.2g} of their size", stacklevel=3)
    return float(singular(operator).max()) if is_spectral(operator) else norm(operator, like)  # type: ignore[union-attr]


# -- in a run ------------------------------------------------------------------------------------------------------
class _Consistency:
    """The iteration with what one operator and shape need, measured once; on="state" it is the hook."""

    def __init__(
        self, process: Any, operator: Any, y: Tensor, terms: tuple[TV, ...], warm: bool, steps: dict[str, int]
    ) -> None:
        self.process, self.operator, self.y, self.terms, self.warm, self.steps = process, operator, y, terms, warm, steps
        self._sizes: dict[tuple[int, ...], float] = {}

    def move(self, x: Tensor, ctx: Context | None, branch: str = "") -> Tensor:
        """x after this row's iterations; s and w lie in the run's memory, which resampling permutes and a `State` keeps.

        branch: of guidance around it, each of which has its own.
        """
        shape = tuple(x.shape[1:])
        if len(self.y) not in (1, len(x)):
            raise ValueError(f"y has {len(self.y)} measurements for a batch of {len(x)}; give one for all or one per sample")
        exact = x if x.dtype == torch.float64 else x.float()
        if shape not in self._sizes:
            made = tuple(self.operator.A(exact[:1]).shape[1:])
            if made != tuple(self.y.shape[1:]):
                raise ValueError(f"y has shape {tuple(self.y.shape)}; the operator makes (B, {', '.join(map(str, made))})")
            self._sizes[shape] = measured_norm(self.operator, exact)
        y = self.y.to(exact).expand(len(x), *self.y.shape[1:])
        memory = ctx.run.memory if ctx is not None and self.warm else {}
        key = (self, branch)
        moved, memory[key] = admm(self.operator, y, self.terms, exact, memory.get(key), size=self._sizes[shape], **self.steps)
        return moved.to(x)

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        """X' = α' · the iteration on X'/α', whose expectation given x0 is x0."""
        alpha = self.process.alpha(ctx.to)
        if not ctx.boundary or bool((alpha == 0).any()):
            return None
        alpha = expand(alpha, x)
        return alpha * self.move(x / alpha, ctx)


def admm_consistency(
    model: Any,
    operator: Any,
    y: Tensor,
    terms: Sequence[TV] = (),
    *,
    on: str = "clean",
    admm_steps: int = 1,
    cg_steps: int = 1,
    warm: bool = True,
    carry: str = "noise",
) -> Transform:
    """A denoiser of x0 given y = A x0, whose samples are smooth across slices: unstir.sample(post, plan, shape=…).

    model: a denoiser that knows its process, such as SliceWise(model of slices).
    operator: linear, such as sliced(operator of slices).   y: (B, …) or (1, …).
    terms: what is to be small beside the misfit, such as TV(2, λ, ρ) for volumes (B, C, Z, H, W); none leaves
        `cg_steps` of conjugate gradients on AᵀA x = Aᵀy.
    on: "clean" acts on every data prediction (any process, any plan; `carry` as in `plan.hooks.Steered`),
        "state" on the scaled state x/α after every row, as DiffusionMBIR was published.
    warm: s and w live from row to row of one run; False starts every row from 0.

    One forward call a row, no backward call. Raises ValueError for terms that mean nothing on the state, a y of another
    shape than the operator makes, and an operator whose adjoint is not its adjoint (see `measured_norm`).
    """
    if getattr(model, "process", None) is None:
        raise TypeError(f"model is {type(model).__name__}, which knows no process; give an unstir.Denoiser or SliceWise of one")
    if not callable(getattr(operator, "A", None)) or not is_linear(operator):
        raise ValueError(f"operator is {type(operator).__name__}; it must be linear, with A(x) (see steer.operators)")
    if not isinstance(y, Tensor) or not bool(torch.isfinite(y).all()):
        raise ValueError("y must be a tensor (B, …) of finite numbers")
    if on not in ("clean", "state"):
        raise ValueError(f"on={on!r} must be 'clean' or 'state'")
    if carry not in CARRIES:
        raise ValueError(f"carry={carry!r} must be one of {', '.join(CARRIES)}")
    if on == "state" and model.process.anchored:
        raise ValueError(f"on='state' needs a process without an anchor, whose x/α has the mean x0; {model.process!r} has one")
    for name, value in {"admm_steps": admm_steps, "cg_steps": cg_steps}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    terms = tuple(terms)
    for term in terms:
        term.check()
    step = _Consistency(model.process, operator, y, terms, warm, {"admm_steps": admm_steps, "cg_steps": cg_steps})
    if on == "state":
        return Transform(lambda x, t, ctx, cond: evaluate(model, x, t, ctx, cond), model, hooks=(step,))

    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Any:
        branch = ctx.branch if ctx is not None else ""  # guidance inside leaves its last one
        data = evaluate(model, x, t, ctx, cond)
        moved = step.move(data, ctx, branch)
        return moved if carry == "data" else Steered(moved, data, carry)

    return Transform(rule, model)
