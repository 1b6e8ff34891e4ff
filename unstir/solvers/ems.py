"""DPM-Solver-v3: multistep in the parameterisation that three measured curves of the model make linear.

With x̂ = x/α the equation is dx̂/dλ = D − x̂. For curves l, s, b of λ (products elementwise) it reads

    dx̂/dλ = −l x̂ − f,      f = (1 − l) x̂ − D,      f' = s f + b + (what is left),      ' = d/dλ along it

With L = ∫l, S = ∫s and, from the start λ_s of a step, β(λ) = ∫_{λ_s}^λ e^{−(S − S_s)} b dλ, the function
g = e^{−(S − S_s)} f − β varies only by what is left, and exactly

    x_t = (α_t/α_s) A x_s − α_t A ∫_{λ_s}^{λ_t} ω (g + β) dλ,   A = e^{L_s − L_t},   ω = e^{(L + S) − (L_s + S_s)}

where g is replaced by its polynomial through known nodes. `unstir.tune.model_statistics` measures the curves.
(DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, 2023.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .._files import read_tensors, write_tensors
from ..plan.row import Coef, Row
from ..process import Process, from_spec
from .levels import Levels
from .multistep import usable_order
from .registry import compiler

FORMAT = "unstir-statistics-1"
SLACK = 1e-6  # in λ: how far a node may lie beyond the knots, so that times may be rounded


@dataclass(frozen=True, eq=False)
class Statistics:
    """Empirical model statistics: the curves l, s, b of one model at knots of λ, linear in between.

    logsnr: (K,) increasing half log-SNR λ;  l, s, b: (K, *shape), where shape broadcasts over a
    sample: its own shape, (C, 1, 1) or (). process: of the model; note: how they were measured
    (guidance, conditions, …), free text by name. All tensors are float64.
    """

    process: Process
    logsnr: Tensor
    l: Tensor  # noqa: E741  (the paper's letter)
    s: Tensor
    b: Tensor
    note: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("logsnr", "l", "s", "b"):
            value = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            object.__setattr__(self, name, value)
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} contains NaN or infinite values; where f has no variance, s = cov/(var + ε)")
        if self.logsnr.ndim != 1 or len(self.logsnr) < 2 or not bool((self.logsnr.diff() > 0).all()):
            raise ValueError(f"logsnr has shape {tuple(self.logsnr.shape)}; it must be at least 2 strictly increasing knots")
        for name in ("l", "s", "b"):
            if getattr(self, name).shape != (len(self.logsnr), *self.shape):
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}; l, s and b must all be ({len(self.logsnr)}, *shape)"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one knot's l, s, b."""
        return tuple(self.l.shape[1:])

    def at(self, logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(l, s, b) at λ (M,), each (M, *shape): linear between the knots, exact at them."""
        cell = (torch.searchsorted(self.logsnr, logsnr, right=True) - 1).clamp(0, len(self.logsnr) - 2)
        part = (logsnr - self.logsnr[cell]) / (self.logsnr[cell + 1] - self.logsnr[cell])
        part = _column(part, self.l)
        l, s, b = (torch.lerp(curve[cell], curve[cell + 1], part) for curve in (self.l, self.s, self.b))  # noqa: E741
        return l, s, b

    def on(self, process: Process) -> Statistics:
        """The statistics of `model.on(process)`. They are the same: f and f' depend on x/α and λ only."""
        return replace(self, process=process)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, the process and the note in its metadata."""
        metadata = {"format": FORMAT, "process": json.dumps(self.process.spec()), "note": json.dumps(dict(self.note))}
        write_tensors(path, {name: getattr(self, name) for name in ("logsnr", "l", "s", "b")}, metadata)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read what `save` wrote; ValueError if the file is anything else."""
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or set(tensors) != {"logsnr", "l", "s", "b"}:
            raise ValueError(f"{path} holds no model statistics (format {metadata.get('format')!r}, not {FORMAT!r})")
        return Statistics(from_spec(json.loads(metadata["process"])), **tensors, note=json.loads(metadata["note"]))

    def __repr__(self) -> str:
        low, high = float(self.logsnr[0]), float(self.logsnr[-1])
        return f"Statistics({self.process!r}, {len(self.logsnr)} knots, λ {low:.3f} … {high:.3f}, shape {self.shape})"


def _integral(curve: Tensor, axis: Tensor) -> Tensor:
    """∫ of the curve from the first point of the axis to every point, by the trapezoid rule: (K, *shape) → (K, *shape)."""
    return torch.cat([torch.zeros_like(curve[:1]), torch.cumulative_trapezoid(curve, axis, dim=0)])


class _Update(NamedTuple):
    """x_t = a x_s + Σ_m weights_m f_m + constant."""

    a: Tensor
    weights: dict[int, Tensor]
    constant: Tensor


class _Curves:
    """The curves and L, S along `axis`: the knots, and the nodes i of a grid whose λ is finite, at `place[i]`."""

    def __init__(self, stats: Statistics, levels: Levels) -> None:
        self.levels = levels
        nodes = [i for i, lam in enumerate(levels.lam) if math.isfinite(lam)]
        lam = torch.tensor([levels.lam[i] for i in nodes], dtype=torch.float64)
        self.axis = torch.cat([stats.logsnr, lam]).unique()
        self.place = dict(zip(nodes, torch.searchsorted(self.axis, lam).tolist(), strict=True))
        self.l, s, self.b = stats.at(self.axis)
        self.L, self.S = _integral(self.l, self.axis), _integral(s, self.axis)

    def update(self, s: int, nodes: Sequence[int], pseudo: bool) -> _Update:
        """The step from node s to s + 1 with the polynomial of g through `nodes`, of which s is the first."""
        places = [self.place[m] for m in (*nodes, s + 1)]
        window = slice(min(places), max(places) + 1)
        axis, L, S, b = (curve[window] for curve in (self.axis, self.L, self.S, self.b))
        at = {m: self.place[m] - window.start for m in (*nodes, s + 1)}
        scale = self.levels.alpha[s + 1] * (L[at[s]] - L[at[s + 1]]).exp()  # α_t A
        decay = (S[at[s]] - S).exp()  # e^{−(S − S_s)}
        beta = _integral(decay * b, axis)
        beta = beta - beta[at[s]]
        omega, delta = (L - L[at[s]]).exp() / decay, axis - axis[at[s]]

        def over_step(curve: Tensor) -> Tensor:
            """∫_{λ_s}^{λ_t} of the curve."""
            here, there = sorted((at[s], at[s + 1]))
            size = torch.trapezoid(curve[here : there + 1], axis[here : there + 1], dim=0)
            return size if here == at[s] else -size  # −: a grid towards noise

        # With ĝ^(k)/k! = Σ_m T_km g_m:  −α_t A ∫ ω ĝ dλ = Σ_m w_m g_m,  w_m = −α_t A Σ_k T_km ∫ ω (λ − λ_s)^k dλ
        taylor = taylor_weights([float(delta[at[m]]) for m in nodes], pseudo)
        moments = torch.stack([over_step(omega * _column(delta**k, omega)) for k in range(len(nodes))])
        w = dict(zip(nodes, -scale * torch.einsum("km,k...->m...", taylor, moments), strict=True))
        return _Update(
            scale / self.levels.alpha[s],
            {m: w[m] * decay[at[m]] for m in nodes},  # g_m = e^{−(S_m − S_s)} f_m − β_m
            -scale * over_step(omega * beta) - sum(w[m] * beta[at[m]] for m in nodes),
        )


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(K,) as (K, 1, …), to multiply curves (K, *shape)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def taylor_weights(delta: Sequence[float], pseudo: bool = False) -> Tensor:
    """T (n, n) with ĝ^(k)/k! = Σ_m T_km g_m, the Taylor coefficients at δ = 0 from values at δ_0 = 0, δ_1, …, δ_{n−1}.

    Those of the polynomial through all nodes; pseudo: for each k of the one through the first k + 1
    nodes only, whose k-th coefficient is the divided difference g[δ_0 … δ_k].
    """
    n = len(delta)
    inverse = [np.linalg.inv(np.vander(delta[: k + 1], increasing=True)) for k in range(n)]
    rows = [np.pad(inverse[k][k], (0, n - 1 - k)) for k in range(n)] if pseudo else inverse[-1]
    return torch.as_tensor(np.asarray(rows))


@compiler
def ems_multistep(
    levels: Levels,
    stats: Statistics | None = None,
    order: int = 3,
    corrector: bool = True,
    pseudo_predictor: bool = False,
    pseudo_corrector: bool = False,
    lower_final: bool = True,
    correct_when: Callable[[float], bool] | None = None,
) -> Iterator[Row]:
    """DPM-Solver-v3 with the measured `stats`, one call a step; see the module.

    The predictor of step i interpolates g at i, i−1, …; the corrector repeats step i−1 with the new
    node i (nodes i−1, i, i−2, …), which moves X_i but keeps the f_i of the predicted X_i. It has the
    predictor's order, with pseudo_corrector one more and pseudo weights, and is left out at order 1.
    Folded into one row per call (P of step i, P' and Q of step i−1, d their constants):

        F_i = f_i:  p_i = (1 − l_i)/α_i, q_i = −1
        b = P + a (Q − P'),     e = d^P + a (d^Q − d^P')

    The paper uses order 3 for unconditional and 2 for guided models, the corrector below about 10
    calls, pseudo_predictor up to 5. correct_when(t_i): correct at these nodes only. A step from α = 0
    or to σ = 0, where λ is infinite, is of order 1 in data form. ValueError where the statistics are
    of another process or do not cover the grid.
    """
    stats = _check(levels, stats, order)
    curves = _Curves(stats, levels)
    usable = [usable_order(levels, i, order, lower_final) for i in range(levels.n)]
    before: _Update | None = None  # the predictor that landed on node i
    for i in range(levels.n):
        t, to = levels.times[i], levels.times[i + 1]
        if not levels.finite(i):
            a = levels.sigma[i + 1] / levels.sigma[i]
            yield Row(t=t, to=to, a=a, b={0: levels.alpha[i + 1] - a * levels.alpha[i]})
            continue
        step = curves.update(i, [i - j for j in range(usable[i])], pseudo_predictor)
        row, size = step, usable[i - 1] + pseudo_corrector
        if corrector and before and size > 1 and (correct_when is None or correct_when(t)):
            others = [i - 2 - j for j in range(size - 2)]
            row = _folded(step, curves.update(i - 1, [i - 1, i, *others], pseudo_corrector), before)
        yield Row(
            t=t,
            to=to,
            a=_entry(row.a),
            b={i - m: _entry(w) for m, w in sorted(row.weights.items(), reverse=True)},
            p=_entry((1 - curves.l[curves.place[i]]) / levels.alpha[i]),
            q=-1.0,
            e=_entry(row.constant),
        )
        before = step


def _folded(step: _Update, corrected: _Update, predicted: _Update) -> _Update:
    """`step`, started from X + (Q − P')f + d^Q − d^P' instead of X."""
    a, weights = step.a, dict(step.weights)
    for sign, update in ((1, corrected), (-1, predicted)):
        for m, w in update.weights.items():
            weights[m] = weights.get(m, 0.0) + sign * a * w
    return _Update(a, weights, step.constant + a * (corrected.constant - predicted.constant))


def _entry(value: Tensor) -> Coef:
    """A number for scalar statistics, else a tensor with an axis for the batch."""
    return value[None] if value.ndim else float(value)


def _check(levels: Levels, stats: Statistics | None, order: int) -> Statistics:
    if not isinstance(stats, Statistics):
        raise TypeError(f"stats is {type(stats).__name__}; measure them with unstir.tune.model_statistics(model, data)")
    if isinstance(order, bool) or not (isinstance(order, int) and 1 <= order <= 4):
        raise ValueError(f"order={order!r} must be an integer from 1 to 4")
    if stats.process != levels.process:
        raise ValueError(
            f"stats were measured on {stats.process!r}, the plan is for {levels.process!r}; "
            "for a model converted by model.on(process) give stats.on(process)"
        )
    low, high = float(stats.logsnr[0]), float(stats.logsnr[-1])
    for i, (t, lam) in enumerate(zip(levels.times, levels.lam, strict=True)):
        if math.isfinite(lam) and not low - SLACK <= lam <= high + SLACK:
            raise ValueError(
                f"node {i} (t = {t:g}, λ = {lam:.4f}) is outside the range of stats, λ = {low:.4f} … {high:.4f} "
                f"(t = {float(levels.process.time(low)):g} … {float(levels.process.time(high)):g}); "
                "change start, end or the grid, or measure statistics there"
            )
    for i in range(levels.n):
        here, there = sorted(levels.lam[i : i + 2])
        inside = (stats.logsnr >= here - SLACK) & (stats.logsnr <= there + SLACK)
        if levels.finite(i) and int(inside.sum()) < 2:
            raise ValueError(
                f"step {i} (λ = {levels.lam[i]:.4f} … {levels.lam[i + 1]:.4f}) holds fewer than 2 of the "
                f"{len(stats.logsnr)} knots of stats; take fewer steps, or measure more knots"
            )
    return stats
