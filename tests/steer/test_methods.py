"""DAPS, MCG, FlowChef and steered diffusion with a linear condition: each within its own theory."""

import math
from itertools import pairwise

import pytest
import torch

import unstir
from unstir.denoiser import Denoiser, Gaussian, GaussianMixture
from unstir.plan import Row
from unstir.process import EDM, VP, Flow
from unstir.steer import operators as ops
from unstir.steer.posterior import posterior

torch.set_num_threads(1)
PROCESSES = [VP(), EDM(), Flow()]
N, STD = 4, 0.7
KEEP = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5, 0.8, 0.0], dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# One sample of many coordinates with one law: moments without a stream of noise for every draw.
WIDE = 8000
SEEN = torch.arange(WIDE) < WIDE // 2
Y = 1.1 * SEEN.double()[None]


def wide(process):
    return Gaussian(process, torch.full((WIDE,), 0.4), STD**2)


def check_moments(x, noise) -> None:
    """4000 coordinates know a mean to 0.016 std, and a std to 1.1 %."""
    k = STD**2 / (STD**2 + noise**2)
    for part, mean, std in ((x[0, SEEN], 0.4 + k * 0.7, STD * math.sqrt(1 - k)), (x[0, ~SEEN], 0.4, STD)):
        assert float(part.mean()) == pytest.approx(mean, abs=0.07 * std + 1e-9)
        assert float(part.std()) == pytest.approx(std, rel=0.05, abs=1e-9)


# -- DAPS ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ddim", "ancestral"])
@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_daps_with_one_inner_call_is_exact_for_gaussians(process, plan, noise) -> None:
    """x0 | x_t, y is drawn exactly, so every row is exact, however few; the end is a draw too."""
    post = posterior(wide(process), ops.mask(SEEN), Y, "daps", noise, ode=1, data_std=STD)
    check_moments(unstir.sample(post, unstir.plan(plan, process, nfe=6), shape=(1, WIDE), dtype=torch.float64), noise)


def test_daps_with_a_run_inside_is_wider_by_what_it_counts_twice() -> None:
    """The run ends at x̃0 = m + σ_d/√(σ_d² + σ̂²) (x̂ − m), as wide as the data; r² is added to that. For a chain of
    x̂' = x̃0 + r z + σ̂' z' the variance v of x̂ follows v' = g² v + r² + σ̂'², g² = σ_d²/(σ_d² + σ̂²)."""
    process = EDM()
    levels = [20.0, 5.0, 1.5, 0.5]
    grid = [float(process.time(-math.log(s))) for s in levels] + [0.0]
    post = posterior(wide(process), ops.mask(torch.zeros(WIDE)), 0 * Y, "daps", 0.1, ode=80, data_std=STD)
    x = unstir.sample(post, unstir.plan("ddim", process, grid=grid), x=0.4 + 20.0 * randn(1, WIDE))
    v = 400.0
    for s, to in zip(levels, [*levels[1:], 0.0], strict=True):
        v = STD**2 / (STD**2 + s**2) * v + STD**2 * s**2 / (STD**2 + s**2) + to**2
    assert float(x.std()) == pytest.approx(math.sqrt(v), rel=0.04)
    assert math.sqrt(v) > 1.05 * STD


def test_daps_with_langevin_steps_has_the_same_law_as_the_exact_draw() -> None:
    """The same moments by 100 steps in every row; an A that is not linear takes them by itself."""
    plan = unstir.plan("ddim", VP(), nfe=6)
    options = {"ode": 1, "data_std": STD, "langevin": 60, "rate": 0.1}
    seen = SEEN.double()
    ends = [
        unstir.sample(posterior(wide(VP()), operator, Y, "daps", 0.3, **options), plan, shape=(1, WIDE), dtype=torch.float64)
        for operator in (ops.mask(SEEN), ops.Nonlinear(lambda x: x * seen))
    ]
    torch.testing.assert_close(ends[0], ends[1])
    check_moments(ends[0], 0.3)


def test_daps_asks_for_noise_and_for_a_run() -> None:
    model, y = Gaussian(VP(), MEAN, STD**2), torch.zeros(1, N).double()
    post = posterior(model, ops.Nonlinear(lambda x: x**2), y, "daps")
    with pytest.raises(ValueError, match="noise=0, by which daps divides"):
        unstir.sample(post, unstir.plan("ddim", VP(), nfe=2), shape=(1, N), dtype=torch.float64)
    with pytest.raises(ValueError, match="belongs to a run"):
        posterior(model, ops.mask(KEEP), y, "daps", 0.1)(randn(1, N), 0.5)
    post = posterior(model, ops.mask(KEEP), y, "daps", 0.1)
    with pytest.raises(ValueError, match="inner stage; daps needs"):
        unstir.sample(post, unstir.plan("heun", VP(), nfe=5), shape=(1, N), dtype=torch.float64)


# -- MCG -------------------------------------------------------------------------------------------------------
def test_mcg_moves_only_what_is_not_seen() -> None:
    """A (D* − D) = 0, and with A = I nothing is left; on correlated data the unseen part does move."""
    cov = 0.4 * torch.ones(N, N, dtype=torch.float64) + 0.1 * torch.eye(N, dtype=torch.float64)
    model, x = Gaussian(VP(), MEAN, cov), randn(3, N)
    y = (KEEP * 1.0)[None]
    out = posterior(model, ops.mask(KEEP), y, "mcg")(x, 0.5)
    move = out.data - out.base
    torch.testing.assert_close(move * KEEP, torch.zeros_like(move))
    assert float(move.abs().max()) > 1e-3
    dps = posterior(model, ops.mask(KEEP), y, "dps")(x, 0.5)
    torch.testing.assert_close(move, (1 - KEEP) * (dps.data - dps.base))


# -- FlowChef --------------------------------------------------------------------------------------------------
def test_flowchef_is_the_published_loop() -> None:
    """x ← x − s Aᵀ(A D − y) (K times with the same v), then x ← x + (t' − t) v; the last row is not steered."""
    model, flow = Gaussian(Flow(), MEAN, STD**2), Flow()
    operator, y, s = ops.dense(randn(2, N, seed=3), (N,)), randn(3, 2, seed=4), 0.05
    plan = unstir.plan("euler", flow, nfe=5, grid="uniform", start=0.95)
    x = start = randn(3, N)
    for t, to in pairwise(plan.times):
        v = (x - model(x, t)) / t
        for _ in range(3 if to > 0 else 0):
            x = x - s * operator.A_adjoint(operator.A(x - t * v) - y)
        x = x + (to - t) * v
    post = posterior(model, operator, y, "flowchef", step=s, inner=3)
    torch.testing.assert_close(unstir.sample(post, plan, x=start), x, rtol=1e-9, atol=1e-9)


def test_flowchef_keeps_the_velocity_of_multistep_plans_unsteered() -> None:
    """The history of a two-step plan holds D, not D*: else one correction would act twice."""
    model = Gaussian(Flow(), MEAN, STD**2)
    post = posterior(model, ops.mask(KEEP), (KEEP * 1.0)[None], "flowchef", step=0.1)
    plan = unstir.plan("ab-2", Flow(), nfe=4, start=0.9)
    for step in unstir.steps(post, plan, randn(2, N)):
        if step.index < 2:
            row: Row = plan.rows[step.index]
            assert row.plain
            assert not torch.equal(step.state.history[step.index], step.data)


def test_flowchef_fits_the_measurement_with_many_small_steps() -> None:
    flow, y = Flow(), (KEEP * 0.9)[None]
    post = posterior(Gaussian(flow, MEAN, STD**2), ops.mask(KEEP), y, "flowchef", step=0.1, inner=200)
    out = post(randn(3, N), 0.5)
    torch.testing.assert_close(out.data * KEEP, y.expand(3, N), rtol=0, atol=1e-7)


def test_the_skipped_gradient_of_an_isotropic_gaussian_has_the_direction_of_the_true_one() -> None:
    """J = (r²/σ̂²) I, so ∇_x̂ ½‖y − A D‖² = J ∇_D: one is a multiple of the other."""
    flow, x, t = Flow(), randn(2, N), 0.4
    model, operator, y = Gaussian(flow, MEAN, STD**2), ops.dense(randn(2, N, seed=3), (N,)), randn(2, 2, seed=4)
    out = posterior(model, operator, y, "flowchef", step=0.1)(x, t)
    u = x.clone().requires_grad_(True)
    loss = 0.5 * (operator.A(model(u, t)) - y).square().sum()
    (slope,) = torch.autograd.grad(loss, u)
    ratio = (out.base - out.data) / slope
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])))
    jacobian = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
    assert float(ratio[0, 0]) == pytest.approx(0.1 / jacobian)


def test_flowchef_refuses_a_step_that_diverges() -> None:
    post = posterior(Gaussian(Flow(), MEAN, STD**2), ops.mask(KEEP), torch.zeros(1, N), "flowchef", step=2.5)
    with pytest.raises(ValueError, match=r"must be below 2/‖A‖² = "):
        post(torch.zeros(1, N), 0.5)


# -- steered, linear -------------------------------------------------------------------------------------------
def test_steered_fits_y_in_every_row_and_recomputes_the_noise() -> None:
    """A D' = y with P = A⁺, so the state is that of a row with D' in the place of D."""
    process = VP()
    model = GaussianMixture(process, [0.5, 0.5], torch.stack([MEAN, -MEAN]), 0.1)
    operator, y = ops.dense(randn(2, N, seed=3), (N,)), randn(2, 2, seed=4)
    post = posterior(model, operator, y, "steered")
    plan = unstir.plan("ddim", process, nfe=6)
    x = randn(2, N)
    for step in unstir.steps(post, plan, x):
        torch.testing.assert_close(operator.A(step.data), y, rtol=1e-6, atol=1e-6)
        row = plan.rows[step.index]
        torch.testing.assert_close(step.x, row.a * x + row.b[0] * step.data)
        x = step.x
    torch.testing.assert_close(operator.A(x), y)


def test_no_method_calls_back_through_the_network_but_those_that_say_so() -> None:
    fired = []
    net = torch.nn.Linear(N, N).double()
    net.register_full_backward_hook(lambda *_: fired.append(1))
    model = Denoiser(lambda x, t: net(x), Flow(), "data", shape=(N,))
    y = (KEEP * 0.5)[None]
    for method, options in {"flowchef": {}, "steered": {}, "daps": {"noise": 0.1}}.items():
        post = posterior(model, ops.mask(KEEP), y, method, **options)
        calls = unstir.sample(post, unstir.plan("ddim", Flow(), nfe=3), shape=2, dtype=torch.float64, full=True).calls
        assert (calls.backward, fired) == (0, [])
        assert calls.forward == 3 * post.method.forward
