"""Plans as k-diffusion samplers: the same results on the same sigmas, the same callback, any model."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import peers
from unstir.denoiser import GaussianMixture
from unstir.interop.kdiffusion import sampler
from unstir.process import EDM, Flow

needs_peer = pytest.mark.skipif(peers.why_not_k_diffusion() is not None, reason=str(peers.why_not_k_diffusion()))
SIGMAS = torch.tensor([20.0, 8.0, 3.0, 1.2, 0.5, 0.2, 0.05, 0.0])


def model(x: Tensor, sigma: Tensor, process: Any = EDM(0.002, 20.0), bias: float = 0.0) -> Tensor:  # noqa: B008
    exact = GaussianMixture(process, [0.4, 0.6], [[-1.0, 0.3], [1.2, -0.4]], [[0.1, 0.2], [0.2, 0.1]])
    t = float(sigma[0]) / 20 if isinstance(process, EDM) else float(sigma[0])
    return exact(x.double(), t).to(x) + bias


def start(scale: float = 20.0) -> Tensor:
    return scale * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@needs_peer
@pytest.mark.parametrize(
    ("peer", "ours", "options"),
    [
        ("sample_euler", "euler", {}),
        ("sample_heun", "heun", {}),
        ("sample_dpm_2", "dpm2", {}),
        ("sample_lms", "lms", {"exact_end": False}),
        ("sample_dpmpp_2m", "DPM++ 2M", {}),
        ("sample_euler_ancestral", "euler_ancestral", {}),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde", {}),
        ("sample_dpmpp_2s_ancestral", "dpmpp-2s-ancestral", {}),
    ],
)
def test_the_same_end_state_and_callbacks(peer: str, ours: str, options: dict[str, Any]) -> None:
    seen: list[list[dict[str, Any]]] = [[], []]
    noises = [torch.randn(6, 2, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    out = []
    for i, run in enumerate((getattr(peers.k_diffusion(), peer), sampler(ours, **options))):
        left = iter(noises)
        extra = {"noise_sampler": lambda *_, left=left: next(left)} if "ancestral" in peer or "sde" in peer else {}
        out.append(run(model, start(), SIGMAS, extra_args={"bias": 0.1}, callback=seen[i].append, disable=True, **extra))
    assert gap(*out) < 1e-5
    theirs, mine = seen
    assert [d["i"] for d in mine] == [d["i"] for d in theirs]
    assert set(mine[0]) >= {"x", "i", "sigma", "sigma_hat", "denoised"}
    for a, b in zip(theirs, mine, strict=True):
        assert float(a["sigma"]) == float(b["sigma"])
        assert gap(a["x"], b["x"]) < 1e-5
        assert gap(a["denoised"], b["denoised"]) < 1e-5


def test_sigmas_that_end_above_zero_and_a_single_sigma() -> None:
    whole = sampler("ddim")(model, start(), SIGMAS)
    half = sampler("ddim")(model, start(), SIGMAS[:4])
    assert gap(whole, sampler("ddim")(lambda x, s: model(x, s), half, SIGMAS[3:])) < 1e-5
    assert torch.equal(sampler("ddim")(model, start(), SIGMAS[:1]), start())


def test_flows_as_comfyui_passes_them() -> None:
    sigmas = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    flow = Flow()

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma, process=flow)

    x = start(1.0)
    expected = x
    for a, b in pairwise(sigmas):  # Euler on dx/dσ = (x − D)/σ
        expected = expected + (b - a) * (expected - velocity(expected, a.expand(6))) / a
    assert gap(expected, sampler("euler", flow=True)(velocity, x, sigmas)) < 1e-5
    assert bool(torch.isfinite(sampler("dpmpp-3m", flow=True)(velocity, x, sigmas)).all())


def test_default_noise_is_torchs_and_models_of_any_shape_are_called_with_a_sigma_per_sample() -> None:
    shapes = []

    def net(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        shapes.append((tuple(sigma.shape), cond is extra["cond"]))
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    extra = {"cond": torch.zeros(1)}
    x = torch.randn(2, 3, 4, 4)
    torch.manual_seed(0)
    a = sampler("ancestral")(net, x, SIGMAS, extra)
    torch.manual_seed(0)
    assert torch.equal(a, sampler("ancestral")(net, x, SIGMAS, extra))
    assert set(shapes) == {((2,), True)}


def test_wrong_sigmas_and_names() -> None:
    with pytest.raises(ValueError, match="must decrease strictly"):
        sampler("euler")(model, start(), torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="at most 1"):
        sampler("euler", flow=True)(model, start(), SIGMAS)
    with pytest.raises(ValueError, match="did you mean"):
        sampler("dpmpp_2n")
