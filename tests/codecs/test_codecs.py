"""Codecs: exact inverses, the law and its loss, refusals, folders, windows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir import codecs, process
from unstir.codecs import KL, VQ, Codec, Identity, blend, border_weights, tiled

torch.set_num_threads(1)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def small(kind: Any = KL, **options: Any) -> Any:
    return kind(widths=(8, 8, 16), **options).eval()


class Halving(Codec):
    """An exact codec by hand: f = 2, d = 4·pixels; its law has the standard deviation 0.3 everywhere."""

    kind = "halving"

    def __init__(self, pixels: int = 1) -> None:
        super().__init__(pixels, 4 * pixels, 2)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = nn.functional.pixel_unshuffle(x, 2)
        return h, torch.full_like(h, 0.3)

    def reconstruct(self, raw: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(raw, 2)


# -- shift, scale, law ----------------------------------------------------------------------------------------------
def test_identity_is_exact_and_takes_any_range() -> None:
    x = 40 * pictures(2, 3, 5, 7)
    codec = Identity(3)
    assert torch.equal(codec.encode(x), x)
    assert torch.equal(codec.decode(codec.encode(x)), x)


def test_latents_have_mean_0_and_the_standard_deviation_asked_for_in_every_channel() -> None:
    """Also of the draws: the variance is that of the means plus that of the law."""
    codec = Halving().double()
    x = pictures(400, 1, 4, 4, dtype=torch.float64) * torch.tensor([0.1, 1, 0.5, 0.02]).reshape(1, 1, 4, 1)
    codec.fit_stats(x.split(90), std=0.5)
    z = codec.encode(x, noise=torch.randn(400, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert z.mean((0, 2, 3)).abs().max() < 0.03
    torch.testing.assert_close(z.std((0, 2, 3)), torch.full((4,), 0.5, dtype=torch.float64), rtol=0.04, atol=0)
    mean = codec.posterior(x)[0]
    exact = (mean.var((0, 2, 3), correction=0) + 0.09).sqrt()
    torch.testing.assert_close(0.5 / codec.scale, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(codec.shift, mean.mean((0, 2, 3)), rtol=0, atol=1e-7)
    once = Halving().double().fit_stats([x], std=0.5)
    torch.testing.assert_close(once.scale, codec.scale)  # however the pictures are cut into batches


def test_scale_and_shift_are_inverse() -> None:
    codec = Halving()
    codec.shift.copy_(torch.tensor([0.3, -2.0, 1e-3, 5.0]))
    codec.scale.copy_(torch.tensor([0.18, 3.0, 1.0, 0.5]))
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.normalise(codec.raw(z)), z, rtol=1e-6, atol=1e-6)
    x = pictures(2, 1, 6, 4)
    torch.testing.assert_close(codec.decode(codec.encode(x, sample=False)), x, rtol=0, atol=1e-6)


def test_kl_of_the_standard_normal_is_0_and_of_others_is_that_of_torch() -> None:
    zero, one = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    assert torch.equal(codecs.kl(zero, one), torch.zeros(2))
    mean, std = pictures(2, 3, 2, 2), 0.1 + pictures(2, 3, 2, 2, seed=1).abs()
    law = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(law(mean, std), law(zero, one)).flatten(1).sum(1)
    torch.testing.assert_close(codecs.kl(mean, std), expected)


def test_kl_codec_is_diffusers_network() -> None:
    codec, x = small(), pictures(2, 3, 16, 8)
    mean, std = codec.posterior(x)
    law = codec.network.encode(x).latent_dist
    assert torch.equal(mean, law.mean)
    assert torch.equal(std, law.std)
    assert mean.shape == (2, 4, 4, 2)
    assert (codec.factor, codec.channels, codec.pixels) == (4, 4, 3)
    noise = torch.randn(2, 4, 4, 2)
    passed = codec(x, noise)
    torch.testing.assert_close(passed.x, codec.network.decode(mean + std * noise).sample)
    torch.testing.assert_close(passed.code, law.kl().mean())


def test_a_trained_network_of_diffusers_brings_its_scale() -> None:
    from diffusers import AutoencoderKL

    options = {"block_out_channels": (8,), "norm_num_groups": 8, "latent_channels": 2}
    net: Any = AutoencoderKL(**options, scaling_factor=0.5, shift_factor=0.1)
    codec, x = KL(net), pictures(1, 3, 4, 4)
    expected = (net.encode(x).latent_dist.mean - 0.1) * 0.5
    torch.testing.assert_close(codec.encode(x, sample=False), expected)
    each: Any = AutoencoderKL(**options, scaling_factor=2.0, latents_mean=(0.5, 1.0), latents_std=(4.0, 8.0))
    torch.testing.assert_close(KL(each).shift, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(KL(each).scale, torch.tensor([0.5, 0.25]))
    with pytest.raises(TypeError, match="network is Linear; VQ is a codec around VQModel"):
        VQ(nn.Linear(1, 1))


def test_vq_quantises_when_it_decodes_and_passes_gradients_straight_through() -> None:
    codec = small(VQ, codes=16, channels=3)
    codec.network.quantize.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    codec.fit_stats([pictures(4, 3, 16, 16)])
    x = pictures(2, 3, 16, 16)
    h, std = codec.posterior(x)
    assert not std.any()
    e, words = codec.nearest(h), codec.network.quantize.embedding.weight
    by_hand = torch.stack([words[(words - v).square().sum(1).argmin()] for v in h.movedim(1, -1).reshape(-1, 3)])
    assert torch.equal(e.movedim(1, -1).reshape(-1, 3), by_hand)
    decoded = codec.decode(codec.encode(x))
    torch.testing.assert_close(decoded, codec.network.decode(h).sample, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(decoded, codec.network.decode(h, force_not_quantize=True).sample, atol=1e-3)
    passed = codec(x)
    expected = (e - h).square().mean() * (1 + codec.beta)
    torch.testing.assert_close(passed.code, expected)
    (slope,) = torch.autograd.grad(passed.code, words, retain_graph=True)
    codebook = torch.autograd.grad((codec.nearest(h.detach()) - h.detach()).square().mean(), words)[0]
    torch.testing.assert_close(slope, codebook)  # weight 1 on the codebook's side, β on the encoder's
    first = codec.network.encoder.conv_in.weight
    assert torch.autograd.grad(passed.x.sum(), first)[0].abs().max() > 0  # through the choice of codewords


def test_gradients_reach_the_latent_and_a_frozen_codec_stays_in_evaluation_mode() -> None:
    codec = small().fit_stats([pictures(4, 3, 16, 16)]).freeze()
    model = nn.ModuleList([codec]).train()
    assert not any(m.training for m in codec.modules())
    assert model.training
    z = torch.zeros(1, 4, 4, 4, requires_grad=True)
    codec.decode(z).square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0


# -- half precision -------------------------------------------------------------------------------------------------
class Overflowing(Identity):
    """Its decoder squares a number that float16 cannot hold, and is bounded in float32."""

    def reconstruct(self, raw: Tensor) -> Tensor:
        return (raw * 300) ** 2 / 90000


def test_an_overflow_of_half_precision_is_decoded_in_float32() -> None:
    codec = Overflowing(1).half()
    z = torch.ones(1, 1, 2, 2, dtype=torch.float16)
    assert not torch.isfinite(codec.reconstruct(z)).all()
    assert torch.equal(codec.decode(z), torch.ones(1, 1, 2, 2))
    assert codec.scale.dtype == torch.float16  # the codec itself stays as it was
    with pytest.raises(ValueError, match=r"not finite \(dtype torch.float32"):
        Overflowing(1).decode(torch.full((1, 1, 2, 2), 1e30))
    with pytest.raises(ValueError, match="the latents themselves are not"):
        Overflowing(1).decode(torch.full((1, 1, 2, 2), torch.nan))


# -- wrong input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, r"x is torch.uint8; .* x/127.5 − 1"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"pictures are \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 18, 16), ValueError, r"multiples of f = 4: pad to \(20, 16\) or crop to \(16, 16\)"),
        (torch.full((1, 3, 16, 16), 200.0), ValueError, r"values from 200 to 200; pictures lie in \[-1, 1\]"),
        (torch.full((1, 3, 16, 16), torch.nan), ValueError, "values from nan"),
    ],
    ids=["bytes", "channels", "sides", "range", "nan"],
)
def test_wrong_pictures_are_refused(x: Tensor, error: type[Exception], message: str) -> None:
    codec = small().fit_stats([pictures(2, 3, 16, 16)])
    with pytest.raises(error, match=message):
        codec.encode(x)


def test_a_codec_without_scale_refuses() -> None:
    for act in (lambda c: c.encode(pictures(1, 3, 8, 8)), lambda c: c.decode(torch.zeros(1, 4, 2, 2))):
        with pytest.raises(ValueError, match="KL codec has no latent scale: call fit_stats"):
            act(small())
    with pytest.raises(ValueError, match="batches is empty"):
        small().fit_stats([])
    with pytest.raises(ValueError, match=r"latent channels \[0, 1, 2, 3\] are the same everywhere"):
        Flat().fit_stats([torch.zeros(2, 1, 4, 4)])
    with pytest.raises(ValueError, match=r"latents are \(B, 4, h, w\)"):
        small().fit_stats([pictures(2, 3, 16, 16)]).decode(torch.zeros(1, 3, 4, 4))


class Flat(Halving):
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = super().posterior(x)[0]
        return h, torch.zeros_like(h)


# -- folders --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [KL, VQ], ids=["kl", "vq"])
def test_a_folder_gives_back_the_codec(kind: Any, tmp_path: Any) -> None:
    x = pictures(2, 3, 16, 16)
    codec = small(kind).fit_stats([x])
    codecs.save(codec, tmp_path / "codec")
    found = codecs.load(tmp_path / "codec")
    assert found.frozen
    assert torch.equal(found.encode(x, sample=False), codec.encode(x, sample=False))
    assert codecs.fingerprint(found) == codecs.fingerprint(codec)
    assert torch.equal(codecs.load(tmp_path).scale, codec.scale)  # the folder of a run
    found.scale.mul_(2)
    assert codecs.fingerprint(found) != codecs.fingerprint(codec)
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["config.json", "model.safetensors"]


def test_wrong_folders_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no latent scale"):
        codecs.save(small(), tmp_path / "a")
    with pytest.raises(ValueError, match="is missing"):
        codecs.load(tmp_path / "none")
    with pytest.raises(TypeError, match="codec is Halving"):
        codecs.save(Halving(), tmp_path / "a")
    folder = codecs.save(small().fit_stats([pictures(2, 3, 16, 16)]), tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"format": "other"}, "this is no codec folder"),
        ({"kind": "magic"}, "known kinds: identity, kl, vq"),
        ({"options": {"config": {"in_channels": "x"}}}, "kl cannot be built"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            codecs.load(folder)
    other = config | {"options": KL(widths=(16, 16, 16)).options}
    (folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit"):
        codecs.load(folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="will not be replaced"):
        codecs.save(Identity(), tmp_path / "b")


# -- windows --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (8, 4), (12, 4), (10, 2)], ids=str)
def test_what_acts_on_every_pixel_is_the_same_in_windows(size: int, overlap: int) -> None:
    x = pictures(2, 3, 22, 17, dtype=torch.float64)
    torch.testing.assert_close(blend(lambda part, _: part.sin(), x, size, overlap), x.sin())
    up = blend(lambda part, _: nn.functional.interpolate(part, scale_factor=2), x, size, overlap)
    torch.testing.assert_close(up, nn.functional.interpolate(x, scale_factor=2))
    ones = blend(lambda part, _: torch.ones_like(part), x, size, overlap)
    torch.testing.assert_close(ones, torch.ones_like(x))  # the weights normalise to 1


def test_weights_fall_to_the_border_and_no_further_than_the_overlap() -> None:
    w = border_weights(6, 8, 2)
    assert w[0].tolist() == [0.5] * 8
    assert w[2].tolist() == [0.5, 1.5, 2, 2, 2, 2, 1.5, 0.5]
    assert torch.equal(w, w.flip(0).flip(1))


def test_a_blend_is_the_weighted_mean_of_its_windows() -> None:
    """A function that depends on its window: two windows of 8 at 0 and 4 of a row of 12."""
    x = torch.arange(12.0).reshape(1, 1, 1, 12)
    found = blend(lambda part, _: part.mean().expand_as(part), x, 8, 4)
    w = torch.tensor([0.5])  # one row: every pixel is at its border
    assert w == border_weights(1, 8, 4)[0, 3]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([3.5] * 4 + [5.5] * 4 + [7.5] * 4))


def test_tiled_codec_and_denoiser() -> None:
    codec = Halving().fit_stats([pictures(8, 1, 8, 8)])
    x = pictures(2, 1, 24, 20)
    pieces = tiled(codec, 8, 4)
    torch.testing.assert_close(pieces.encode(x, sample=False), codec.encode(x, sample=False))
    torch.testing.assert_close(pieces.decode(codec.encode(x, sample=False)), x, rtol=0, atol=1e-6)
    kl = small().fit_stats([pictures(4, 3, 16, 16)])
    one, picture = tiled(kl, 16, 4), pictures(1, 3, 16, 16)
    assert torch.equal(one.decode(one.encode(picture, sample=False)), kl.decode(kl.encode(picture, sample=False)))

    seen: list[Any] = []

    def network(x: Tensor, t: Tensor, low: Tensor, label: Tensor) -> Tensor:
        seen.append((x.shape[2:], low.shape[2:], label.shape))
        return x + low + label.reshape(-1, 1, 1, 1)

    model = unstir.Denoiser(network, process.VP(), "velocity")
    state, cond = torch.randn(2, 1, 12, 9), {"low": torch.randn(2, 1, 12, 9), "label": torch.ones(2)}
    torch.testing.assert_close(tiled(model, 6, 2)(state, 0.5, **cond), model(state, 0.5, **cond))
    assert seen[0] == ((6, 6), (6, 6), (2,))
    plan = unstir.plan("ddim", process.VP(), nfe=3)
    whole, cut = (unstir.sample(m, plan, x=state, **cond) for m in (model, tiled(model, 6, 2)))
    torch.testing.assert_close(cut, whole)
    assert torch.equal(unstir.sample(tiled(model, 12, 2), plan, x=state, **cond), whole)  # one window


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="need 0 ≤ overlap < size, and both multiples of 2"):
        tiled(Halving(), 9, 4)
    with pytest.raises(ValueError, match="need 0 ≤ overlap < size"):
        tiled(unstir.Denoiser(lambda x, t: x, process.VP()), 8, 8)
