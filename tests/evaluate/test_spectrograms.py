"""The plot of spectrograms: a PNG with a panel a sound, and wrong panels by name."""

from __future__ import annotations

import io

import pytest
import torch

from unstir.evaluate import spectrogram_plot


def test_panels_side_by_side() -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    levels = torch.linspace(-90, 10, 64 * 20).reshape(64, 20)
    one = image.open(io.BytesIO(spectrogram_plot({"a": levels}, 8000, 1.5)))
    three = image.open(io.BytesIO(spectrogram_plot({"a": levels, "b $1": levels, "c": levels}, 8000, 1.5, title="t")))
    assert three.width > 2 * one.width
    assert spectrogram_plot({"a": levels}, 8000, 1.5) == spectrogram_plot({"a": levels}, 8000, 1.5)
    assert spectrogram_plot({"a": levels}, 8000, 1.5) != spectrogram_plot({"a": levels.flip(0)}, 8000, 1.5)


@pytest.mark.parametrize("panels", [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(0, 3)}], ids=["none", "one axis", "empty"])
def test_wrong_panels_are_named(panels: dict) -> None:
    with pytest.raises(ValueError, match="panels"):
        spectrogram_plot(panels, 8000, 1.0)
