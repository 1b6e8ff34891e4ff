"""From pictures to a latent model on the command line: codec, training, resume, samples; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unstir
from unstir import codecs
from unstir.cli import main
from unstir.train.checkpoint import checkpoints

pytest.importorskip("tyro")
SMALL = ("--preset", "tiny", "--batch", "4", "--device", "cpu", "--no-live")


def said(capsys: Any) -> Any:
    return capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A run of `unstir autoencoder` on 16 × 16 pictures, beside them."""
    out: Path = tmp_path_factory.mktemp("latents")
    x = torch.rand(24, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    np.savez(out / "pictures.npz", x=(255 * x).byte().numpy(), y=np.arange(24) % 2)
    words = [
        "autoencoder",
        str(out / "pictures.npz"),
        "--out",
        str(out / "codec"),
        "--steps",
        "3",
        "--batch",
        "4",
        "--widths",
        "8",
        "8",
    ]
    assert main([*words, "--latent", "4", "--gan-weight", "0", "--device", "cpu"]) == 0
    return out


def train(folder: Path, out: str, *words: str) -> int:
    return main(["train", str(folder / "pictures.npz"), "--out", str(folder / out), *SMALL, *words])


def test_pictures_codec_model_samples(folder: Path, capsys: Any) -> None:
    assert (folder / "codec" / "reconstructions.png").is_file()
    codec = codecs.load(folder / "codec")
    assert (codec.channels, codec.factor) == (4, 2)
    assert train(folder, "a", "--codec", str(folder / "codec"), "--steps", "3", "--flip") == 0
    model: Any = unstir.load(folder / "a")
    assert model.shape == (4, 8, 8)
    assert model.meta["range"] == [-1, 1]
    assert "latents (4, 8, 8) of" in model.meta["data"]
    assert codecs.fingerprint(model.codec) == codecs.fingerprint(codec)
    kept = [np.load(p) for p in (folder / "a" / "latents").glob("*/mean.npy")]
    assert sorted(v.shape for v in kept) == [(1, 4, 4, 8, 8), (2, 20, 4, 8, 8)]  # pictures to validate; to learn, both ways
    said(capsys)
    out = folder / "samples"
    assert main(["sample", str(folder / "a"), "--n", "3", "--nfe", "2", "--labels", "--device", "cpu", "--out", str(out)]) == 0
    assert np.load(out / "samples.npy").shape == (3, 3, 16, 16)
    words = ("--reference", str(folder / "pictures.npz"), "--n", "20", "--features", "pixel-pca:4", "--nfe", "2")
    assert main(["eval", str(folder / "a"), *words, "--device", "cpu", "--exact-n", "0", "--out", str(folder / "eval")]) == 0


def test_a_run_is_resumed_with_its_own_codec_bit_for_bit(folder: Path) -> None:
    words = ("--steps", "4", "--checkpoint-every", "2", "--keep", "9")
    assert train(folder, "b", "--codec", str(folder / "codec"), *words) == 0
    whole: Any = unstir.load(folder / "b")
    shutil.rmtree(checkpoints(folder / "b")[-1])
    shutil.rmtree(folder / "b" / "model")
    assert main(["train", "--resume", "--out", str(folder / "b"), "--no-live"]) == 0
    rest: Any = unstir.load(folder / "b")
    for one, two in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(one, two)
    assert codecs.fingerprint(rest.codec) == codecs.fingerprint(whole.codec)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--augment", "0.1"), "augment=0.1 moves pictures, which latents are not; use --flip"),
        (("--channels", "1"), "data has 1 channels, the codec's pictures 3; give --channels 3"),
        (("--size", "15"), "must be multiples of f = 2: pad to (16, 16) or crop to (14, 14)"),
    ],
    ids=["augment", "channels", "sides"],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], message: str, folder: Path, capsys: Any) -> None:
    assert train(folder, "c", "--codec", str(folder / "codec"), "--steps", "1", *words) == 2
    assert message in said(capsys).err
    assert not (folder / "c" / "model").exists()


def test_wrong_codecs_are_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(folder, "d", "--codec", str(tmp_path), "--steps", "1") == 2
    assert "config.json is missing" in said(capsys).err
    assert train(folder, "d", "--codec", str(folder / "a" / "model"), "--steps", "1") == 2
    assert "is no codec folder" in said(capsys).err
    assert main(["autoencoder"]) == 2
    assert "give DATA" in said(capsys).err
