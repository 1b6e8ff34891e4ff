"""A network may change the time it is told: nobody else sees that."""

import pytest
import torch

import unstir
from unstir import process


def careless(x, t):
    t.mul_(3).add_(1)
    return 0.1 * x * t.reshape(-1, 1)


def careful(x, t):
    return 0.1 * x * (3 * t + 1).reshape(-1, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_time_changed_in_place_is_told_anew(mode, batch):
    wild, tame = (unstir.Denoiser(network, process.VP(), "noise") for network in (careless, careful))
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(0))
    with mode():
        for t in (0.3, 0.3, 0.7, 0.3, torch.full((batch,), 0.3)):
            assert torch.allclose(wild(x, t), tame(x, t))
    # The numbers kept from inference mode serve autograd.
    y = x.clone().requires_grad_()
    wild(y, 0.3).sum().backward()
    assert y.grad is not None


def test_times_of_every_sample_stay_the_callers():
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    unstir.Denoiser(careless, process.VP(), "noise")(torch.randn(2, 4, dtype=torch.float64), t)
    assert t.tolist() == [0.2, 0.6]
