"""Churn, restart, correctors, inverses: against exact Gaussian statistics and exact round trips."""

import pytest
import torch

import unstir
from unstir import solvers
from unstir.denoiser import Gaussian
from unstir.plan import State
from unstir.process import EDM, VP, Flow
from unstir.solvers.invertible import amplification

S, M = 0.5, 0.3  # a Gaussian data law


def linear(process):
    """gain(t), offset(t) of its exact denoiser D = g x + o."""

    def gain(t):
        a, s = float(process.alpha(t)), float(process.sigma(t))
        return a * S**2 / (a * a * S**2 + s * s)

    return gain, lambda t: M - gain(t) * float(process.alpha(t)) * M


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=repr)
def test_stochastic_transforms_converge_to_the_data(process) -> None:
    """Exact mean and variance from the rows alone: the error falls with the number of steps."""
    made = {
        "churn": lambda n: solvers.churn(unstir.plan("heun", process, nfe=2 * n - 1), s_churn=10, s_noise=1.0),
        "restart": lambda n: solvers.restart(unstir.plan("heun", process, nfe=2 * n - 1), [(n // 2, 2, 0.3, 0.6)], s_noise=1.0),
        "corrected": lambda n: solvers.corrected(unstir.plan("dpmpp-2m", process, nfe=n), snr=0.05),
    }
    for name, make in made.items():
        coarse, fine = (abs(make(n).propagate(*linear(process))[-1][1] - S) for n in (12, 48))
        assert fine < 0.03 * S, name
        assert fine < 0.7 * coarse or fine < 2e-3, name


def test_churn_of_nothing_is_the_plan_itself() -> None:
    plan = unstir.plan("heun", EDM(), nfe=19, grid="karras")
    same = solvers.churn(plan, s_churn=0.0)
    assert [(r.t, r.to, r.a, dict(r.b)) for r in same.rows] == [(r.t, r.to, r.a, dict(r.b)) for r in plan.rows]
    assert not same.stochastic


def test_churn_puts_its_noise_into_the_row_before() -> None:
    """EDM: x̂ + S_noise √(σ̂²(1+γ)² − σ̂²) z, then the step from σ̂(1+γ); no row without a call but the first."""
    process = EDM()
    plan = unstir.plan("euler", process, nfe=8, grid="karras")
    raised = solvers.churn(plan, s_churn=4, s_min=0.01, s_max=50, s_noise=1.0)
    assert len(raised) == len(plan)
    assert sum(not row.evaluate for row in raised.rows) <= 1
    for before, row, node in zip(raised.rows, raised.rows[1:], plan.times[1:], strict=False):
        ratio = float(process.noise_ratio(node))
        gamma = min(4 / 8, 2**0.5 - 1) if 0.01 <= ratio <= 50 else 0.0
        assert float(process.noise_ratio(row.t)) == pytest.approx(ratio * (1 + gamma), rel=1e-9)
        assert before.c == pytest.approx(ratio * ((1 + gamma) ** 2 - 1) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("options", [{"name": "obelm"}, {"name": "bdia"}, {"name": "bdia", "gamma": 1.0}], ids=str)
@pytest.mark.parametrize("process", [VP(), Flow()], ids=repr)
def test_inverse_is_exact(options, process, mixture) -> None:
    options = dict(options)
    plan = unstir.plan(options.pop("name"), process, nfe=16, start=0.98, end=0.02, grid="uniform", **options)
    model, start = mixture.model(process), torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    head, tail = plan.split(row=15)
    before = unstir.sample(model, head, x=start, full=True)
    end = unstir.sample(model, tail, x=before)
    last = plan.rows[-1]
    momentum = (end - last.a * before.x) / last.b[0]
    back = unstir.sample(model, solvers.inverse(plan), x=State(before.x, [0] * 5, history={0: momentum}), full=True)
    assert len(solvers.inverse(plan)) == 15
    assert float((back.x - start).abs().max()) < 1e-10
    top = list(back.history.values())[-1]  # F_0: with it X_1 follows from X_0, and the pair goes on to the same end
    pair = State(plan[0].a * back.x + plan[0].b[0] * top, [0] * 5, history={0: top})
    again = unstir.sample(model, plan.split(row=1)[1], x=pair)
    assert float((again - end).abs().max()) < 1e-9


def test_amplification_law() -> None:
    plan = unstir.plan("bdia", VP(), nfe=10, start=0.98, end=0.02, grid="uniform", gamma=0.9)
    assert amplification(plan) == pytest.approx(0.9**-9, rel=1e-12)
    assert 5 < amplification(unstir.plan("obelm", VP(), nfe=20, start=0.98, end=0.02, grid="uniform")) < 15


def test_hopeless_inversions_are_refused() -> None:
    grid = {"start": 0.98, "end": 0.02, "grid": "uniform"}
    with pytest.raises(ValueError, match="multiply rounding"):
        solvers.inverse(unstir.plan("bdia", VP(), nfe=50, gamma=0.5, **grid), torch.float32)
    with pytest.raises(ValueError, match="cannot be run backwards"):
        solvers.inverse(unstir.plan("dpmpp-2m", VP(), nfe=10, **grid))
    with pytest.raises(ValueError, match="gamma"):
        unstir.plan("bdia", VP(), nfe=10, gamma=0.0, **grid)


def test_reversed_plans_invert_at_their_order(mixture) -> None:
    """Down and up again: DDIM inversion's error falls like 1/N, a second-order one's like 1/N²."""
    process = VP()
    model, x = mixture.model(process), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]

    def error(name, n):
        plan = unstir.plan(name, process, nfe=n, start=0.98, end=0.02, grid="logsnr")
        return float((unstir.sample(model, solvers.reversed_plan(plan), x=unstir.sample(model, plan, x=x)) - x).abs().max())

    assert error("ddim", 80) / error("ddim", 160) == pytest.approx(2, abs=0.3)
    assert error("dpmpp-2m", 80) / error("dpmpp-2m", 160) > 3.4
    with pytest.raises(ValueError, match=r"ρ|noise"):
        solvers.reversed_plan(unstir.plan("ancestral", process, nfe=8))


def test_wrong_settings_are_named() -> None:
    plan = unstir.plan("heun", EDM(), nfe=9)
    with pytest.raises(ValueError, match="s_min"):
        solvers.churn(plan, s_min=2.0, s_max=1.0)
    with pytest.raises(ValueError, match="t_min < t_max"):
        solvers.restart(plan, [(4, 1, 0.6, 0.3)])
    with pytest.raises(ValueError, match="one-step plan"):
        solvers.restart(unstir.plan("dpmpp-2m", EDM(), nfe=9), [(4, 1, 0.3, 0.6)])
    with pytest.raises(ValueError, match="was not made by"):
        solvers.churn(plan.map_rows(lambda i, row: row))
    with pytest.raises(ValueError, match="snr"):
        solvers.corrected(plan, snr=0.0)


def test_corrector_leaves_a_gaussian_where_it_is() -> None:
    """At fixed t the corrector's own stationary variance is the marginal's, up to O(ε)."""
    process = VP()
    model = Gaussian(process, [M], std=[S])
    plan = solvers.corrected(unstir.plan("ddim", process, nfe=2, start=0.6, end=0.3), snr=0.05, steps=400)
    gain, offset = linear(process)
    assert model(torch.zeros(1, 1, dtype=torch.float64), 0.3).item() == pytest.approx(offset(0.3))
    middle = 400  # after the correctors of the inner node
    std = plan.propagate(gain, offset)[middle][1]
    t = plan.rows[middle].to
    assert std == pytest.approx((float(process.alpha(t)) ** 2 * S**2 + float(process.sigma(t)) ** 2) ** 0.5, rel=0.01)
