"""Routers, masks and windows: against loops, identities, and what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unstir.nets import ChannelRouter, MixtureMask, RoutedBlock, TimeRouter
from unstir.nets.routing import LEVELS, rank, routed, top, window


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(mask, seed=5):
    with torch.no_grad():
        for i, weight in enumerate(mask.parameters()):
            weight.copy_(numbers(*weight.shape, seed=seed + i))
    return mask.double()


class Residual(nn.Module):
    """x + γ tanh(W x + c), channels at an axis."""

    def __init__(self, dim, gamma, axis=-1):
        super().__init__()
        self.layer, self.gamma, self.axis = nn.Linear(dim, dim).double(), gamma, axis

    def forward(self, x, c=0.0):
        return x + self.gamma * torch.tanh(self.layer(x.movedim(self.axis, -1)) + c).movedim(-1, self.axis)


@pytest.mark.parametrize(("experts", "k"), [(3, 2), (3, 1), (5, 5), (1, 1)])
def test_gates_are_the_k_largest_probabilities(experts, k):
    router = TimeRouter(6, experts, k, blocks=4).double()
    gates, probs = router(numbers(7, 6))
    assert gates.shape == probs.shape == (7, 4, experts)
    assert torch.allclose(probs.sum(-1), torch.ones(7, 4).double(), rtol=0, atol=1e-14)
    assert bool(((gates != 0).sum(-1) == k).all())
    assert torch.equal(gates.sort(-1).values[..., -k:], probs.sort(-1).values[..., -k:])  # and are not normalised anew
    assert bool((gates[gates != 0] == probs[gates != 0]).all())


def test_every_block_has_gates_of_its_own():
    router, e = TimeRouter(6, 3, 2, blocks=4).double(), numbers(7, 6)
    for block in range(4):
        weight, bias = router.logits.weight[3 * block : 3 * block + 3], router.logits.bias[3 * block : 3 * block + 3]
        assert torch.allclose(router(e).probs[:, block], (nn.functional.silu(e) @ weight.T + bias).softmax(-1))


@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 4), -1), ((6, 4), -1), ((6, 4, 3, 2), 1)], ids=["tokens", "rows", "maps"])
def test_the_merged_mixture_is_the_sum_over_experts(shape, axis):
    """Also its gradients; an expert that nobody uses has the gradient 0."""
    mask, x = filled(MixtureMask(4, 3, axis)), numbers(*shape, seed=1).requires_grad_()
    gates = numbers(6, 3, seed=2).softmax(1) * torch.tensor([1.0, 1.0, 0.0])
    rows = []
    for sample, g in zip(x.movedim(axis, -1), gates, strict=True):
        experts = [g[j] * (sample @ mask.weight[j] + mask.bias[j]) for j in range(3) if g[j] != 0]
        rows.append(1 + sum(experts, torch.zeros(())))
    want, got = torch.stack(rows).movedim(-1, axis), mask(x, gates)
    assert torch.allclose(got, want, rtol=0, atol=1e-13)
    inputs, pull = (x, *mask.parameters()), numbers(*shape, seed=3)
    slopes = [torch.autograd.grad((out * pull).sum(), inputs) for out in (got, want)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*slopes, strict=True))
    assert not slopes[0][1][2].any()


def test_with_closed_branches_a_block_is_the_identity_whatever_the_mask():
    x, gates = numbers(6, 5, 4), numbers(6, 3).softmax(1)
    block = RoutedBlock(Residual(4, gamma=0.0), 4)
    filled(block.mask)
    assert float((block.mask(x, gates) - 1).detach().abs().max()) > 1
    assert torch.allclose(block(x, gates=gates), x, rtol=0, atol=1e-14)


def test_the_mask_is_what_the_branches_see():
    x, m, block = numbers(6, 5, 4), numbers(6, 5, 4, seed=1), Residual(4, gamma=0.7)
    want = x + 0.7 * torch.tanh(block.layer(x * m) + 0.3)
    assert torch.allclose(routed(block, m, x, 0.3), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 4), -1), ((6, 4, 3, 2), 1)], ids=["transformer", "u-net"])
def test_a_fresh_routed_block_is_its_block_bit_for_bit(shape, axis):
    inner, x = Residual(4, 0.7, axis), numbers(*shape)
    block = RoutedBlock(inner, 4, axis=axis).double()
    gates = numbers(6, 3).softmax(1)
    assert torch.equal(block(x, 0.2, gates=gates), inner(x, 0.2))
    assert torch.equal(block(x, c=0.2, gates=gates), inner(x, c=0.2))
    block(x, gates=gates).square().sum().backward()
    assert block.mask.weight.grad.any()  # and it learns


@pytest.mark.parametrize(("units", "on"), [(36, 24), (9, 6), (7, 1), (5, 5)])
def test_windows(units, on):
    w = window(torch.linspace(0, 1, 1000), units, on)
    assert bool((w.sum(1) == on).all())
    assert bool(w[0, :on].all())
    assert bool(w[-1, units - on :].all())
    starts = w.int().argmax(1)
    assert bool((starts.diff() >= 0).all())
    assert int(w.all(0).sum()) == max(0, 2 * on - units)
    assert torch.equal(starts, torch.round(torch.linspace(0, 1, 1000).double() ** 4 * (units - on)).long())


def test_the_shared_expert_of_the_paper():
    """12 blocks of 3 experts, 2 on: 12 of 36 are on at every level, one a block on average."""
    assert int(window(torch.linspace(0, 1, 1000), 36, 24).all(0).sum()) == 12


def test_fixed_channels():
    router = ChannelRouter(10, share=0.8)
    m = router(torch.tensor([-5.0, 1.0, 1000.0, 2000.0]))
    assert m.shape == (4, 1, 10)
    assert m.sum(-1).flatten().tolist() == [8.0] * 4
    assert m[:2, 0, :8].all()
    assert m[2:, 0, 2:].all()
    assert ChannelRouter(100, share=0.29).on == 29  # 0.29 · 100 is 28.999… in binary


@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_rank_is_the_nearest_level(sign):
    levels = sign * torch.arange(5.0)
    assert rank(sign * torch.tensor([-3.0, 0.4, 0.6, 3.0, 9.0]), levels).tolist() == [0, 0, 1, 3, 4]
    assert len(TimeRouter(4).levels) == LEVELS


def test_top():
    assert top(torch.tensor([[0.1, 0.6, 0.3]]), 2).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TimeRouter(4, experts=3, k=0), "k=0 of experts=3"),
        (lambda: TimeRouter(4, experts=2, k=3), "k must be 1 … 2"),
        (lambda: ChannelRouter(4, share=0.0), "share=0.0"),
        (lambda: MixtureMask(4)(torch.zeros(2, 5, 4), torch.zeros(2, 2)), r"gates of shape \(2, 2\).*\(2, 3\) and 4 channels"),
        (lambda: MixtureMask(4)(torch.zeros(2, 4, 5), torch.zeros(2, 3)), "4 channels at axis -1"),
    ],
    ids=["k low", "k high", "share", "gates", "axis"],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
