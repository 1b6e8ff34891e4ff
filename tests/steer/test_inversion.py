"""Exact inversion: there and back, with the pair, in the right dtype."""

from __future__ import annotations

import pytest
import torch

from unstir.plan import sample
from unstir.process import VP
from unstir.solvers import compile_plan, plan
from unstir.steer import ddim_invert, invert, regenerate
from unstir.systems._digits import exact, pca_digits
from unstir.systems.bdia import bdia, bdia_heun, edict, edict_invert, obelm

P = VP()
DIGITS = pca_digits()
MODEL = exact(DIGITS, P)


@pytest.mark.parametrize("steps", [2, 10, 20, 50])
@pytest.mark.parametrize("gamma", [1.0, 0.96, 0.9])
def test_bdia_there_and_back(steps: int, gamma: float) -> None:
    table, x = bdia(P, steps, gamma), DIGITS.x[:16]
    latent = invert(MODEL, table, x)
    torch.testing.assert_close(regenerate(MODEL, table, latent), x, rtol=0, atol=1e-10)


def test_obelm_there_and_back_and_ddim_is_not_exact() -> None:
    table, x = obelm(P, 20), DIGITS.x[:16]
    torch.testing.assert_close(regenerate(MODEL, table, invert(MODEL, table, x)), x, rtol=0, atol=1e-10)
    ddim = plan("ddim", P, 20, "uniform", 0.98, 0.02)
    assert float((sample(MODEL, ddim, x=ddim_invert(MODEL, ddim, x)) - x).abs().max()) > 1e-3


def test_sampling_is_undone_too() -> None:
    """The pair of a sampled trajectory: the second step's F recovers the start."""
    table = bdia(P, 10)
    x = P.prior((4, 20), t=0.98, dtype=torch.float64)
    latent = invert(MODEL, table, sample(MODEL, table, x=x))
    assert float((latent.x - x).abs().mean()) < 0.2  # another first step, so close, but not the same


def test_the_first_inverted_state_is_a_ddim_step() -> None:
    """Only the pair matters for the round trip, so the value itself has to be looked at."""
    table, x = bdia(P, 2), DIGITS.x[:4]
    up = ddim_invert(MODEL, compile_plan("ddim", P, table.times[-2:]), x)
    t, to = table.times[-1], table.times[-2]
    ratio = float(P.sigma(to) / P.sigma(t))
    torch.testing.assert_close(up, ratio * x + (float(P.alpha(to)) - ratio * float(P.alpha(t))) * MODEL(x, t))
    again = regenerate(MODEL, table, invert(MODEL, table, x))
    torch.testing.assert_close(again, x)


def test_hopeless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma nearer to 1"):
        invert(MODEL, bdia(P, 20, 0.5), DIGITS.x[:2].float())
    with pytest.raises(ValueError, match="cannot be run backwards"):
        invert(MODEL, plan("ddim", P, 20, "uniform", 0.98, 0.02), DIGITS.x[:2])
    with pytest.raises(TypeError, match="pass the pair"):
        regenerate(MODEL, bdia(P, 10), DIGITS.x[:2])  # type: ignore[arg-type]


def test_edict_there_and_back() -> None:
    times = bdia(P, 20).times
    pair = edict_invert(MODEL, P, times, DIGITS.x[:8], DIGITS.x[:8])
    x, y = edict(MODEL, P, times, *pair)
    torch.testing.assert_close(x, DIGITS.x[:8], rtol=0, atol=1e-9)
    torch.testing.assert_close(y, DIGITS.x[:8], rtol=0, atol=1e-9)


def test_bdia_on_heun_without_gamma_is_heun() -> None:
    from unstir.process import EDM

    edm = EDM()
    ours, theirs = bdia_heun(edm, 10, 0.0), plan("heun", edm, 19, "karras")
    assert len(ours) == len(bdia_heun(edm, 10)) == len(theirs) == 19
    x = 80 * torch.randn(4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = exact(DIGITS, edm)
    torch.testing.assert_close(sample(model, ours, x=x), sample(model, theirs, x=x), rtol=1e-7, atol=1e-9)
