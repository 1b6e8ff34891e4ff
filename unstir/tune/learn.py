"""`learn`: the numbers of a plan fitted to one model and one budget of calls.

A sampler is a table of numbers; the best table depends on the model. `learn` starts from the best fixed plan, and moves
node times, the noise levels that the network is told, and the weights of past predictions (`table`) so that the end of
every run comes close to the end of the model's own exact trajectory through the same noise (`teacher`), by Gauss–Newton
(`fit`), on plain noises and those of a larger pool that are hard (`pool`). Both row invariants are kept. A plan that is
not better on noises it was neither fitted to nor chosen by is not returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..process import Process
from ..solvers import plan as make_plan
from .fit import Fit, Runner, gauss_newton
from .pool import finer, hardest, stratified
from .resume import load_fit, save_fit, signature
from .starts import Fixed, best_start, fixed_plans, plan_error, probe
from .teacher import Chunk, Cond, Source
from .verdict import finish

TEACHER_CALLS = 60
RIVALS = 4  # fixed plans, best on plain noises, of which the base is the best on plain and hard ones
LAGS = 4  # history of a learned plan of more than FULL calls; shorter ones use all of it
FULL = 10


class Progress(NamedTuple):
    """Where a run stands: NFE, step of `steps`, validation error now and of the base, seconds since the start."""

    nfe: int
    step: int
    steps: int
    error: float
    base_error: float
    seconds: float


def learn(
    model: Any,
    nfe: int | Sequence[int],
    *,
    process: Process | None = None,
    shape: Sequence[int] | None = None,
    samples: int = 512,
    validation: int = 256,
    pool: int = 4,
    focus: int = 192,
    steps: int = 12,
    start: float = 1.0,
    end: float = 0.0,
    base: Plan | str | None = None,
    teacher: Plan | int | str = "auto",
    batch: int = 256,
    seed: int = 0,
    cond: Cond = None,
    loss: str | Callable[[Tensor], Tensor] = "rms",
    keep_invariants: bool = True,
    shifts: bool = True,
    constant: bool | str = "auto",
    lags: int | None = None,
    pull: float = 0.0,
    guard: bool = True,
    note: str = "",
    progress: Callable[[Progress], None] | None = None,
    folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """The best plan of `nfe` calls that can be found for `model`; for several, {nfe: plan} of one run.

    model: a `Denoiser`, or any callable model(x, t, **cond) with `process=` (and shape=): guided, steered, compiled.
    shape: of one sample, by default the model's.   samples, validation: noises to fit to, and to choose by.
    pool: so many noises are looked at for each of them; half of them are the hardest of these (`pool`); 1: all are plain.
    focus: of the samples that each Jacobian is estimated on (`fit`), which is most of the cost.
    steps: at most so many Gauss–Newton steps, the first half of them robust (`fit`).
    base: the plan to start from and to beat, a solver's name, or None: the best of `starts.SOLVERS` on the validation noises.
    teacher: a plan, its calls, or "auto" (60 calls of the default solver, at least 4 nfe).
    cond: {name: tensor} read in turn by the samples, or a function of their indices: train over the conditions
        (labels, prompts, anchors, guidance scales as inputs) that the plan will be used with.
    loss: "rms" in the state's space, or a function (B, *) -> (B, F) whose features are compared.
    keep_invariants: False also frees the two gains of every row.   shifts: may the level told to the network differ
        from the state's?   lags: history; all of it up to 10 calls, else 4.
    constant: replace D at the start, where the state is pure noise, by its mean, so that n calls do the work of n + 1;
        "auto": if it is the same for all samples (within 15 % of the data's root mean square).
    pull: weight of ‖θ − θ_base‖² beside the mean square error.
    guard: refuse a plan whose ends are further from the teacher's in Fréchet distance than the base's.
    note: kept with the plan, for example the guidance scale.
    folder: keeps the teacher's ends and the state of every step; the same call again goes on from there.
    dtype: of the states; float64 for a model without parameters, else float32.

    `plan.options["learned"]` says how it came about: samples, seed, errors before and after on the validation noises.
    Raises ValueError or TypeError naming the argument. Source: new here; the idea of learned coefficients is in
    A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models, 2024.
    """
    budgets = [nfe] if isinstance(nfe, int) else list(nfe)
    _check(budgets, samples, validation, pool, focus, steps, batch, pull, loss, base)
    source = Source.of(model, process, shape, seed, cond, start, batch, dtype, device)
    runner, keep = Runner(model, None if isinstance(loss, str) else loss), None if folder is None else Path(folder)
    began, plans = time.perf_counter(), {}
    with torch.no_grad():
        guide = _teacher(teacher, source.process, max(budgets), start, end)
        pools = range(pool * samples), range(pool * samples, pool * (samples + validation))
        hards = [0 if pool == 1 else count // 2 for count in (samples, validation)]
        plain = [
            source.teach(guide, numbers[: count - hard], keep)
            for numbers, count, hard in zip(pools, (samples, validation), hards, strict=True)
        ]
        used = pools[1].stop

        def unseen(first: int, count: int) -> list[Chunk]:
            return source.teach(guide, range(used + first, used + first + count), keep)

        for n in budgets:
            fixed, tried = fixed_plans(source, runner, plain[1], n, end, base)
            form = {"lags": lags if lags is not None or n <= FULL else LAGS, "free": not keep_invariants, "shifts": shifts}
            file = None
            if keep is not None:
                kind = loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__)
                facts = (samples, validation, pool, focus, pull, constant, form, kind)
                file = keep / f"learn-{n}-{signature(source, guide, fixed[0].plan, *facts)}.json"
            fit = load_fit(file, source.process) or best_start(
                source, runner, fixed, plain[0], plain[1], n, end, constant, form
            )
            fine = finer(source, fixed[0].plan, n, end)

            def report(fit: Fit, n: int = n, error: float = fixed[0].error, file: Path | None = file) -> None:
                save_fit(file, fit)
                if progress is not None:
                    progress(Progress(n, fit.done, steps, fit.best_error, error, time.perf_counter() - began))

            both = plain
            for stage in (1, 2):
                if fit.stage < stage:
                    fit.table = fit.best or fit.table
                    now = fit.table.plan()
                    fit.hard = tuple(  # type: ignore[assignment]
                        hardest(source, runner, (now, fine), numbers, hard, known)
                        for numbers, hard, known in zip(pools, hards, fit.hard, strict=True)
                    )
                    fit.stage, fit.best, fit.waited = stage, None, 0
                if fit.stage == stage:
                    both = [stratified(source, guide, p, c, h, keep) for p, c, h in zip(pools, plain, fit.hard, strict=True)]
                    last = steps // 2 if stage == 1 else steps
                    gauss_newton(runner, fit, both[0], both[1], last, robust=stage == 1, focus=focus, pull=pull, report=report)
            rivals = [Fixed(plan_error(source, runner, plan, both[1]), plan) for _, plan in fixed[:RIVALS]]
            rival = min(rivals, key=lambda fixed: fixed.error)
            few = probe(plain[1])
            plans[n] = finish(source, runner, fit, rival, both[0], both[1], unseen, few, tried, guide, guard, note)
    return plans[budgets[0]] if isinstance(nfe, int) else plans


def _teacher(teacher: Plan | int | str, process: Process, most: int, start: float, end: float) -> Plan:
    if isinstance(teacher, Plan):
        if teacher.stochastic or (teacher.start, teacher.end) != (start, end):
            raise ValueError(f"teacher={teacher!r} must be deterministic and go from start={start} to end={end}")
        return teacher
    calls = max(TEACHER_CALLS, 4 * most) if teacher == "auto" else teacher
    if isinstance(calls, bool) or not isinstance(calls, int) or calls <= most:
        raise ValueError(f"teacher={teacher!r} must be 'auto', a plan, or a number of calls above nfe={most}")
    return make_plan("auto", process, nfe=calls, start=start, end=end)


def _check(
    budgets: list[Any],
    samples: int,
    validation: int,
    pool: int,
    focus: int,
    steps: int,
    batch: int,
    pull: float,
    loss: Any,
    base: Any,
) -> None:
    if not budgets or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in budgets):
        raise ValueError(f"nfe={budgets} must be an integer of at least 1, or several: the numbers of network calls")
    for name, value, least in (
        ("samples", samples, 8),
        ("validation", validation, 8),
        ("pool", pool, 1),
        ("focus", focus, 8),
        ("steps", steps, 0),
        ("batch", batch, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    if not pull >= 0:
        raise ValueError(f"pull={pull} must be at least 0")
    if loss != "rms" and not callable(loss):
        raise ValueError(f"loss={loss!r} must be 'rms' or a function of end states (B, *) that returns features (B, F)")
    if isinstance(base, Plan) and any(len(base) != n for n in budgets):
        raise ValueError(f"base has {len(base)} calls and nfe={budgets}; give a plan of that many calls, or a solver's name")
