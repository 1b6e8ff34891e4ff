"""DPM-Solver-v3 as a system: its plans, its cached network, and (slow) its claims on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unstir
from unstir.process import VP
from unstir.solvers.ems import Statistics
from unstir.systems import reproduce
from unstir.systems.dpm_solver_v3 import BUDGETS, dpm_solver_v3, network
from unstir.tune import model_statistics

P = VP()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> unstir.Denoiser:
    """The network after 20 steps of training."""
    return network(tmp_path_factory.mktemp("network"), steps=20)


def test_the_network_is_trained_once(tmp_path: Path, model: unstir.Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    first = network(tmp_path, steps=2)
    monkeypatch.setattr("unstir.train.fit", lambda *a, **k: pytest.fail("trained again"))
    again = network(tmp_path, steps=2)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(x, 0.5), again(x, 0.5))
    assert not torch.equal(first(x, 0.5), model(x, 0.5))


@pytest.mark.parametrize("nfe", [1, 2, 5, 8])
def test_measured_plans_run_with_the_asked_number_of_calls(model: unstir.Denoiser, nfe: int) -> None:
    stats = model_statistics(model, unstir.data.load("digits"), knots=24, samples=32, start=1.0, end=1e-3)
    assert stats.shape == (1, 8, 8)
    for options in ({}, {"order": 3, "pseudo_corrector": False}, {"pseudo_predictor": True}):
        plan = dpm_solver_v3(P, nfe, stats, **options)
        state = unstir.sample(model, plan, shape=(3, 1, 8, 8), full=True)
        assert (len(plan), state.calls.rows) == (nfe, nfe)
        assert state.x.shape == (3, 1, 8, 8)
        assert isinstance(plan[0].e, torch.Tensor)


def test_the_default_is_order_two_with_a_pseudo_corrector() -> None:
    lam = torch.linspace(float(P.logsnr(1.0)), float(P.logsnr(1e-3)), 50, dtype=torch.float64)
    stats = Statistics(P, lam, torch.sigmoid(-2 * lam), -0.5 * lam.tanh(), 0.1 * lam)
    assert dpm_solver_v3(P, 6, stats) == dpm_solver_v3(P, 6, stats, order=2, corrector=True, pseudo_corrector=True)
    assert dpm_solver_v3(P, 6, stats) != dpm_solver_v3(P, 6, stats, pseudo_corrector=False)
    with pytest.raises(ValueError, match="outside the range of stats"):
        dpm_solver_v3(P, 6, stats, end=1e-4)


@pytest.mark.slow
def test_claims_hold(runs: Path) -> None:
    result = reproduce("dpm-solver-v3", runs)
    assert result.held, [c for c in result.claims if not c.held]
    assert len(result.claims) == 8
    found = result.figures["errors"]
    assert all(tuple(row) == BUDGETS for row in found.values())
    folder = runs / "dpm-solver-v3"
    assert json.loads((folder / "result.json").read_text())["held"] is True
    assert {p.name for p in folder.iterdir()} == {
        "result.json",
        "report.html",
        "samples.png",
        "errors.svg",
        "statistics.safetensors",
    }
    assert Statistics.load(folder / "statistics.safetensors").process == P
