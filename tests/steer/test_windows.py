"""Windows: a model that looks at one pixel cannot tell a window from the whole, so both must agree to rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from unstir import plan
from unstir.data.spectrogram import Spectrogram
from unstir.denoiser import Denoiser
from unstir.process import VP, Flow
from unstir.steer.windows import noise_at, ramps, restore, restore_picture, restore_sound, starts


class Toward(Flow):
    """x_t = (1 − t) x0 + t y + t z: flow to the anchor."""

    anchored = True

    def beta(self, t: object) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64)


class Pixel(nn.Module):
    """D = 0.7 x + 0.2 y − 0.1 t: pixel by pixel; counts its calls, and the windows in them."""

    sees_anchor = True
    shape = None

    def __init__(self, halves: bool = False) -> None:
        super().__init__()
        self.process, self.halves, self.calls, self.rows = Toward(), halves, 0, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: float, anchor: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        return anchor / 2 if self.halves else 0.7 * x + 0.2 * anchor - 0.1 * float(t)


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
@pytest.mark.parametrize("size", [(8, 8), (16, 12), (80, 90)], ids=str)
def test_windows_are_the_whole(solver: str, size: tuple[int, int]) -> None:
    model, y = Pixel(), picture(3, 70, 83)
    steps = plan(solver, model.process, nfe=3)
    options = {"seed": 5, "index": 2, "samples": 2}
    whole = restore_picture(model, steps, y, size=(70, 83), **options)
    parts = restore_picture(model, steps, y, size=size, overlap=3, batch=7, **options)
    assert whole.shape == (2, 3, 70, 83)
    assert torch.allclose(parts, whole, atol=1e-12)
    assert float((whole[0] - whole[1]).abs().max()) > 0.1  # two draws
    assert torch.equal(whole[1:], restore_picture(model, steps, y, size=(70, 83), seed=5, index=2, samples=2)[1:])
    assert not torch.equal(whole, restore_picture(model, steps, y, size=(70, 83), seed=5, index=3, samples=2))


def test_small_pictures_are_extended_and_cut_back() -> None:
    model = Pixel()
    steps = plan("ddim", model.process, nfe=2)
    y = picture(1, 3, 70)
    assert torch.allclose(
        restore_picture(model, steps, y, size=(16, 16)), restore_picture(model, steps, y, size=(3, 70)), atol=1e-12
    )


@pytest.mark.parametrize(("length", "size", "overlap"), [(100, 16, 4), (17, 16, 0), (16, 16, 8), (5, 16, 4), (1000, 64, 63)])
def test_windows_cover_and_their_weights_sum_to_one(length: int, size: int, overlap: int) -> None:
    places = starts(length, size, overlap)
    assert places[0] == 0
    assert places[-1] == max(0, length - size)
    assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(places))
    total = torch.zeros(max(length, size), dtype=torch.float64)
    for place, w in zip(places, ramps(places, size, overlap), strict=True):
        assert float(w.min()) > 0
        total[place : place + size] += w
    assert torch.allclose(total, torch.ones_like(total))


def test_two_windows_blend_linearly() -> None:
    rows = ramps([0, 6], 10, 4)
    assert torch.allclose(rows[0], torch.tensor([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64))


def test_noise_is_one_field() -> None:
    field = noise_at([1, 2], 3, (2, 150, 200))
    assert torch.equal(noise_at([1, 2], 3, (2, 40, 90), 61, 100), field[:, :, 61:101, 100:190])
    assert abs(float(field.std()) - 1) < 0.02
    assert abs(float(field.mean())) < 0.02
    assert abs(float((field[:, :, :64] * field[:, :, 64:128]).mean())) < 0.02  # blocks are independent
    assert not torch.equal(field, noise_at([1, 2], 4, (2, 150, 200)))


TRANSFORM = Spectrogram(8000, 126, 32, frames=8, fold=2)


def test_sound_of_a_model_that_halves() -> None:
    """Half the compressed amplitude (exponent ½) is a quarter of the amplitude, whatever the noise."""
    model = Pixel(halves=True)
    sound = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    sound[1] = 0
    steps = plan("ddim", model.process, nfe=3)
    found = restore_sound(model, steps, sound, TRANSFORM, samples=3)
    assert found.shape == (3, 2, 3000)
    assert float((found - sound / 4).abs().max()) < 1e-4
    assert torch.equal(found[:, 1], torch.zeros(3, 3000))  # silence stays silence


def test_louder_sound_gives_louder_sound() -> None:
    model = Pixel()
    steps = plan("ancestral", model.process, nfe=3)
    sound = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = restore_sound(model, steps, sound, TRANSFORM, seed=1)
    assert torch.allclose(restore_sound(model, steps, 8 * sound, TRANSFORM, seed=1), 8 * found, atol=1e-9)
    assert not torch.allclose(restore_sound(model, steps, sound, TRANSFORM, seed=2), found, atol=1e-3)


def test_channels_share_their_noise() -> None:
    model = Pixel()
    sound = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    found = restore_sound(model, plan("ancestral", model.process, nfe=3), sound, TRANSFORM)
    assert torch.equal(found[:, 0], found[:, 1])


def test_bad_input_is_named() -> None:
    model = Pixel()
    steps = plan("ddim", model.process, nfe=2)
    with pytest.raises(ValueError, match="y has shape"):
        restore_picture(model, steps, torch.zeros(8, 8), size=(8, 8))
    with pytest.raises(ValueError, match="overlap=8"):
        starts(20, 8, 8)
    with pytest.raises(ValueError, match="frame=1 must be a multiple of fold=2"):
        restore_sound(model, steps, torch.zeros(1, 100), TRANSFORM, frame=1)
    model.process = VP()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="has no anchor"):
        restore(model, steps, torch.zeros(1, 2), lambda stream: torch.zeros(1, 2))


def test_a_network_that_sees_its_estimate_is_given_it_in_every_window() -> None:
    """By the rows of a run, each window its own: as for the whole."""

    class Recalls(nn.Module):
        def forward(self, x: Tensor, t: Tensor, previous: Tensor, anchor: Tensor) -> Tensor:
            return 0.4 * x + 0.2 * anchor + previous / 3

    model, y = Denoiser(Recalls(), Toward(), "data", sees_anchor=True, sees_previous=True), picture(1, 30, 30)
    steps = plan("ddim", model.process, nfe=4)
    whole = restore_picture(model, steps, y, size=(30, 30))
    assert torch.allclose(restore_picture(model, steps, y, size=(12, 16), overlap=3, batch=5), whole, atol=1e-12)
    model.sees_previous = model._wants_ctx = False
    model.network.forward = lambda x, t, anchor: Recalls.forward(model.network, x, t, torch.zeros_like(x), anchor)
    assert not torch.allclose(restore_picture(model, steps, y, size=(12, 16), overlap=3, batch=5), whole, atol=1e-3)
