"""One Brownian path for plans of any length."""

import itertools
import math

import pytest
import torch

import unstir
from unstir import brownian, process
from unstir.denoiser import GaussianMixture
from unstir.plan.brownian import bridge

SHAPE = (6, 3)


def test_the_bridge_has_its_covariance():
    """Cov b(s) b(r) = s (1 − r) for s ≤ r, from 4000 independent values; 0 at both ends."""
    keys, places = list(range(400)), (0.2, 0.55, 0.93)
    values = torch.stack([bridge(keys, (10,), s).flatten() for s in places])
    expected = torch.tensor([[min(s, r) * (1 - max(s, r)) for r in places] for s in places], dtype=torch.float64)
    assert torch.allclose(values @ values.T / values.shape[1], expected, atol=4 * 0.25 / 4000**0.5)
    assert float(bridge(keys, (10,), 0.0).abs().max()) == float(bridge(keys, (10,), 1.0).abs().max()) == 0


def rows_of(plan):
    return [i for i, row in enumerate(plan.rows) if row.noisy]


def clock(plan, t):
    return math.exp(2 * float(plan.process.logsnr(t)))


@pytest.mark.parametrize("p", [process.VP(), process.EDM(), process.Flow()], ids=["VP", "EDM", "Flow"])
def test_increments_add_up_and_are_white(p):
    """√(u₂−u₀) z = √(u₁−u₀) z₁ + √(u₂−u₁) z₂ for every row of a coarse plan and the two of a plan twice as fine."""
    nodes = [0.9, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1]
    fine, coarse = unstir.plan("sde", p, grid=nodes), unstir.plan("sde", p, grid=nodes[::2])
    a, b = brownian(coarse, (300, 20), seed=3), brownian(fine, (300, 20), seed=3)
    for i in rows_of(coarse):
        u0, u1, u2 = (clock(fine, t) for t in nodes[2 * i : 2 * i + 3])
        whole, first, second = a(i).double(), b(2 * i).double(), b(2 * i + 1).double()
        parts = math.sqrt(u1 - u0) * first + math.sqrt(u2 - u1) * second
        torch.testing.assert_close(math.sqrt(u2 - u0) * whole, parts, rtol=1e-5, atol=1e-6 * math.sqrt(u2 - u0))
        n = whole.numel()
        assert abs(float(whole.mean())) < 4 / n**0.5
        assert abs(float(whole.var()) - 1) < 4 * (2 / n) ** 0.5
        assert abs(float((first * second).mean())) < 4 / n**0.5


def test_more_steps_refine_one_picture():
    """Ends of the same path come together as the steps are halved, at strong order 1; with drawn noise they do not."""
    p = process.VP()
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    covariances = 0.2 * torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    model = GaussianMixture(p, torch.ones(3, dtype=torch.float64) / 3, means, covariances)
    ends, drawn = [], []
    for n in (16, 32, 64, 128):
        plan = unstir.plan("sde", p, nfe=n, end=0.02)
        ends.append(unstir.sample(model, plan, shape=SHAPE, seed=1, noise=brownian(plan, SHAPE, seed=1)))
        drawn.append(unstir.sample(model, plan, shape=SHAPE, seed=1))
    gaps = [float((x - y).square().mean().sqrt()) for x, y in itertools.pairwise(ends)]
    assert gaps[2] < 0.4 * gaps[0]
    assert float((drawn[3] - drawn[2]).square().mean().sqrt()) > 4 * gaps[2]


def test_a_sample_does_not_depend_on_its_batch_and_seeds_differ():
    plan = unstir.plan("dpmpp-2m-sde", process.EDM(), nfe=6)
    row = rows_of(plan)[2]
    whole = brownian(plan, SHAPE, seed=5)(row)
    assert torch.equal(brownian(plan, (2, 3), seed=5, index=[4, 1])(row), whole[[4, 1]])
    assert not torch.equal(brownian(plan, SHAPE, seed=6)(row), whole)


def test_noise_in_inner_stages_is_refused():
    with pytest.raises(ValueError, match="adds noise in an inner stage"):
        brownian(unstir.plan("dpmpp-sde", process.VP(), nfe=6), SHAPE)
