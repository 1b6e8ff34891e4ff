"""How much fresh noise should a plan add? Learned, and scored by the law of the ends instead of by trajectories.

Every row of a deterministic plan that keeps both invariants (`table`) is one of a family that keeps them too,

    X_{i+1} = a X_i + (α_{i+1} − a α_i) Σ_j u_ij D_{i−j} + κ σ_{i+1} z,      a = √(1 − κ²) σ_{i+1}/σ_i,      0 ≤ κ ≤ 1:

constant data stay exact (I1), and noise of variance σ_i² becomes noise of variance σ_{i+1}² (I2). κ is the share of the
new noise that is fresh. DDIM with η is κ = η √(1 − e^{−2h}) with the step h in λ, and η = 1 is ancestral sampling.

D is a mean: given X_i the data still vary, with a variance v, and X_{i+1} as above lacks (α_{i+1} − a α_i)² v of its
variance (Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic Models, 2022). So
rows that do not end at σ = 0 may add more, with c_i = σ_{i+1} √(κ_i² + e_i²); e_i > 0 gives up I2, e_i = 0 keeps it. Free
are κ_i, e_i, the inner nodes λ_i, and for a base with history a factor m_i on the weights u_ij of past predictions.

A sample's end now depends on its noises, so it has no teacher. Compared are the two sets, by the energy distance

    E(x, y) = 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖     (0 if and only if the laws are equal; means over i ≠ j, RMS norms),

of features of the ends from the same features of reference samples: given data, or the ends of a fine deterministic plan
from other starts. Start and fresh noises are the same for every candidate, which makes E a smooth function of the
numbers; it is lowered by moving one number at a time, with steps that grow after a success and turn and shrink after a
failure. So any callable is a model. The result is the best, on noises and reference samples that were not fitted to, of
the fitted plan and the starts, η = 0, ½, 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..plan.sample import sample
from ..plan.state import NonFiniteError
from ..process import Process
from ..solvers import plan as make_plan
from .table import Table, project
from .teacher import Cond, Source

Distance = Callable[[Tensor, Tensor], float]
STARTS = (0.0, 0.5, 1.0)  # η
TEACHER_CALLS = 60
STEP = {"noise": 0.15, "extra": 0.15, "times": 0.1, "history": 0.2}  # of the first moves
ROWS = 1024


def energy(x: Tensor, y: Tensor) -> float:
    """The energy distance of two sets (S, F) and (R, F), RMS norms, without bias (so it may be below 0)."""
    x, y, scale = x.double(), y.double(), x.shape[1] ** -0.5
    cross, own, other = (_mean_distance(a, b) for a, b in ((x, y), (x, x), (y, y)))
    inside = len(x) / (len(x) - 1), len(y) / (len(y) - 1)  # leaves out the distances of a sample to itself, which are 0
    return scale * (2 * cross - inside[0] * own - inside[1] * other)


def _mean_distance(x: Tensor, y: Tensor) -> float:
    return sum(float(torch.cdist(rows, y).sum()) for rows in x.split(ROWS)) / (len(x) * len(y))


def noisy_plan(
    table: Table,
    noise: Sequence[float],
    extra: Sequence[float] | None = None,
    history: Sequence[float] | None = None,
    **named: Any,
) -> Plan:
    """The table with κ_i = noise, e_i = extra (0) and m_i = history (1), one a row; a row to σ = 0 adds nothing."""
    more = [0.0] * table.n if extra is None else extra
    factors = [1.0] * table.n if history is None else history
    mix = table.mix * torch.tensor(factors, dtype=torch.float64)[:, None]
    mix = mix + torch.diag(1 - mix.sum(1))  # the newest prediction takes the rest
    plain = replace(table, mix=mix).plan()
    t = torch.tensor(table.times(), dtype=torch.float64)
    alpha, sigma = table.process.alpha(t).tolist(), table.process.sigma(t).tolist()
    rows = []
    for i, (row, k, e) in enumerate(zip(plain.rows, noise, more, strict=True)):
        a = math.sqrt(1 - k * k) * sigma[i + 1] / sigma[i]
        weight = alpha[i + 1] - a * alpha[i]
        b = {i - j: weight * float(mix[i, j]) for j in range(i + 1) if mix[i, j] != 0 or j == i}
        rows.append(replace(row, a=a, b=b, c=math.hypot(k, e) * sigma[i + 1]))
    return Plan(rows, table.process, **named)


def ancestral(table: Table, eta: float) -> list[float]:
    """κ_i = η √(1 − e^{−2h_i}), the shares of DDIM with η; e^{−h} = (σ_{i+1}/σ_i)(α_i/α_{i+1})."""
    t = torch.tensor(table.times(), dtype=torch.float64)
    alpha, sigma = table.process.alpha(t), table.process.sigma(t)
    ratio = sigma[1:] * alpha[:-1] / (sigma[:-1] * alpha[1:])
    return (eta * (1 - ratio**2).clamp_min(0).sqrt()).tolist()


def learn_noise(
    model: Any,
    nfe: int,
    *,
    base: Plan | str = "ddim",
    data: Tensor | None = None,
    free: Sequence[str] = ("noise", "extra", "times", "history"),
    distance: Distance = energy,
    features: Callable[[Tensor], Tensor] | None = None,
    samples: int = 1024,
    validation: int = 1024,
    sweeps: int = 12,
    process: Process | None = None,
    shape: Sequence[int] | None = None,
    start: float = 1.0,
    end: float = 0.0,
    teacher: Plan | int = TEACHER_CALLS,
    batch: int = 256,
    seed: int = 0,
    cond: Cond = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """A plan of `nfe` calls whose amount of noise suits this model, see the module.

    base: a deterministic plan, or the name of its solver.   data: real samples (R, *) to compare with; by default the
        ends of `teacher` (a plan, or calls of the default solver), which know nothing beyond the model.
    free: what may move, of "noise" κ, "extra" e, "times" λ and "history" m.
    distance: a function of two sets of features, (S, F) and (R, F).   features: (B, *) -> (B, F); the values themselves.
    samples, validation: noises to fit to, and to choose by; the reference samples are divided in the same proportion.
    sweeps: rounds over all numbers.
    The other arguments are those of `learn`. `plan.options["learned_noise"]` holds the distances on the validation noises of
    the result and of every start. Raises ValueError or TypeError naming the argument.
    """
    _check(nfe, samples, validation, sweeps, free)
    source = Source.of(model, process, shape, seed, cond, start, batch, dtype, device)
    given = base if isinstance(base, Plan) else make_plan(base, source.process, nfe=nfe, start=start, end=end)
    if len(given) != nfe:
        raise ValueError(f"base={given.name!r} has {len(given)} calls and nfe={nfe}; give a plan of that many calls")
    table = project(given, shifts=False)

    def seen(x: Tensor) -> Tensor:
        return (x if features is None else features(x)).flatten(1)

    def ends(plan: Plan, index: Sequence[int]) -> Tensor:
        parts = []
        for part in source.chunks(index):
            more = source.conditions(part)
            anchor = more.pop("anchor", None)
            x = source.process.uncentre(source.start_state(part), start, anchor)
            parts.append(seen(sample(model, plan, x=x, anchor=anchor, seed=seed, index=part, **more)))
        return torch.cat(parts)

    fit, held = range(samples), range(samples, samples + validation)
    with torch.no_grad():
        if data is None:
            guide = make_plan("auto", source.process, teacher, start=start, end=end) if isinstance(teacher, int) else teacher
            real = ends(guide, range(samples + validation, 2 * (samples + validation)))  # other starts than the plans'
        else:
            real = seen(_samples(data, source))
        cut = round(len(real) * samples / (samples + validation))
        halves = {fit: real[:cut], held: real[cut:]}

        def score(numbers: dict[str, list[float]], index: range) -> float:
            moved = replace(table, lam=torch.tensor(numbers["times"], dtype=torch.float64))
            if not moved.valid() or not all(0 <= k <= 1 for k in numbers["noise"]) or min(numbers["extra"]) < 0:
                return math.inf
            try:
                value = float(distance(ends(_plan(table, numbers), index), halves[index]))
            except NonFiniteError:
                return math.inf
            return value if math.isfinite(value) else math.inf

        still = {"extra": [0.0] * table.n, "times": table.lam.tolist(), "history": [1.0] * table.n}
        begun = {eta: {"noise": ancestral(table, eta), **still} for eta in STARTS}
        first = min(begun.values(), key=lambda numbers: score(numbers, fit))
        learned, trained = _descend(lambda numbers: score(numbers, fit), first, table, free, sweeps)
        found = {f"eta={eta:g}": score(numbers, held) for eta, numbers in begun.items()} | {"learned": score(learned, held)}
    best = min(found, key=lambda name: found[name])
    numbers = learned if best == "learned" else begun[float(best.removeprefix("eta="))]
    record = {"seed": seed, "samples": samples, "validation": validation, "base": given.name, "train_distance": trained}
    record |= {
        "validation_distance": found[best],
        "distances": found,
        "kept": best,
        "noise": numbers["noise"],
        "extra": numbers["extra"],
    }
    return _plan(table, numbers, name=f"learned-noise-{nfe}", options={"learned_noise": record})


def _plan(table: Table, numbers: dict[str, list[float]], **named: Any) -> Plan:
    moved = replace(table, lam=torch.tensor(numbers["times"], dtype=torch.float64))
    return noisy_plan(moved, numbers["noise"], numbers["extra"], numbers["history"], **named)


def _descend(
    score: Callable[[dict[str, list[float]]], float],
    first: dict[str, list[float]],
    table: Table,
    free: Sequence[str],
    sweeps: int,
) -> tuple[dict[str, list[float]], float]:
    """One number at a time: a success makes its next step half as long again, a failure turns and halves it."""
    numbers, value = {kind: list(values) for kind, values in first.items()}, score(first)
    past = [i for i in range(table.n) if bool((table.mix[i, :i] != 0).any())]
    ends_clean = float(table.process.sigma(table.end)) == 0
    noisy = list(range(table.n - ends_clean))
    where = {"noise": noisy, "extra": noisy, "times": list(range(table.n - 1)), "history": past}
    steps = {(kind, i): STEP[kind] for kind in free for i in where[kind]}
    for _ in range(sweeps):
        for (kind, i), step in list(steps.items()):
            moved = {k: list(v) for k, v in numbers.items()}
            moved[kind][i] += step
            if kind in ("noise", "extra"):
                moved[kind][i] = min(max(moved[kind][i], 0.0), 1.0)
            tried = score(moved) if moved != numbers else math.inf
            if tried < value:
                numbers, value, steps[kind, i] = moved, tried, 1.5 * step
            else:
                steps[kind, i] = -0.5 * step
    return numbers, value


def _samples(data: Tensor, source: Source) -> Tensor:
    if not isinstance(data, Tensor) or tuple(data.shape[1:]) != source.shape or len(data) < 8:
        shape = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data={shape} must be a tensor of at least 8 samples of shape {source.shape}")
    return data.to(source.device, source.dtype)


def _check(nfe: int, samples: int, validation: int, sweeps: int, free: Sequence[str]) -> None:
    for name, value, least in (("nfe", nfe, 1), ("samples", samples, 8), ("validation", validation, 8), ("sweeps", sweeps, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    if isinstance(free, str) or not set(free) <= set(STEP):
        raise ValueError(f"free={free!r} must name some of {', '.join(STEP)}")
