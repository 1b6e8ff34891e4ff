"""Heavy-tailed noise: its radial law, the limit D → ∞, the ODE that stays, and everything Gaussian that is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import unstir
from unstir import process as pr
from unstir import solvers, steer
from unstir.denoiser import Denoiser, Empirical, GaussianMixture
from unstir.process import EDM, VP, Poisson
from unstir.process.poisson import student_log_density
from unstir.steer.operators import mask
from unstir.train import order

SMALL = EDM(0.01, 20.0)
ATOMS = torch.tensor([[-1.0, 0.2], [0.3, 0.9], [0.8, -0.7]], dtype=torch.float64)


@pytest.mark.parametrize(("dims", "n"), [(1.0, 4), (2.5, 3), (8.0, 16), (128.0, 64)], ids=str)
def test_the_prior_has_the_radial_law_of_the_field(dims: float, n: int) -> None:
    """‖x‖²/(‖x‖² + r²) ~ Beta(n/2, D/2) with r = σ√D, and the direction is uniform."""
    process = Poisson(dims, SMALL)
    x = process.prior((2000, n), seed=3, dtype=torch.float64)
    square = x.square().sum(1)
    share = (square / (square + process.radius(1.0) ** 2)).numpy()
    assert stats.kstest(share, stats.beta(n / 2, dims / 2).cdf).pvalue > 1e-3
    # The Gaussian radius must fail, or the test could not see the tails.
    gauss = SMALL.prior((2000, n), seed=3, dtype=torch.float64).square().sum(1)
    assert stats.kstest((gauss / (gauss + process.radius(1.0) ** 2)).numpy(), stats.beta(n / 2, dims / 2).cdf).pvalue < 1e-3
    direction = x / square.sqrt()[:, None]
    assert float(direction.mean(0).norm()) < 4 / math.sqrt(2000)


def test_one_width_for_all_values_of_a_sample() -> None:
    """The ratio to Gaussian noise of the same seed is one number a sample; each has its own."""
    x, z = Poisson(4.0, SMALL).prior((5, 2, 3), seed=1), SMALL.prior((5, 2, 3), seed=1)
    ratio = (x / z).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-5, atol=0)
    assert float(ratio[:, 0].std()) > 0.01
    assert torch.equal(Poisson(4.0, SMALL).prior((2, 2, 3), seed=1), x[:2])  # whatever the batch


def test_variance_per_value() -> None:
    x = Poisson(12.0, VP()).noise(list(range(400)), (50,), 0, dtype=torch.float64)
    assert float(x.var()) == pytest.approx(12 / 10, rel=0.08)


def test_infinitely_many_dimensions_are_the_base_to_the_bit() -> None:
    p = Poisson(math.inf, SMALL)
    assert torch.equal(p.prior((3, 4)), SMALL.prior((3, 4)))
    model = GaussianMixture(p, [0.5, 0.5], ATOMS[:2], 0.05)
    other = GaussianMixture(SMALL, [0.5, 0.5], ATOMS[:2], 0.05)
    for name in ("heun", "ancestral"):
        x = unstir.sample(model, unstir.plan(name, p, 8), shape=(3, 2))
        assert torch.equal(x, unstir.sample(other, unstir.plan(name, SMALL, 8), shape=(3, 2)))


def test_a_thousand_million_dimensions_sample_like_edm() -> None:
    """Equal seeds, equal networks: the end states agree to 1e-5 at D = 1e9, and differ like 1/D."""
    exact = GaussianMixture(EDM(), [0.3, 0.7], ATOMS[:2], 0.05)

    def run(process: pr.Process) -> torch.Tensor:
        model = Denoiser(exact, process, "data")
        return unstir.sample(model, unstir.plan("heun", process, 35, "karras"), shape=(64, 2), dtype=torch.float64)

    errors = [float((run(Poisson(d)) - run(EDM())).abs().max()) for d in (1e5, 1e7, 1e9)]
    assert errors[2] < 1e-5
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)
    assert errors[2] == pytest.approx(errors[1] / 100, rel=0.05)


def test_many_dimensions_have_the_quantiles_of_the_radial_law() -> None:
    """ξ²‖z‖²/n is the F(n, D) quantile of ‖z‖², the χ²_n quantile."""
    n, dims = 3, 3e4
    z = VP().noise(list(range(200)), (n,), 0, dtype=torch.float64).square().sum(1)
    x = Poisson(dims, VP()).noise(list(range(200)), (n,), 0, dtype=torch.float64).square().sum(1)
    exact = n * stats.f(n, dims).ppf(stats.chi2(n).cdf(z.numpy()))
    torch.testing.assert_close(x, torch.as_tensor(exact), rtol=1e-7, atol=0)
    assert float((x / z - 1).abs().max()) > 1e-5


def test_exact_posterior_of_atoms_and_its_gaussian_limit() -> None:
    """w_i ∝ (‖x − x_i‖² + σ²D)^{−(n+D)/2}, written out; the distance to Gaussian weights falls like 1/D."""
    x = torch.tensor([[0.1, 0.4], [-0.6, -0.2]], dtype=torch.float64)
    t, sigma = 0.03, float(SMALL.sigma(0.03))
    for dims in (2.5, 40.0):
        d2 = ((x[:, None] - ATOMS) ** 2).sum(2)
        w = (d2 + sigma**2 * dims) ** (-(2 + dims) / 2)
        torch.testing.assert_close(Empirical(Poisson(dims, SMALL), ATOMS)(x, t), (w / w.sum(1, keepdim=True)) @ ATOMS)
    gauss = Empirical(SMALL, ATOMS)(x, t)
    errors = [float((Empirical(Poisson(10.0**k, SMALL), ATOMS)(x, t) - gauss).abs().max()) for k in (3, 5, 7)]
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.1)
    assert errors[2] == pytest.approx(errors[1] / 100, rel=0.1)


@pytest.mark.parametrize("dims", [2.5, 16.0], ids=str)
def test_the_ode_carries_the_heavy_prior_to_the_atoms(dims: float) -> None:
    process = Poisson(dims, EDM(0.01, 40.0))
    model = Empirical(process, ATOMS)
    x = unstir.sample(model, unstir.plan("heun", process, 59, "karras"), shape=(1500, 2), dtype=torch.float64)
    nearest = torch.cdist(x, ATOMS).min(1)
    assert float(nearest.values.quantile(0.98)) < 1e-2
    share = torch.bincount(nearest.indices, minlength=3) / len(x)
    assert float((share - 1 / 3).abs().max()) < 4 * math.sqrt(2 / 9 / 1500)


def test_gaussian_noise_in_the_prior_would_be_seen() -> None:
    """The same ODE from Gaussian starts gets the shares wrong where the data is not centred: the prior matters."""
    process, atoms = Poisson(2.5, EDM(0.01, 3.0)), torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    model, run = Empirical(process, atoms), unstir.plan("heun", process, 39, "karras")
    wrong = unstir.sample(model, run, x=EDM(0.01, 3.0).prior((1500, 1), dtype=torch.float64))
    right = unstir.sample(model, run, shape=(1500, 1), dtype=torch.float64)
    assert float((wrong > 2).double().mean()) != pytest.approx(float((right > 2).double().mean()), abs=0.02)


def test_student_density_integrates_and_has_the_normal_limit() -> None:
    for n, dims in ((1, 1.0), (3, 4.0), (2, 300.0)):
        mean, sigma = np.zeros(n), 0.7
        x = torch.randn(5, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        exact = stats.multivariate_t(mean, sigma**2 * np.eye(n), df=dims).logpdf(x.numpy())
        mine = student_log_density(x.square().sum(1), n, torch.tensor(sigma, dtype=torch.float64), dims)
        torch.testing.assert_close(mine, torch.as_tensor(exact).reshape(-1), rtol=1e-9, atol=1e-9)
    square, sigma = torch.tensor([3.0], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    far, limit = (float(student_log_density(square, 64, sigma, dims)) for dims in (1e9, math.inf))
    assert far == pytest.approx(limit, abs=1e-5)


def test_the_score_is_not_the_one_of_tweedie() -> None:
    """Why scores are refused: ∇ log p by autograd against (D − x)/σ²; they agree as D → ∞."""
    x = torch.tensor([[0.1, 0.4]], dtype=torch.float64, requires_grad=True)
    for dims, near in ((8.0, False), (1e8, True)):
        model = Empirical(Poisson(dims, SMALL), ATOMS)
        (score,) = torch.autograd.grad(model.log_prob(x, 0.05).sum(), x)
        tweedie = (model(x, 0.05) - x) / SMALL.sigma(0.05) ** 2
        assert bool(torch.allclose(score, tweedie, rtol=1e-4)) is near


def test_training_draws_the_noise_of_the_process() -> None:
    process = Poisson(3.0)
    z = order.noise(0, range(6), (2, 2), process)
    plain = order.noise(0, range(6), (2, 2))
    ratio = (z / plain).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-5, atol=0)
    assert not torch.allclose(ratio, torch.ones_like(ratio))
    assert torch.equal(order.validation_noise(0, 3, (2,), EDM()), order.validation_noise(0, 3, (2,)))


def test_specs_come_back() -> None:
    for process in (Poisson(), Poisson(2.5, VP()), Poisson(math.inf), Poisson(4, pr.shifted(pr.Flow(), 2.0))):
        again = pr.from_spec(process.spec())
        assert again == process
        assert again.tails == process.tails


HEAVY = Poisson(16.0, VP())


def model() -> Denoiser:
    return Denoiser(lambda x, t: 0 * x, HEAVY, "data")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: unstir.plan("ancestral", HEAVY, 5), "heavy-tailed"),
        (lambda: unstir.plan("dpmpp-2m-sde", HEAVY, 5), "no SDE"),
        (lambda: solvers.churn(unstir.plan("heun", Poisson(8.0), 7)), "heavy-tailed"),
        (lambda: solvers.LangevinCorrected(unstir.plan("ddim", HEAVY, 3)), "heavy-tailed"),
        (lambda: steer.classifier(model(), lambda x, t: x.sum(1)), "Tweedie"),
        (lambda: steer.energy(model(), lambda d: d.sum(1)), "Tweedie"),
        (lambda: steer.posterior(model(), mask(torch.ones(2)), torch.zeros(1, 2), "dps"), "Tweedie"),
        (lambda: HEAVY.g(0.5), "no diffusion g"),
        (lambda: HEAVY.posterior(0.2, 0.5), "no linear-Gaussian posterior"),
        (lambda: GaussianMixture(HEAVY, [1.0], [[0.0]], 1.0), "heavy-tailed"),
        (lambda: Empirical(HEAVY, ATOMS, 0.1), "bandwidth=0.1"),
        (lambda: model().on(EDM()), "one law"),
        (lambda: pr.shifted(HEAVY, 2.0), "inside"),
        (lambda: Poisson(3, pr.BrownianBridge()), "is anchored"),
        (lambda: Poisson(0), "D=0"),
        (lambda: Poisson(-3), "D=-3"),
        (lambda: Poisson(math.nan), "D=nan"),
        (lambda: Poisson("many"), "D='many'"),  # type: ignore[arg-type]
    ],
)
def test_what_needs_gaussian_noise_is_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_base_must_be_a_process() -> None:
    with pytest.raises(TypeError, match="base="):
        Poisson(3, base=Poisson(4))


def test_models_move_between_processes_of_one_law() -> None:
    """The same λ gives the same scaled state, whatever the law of the noise: conversion is still free."""
    source = Empirical(Poisson(5.0, EDM(0.01, 40.0)), ATOMS)
    target = Denoiser(source, source.process, "data").on(Poisson(5.0, VP()))
    exact = Empirical(Poisson(5.0, VP()), ATOMS)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target(x, 0.4), exact(x, 0.4), rtol=1e-9, atol=1e-12)
