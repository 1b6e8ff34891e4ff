"""`unstir sample`: classes and guidance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unstir
from unstir.cli import main
from unstir.steer import cfg


def test_a_class_by_either_name_and_guided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--class", "--label"):
        assert (
            main(["sample", "digits", "--nfe", "4", flag, "3", "--n", "3", "--guidance", "2", "--out", str(tmp_path / flag)])
            == 0
        )
    one, two = (np.load(tmp_path / flag / "samples.npy") for flag in ("--class", "--label"))
    assert np.array_equal(one, two)
    model = unstir.load("digits")
    by_hand = unstir.sample(cfg(model, 2.0), nfe=4, shape=3, seed=0, class_labels=torch.full((3,), 3))
    assert torch.from_numpy(one).allclose(by_hand, atol=1e-5)
    assert json.loads((tmp_path / "--class" / "sample.json").read_text())["guidance"] == 2
    assert main(["sample", "digits", "--guidance", "2"]) == 2
    assert "give --label NAME or --labels" in capsys.readouterr().err
