"""Adaptive steps against the exact map; stability intervals against closed forms; measured orders."""

import pytest
import torch

import unstir
from unstir import solvers
from unstir.process import VP


def test_adaptive_error_falls_with_its_tolerance(mixture) -> None:
    process = VP()
    x = torch.tensor([[-1.5], [-0.6], [0.1], [0.9], [1.5]], dtype=torch.float64)
    exact = mixture.flow(process, x, 1.0, 0.01)
    errors, calls = [], []
    for rtol in (0.05, 0.01, 0.001):
        plan = solvers.Adaptive(process, order=3, rtol=rtol, atol=0.156 * rtol, end=0.01, form="noise", denoise=False)
        end = unstir.sample(mixture.model(process), plan, x=x, full=True)
        errors.append(float((end.x - exact).abs().max()))
        calls.append(end.calls.forward)
        assert end.calls.forward == end.calls.rows
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 0.03
    assert errors[2] < 4e-4
    assert calls[0] < calls[1] < calls[2] < 130


def test_adaptive_ends_on_the_data_and_counts_retries(mixture) -> None:
    process = VP()
    plan = solvers.Adaptive(process, order=2, rtol=1e-3, h=2.0)  # the first attempts are far too long
    seen = []
    end = unstir.sample(mixture.model(process), plan, shape=(4, 1), dtype=torch.float64, full=True, on_step=seen.append)
    assert seen[-1].to == 0.0
    assert torch.equal(end.x, seen[-1].data)
    assert any(not step.row.evaluate for step in seen), "a rejected attempt keeps its first prediction"
    with pytest.raises(ValueError, match="max_calls"):
        unstir.sample(mixture.model(process), solvers.Adaptive(process, rtol=1e-9, atol=0.0, max_calls=50), shape=(1, 1))
    with pytest.raises(ValueError, match="order"):
        solvers.Adaptive(process, order=4)


@pytest.mark.parametrize(
    ("name", "options", "bound"),
    [
        ("ipndm", {"order": 1}, 2),
        ("ipndm", {"order": 2}, 1),
        ("ipndm", {"order": 3}, 6 / 11),
        ("ipndm", {"order": 4}, 0.3),
        ("heavy-ball", {"order": 2, "damping": 0.8}, 1.5),
        ("heavy-ball", {"order": 4, "damping": 0.5}, 0.9),
        ("ghvb", {"order": 2, "damping": 0.8}, 1.2),
        ("ghvb", {"order": 4, "damping": 0.5}, 0.429),
    ],
)
def test_stability_intervals_equal_the_closed_forms(name, options, bound) -> None:
    """B_AB = 2/Σ γ_j 2^j, B_HB = B_AB (2 − β)/β, B_GHVB = 2(2 − β)/(β Σ c_j 2^j) (momentum dossier)."""
    assert solvers.stability_interval(name, **options) == pytest.approx(bound, abs=4e-3)


def test_region_meets_the_real_axis_at_the_interval() -> None:
    re, im, growth = solvers.stability_region("ddim", points=41, real=(-3, 1), imag=2)
    inside = abs(1 + re + 1j * im) <= 1  # Euler: |1 + z| ≤ 1
    assert ((growth <= 1 + 1e-6) == inside)[abs(abs(1 + re + 1j * im) - 1) > 1e-2].all()


def test_analyse_reports() -> None:
    found = solvers.analyse(unstir.plan("dpmpp-2m", VP(), nfe=10))
    assert found.measured_order == pytest.approx(2, abs=0.15)
    assert max(found.invariants) < 1e-12
    text = str(found)
    assert "order 2" in text
    assert solvers.analyse(unstir.plan("ancestral", VP(), nfe=10)).measured_order is None


def test_langevin_corrections_keep_the_law_of_the_data(mixture) -> None:
    """Corrected coarse ancestral-free sampling of a Gaussian: the mean and spread of the data, sample by sample sized."""
    from unstir.denoiser import Gaussian

    process = VP()
    model = Gaussian(process, torch.full((40,), 0.3), std=torch.full((40,), 0.5))
    plain = unstir.plan("ddim", process, nfe=12)
    plan = solvers.LangevinCorrected(plain, snr=0.1, steps=3)
    end = unstir.sample(model, plan, shape=(400, 40), dtype=torch.float64, full=True)
    assert end.calls.forward == 12 + 11 * 3
    spread = lambda x: abs(float(x.std()) - 0.5)  # noqa: E731
    assert spread(end.x) < 0.5 * spread(unstir.sample(model, plain, shape=(400, 40), dtype=torch.float64))
    assert float(end.x.mean()) == pytest.approx(0.3, abs=0.02)


def test_langevin_sizes_belong_to_the_sample(mixture) -> None:
    process = VP()
    plan = solvers.LangevinCorrected(unstir.plan("dpmpp-2m", process, nfe=6), snr=0.16)
    run = {"dtype": torch.float64, "seed": 3}
    eight = unstir.sample(mixture.model(process), plan, shape=(8, 1), **run)
    assert torch.equal(unstir.sample(mixture.model(process), plan, shape=(1, 1), index=[5], **run)[0], eight[5])
    with pytest.raises(ValueError, match="snr"):
        solvers.LangevinCorrected(unstir.plan("ddim", process, nfe=3), snr=0.0)
