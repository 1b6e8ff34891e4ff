"""Learned noise: DDIM with η in the family, its invariants, exact variances on a Gaussian, a mixture with known samples."""

from __future__ import annotations

import math

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.denoiser import Gaussian, GaussianMixture
from unstir.tune.stochastic import ancestral, energy, learn_noise, noisy_plan
from unstir.tune.table import project

PROCESSES = [pr.VP(), pr.EDM(), pr.Flow()]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
def test_the_family_holds_ddim_with_eta(process, eta):
    plan = unstir.plan("ddim", process, nfe=6, eta=eta)
    table = project(unstir.plan("ddim", process, nfe=6))
    for own, row in zip(noisy_plan(table, ancestral(table, eta)).rows, plan.rows, strict=True):
        assert (own.t, own.to) == pytest.approx((row.t, row.to), abs=1e-12)
        assert (own.a, own.b[0], own.c) == pytest.approx((row.a, row.b[0], row.c), abs=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
def test_any_noise_keeps_constant_data_and_the_variance_of_zero_data(process):
    """Constant data come back exactly; for D = 0 the state is noise of variance σ², whatever κ and the history factors."""
    table = project(unstir.plan("ab-2", process, nfe=5))
    plan = noisy_plan(table, [0.9, 0.1, 0.5, 1.0, 0.3], history=[1.0, 0.2, -1.0, 2.0, 0.0])
    times = [row.t for row in plan] + [plan.end]
    alpha, sigma = (f(torch.tensor(times, dtype=torch.float64)).tolist() for f in (process.alpha, process.sigma))
    for i, row in enumerate(plan):
        assert sum(row.b.values()) == pytest.approx(alpha[i + 1] - row.a * alpha[i], abs=1e-12)
        assert row.a**2 * sigma[i] ** 2 + row.c**2 == pytest.approx(sigma[i + 1] ** 2, abs=1e-12)
    data = torch.tensor([0.4, -0.2]).double()
    start = process.uncentre(process.alpha(1.0) * data + process.sigma(1.0) * normal(3, 2), 1.0, None)
    end = unstir.sample(lambda x, t: data.expand_as(x), plan, x=start)
    assert torch.allclose(end, data.expand_as(end), atol=1e-9)


def test_the_energy_distance_is_the_sum_over_pairs():
    x, y = normal(5, 3), normal(4, 3, seed=1) + 0.5
    d = lambda u, v: float((u - v).square().mean().sqrt())  # noqa: E731
    cross = sum(d(u, v) for u in x for v in y) / 20
    own = sum(d(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    other = sum(d(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    assert energy(x, y) == pytest.approx(2 * cross - own - other, rel=1e-9)
    assert abs(energy(normal(2000, 1), normal(2000, 1, seed=1))) < 0.01 < energy(normal(2000, 1), 0.5 + normal(2000, 1, seed=1))


def variance(plan: unstir.Plan, process: pr.Process, data: float) -> float:
    """Of the ends, exactly: for N(0, v) data D = α v/(α² v + σ²) X is linear, and so is every row without history."""
    var = float(process.sigma(plan.start)) ** 2
    for row in plan:
        alpha, sigma = float(process.alpha(row.t)), float(process.sigma(row.t))
        gain = row.a + row.b[0] * alpha * data / (alpha**2 * data + sigma**2)
        var = gain**2 * var + row.c**2
    return float(var)


@pytest.mark.parametrize("process", PROCESSES, ids=["vp", "edm", "flow"])
def test_learned_noise_brings_the_variance_of_a_gaussian_home(process):
    """Noise alone is free, on the fixed nodes of four steps, whose ends with any η vary too little: the missing is added."""
    model, v = Gaussian(process, [0.0], 0.25), 0.25
    plan = learn_noise(model, 4, free=("noise", "extra"), sweeps=5, data=model.sample(2048), batch=1024)
    table = project(unstir.plan("ddim", process, nfe=4))
    fixed = [abs(variance(noisy_plan(table, ancestral(table, eta)), process, v) - v) for eta in (0.0, 0.5, 1.0)]
    assert abs(variance(plan, process, v) - v) < 0.3 * min(fixed)


def test_a_mixture_on_fresh_noises():
    """Against exact samples, on starts and noises of another seed, the distance of the best η is more than halved."""
    process = pr.VP()
    model = GaussianMixture(process, [0.7, 0.3], [[-1.0], [1.0]], [0.04, 0.01])
    plan = learn_noise(model, 4, sweeps=5, data=model.sample(2048, seed=3), batch=1024)
    real, x = model.sample(4096, seed=5), process.prior((4096, 1), seed=77, dtype=torch.float64)

    def distance(made: unstir.Plan) -> float:
        return energy(unstir.sample(model, made, x=x, seed=77), real)

    fixed = [unstir.plan("ddim", process, nfe=4, eta=eta) for eta in (0.0, 0.5, 1.0)]
    assert distance(plan) < 0.5 * min(map(distance, fixed))
    record = plan.options["learned_noise"]
    assert record["kept"] == "learned"
    assert record["validation_distance"] < min(record["distances"][f"eta={eta:g}"] for eta in (0.0, 0.5, 1.0))
    assert len(plan) == 4


def test_without_data_the_teacher_is_the_reference_and_json_keeps_the_record(tmp_path):
    model = Gaussian(pr.VP(), [0.0], 0.25)
    plan = learn_noise(model, 3, base="ab-2", samples=64, validation=64, sweeps=1, teacher=20)
    assert unstir.Plan.load(plan.save(tmp_path / "3.json")) == plan
    assert math.isfinite(plan.options["learned_noise"]["validation_distance"])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"nfe": 0}, "nfe"),
        ({"samples": 2}, "samples"),
        ({"free": "noise"}, "free"),
        ({"free": ("weights",)}, "free"),
        ({"base": unstir.plan("ddim", pr.VP(), nfe=3)}, "base"),
        ({"base": "ddpm"}, "base"),
        ({"data": torch.zeros(9, 2)}, "data"),
    ],
    ids=["nfe", "samples", "text", "free", "calls", "stochastic", "data"],
)
def test_bad_inputs_name_the_argument(changes, name):
    with pytest.raises(ValueError, match=name):
        learn_noise(Gaussian(pr.VP(), [0.0], 0.25), **{"nfe": 4, "samples": 16, "validation": 16, **changes})
