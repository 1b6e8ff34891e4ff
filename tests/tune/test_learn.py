"""Learned plans: invariants, held-out accuracy, resume, family, provenance, guard; projection against the plans themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import unstir
from unstir import process as pr
from unstir import tune
from unstir.denoiser import GaussianMixture
from unstir.solvers import SOLVERS
from unstir.tune.fit import Fit, Runner, focused, gauss_newton
from unstir.tune.table import project
from unstir.tune.teacher import Chunk

MEANS = torch.tensor([[1.0, 0.2, -0.4], [-0.7, 0.8, 0.3], [0.1, -1.0, 0.5]], dtype=torch.float64)
QUICK: dict[str, Any] = {"samples": 256, "validation": 128, "pool": 2, "steps": 8, "focus": 128, "teacher": 60}


def mixture(process: pr.Process) -> GaussianMixture:
    return GaussianMixture(process, [0.5, 0.3, 0.2], MEANS, torch.tensor([[0.3, 0.1, 0.2]]).double().expand(3, 3) ** 2)


VP = mixture(pr.VP())


def held_out(model: GaussianMixture, count: int = 256) -> tuple[Tensor, Tensor]:
    x = model.process.prior((count, 3), seed=99, dtype=torch.float64)
    return x, unstir.sample(model, unstir.plan("auto", model, nfe=300), x=x)


def rms(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


@pytest.fixture(scope="module")
def learned() -> unstir.Plan:
    return tune.learn(VP, 5, **QUICK)


# -- the table ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [pr.VP(), pr.EDM(), pr.Flow()], ids=["vp", "edm", "flow"])
def test_projection_reproduces_every_deterministic_solver(process):
    """The same end states, row by row elimination of F, for every solver that visits each time once."""
    model = mixture(process)
    x = process.prior((6, 3), seed=1, dtype=torch.float64)
    done = 0
    for name in SOLVERS:
        plan = unstir.plan(name, process, nfe=6)
        times = [row.t for row in plan] + [plan.end]
        if plan.stochastic or any(b >= a for a, b in pairwise(times)):
            continue
        if max(map(max, plan.invariants())) > 1e-6:
            continue
        table = project(plan)
        assert rms(unstir.sample(model, table.plan(), x=x), unstir.sample(model, plan, x=x)) < 1e-8, name
        done += 1
    assert done >= 15


@pytest.mark.parametrize("process", [pr.VP(), pr.EDM(), pr.Flow()], ids=["vp", "edm", "flow"])
def test_any_theta_keeps_both_invariants(process):
    table = project(unstir.plan("unipc", process, nfe=6))
    theta = table.theta()
    for seed in range(5):
        moved = table.with_theta(theta + 0.2 * torch.randn(len(theta), generator=torch.Generator().manual_seed(seed)).double())
        assert max(map(max, moved.plan().invariants())) < 1e-12
        assert not torch.equal(moved.coefficients()[1], table.coefficients()[1])


def test_without_invariants_the_gains_are_free_and_break_them():
    table = project(unstir.plan("ddim", pr.VP(), nfe=4), free=True)
    theta = table.theta()
    assert len(theta) == len(project(unstir.plan("ddim", pr.VP(), nfe=4)).theta()) + 2 * 4 - 1
    assert max(map(max, table.plan().invariants())) < 1e-12
    assert max(map(max, table.with_theta(theta + 0.01).plan().invariants())) > 1e-3


def test_a_constant_start_makes_one_call_less_and_is_exact_for_constant_data():
    """With D_0 = m put in place of the prediction of constant data m, the plan still returns m."""
    constant = torch.tensor([0.4, -0.2, 0.1]).double()
    plan = project(unstir.plan("auto", pr.VP(), nfe=5), constant=constant).plan()
    assert (len(plan), len(plan.rows), plan[0].evaluate) == (4, 5, False)
    end = unstir.sample(lambda x, t: constant.expand_as(x), plan, x=pr.VP().prior((4, 3), dtype=torch.float64))
    assert rms(end, constant.expand_as(end)) < 1e-12


def test_theta_round_trip_and_lags():
    table = project(unstir.plan("ab-4", pr.VP(), nfe=8), lags=2)
    assert torch.equal(table.with_theta(table.theta()).theta(), table.theta())
    assert table.plan().history == 2
    assert max(map(max, table.plan().invariants())) < 1e-12


# -- the fit --------------------------------------------------------------------------------------------------
def test_the_jacobian_is_that_of_autograd():
    """J against reverse-mode differentiation of the last row's weights, in which the end is linear, and against
    central differences of whole runs for all numbers."""
    table = project(unstir.plan("auto", pr.VP(), nfe=4))
    x = pr.VP().prior((5, 3), dtype=torch.float64)
    chunk = Chunk(x, torch.zeros_like(x), {})
    runner = Runner(VP)
    square, slope = runner.normal(table, [chunk], [torch.full((5,), 0.2).double()])
    theta, h = table.theta(), 1e-5
    columns = []
    for unit in torch.eye(len(theta), dtype=torch.float64):
        ends = [unstir.sample(VP, table.with_theta(theta + s * h * unit).plan(), x=x) for s in (1, -1)]
        columns.append(((ends[0] - ends[1]) / (2 * h)).flatten())
    jacobian, r = torch.stack(columns, 1), unstir.sample(VP, table.plan(), x=x).flatten()
    assert torch.allclose(square, jacobian.T @ jacobian / 15, rtol=1e-4, atol=1e-6)
    assert torch.allclose(slope, jacobian.T @ r / 15, rtol=1e-4, atol=1e-6)


def test_focus_is_unbiased():
    """The mean over many draws of Σ weight · f is the plain mean of f."""
    squares = torch.tensor([0.0, 0.1, 0.2, 5.0, 0.1, 0.0]).double()
    value = torch.arange(6).double()[:, None]
    chunks = [Chunk(value[:4], value[:4], {}), Chunk(value[4:], value[4:], {})]
    found = []
    for seed in range(2000):
        parts, weights = focused(chunks, squares, 4, seed)
        found.append(sum(float((w * c.x[:, 0]).sum()) for c, w in zip(parts, weights, strict=True)))
    mean, error = sum(found) / 2000, torch.tensor(found).std() / math.sqrt(2000)
    assert abs(mean - 2.5) < 4 * float(error)
    assert float(error) > 0


def test_gauss_newton_finds_the_exact_plan_of_a_single_gaussian_step():
    """Two calls on a standard Gaussian: the loss reaches rounding, since two weights can match a linear map."""
    model = GaussianMixture(pr.VP(), [1.0], torch.zeros(1, 2), torch.ones(1, 2))
    table = project(unstir.plan("ddim", pr.VP(), nfe=2))
    x = pr.VP().prior((64, 2), dtype=torch.float64)
    chunk = [Chunk(x, unstir.sample(model, unstir.plan("auto", pr.VP(), nfe=400), x=x), {})]
    fit = gauss_newton(Runner(model), Fit(table, table.theta()), chunk, chunk, 40)
    assert fit.best_error < 1e-6 < 1e-2 < Runner(model).error(table, chunk)


# -- learning -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [pr.VP(), pr.EDM(), pr.Flow()], ids=["vp", "edm", "flow"])
def test_a_learned_plan_beats_the_best_fixed_one_on_unseen_noise(process):
    model = mixture(process)
    plan = tune.learn(model, 4, **QUICK)
    x, goal = held_out(model)
    fixed = min(
        rms(unstir.sample(model, unstir.plan(name, process, nfe=4), x=x), goal)
        for name in ("auto", "unipc", "dpmpp-2m", "ddim")
    )
    assert rms(unstir.sample(model, plan, x=x), goal) < 0.5 * fixed
    assert len(plan) == 4


def test_the_invariants_of_a_learned_plan_hold():
    plan = tune.learn(VP, 4, constant=False, **QUICK)
    assert max(map(max, plan.invariants())) < 1e-10
    assert plan[0].evaluate


def test_provenance_survives_json(learned, tmp_path):
    record = unstir.Plan.load(learned.save(tmp_path / "5.json")).options["learned"]
    assert 200 < record["samples"] <= 400
    assert record["seed"] == 0
    assert record["base"]["name"]
    assert record["validation_error"] < record["base_error"]
    assert unstir.Plan.load(tmp_path / "5.json") == learned


def test_a_family_and_the_models_own_plans():
    plans = tune.learn(VP, [3, 4], **QUICK)
    assert {n: len(p) for n, p in plans.items()} == {3: 3, 4: 4}
    assert plans[4].options["learned"]["validation_error"] < plans[3].options["learned"]["validation_error"]


class Stop(Exception):
    pass


@pytest.mark.parametrize("last", [3, 6], ids=["robust stage", "second stage"])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, last):
    whole = tune.learn(VP, 4, **QUICK)
    seen: list[int] = []

    def stop(progress: tune.Progress) -> None:
        seen.append(progress.step)
        if progress.step == last:
            raise Stop

    with pytest.raises(Stop):
        tune.learn(VP, 4, folder=tmp_path, progress=stop, **QUICK)
    again: list[int] = []
    plan = tune.learn(VP, 4, folder=tmp_path, progress=lambda p: again.append(p.step), **QUICK)
    assert (seen, again[0]) == (list(range(1, last + 1)), last + 1)
    assert plan == whole


def test_the_teacher_is_cached_and_another_model_is_told_apart(tmp_path):
    tune.learn(VP, 3, folder=tmp_path, **QUICK)
    files = set(tmp_path.glob("teacher-*"))
    tune.learn(VP, 3, folder=tmp_path, **QUICK)
    assert set(tmp_path.glob("teacher-*")) == files
    other = GaussianMixture(pr.VP(), [1.0], MEANS[:1], torch.full((1, 3), 0.04))
    tune.learn(other, 3, folder=tmp_path, **QUICK)
    assert set(tmp_path.glob("teacher-*")) > files


def test_nothing_worse_than_the_base_is_returned():
    """Where the base is its own teacher there is nothing to win: it comes back, and says so."""
    base = unstir.plan("auto", VP, nfe=6)
    plan = tune.learn(VP, 6, base=base, constant=False, **{**QUICK, "steps": 0, "teacher": base})
    assert plan == base
    assert "kept_base" in plan.options["learned"]


def test_check_accepts_its_own_model_and_refuses_another(learned):
    assert tune.check(VP, learned, samples=256).ok

    def sharper(x: Tensor, t: float) -> Tensor:
        return VP(x, t) + 3.0 * (VP(x, t) - MEANS.mean(0)) * 0.5

    kind = {"process": VP.process, "shape": (3,), "samples": 128, "dtype": torch.float64}
    with pytest.warns(UserWarning, match="learn it again"):
        found = tune.check(sharper, learned, **kind)
    assert found.ratio > 2
    with pytest.raises(ValueError, match="learn it again"):
        tune.check(sharper, learned, refuse=True, **kind)
    with pytest.raises(ValueError, match="no record"):
        tune.check(VP, unstir.plan("ddim", VP, nfe=3))


def test_a_plan_learned_for_guidance_4_is_refused_at_guidance_8():
    """Exact guidance towards each component, D + w (D_k − D): where it was learned the plan passes, at twice w it does not."""
    parts = [
        GaussianMixture(VP.process, [1.0], MEANS[k : k + 1], torch.tensor([[0.3, 0.1, 0.2]]).double() ** 2) for k in range(3)
    ]

    def guided(x: Tensor, t: float, label: Tensor, w: float) -> Tensor:
        own = torch.stack([part(x, t) for part in parts])[label, torch.arange(len(x))]
        return VP(x, t) + w * (own - VP(x, t))

    kind: dict[str, Any] = {"process": VP.process, "shape": (3,)}
    cond = {"label": torch.arange(3)}
    plan = tune.learn(guided, 5, cond={**cond, "w": 4.0}, note="guidance 4", **kind, **QUICK)
    assert tune.check(guided, plan, cond={**cond, "w": 4.0}, **kind).ok
    with pytest.warns(UserWarning, match="guidance 4"):
        assert tune.check(guided, plan, cond={**cond, "w": 8.0}, **kind).ratio > 2
    with pytest.raises(ValueError, match="guidance 4"):
        tune.check(guided, plan, cond={**cond, "w": 8.0}, refuse=True, **kind)


def test_conditions_are_read_in_turn_and_reach_the_model():
    """A model that shifts the data by a condition: the plan is learned over both conditions, and its figures say so."""
    seen: set[float] = set()

    def model(x: Tensor, t: float, shift: Tensor) -> Tensor:
        seen.update(shift.tolist())
        alpha = float(VP.process.alpha(t))
        return VP(x - alpha * shift[:, None], t) + shift[:, None]

    cond = {"shift": torch.tensor([0.0, 2.0], dtype=torch.float64)}
    plan = tune.learn(model, 4, process=VP.process, shape=(3,), cond=cond, **QUICK)
    assert seen == {0.0, 2.0}
    assert not plan.options["learned"]["constant"]  # D at the start depends on the condition
    assert plan.options["learned"]["validation_error"] < 0.6 * plan.options["learned"]["base_error"]


def test_features_as_loss():
    """Only the first coordinate counts: its error falls more than with the plain loss would be needed."""
    plan = tune.learn(VP, 3, loss=lambda x: x[:, :1], **QUICK)
    x, goal = held_out(VP)
    base = unstir.plan("auto", VP, nfe=3)
    assert rms(unstir.sample(VP, plan, x=x)[:, 0], goal[:, 0]) < 0.5 * rms(unstir.sample(VP, base, x=x)[:, 0], goal[:, 0])


def test_pull_keeps_the_plan_near_its_start():
    far = tune.learn(VP, 4, guard=False, **QUICK).options["learned"]
    near = tune.learn(VP, 4, guard=False, pull=10.0, **QUICK).options["learned"]
    assert far["train_error"] < near["train_error"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"nfe": 0}, "nfe"),
        ({"nfe": []}, "nfe"),
        ({"samples": 2}, "samples"),
        ({"loss": "lpips"}, "loss"),
        ({"pull": -1.0}, "pull"),
        ({"teacher": 3}, "teacher"),
        ({"base": unstir.plan("ddim", pr.VP(), nfe=3)}, "base"),
        ({"process": pr.EDM()}, "process"),
    ],
)
def test_bad_inputs_name_the_argument(changes, name):
    given: dict[str, Any] = {"nfe": 4, **QUICK, **changes}
    with pytest.raises(ValueError, match=name):
        tune.learn(VP, **given)


def test_a_model_without_process_or_shape():
    with pytest.raises(TypeError, match="process="):
        tune.learn(lambda x, t: x, 4)
    with pytest.raises(ValueError, match="shape="):
        tune.learn(lambda x, t: x, 4, process=pr.VP())


def test_stochastic_plans_cannot_be_projected():
    with pytest.raises(ValueError, match="deterministic"):
        project(unstir.plan("ddpm", pr.VP(), nfe=4))
    row = unstir.plan("ddim", pr.VP(), nfe=3)
    with pytest.raises(ValueError, match="invariants"):
        project(row.map_rows(lambda i, r: replace(r, a=r.a * 1.1)))


def test_a_model_folder_ships_its_learned_plans(tmp_path):
    """Stored in model.plans, saved, loaded, and found by `unstir.sample(model, nfe=4)`."""
    plan = tune.learn(VP, 4, constant=False, **QUICK)
    model = unstir.load("digits")
    model.plans[4] = plan
    unstir.save(model, tmp_path / "model")
    loaded = unstir.load(tmp_path / "model")
    assert loaded.plans[4] == plan
    assert torch.equal(unstir.sample(loaded, shape=2, nfe=4), unstir.sample(loaded, plan, shape=2))
    assert not torch.equal(unstir.sample(loaded, shape=2, nfe=4), unstir.sample(loaded, "auto", shape=2, nfe=4))
