"""Training autoencoders: the balance of the losses, the start of the discriminator, exact resume, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unstir import codecs, data
from unstir._files import read_tensors
from unstir.data import Dataset
from unstir.train import AutoencoderConfig, fit_autoencoder, train_autoencoder
from unstir.train.autoencoder import build_codec
from unstir.train.checkpoint import checkpoints
from unstir.train.patch_gan import PatchDiscriminator, adaptive_weight, hinge
from unstir.train.perceptual import perceptual, pyramid


def pictures(count: int = 40, side: int = 16, channels: int = 1) -> Dataset:
    """Smooth blobs in [−1, 1]."""
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(count, channels, 4, 4, generator=g) * 2 - 1, size=(side, side), mode="bilinear")
    return data.load(x.clamp(-1, 1).numpy(), layout="chw")


def options(folder: Path, **changes: Any) -> AutoencoderConfig:
    base: dict[str, Any] = {
        "data": "test",
        "out": folder,
        "widths": (8, 8),
        "latent": 2,
        "steps": 10,
        "batch": 6,
        "device": "cpu",
    }
    base |= {"gan_layers": 1, "gan_width": 8, "gan_start": 4, "perceptual": "pyramid", "warmup": 2, "log_every": 1}
    return AutoencoderConfig(**(base | changes))


def fit(folder: Path, progress: Any = None, **changes: Any) -> Any:
    config, dataset = options(folder, **changes), pictures()
    return fit_autoencoder(build_codec(config, dataset.shape), dataset, config, progress=progress)


def final(folder: Path) -> dict[str, Tensor]:
    last = checkpoints(folder)[-1]
    return {f"{f.stem}/{name}": v for f in sorted(last.glob("*.safetensors")) for name, v in read_tensors(f).items()}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# -- the parts ------------------------------------------------------------------------------------------------------
def test_discriminator_looks_at_patches_as_published() -> None:
    critic = PatchDiscriminator(3, seed=1).eval()
    x = torch.zeros(1, 3, 96, 96, requires_grad=True)
    logits = critic(x)
    assert logits.shape == (1, 1, 10, 10)  # H/8 − 2
    assert [m.out_channels for m in critic.layers if isinstance(m, nn.Conv2d)] == [64, 128, 256, 512, 1]
    logits[0, 0, 5, 5].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
    first = critic.layers[3]
    assert isinstance(first, nn.BatchNorm2d)
    weights = torch.cat([m.weight.flatten() for m in critic.layers if isinstance(m, nn.Conv2d)])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.01)
    with pytest.raises(ValueError, match="needs at least 24 pixels"):
        critic(torch.zeros(1, 3, 16, 32))
    assert PatchDiscriminator(1, 8, 1)(torch.zeros(1, 1, 6, 6)).shape == (1, 1, 1, 1)


def test_hinge_by_hand() -> None:
    assert float(hinge(torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.5]))) == pytest.approx(0.5 * (0.25 + 0.75))


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    layer = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)

    def losses(scale: float = 1.0, gan: float = 1.0) -> tuple[Tensor, Tensor]:
        return scale * layer.square().sum(), scale * gan * layer.sum()

    weight = adaptive_weight(*losses(), layer)
    assert float(weight) == pytest.approx(0.5 * 10 / (2**0.5 + 1e-4), rel=1e-12)
    assert not weight.requires_grad
    assert float(adaptive_weight(*losses(1e4), layer)) == pytest.approx(float(weight), rel=1e-4)  # both scaled together
    assert float(adaptive_weight(*losses(1.0, 1e-12), layer)) == pytest.approx(0.5 * 1e4)  # the clamp
    assert float(adaptive_weight(*losses(1.0, 1e-12), layer, 2.0)) == pytest.approx(2e4)


def test_pyramid_is_the_distance_of_means_over_2_and_4_pixels() -> None:
    x = torch.zeros(2, 1, 8, 8)
    y = x.clone()
    y[0, 0, 0, 0] = 1.0
    y[1] = 0.5
    torch.testing.assert_close(pyramid(x, y), torch.tensor([(1 / 4) / 16 + (1 / 16) / 4, 1.0]))
    checkers = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert float(pyramid(x[:1], checkers.expand(1, 1, 8, 8)).abs()) == 0  # means see no checkers; pixels do
    assert perceptual("pyramid").name == "pyramid-l1"
    assert torch.equal(perceptual("none").loss(x, y), torch.zeros(2))


def test_perceptual_says_what_it_is_when_weights_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unstir.evaluate.quality.lpips_missing", lambda: "LPIPS needs the weights W, which are not there")
    assert perceptual("auto").name == "pyramid-l1"
    with pytest.raises(ImportError, match="LPIPS needs the weights W"):
        perceptual("lpips")
    with pytest.raises(ValueError, match="one of auto, lpips, pyramid, none"):
        perceptual("vgg")


# -- the loop -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """The stop lies before the discriminator starts, the averages and s are learned, too."""
    changes: dict[str, Any] = {"kind": kind, "codes": 8, "ema": 0.9, "learn_logvar": True}
    whole = fit(tmp_path / "whole", **changes)

    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    half = fit(tmp_path / "half", stop, **changes)
    assert (half.steps, half.interrupted) == (3, True)
    torch.rand(3)
    rest = fit(tmp_path / "half", resume=True, **changes)
    assert (rest.steps, rest.interrupted) == (10, False)
    one, two = final(tmp_path / "whole"), final(tmp_path / "half")
    assert one.keys() == two.keys()
    assert any("critic" in name and "exp_avg_sq" in name for name in one)
    for name in one:
        if name.endswith(("/shift", "/scale")):  # not measured before the end
            assert one[name].isnan().all()
            continue
        assert torch.equal(one[name], two[name]), name
    assert rest.psnr == whole.psnr
    told = [{k: v for k, v in row.items() if k != "seconds"} for row in log(tmp_path / "half") if "loss" in row]
    assert told == [{k: v for k, v in row.items() if k != "seconds"} for row in log(tmp_path / "whole") if "loss" in row]
    other = fit(tmp_path / "seed", **changes, seed=1)
    assert other.psnr != whole.psnr  # the comparison can fail


def test_the_discriminator_sleeps_until_its_step(tmp_path: Path) -> None:
    fit(tmp_path / "a", steps=3)
    critic = {k: v for k, v in final(tmp_path / "a").items() if k.startswith("learned/critic")}
    fresh = PatchDiscriminator(1, 8, 1, 0).state_dict()
    for name, value in fresh.items():
        assert torch.equal(critic[f"learned/critic.{name}"], value), name
    fit(tmp_path / "b", steps=6)
    rows = [row for row in log(tmp_path / "b") if "loss" in row]
    assert ["discriminator" in row for row in rows] == [False] * 3 + [True] * 3
    assert not torch.equal(final(tmp_path / "b")["learned/critic.layers.0.weight"], fresh["layers.0.weight"])
    without = fit(tmp_path / "c", steps=3, gan_weight=0.0)
    with_sleeping = codecs.load(tmp_path / "a")
    assert torch.equal(without.codec.scale, with_sleeping.scale)  # until then it makes no difference at all
    assert not any("critic" in k for k in final(tmp_path / "c"))


def test_the_parts_of_the_loss_add_up(tmp_path: Path) -> None:
    fit(tmp_path, steps=6, code_weight=0.5)
    for row in log(tmp_path):
        if "loss" in row:
            total = row["l1"] + row["perceptual"] + 0.5 * row["code"] + row.get("gan_weight", 0.0) * row.get("gan", 0.0)
            assert row["loss"] == pytest.approx(total, rel=1e-5)
            assert row["perceptual_name"] == "pyramid-l1"


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_it_learns_and_leaves_a_codec_with_unit_latents(kind: str, tmp_path: Path) -> None:
    config = options(tmp_path, kind=kind, steps=60, gan_weight=0.0, codes=32, lr=5e-3)
    dataset = pictures()
    result = fit_autoencoder(build_codec(config, dataset.shape), dataset, config)
    first = next(row for row in log(tmp_path) if "l1" in row)["l1"]
    assert log(tmp_path)[-2]["l1"] < 0.5 * first
    codec = codecs.load(tmp_path)
    z = codec.encode(dataset.all(), noise=torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=0.05, atol=0)
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    again = codec.decode(codec.encode(dataset.all(), sample=False))
    assert -10 * float((again - dataset.all()).square().mean().log10()) + 6 > result.psnr - 3
    assert json.loads((tmp_path / "codec" / "config.json").read_text())["meta"]["training"]["perceptual"] == "pyramid-l1"


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    dataset = pictures()
    for change, message in (
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"kind": "rae"}, "kind='rae' is unknown; one of kl, vq"),
        ({"perceptual": "vgg"}, "perceptual='vgg' is unknown"),
        ({"gan_weight": -1.0}, "gan_weight=-1.0 must be finite"),
        ({"widths": (8, 12)}, "must be multiples of 8"),
        ({"widths": (8,) * 6}, "must be multiples of f = 32: pad to"),
        ({"gan_layers": 3}, "needs at least 24 pixels: take fewer layers"),
    ):
        config = options(tmp_path, **change)
        with pytest.raises(ValueError, match=message):
            fit_autoencoder(build_codec(config, dataset.shape) if message[:5] != "steps" else codecs.KL(), dataset, config)
    bright = data.load((dataset.all() * 0.5 + 0.5).numpy(), layout="chw")
    config = options(tmp_path)
    with pytest.raises(ValueError, match=r"as if in \[0, 1\]; pictures are in \[−1, 1\]: 2x − 1"):
        fit_autoencoder(build_codec(config, dataset.shape), bright, config)
    with pytest.raises(ValueError, match=r"values from .* an autoencoder learns pictures in"):
        fit_autoencoder(build_codec(config, dataset.shape), data.load((dataset.all() * 127).numpy(), layout="chw"), config)
    fit(tmp_path / "run", steps=2)
    with pytest.raises(ValueError, match="already holds a run"):
        fit(tmp_path / "run", steps=2)
    with pytest.raises(ValueError, match=r"started otherwise: lr 0.002 → 0.1"):
        fit(tmp_path / "run", steps=2, lr=0.1, resume=True)


def test_train_autoencoder_on_a_file(tmp_path: Path) -> None:
    config = options(tmp_path / "run", data="digits", steps=4, gan_weight=0.0)
    result = train_autoencoder(config, show=False)
    assert result.steps == 4
    assert codecs.load(tmp_path / "run").pixels == 1
