"""Hard and plain samples: found as by brute force, weighted so that their means are the pool's; the robust stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import unstir
from unstir.denoiser import GaussianMixture
from unstir.process import VP
from unstir.tune.fit import Fit, Runner, gauss_newton, median
from unstir.tune.pool import finer, hardest, stratified
from unstir.tune.starts import plan_error
from unstir.tune.table import project
from unstir.tune.teacher import Chunk, Source, weights

MODEL = GaussianMixture(VP(), [0.5, 0.5], [[-1.0, 0.3], [1.0, -0.2]], [0.01, 0.02])
SOURCE = Source.of(MODEL, None, None, 0, None, 1.0, 100, None, None)
TEACHER = unstir.plan("auto", MODEL, nfe=60)
COARSE, FINE = (unstir.plan("auto", MODEL, nfe=n) for n in (4, 8))
POOL = range(50, 850)


def test_the_hardest_are_those_where_two_plans_differ_most():
    x = SOURCE.start_state(POOL)
    gap = (unstir.sample(MODEL, COARSE, x=x) - unstir.sample(MODEL, FINE, x=x)).square().mean(1)
    expected = sorted(POOL[k] for k in gap.topk(40).indices.tolist())
    assert hardest(SOURCE, Runner(MODEL), (COARSE, FINE), POOL, 40) == expected
    assert hardest(SOURCE, Runner(MODEL), (COARSE, FINE), POOL, 40, [60, expected[0]]) == sorted({*expected, 60})
    assert hardest(SOURCE, Runner(MODEL), (COARSE, FINE), POOL, 0) == []


def test_a_weighted_mean_is_that_of_the_pool():
    """The error of a plan over all 800 samples: from 200 of them within 5 %; from 200 plain ones it is further off."""
    runner = Runner(MODEL)
    plain = SOURCE.teach(TEACHER, POOL[:150])
    chunks = stratified(SOURCE, TEACHER, POOL, plain, hardest(SOURCE, runner, (COARSE, FINE), POOL, 50), None)
    assert sum(len(c.x) for c in chunks) <= 200
    assert sum(float(c.weight.sum()) for c in chunks if c.weight is not None) == pytest.approx(len(POOL))
    assert float(weights(chunks).sum()) == pytest.approx(1)
    truth = plan_error(SOURCE, runner, COARSE, SOURCE.teach(TEACHER, POOL))
    off = abs(plan_error(SOURCE, runner, COARSE, chunks) / truth - 1)
    assert off < 0.05
    assert off < abs(plan_error(SOURCE, runner, COARSE, SOURCE.teach(TEACHER, POOL[:200])) / truth - 1)


def test_no_sample_is_in_both_strata():
    """All of the pool hard: nothing plain is left, and the mean is the plain mean."""
    chunks = stratified(SOURCE, TEACHER, POOL[:60], SOURCE.teach(TEACHER, POOL[:30]), list(POOL[:60]), None)
    assert torch.equal(torch.cat([c.x for c in chunks]), SOURCE.start_state(POOL[:60]))
    assert torch.equal(weights(chunks), torch.full((60,), 1 / 60, dtype=torch.float64))


def test_the_finer_plan_makes_twice_the_calls():
    assert len(finer(SOURCE, COARSE, 4, 0.0)) == 8
    assert finer(SOURCE, unstir.plan("unipc", MODEL, nfe=4), 4, 0.0).name == "unipc"
    nameless = unstir.Plan(COARSE.rows, MODEL.process, name="mine")
    assert finer(SOURCE, nameless, 4, 0.0).name == "auto"


def test_the_weighted_median():
    values = torch.tensor([3.0, 1.0, 2.0])
    assert median(values, torch.ones(3)) == 2.0
    assert median(values, torch.tensor([5.0, 1.0, 1.0])) == 3.0
    assert median(values, torch.tensor([0.0, 1.0, 0.0])) == 1.0


def test_weights_are_those_of_repeated_samples():
    """A chunk with integer weights has the loss, and the Jacobian products, of one that repeats its samples."""
    chunk = SOURCE.teach(TEACHER, range(4))[0]
    times = torch.tensor([1, 3, 2, 1])
    heavy, long = replace(chunk, weight=times.double()), chunk.rows(torch.arange(4).repeat_interleave(times))
    runner, table = Runner(MODEL), project(COARSE)
    assert runner.error(table, [heavy]) == pytest.approx(runner.error(table, [long]), rel=1e-12)
    one, two = (runner.normal(table, [c], [weights([c])]) for c in (heavy, long))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, two, strict=True))


def test_the_robust_stage_follows_the_many():
    """Three of a hundred goals are in the wrong mode: with L_1 the others end nearer to theirs than with L."""
    chunk = SOURCE.teach(TEACHER, range(100))[0]
    goal = chunk.goal.clone()
    goal[:3] *= -1
    wrong, right = Chunk(chunk.x, goal, {}), chunk.rows(torch.arange(3, 100))
    runner, table = Runner(MODEL), project(COARSE)
    plain, robust = (
        gauss_newton(runner, Fit(table, table.theta()), [wrong], [right], 6, robust=kind).table for kind in (False, True)
    )
    assert runner.error(robust, [right]) < 0.8 * runner.error(plain, [right])
