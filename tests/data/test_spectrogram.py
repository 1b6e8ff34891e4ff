"""The compressed spectrogram: exact inverse, known bins, and the invariances a restorer relies on."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.data.spectrogram import Spectrogram

PAPER = Spectrogram(16000)
SMALL = Spectrogram(8000, 126, 32, factor=0.2, frames=8)
FOLDED = Spectrogram(8000, 254, 64, fold=4, frames=16)
PLAIN = Spectrogram(8000, 62, 16, exponent=1.0, factor=1.0, frames=1)


def sound(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("transform", [PAPER, SMALL, FOLDED, PLAIN], ids=["paper", "small", "folded", "plain"])
@pytest.mark.parametrize("length", [1, 7, 500, 4001])
def test_inverse_is_exact(transform: Spectrogram, length: int) -> None:
    x = sound(length)
    picture = transform(x)
    assert picture.shape[1:] == transform.shape(length)
    assert float((transform.inverse(picture, length) - x).abs().max()) < 1e-12
    assert float((transform.inverse(transform(x.float()), length) - x).abs().max()) < 1e-4


def test_a_tone_lies_in_its_bin_with_its_compressed_height() -> None:
    """A cosine on bin k under a Hann window has |C| = n_fft/4 at bin k (half the sum of the window, n_fft/2)."""
    t, bins = torch.arange(4000, dtype=torch.float64), 10
    x = torch.cos(2 * math.pi * bins * t / SMALL.n_fft)[None]
    picture = SMALL(x)
    height = torch.view_as_complex(picture.movedim(1, -1).contiguous()).abs()[0, :, 60]
    assert int(height.argmax()) == bins
    assert float(height[bins]) == pytest.approx(0.2 * (SMALL.n_fft / 4) ** 0.5, rel=1e-6)


def test_four_times_the_amplitude_is_twice_the_picture() -> None:
    x = sound(1000)
    assert torch.allclose(SMALL(4 * x), 2 * SMALL(x), atol=1e-12)
    assert torch.equal(SMALL(0 * x), torch.zeros_like(SMALL(x)))


def test_folding_only_moves_numbers() -> None:
    x = sound(3000)
    flat = Spectrogram(**(FOLDED.spec() | {"fold": 1}))(x)
    assert torch.equal(FOLDED(x).flatten().sort().values, flat.flatten().sort().values)
    assert torch.equal(torch.nn.functional.pixel_shuffle(FOLDED(x), 4), flat)


def test_paper_sizes() -> None:
    assert PAPER.shape(255 * 128) == (2, 256, 256)  # 256 frames of 256 frequencies are 32640 samples


def test_decibels() -> None:
    level = SMALL.decibels(sound(2000))
    assert float(level.max()) == 0
    assert float(level.min()) >= -80
    assert torch.equal(SMALL.decibels(torch.zeros(1, 200)).unique(), torch.tensor([-80.0]))


def test_spec_rebuilds_it() -> None:
    assert Spectrogram.from_spec(FOLDED.spec()) == FOLDED
    with pytest.raises(ValueError, match="does not describe a spectrogram"):
        Spectrogram.from_spec({"rate": 8000, "bins": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 511}, "n_fft=511 must be even"),
        ({"hop": 300}, "hop=300 must be at most"),
        ({"hop": 0}, "hop=0 must be a whole number above 0"),
        ({"exponent": 1.5}, "exponent=1.5 must be at most 1"),
        ({"factor": -1.0}, "factor=-1.0"),
        ({"fold": 3}, "fold=3 must divide"),
        ({"rate": 8000.5}, "rate=8000.5 must be a whole number"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spectrogram(**({"rate": 8000} | options))


def test_bad_tensors_are_named() -> None:
    with pytest.raises(ValueError, match="sound has shape"):
        SMALL(torch.zeros(5))
    with pytest.raises(ValueError, match="picture has shape"):
        SMALL.inverse(torch.zeros(1, 2, 64, 8), 10_000)
