"""What a raw output means: targets against the published formulas, and all kinds on one trajectory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import unstir
from unstir import process as pr
from unstir.denoiser import PREDICTIONS, Denoiser, Prediction

KINDS = list(PREDICTIONS)
SD = 0.6  # sigma_data of the "edm" kind


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    x0, z = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)
    return x0, z


def published(kind: str, x0: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The training target of each kind as its paper states it."""
    if kind == "edm":
        # EDM, table 1: D = c_skip x̂ + c_out F at the noise level σ̂ of the scaled state x̂ = x/α.
        hat = sigma / alpha
        c_skip = SD**2 / (hat**2 + SD**2)
        c_out = hat * SD / (hat**2 + SD**2).sqrt()
        return (x0 - c_skip * (x0 + hat * z)) / c_out
    if kind == "shift":  # Brownian bridges (BBDM): x_t − x0
        return (alpha - 1) * x0 + sigma * z
    return {"data": x0, "noise": z, "velocity": alpha * z - sigma * x0, "flow": z - x0, "score": -z / sigma}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_and_decoding(process: pr.Process, kind: str) -> None:
    x0, z = data()
    prediction = Prediction(kind, SD)
    for t in (0.01, 0.3, 0.7, 0.99):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = alpha * x0 + sigma * z
        p, q = prediction.encode(alpha, sigma)
        raw = p * x + q * x0
        torch.testing.assert_close(raw, published(kind, x0, z, alpha, sigma), rtol=1e-7, atol=1e-8)
        m, n = prediction.decode(alpha, sigma)
        torch.testing.assert_close(m * x + n * raw, x0, rtol=0, atol=1e-9)
        # The three-letter form, which the training objectives use: R raw = P x + Q D.
        a, b, r = prediction.line(alpha, sigma)
        torch.testing.assert_close(r * raw, a * x + b * x0, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_is_finite_at_both_ends_and_decodes_clean_data(process: pr.Process, kind: str) -> None:
    prediction = Prediction(kind, SD)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = process.alpha(ends), process.sigma(ends)
    assert all(torch.isfinite(v).all() for v in prediction.line(alpha, sigma))
    m, n = prediction.decode(alpha, sigma)
    assert torch.isfinite(m[0])
    assert torch.isfinite(n[0])
    if kind not in ("data", "shift"):  # at σ = 0 the state is the data, whatever the network says
        assert (float(m[0]), float(n[0])) == (1.0, 0.0)
    if float(alpha[1]) == 0:  # only these say something about x0 in pure noise
        assert bool(torch.isfinite(n[1])) == (kind not in ("noise", "score"))


def test_edm_input_scale_has_unit_variance(process: pr.Process) -> None:
    c_in = Prediction("edm", SD).input_scale(process.alpha(0.4), process.sigma(0.4))
    variance = (process.alpha(0.4) * SD) ** 2 + process.sigma(0.4) ** 2
    assert float(c_in**2 * variance) == pytest.approx(1, rel=1e-12)
    assert Prediction("noise").input_scale(process.alpha(0.4), process.sigma(0.4)) is None


def as_kind(model: torch.nn.Module, kind: str) -> Denoiser:
    """The exact denoiser, disguised as a network that predicts `kind`."""
    prediction, process = Prediction(kind, SD), model.process

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        scale = prediction.input_scale(alpha, sigma)
        x = x if scale is None else x / scale
        p, q = prediction.encode(alpha, sigma)
        return p * x + q * model(x, t)

    return Denoiser(network, process, kind, sigma_data=SD)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-3m", "dpm-2m", "dpmpp-2m-sde"])
def test_all_kinds_give_the_same_trajectory(process: pr.Process, mixture, solver: str) -> None:
    exact = mixture.model(process)
    start = 0.99 if float(process.alpha(1.0)) == 0 else 1.0  # noise and score know nothing at α = 0
    plan = unstir.plan(solver, process, nfe=7, start=start)
    x = float(process.sigma(start)) * mixture.start
    runs = {kind: [s.x for s in unstir.steps(as_kind(exact, kind), plan, x)] for kind in KINDS}
    for kind in KINDS:
        torch.testing.assert_close(torch.stack(runs[kind]), torch.stack(runs["data"]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["data", "velocity", "flow", "edm"])
@pytest.mark.parametrize("p", [pr.Flow(), pr.Cosine()], ids=["Flow", "Cosine"])
def test_these_kinds_start_at_alpha_zero(p: pr.Process, kind: str, mixture) -> None:
    exact, plan = mixture.model(p), unstir.plan("dpmpp-2m", p, nfe=6)
    x = unstir.sample(as_kind(exact, kind), plan, x=mixture.start)
    torch.testing.assert_close(x, unstir.sample(exact, plan, x=mixture.start), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["noise", "score"])
def test_noise_and_score_refuse_to_start_at_alpha_zero(kind: str, mixture) -> None:
    p = pr.Cosine()
    with pytest.raises(ValueError, match=f"predicts {kind} says nothing about the data where α = 0"):
        unstir.sample(Denoiser(lambda x, t: x, p, kind), unstir.plan("ddim", p, nfe=3), x=mixture.start)


def test_bad_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"predicts='epsilon' is unknown; one of data, noise"):
        Prediction("epsilon")
    with pytest.raises(ValueError, match="sigma_data=0"):
        Prediction("edm", 0)
