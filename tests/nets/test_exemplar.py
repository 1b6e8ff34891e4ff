"""The exemplar-guided network against its formulas, against diffusers' own, and its two paths one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unstir.nets import Exemplar, ExemplarUNet
from unstir.nets.exemplar import ExemplarAttention, GlobalEncoder, _Written

pytest.importorskip("diffusers")
torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> ExemplarUNet:
    torch.manual_seed(0)
    return ExemplarUNet(3, (8, 16), patch=2, tokens=2, width=8, heads=2, encoder_width=16).eval().requires_grad_(False)


X, T, E = numbers(2, 3, 16, 16), torch.tensor([10.0, 700.0]), numbers(2, 3, 16, 16, seed=1)


# -- the attention ------------------------------------------------------------------------------------------------
def attention() -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(1)
    return Attention(8, heads=2, dim_head=4, processor=ExemplarAttention("a", 1)).double().requires_grad_(False)


def test_queries_of_the_state_see_the_keys_of_both() -> None:
    """softmax(QKᵀ/√d)V, head by head; and the published route: attend within [f; f_e], keep the rows of f."""
    f, e, net = numbers(2, 5, 8).double(), numbers(2, 7, 8, seed=1).double(), attention()
    both = torch.cat([f, e], 1)
    q, k, v = (w(s).reshape(2, -1, 2, 4).transpose(1, 2) for w, s in ((net.to_q, f), (net.to_k, both), (net.to_v, both)))
    exact = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 8)
    found = net(f, read={"a": e})
    torch.testing.assert_close(found, net.to_out[0](exact))
    torch.testing.assert_close(found, net(both)[:, :5])
    assert float((found - net(f)).abs().max()) > 1e-3


def test_order_and_repetition_of_exemplar_tokens() -> None:
    f, e, net = numbers(2, 5, 8).double(), numbers(2, 7, 8, seed=1).double(), attention()
    torch.testing.assert_close(net(f, read={"a": e.flip(1)}), net(f, read={"a": e}))
    torch.testing.assert_close(net(f, read={"a": f}), net(f))  # every key twice: the same weights
    torch.testing.assert_close(net(f, read={"a": e[:, :0]}), net(f))  # no tokens: plain self-attention
    torch.testing.assert_close(net(f, read={"a": e[:1]}), net(f, read={"a": e[:1].expand(2, -1, -1)}))


def test_writing_keeps_what_attention_sees_and_stops_at_the_last() -> None:
    f, net, kept = numbers(2, 5, 8).double(), attention(), {}
    with pytest.raises(_Written):
        net(f, write=kept)
    assert kept["a"] is f
    net.processor.of = 2
    torch.testing.assert_close(net(f, write={}), net(f))


# -- the network --------------------------------------------------------------------------------------------------
def test_without_an_exemplar_it_is_diffusers_own_network(network: ExemplarUNet) -> None:
    from diffusers import UNet2DConditionModel

    peer = UNet2DConditionModel.from_config(network.unet.config).eval().requires_grad_(False)
    peer.load_state_dict(network.unet.state_dict())
    seen, tokens = torch.nn.functional.pixel_unshuffle(X, 2), torch.zeros(2, 2, 8)
    wanted = torch.nn.functional.pixel_shuffle(peer(seen, T, tokens).sample, 2)
    torch.testing.assert_close(network(X, T), wanted)
    kept = network.prepare(E).features
    empty = Exemplar(tokens, {name: f[:, :0] for name, f in kept.items()})
    torch.testing.assert_close(network(X, T, empty), wanted)
    assert float((network(X, T, E) - wanted).abs().max()) > 1e-3


def test_features_are_those_of_a_whole_pass_of_the_second_network(network: ExemplarUNet) -> None:
    """One for each self-attention; what its input is, `norm1`, seen from outside."""
    kept = network.prepare(E)
    attentions = {n: m for n, m in network.reader.named_modules() if n.endswith("transformer_blocks.0")}
    assert {f"{n}.attn1.processor" for n in attentions} == set(kept.features)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        m.norm1.register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(f"{n}.attn1.processor", out))
        for n, m in attentions.items()
    ]
    network.reader(torch.nn.functional.pixel_unshuffle(E, 2), 0, kept.tokens)  # plain, and to its end
    for handle in handles:
        handle.remove()
    for name, feature in kept.features.items():
        torch.testing.assert_close(feature, seen[name])
    assert kept.tokens.shape == (2, 2, 8)
    assert {tuple(f.shape) for f in kept.features.values()} == {(2, 16, 16)}


def test_both_paths_reach_the_result_and_only_their_own_sample(network: ExemplarUNet) -> None:
    one, two, other = network.prepare(E), network.prepare(E.flip(0)), network(X, T, E.flip(0))
    plain = network(X, T, one)
    for mixed in (Exemplar(two.tokens, one.features), Exemplar(one.tokens, two.features)):
        assert float((network(X, T, mixed) - plain).abs().max()) > 1e-4
    torch.testing.assert_close(network(X, T, two), other)
    torch.testing.assert_close(network(X[:1], T[:1], E[:1]), plain[:1], atol=1e-5, rtol=1e-4)


def test_one_exemplar_serves_all_and_may_have_its_own_size(network: ExemplarUNet) -> None:
    e = numbers(1, 3, 24, 20, seed=3)
    torch.testing.assert_close(network(X, T, e), network(X, T, e.expand(2, -1, -1, -1)), atol=1e-5, rtol=1e-4)
    assert next(iter(network.prepare(e).features.values())).shape[1] == 6 * 5


def test_every_weight_that_is_trained_has_a_gradient_and_the_others_change_nothing() -> None:
    net = ExemplarUNet(3, (8, 16), patch=2, tokens=2, width=8, heads=2, encoder_width=16)
    out = net(X, T, E)
    out.square().mean().backward()
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert "reader.conv_out.weight" in frozen
    assert all(n.startswith("reader.") for n in frozen)
    with torch.no_grad():
        for name in frozen:
            net.get_parameter(name).fill_(float("nan"))
        torch.testing.assert_close(net(X, T, E), out.detach())


def test_an_encoder_of_ones_own() -> None:
    class Mean(nn.Module):
        def forward(self, e: torch.Tensor) -> torch.Tensor:
            return e.mean((2, 3))

    net = ExemplarUNet(3, (8, 8), patch=2, tokens=1, width=8, heads=1, encoder=Mean(), encoder_width=3)
    assert net.prepare(E).tokens.shape == (2, 1, 8)
    encoder = GlobalEncoder(3, 16, 16, 8, 1).eval()
    assert encoder(numbers(2, 3, 20, 28)).shape == (2, 16)
    assert float((encoder(E) - encoder(E.roll(8, -1))).detach().abs().max()) > 1e-4  # it knows where a patch is


def test_wrong_input_is_named(network: ExemplarUNet) -> None:
    with pytest.raises(ValueError, match=r"exemplar has shape \(2, 1, 16, 16\)"):
        network(X, T, E[:, :1])
    with pytest.raises(ValueError, match="multiples of 4"):
        network(X, T, E[..., :14])
    with pytest.raises(ValueError, match="exemplar is a batch of 3 for a state of 2"):
        network(X, T, numbers(3, 3, 16, 16))
    with pytest.raises(ValueError, match=r"widths=\[8, 12\]"):
        ExemplarUNet(3, (8, 12))
    with pytest.raises(ValueError, match="an entry for each level"):
        ExemplarUNet(3, (8, 16), (True,))
    with pytest.raises(ValueError, match="size=30"):
        GlobalEncoder(size=30)
