"""SGMSE+: the published sampler as a table, speech and noises, and what a restorer must keep."""

from __future__ import annotations

import math
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.plan import sample
from unstir.process import OUVE
from unstir.systems import _speech, sgmse
from unstir.systems.sgmse import PROCESS, enhance, predictor_corrector

G = torch.Generator


class Linear:
    """D = 0.8 x + 0.1 y − 0.2 t."""

    process, sees_anchor = OUVE(), True

    def __call__(self, x: Tensor, t: Any, anchor: Tensor) -> Tensor:
        return 0.8 * x + 0.1 * anchor - 0.2 * float(t)


def draws(count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    g = G().manual_seed(0)
    z = [torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(count + 2)]
    return z[0], z[1], z[2:]


def test_predictor_corrector_is_the_published_loop() -> None:
    """x and the score as in the paper, its drift θ(y − x) included; the rows act on x − y."""
    model, steps, r = Linear(), 6, 0.4
    p = model.process
    y, z, noise = draws(2 * steps)
    x = y + float(p.sigma(1.0)) * z
    start = x.clone()
    times = [*torch.linspace(1, 0.03, steps, dtype=torch.float64).tolist(), 0.0]
    log_ratio = math.log(p.sigma_max / p.sigma_min)
    for i, (t, to) in enumerate(pairwise(times)):
        sigma, alpha = float(p.sigma(t)), float(p.alpha(t))
        g2 = (p.sigma_min * (p.sigma_max / p.sigma_min) ** t) ** 2 * 2 * log_ratio

        def score(x: Tensor, t: float = t, sigma: float = sigma, alpha: float = alpha) -> Tensor:
            return -(x - (1 - alpha) * y - alpha * model(x, t, y)) / sigma**2

        x = x + 2 * (r * sigma) ** 2 * score(x) + 2 * r * sigma * noise[2 * i]
        mean = x - p.theta * (y - x) * (t - to) + g2 * (t - to) * score(x)
        x = mean + math.sqrt(g2 * (t - to)) * noise[2 * i + 1]
    plan = predictor_corrector(p, steps, r)
    assert len(plan) == 2 * steps
    found = sample(model, plan, x=start, anchor=y, noise=lambda row: noise[row])
    assert torch.allclose(found, mean, atol=1e-12)


def test_without_a_corrector_only_the_predictor_moves() -> None:
    model = Linear()
    y, z, noise = draws(8)
    plain = sgmse.reverse_diffusion(model.process, [*torch.linspace(1, 0.03, 4, dtype=torch.float64).tolist(), 0.0])
    a = sample(model, predictor_corrector(model.process, 4, 0.0), x=y + z, anchor=y, noise=lambda row: noise[row])
    b = sample(model, plain, x=y + z, anchor=y, noise=lambda row: noise[2 * row + 1])
    assert torch.allclose(a, b, atol=1e-12)


def test_the_corrector_is_biased_as_published() -> None:
    """From the exact marginal, with the exact D, one corrector step leaves the mean and gives (1 + 4r⁴) of the variance."""
    for r in (0.33, 0.5):
        row = predictor_corrector(PROCESS, 5, r).rows[2]
        alpha, sigma = float(PROCESS.alpha(row.t)), float(PROCESS.sigma(row.t))
        assert float(row.a) + float(row.b[0]) / alpha == pytest.approx(1)
        variance = (float(row.a) * sigma) ** 2 + float(row.c) ** 2
        assert variance == pytest.approx((1 + 4 * r**4) * sigma**2)


def test_noise_of_a_complex_bin_is_the_papers() -> None:
    complex_sigma = math.sqrt(2) * float(PROCESS.sigma(1.0))
    assert complex_sigma == pytest.approx(0.3890, abs=1e-4)
    assert float(PROCESS.alpha(1.0)) == pytest.approx(0.2231, abs=1e-4)


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("diffusers")
    return sgmse.untrained((8, 8)).eval().requires_grad_(False)


def test_a_restorer_keeps_length_loudness_and_silence(model: Any) -> None:
    sounds = torch.randn(2, 5001, generator=G().manual_seed(0), dtype=torch.float32)
    sounds[1] = 0
    plan = sgmse.evenly(2)
    found = enhance(model, plan, sounds, draws=2)
    assert found.shape == sounds.shape
    assert torch.equal(found[1], sounds[1])
    assert torch.allclose(enhance(model, plan, sounds / 64, draws=2), found / 64, atol=1e-5 * float(found.abs().max()))


# -- speech and noises --------------------------------------------------------------------------------------
def tones(count: int, g: torch.Generator) -> list[Tensor]:
    return [torch.randn(2000 + 100 * i, generator=g) for i in range(count)]


@pytest.fixture(scope="module")
def speakers() -> dict[str, list[Tensor]]:
    g = G().manual_seed(0)
    return {name: tones(3, g) for name in ("ann", "bob", "cat", "dan")}


def test_mixtures_have_the_ratio_asked_for(speakers: Any) -> None:
    for kind, make in _speech.NOISES.items():
        noise = make(9000, speakers, G().manual_seed(1))
        clean = torch.randn(9000, generator=G().manual_seed(2))
        rest = _speech.mixed(clean, noise, 5.0) - clean
        assert float(10 * torch.log10(clean.square().sum() / rest.square().sum())) == pytest.approx(5.0, abs=1e-3), kind


def test_noises_are_what_they_are_called(speakers: Any) -> None:
    power = {
        kind: torch.fft.rfft(make(16000, speakers, G().manual_seed(1))).abs().square() for kind, make in _speech.NOISES.items()
    }
    octave = {kind: float(p[500:1000].sum() / p[4000:8000].sum()) for kind, p in power.items()}
    assert octave["white"] == pytest.approx(1 / 8, rel=0.15)  # as many bins
    assert octave["pink"] == pytest.approx(1.0, rel=0.15)  # as much power in every octave
    loudest = power["hum"].topk(10).values.sum() / power["hum"].sum()
    assert float(loudest) > 0.5


def test_a_seed_gives_one_sentence(speakers: Any) -> None:
    one, two, other = (_speech.sentence(speakers["ann"], 3, G().manual_seed(s), varied=True) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert _speech.cut(one, 20000, G().manual_seed(0)).shape == (20000,)


def test_test_sets_take_the_noises_in_turn(speakers: Any) -> None:
    found = sgmse.test_set(speakers, 4, seed=0)
    assert [u.kind for u in found[:4]] == list(_speech.NOISES)
    assert {len(u.clean) for u in found} == {12000}


def _write(folder: Path, name: str, samples: Tensor, rate: int = 8000) -> None:
    pytest.importorskip("soundfile").write(folder / name, samples.numpy(), rate)


def test_recordings_of_a_folder_and_of_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for speaker in ("ann", "bob", "cat", "dan"):
        for k in range(2):
            _write(folder, f"{k}_{speaker}_0.wav", 0.1 * torch.randn(1600), 16000 if k else 8000)
    _write(folder, "notes.wav", torch.ones(5))
    _write(folder, "3_ann_9.wav", torch.zeros(50))
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"data/{file.name}")
    found = _speech.recorded(folder)
    assert {name: [len(u) for u in spoken] for name, spoken in found.items()} == {name: [1600, 800] for name in found}
    zipped = _speech.recorded(tmp_path / "digits.zip")
    assert all(torch.equal(a, b) for name in found for a, b in zip(found[name], zipped[name], strict=True))
    monkeypatch.setenv("UNSTIR_SPEECH", str(folder))
    what, known, unknown = _speech.speech()
    assert (what, list(known), list(unknown)) == ("recorded digits (digits)", ["ann", "bob"], ["cat", "dan"])
    for file in folder.glob("*_[ab]*_0.wav"):
        file.unlink()
    with pytest.raises(ValueError, match="holds 2 speakers"):
        _speech.speech()
    monkeypatch.setenv("UNSTIR_SPEECH", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        _speech.speech()


def test_without_speech_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("espeakng_loader")

    monkeypatch.delenv("UNSTIR_SPEECH", raising=False)
    monkeypatch.setattr(_speech, "synthesised", missing)
    with pytest.raises(ImportError, match=r"unstir\[speech,espeak\].*UNSTIR_SPEECH"):
        _speech.speech()


def test_espeak_speaks_in_six_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.delenv("UNSTIR_SPEECH", raising=False)
    monkeypatch.setattr(_speech, "WORDS", ("one", "seven"))
    what, known, unknown = _speech.speech()
    assert what == "digits spoken by espeak-ng"
    assert (len(known), len(unknown)) == (4, 2)
    spoken = [u for voice in (known | unknown).values() for u in voice]
    assert len(spoken) == 6 * 12 * 2
    assert all(1000 < len(u) < 12000 and 0.1 < float(u.abs().max()) <= 1.2 for u in spoken)
    first, second = (voice[0] for voice in list(known.values())[:2])
    assert len(first) != len(second) or float((first - second).abs().max()) > 0.05
