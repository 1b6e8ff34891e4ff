"""DiffusionMBIR: what its run is made of, on data whose answer is known; the head itself where nilearn is installed."""

import math

import pytest
import torch

from unstir.denoiser import Gaussian
from unstir.process import EDM, VE
from unstir.steer import operators, sliced
from unstir.systems import SYSTEMS, diffusion_mbir, reproduce
from unstir.systems.diffusion_mbir import Brain, best_tv, planes, posterior_mean, psnr, scans, slice_prior, z_error

torch.set_num_threads(1)
SHAPE = (1, 4, 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_prior_keeps_the_first_components_and_the_variance_of_the_rest() -> None:
    scale = torch.tensor([4.0, 3.0, 2.0] + [0.1, 0.2] * 6 + [0.3]).double()
    turn = torch.linalg.qr(randn(16, 16)).Q
    x = ((randn(500, 16, seed=1) * scale) @ turn).reshape(500, *SHAPE)
    model = slice_prior(VE(), x, 3)
    found, given = model.spectrum[0].sort().values, torch.linalg.eigvalsh(torch.cov(x.flatten(1).T))
    torch.testing.assert_close(found[-3:], given[-3:])
    torch.testing.assert_close(found[:-3], given[:-3].mean().expand(13))
    torch.testing.assert_close(model.means[0], x.mean(0).flatten())


@pytest.mark.parametrize("rows", [5, 16, 20])
def test_the_posterior_mean_is_that_of_the_gaussian(rows) -> None:
    covariance = (lambda r: r @ r.T / 16 + 0.1 * torch.eye(16).double())(randn(16, 16, seed=2))
    model, a = Gaussian(EDM(), randn(*SHAPE, seed=3), covariance), randn(rows, 16, seed=4)
    operator, x = operators.dense(a, SHAPE), randn(3, *SHAPE, seed=5)
    gain = covariance @ a.T @ torch.linalg.pinv(a @ covariance @ a.T, rtol=1e-10)
    mean = model.means[0]
    wanted = mean + (x.flatten(1) - mean) @ (gain @ a).T
    torch.testing.assert_close(posterior_mean(model, operator, operator.A(x)).flatten(1), wanted, rtol=1e-4, atol=1e-4)


def test_total_variation_gets_the_weight_that_suits_the_truth_best() -> None:
    truth = torch.zeros(1, 1, 6, 8, 8)
    truth[:, :, 2:5, 2:6, 3:7] = 1
    operator = sliced(operators.mask((torch.arange(64).reshape(8, 8) % 3 > 0).double()))
    weight, x = best_tv(operator, operator.A(truth), truth)
    assert weight < 0.01
    assert psnr(x, truth) > psnr(operator.A(truth), truth) + 10


def test_measures_and_pictures() -> None:
    truth, ramp = torch.zeros(1, 1, 4, 6, 6), torch.arange(4.0)[:, None, None].expand(1, 1, 4, 6, 6)
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    assert z_error(truth + 0.1, truth) == 0
    assert z_error(truth + 0.3 * ramp, truth) == pytest.approx(0.09)
    seen = planes(ramp)
    assert seen.shape == (3, 1, 6, 6)
    assert seen[0].unique().tolist() == [2]
    assert seen[1, 0, :, 0].tolist() == [0, 3, 2, 1, 0, 0]  # head up, a border of (6 − 4)/2
    assert torch.equal(seen[1], seen[2])


def test_scanners_measure_what_they_say() -> None:
    ct, mri = scans(4, 4)
    shape = (1, diffusion_mbir.SIDE, diffusion_mbir.SIDE)
    for scan in (ct, mri):
        assert operators.check_operator(scan.operator, torch.zeros(1, *shape).double(), 1e-6)["norm"] <= 1 + 1e-6
    assert ct.operator.A(torch.zeros(1, *shape)).shape == (1, 1, 4, 40)
    seen = mri.operator.A(randn(1, *shape)).abs().sum((0, 1, 2))
    assert int((seen > 0).sum()) == 10
    assert [scan.file for scan in (ct, mri)] == ["ct-4-views", "mri-4"]
    levels = [float(VE(0.01, 3.0).noise_ratio(t)) for t in diffusion_mbir.ladder(VE(0.01, 3.0), 5).times]
    assert levels == pytest.approx([3.0, 3 / 300**0.25, math.sqrt(0.03), 0.01 * 300**0.25, 0.01, 0.0], rel=1e-4)


def test_training_slices_show_tissues_and_not_the_scan() -> None:
    """Uniform tissues stay uniform, and the T1 volume is not read."""
    box = torch.zeros(32, 40, 40)
    box[:, 10:30, 10:30] = 1
    head = Brain(torch.full_like(box, math.nan), box, torch.zeros_like(box), box)
    x = diffusion_mbir.training_slices(head, 50)
    assert x.shape == (50, 1, 40, 40)
    assert bool(torch.isfinite(x).all())
    assert 0.3 <= float(x.amax((1, 2, 3)).min()) < 0.4
    assert 0.9 < float(x.max()) <= 1
    area = (x > 0.5 * x.amax((1, 2, 3), keepdim=True)).float().mean((1, 2, 3))
    assert float(area.min()) > 0.15  # 0.25 / 1.15² at least, less what is shifted out
    assert float(area.max()) < 0.36


@pytest.mark.slow  # nilearn takes its time
def test_the_head_is_upright_and_in_its_range() -> None:
    pytest.importorskip("nilearn")
    head = diffusion_mbir.brain()
    for volume in head:
        assert volume.shape == (32, 40, 40)
        assert float(volume.min()) >= 0
        assert float(volume.max()) <= 1
    assert float(head.t1.max()) == 1
    assert float(head.t1[16].sum()) > 5 * float(head.t1[28].sum())  # the crown is small
    low = head.inside[7].sum(1)  # the cerebellum lies at the back, in the lower half of the picture
    assert float(low[20:].sum()) > float(low[:20].sum())
    white = (head.t1 * head.white).sum() / head.white.sum()
    assert float(white) > float((head.t1 * head.grey).sum() / head.grey.sum())  # as T1 has it


def test_without_nilearn_the_extra_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(ImportError, match=r"nilearn is needed .* pip install 'unstir\[medical\]'"):
        diffusion_mbir.brain()


@pytest.mark.slow
def test_the_claims_hold(runs) -> None:
    pytest.importorskip("nilearn")
    result = reproduce("diffusion-mbir", runs)
    assert result.held, [c for c in result.claims if not c.held]
    assert (runs / "diffusion-mbir" / "ct-8-views.png").stat().st_size > 10_000
    assert SYSTEMS["diffusion-mbir"].module == "unstir.systems.diffusion_mbir"
