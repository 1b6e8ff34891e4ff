"""Posterior sampling: a denoiser and a measurement y = A x0 + σ_y n become a denoiser of x0 given y.

The formulas are in `shifts` (of the data prediction) and `replace` (hooks between rows); all are in hats,
so they are the same on every process. `METHODS` lists what each keeps (`carry`) and what a row costs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._random import draw
from ..plan.hooks import CARRIES, Context, Steered
from ..process.base import expand
from .daps import daps
from .guidance import Transform, evaluate, needs_score
from .operators import is_linear, is_spectral
from .operators.derive import singular
from .replace import DDRM, Renoise, Replace
from .shifts import Seen, Shift, ddnm, diffpir, dps, flowchef, mcg, pigdm, tmpd

_STREAM = 1 << 35  # the first noise stream of methods that draw within a row, 4096 to each


class Method(NamedTuple):
    """A method: its function, what is carried, its network calls a row (backward: at most), and what it asks of the problem."""

    make: Callable[..., Any]
    carry: str = "data"  # as published; see `unstir.plan.hooks.Steered`
    forward: int = 1
    backward: int = 0
    hook: bool = False  # works between rows, through the transform's own hook
    needs: str = "linear"  # operator: "linear", "spectral", "inverse" (linear, or with A_dagger) or "any"
    noiseless: bool = False
    after: Callable[..., Any] | None = None  # a hook that runs too


METHODS: dict[str, Method] = {
    "ddnm": Method(ddnm, "noise", needs="inverse", noiseless=True),
    "diffpir": Method(diffpir),
    "pigdm": Method(pigdm, "noise", backward=1, needs="inverse"),
    "tmpd": Method(tmpd, backward=6),  # steps + 1
    "dps": Method(dps, "noise", backward=1, needs="any"),
    "ddrm": Method(DDRM, hook=True, needs="spectral"),
    "mcg": Method(mcg, "noise", backward=1, noiseless=True, after=Replace),
    "daps": Method(daps, forward=5, needs="any", after=Renoise),  # forward: the option ode
    "steered": Method(ddnm, needs="inverse", noiseless=True),
    "flowchef": Method(flowchef, "velocity", needs="any"),
    "ilvr": Method(Replace, hook=True, noiseless=True),
    "repaint": Method(Replace, hook=True, noiseless=True),
}


def posterior(
    model: Any,
    operator: Any,
    y: Tensor,
    method: str = "pigdm",
    noise: float = 0.0,
    *,
    strength: float = 1.0,
    carry: str | None = None,
    **options: Any,
) -> Transform:
    """A denoiser of x0 given y = A x0 + σ_y n, for any plan: unstir.sample(post, plan).

    model: a denoiser that knows its process.   operator: see `steer.operators`; any of `deepinv.physics`.
    y: (B, …) or (1, …), in the units of the model's data.   noise: σ_y, in the same units.
    method, each with one forward call a row unless it says otherwise:
        "pigdm"    ΠGDM; 1 backward call; option data_std
        "tmpd"     moment matching; at most steps + 1 backward calls; options steps, data_std, below
        "dps"      DPS; 1 backward call; any differentiable operator; strength is ζ
        "diffpir"  DiffPIR, a proximal step; options lam, data_std
        "ddnm"     DDNM, a projection; σ_y = 0
        "ddrm"     DDRM, which is DDNM+ too; a hook; spectral operators; options eta, eta_b, rule
        "mcg"      DPS within the null space, and the seen part drawn anew; σ_y = 0; 1 backward call
        "daps"     DAPS: a draw of x0 round the end of a short run, stirred anew; `ode` forward calls; any
                   differentiable operator; options ode, data_std, langevin, rate
        "flowchef" gradient steps on D, no backward call; any differentiable operator; options step, inner
        "steered"  steered diffusion with a linear condition: DDNM that recomputes the noise estimate
        "ilvr"     after every row the seen part is drawn anew from y; a hook; σ_y = 0; option until
        "repaint"  the same, with the rows of `steer.repaint_plan`
    strength: D' = D + strength · (D* − D), of a hook likewise for X; 0 is the model itself.
    carry: what a row keeps when D changes, "data", "noise" or "velocity"; by default as in `METHODS`. "data" samples
        the posterior where D* is exact; "noise" pulls harder, which restores better with trained networks.

    The result has `method`, its entry of `METHODS`, and `hooks`, which the executor runs by itself.
    Raises ValueError or TypeError for an operator that the method cannot use, a y that A cannot give, and
    options that the method does not have.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; one of {', '.join(METHODS)}")
    entry = METHODS[method]
    if getattr(model, "process", None) is None:
        raise TypeError(f"posterior needs a model that knows its process (an unstir.Denoiser); {type(model).__name__} does not")
    if method not in ("ddnm", "steered"):  # projections of D; all others rest on Gaussian noise
        needs_score(model, f"method={method!r}")
    for name, value in {"noise": noise, "strength": strength}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be finite and at least 0")
    if entry.noiseless and noise > 0:
        raise ValueError(
            f"method={method!r} takes y for exact, but noise={noise}; use 'pigdm', 'tmpd', 'diffpir', 'ddrm' or 'daps'"
        )
    if carry is not None and (entry.hook or carry not in CARRIES):
        raise ValueError(f"carry={carry!r} must be one of {', '.join(CARRIES)}, and None for a method that is a hook")
    _check_options(method, entry, options)
    _check_operator(method, entry.needs, operator)
    y = check_measurement(operator, y, getattr(model, "shape", None), noise)
    if entry.hook:
        hook = entry.make(model.process, operator, y, noise, strength, **options)
        transform = Transform(lambda x, t, ctx, cond: evaluate(model, x, t, ctx, cond), model, hooks=(hook,))
    else:
        shift = entry.make(noise, **options)
        rule = _steered(model, operator, y, shift, strength, carry or entry.carry, entry.backward > 0)
        after = () if entry.after is None else (entry.after(model.process, operator, y, noise, strength),)
        transform = Transform(rule, model, hooks=after)
    transform.method = entry  # type: ignore[assignment]
    return transform


def _steered(
    model: Any, operator: Any, y: Tensor, shift: Shift, strength: float, carry: str, differentiates: bool
) -> Callable[..., Any]:
    def rule(x: Tensor, t: Tensor | float, ctx: Context | None, cond: dict[str, Any]) -> Any:
        if differentiates:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                data = evaluate(model, x, t, ctx, cond)
            if not data.requires_grad:
                raise ValueError(
                    "the method differentiates the model, whose result has no graph (compiled or run without autograd)"
                )
        else:
            data = evaluate(model, x, t, ctx, cond)
        process, to = model.process, t if ctx is None else ctx.to
        seen = Seen(
            operator,
            y.to(data),
            x,
            data,
            process.alpha(t),
            process.sigma(t),
            process.noise_ratio(to),
            lambda u, level: _again(model, process, u, level, ctx, cond),
            lambda k, like: _normal(ctx, k, like),
        )
        if len(y) not in (1, len(x)):
            raise ValueError(f"y has {len(y)} measurements for a batch of {len(x)}; give one for all or one per sample")
        move = shift(seen)
        base, move = (data.detach(), move.detach()) if differentiates else (data, move)
        moved = base + strength * move
        return moved if carry == "data" else Steered(moved, base, carry)

    return rule


def _again(model: Any, process: Any, hat: Tensor, level: Tensor, ctx: Context | None, cond: dict[str, Any]) -> Tensor:
    """D at x̂ and σ̂ (a number or (B,)): x = α x̂ at the time of that level."""
    t = process.time(-level.log())
    return evaluate(model, expand(process.alpha(t), hat) * hat, t, ctx, cond)


def _normal(ctx: Context | None, k: int, like: Tensor) -> Tensor:
    if ctx is None:
        raise ValueError("the method draws noise, which belongs to a run: use it with unstir.sample, not by a call of its own")
    return draw(ctx.run.keys, like.shape[1:], _STREAM + (ctx.index << 12) + k, like.dtype, like.device)


# -- what is asked of the arguments --------------------------------------------------------------------------------
def _check_options(method: str, entry: Method, options: dict[str, Any]) -> None:
    known = [name for name, p in inspect.signature(entry.make).parameters.items() if p.default is not p.empty]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"method={method!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
        if name == "data_std" and not (value is not None and 0 < value < math.inf):
            raise ValueError(f"data_std={value} must be a finite number > 0, the standard deviation of the data")


def _check_operator(method: str, needs: str, operator: Any) -> None:
    if not callable(getattr(operator, "A", None)):
        raise TypeError(f"operator is {type(operator).__name__}; it must have a method A(x) (see steer.operators)")
    linear = is_linear(operator)
    if needs == "spectral" and not is_spectral(operator):
        raise ValueError(
            f"method={method!r} needs an operator with a singular value decomposition (V, V_adjoint, U, U_adjoint, s); "
            "use 'pigdm', 'tmpd' or 'diffpir' for this one"
        )
    if (needs == "linear" and not linear) or (needs == "inverse" and not linear and not hasattr(operator, "A_dagger")):
        also = "" if needs == "linear" else " or has A_dagger"
        raise ValueError(f"method={method!r} needs an operator that is linear{also}; use 'dps' for this one")


def check_measurement(operator: Any, y: Any, shape: Any, noise: float) -> Tensor:
    """y, without the part that no x can give: it is noise, or a mistake where σ_y = 0."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y is {type(y).__name__}; give the measurement as a tensor (B, …)")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y contains NaN or infinite values")
    if shape is not None:
        made = operator.A(torch.zeros(1, *shape, dtype=y.dtype, device=y.device))
        if y.shape[1:] != made.shape[1:]:
            raise ValueError(f"y has shape {tuple(y.shape)}; the operator makes (B, {', '.join(map(str, made.shape[1:]))})")
    if not is_spectral(operator):
        return y
    c = operator.U_adjoint(y)
    possible = operator.U(torch.where(singular(operator).to(c.device) > 0, c, 0.0))  # type: ignore[union-attr]
    outside = float((y - possible).norm() / y.norm().clamp_min(1e-12))
    if noise == 0 and outside > 0.01:
        raise ValueError(
            f"y: {outside:.0%} of it lies outside the range of the operator (no x gives it; values under a mask?), "
            "and noise=0; give y = operator.A(x), or noise="
        )
    return possible
