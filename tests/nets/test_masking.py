"""The masking network: complex products, a start that leaves the input as it is, and a folder that brings it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unstir import interop
from unstir.denoiser import Denoiser
from unstir.nets import MaskingUNet
from unstir.nets.masking import product
from unstir.process import OUVE

pytest.importorskip("diffusers")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_product_is_complex() -> None:
    a, b = numbers(2, 6, 4, 4), numbers(2, 6, 4, 4, seed=1)
    exact = torch.complex(*a.chunk(2, 1)) * torch.complex(*b.chunk(2, 1))
    assert torch.allclose(product(a, b), torch.cat([exact.real, exact.imag], 1), atol=1e-6)


def test_a_silent_unet_returns_the_anchor_and_a_mask_of_minus_one_nothing() -> None:
    network = MaskingUNet(2, (8, 8))
    x, y, t = numbers(2, 2, 8, 8), numbers(2, 2, 8, 8, seed=1), torch.ones(2)
    last = network.unet.conv_out
    for parameter in last.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(network(x, t, y), y)
    with torch.no_grad():
        last.bias[0] = -1  # the real part of the mask
        assert torch.equal(network(x, t, y), torch.zeros_like(y))
        last.bias[:] = torch.tensor([-1.0, 0.0, 3.0, 5.0])  # and of what is added
        assert torch.allclose(network(x, t, y), torch.tensor([0.3, 0.5]).reshape(1, 2, 1, 1).expand_as(y))


def test_a_folder_brings_it_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    meta = {"sound": {"rate": 8000}}
    model = Denoiser(MaskingUNet(8, (8, 16), scale=0.2), OUVE(), "data", time="thousand", sees_anchor=True, meta=meta)
    x, y = numbers(1, 8, 8, 8), numbers(1, 8, 8, 8, seed=1)
    interop.save_model(model, tmp_path / "model")
    again = interop.load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(x, 0.5, anchor=y), model(x, 0.5, anchor=y))
    assert (again.process, again.sees_anchor, again.meta) == (model.process, True, meta)


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=3 must be even"):
        MaskingUNet(3)
