"""Every system: its row, its functions, and (slow) its claims."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from unstir.plan import sample
from unstir.process import EDM, VP
from unstir.solvers import compile_plan, plan
from unstir.solvers.analyse import stability_interval
from unstir.systems import SYSTEMS, Claim, at_least, at_most, find, protocol, reproduce
from unstir.systems.deis import ipndm, rho_ab, rho_rk, tab
from unstir.systems.dpm_solver import dpm_solver
from unstir.systems.dpm_solver_pp import dpm_solver_pp
from unstir.systems.ghvb import METHODS, ghvb, growth, heavy_ball, overshoot, plms, stability_bound

P = VP()


# -- the protocol -------------------------------------------------------------------------------------------
def test_every_row_has_a_module_with_a_docstring_and_reproduce() -> None:
    assert list(SYSTEMS) == sorted(SYSTEMS)
    for system in SYSTEMS.values():
        module = importlib.import_module(system.module)
        assert callable(module.reproduce)
        assert module.__doc__
        title, year = system.paper.rsplit(", ", 1)
        assert title in " ".join(module.__doc__.split())
        assert year in module.__doc__
        assert len(system.summary) <= 60


def test_a_claim_that_was_not_measured_does_not_hold() -> None:
    assert not at_most("nan", math.nan, 1.0).held
    assert not at_least("nan", math.nan, 1.0).held
    assert at_most("equal", 1.0, 1.0).held


def test_unknown_systems_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        find("dpm-solver-p")


def test_a_run_that_fails_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SYSTEMS["deis"]
    (tmp_path / "deis").mkdir()
    (tmp_path / "deis" / "result.json").write_text("{}")

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(importlib.import_module(system.module), "reproduce", broken)
    with pytest.raises(RuntimeError):
        reproduce("deis", tmp_path)
    assert not (tmp_path / "deis" / "result.json").exists()


def test_results_are_json_whatever_they_hold() -> None:
    result = protocol.Result([Claim("x", math.inf, "<=", 1.0)], {"a": torch.ones(2), "b": {5: math.nan}})
    record = protocol.record(SYSTEMS["deis"], result, 1.0, "cpu", False)
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["held"] is False
    assert again["figures"] == {"a": [1.0, 1.0], "b": {"5": "nan"}}
    assert again["claims"][0]["measured"] == "inf"


# -- the functions ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 6, 7, 10, 12])
def test_plans_have_the_asked_number_of_calls(nfe: int) -> None:
    plans = [
        *(dpm_solver(P, nfe, order, method) for order in (1, 2, 3) for method in ("fast", "fixed")),
        *(dpm_solver_pp(P, nfe, order, stages) for order in (2, 3) for stages in ("multistep", "singlestep")),
        *(tab(P, nfe, r) for r in (0, 1, 2, 3)),
        rho_ab(P, nfe),
        *(rho_rk(P, nfe, name) for name in ("heun-2", "midpoint", "kutta-3", "rk-4")),
        ipndm(P, nfe),
        plms(P, nfe),
        ghvb(P, nfe),
        heavy_ball(P, nfe),
    ]
    assert [len(p) for p in plans] == [nfe] * len(plans)


def test_degree_zero_and_no_momentum_are_ddim() -> None:
    ddim = plan("ddim", P, 8, "quadratic", end=1e-3)
    for other in (tab(P, 8, r=0), ipndm(P, 8, order=1)):
        assert _same(other, ddim)
    uniform = plan("ddim", P, 8, "uniform", 0.999, 0.02)
    assert _same(plms(P, 8, order=1), uniform)
    assert _same(ghvb(P, 8, order=3, damping=1.0), plms(P, 8, order=3))
    assert _same(heavy_ball(P, 8, order=3, damping=1.0), plms(P, 8, order=3))


def test_first_order_momentum_is_the_same_in_both_kinds() -> None:
    assert _same(ghvb(P, 8, order=1, damping=0.6), heavy_ball(P, 8, order=1, damping=0.6))


def _same(one: object, two: object) -> bool:
    """Do two plans move a nonlinear model alike?"""
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]

    def model(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(x + t)

    return torch.allclose(sample(model, one, x=x), sample(model, two, x=x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpm_solver(P, 6, order=4), "order=4"),
        (lambda: dpm_solver(P, 6, method="slow"), "method='slow'"),
        (lambda: dpm_solver_pp(P, 6, order=1), "order=1"),
        (lambda: dpm_solver_pp(P, 6, stages="m"), "stages='m'"),
        (lambda: tab(P, 6, kappa=0), "kappa"),
        (lambda: rho_rk(P, 6, "euler"), "tableau='euler'"),
        (lambda: ghvb(P, 6, damping=0), "damping"),
        (lambda: heavy_ball(P, 6, damping=1.5), "damping"),
        (lambda: stability_bound(2, 0.0), "damping"),
        (lambda: stability_bound(2, 0.5, "nesterov"), "kind"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# -- stability of momentum ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "damping", "bounds"),
    [
        ("ghvb", 1.0, [2, 1, 6 / 11, 0.3]),
        ("hb", 0.8, [3, 1.5, 0.818, 0.45]),
        ("ghvb", 0.8, [3, 1.2, 0.643, 0.353]),
        ("hb", 0.5, [6, 3, 1.64, 0.9]),
        ("ghvb", 0.5, [6, 1.5, 0.783, 0.429]),
    ],
)
def test_stability_intervals_are_those_of_the_paper_and_of_the_companion_matrix(
    kind: str, damping: float, bounds: list[float]
) -> None:
    for order, bound in enumerate(bounds, 1):
        b = stability_bound(order, damping, kind)
        assert b == pytest.approx(bound, rel=3e-3)
        assert growth(-b * 0.999, order, damping, kind) <= 1
        assert growth(-b * 1.001, order, damping, kind) > 1


@pytest.mark.parametrize(("name", "kind"), [("ghvb", "ghvb"), ("heavy-ball", "hb")])
def test_growth_is_that_of_the_plan_itself(name: str, kind: str) -> None:
    """The recursion run as rows: on ε̂ = λ x̂ with uniform steps, the state grows like the largest root."""
    process = EDM(sigma_max=1.0)
    nodes = torch.linspace(1, 0.1, 301, dtype=torch.float64).tolist()  # σ̂ = t, so h = −0.003
    z = -1.3 * stability_bound(2, 0.8, kind)
    rate = z / (nodes[1] - nodes[0])
    seen: list[float] = []

    def model(x: torch.Tensor, t: float) -> torch.Tensor:
        return x - process.sigma(t) * rate * x  # ε̂ = (x − D)/σ = λ x

    rows = compile_plan(name, process, nodes, order=2, damping=0.8)
    sample(model, rows, x=torch.ones(1, 1, dtype=torch.float64), on_step=lambda step: seen.append(float(step.x)))
    assert abs(seen[200] / seen[199]) == pytest.approx(growth(z, 2, 0.8, kind), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_plans_themselves_have_these_intervals(name: str) -> None:
    solver, order, damping = METHODS[name]
    bound = stability_bound(order, damping, "ghvb" if solver == "ghvb" else "hb")
    assert stability_interval(solver, order=order, damping=damping) == pytest.approx(bound, rel=3e-3)


def test_overshoot_counts_only_what_is_beyond_one_and_a_half() -> None:
    assert overshoot(torch.tensor([1.5, -1.5, 0.0])) == 0
    assert overshoot(torch.tensor([2.5, -1.5])) == pytest.approx(0.5)


# -- the claims ---------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bdia", "deis", "dmcmc", "dpm-solver", "dpm-solver-pp", "flowchef", "ghvb", "optimal-bc-sr", "ts-dpm"]
)
def test_the_claims_hold(name: str, runs: Path) -> None:
    result = reproduce(name, runs)
    failed = [f"{c.text}: {c.measured:.4g} {c.sense} {c.threshold:.4g}" for c in result.claims if not c.held]
    assert result.held, failed
    assert json.loads((runs / name / "result.json").read_text())["held"]
    assert (runs / name / "report.html").stat().st_size > 10_000
