"""Decision lists: the golden value, the solvers that are points of the space, limits, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.solvers import compile_plan, make_grid
from unstir.solvers.usf import RELAXATIONS, Decision, derivative_weights, usf

VP = pr.VP()
NODES = make_grid("logsnr", VP, 6, 1.0, 0.01)


def ramp(order: int, n: int = 6, **same) -> list[Decision]:
    """Order `order` as soon as there is history for it."""
    return [Decision(order=min(order, i + 1), **same) for i in range(n)]


def states(plan, mixture):
    """Every genuine state of a run on the mixture."""
    seen = []
    x = mixture.start.repeat(1, 1)
    unstir.sample(
        mixture.model(plan.process), plan, x=x, on_step=lambda step: seen.append(step.x) if step.row.boundary else None
    )
    return torch.stack(seen)


def test_golden_schedule_of_mixed_decisions(mixture):
    decisions = [
        Decision("data", 1, corrector="pseudo"),
        Decision("noise", 2, 1, 0.05),
        Decision("data", 3, 1, corrector="pseudo"),
        Decision("noise", 4, 3),
        Decision("data", 2, 1, -0.03, "pseudo"),
        Decision("noise", 3, 2),
    ]
    plan = usf(VP, NODES, decisions)
    end = unstir.sample(mixture.model(VP), plan, x=mixture.start)
    assert len(plan) == 6
    assert end.flatten().tolist() == pytest.approx([-0.3452641174, 1.3410530899], abs=2e-10)


@pytest.mark.parametrize("process", [VP, pr.EDM(), pr.Cosine()], ids=["vp", "edm", "cosine"])
@pytest.mark.parametrize(
    ("name", "options", "decisions"),
    [
        ("ddim", {}, ramp(1)),
        ("ddim", {}, ramp(1, form="noise")),
        ("dpmpp-2m", {"exact_end": False}, ramp(2, relax="midpoint")),
        ("multistep", {"order": 3}, ramp(3)),
        ("multistep", {"order": 4, "form": "noise"}, ramp(4, form="noise")),
        ("multistep", {"order": 2, "kind": "half"}, ramp(2, relax="half")),
        ("multistep", {"order": 2, "kind": "midpoint", "form": "noise"}, ramp(2, relax="midpoint", form="noise")),
        ("unipc", {"order": 3, "lower_final": False}, ramp(3, corrector="pseudo")),
        ("unipc", {"order": 2, "form": "noise", "lower_final": False}, ramp(2, form="noise", corrector="pseudo")),
    ],
)
def test_known_samplers_are_points_of_the_space(mixture, process, name, options, decisions):
    nodes = make_grid("logsnr", process, 6, 0.95, 0.01)
    decisions = [*decisions[:-1], Decision(**{**vars(decisions[-1]), "corrector": "none"})]
    mine = usf(process, nodes, decisions)
    if name == "multistep":
        other = unstir.solvers.multistep(process, nodes, **options)
    elif name == "unipc":
        other = unstir.solvers.unipc(process, nodes, **options)
    else:
        other = compile_plan(name, process, nodes)
    assert len(mine) == 6
    assert torch.allclose(states(mine, mixture), states(other, mixture), rtol=0, atol=2e-13)


@pytest.mark.parametrize(
    ("name", "calls", "decisions"),
    [
        ("dpm-2", 2, [Decision("noise"), Decision("noise", 2, relax="midpoint", base=2)]),
        ("dpm-3", 3, [Decision("noise"), Decision("noise", 2, base=2), Decision("noise", 2, points=1, base=3)]),
        ("dpmpp-2s", 2, [Decision("data"), Decision("data", 2, relax="midpoint", base=2)]),
    ],
)
def test_one_step_methods_depart_from_earlier_nodes(mixture, name, calls, decisions):
    """The inner nodes of DPM-Solver are nodes here; the first ones are stages, where hooks may not edit."""
    ends = NODES[::2]
    lam = VP.logsnr(torch.tensor(ends, dtype=torch.float64))
    inner = [VP.time(lam[:-1] + k / calls * lam.diff()).tolist() for k in range(calls)]
    nodes = [t for step in zip(*inner, strict=True) for t in step] + [ends[-1]]
    nodes[::calls] = ends
    mine = usf(VP, nodes, decisions * 3)
    order = {"dpm-2": ("noise", 2), "dpm-3": ("noise", 3), "dpmpp-2s": ("data", 2)}[name]
    other = unstir.solvers.exp_rk(VP, ends, form=order[0], order=order[1])
    assert [row.boundary for row in mine] == [row.boundary for row in other]
    assert torch.allclose(states(mine, mixture), states(other, mixture), rtol=0, atol=1e-12)


def test_implicit_corrector_costs_a_call_and_evaluates_the_corrected_state(mixture):
    """Against the textbook loop, PECE of order 2 (trapezoid in D with exact moments), on the mixture."""
    nodes = NODES[1:4]
    plan = usf(VP, nodes, [Decision(corrector="implicit"), Decision("data", 2)])
    model, x = mixture.model(VP), mixture.start
    assert len(plan) == 3
    lam = VP.logsnr(torch.tensor(nodes, dtype=torch.float64))
    alpha, sigma = (f(torch.tensor(nodes, dtype=torch.float64)) for f in (VP.alpha, VP.sigma))
    h, h2 = lam.diff()
    d0 = model(x, nodes[0])
    euler = sigma[1] / sigma[0] * x + alpha[1] * -torch.expm1(-h) * d0
    slope = (model(euler, nodes[1]) - d0) / h
    second = alpha[1] * (h - 1 + torch.exp(-h))  # α ∫ e^{λ−λ_t} (λ − λ_s) dλ
    better = euler + second * slope
    d1 = model(better, nodes[1])
    want = sigma[2] / sigma[1] * better + alpha[2] * (-torch.expm1(-h2) * d1 + (h2 - 1 + torch.exp(-h2)) * (d1 - d0) / h)
    assert torch.allclose(unstir.sample(model, plan, x=x), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("order", "relax", "slope"), [(1, 0.0, 1), (2, 0.0, 2), (2, 0.3, 2), (3, 0.0, 3), (3, 0.3, 2)])
def test_convergence_orders(mixture, form, order, relax, slope):
    """A linear relaxation leaves order 2 and reduces order 3 to 2."""
    truth = mixture.flow(VP, mixture.start, 0.9, 0.05)

    def error(n: int) -> float:
        nodes = make_grid("logsnr", VP, n, 0.9, 0.05)
        end = unstir.sample(mixture.model(VP), usf(VP, nodes, ramp(order, n, form=form, relax=relax)), x=mixture.start)
        return float((end - truth).abs().max())

    assert math.log2(error(40) / error(80)) == pytest.approx(slope, abs=0.35)


def test_relaxations_tend_to_one_and_are_the_published_factors():
    for relaxation in RELAXATIONS.values():
        assert relaxation(1e-6) == pytest.approx(1, abs=1e-6)
        assert relaxation(-1e-6) == pytest.approx(1, abs=1e-6)
    z = 0.7
    assert RELAXATIONS["midpoint"](z) == pytest.approx(z / 2 * math.expm1(z) / (math.expm1(z) - z))
    assert RELAXATIONS["half"](z) == pytest.approx(z**2 / 2 / (math.expm1(z) - z))


def test_derivative_weights_are_exact_on_polynomials():
    delta = [-0.4, 0.9, -1.3]
    for k in (1, 2, 3):
        c = derivative_weights(delta, k)
        for power in (1, 2, 3):
            assert sum(w * d**power for w, d in zip(c, delta, strict=True)) == pytest.approx(
                math.factorial(k) * (power == k), abs=1e-12
            )


@pytest.mark.parametrize("process", [pr.Flow(), VP], ids=["flow", "vp"])
def test_infinite_steps_are_of_order_one_and_land_on_the_data(mixture, process):
    """From α = 0 (flow) and to σ = 0; the node α = 0 is never an active point."""
    nodes = make_grid("auto", process, 5, 1.0, 0.0)
    first = 1 if float(process.alpha(1.0)) else 0
    orders = [1, 1, 2, 3, 1] if not first else [1, 2, 3, 3, 1]
    plan = usf(process, nodes, [Decision("noise" if i % 2 else "data", n) for i, n in enumerate(orders)])
    one, two = plan.invariants()
    assert max(map(abs, one + two)) < 1e-12
    assert (plan[-1].a, dict(plan[-1].b)) == (0.0, {0: 1.0})


def test_an_analytic_first_step_saves_a_call(mixture):
    """Exactly the run with a model that answers the constant at the start."""
    model = mixture.model(VP)
    decisions = [Decision(), Decision("noise", 2, corrector="pseudo"), Decision("data", 3), Decision("noise", 3)]
    nodes = make_grid("logsnr", VP, 4, 1.0, 0.01)
    for constant in (0.0, 0.3, torch.tensor([0.3], dtype=torch.float64)):
        plan = usf(VP, nodes, decisions, constant=constant)
        value = float(constant)
        want = unstir.sample(
            lambda x, t, v=value: torch.full_like(x, v) if t == 1.0 else model(x, t), usf(VP, nodes, decisions), x=mixture.start
        )
        assert len(plan) == 3
        assert torch.allclose(unstir.sample(model, plan, x=mixture.start), want, rtol=0, atol=1e-13)


def test_a_decision_list_survives_the_file(tmp_path):
    plan = usf(VP, NODES, ramp(3, relax="half", corrector="none"))
    again = unstir.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again == plan
    assert [Decision(**d) for d in again.options["decisions"]] == ramp(3, relax="half")


@pytest.mark.parametrize(
    ("step", "decision", "message"),
    [
        (1, Decision(order=3), "step 1: order=3"),
        (5, Decision(order=5), "order=5"),
        (2, Decision(order=2, points=2), "points=2"),
        (2, Decision(order=1, points=1), "points=1"),
        (2, Decision(form="velocity"), "form='velocity'"),
        (2, Decision(corrector="twice"), "corrector='twice'"),
        (2, Decision(relax="b3"), "relax='b3'"),
        (2, Decision(relax=math.nan), "relax=nan"),
        (2, Decision(base=4), "base=4"),
        (5, Decision(corrector="pseudo"), "last node"),
    ],
)
def test_what_cannot_be_is_named(step, decision, message):
    decisions = [Decision()] * 6
    decisions[step] = decision
    with pytest.raises(ValueError, match=message):
        usf(VP, NODES, decisions)


def test_as_many_decisions_as_steps():
    with pytest.raises(ValueError, match="decisions has 2 entries for 6 steps"):
        usf(VP, NODES, [Decision()] * 2)
