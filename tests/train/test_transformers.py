"""Ready transformers: shapes, sizes, and from the command to a folder that loads, with the routing prior at work."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import unstir
from unstir.nets import DiT, SwitchDiT
from unstir.train import TrainConfig, build_network, train
from unstir.train.networks import TRANSFORMERS


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((1, 8, 8), 2), ((3, 32, 32), 2), ((3, 16, 24), 2), ((1, 28, 28), 2), ((3, 64, 64), 4), ((4, 64, 96), 8), ((1, 2, 6), 2)],
    ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else str(v),
)
def test_patches_for_at_most_256_tokens(shape, patch):
    network = build_network(shape, preset="dit-tiny")
    assert network.patch == patch
    with torch.no_grad():
        assert network(torch.randn(2, *shape), torch.tensor([1.0, 500.0])).shape == (2, *shape)


def test_sizes():
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in build_network((4, 32, 32), 1000, name).parameters()) for name in TRANSFORMERS}
    assert [round(sizes[f"dit-{size}"] / 1e6) for size in ("small", "base", "large")] == [33, 130, 458]  # as published
    for size in ("tiny", "small", "base", "large"):
        width, depth, _, _ = TRANSFORMERS[f"dit-{size}"]
        assert sizes[f"switch-dit-{size}"] - sizes[f"dit-{size}"] == depth * 3 * (width**2 + width + width + 1)


def test_kinds_seeds_classes_and_anchors():
    plain, same, other = (build_network((1, 8, 8), 10, "switch-dit-tiny", seed) for seed in (0, 0, 1))
    assert type(build_network((1, 8, 8), preset="dit-tiny")) is DiT
    assert type(plain) is SwitchDiT
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(plain.x_embedder.proj.weight, other.x_embedder.proj.weight)
    assert plain.y_embedder.embedding_table.num_embeddings == 11
    anchored = build_network((1, 8, 8), preset="dit-tiny", beside=1)
    assert anchored(torch.randn(2, 2, 8, 8), torch.tensor([1.0, 2.0])).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("shape", "step"), [((1, 9, 8), 2), ((1, 62, 62), 4)], ids=["odd", "patch 4"])
def test_sides_that_patches_do_not_fill(shape, step):
    with pytest.raises(ValueError, match=rf"multiples of {step}; load the data with size="):
        build_network(shape, preset="dit-tiny")


@pytest.fixture
def pictures(tmp_path):
    """24 pictures of 4 × 4 in three classes, as a file."""
    x = np.random.default_rng(0).integers(0, 255, (24, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(24) % 3)
    return str(tmp_path / "x.npz")


def test_from_options_to_a_model_that_loads(tmp_path, pictures):
    out, options = tmp_path / "run", {"steps": 3, "batch": 8, "log_every": 1, "levels": "logitnormal", "device": "cpu"}
    train(TrainConfig(pictures, out=out, preset="switch-dit-tiny", **options), show=False)
    model = unstir.load(out)
    assert type(model.network) is SwitchDiT
    u = (torch.arange(256).double() + 0.5) / 256
    assert torch.allclose(model.network.router.levels.double(), 1000 * torch.sigmoid(torch.special.ndtri(u)), atol=1e-2)
    with torch.no_grad():
        assert model(torch.randn(2, 1, 4, 4), 0.5, class_labels=2).shape == (2, 1, 4, 4)
    steps = [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "parts" in line]
    assert len(steps) == 3
    assert all(0 < line["parts"]["routing"] < 0.6932 for line in steps)
    assert all(line["loss"] == pytest.approx(sum(line["parts"].values()), rel=1e-5) for line in steps)


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(tmp_path, pictures):
    def run(folder, steps, **more):
        options = {"batch": 8, "preset": "switch-dit-tiny", "device": "cpu", "schedule": "constant", "workers": 0}
        return train(TrainConfig(pictures, out=tmp_path / folder, steps=steps, **options, **more), show=False).model

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume=True, override=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
