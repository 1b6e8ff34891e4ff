"""Search over plans: legal candidates, the predictor, determinism and resume, what is found, what is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch

import unstir
from unstir import process as pr
from unstir import tune
from unstir.denoiser import GaussianMixture
from unstir.nets.skippable import block_calls, skippable, skippable_blocks
from unstir.tune.evolve import METHODS, Scored, key
from unstir.tune.layers import Layers
from unstir.tune.predictor import fit_ranker, ranks, spearman
from unstir.tune.search import _run
from unstir.tune.space import Solvers, spread

MEANS = torch.tensor([[1.0, 0.2, -0.4], [-0.7, 0.8, 0.3], [0.1, -1.0, 0.5]], dtype=torch.float64)
SMALL: dict[str, Any] = {"samples": 24, "validation": 24, "teacher": 40, "budget": 70, "end": 1e-3}


def mixture(process: pr.Process) -> GaussianMixture:
    return GaussianMixture(process, [0.5, 0.3, 0.2], MEANS, torch.tensor([[0.3, 0.1, 0.2]]).double().expand(3, 3) ** 2)


VP = mixture(pr.VP())


def drawn(space, count: int, seed: int = 0, ripe: Any = lambda k: 1.0) -> list[Any]:
    """Candidates of all three operators."""
    rng, pool = Random(seed), space.starts()
    for k in range(count):
        make = rng.choice(("random", "mutate", "cross"))
        one, two = rng.choice(pool), rng.choice(pool)
        pool.append(
            space.random(rng, ripe(k))
            if make == "random"
            else space.mutate(one, rng, ripe(k))
            if make == "mutate"
            else space.cross(one, two, rng)
        )
    return pool


# -- spaces -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("process", "end"), [(pr.VP(), 1e-3), (pr.Flow(), 0.0), (pr.EDM(), 0.0)], ids=["vp", "flow to clean data", "edm"]
)
@pytest.mark.parametrize("constant", [None, 0.1], ids=["calls only", "constant"])
def test_every_solver_candidate_is_a_plan_of_that_many_calls(process, end, constant):
    space = Solvers(process, 5, 1.0, end, constant)
    seen = set()
    for genes in drawn(space, 120):
        plan = space.plan(genes)
        one, two = plan.invariants()
        assert len(plan) == 5
        assert max(two) < 1e-7
        assert genes["constant"] or max(one) < 1e-7
        assert json.loads(json.dumps(genes)) == genes
        assert len({len(step) for step in space.numbers(genes)}) == 1
        seen |= {("constant", genes["constant"]), *((k, v) for step in genes["steps"] for k, v in step.items() if k != "relax")}
    assert {("form", "noise"), ("order", 3), ("points", 1), ("corrector", "pseudo"), ("base", 2)} <= seen
    assert (("constant", True) in seen) == (constant is not None)


def test_known_solvers_are_starts():
    starts = [Solvers(pr.VP(), 5, 1.0, 1e-3).plan(genes) for genes in Solvers(pr.VP(), 5, 1.0, 1e-3).starts()]
    x = pr.VP().prior((4, 3), seed=3, dtype=torch.float64)
    ends = [unstir.sample(VP, plan, x=x) for plan in starts]
    for name, grid, options in (
        ("ddim", "quadratic", {}),
        ("multistep", "logsnr", {"order": 3}),
        ("unipc", "uniform", {"order": 2, "lower_final": False}),
    ):
        nodes = unstir.solvers.make_grid(grid, pr.VP(), 5, 1.0, 1e-3)
        plan = (
            unstir.solvers.multistep(pr.VP(), nodes, **options)
            if name == "multistep"
            else unstir.solvers.compile_plan(name, pr.VP(), nodes, **options)
        )
        end = unstir.sample(VP, plan, x=x)
        assert min(float((end - other).abs().max()) for other in ends) < 1e-11


def test_spread_keeps_order_and_distance():
    values = spread([3.0, 0.1, 0.1, -9.0], 0.0, 1.0, 0.1)
    assert values == sorted(values)
    assert min(b - a for a, b in pairwise([0.0, *values, 1.0])) >= 0.1 - 1e-12
    assert spread([0.2, 0.7], 0.0, 1.0, 0.1) == [0.2, 0.7]


def test_layers_keep_within_the_budget_and_use_all_of_it():
    space = Layers(pr.VP(), (4, 7), ["a", "b", "c"], 14)
    pool = drawn(space, 400, ripe=lambda k: k / 400)
    for genes in pool:
        n = len(genes["times"])
        assert 4 <= n <= 7
        assert all(a > b for a, b in pairwise(genes["times"]))
        assert space.cost(genes) == min(14, 3 * n)
        plan = space.plan(genes)
        assert len(plan) == n
        assert block_calls(plan, space.blocks) == space.cost(genes)
        assert plan.start == 1.0
    assert {len(g["times"]) for g in pool} == {4, 5, 6, 7}
    early = [g for k, g in enumerate(drawn(space, 100, ripe=lambda k: 0.0)) if k]
    assert {len(g["times"]) for g in early} == {4}


def test_times_and_their_blocks_stay_together():
    """Crossing and sorting must not give a time the blocks of another."""
    space = Layers(pr.VP(), 3, ["a", "b", "c"], 6)
    owner = {"times": [800, 500, 200], "skip": [[0], [1], [2]]}
    other = {"times": [700, 400, 100], "skip": [[0], [1], [2]]}
    rng = Random(0)
    for _ in range(20):
        child = space.cross(owner, other, rng)
        assert all(
            [t // 100, *s] in ([8, 0], [5, 1], [2, 2], [7, 0], [4, 1], [1, 2]) for t, s in zip(*child.values(), strict=True)
        )


def test_as_many_steps_as_times_is_the_full_grid():
    space = Layers(pr.VP(), 5, fine=5)
    for genes in drawn(space, 20):
        assert genes["times"] == [4, 3, 2, 1, 0]
    nodes = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert space.plan(genes) == unstir.solvers.compile_plan("ddim", pr.VP(), nodes)


def test_a_first_time_below_the_start_is_reached_without_a_call():
    plan = Layers(pr.VP(), 2, fine=10).plan({"times": [5, 2], "skip": [[], []]})
    assert (len(plan), len(plan.rows), plan[0].evaluate) == (2, 3, False)
    assert float(pr.VP().sigma(1.0)) * plan[0].a == pytest.approx(float(pr.VP().sigma(0.6)))


# -- methods ----------------------------------------------------------------------------------------------------
def test_ranks_and_their_correlation():
    assert ranks([3.0, math.inf, 1.0, 1.0]).tolist() == [2.0, 3.0, 0.5, 0.5]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1e9]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)


def test_the_predictor_ranks_what_it_has_not_seen():
    """A score that depends on times and on single decisions, held-out candidates; and it is deterministic."""
    space = Solvers(pr.VP(), 4, 1.0, 1e-3)

    def score(genes):
        return (
            sum(abs(v) for v in genes["lam"]) + sum(s["form"] == "noise" for s in genes["steps"]) + genes["steps"][2]["order"]
        )

    pool = drawn(space, 260)[48:]
    train, test = pool[:160], pool[160:]
    predict = fit_ranker([space.numbers(g) for g in train], [score(g) for g in train], seed=1)
    guess = predict([space.numbers(g) for g in test])
    assert spearman(guess, [score(g) for g in test]) > 0.7
    again = fit_ranker([space.numbers(g) for g in train], [score(g) for g in train], seed=1)
    assert again([space.numbers(g) for g in test]) == guess


class Toy(Layers):
    """Candidates are their own plans."""

    def plan(self, genes):
        return genes


@pytest.mark.parametrize("method", ["evolution", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_toy_objective_is_solved(method):
    """Σ (t − t*)² over four of a hundred times, to two places in twenty generations; random search is not near."""
    goal = [83, 57, 31, 9]

    def score(genes):
        return sum((t - u) ** 2 for t, u in zip(genes["times"], goal, strict=True))

    best = {}
    for name in (method, "random"):
        records: list[Scored] = []
        _run(Toy(pr.VP(), 4, fine=100), name, 400, 0, score, records, None, None, 4, 0.0)  # type: ignore[arg-type]
        best[name] = min(records, key=lambda k: k.score)
        assert len({key(k.genes) for k in records}) == 400
    assert max(abs(t - u) for t, u in zip(best[method].genes["times"], goal, strict=True)) <= 2
    assert best["random"].score > best[method].score


@pytest.fixture(scope="module", params=list(METHODS))
def found(request):
    """(method, the plan found on the mixture)."""
    return request.param, tune.search(VP, 4, method=request.param, **SMALL)


def test_the_best_is_returned_with_its_record(found):
    method, plan = found
    record = plan.options["searched"]
    assert (len(plan), plan.name, record["method"], record["trials"]) == (4, "searched-4", method, 70)
    assert record["validation_score"] <= record["known_score"]
    values = [v for _, v in record["curve"]]
    assert values == sorted(values, reverse=True)


def test_a_search_that_was_stopped_goes_on_to_the_same_result(found, tmp_path):
    method, plan = found
    seen = []

    def stop(progress):
        seen.append(progress.step)
        if progress.step in (49, 66):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune.search(VP, 4, method=method, folder=tmp_path, progress=stop, **SMALL)
    again = tune.search(VP, 4, method=method, folder=tmp_path, progress=stop, **SMALL)
    assert seen == list(range(1, 71))
    assert again == plan
    assert again.options["searched"] == plan.options["searched"]
    assert len(list(tmp_path.glob("search-4-*.json"))) == 1


def test_another_seed_is_another_search(found):
    method, plan = found
    if method != "s3":
        assert tune.search(VP, 4, method=method, **SMALL, seed=5) != plan


def test_searched_plans_beat_every_known_one_on_unseen_noises():
    plan = tune.search(VP, 5, method="evolution", budget=260, samples=64, validation=128, teacher=60, end=1e-3)
    x = pr.VP().prior((256, 3), seed=99, dtype=torch.float64)
    truth = unstir.sample(VP, unstir.plan("dpmpp-3m", pr.VP(), 300, "logsnr", end=1e-3), x=x)

    def error(plan):
        return float((unstir.sample(VP, plan, x=x) - truth).square().mean(1).sqrt().mean())

    space = Solvers(pr.VP(), 5, 1.0, 1e-3)
    known = min(error(space.plan(genes)) for genes in space.starts())
    assert error(plan) < 0.6 * known


def test_an_analytic_first_step_may_be_found():
    plan = tune.search(VP, 4, constant=True, method="evolution", **{**SMALL, "budget": 150})
    assert len(plan) == 4
    assert plan.options["searched"]["genes"]["constant"] is True
    assert plan[0].evaluate is False


# -- scores -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("score", ["frechet", "mmd"])
def test_distribution_scores_prefer_the_better_plan(score):
    from unstir.tune.score import make_score
    from unstir.tune.teacher import Source

    source = Source.of(VP, None, (3,), 0, None, 1.0, 256, torch.float64, None)
    teacher = unstir.plan("auto", VP, nfe=60)
    data = (
        VP.sample(600, seed=1)
        if hasattr(VP, "sample")
        else unstir.sample(VP, teacher, shape=(600, 3), seed=8, dtype=torch.float64)
    )
    for given in (data, None):
        judge = make_score(score, source, teacher, 300, 300, given, None, None)
        good, bad = judge(unstir.plan("auto", VP, nfe=20)), judge(unstir.plan("ddim", VP, nfe=3))
        assert good < 0.2 * bad
        assert judge(unstir.plan("auto", VP, nfe=20)) == good
        assert judge(unstir.plan("auto", VP, nfe=20), fresh=True) != good


def test_a_trial_that_is_not_a_number_loses():
    calls = []

    def score(x):
        calls.append(1)
        return math.nan if len(calls) % 2 else float(x.square().mean())

    plan = tune.search(VP, 3, method="random", score=score, samples=4, validation=4, budget=60, finalists=60)
    assert math.isfinite(plan.options["searched"]["validation_score"])
    with pytest.raises(ValueError, match="none of 60 trials has a finite score"):
        tune.search(VP, 3, method="random", score=lambda x: math.nan, samples=4, validation=4, budget=60)


def test_layers_of_the_bundled_network():
    model = unstir.load("digits")
    skippable(model.network)
    plan = tune.search(model, 2, space="layers", method="evolution", samples=4, validation=2, budget=6, teacher=3, finalists=2)
    assert block_calls(plan, skippable_blocks(model)) == 18
    assert unstir.sample(model, plan, shape=(2, 1, 8, 8)).shape == (2, 1, 8, 8)


# -- wrong input --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nfe": 0}, ValueError, "nfe=0"),
        ({"method": "s4"}, ValueError, "method='s4'"),
        ({"space": "solvers"}, ValueError, "space='solvers'"),
        ({"space": 3}, TypeError, "space is int"),
        ({"space": "layers"}, ValueError, "skippable"),
        ({"space": "times", "constant": True}, ValueError, "constant=True"),
        ({"score": "fid"}, ValueError, "score='fid'"),
        ({"score": "error", "data": torch.zeros(4, 3)}, ValueError, "data and features"),
        ({"score": "frechet", "data": torch.randn(50, 4)}, ValueError, r"data has samples of shape \(4,\)"),
        ({"score": "frechet", "data": torch.randn(50, 3), "features": "pixel", "samples": 3}, ValueError, "score='mmd'"),
        ({"budget": 2.5}, ValueError, "budget=2.5"),
        ({"samples": True}, ValueError, "samples=True"),
        ({"teacher": 3}, ValueError, "teacher=3"),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else None,
)
def test_wrong_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        tune.search(VP, **{"nfe": 4, "samples": 8, "validation": 8, "budget": 3, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layers(pr.VP(), 0), "nfe=0"),
        (lambda: Layers(pr.VP(), 6, fine=5), "nfe=6"),
        (lambda: Layers(pr.VP(), (4, 3)), r"nfe=\(4, 3\)"),
        (lambda: Layers(pr.VP(), 4, ["a", "b"], 3, 0.5), "budget=3 must be at least 4"),
        (lambda: Layers(pr.VP(), 4, budget=3), "budget=3"),
        (lambda: Layers(pr.VP(), 4, ["a", "a"]), "twice"),
        (lambda: Layers(pr.VP(), 2, nodes=[3, 5]), "nodes"),
        (lambda: Layers(pr.VP(), 2, ["a"], most=1.5), "most=1.5"),
    ],
)
def test_spaces_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_damaged_file_is_named(tmp_path):
    few = {**SMALL, "budget": 5, "method": "random"}
    tune.search(VP, 4, folder=tmp_path, **few)
    (file,) = tmp_path.glob("search-*.json")
    for text, message in (("{", "not valid JSON"), ("{}", "no search of this unstir"), (None, "is damaged")):
        file.write_text(text or json.dumps({"format": "unstir-search", "version": 1, "trials": [[3, 1.0, 0]]}))
        with pytest.raises(ValueError, match=message):
            tune.search(VP, 4, folder=tmp_path, **few)
