"""Discrete tables, zero terminal SNR and shifts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unstir import process as pr

LINEAR = np.linspace(1e-4, 0.02, 1000)  # the schedule of DDPM
BAR = np.cumprod(1 - LINEAR)


def test_labels_sit_on_the_published_levels() -> None:
    p = pr.from_betas(LINEAR)
    label = torch.arange(1000)
    t = p.time_of_label(label)
    np.testing.assert_allclose(p.alpha(t).numpy() ** 2, BAR, rtol=1e-12)
    np.testing.assert_allclose(p.sigma(t).numpy() ** 2, 1 - BAR, rtol=1e-10)
    torch.testing.assert_close(p.label(t), label.double(), rtol=0, atol=1e-9)
    assert p.levels == 1000
    assert float(p.time_of_label(999)) == 1.0
    assert float(p.label(0.0)) == 0  # below the first level the network can be told nothing better
    # Between levels log α is linear: the geometric mean half way.
    assert float(p.alpha(10.5 / 1000)) == pytest.approx((BAR[9] * BAR[10]) ** 0.25, rel=1e-12)
    assert float(p.alpha(0.5 / 1000)) == pytest.approx(BAR[0] ** 0.25, rel=1e-12)


def test_a_fine_table_is_the_continuous_process() -> None:
    """β_n = β(t)/T with T → ∞ is VP: first-order agreement at T = 1000."""
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    table = pr.from_betas(np.linspace(0.1, 20, 1000) / 1000)
    torch.testing.assert_close(table.logsnr(t), pr.VP().logsnr(t), rtol=0, atol=0.06)


def test_zero_terminal_snr() -> None:
    root = np.sqrt(BAR)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Algorithm 1 of the paper
    p = pr.from_betas(LINEAR, zero_terminal_snr=True)
    bar = p.alphas_cumprod.numpy()
    np.testing.assert_allclose(np.sqrt(bar), expected, rtol=1e-12, atol=1e-16)
    assert bar[0] == pytest.approx(BAR[0], rel=1e-14)
    assert bar[-1] == 0
    assert float(p.alpha(1.0)) == 0
    assert float(p.sigma(1.0)) == 1
    assert float(p.logsnr(1.0)) == -math.inf
    assert float(p.time(-math.inf)) == 1
    # In the last interval α itself is linear, since its logarithm is infinite at the end.
    assert float(p.alpha(0.9995)) == pytest.approx(math.sqrt(bar[-2]) / 2, rel=1e-12)


@pytest.mark.parametrize("s", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    "base", [pr.Flow(), pr.VP(), pr.Cosine(), pr.EDM(), pr.from_betas(LINEAR)], ids=lambda b: type(b).__name__
)
def test_a_shift_translates_the_logsnr_on_the_same_path(base: pr.Process, s: float) -> None:
    p, t = pr.shifted(base, s), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(p.logsnr(t), base.logsnr(t) - math.log(s), rtol=0, atol=1e-12)
    if not isinstance(base, pr.EDM):
        # Same path: α and σ are those of the base at another time.
        u = base.time(p.logsnr(t))
        inside = (u > 0) & (u < 1)
        torch.testing.assert_close(p.alpha(t)[inside], base.alpha(u)[inside], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(p.sigma(t)[inside], base.sigma(u)[inside], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(p.alpha(t) / p.sigma(t), base.alpha(t) / base.sigma(t) / s, rtol=1e-10, atol=0)


@pytest.mark.parametrize("s", [0.5, 3.0, 6.0])
def test_the_flow_shift_is_the_published_formula(s: float) -> None:
    p, t = pr.shifted(pr.Flow(), s), torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma = s * t / (1 + (s - 1) * t)
    torch.testing.assert_close(p.sigma(t), sigma, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(p.alpha(t), 1 - sigma, rtol=1e-12, atol=1e-15)


def test_resolution_shift() -> None:
    assert pr.resolution_shift(4096, 1024) == 2
    assert pr.resolution_shift(64, 64) == 1
