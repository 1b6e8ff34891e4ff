"""RED-diff against its own theory: gradients of Gaussians, stationary points, limits, and what it never does."""

import math

import pytest
import torch

import unstir
from unstir.denoiser import Denoiser, Gaussian
from unstir.plan import Plan
from unstir.process import EDM, VP, Flow
from unstir.steer import operators as ops
from unstir.steer import red_diff
from unstir.steer.variational import WEIGHTS

torch.set_num_threads(1)
PROCESSES = [VP(), EDM(), Flow()]
N, STD = 4, 0.7
MEAN = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)
KEEP = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def at(process, lam):
    return float(process.time(lam))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_one_step_is_the_formula(process, weight) -> None:
    """μ − rate [Aᵀ(Aμ − y)/σ_y² + λ w(SNR)(ε̂ − ε)], written with ε̂ as the paper has it."""
    model, t, lam, rate = Gaussian(process, MEAN, STD**2), at(process, 0.3), 0.25, 0.01
    y, start, noise = randn(2, N, seed=1) * KEEP, randn(2, N, seed=2), 0.5
    new = red_diff(
        model, ops.mask(KEEP), y, [t], noise, lam=lam, weight=weight, sums=True, start=start, optimizer=sgd(rate), seed=3
    )
    from unstir._random import draw, sample_keys

    epsilon = draw(sample_keys(2, 3), (N,), 1, torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * start + sigma * epsilon
    noise_hat = (x - alpha * model(x, t)) / sigma
    snr = float(alpha / sigma)
    w = {
        "linear": 1 / snr, "sqrt": snr**-0.5, "square": snr**-2, "log": math.log(1 + 1 / snr), "trunc": min(1 / snr, 1),
        "2/3": snr ** (-2 / 3), "const": 1.0,
    }[weight]  # fmt: skip
    slope = KEEP * (start - y) / noise**2 + lam * w * (noise_hat - epsilon)
    torch.testing.assert_close(new, start - rate * slope, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_stationary_point_of_a_gaussian(process) -> None:
    """With weight 1/SNR and E[μ − D] = (1 − αk)(μ − m), k = α σ_d²/(α²σ_d² + σ²), the objective is quadratic at one t:

    KEEP (μ − y)/σ_y² + λ (1 − αk)(μ − m) = 0. The mean of 500 steps of 60 samples knows it to about 0.009.
    """
    t, noise, lam = at(process, 0.5), 0.5, 2.0
    y = (KEEP * torch.tensor([1.2, -1.0, 0, 0], dtype=torch.float64)).expand(60, N)
    path: list = []
    model = Gaussian(process, MEAN, STD**2)
    red_diff(
        model,
        ops.mask(KEEP),
        y,
        [t] * 600,
        noise,
        lam=lam,
        sums=True,
        optimizer=sgd(0.05),
        on_step=lambda i, mu: path.append(mu),
    )
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    pull = lam * (1 - alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))
    exact = (KEEP * y[0] / noise**2 + pull * MEAN) / (KEEP / noise**2 + pull)
    torch.testing.assert_close(torch.stack(path[100:]).mean((0, 1)), exact, rtol=0, atol=0.035)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ddim", "dpmpp-2m"])
def test_nodes_of_any_plan_on_any_process(process, plan) -> None:
    """It fits y, moves the unseen towards the prior's mean, and calls forward once a node, never backward."""
    fired = []
    model = Gaussian(process, MEAN, 0.05**2)
    net = Denoiser(lambda x, t: _watched(model, x, t, fired), process, "data", shape=(N,))
    y = (KEEP * (MEAN + 0.05)).expand(3, N)
    table = unstir.plan(plan, process, nfe=120)
    with unstir.count_calls() as calls:
        mu = red_diff(net, ops.mask(KEEP), y, table, rate=0.03)
    assert calls.forward - fired.count("inner") == len(table)
    assert calls.backward == 0
    assert "graph" not in fired
    torch.testing.assert_close(mu * KEEP, y, rtol=0, atol=0.08)
    torch.testing.assert_close((mu * (1 - KEEP)), ((1 - KEEP) * MEAN).expand(3, N), rtol=0, atol=0.1)


def _watched(model, x, t, fired):
    fired.append("inner")
    if x.requires_grad or torch.is_grad_enabled():
        fired.append("graph")
    return model(x, t)


def test_without_the_prior_it_is_least_squares_and_leaves_the_null_space_alone() -> None:
    model, start = Gaussian(VP(), MEAN, STD**2), randn(2, N)
    y = KEEP * randn(2, N, seed=1)
    mu = red_diff(model, ops.mask(KEEP), y, [0.5] * 300, lam=0.0, start=start, optimizer=sgd(0.5))
    torch.testing.assert_close(mu, KEEP * y + (1 - KEEP) * start, rtol=1e-6, atol=1e-6)


def test_orders_and_seeds() -> None:
    """Times are visited as told; a sample does not feel its batch; the start is A⁺y."""
    seen: list = []
    model = Denoiser(lambda x, t: (seen.append(round(float(t.flatten()[0]), 6)), 0.5 * x)[1], VP(), "data", shape=(N,))
    y, plan = KEEP * randn(2, N, seed=1), unstir.plan("ddim", VP(), nfe=6)
    nodes = [round(float(row.t), 6) for row in plan.rows]
    for order, wanted in {"descending": nodes, "ascending": nodes[::-1]}.items():
        seen.clear()
        red_diff(model, ops.mask(KEEP), y, plan, order=order)
        assert seen == wanted
    seen.clear()
    red_diff(model, ops.mask(KEEP), y, plan, order="random")
    assert sorted(seen, reverse=True) == nodes
    assert seen != nodes
    both = red_diff(model, ops.mask(KEEP), y, plan, seed=[7, 8])
    alone = red_diff(model, ops.mask(KEEP), y[1:], plan, seed=[8])
    torch.testing.assert_close(both[1:], alone)
    torch.testing.assert_close(red_diff(model, ops.mask(KEEP), y, [0.5], rate=1e-12), y)


def test_spread_draws_x0_round_mu() -> None:
    """One step with ς: D is asked at α (μ + ς z) + σ ε."""
    seen: list = []
    model = Denoiser(lambda x, t: (seen.append(x), x)[1], VP(), "data", shape=(N,))
    y = torch.zeros(2, N).double()
    red_diff(model, ops.mask(KEEP), y, [0.5], spread=0.0)
    red_diff(model, ops.mask(KEEP), y, [0.5], spread=0.3)
    z = (seen[1] - seen[0]) / float(VP().alpha(0.5)) / 0.3
    assert 0.2 < float(z.std()) < 2


def test_phase_retrieval_from_a_start() -> None:
    """An operator that is not linear: the residual falls by far."""
    operator, model = ops.phase_retrieval(2), Gaussian(VP(), torch.zeros(1, 4, 4), 1.0)
    truth = randn(2, 1, 4, 4)
    y, start = operator.A(truth), truth + 0.3 * randn(2, 1, 4, 4, seed=1)
    mu = red_diff(model, operator, y, [0.3] * 150, start=start, lam=0.0, rate=0.02)
    assert float((operator.A(mu) - y).norm()) < 0.1 * float((operator.A(start) - y).norm())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight": "snr"}, ValueError, "weight='snr' is unknown"),
        ({"order": "up"}, ValueError, "order='up'"),
        ({"lam": -1.0}, ValueError, "lam=-1"),
        ({"rate": 0.0}, ValueError, "rate=0"),
        ({"sums": True}, ValueError, "noise=0, by which sums=True divides"),
        ({"y": torch.zeros(1, 5)}, ValueError, r"y has shape \(1, 5\)"),
        ({"y": torch.full((1, N), math.nan)}, ValueError, "NaN"),
        ({"plan": [0.0]}, ValueError, "no time with σ > 0"),
        ({"start": torch.zeros(2, N)}, ValueError, "one sample for each of the 1"),
        ({"operator": ops.Nonlinear(torch.round)}, ValueError, "straight-through"),
        ({"operator": lambda x: x}, TypeError, "method A"),
        ({"model": lambda x, t: x}, TypeError, "knows its process"),
        ({"rate": 1e38, "lam": 1e300}, ValueError, "non-finite in step"),
    ],
    ids=lambda v: None,
)
def test_wrong_arguments_are_named(change, error, words) -> None:
    y = KEEP[None]
    settings = {"model": Gaussian(VP(), MEAN, STD**2), "operator": ops.mask(KEEP), "y": y, "plan": [0.5, 0.4], **change}
    with pytest.raises(error, match=words):
        red_diff(**settings)


def test_a_plan_is_not_run_but_read() -> None:
    plan = unstir.plan("heun", VP(), nfe=5)
    assert isinstance(plan, Plan)
    calls = []
    model = Denoiser(lambda x, t: (calls.append(1), x)[1], VP(), "data", shape=(N,))
    red_diff(model, ops.mask(KEEP), torch.zeros(1, N), plan)
    assert len(calls) == len(plan)
