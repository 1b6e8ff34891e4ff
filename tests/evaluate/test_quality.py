"""Quality of restored pictures and sounds: closed forms, the formula written out, and what is undefined."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.evaluate import quality
from unstir.evaluate.quality import Tally, estoi, pesq, picture_metrics, psnr, si_sdr, sound_metrics, ssim


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert psnr(x + torch.tensor([0.2, 0.02]).reshape(2, 1, 1, 1), x).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)
    assert psnr(x + 1, x, span=1).tolist() == [0.0, 0.0]
    assert psnr(x, x).tolist() == [math.inf, math.inf]


def test_ssim_is_its_formula() -> None:
    """Local moments under the window, written out with one sum per pixel whose window lies in the picture."""
    pytest.importorskip("torchmetrics")
    x, y = normal(1, 1, 24, 20).tanh(), normal(1, 1, 24, 20, seed=1).tanh()
    g = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2)).double()
    w = (g / g.sum())[:, None] * (g / g.sum())
    values = []
    for i in range(24 - 10):
        for j in range(20 - 10):
            a, b = x[0, 0, i : i + 11, j : j + 11], y[0, 0, i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
            c1, c2 = 0.02**2, 0.06**2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert float(ssim(x, y)) == pytest.approx(float(torch.stack(values).mean()), abs=1e-9)
    assert float(ssim(x, x)) == pytest.approx(1.0)
    assert ssim(x[..., :10], x[..., :10]).isnan().all()  # no window fits


def test_si_sdr_of_a_known_mixture() -> None:
    s, n = normal(3, 500), normal(3, 500, seed=1)
    s, n = s - s.mean(1, keepdim=True), n - n.mean(1, keepdim=True)
    n -= (n * s).sum(1, keepdim=True) / s.square().sum(1, keepdim=True) * s  # orthogonal, so that the ratio is exact
    n *= (s.square().sum(1) / n.square().sum(1)).sqrt()[:, None]
    for scale, shift in ((1.0, 0.0), (-0.3, 0.0), (7.0, 2.0)):
        assert si_sdr(scale * (s + 0.1 * n) + shift, s).tolist() == pytest.approx([20.0] * 3, abs=1e-9)
    assert si_sdr(0 * s, s).isnan().all()
    assert si_sdr(s, 0 * s).isnan().all()


def test_si_sdr_is_that_of_torchmetrics() -> None:
    audio = pytest.importorskip("torchmetrics.functional.audio")
    s, x = normal(2, 400), normal(2, 400) + normal(2, 400, seed=2)
    peer = audio.scale_invariant_signal_distortion_ratio(x, s, zero_mean=True)
    assert torch.allclose(si_sdr(x, s), peer, atol=1e-6)


def test_intelligibility_falls_with_noise_and_is_undefined_for_a_click() -> None:
    pytest.importorskip("pystoi")
    t = torch.arange(16000, dtype=torch.float64) / 8000
    voice = sum(torch.sin(2 * math.pi * 140 * h * t) / h for h in range(1, 20)) * (1 + torch.sin(2 * math.pi * 3 * t))
    voice, noise = torch.as_tensor(voice)[None], normal(1, 16000)
    clean, some, much = (float(estoi(voice + level * noise, voice, 8000)) for level in (0.0, 0.3, 3.0))
    assert clean == pytest.approx(1.0, abs=1e-6)
    assert clean > some > much
    assert estoi(voice[:, :300], voice[:, :300], 8000).isnan().all()
    assert estoi(voice, 0 * voice, 8000).isnan().all()


def test_pesq_of_a_perfect_and_of_a_silent_reference() -> None:
    pytest.importorskip("pesq")
    t = torch.arange(16000, dtype=torch.float64) / 8000
    voice = (torch.sin(2 * math.pi * 400 * t) * (1 + torch.sin(2 * math.pi * 3 * t)))[None] / 2
    assert float(pesq(voice, voice, 8000)) == pytest.approx(4.55, abs=0.01)
    assert float(pesq(voice + 0.3 * normal(1, 16000), voice, 8000)) < 3
    assert pesq(voice, 0 * voice, 8000).isnan().all()


def test_a_tally_stands_beside_its_input() -> None:
    pytest.importorskip("torchmetrics")
    truth = normal(4, 3, 16, 16).tanh() / 2
    given, restored = truth + 0.2, truth + 0.02
    tally = Tally(picture_metrics())
    for row in range(4):
        tally.add(restored[row : row + 1], given[row : row + 1], truth[row : row + 1])
    found = {q.name: q for q in tally.result()}
    assert found["PSNR"].n == 4
    assert (found["PSNR"].input, found["PSNR"].restored) == pytest.approx((20.0, 40.0))
    assert found["PSNR"].gain == pytest.approx(20.0)
    assert found["SSIM"].gain > 0
    assert str(found["PSNR"]) == "PSNR 20 → 40 dB (n = 4)"


def test_what_cannot_be_measured_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(quality.torch.hub, "get_dir", lambda: str(tmp_path))
    truth = normal(1, 3, 32, 32).tanh()
    tally = Tally(picture_metrics())
    tally.add(truth, truth + 0.1, truth)  # a perfect restoration has no finite PSNR
    assert [q.name for q in tally.result()] == ["SSIM"]
    assert "LPIPS needs" in tally.missing["LPIPS[alex]"]
    assert quality.Quality("LPIPS[alex]", "", "min", 0.1, 0.4, 1).gain == pytest.approx(0.3)
    assert set(sound_metrics(8000)) == {"SI-SDR", "ESTOI", "PESQ-NB"}
    assert "PESQ-WB" in sound_metrics(48000)


@pytest.mark.parametrize(
    ("x", "reference", "error", "message"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15), ValueError, "they must be equal"),
        (torch.zeros(1, 3, 16, 16).byte(), torch.zeros(1, 3, 16, 16), TypeError, "x is torch.uint8"),
        (torch.full((1, 1, 16, 16), math.nan), torch.zeros(1, 1, 16, 16), ValueError, "x contains NaN"),
        (torch.zeros(1, 16, 16), torch.zeros(1, 16, 16), ValueError, "it must have 4 axes"),
    ],
    ids=["shape", "dtype", "nan", "axes"],
)
def test_bad_input_is_named(x: torch.Tensor, reference: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ssim(x, reference)
