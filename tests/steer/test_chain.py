"""The chain over (x, σ), and plans stacked over the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unstir.denoiser import Gaussian
from unstir.plan import Plan, sample
from unstir.process import EDM, VP
from unstir.solvers import plan
from unstir.steer import ProductChain, stacked

P = EDM(0.02, 20.0)
S = 0.7
MODEL = Gaussian(P, torch.zeros(4), std=S)


def heun(t: float) -> Plan:
    return plan("heun", P, nfe=5, grid="karras", start=t)


def constant(sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.full((len(x),), sigma, dtype=torch.float64)


def levels(x: Tensor) -> Tensor:
    return (x**2).mean(1).double().sqrt().clamp(0.05, 10)


# -- stacked plans ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["heun", "dpmpp-2m", "tab-3", "ghvb", "ddpm"])
def test_every_sample_follows_its_own_plan(name: str) -> None:
    starts = [0.1, 0.02, 0.5]
    plans = [plan(name, P, nfe=6, grid="karras", start=t) for t in starts]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = sample(MODEL, stacked(plans, 2), x=x, seed=5)
    for i, own in enumerate(plans):
        torch.testing.assert_close(together[i : i + 1], sample(MODEL, own, x=x[i : i + 1], seed=5, index=[i]))


def test_equal_plans_give_that_plan_bit_for_bit() -> None:
    one = heun(0.3)
    assert stacked([one, one, one], 2) == one
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(MODEL, stacked([one] * 3, 2), x=x), sample(MODEL, one, x=x))


def test_plans_of_different_form_are_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        stacked([heun(0.3), plan("ddim", P, nfe=5)], 2)
    with pytest.raises(ValueError, match="same"):
        stacked([plan("ddim", P, nfe=5), plan("ddim", VP(), nfe=5)], 2)


# -- the chain ----------------------------------------------------------------------------------------------
def test_without_steps_in_x_the_chain_stands_still() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    chain = ProductChain(MODEL, levels, x, eta=0.0)
    first, second = chain.emit(3, heun), chain.emit(2, heun)
    assert torch.equal(chain.x, x)
    assert torch.equal(first, second)


def test_at_a_known_level_it_is_langevin_with_the_right_variance() -> None:
    """p_σ = N(0, s² + σ²); the discrete chain has variance v with v = (1 − η/2v₀)² v + η, v₀ = s² + σ²."""
    sigma, eta = 0.5, 0.1
    chain = ProductChain(MODEL, constant(sigma), torch.zeros(4000, 4), eta=eta, seed=1)
    chain.step(60)
    v0 = S**2 + sigma**2
    expected = eta / (1 - (1 - eta / (2 * v0)) ** 2)
    assert float(chain.x.var()) == pytest.approx(expected, rel=0.05)
    assert expected == pytest.approx(v0, rel=eta)


def test_emitting_leaves_the_chain_as_stepping_would() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one, two = (ProductChain(MODEL, levels, x, eta=0.2, seed=3) for _ in range(2))
    one.emit(4, heun)
    two.step(4)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.sigma, two.sigma)
    assert one.nfe == 4 + 5
    assert two.nfe == 4


def test_the_state_with_the_smallest_level_is_denoised() -> None:
    sequence = iter([2.0, 0.3, 1.0])
    seen: list[float] = []

    def watch(t: float) -> Plan:
        seen.append(float(P.sigma(t)))
        return heun(t)

    chain = ProductChain(
        MODEL, lambda x: constant(next(sequence))(x), torch.zeros(2, 4), constant(1.0)(torch.zeros(2, 4)), eta=0.1
    )
    chain.emit(3, watch)
    assert seen == [pytest.approx(0.3)]
    assert chain.sigma.tolist() == [1.0, 1.0]


def test_a_chain_does_not_depend_on_the_others() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    many, one = (ProductChain(MODEL, levels, y, eta=0.2, seed=3) for y in (x, x[:1]))
    torch.testing.assert_close(many.emit(3, heun)[:1], one.emit(3, heun))


def test_the_guard_caps_the_step() -> None:
    x = torch.ones(3, 4)
    free, held = (ProductChain(MODEL, constant(0.05), x, eta=0.5, guard=g) for g in (None, 0.5))
    free.step()
    held.step()
    assert float((held.x - x).abs().max()) < 0.2 < float((free.x - x).abs().max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProductChain(Gaussian(VP(), torch.zeros(4), std=1.0), levels, torch.zeros(2, 4), eta=0.1), "α = 1"),
        (lambda: ProductChain(MODEL, levels, torch.zeros(2, 4), eta=-1.0), "eta"),
        (lambda: ProductChain(MODEL, constant(21.0), torch.zeros(2, 4), eta=0.1), "sigma"),
        (lambda: ProductChain(MODEL, constant(0.0), torch.zeros(2, 4), eta=0.1), "sigma"),
        (lambda: ProductChain(MODEL, levels, torch.zeros(2, 4), eta=0.1).emit(0, heun), "skip"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_other_processes_are_seen_with_alpha_one() -> None:
    model = Gaussian(VP(), torch.zeros(4), std=S)
    from unstir.denoiser import ConvertedDenoiser

    chain = ProductChain(ConvertedDenoiser(model, P), constant(0.5), torch.zeros(2, 4), eta=0.1)
    plain = ProductChain(MODEL, constant(0.5), torch.zeros(2, 4), eta=0.1)
    chain.step(3)
    plain.step(3)
    torch.testing.assert_close(chain.x, plain.x)
