"""Start kernels: their moments, their limits, the contraction of errors, and the choice of the start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import unstir
from unstir import steer
from unstir.denoiser import Gaussian
from unstir.process import EDM, VP, Poisson
from unstir.process.table import from_betas

P = VP()
LINEAR = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))  # the published schedule


def test_the_kernel_has_its_mean_and_variance() -> None:
    h = torch.full((2000, 2), 0.7, dtype=torch.float64)
    spread = torch.tensor([0.0, 1.5], dtype=torch.float64)
    start = steer.start(unstir.plan("ddim", P, 20), h, 0.4, spread=spread, seed=3)
    a, s = float(P.alpha(0.4)), float(P.sigma(0.4))
    torch.testing.assert_close(start.x.mean(0), torch.full((2,), a * 0.7, dtype=torch.float64), rtol=0, atol=0.08)
    torch.testing.assert_close(start.x.std(0), (s**2 + (a * spread) ** 2).sqrt(), rtol=0.06, atol=0)
    assert start.plan.start == 0.4
    assert start.plan.end == 0


def test_the_start_is_that_of_sampling_with_the_same_seed() -> None:
    """From t = 1 with α ≈ 0 the estimate is forgotten; the noise is the prior's own, for Poisson flows too."""
    for process in (P, Poisson(4.0, P)):
        plan = unstir.plan("ddim", process, 5)
        h = torch.ones(3, 2)
        start = steer.start(plan, h, 1.0, seed=7)
        prior = process.prior((3, 2), seed=7)
        torch.testing.assert_close(start.x, float(process.alpha(1.0)) * h + prior)
        torch.testing.assert_close(steer.start(plan, h[:1], 1.0, seed=7, index=[2]).x, start.x[2:])


def test_a_tail_is_compiled_anew_and_a_late_start_returns_the_estimate() -> None:
    plan = unstir.plan("dpmpp-3m", P, 40)
    model = Gaussian(P, [0.0], std=1.0)
    h = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    tail, x = steer.start(plan, h, 1e-3)
    torch.testing.assert_close(unstir.sample(model, tail, x=x), h, rtol=0, atol=0.05)
    assert all(lag == 0 for lag in tail.rows[0].b)  # no history that a sliced table would read


def test_anchored_starts_are_moved_by_the_anchor(anchored: VP) -> None:
    plan, h = unstir.plan("ddim", anchored, 6), torch.zeros(2, 3)
    y = torch.full((2, 3), 2.0)
    with_y = steer.start(plan, h, 0.5, anchor=y).x
    torch.testing.assert_close(with_y - float(anchored.beta(0.5)) * y, steer.start(unstir.plan("ddim", P, 6), h, 0.5).x)


@pytest.mark.parametrize(("s", "still", "noisy"), [(0.3, 0.1454, 0.0211), (1.0, 0.440, 0.194)])
def test_errors_contract_as_published(s: float, still: float, noisy: float) -> None:
    """Prior N(0, s²), start at t = 400 of 1000: E[output] = gain · f(y) with the closed forms for η = 0 and η = 1.

    gain = α s/√(α²s² + σ²) and α²s²/(α²s² + σ²): → 1 where the prior is broad, → 0 where it is narrow.
    """
    t = 0.4
    a, sig = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))
    for eta, quoted, exact in (
        (0.0, still, a * s / math.sqrt(a**2 * s**2 + sig**2)),
        (1.0, noisy, a**2 * s**2 / (a**2 * s**2 + sig**2)),
    ):
        assert exact == pytest.approx(quoted, abs=3e-3)
        tail = unstir.plan("ddim", LINEAR, 500, "uniform", start=t, eta=eta)

        def gain(u: float) -> float:
            alpha, sigma = float(LINEAR.alpha(u)), float(LINEAR.sigma(u))
            return alpha * s**2 / (alpha**2 * s**2 + sigma**2)

        mean = tail.propagate(gain, x_mean=a, x_std=sig)[-1][0]
        assert mean == pytest.approx(exact, abs=3e-3)


def test_divergence_is_the_gaussian_kl_and_start_time_its_inverse() -> None:
    h, x0, t = torch.tensor([0.2, -0.4]).double(), torch.tensor([0.5, 0.1]).double(), 0.3
    a, s = float(P.alpha(t)), float(P.sigma(t))
    kernel, forward = (torch.distributions.Normal(a * m, s) for m in (h, x0))
    exact = float(torch.distributions.kl_divergence(kernel, forward).sum())
    error = float((x0 - h).square().sum())
    assert steer.start_divergence(P, t, error) == pytest.approx(exact, rel=1e-12)
    assert steer.start_time(P, error, exact) == pytest.approx(t, rel=1e-9)
    assert steer.start_time(EDM(), 4.0, 0.5) == pytest.approx(2.0 / 80)  # σ̂² = ‖e‖²/(2 kl)


def test_the_search_returns_the_best_time() -> None:
    """A restorer that is off by an offset: the data have mean 0, so a later start is nearer to them."""
    model, plan = Gaussian(P, [0.0], std=0.3), unstir.plan("ddim", P, 30)
    truth = 0.3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0)).double()

    def mean(x: Tensor, true: Tensor) -> float:
        return abs(float(x.mean() - true.mean()))

    best, table = steer.search_start_time(model, plan, truth + 1.0, truth, mean, [0.05, 0.2, 0.5])
    assert best == min(table, key=lambda t: table[t]) == 0.5
    assert list(table) == [0.05, 0.2, 0.5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p, h: steer.start(p, h, 0.0), "start=0.0"),
        (lambda p, h: steer.start(p, h, 1.5), "start=1.5"),
        (lambda p, h: steer.start(p, h, 0.5, spread=-1.0), "spread"),
        (lambda p, h: steer.start(p.map_rows(lambda i, row: row), h, 0.5), "not made by unstir.plan"),
        (lambda p, h: steer.start_time(P, 0.0, 1.0), "error=0.0"),
        (lambda p, h: steer.start_time(P, 1.0, -1.0), "kl=-1.0"),
        (lambda p, h: steer.search_start_time(None, p, h, h[:1], lambda a, b: 0.0, [0.5]), "the shape of truth"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(unstir.plan("ddim", P, 5), torch.zeros(2, 1))


def test_an_estimate_must_be_a_tensor_of_numbers() -> None:
    with pytest.raises(TypeError, match="estimate"):
        steer.start(unstir.plan("ddim", P, 5), torch.zeros(2, 1, dtype=torch.long), 0.5)
