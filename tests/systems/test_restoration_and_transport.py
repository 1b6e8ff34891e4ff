"""Parts of difface, pfgmpp and stochastic-interpolants that need no trained network; their claims are slow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from unstir.denoiser import Denoiser, Gaussian
from unstir.plan import sample
from unstir.process import EDM, VP
from unstir.solvers import plan
from unstir.systems import reproduce
from unstir.systems.difface import MILD, SEVERE, ddim, difface, psnr, ridge
from unstir.systems.pfgmpp import InjectNoise, inject_noise, quantise_weights
from unstir.systems.stochastic_interpolants import TwoHeads, digits_halves, transport


# -- difface -------------------------------------------------------------------------------------------------
def test_degradations_are_functions_of_their_seed_and_keep_flat_pictures() -> None:
    flat = torch.full((5, 1, 8, 8), 0.4, dtype=torch.float64)
    still = MILD._replace(noise=(0.0, 0.0))
    torch.testing.assert_close(still(flat, 0), flat)  # blur and shrinking have rows of sum 1
    assert torch.equal(MILD(flat, 3), MILD(flat, 3))
    assert not torch.equal(MILD(flat, 3), MILD(flat, 4))
    assert float((SEVERE(flat, 0) - flat).std()) == pytest.approx(0.8, rel=0.1)


def test_ridge_solves_its_normal_equations() -> None:
    """No other affine map is better on the pairs it was fitted to: the residual is orthogonal to what was seen."""
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = ridge(x, copies=1, penalty=1e-9)
    seen = MILD(x, 1)
    assert float((seen.flatten(1).T @ (x - f(seen)).flatten(1)).abs().max()) < 1e-6


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(3, 1, 8, 8)
    assert psnr(x + 0.2, x) == pytest.approx(10 * math.log10(4 / 0.04), rel=1e-6)


def test_difface_starts_from_the_clipped_restoration() -> None:
    """A start near t = 0 returns f(y) itself, clipped; from t = 1 with α ≈ 0 two inputs give one result."""
    prior = Gaussian(VP(), torch.zeros(1, 8, 8, dtype=torch.float64), std=0.5)
    y = torch.full((2, 1, 8, 8), 1.4, dtype=torch.float64)
    near = difface(prior, lambda v: v, y, ddim(400), 0.003)
    torch.testing.assert_close(near, torch.ones_like(y), rtol=0, atol=0.15)
    far = [difface(prior, lambda v: v, value, ddim(20), 1.0) for value in (y, -y)]
    torch.testing.assert_close(far[0], far[1], rtol=0, atol=0.02)


def test_difface_names_what_does_not_fit() -> None:
    prior, y = Gaussian(VP(), torch.zeros(1, 8, 8), std=0.5), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="prior was made for"):
        difface(prior, lambda v: v[..., :4], y, ddim(5), 0.5)
    with pytest.raises(ValueError, match=r"pictures in \[−1, 1\]"):
        difface(prior, lambda v: v + 128, y, ddim(5), 0.5)


# -- pfgmpp --------------------------------------------------------------------------------------------------
def test_injected_noise_has_its_size_and_vanishes_with_alpha() -> None:
    process = EDM(0.01, 10.0)
    model, run = Gaussian(process, torch.zeros(2), std=1.0), plan("heun", process, 9, "karras")
    clean = sample(model, run, x=process.prior((200, 2), seed=4))
    assert torch.equal(inject_noise(model, run, (200, 2), 0.0, seed=4), clean)
    moved = InjectNoise(model, 0.3).spoiled(torch.zeros(4000, 2), 0.5, 0)
    assert float(moved.std()) == pytest.approx(0.3 * 5.0, rel=0.05)
    # Every step adds variance, none of which a deterministic sampler expects.
    assert float(inject_noise(model, run, (200, 2), 0.5, seed=4).std()) > float(clean.std()) * 1.05
    with pytest.raises(ValueError, match="alpha=-1"):
        InjectNoise(model, -1)


def test_quantised_weights_lie_on_their_levels_and_the_model_is_untouched() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 4))
    model = Denoiser(lambda x, t: network(x), EDM())
    model.network = network
    before = [w.clone() for w in model.parameters()]
    twin = quantise_weights(model, 3)
    for old, new, kept in zip(before, twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(old, kept)
        if old.ndim < 2:
            assert torch.equal(old, new)
        else:
            assert len(new.unique()) <= 8
            assert float((new - old).abs().max()) <= float(old.max() - old.min()) / 7 / 2 * (1 + 1e-4)
    with pytest.raises(ValueError, match="bits=0"):
        quantise_weights(model, 0)


# -- stochastic interpolants ---------------------------------------------------------------------------------
def test_transport_has_the_promised_calls_whatever_its_noise() -> None:
    from unstir.process import Interpolant

    for epsilon, solver in ((0.0, "field-em"), ("linear", "field-em"), (0.0, "field-heun")):
        run = transport(Interpolant(), epsilon, solver)
        assert 99 <= len(run) <= 100
        assert run.end == 0
        assert run.rows[-1].kwargs["field"] == "data"


def test_the_two_halves_are_all_digits_and_the_network_has_two_outputs() -> None:
    source, data = digits_halves()
    assert (len(source) + len(data), *data.shape[1:]) == (1797, 1, 8, 8)
    path, noise = TwoHeads(16, 1)(data[:3], torch.tensor([0.1, 0.5, 0.9]))
    assert path.shape == noise.shape == (3, 1, 8, 8)
    assert not torch.equal(path, noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stochastic-interpolants"])
def test_the_claims_hold(name: str, runs: Path) -> None:
    result = reproduce(name, runs)
    assert result.held, [f"{c.text}: {c.measured:.4g} {c.sense} {c.threshold:.4g}" for c in result.claims if not c.held]
