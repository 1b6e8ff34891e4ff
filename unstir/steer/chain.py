"""A Markov chain over (x, σ): many samples from one model, each a few calls after the last.

The target on the product space is p(x, σ) ∝ p_σ(x)/σ, with p_σ the data blurred by N(0, σ² I). One step is

    Langevin   x ← x + (η/2) s(x, σ) + √η z,     s = (D(x, σ) − x)/σ²
    Gibbs      σ ← the noise level that a classifier sees in x

To emit a sample, a few steps are made, the state with the smallest σ among them is denoised by a plan that
starts at that σ (each chain at its own), and the chain goes on from where it was, not denoised.
(Denoising MCMC for Accelerating Diffusion-Based Generative Models, 2023.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._random import draw, mix, sample_keys
from ..plan import Plan, sample
from ..plan.row import Row
from ..process.base import expand, float64
from .guidance import needs_score

_CHAIN = 1 << 32  # the first noise stream of a chain, far from those of plans (row r uses stream r + 1)


def stacked(plans: Sequence[Plan], ndim: int) -> Plan:
    """Plans of equal form as one, whose sample i follows plans[i]: entries become tensors (B, 1, …) of `ndim` axes.

    Entries that all plans share stay numbers, so equal plans give that plan.
    """
    first = plans[0]
    forms = [[(row.evaluate, sorted(row.b), row.noisy, row.boundary) for row in plan.rows] for plan in plans]
    if any(form != forms[0] for form in forms) or any(plan.process != first.process for plan in plans):
        raise ValueError(
            "plans must have the same process and rows with the same calls and lags; only their numbers may differ"
        )

    def stack(values: Sequence[Any], axes: int) -> Any:
        if all(v == values[0] for v in values):
            return values[0]
        return torch.tensor([float(v) for v in values], dtype=torch.float64).reshape(-1, *[1] * (axes - 1))

    def merge(i: int, row: Row) -> Row:
        rows = [plan.rows[i] for plan in plans]
        entries = {letter: stack([getattr(r, letter) for r in rows], ndim) for letter in "acpqse"}
        b = {lag: stack([r.b[lag] for r in rows], ndim) for lag in row.b}
        return replace(row, **entries, b=b, t=stack([r.t for r in rows], 1), to=stack([r.to for r in rows], 1))

    merged = [merge(i, row) for i, row in enumerate(first.rows)]
    return Plan(merged, first.process, name=f"stacked({first.name})", order=first.order)


class ProductChain:
    """C chains over (x, σ), run together; chain i has its own random stream.

    model: a denoiser on a process with α = 1 (`EDM`, `VE`); another one is seen as such by `model.on(EDM())`.
    level: x (C, *) -> σ (C,), the noise level of each state, such as the arg max of a classifier.
    x, sigma: where the chains start; sigma by default level(x).
    eta: step size, the one knob: small steps stay near the data, so samples are cheap, but mix slowly.
    guard: caps η at guard · σ², since η ≫ σ² throws x far off for one step; None as published.

    x, sigma and nfe (calls per chain so far) may be read and saved at any time.
    """

    def __init__(
        self,
        model: Any,
        level: Callable[[Tensor], Tensor],
        x: Tensor,
        sigma: Tensor | None = None,
        *,
        eta: float,
        seed: int = 0,
        guard: float | None = None,
    ) -> None:
        process = model.process
        needs_score(model, "a Langevin chain")
        if not bool((process.alpha(torch.linspace(0, 1, 5)) == 1).all()):
            raise ValueError(f"model.process is {process!r}; the chain needs α = 1: pass model.on(unstir.process.EDM())")
        if not eta >= 0 or (guard is not None and not guard > 0):
            raise ValueError(f"eta={eta} must be at least 0 and guard={guard} be > 0 or None")
        self.model, self.level, self.eta, self.guard = model, level, eta, guard
        self.x, self.sigma = x, float64(level(x) if sigma is None else sigma)
        self.keys, self.steps, self.nfe = sample_keys(len(x), seed), 0, 0
        self._check(self.sigma)

    def _check(self, sigma: Tensor) -> None:
        top = float(self.model.process.sigma(1.0))
        if sigma.shape != (len(self.x),) or not bool(((sigma > 0) & (sigma <= top * (1 + 1e-9))).all()):
            raise ValueError(
                f"sigma must be ({len(self.x)},) numbers in (0, {top:g}], the levels of the model; "
                f"got shape {tuple(sigma.shape)} up to {float(sigma.max()):g}"
            )

    @torch.no_grad()
    def step(self, count: int = 1) -> None:
        """`count` Langevin–Gibbs steps, one call each."""
        for _ in range(count):
            t = self.model.process.time(-self.sigma.log())
            data = self.model(self.x, t)
            eta = torch.full_like(self.sigma, self.eta)
            if self.guard is not None:
                eta = eta.clamp_max(self.guard * self.sigma**2)
            z = draw(self.keys, self.x.shape[1:], _CHAIN + self.steps, self.x.dtype, self.x.device)
            drift = expand(eta / (2 * self.sigma**2), self.x)
            self.x = self.x + drift * (data - self.x) + expand(eta.sqrt(), self.x) * z
            self.sigma = float64(self.level(self.x))
            self._check(self.sigma)
            self.steps, self.nfe = self.steps + 1, self.nfe + 1

    @torch.no_grad()
    def emit(self, skip: int, plan: Callable[[float], Plan]) -> Tensor:
        """One sample per chain: `skip` steps, then the state with the smallest σ among them denoised by plan(t of that σ).

        The chain itself goes on from its last state.
        """
        if skip < 1:
            raise ValueError(f"skip={skip} must be at least 1; without a step the same sample would be emitted again")
        best, lowest = self.x, self.sigma
        for _ in range(skip):
            self.step()
            lower = self.sigma < lowest
            best = torch.where(lower.reshape(-1, *[1] * (best.ndim - 1)), self.x, best)
            lowest = torch.where(lower, self.sigma, lowest)
        times = self.model.process.time(-lowest.log()).tolist()
        plans = {t: plan(t) for t in set(times)}
        whole = stacked([plans[t] for t in times], best.ndim)
        self.nfe += len(whole)
        return sample(self.model, whole, x=best, seed=[mix(key, self.steps) for key in self.keys])
