"""The transformer against diffusers' on the same weights; routed ones against the plain one, and against loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unstir import Denoiser
from unstir.interop import load_model, save_model
from unstir.nets import ChannelRoutedDiT, DiT, SwitchDiT
from unstir.nets.dit import places
from unstir.process import Cosine

SMALL = {"width": 16, "depth": 3, "heads": 2, "classes": 4, "waves": 32}
X = torch.randn(5, 2, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TIME = torch.tensor([0.5, 100.0, 400.0, 700.0, 1000.0], dtype=torch.float64)
LABELS = torch.tensor([0, 3, 4, 1, 4])


def made(kind=DiT, seed=0, stirred=True, **options):
    """A network in float64; stirred: no weight is zero any more."""
    torch.manual_seed(seed)
    network = kind(2, **SMALL, **options).double()
    return shaken(network) if stirred else network


def shaken(network, seed=1, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return network


def raw(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def test_is_the_network_that_diffusers_has_under_other_names():
    """With one embedding of time in all blocks, and frequencies that end at n/2 and not before, as first published."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    ours = shaken(DiT(2, out=3, width=16, depth=2, heads=2, classes=4))
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=3, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=4, norm_eps=1e-6,
    ).eval()  # fmt: skip
    own, state = ours.state_dict(), {}

    def put(name, source):
        state[f"{name}.weight"], state[f"{name}.bias"] = own[f"{source}.weight"], own[f"{source}.bias"]

    put("pos_embed.proj", "x_embedder.proj")
    put("proj_out_1", "final_layer.adaLN_modulation.1")
    put("proj_out_2", "final_layer.linear")
    for i in range(2):
        block, source = f"transformer_blocks.{i}", f"blocks.{i}"
        put(f"{block}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        put(f"{block}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        state[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = own["y_embedder.embedding_table.weight"]
        put(f"{block}.norm1.linear", f"{source}.adaLN_modulation.1")
        put(f"{block}.attn1.to_out.0", f"{source}.attn.proj")
        put(f"{block}.ff.net.0.proj", f"{source}.mlp.fc1")
        put(f"{block}.ff.net.2", f"{source}.mlp.fc2")
        for part in ("weight", "bias"):
            for name, value in zip("qkv", own[f"{source}.attn.qkv.{part}"].chunk(3), strict=True):
                state[f"{block}.attn1.to_{name}.{part}"] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["pos_embed.pos_embed"] if "pos_embed.pos_embed" in missing else [], [])
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, time, labels = torch.randn(3, 2, 8, 8), torch.tensor([1, 500, 999]), torch.tensor([0, 3, 4])
    with torch.no_grad():
        want = theirs(x, time, labels).sample
        assert torch.allclose(ours(x, time.float(), labels), want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_as_many_weights_as_published():
    """DiT-XL/2 with learned variances has 675 129 632, of which 256 · 1152 are its fixed places."""
    with torch.device("meta"):
        network = DiT(4, out=8, width=1152, depth=28, heads=16, classes=1000)
    assert sum(p.numel() for p in network.parameters()) == 675_129_632 - 256 * 1152


def test_places_are_columns_then_rows():
    like = torch.zeros((), dtype=torch.float64)
    p = places(2, 3, 8, like).reshape(2, 3, 8)
    assert torch.equal(p[0, :, :4], p[1, :, :4])
    assert torch.equal(p[:, 0, 4:], p[:, 2, 4:])
    assert torch.allclose(p[1, 2], torch.tensor([2, 2e-2, 2, 2e-2, 1, 1e-2, 1, 1e-2]).double().sin().where(
        torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool(), torch.tensor([2, 2e-2, 2, 2e-2, 1, 1e-2, 1, 1e-2]).double().cos()
    ))  # fmt: skip


def test_starts_as_zero_with_identity_blocks():
    network = made(stirred=False)
    assert not network(X, TIME, LABELS).any()
    h, c = torch.randn(5, 8, 16).double(), torch.randn(5, 16).double()
    assert torch.equal(network.blocks[0](h, c), h)


def test_labels_left_out_are_the_null_class():
    network = made()
    none = torch.full((5,), 4)
    assert torch.equal(network(X, TIME), network(X, TIME, none))
    assert not torch.allclose(network(X, TIME), network(X, TIME, LABELS))


@pytest.mark.parametrize("kind", [DiT, SwitchDiT, ChannelRoutedDiT], ids=["dit", "switch", "channels"])
def test_a_sample_does_not_depend_on_its_batch(kind):
    network = made(kind)
    whole = raw(network(X, TIME, LABELS))
    alone = torch.cat([raw(network(X[i : i + 1], TIME[i : i + 1], LABELS[i : i + 1])) for i in range(5)])
    assert torch.allclose(whole, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [DiT, SwitchDiT, ChannelRoutedDiT], ids=["dit", "switch", "channels"])
def test_a_block_treats_all_tokens_alike(kind):
    """Without places, permuting the tokens permutes the result: attention and masks know tokens only by what they hold."""
    network = made(kind)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    h, seen = torch.randn(5, 8, 16).double(), []
    network.tokens = lambda x: h if x is X else h[:, order]
    network.picture = lambda h, c, x: seen.append(h)
    network(X, TIME, LABELS)
    network(X.clone(), TIME, LABELS)
    assert torch.allclose(seen[1], seen[0][:, order], rtol=0, atol=1e-12)


# -- a mixture of experts -----------------------------------------------------------------------------------
def test_without_trained_experts_it_is_the_plain_network_bit_for_bit():
    plain, switch = shaken(made(stirred=False)), made(SwitchDiT, stirred=False)
    missing, unexpected = switch.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith(("router.", "masks.")) for name in missing)
    out, extras = switch(X, TIME, LABELS)
    assert torch.equal(out, plain(X, TIME, LABELS))
    assert sorted(extras) == ["routing", "routing_table"]


def test_the_same_seed_gives_the_same_other_weights():
    plain, switch = made(stirred=False).state_dict(), made(SwitchDiT, stirred=False).state_dict()
    assert all(torch.equal(switch[name], value) for name, value in plain.items())


def test_the_whole_network_written_as_published():
    """x ⊙ m, the two branches, and (1 − m) ⊙ x behind them, expert by expert and sample by sample."""
    network = made(SwitchDiT)
    e = network.t_embedder(TIME)
    c, h = network.condition(e, LABELS), network.tokens(X)
    for i, (block, mask) in enumerate(zip(network.blocks, network.masks, strict=True)):
        logits = nn.functional.silu(e) @ network.router.logits.weight[3 * i : 3 * i + 3].T
        p = (logits + network.router.logits.bias[3 * i : 3 * i + 3]).softmax(1)
        m = torch.ones_like(h)
        for b in range(5):
            for j in p[b].topk(2).indices:
                m[b] += p[b, j] * (h[b] @ mask.weight[j] + mask.bias[j])
        h = block(h * m, c) + (1 - m) * h
    assert torch.allclose(network(X, TIME, LABELS)[0], network.picture(h, c, X), rtol=0, atol=1e-10)


def test_gates_are_a_function_of_the_time_alone():
    network = made(SwitchDiT)
    routes = network.routes(TIME)
    for x, labels in ((X, LABELS), (X.flip(0, 2), None)):
        assert torch.equal(network(x, TIME, labels)[1]["routing"], routes.probs)
    assert torch.equal(network(X, TIME)[1]["routing_table"], network.routes(network.router.levels).probs)
    assert not network(X, TIME)[1]["routing_table"].requires_grad
    assert routes.gates.shape == (5, 3, 3)


def test_fixed_channels_written_out():
    """Half of 16 channels: the first 8 at the cleanest level, the last 8 at the noisiest."""
    network = made(ChannelRoutedDiT, share=0.5)
    time = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    c, h = network.condition(network.t_embedder(time), None), network.tokens(X[:2])
    m = torch.zeros(2, 1, 16).double()
    m[0, :, :8] = m[1, :, 8:] = 1
    for block in network.blocks:
        h = block(h * m, c) + (1 - m) * h
    assert torch.allclose(network(X[:2], time), network.picture(h, c, X[:2]), rtol=0, atol=1e-12)
    assert list(network.state_dict()) == [*list(made().state_dict()), "router.levels"]


@pytest.mark.parametrize("kind", [DiT, SwitchDiT, ChannelRoutedDiT], ids=["dit", "switch", "channels"])
def test_model_folders(kind, tmp_path):
    network = made(kind).float()
    if kind is not DiT:
        network.router.levels.mul_(0.5)
    meta = {"null": {"class_labels": 4}}
    model = Denoiser(network, Cosine(), "velocity", time="thousand", shape=(2, 8, 4), meta=meta).eval()
    again = load_model(save_model(model, tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(again(X.float(), 0.3, class_labels=1), model(X.float(), 0.3, class_labels=torch.ones(5).long()))
    assert type(again.network) is kind
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiT(1, width=48, heads=5), "width=48 must be a multiple of heads=5"),
        (lambda: DiT(1, width=6, heads=2), "and of 4"),
        (lambda: DiT(1, depth=0), "depth=0 must be at least 1"),
        (lambda: DiT(1, waves=5), "waves=5 even"),
        (lambda: made()(X[..., :3], TIME), r"x has shape \(5, 2, 8, 3\).*multiple of patch=2"),
        (lambda: DiT(2, **SMALL | {"classes": 0})(X.float(), TIME.float(), LABELS), "without classes"),
        (lambda: made(SwitchDiT, k=4), "k=4 of experts=3 cannot be chosen; k must be 1 … 3"),
        (lambda: made(ChannelRoutedDiT, share=1.2), "share=1.2 of the channels"),
        (lambda: Denoiser(DiT(2, out=4, **SMALL), Cosine())(X.float(), 0.5), r"returned shape \(5, 4, 8, 4\) for a state of"),
    ],
    ids=["heads", "width", "depth", "waves", "sides", "classes", "k", "share", "learned variance"],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_time_is_heard_at_every_width():
    """A fresh embedding of time varies by about as much in a narrow network as in a wide one."""
    spread = []
    for width in (48, 768):
        torch.manual_seed(0)
        network = DiT(1, width=width, depth=1, heads=2, waves=64)
        spread.append(float(network.t_embedder(torch.linspace(0, 1000, 200)).detach().std(0).mean()))
    assert 0.03 < min(spread) < max(spread) < 0.3
    assert max(spread) / min(spread) < 2
