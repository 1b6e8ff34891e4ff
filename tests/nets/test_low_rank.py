"""The generator of low rank: what its formula says, for any size of cube."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unstir.nets import Hourglass, LowRank, low_rank

torch.set_num_threads(1)


def test_the_cube_is_the_sum_of_maps_times_spectra() -> None:
    net = low_rank((6, 9, 7), 3, width=4, hidden=(8, 8))
    maps, spectra = net.factors()
    assert maps.shape == (3, 9, 7)
    assert spectra.shape == (6, 3)
    wanted = sum(maps[r][None] * spectra[:, r, None, None] for r in range(3))
    torch.testing.assert_close(net(), 2 * wanted[None] - 1)
    assert int(torch.linalg.matrix_rank((net() + 1).double()[0].flatten(1), rtol=1e-5)) == 3


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 7), (1, 9, 31), (16, 48, 48), (5, 64, 4)], ids=str)
def test_any_size(shape) -> None:
    net = low_rank(shape, 1, width=4, hidden=(8,))
    assert net().shape == (1, *shape)
    assert net.shape == shape
    net().square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    for p in net.spatial.parameters():  # type: ignore[union-attr]
        assert p.grad is not None
    assert not any(p.requires_grad for p in net.buffers())


def test_inputs_and_weights_belong_to_the_seed_and_nothing_else_is_drawn() -> None:
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = (low_rank((4, 8, 8), 2, width=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), first)
    assert torch.equal(a(), b())
    assert not torch.allclose(a(), c())
    assert torch.equal(a(), a())  # no input, no memory
    state = {k: v.clone() for k, v in a.state_dict().items()}
    a.train()()
    assert all(torch.equal(v, state[k]) for k, v in a.state_dict().items())
    for noise in (a.place, a.wave):
        assert 0 <= float(noise.min()) < float(noise.max()) <= 1


def test_the_hourglass_without_side_branches_sees_only_the_coarse() -> None:
    """With skips=0 what changes a pixel by ± within a 2 × 2 block cannot pass; with skips it does."""
    z = torch.rand(1, 1, 8, 8)
    fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    torch.manual_seed(0)
    for skips, passes in ((0, False), (2, True)):
        net = Hourglass(1, 2, (4,), 3, skips)
        assert net(z).shape == (1, 2, 8, 8)
        assert torch.allclose(net(z), net(z + fine), atol=1e-5) is not passes


def test_published_sizes() -> None:
    net = Hourglass(1, 1, (16, 32, 64, 128, 128, 128), (7, 7, 5, 5, 3, 3), (0, 0, 4, 4, 4, 4))
    assert net(torch.rand(1, 1, 256, 256)).shape == (1, 1, 256, 256)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: low_rank((4, 8, 8), 5), r"rank=5 must be an integer from 1 to 4"),
        (lambda: low_rank((100, 4, 4), 17), r"from 1 to 16"),
        (lambda: low_rank((4, 8, 8), True), "rank=True"),
        (lambda: low_rank((8, 8), 1), r"shape=\(8, 8\) must be \(bands"),
        (lambda: low_rank((4, 3, 8), 1), "at least 4 × 4"),
        (lambda: low_rank((4, 8, 8), 1, scales=0), "scales=0"),
        (lambda: Hourglass(channels=(4, 4), kernels=(3,)), "one entry for each of the 2"),
        (lambda: Hourglass(kernels=2), "must be odd"),
        (lambda: LowRank(nn.Conv2d(1, 3, 1), nn.Linear(4, 8), 2, (4, 8, 8)), "spatial returned shape"),
        (lambda: LowRank(nn.Conv2d(1, 2, 1), nn.Linear(4, 9), 2, (4, 8, 8)), "spectral returned shape"),
    ],
    ids=[
        "rank over bands",
        "rank over pixels",
        "rank bool",
        "two sizes",
        "small",
        "scales",
        "lengths",
        "even",
        "maps",
        "spectra",
    ],
)
def test_wrong_arguments_are_named(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()
