"""Latents on disk: nothing is frozen, nothing is mixed up, and they train as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir import codecs, data, process
from unstir.codecs import KL, cache
from unstir.codecs.cached import noise
from unstir.data import Dataset
from unstir.train import TrainConfig, fit

torch.set_num_threads(1)


def pictures(count: int = 10, labels: bool = True) -> Dataset:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return data.load(x.numpy(), layout="chw", labels=np.arange(count) % 3 if labels else "none")


@pytest.fixture(scope="module")
def codec() -> Any:
    return KL(pixels=1, channels=2, widths=(8, 8)).fit_stats([pictures().all()]).freeze()


def test_every_row_is_the_uncached_latent_of_its_picture_and_copy(codec: Any, tmp_path: Path) -> None:
    source = pictures()
    found = cache(source, codec, tmp_path, draws=3, batch=4)
    assert (len(found), found.shape) == (10 * 2 * 3, (2, 4, 4))
    for row in (0, 7, 13, 25, 59):
        x = source.all()[[row % 10]]
        x = x.flip(-1) if row // 10 % 2 else x
        expected = codec.encode(x, noise=noise([row], (2, 4, 4)))
        torch.testing.assert_close(found.batch([row])[0], expected)
        assert found[row][1] == (row % 10) % 3
    assert torch.equal(found.batch([3, 33])[0], found.batch([3, 33])[0])  # a function of the row
    first, second = found.batch([3])[0], found.batch([23])[0]  # two draws of one picture
    assert not torch.equal(first, second)
    # An encoder does not commute with mirroring: latents that are mirrored are not those of mirrored pictures.
    assert not torch.allclose(found.batch([3])[0].flip(-1), found.batch([13])[0], atol=0.1)


def test_draws_have_the_law_of_the_posterior(codec: Any, tmp_path: Path) -> None:
    found = cache(pictures(), codec, tmp_path, flips=False, draws=4000)
    z = found.batch(range(2, len(found), 10))[0]
    mean, std = codec.posterior(pictures().all()[[2]])
    assert (
        float(((z.mean(0) - codec.normalise(mean)[0]) / (std * codec.scale.reshape(1, -1, 1, 1))[0]).abs().max())
        < 5 / 4000**0.5
    )
    torch.testing.assert_close(z.std(0), (std * codec.scale.reshape(1, -1, 1, 1))[0], rtol=0.06, atol=0)


def test_latents_are_encoded_once_and_never_for_another_codec_or_picture(codec: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    cache(pictures(), codec, tmp_path, batch=4, progress=seen.append)
    assert seen == [4, 8, 10]
    cache(pictures(), codec, tmp_path, progress=seen.append)
    assert seen == [4, 8, 10]
    other = KL(pixels=1, channels=2, widths=(8, 8), seed=1).fit_stats([pictures().all()]).freeze()
    rescaled = KL(pixels=1, channels=2, widths=(8, 8)).fit_stats([pictures().all()], std=0.5).freeze()
    changed = data.load(np.concatenate([pictures().all().numpy()[:9], -pictures().all().numpy()[9:]]), layout="chw")
    for source, by, options in (
        (pictures(), other, {}),
        (pictures(), rescaled, {}),
        (changed, codec, {}),
        (pictures(), codec, {"flips": False}),
    ):
        before = len(list(tmp_path.iterdir()))
        cache(source, by, tmp_path, **options)
        assert len(list(tmp_path.iterdir())) == before + 1


def test_memory_is_mapped_and_a_codec_without_law_has_one_draw(tmp_path: Path) -> None:
    vq = codecs.VQ(pixels=1, channels=2, widths=(8, 8), codes=8).fit_stats([pictures().all()]).freeze()
    found = cache(pictures(), vq, tmp_path)
    assert (len(found), found.draws) == (20, 1)
    assert isinstance(np.load(found.folder / "mean.npy", mmap_mode="r"), np.memmap)
    assert sorted(p.name for p in found.folder.iterdir()) == ["cache.json", "mean.npy", "std.npy"]
    assert "latents (2, 4, 4) of array" in found.describe()


def test_a_split_keeps_all_copies_of_a_picture_on_one_side(codec: Any, tmp_path: Path) -> None:
    source = pictures().beside(conditions={"number": torch.arange(10)})
    train, test = cache(source, codec, tmp_path, draws=2).split(3)
    sides = [set(part.conditions(range(len(part)))["number"].tolist()) for part in (train, test)]
    assert (len(train), len(test), len(sides[1])) == (28, 12, 3)
    assert not sides[0] & sides[1]
    with pytest.raises(ValueError, match="between 1 and 9 for 10 pictures"):
        cache(source, codec, tmp_path).split(10)


def test_conditions_that_are_pictures_are_not_mirrored_behind_ones_back(codec: Any, tmp_path: Path) -> None:
    source = pictures().beside(conditions={"low": torch.zeros(10, 1, 4, 4)})
    with pytest.raises(ValueError, match="but not their conditions low; pass flips=False"):
        cache(source, codec, tmp_path)
    found = cache(source, codec, tmp_path, flips=False, draws=2)
    assert found.conditions([3, 17])["low"].shape == (2, 1, 4, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)
        self.label = nn.Embedding(4, 2)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return self.layer(x) + self.label(class_labels)[..., None, None]


def test_latents_train_and_resume_bit_for_bit(codec: Any, tmp_path: Path) -> None:
    def model() -> unstir.Denoiser:
        torch.manual_seed(0)
        meta = {"null": {"class_labels": 3}, "classes": ["0", "1", "2"]}
        return unstir.Denoiser(Net(), process.VP(), "velocity", shape=(2, 4, 4), meta=meta)

    found = cache(pictures(), codec, tmp_path / "latents")
    config = TrainConfig(data="x", steps=12, batch=6, checkpoint_every=6, device="cpu", out=tmp_path / "a", keep=9)
    whole = fit(model(), found, config)
    for last in (tmp_path / "a" / "checkpoints").glob("*72"):
        for file in last.iterdir():
            file.unlink()
        last.rmdir()
    rest = fit(model(), cache(pictures(), codec, tmp_path / "latents"), config, resume=True)
    for one, two in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, two)
