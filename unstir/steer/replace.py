"""Posterior sampling between rows: the part of the state that was measured is drawn anew, as a hook.

Hats are x̂ = x/α, σ̂ = σ/α; a prime is the state that the row leads to. The noise of a hook comes from
the samples' own streams, like that of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._random import draw
from ..plan.hooks import Context
from ..plan.plan import Plan
from ..process import Process
from ..process.base import expand
from ..solvers.transforms import go_up
from .operators import pinv
from .operators.derive import singular

_HOOK = 1 << 33  # the first noise stream of hooks, far from those of plans (row r uses stream r + 1)


def _noise(ctx: Context, like: Tensor) -> Tensor:
    return draw(ctx.run.keys, like.shape[1:], _HOOK + ctx.index, like.dtype, like.device)


class Replace:
    """X' ← X' + A⁺A (α' A⁺y + σ' z − X'): ILVR with a low-pass A, RePaint with a mask.

    until: only where σ̂' ≥ until; 0 goes to the end, where A x = y then holds exactly.
    (ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models, 2021; RePaint: Inpainting
    using Denoising Diffusion Probabilistic Models, 2022.)
    """

    def __init__(self, process: Process, operator: Any, y: Tensor, noise: float, strength: float, until: float = 0.0) -> None:
        if not until >= 0:
            raise ValueError(f"until={until} must be at least 0, the σ̂ below which the state is left alone")
        self.process, self.operator, self.y, self.strength, self.until = process, operator, y, strength, until

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        active = self.process.noise_ratio(ctx.to) >= self.until
        if not ctx.boundary or not bool(active.any()):
            return None
        alpha, sigma = expand(self.process.alpha(ctx.to), x), expand(self.process.sigma(ctx.to), x)
        off = sigma * _noise(ctx, x) - x
        # A⁺A A⁺ = A⁺, so the measurement needs no second projection.
        move = alpha * pinv(self.operator, self.y.to(x), x) + pinv(self.operator, self.operator.A(off), x)
        return x + self.strength * expand(active.double(), x) * move


class DDRM:
    """Rows of their own in the basis of A = U s Vᵀ, x̄ = Vᵀ x̂ and ȳ = Uᵀy/s (Denoising Diffusion Restoration Models, 2022).

        s = 0          x̄' = D̄ + √(1 − η²) σ̂' ε̄ + η σ̂' z,     ε̄ = (x̄ − D̄)/σ̂
        σ̂' < σ_y/s     x̄' = D̄ + √(1 − η²) σ̂' (ȳ − D̄) s/σ_y + η σ̂' z
        σ̂' ≥ σ_y/s     x̄' = (1 − η_b) D̄ + η_b ȳ + √(σ̂'² − η_b² σ_y²/s²) z

    rule="level" is this, as published: a fixed share of noise in every row, which narrows what is not seen
    (15 % of its standard deviation at η = 0.85, with any number of rows). rule="ancestral" takes
    η √(1 − σ̂'²/σ̂²) for η, as DDIM does, and keeps it.

    The plan gives the times; it must make one call a step. With η_b = 1 this is DDNM+. The first state is
    a draw of the prior, which at large σ̂ is no different from the published start.
    """

    def __init__(
        self,
        process: Process,
        operator: Any,
        y: Tensor,
        noise: float,
        strength: float,
        eta: float = 0.85,
        eta_b: float = 1.0,
        rule: str = "level",
    ) -> None:
        if rule not in ("level", "ancestral"):
            raise ValueError(f"rule={rule!r} must be 'level' or 'ancestral'")
        for name, value in {"eta": eta, "eta_b": eta_b}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")
        self.process, self.operator, self.y, self.noise, self.strength = process, operator, y, noise, strength
        self.eta, self.eta_b, self.rule = eta, eta_b, rule
        self._measured: Tensor | None = None  # Uᵀy, the same in every row

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        if ctx.data is None:
            return None
        if not ctx.boundary:
            raise ValueError(f"row {ctx.index} is an inner stage; ddrm needs a plan with one call a step, such as 'ddim'")
        process, operator, data = self.process, self.operator, ctx.data
        level, eta = process.noise_ratio(ctx.to), torch.full_like(process.noise_ratio(ctx.to), self.eta)
        if self.rule == "ancestral":
            eta = eta * (1 - (level / process.noise_ratio(ctx.t)) ** 2).sqrt()
        keep = (1 - eta**2).sqrt()
        epsilon = (ctx.x - expand(process.alpha(ctx.t), x) * data) / expand(process.sigma(ctx.t), x)
        z = _noise(ctx, x)
        free = data + expand(level * keep, x) * epsilon + expand(level * eta, x) * z

        y = self._measured
        if y is None or y.device != x.device or y.real.dtype != x.dtype or y.requires_grad:
            y = self._measured = operator.U_adjoint(self.y.to(x))
        # One call for the three states: the bases may be matrices.
        d, w, f = operator.V_adjoint(torch.cat([data, z, free])).chunk(3)
        s = singular(operator).to(d.device, d.real.dtype)  # type: ignore[union-attr]
        here, keep, eta = (v.to(s).reshape(-1, *[1] * (d.ndim - 1)) if v.ndim else v.to(s) for v in (level, keep, eta))
        seen = s > 0
        inverse = torch.where(seen, 1 / s, 0.0)
        y, r = inverse * y, self.noise * inverse  # ȳ and σ_y/s
        early = (1 - self.eta_b) * d + self.eta_b * y + (here**2 - (self.eta_b * r) ** 2).clamp_min(0).sqrt() * w
        late = d + here * (keep * (y - d) / r.clamp_min(1e-30) + eta * w)
        bars = torch.where(here >= r, early, late)
        hat = free + operator.V(torch.where(seen, bars - f, 0.0))
        return x + self.strength * (expand(process.alpha(ctx.to), x) * hat - x)


class Renoise:
    """X' = α' D + σ' z: every row draws its state anew round the data it was steered to, whatever the plan adds."""

    def __init__(self, process: Process, operator: Any, y: Tensor, noise: float, strength: float) -> None:
        self.process, self.strength = process, strength

    def on_row(self, ctx: Context, x: Tensor) -> Tensor | None:
        if ctx.data is None:
            return None
        if not ctx.boundary:
            raise ValueError(f"row {ctx.index} is an inner stage; daps needs a plan with one call a step, such as 'ddim'")
        alpha, sigma = expand(self.process.alpha(ctx.to), x), expand(self.process.sigma(ctx.to), x)
        return x + self.strength * (alpha * ctx.data + sigma * _noise(ctx, x) - x)


def repaint_plan(plan: Plan, jump: int = 10, repeats: int = 10) -> Plan:
    """RePaint's time travel: at every `jump`-th node go up `jump` nodes by stirring and come down again, repeats − 1 times.

    plan: one call a step without history, such as "ancestral"; nodes are counted from its last node with
    σ > 0, as published. repeats = 1 is the plan itself.
    (RePaint: Inpainting using Denoising Diffusion Probabilistic Models, 2022.)
    """
    rows, process = plan.rows, plan.process
    for name, value in {"jump": jump, "repeats": repeats}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if any(not row.boundary or not row.evaluate or set(row.b) != {0} or row.momentum for row in rows):
        raise ValueError("repaint_plan needs a plan with one call a step and no history, such as 'ancestral' or 'ddim'")
    down = sum(float(process.sigma(row.to)) > 0 for row in rows)  # steps that end at σ > 0
    if repeats > 1 and jump > down:
        raise ValueError(f"jump={jump} is longer than the grid, which has {down} steps above σ = 0")
    out = []
    for i, row in enumerate(rows):
        out.append(row)
        left = down - 1 - i
        if left >= 0 and left % jump == 0 and i + 1 >= jump:
            again = rows[i + 1 - jump : i + 1]
            out += [go_up(process, float(row.to), float(again[0].t)), *again] * (repeats - 1)
    return Plan(out, process, name=f"repaint({plan.name})", order=plan.order)
