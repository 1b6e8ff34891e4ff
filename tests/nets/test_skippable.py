"""Skipping blocks: bit-exact without, the shortcut with, through plans, copies, threads and errors."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

import unstir
from unstir.nets.skippable import block_calls, shortcut, skippable, skippable_blocks, zero
from unstir.process import VP

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """h ← h + f_k(h), three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, t, shift=0.0):
        for f in self.f:
            x = x + f(x)
        return x + shift


@pytest.fixture(scope="module")
def pair():
    """The bundled model as it is, and with blocks that can be skipped."""
    plain, other = unstir.load("digits"), unstir.load("digits")
    skippable(other.network)
    return plain, other


@torch.no_grad()
def test_without_a_skipped_block_nothing_changes(pair):
    plain, model = pair
    assert torch.equal(model(X, 0.5), plain(X, 0.5))
    assert torch.equal(model(X, 0.5, skip=[], class_labels=3), plain(X, 0.5, class_labels=3))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert len(skippable_blocks(model)) == 9
    assert skippable_blocks(plain) == ()


@torch.no_grad()
def test_every_block_alone_and_all_of_them(pair):
    plain, model = pair
    full = plain(X, 0.5)
    for name in skippable_blocks(model):
        out = model(X, 0.5, skip=[name])
        assert out.shape == X.shape
        assert not torch.equal(out, full)
    assert torch.isfinite(model(X, 0.5, skip=skippable_blocks(model))).all()
    assert torch.equal(model(X, 0.5), full)


@torch.no_grad()
def test_a_residual_block_that_adds_nothing_can_be_skipped_without_a_trace():
    """With conv2 = 0 a block is its shortcut: the bypass must give the same, width change and up- and downsampling included."""
    from diffusers.models.resnet import ResnetBlock2D

    for options in ({"out_channels": 16}, {"out_channels": 8, "up": True}, {"down": True, "output_scale_factor": 1.7}):
        block = ResnetBlock2D(in_channels=8, temb_channels=4, groups=4, **options)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        x, temb = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
        assert torch.allclose(shortcut(block, x, temb), block(x, temb), rtol=0, atol=1e-6)


@torch.no_grad()
def test_attention_that_adds_nothing_can_be_skipped_without_a_trace(pair):
    model = copy.deepcopy(pair[0])
    out = model.network.mid_block.attentions[0].to_out[0]
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    want = model(X, 0.5)
    skippable(model.network)
    assert torch.allclose(model(X, 0.5, skip=["mid_block.attentions.0"]), want, rtol=0, atol=1e-5)


def test_a_skipped_block_is_not_computed(pair):
    calls = []
    model = pair[1]
    names = skippable_blocks(model)
    hooks = [model.network.get_submodule(f"{n}.conv1").register_forward_hook(lambda *_: calls.append(1)) for n in names[:6]]
    with torch.no_grad():
        model(X, 0.5, skip=names[:2])
    for hook in hooks:
        hook.remove()
    assert len(calls) == 4


def test_branches_of_a_sum_become_zero():
    network = skippable(Residual(), {f"f.{k}": zero for k in range(3)})
    x = torch.randn(2, 4)
    assert torch.equal(network(x, 0.1, skip=["f.0", "f.1", "f.2"], shift=1.0), x + 1)
    y = x + network.f[0](x)
    assert torch.equal(network(x, 0.1, skip="f.1"), y + network.f[2](y))


@torch.no_grad()
def test_rows_of_a_plan_say_what_is_skipped(pair):
    plain, model = pair
    name = "up_blocks.1.resnets.1"
    plan = unstir.plan("ddim", VP(), nfe=3)
    thinned = plan.map_rows(lambda i, row: replace(row, kwargs={"skip": [name]} if i == 1 else {}))
    x = VP().prior((2, 1, 8, 8), seed=1)
    want = x
    for i, row in enumerate(plan):
        data = model(want, row.t, skip=[name]) if i == 1 else plain(want, row.t)
        want = row.a * want + row.b[0] * data
    assert torch.allclose(unstir.sample(model, thinned, x=x), want, rtol=0, atol=1e-5)
    assert not torch.allclose(unstir.sample(model, plan, x=x), want, rtol=0, atol=1e-3)
    assert block_calls(thinned, skippable_blocks(model)) == 26
    assert block_calls(plan, skippable_blocks(model)) == 27


@torch.no_grad()
def test_copies_have_switches_of_their_own(pair):
    model = pair[1]
    twin = copy.deepcopy(model)
    name = "mid_block.resnets.0"
    nn.init.zeros_(twin.network.get_submodule(name).conv2.weight)
    assert torch.equal(twin(X, 0.5, skip=[name]), model(X, 0.5, skip=[name]))
    assert not torch.equal(twin(X, 0.5), model(X, 0.5))


@torch.no_grad()
def test_threads_do_not_see_each_other(pair):
    model = pair[1]
    names = [[], *([n] for n in skippable_blocks(model))]
    want = [model(X, 0.5, skip=skip) for skip in names]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda skip: model(X, 0.5, skip=skip), names * 3))
    assert all(torch.equal(a, b) for a, b in zip(got, want * 3, strict=True))


@torch.no_grad()
def test_errors_and_interruptions_leave_nothing_behind():
    network = skippable(Residual(), {"f.0": zero, "f.1": zero})
    x = torch.randn(2, 4)
    want = network(x, 0.0)
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5), 0.0, skip=["f.0"])
    assert torch.equal(network(x, 0.0), want)
    with pytest.raises(ValueError, match=r"skip has 'f.2'.*'f\.0'"):
        network(x, 0.0, skip=["f.0", "f.2"])
    assert torch.equal(network(x, 0.0), want)

    def stop(*_):
        raise KeyboardInterrupt

    hook = network.f[2].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        network(x, 0.0, skip=["f.0"])
    hook.remove()
    assert torch.equal(network(x, 0.0), want)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: skippable(lambda x, t: x), TypeError, "network is function"),  # type: ignore[arg-type]
        (lambda: skippable(Residual()), ValueError, "give blocks="),
        (lambda: skippable(Residual(), ["f.3"]), ValueError, r"'f.3'.*did you mean 'f\.\d'"),
        (lambda: skippable(skippable(Residual(), ["f.0"]), ["f.1"]), ValueError, "already"),
    ],
    ids=["function", "nothing found", "name", "twice"],
)
def test_what_cannot_be_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
