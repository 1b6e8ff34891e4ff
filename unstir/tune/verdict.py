"""Is a learned plan better? Its figures and provenance, the guard, and the check on other noises or conditions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluate import frechet_moments
from ..plan.plan import Plan
from .fit import Fit, Runner, median
from .starts import Fixed, plan_error, squared_errors
from .teacher import Chunk, Cond, Source, weights

WORSE = 1.05  # a Fréchet distance so many times the base's is a loss, beyond what few samples leave open
Unseen = Callable[[int, int], list[Chunk]]
SURE = 2.0  # standard errors by which a learned plan has to be better on unseen noises
DIMS = 24


def ends(source: Source, plan: Plan, chunks: Sequence[Chunk]) -> Tensor:
    """The end states of a plan on all chunks, on the CPU."""
    return torch.cat([source.run(plan, chunk.x, chunk.cond).cpu() for chunk in chunks])


def spread(x: Tensor) -> float:
    """Sample diversity: the mean distance between samples i and i + 1, per root of the entries."""
    flat = x.double().flatten(1)
    return float((flat - flat.roll(1, 0)).square().mean(1).sqrt().mean())


def distribution(source: Source, plan: Plan, chunks: Sequence[Chunk]) -> dict[str, float]:
    """Fréchet distance from the teacher's ends (24 principal components, fewer for few entries), diversity beside it."""
    goal = torch.cat([chunk.goal.cpu() for chunk in chunks]).double().flatten(1)
    own, w = ends(source, plan, chunks).double().flatten(1), weights(chunks)
    dims = min(DIMS, goal.shape[1], len(goal) // 2)
    axes = torch.linalg.eigh(_moments(goal, w)[1])[1][:, -dims:]
    far = frechet_moments(*_moments(goal @ axes, w), *_moments(own @ axes, w))
    return {"frechet": far, "diversity": spread(own) / spread(goal)}


def _moments(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and covariance."""
    mean = w @ x
    return mean, (w[:, None] * (x - mean)).T @ (x - mean)


def finish(
    source: Source,
    runner: Runner,
    fit: Fit,
    base: Fixed,
    train: Sequence[Chunk],
    held: Sequence[Chunk],
    unseen: Unseen,
    few: Sequence[Chunk],
    tried: Mapping[str, float],
    teacher: Plan,
    guard: bool,
    note: str,
) -> Plan:
    """The learned plan with its record, or the base with the reason why it was kept.

    unseen: (first, count) -> so many plain samples that nothing was chosen by; they have the last word.
    few, tried: the samples on which all fixed plans were tried, and the errors there.
    """
    assert fit.best is not None
    plan = fit.best.plan()
    error = plan_error(source, runner, plan, held)
    record: dict[str, Any] = {
        "seed": source.seed,
        "samples": sum(len(c.x) for c in train),
        "validation": sum(len(c.x) for c in held),
        "steps": fit.done,
        "teacher": {"name": teacher.name, "nfe": len(teacher), "fingerprint": teacher.fingerprint()},
        "base": {"name": base.plan.name, "solver": str(base.plan.options.get("solver", base.plan.name))},
        "base_error": base.error,
        "train_error": plan_error(source, runner, plan, train),
        "validation_error": error,
        "median_error": median_error(source, runner, plan, held),
        "constant": fit.best.constant is not None,
        "note": note,
    }
    test, base_test, sure = _last_word(source, runner, (plan, base.plan), unseen, record["validation"])
    record |= {"test_error": test, "base_test_error": base_test, "standard_errors": sure}
    kept = (
        "" if error < base.error and sure >= SURE else "the learned plan was not surely better on noises it was not chosen by"
    )
    if guard and not kept:
        chunks = [*train, *held]
        before, after = distribution(source, base.plan, chunks), distribution(source, plan, chunks)
        record["distribution"] = {"base": before, "learned": after}
        if after["frechet"] > WORSE * before["frechet"]:
            kept = "the learned plan has a larger Fréchet distance than the base"
    if kept:
        plan = base.plan
    record["tried"] = {
        "samples": sum(len(c.x) for c in few),
        "plan": plan_error(source, runner, plan, few),
        "fixed": dict(tried),
    }
    if kept:
        record |= {"kept_base": kept, "validation_error": base.error, "train_error": plan_error(source, runner, plan, train)}
        record |= {"median_error": median_error(source, runner, plan, held)}
        return Plan(base.plan.rows, source.process, name=base.plan.name, options={**base.plan.options, "learned": record})
    return Plan(plan.rows, source.process, name=f"learned-{len(plan)}", options={"learned": record})


def _last_word(
    source: Source, runner: Runner, plans: tuple[Plan, Plan], unseen: Unseen, count: int
) -> tuple[float, float, float]:
    """The errors of two plans on unseen noises, and by how many standard errors the second's mean square is larger.

    A few noises that end in another mode decide a mean square, so where this is below `SURE`, four times as many are drawn.
    """
    found, squares = (0.0, 0.0, 0.0), ([], [])
    for first, more in ((0, count), (count, 3 * count)):
        chunks = unseen(first, more)
        for known, plan in zip(squares, plans, strict=True):
            known.extend(squared_errors(source, runner, plan, chunks))
        own, other = (torch.cat(known) for known in squares)
        gap = other - own
        sure = float(gap.mean() / (gap.std() / len(gap) ** 0.5).clamp_min(1e-300))
        found = (float(own.mean().sqrt()), float(other.mean().sqrt()), sure)
        if sure >= SURE:
            break
    return found


def median_error(source: Source, runner: Runner, plan: Plan, chunks: Sequence[Chunk]) -> float:
    """Median over the samples of the root-mean-square distance from the teacher's end: blind to a few that change modes."""
    parts = []
    for chunk in chunks:
        r = runner.seen(source.run(plan, chunk.x, chunk.cond), chunk) - runner.seen(chunk.goal, chunk)
        parts.append(r.double().square().mean(1).sqrt().cpu())
    return median(torch.cat(parts), weights(chunks))


class Checked(NamedTuple):
    """The error of a plan now, the one recorded with it, and their ratio; `ok` if that is within the limit."""

    error: float
    recorded: float
    ratio: float
    ok: bool


def check(
    model: Any,
    plan: Plan,
    *,
    process: Any = None,
    shape: Sequence[int] | None = None,
    samples: int = 256,
    seed: int = 1_000_003,
    cond: Cond = None,
    limit: float = 2.0,
    refuse: bool = False,
    teacher: Plan | int = 100,
    batch: int = 256,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Checked:
    """Does a learned plan do for this model and these conditions what its record says?

    Fresh noises, a teacher of the same model: error = median over the samples of the RMS distance from its ends (the RMS
    over all is decided by the few that end in another mode). Above `limit` times the recorded one a UserWarning says
    so, or with refuse=True a ValueError: a plan learned at guidance 4 and used at 8, one of another model, conditions
    it never saw. Raises ValueError for a plan that was not learned.
    """
    from ..solvers import plan as make_plan

    record = plan.options.get("learned")
    if not isinstance(record, dict):
        raise ValueError(f"plan={plan!r} carries no record of learning; give one made by unstir.tune.learn")
    source = Source.of(model, process, shape, seed, cond, plan.start, batch, dtype, device)
    guide = teacher if isinstance(teacher, Plan) else make_plan("auto", source.process, teacher, start=plan.start, end=plan.end)
    with torch.no_grad():
        error = median_error(source, Runner(model), plan, source.teach(guide, range(samples)))
    recorded = float(record["median_error"])
    found = Checked(error, recorded, error / recorded, error <= limit * recorded)
    if not found.ok:
        said = (
            f"this plan has error {error:.3g} here and {recorded:.3g} where it was learned"
            f"{' (' + record['note'] + ')' if record.get('note') else ''}: learn it again for this model and these conditions"
        )
        if refuse:
            raise ValueError(said)
        warnings.warn(said, stacklevel=2)
    return found
