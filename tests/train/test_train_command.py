"""`python -m unstir.train`: from a name to a model folder; wrong input is one line and exit code 2."""

import sys

import numpy as np
import pytest
import torch

from unstir.interop import load_model
from unstir.train import TrainConfig, train
from unstir.train.__main__ import main

pytest.importorskip("diffusers")
pytest.importorskip("tyro")


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["unstir train", *map(str, words)])
    return main()


def test_from_digits_to_a_model(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert command(monkeypatch, "digits", "--out", out, "--steps", 2, "--batch", 8, "--preset", "tiny", "--device", "cpu") == 0
    assert f"wrote {out}/model" in capsys.readouterr().out
    model = load_model(out)  # the run's folder leads to its model/
    assert model.meta["training"]["images"] == 16
    assert model.meta["training"]["options"]["preset"] == "tiny"
    with torch.no_grad():
        assert model(torch.randn(2, 1, 8, 8), 0.5, class_labels=4).shape == (2, 1, 8, 8)


def test_own_pictures_without_classes(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8))
    config = TrainConfig(str(tmp_path / "x.npy"), out=tmp_path / "run", steps=1, batch=4, preset="tiny", device="cpu")
    result = train(config, show=False)
    assert result.model.shape == (3, 8, 8)
    assert "null" not in load_model(tmp_path / "run").meta


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing-here",), "neither an existing path nor a bundled name"),
        (("digits", "--steps", "0"), "steps=0"),
        (("digits", "--weight", "magic"), "weight='magic' is unknown"),
        (("digits", "--size", "9", "--preset", "tiny"), "multiples of 2"),
        (("digits", "--device", "tpu9", "--preset", "tiny"), "device='tpu9' cannot be used"),
    ],
)
def test_wrong_input_is_one_line_and_two(words, message, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, *words, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()
