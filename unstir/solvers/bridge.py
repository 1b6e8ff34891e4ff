"""Steps for anchored processes: the bridge step, in which y cancels, and Euler–Maruyama as it is published.

The bridge step is one line for ResShift, Brownian bridges (BBDM), Schrödinger bridges (I2SB, SB-VE) and the ancestral
step of VE; they differ in the rule for its noise:

    x' = r x + (1 − r) D + s z

    rule    r                      s²                        y cancels (r = β'/β) where
    "ve"    σ'²/σ²                 σ'² (1 − r)               β ∝ σ²: ResShift; VE, which has no y
    "vp"    (σ'²/σ²)(α/α')         σ'² (1 − σ̂'²/σ̂²)          Brownian bridges; VE

σ̂ = σ/α; "vp" is the ancestral step of DDPM. On the centred state u = x − βy it is X' = r X + (α' − rα) D + s z, one of
the steps of `onestep` with its ρ = σ'/σ or σ̂'/σ̂, and right for any process; where y cancels, the network need not see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from ..plan.plan import Plan
from ..plan.row import Row
from ..process import Process
from .levels import Levels
from .onestep import non_negative, one_number
from .registry import compiler

RULES = ("auto", "ve", "vp")


@compiler
def bridge(levels: Levels, rule: str = "auto", eta: float = 1.0) -> Iterator[Row]:
    """The bridge step, see the module. rule="auto" takes the one in which y cancels, "vp" where neither or both do.

    eta: multiplies s, the mean following, so that the marginals stay right: ρ² = 1 − η² s²/σ'². 0 is DDIM. For η ≠ 1 y
    does not cancel, and the network must see it.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {', '.join(RULES)}")
    non_negative(eta=eta)
    if rule == "auto":
        rule = "ve" if _proportional(levels) else "vp"

    def rho(i: int, kappa: float) -> float:
        plain = levels.sigma[i + 1] / levels.sigma[i] if rule == "ve" else kappa
        return plain if eta == 1 else math.sqrt(max(0.0, 1 - eta**2 * (1 - plain**2)))

    return one_number(levels, rho)


def _proportional(levels: Levels) -> bool:
    """β ∝ σ²?"""
    beta = levels.process.beta(torch.tensor(levels.times, dtype=torch.float64)).tolist()
    return beta[0] > 0 and all(
        abs(b / beta[0] - (s / levels.sigma[0]) ** 2) < 1e-9 for b, s in zip(beta, levels.sigma, strict=True)
    )


def reverse_diffusion(process: Process, times: Sequence[float], *, ode: bool = False) -> Plan:
    """Euler–Maruyama on dx = (f x + h y) dt + g dw backwards, the predictor of score-based models: with Δ = t − t' > 0

        w' = w − (f w − g² s) Δ + g √Δ z,     s = (α D − w)/σ²,     w = x − y, D − y (x and D without an anchor)

    ode: half the score and no noise. A step to σ = 0 adds no noise: the mean is the result. Published speech enhancement
    and IR-SDE's "sde" mode are this with their own spacing. (Score-Based Generative Modeling through SDEs, 2021.)

    Raises ValueError for an anchored process with β ≠ 1 − α, or a start at α = 0 or σ = 0.
    """
    levels = Levels(process, times)
    weights = zip(levels.times, levels.alpha, strict=True)
    if process.anchored and any(abs(float(process.beta(t)) - 1 + alpha) > 1e-9 for t, alpha in weights):
        raise ValueError(f"{process!r} has β ≠ 1 − α: in x − y it is no process of its own, so Euler's method has no table")
    if levels.sigma[0] == 0 or levels.alpha[0] == 0:
        raise ValueError(f"the score or the drift is infinite at t = {levels.times[0]:g}; start the plan below it")
    rows = []
    for i, (t, to) in enumerate(pairwise(levels.times)):
        step, f, variance = t - to, float(process.f(t)), float(process.g(t)) ** 2
        push = (0.5 if ode else 1.0) * variance * step / levels.sigma[i] ** 2
        c = 0.0 if ode or levels.sigma[i + 1] == 0 else math.sqrt(variance * step)
        rows.append(Row(t=t, to=to, a=1 - f * step - push, b={0: push * levels.alpha[i]}, c=c))
    name = "euler-ode" if ode else "reverse-diffusion"
    return Plan(rows, process, name=name, order=1, frame="residual" if process.anchored else "centred")


def refined(plan: Plan) -> Plan:
    """The plan with one more call before it, which replaces the start: X' = α D(X, t_0) + σ z at the same time t_0.

    Where a process does not reach its anchor (`Anchored.mismatch`), the drawn start is off by α (x0 − y); this one is
    off by α (x0 − D) only. A state given as x= is replaced in the same way.
    """
    t = plan.start
    alpha, sigma = float(plan.process.alpha(t)), float(plan.process.sigma(t))
    if not alpha or not sigma:
        raise ValueError(f"{plan.process!r} has α = {alpha:g} and σ = {sigma:g} at the start t = {t:g}: nothing to refine")
    first = Row(t=t, to=t, a=0.0, b={0: alpha}, c=sigma)
    return Plan([first, *(replace(row) for row in plan.rows)], plan.process, name=f"refined({plan.name})", frame=plan.frame)
