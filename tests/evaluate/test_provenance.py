"""Pictures that say how they came about."""

import pytest
import torch

pytest.importorskip("PIL")

from unstir import evaluate

META = {"model": "digits", "seed": 7, "prompt": "žluť – 猫", "fingerprint": "ab12", "labels": [1, 2]}


def test_a_picture_says_how_it_came_about(tmp_path):
    sheet = evaluate.grid(torch.zeros(2, 1, 8, 8))
    evaluate.save_png(sheet, tmp_path / "a.png", META)
    evaluate.save_png(sheet, tmp_path / "b.png")
    assert evaluate.read_meta(tmp_path / "a.png") == META
    assert evaluate.read_meta(tmp_path / "b.png") is None


def test_what_is_no_picture_or_no_json_is_refused(tmp_path):
    (tmp_path / "c.png").write_text("hello")
    for name in ("c.png", "missing.png"):
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            evaluate.read_meta(tmp_path / name)
    with pytest.raises(ValueError, match="not JSON compliant"):
        evaluate.save_png(evaluate.grid(torch.zeros(1, 1, 8, 8)), tmp_path / "d.png", {"x": float("nan")})
    assert not (tmp_path / "d.png").exists()
