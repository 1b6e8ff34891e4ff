"""fk-steering, overview-guided, cyclediffusion and cow: their functions against what is known, and (slow) their claims."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from unstir import steer
from unstir.denoiser import Denoiser, Gaussian
from unstir.plan import sample
from unstir.process import EDM, VP, Flow
from unstir.solvers import plan
from unstir.systems import reproduce
from unstir.systems.cow import region_guidance
from unstir.systems.cyclediffusion import generator, latent_langevin
from unstir.systems.fk_steering import LETTERS, Letters, letters, spell
from unstir.systems.overview_guided import (
    RewardNet,
    fit_preferences,
    fit_reward,
    look_ahead,
    off_support,
    optimise,
    reward_guidance,
    subspace,
)

PROCESSES = [VP(), EDM(), Flow()]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- overview-guided ----------------------------------------------------------------------------------------------------
MEAN, ROOT = randn(5, seed=1), randn(5, 5, seed=2)
COV, G = ROOT @ ROOT.T / 5 + 0.1 * torch.eye(5, dtype=torch.float64), randn(1, 5, seed=3)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_look_ahead_is_exact_for_gaussians(process) -> None:
    """The denoiser of N(m, C) given ⟨g, x0⟩ = y is that of N(m + K (y − ⟨g, m⟩), C − K gᵀC)."""
    noise, y = 0.3, torch.tensor([2.0], dtype=torch.float64)
    gain = COV @ G[0] / (G[0] @ COV @ G[0] + noise**2)
    exact = Gaussian(process, MEAN + gain * (y - G[0] @ MEAN), COV - torch.outer(gain, G[0] @ COV))
    guided = look_ahead(Gaussian(process, MEAN, COV), G, y, noise)
    x = randn(4, 5, seed=4)
    for lam in (-2.0, 0.0, 2.5):
        t = float(process.time(lam))
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
    for solver in ("ancestral", "dpmpp-2m"):
        table = plan(solver, process, 12, start=process.span[1])  # at α = 0 nothing is guided
        start = float(process.sigma(table.start)) * x
        torch.testing.assert_close(sample(guided, table, x=start), sample(exact, table, x=start), rtol=0, atol=2e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(("rule", "backward"), [("exact", 1), ("paper", 1), ("naive", 0)])
@pytest.mark.parametrize("solver", ["ancestral", "dpmpp-2m"])
def test_look_ahead_moves_towards_its_target_at_the_cost_of_its_kind(process, rule, backward, solver) -> None:
    model, y = Gaussian(process, MEAN, COV), torch.tensor([2.0], dtype=torch.float64)
    table = plan(solver, process, 20)
    state = sample(look_ahead(model, G, y, rule=rule), table, shape=(40, 5), full=True, dtype=torch.float64)
    assert (state.calls.forward, state.calls.backward) == (20, 20 * backward)
    before = float((sample(model, table, shape=(40, 5), dtype=torch.float64) @ G[0] - 2).abs().mean())
    assert float((state.x @ G[0] - 2).abs().mean()) < 0.5 * before


def test_the_rules_are_what_they_say() -> None:
    """D' − D by hand, from J of a Gaussian: α C (α² C + σ²)⁻¹ in x."""
    process, noise, y = VP(), 0.2, torch.tensor([1.5], dtype=torch.float64)
    model, t, x, g = Gaussian(process, MEAN, COV), 0.4, randn(3, 5, seed=4), G[0]
    alpha, sigma = process.alpha(t), process.sigma(t)
    jacobian = alpha**2 * COV @ torch.linalg.inv(alpha**2 * COV + sigma**2 * torch.eye(5))  # ∂D/∂x̂
    ratio2, data = (sigma / alpha) ** 2, model(x, t)
    gap = (y - data @ g)[:, None]
    known = {
        "exact": gap / (noise**2 + ratio2 * g @ jacobian @ g) * ratio2 * (jacobian @ g),
        "paper": gap / (noise**2 + ratio2 * (jacobian @ g).square().sum()) * ratio2 * (jacobian @ g),
        "naive": gap / (noise**2 + ratio2 * g.square().sum()) * ratio2 * g,
    }
    for rule, shift in known.items():
        torch.testing.assert_close(look_ahead(model, G, y, noise, rule)(x, t), data + shift)


def test_look_ahead_keeps_the_subspace_and_the_naive_rule_leaves_it() -> None:
    model, basis, theta = subspace(VP(), 12, 3)
    assert float((theta - basis @ basis.T @ theta).norm() / (basis @ basis.T @ theta).norm()) == pytest.approx(9.0)
    table = plan("ancestral", VP(), 20)
    for rule in ("exact", "paper", "naive"):
        x, values = optimise(lambda x: 10 - (x @ theta - 3) ** 2, model, table, 6, 0.9, batch=8, rule=rule)
        assert len(values) == 7
        assert (off_support(x, basis) < 1e-10) == (rule != "naive")
        if rule != "naive":
            assert values[-1] > values[0] + 1


def test_no_rounds_is_sampling() -> None:
    model, _, theta = subspace(VP(), 12, 3)
    table = plan("ancestral", VP(), 10)
    x, values = optimise(lambda x: x @ theta, model, table, 0, 0.5, batch=4)
    torch.testing.assert_close(x, sample(model, table, shape=4, dtype=torch.float64))
    assert values == [pytest.approx(float((x @ theta).mean()))]


def test_reward_guidance_is_the_gradient_of_its_loss() -> None:
    model, x, t = Gaussian(VP(), MEAN, COV), randn(3, 5).requires_grad_(), 0.3
    loss = (0.5 * (1.0 - model(x, t) @ G[0]) ** 2).sum()
    (slope,) = torch.autograd.grad(loss, x)
    expected = model(x, t) - 2.0 * (VP().sigma(t) ** 2 / VP().alpha(t)) * slope
    torch.testing.assert_close(reward_guidance(model, lambda d: d @ G[0], 1.0, 2.0)(x.detach(), t), expected.detach())


def test_fitted_rewards_find_the_truth() -> None:
    x, w = randn(200, 6, seed=1), randn(6, seed=2)
    fitted = fit_reward(x, x @ w + 0.7, ridge=1e-9)
    torch.testing.assert_close(fitted.weight, w, rtol=1e-6, atol=1e-8)
    assert float(fitted.offset) == pytest.approx(0.7)
    u = x[:100] @ w > x[100:] @ w
    better, worse = (torch.where(c[:, None], x[:100], x[100:]) for c in (u, ~u))
    preferred = fit_preferences(better, worse, 1.0)
    assert float(torch.nn.functional.cosine_similarity(preferred.weight, w, dim=0)) > 0.95
    with pytest.raises(ValueError, match="use ridge > 0"):
        fit_reward(x[:5], x[:5] @ w, ridge=0.0)


def test_the_reward_network_hears_its_reward() -> None:
    net = RewardNet()
    for layer in (net.head, *net.b):  # they begin as zero
        torch.nn.init.normal_(layer.weight)
    x, time = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    assert net.told(torch.tensor([0.0, 2.0])).shape == (2, 11)
    assert not torch.allclose(net(x, time, torch.tensor([0.0, 0.0])), net(x, time, torch.tensor([1.0, 3.0])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: look_ahead(Gaussian(VP(), MEAN, COV), G, torch.ones(1), rule="best"), "rule='best'"),
        (lambda: look_ahead(Gaussian(VP(), MEAN, COV), G, torch.ones(1), noise=0.0), "noise=0.0"),
        (lambda: look_ahead(Gaussian(VP(), MEAN, COV), G / 0, torch.ones(1)), "NaN or infinite"),
        (
            lambda: optimise(lambda x: x.detach().sum(1), Gaussian(VP(), MEAN, COV), plan("ddim", VP(), 2), 1, 1.0),
            "value has no gradient",
        ),
        (lambda: latent_langevin(lambda z: z, lambda x: x.sum(1), randn(2, 3), scale=1.0, size=2.0), "size=2.0"),
    ],
)
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# -- cyclediffusion -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0.2, 0.5])
def test_without_an_energy_the_walk_keeps_its_known_variance(size) -> None:
    z = latent_langevin(lambda z: z, lambda x: x.sum(1), randn(120, 30), scale=0.0, steps=40, size=size)
    assert float(z.var()) == pytest.approx(1 / (1 - size / 4), rel=0.06)


def test_a_linear_energy_shifts_the_latent_by_its_gradient() -> None:
    """p(z) ∝ N(z; 0, I) exp(λ ⟨b, z⟩) is N(λ b, I)."""
    b = torch.tensor([1.0, -0.5], dtype=torch.float64)
    z = latent_langevin(lambda z: z, lambda x: -(x @ b), randn(300, 2), scale=1.5, steps=30, size=0.5)
    torch.testing.assert_close(z.mean(0), 1.5 * b, rtol=0, atol=0.25)


def test_gradients_go_through_the_whole_plan() -> None:
    model, z = Gaussian(VP(), MEAN, COV), randn(2, 5).requires_grad_()
    draw = generator(model, plan("dpmpp-2m", VP(), 6))
    (slope,) = torch.autograd.grad(draw(z).square().sum(), z)
    step = torch.zeros_like(z)
    step[1, 3] = 1e-5
    finite = (draw(z.detach() + step).square().sum() - draw(z.detach() - step).square().sum()) / 2e-5
    assert float(slope[1, 3]) == pytest.approx(float(finite), rel=1e-6)


# -- cow ---------------------------------------------------------------------------------------------------------------------
def test_region_guidance_in_and_outside_the_region() -> None:
    means = randn(4, 5, seed=5)

    def network(x, t, k):
        return 0.5 * x + means[k]

    model = Denoiser(network, VP(), "data", shape=(5,))
    keys = [{"k": k} for k in (1, 2, 3)]
    x = randn(3, 5)
    everywhere = region_guidance(model, 3.0, torch.ones(5, dtype=torch.bool), *keys)
    torch.testing.assert_close(everywhere(x, 0.5, k=0), steer.cfg(model, 3.0, null=keys[0])(x, 0.5, k=0))
    nowhere = region_guidance(model, 3.0, torch.zeros(5, dtype=torch.bool), *keys)
    base = 0.5 * x + means[1] + means[2] - means[3]
    torch.testing.assert_close(nowhere(x, 0.5, k=0), base + 3.0 * (0.5 * x + means[0] - base))
    calls = sample(nowhere, plan("ddim", VP(), 4), x=x, k=0, full=True).calls
    assert (calls.forward, calls.nested) == (16, 12)


# -- fk-steering: masked diffusion of letters ------------------------------------------------------------------------
def tiny():
    first, following = torch.tensor([0.6, 0.4]).double(), torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
    return Letters(first, following)


def enumerated(law, length):
    """[(symbols, probability)] of every text."""
    texts = list(itertools.product(range(len(law.first)), repeat=length))
    steps = [float(torch.prod(law.following[list(text[:-1]), list(text[1:])])) for text in texts]
    return [(text, float(law.first[text[0]]) * step) for text, step in zip(texts, steps, strict=True)]


def test_the_exact_network_of_masked_letters() -> None:
    law, known = tiny(), torch.tensor([[2, 0, 2, 2, 1], [2, 2, 2, 2, 2]])
    p = law.posterior(known)
    for row, given in enumerate(known.tolist()):
        every = enumerated(law, 5)
        fits = [(text, w) for text, w in every if all(g in (2, c) for g, c in zip(given, text, strict=True))]
        total = sum(w for _, w in fits)
        for place in range(5):
            share = sum(w for text, w in fits if text[place] == 1) / total
            assert float(p[row, place, 1]) == pytest.approx(share)


def test_the_tilted_count_is_that_of_all_texts() -> None:
    law, lam = tiny(), 0.8
    mass = [(text.count(1), w * torch.tensor(lam * text.count(1)).exp().item()) for text, w in enumerated(law, 6)]
    known = sum(n * w for n, w in mass) / sum(w for _, w in mass)
    assert law.tilted_count(1, lam, 6) == pytest.approx(known, rel=1e-6)


def test_steered_letters_have_the_tilted_count_and_every_place_is_filled() -> None:
    law = letters()
    assert torch.allclose(law.following.sum(1), torch.ones(27, dtype=torch.float64))
    e = LETTERS.index("e")
    tokens, crowd = spell(law, 10, 30, 16, e, k=32, lam=1.0)
    assert int(tokens.max()) < 27
    count = (tokens == e).double().sum(1).reshape(16, 32)
    mean = (crowd.log_weights.softmax(1) * count).sum(1)
    assert float(mean.mean()) == pytest.approx(law.tilted_count(e, 1.0, 10), abs=4 * float(mean.std()) / 4 + 0.05)
    again, _ = spell(law, 10, 30, 2, e, k=32, lam=1.0)
    assert torch.equal(again, tokens[:64])


# -- the claims ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cow", "cyclediffusion", "fk-steering", "overview-guided"])
def test_the_claims_hold(name: str, runs: Path) -> None:
    result = reproduce(name, runs)
    failed = [f"{c.text}: {c.measured:.4g} {c.sense} {c.threshold:.4g}" for c in result.claims if not c.held]
    assert result.held, failed
    assert json.loads((runs / name / "result.json").read_text())["held"]
