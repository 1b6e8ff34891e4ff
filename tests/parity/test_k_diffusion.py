"""Our plans equal k-diffusion's functions on the same sigmas, denoiser, start and noise; where not, who is right."""

from __future__ import annotations

import pytest

from benchmarks import parity, peers, weak

if reason := peers.why_not_k_diffusion():
    pytest.skip(reason, allow_module_level=True)


@pytest.mark.parametrize("pair", parity.K_DIFFUSION, ids=lambda pair: f"{pair.label} = {pair.ours}")
def test_same_end_state(pair: parity.Pair) -> None:
    assert parity.compare(pair) < pair.tolerance


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_3m_differs_from_the_published_code_in_its_second_step_only(eta: float) -> None:
    published, mixed = weak.k_diffusion_3m(eta=eta)
    assert published > 1e-4
    assert mixed < 1e-10


@pytest.mark.parametrize("nfe", [6, 7, 8, 12])
def test_fast(nfe: int) -> None:
    assert weak.k_diffusion_fast(nfe) < 2e-5  # its levels are float32


def test_sde_noise_couplings_have_the_same_weak_order() -> None:
    (a, b), (c, d) = (weak.dpmpp_sde_variances(n) for n in (40, 160))
    assert weak.slope((40, 160), (a, c)) > 0.85
    assert weak.slope((40, 160), (b, d)) > 0.85
