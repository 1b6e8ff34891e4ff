"""USF/S³ and AutoDiffusion as systems: their baselines and networks, and (slow) their claims on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unstir
from unstir.process import VP
from unstir.systems import reproduce
from unstir.systems.autodiffusion import BLOCKS, network
from unstir.systems.usf_s3 import error, fixed

P = VP()


def test_the_fixed_plans_have_five_calls_and_ours_are_apart() -> None:
    published, everything = fixed(P, 5), fixed(P, 5, published=False)
    assert published.keys() < everything.keys()
    assert {len(plan) for plan in everything.values()} == {5}
    assert {plan.end for plan in everything.values()} == {1e-3}
    assert {name for name in everything if name not in published} >= {"auto, logistic", "auto, logsnr", "unipc, logistic"}
    same = unstir.solvers.multistep(P, unstir.solvers.make_grid("logsnr", P, 5, 1.0, 1e-3), order=3)
    ours = published["data 3, corrector none, logsnr"]
    for row, other in zip(ours, same, strict=True):
        assert row.a == pytest.approx(other.a, rel=1e-11)
        assert dict(row.b) == pytest.approx(dict(other.b), rel=1e-9)


def test_the_error_of_a_sample_counts_for_three_at_most() -> None:
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert error(x + torch.tensor([[1.0], [9.0]]), x) == pytest.approx(2.0)


def test_blocks_of_the_digits_network_are_identities_when_skipped(tmp_path: Path) -> None:
    """Without its three blocks the network is head(enter(x)); the cached network itself stays as it was."""
    model = network(P, tmp_path, steps=2)
    for branch in model.network.b:  # type: ignore[union-attr]
        torch.nn.init.normal_(branch.weight)
    torch.nn.init.normal_(model.network.head.weight)  # type: ignore[union-attr]
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inner, labels = model.network, torch.full((3,), 10)
    with torch.no_grad():
        bare = inner.head(inner.enter(x.flatten(1))).reshape(x.shape)  # type: ignore[union-attr]
        assert torch.equal(inner(x, torch.zeros(3), class_labels=labels, skip=BLOCKS), bare)  # type: ignore[operator]
        whole = inner(x, torch.zeros(3), class_labels=labels)  # type: ignore[operator]
    assert not torch.equal(whole, bare)
    assert model.clip == (-1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autodiffusion", "usf-s3"])
def test_the_claims_hold(name: str, runs: Path) -> None:
    result = reproduce(name, runs)
    failed = [f"{c.text}: {c.measured:.4g} {c.sense} {c.threshold:.4g}" for c in result.claims if not c.held]
    assert result.held, failed
    files = {"result.json", "report.html", "samples.png"}
    assert files <= {p.name for p in (runs / name).iterdir()}
    for file in (runs / name).glob("*.json"):
        assert file.name == "result.json" or len(unstir.Plan.load(file)) > 0
    assert json.loads((runs / name / "result.json").read_text())["held"]
