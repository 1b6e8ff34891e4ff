"""Latent diffusion: seven tasks on tiny networks; schedules, masks, folders; the claims (slow)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unstir
from unstir import codecs, data, steer
from unstir.codecs import KL
from unstir.systems import ldm, reproduce
from unstir.systems._latent import TASKS, known, schedule
from unstir.systems._latent import ldm as build
from unstir.train import Objective, TrainConfig, fit

torch.set_num_threads(1)
COUNT, SIDE = 12, 8
CLIP = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
FACTS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "class": {"classes": "abc"},
    "class, cross": {"classes": "abc", "route": "cross"},
    "text": {"words": ("a", "red", "tram"), "length": 5},
    "text, clip": {"clip": CLIP},
    "layout": {"classes": "abc", "grid": 2, "length": 6},
    "semantic": {"classes": "abc"},
    "super-resolution": {},
    "inpainting": {},
}
NULL_OF = {  # the parameter that only "none" selects, where there is one, and its row
    "class": ("unet.class_embedding.weight", 3),
    "class, cross": ("conditioner.encoders.class_labels.embed.weight", 3),
    "text": ("conditioner.encoders.text.embed.weight", 0),
    "layout": ("conditioner.encoders.layout.embed.weight", 0),
}


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


X = uniform(COUNT, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def codec() -> Any:
    return KL(channels=2, widths=(8, 8)).fit_stats([X]).freeze()


def model_of(name: str, codec: Any) -> Any:
    return build(name.partition(",")[0], codec, SIDE, network={"widths": (8, 16), "width": 16, "heads": 2}, **FACTS[name])


def raw_of(name: str, codec: Any) -> dict[str, Tensor]:
    """A condition for every picture that is never its null."""
    g = torch.Generator().manual_seed(1)
    keep = (torch.rand(COUNT, 1, SIDE, SIDE, generator=g) > 0.5).float()
    return {
        "unconditional": {},
        "class": {"class_labels": torch.arange(COUNT) % 3},
        "text": {"text": torch.randint(2, 5, (COUNT, 5), generator=g)},
        "layout": {"layout": torch.randint(1, 8, (COUNT, 6), generator=g)},
        "semantic": {"map": torch.randint(0, 3, (COUNT, SIDE, SIDE), generator=g)},
        "super-resolution": {"low": torch.nn.functional.avg_pool2d(X, 2)},
        "inpainting": {"known": known(codec, X, keep=keep)},
    }[name.partition(",")[0]]


@pytest.mark.parametrize("name", list(FACTS))
def test_a_task_from_the_first_step_to_the_folder(name: str, codec: Any, tmp_path: Path) -> None:
    model, raw = model_of(name, codec), raw_of(name, codec)
    z = codec.encode(X, sample=False)
    assert model.shape == z.shape[1:] == (2, 4, 4)

    # A fresh network does not see its condition yet (an embedded class it does).
    with torch.no_grad():
        if raw and name != "class":
            assert torch.equal(model(z, 0.5, **raw), model(z, 0.5))

        # Training, with half of the conditions dropped, each on its own.
        before = copy.deepcopy(model.network.state_dict())
    source = data.Dataset(lambda rows: z[list(rows)], COUNT, z.shape[1:], name="latents")
    if name == "class":
        source = data.load(z.numpy(), layout="chw", labels=raw["class_labels"].numpy())
    elif raw:
        source = source.beside(conditions=raw)
    config = TrainConfig(data="x", steps=6, batch=COUNT, warmup=0, lr=5e-3, ema=0.0, device="cpu", workers=0, split="all")
    objective = Objective(cond_dropout=dict.fromkeys(raw, 0.5)) if raw else None
    trained = fit(copy.deepcopy(model), source, config, tmp_path / "run", objective=objective).model
    after = trained.network.state_dict()
    if name in NULL_OF:
        weight, row = NULL_OF[name]
        assert not torch.equal(before[weight][row], after[weight][row])  # the null is trained
        always = fit(copy.deepcopy(model), source, config, tmp_path / "all", objective=Objective(cond_dropout=0.0)).model
        assert torch.equal(before[weight][row], always.network.state_dict()[weight][row])  # and only by being used
    if name == "text, clip":
        frozen = [k for k in after if "text.model" in k]
        assert frozen
        assert all(torch.equal(before[k], after[k]) for k in frozen)

    with torch.no_grad():
        if raw:
            assert not torch.equal(trained(z, 0.5, **raw), trained(z, 0.5))
            at_one = steer.cfg(trained, 1.0)(z, 0.5, **raw)
            assert torch.equal(at_one, trained(z, 0.5, **raw))
            expected = 3 * trained(z, 0.5, **raw) - 2 * trained(z, 0.5)
            torch.testing.assert_close(steer.cfg(trained, 3.0)(z, 0.5, **raw), expected, rtol=1e-4, atol=1e-5)

    # One folder holds the denoiser and the codec.
    trained.codec = codec
    unstir.save(trained, tmp_path / "model")
    found = unstir.load(tmp_path / "model")
    assert codecs.fingerprint(found.codec) == codecs.fingerprint(codec)
    one, two = (unstir.sample(m, nfe=2, shape=COUNT, **raw) for m in (trained, found))
    assert torch.equal(one, two)
    assert found.codec.decode(two).shape == X.shape


def test_every_task_is_tested() -> None:
    assert {name.partition(",")[0] for name in FACTS} == set(TASKS)


def test_schedules_are_linear_in_the_square_root() -> None:
    from diffusers import DDIMScheduler

    for task, (first, last) in ldm.BETAS.items():
        theirs: Any = DDIMScheduler(beta_schedule="scaled_linear", beta_start=first, beta_end=last)
        expected = theirs.alphas_cumprod.double().sqrt()
        n = torch.arange(1, 1001, dtype=torch.float64) / 1000
        torch.testing.assert_close(schedule(task).alpha(n), expected, rtol=2e-5, atol=0)  # theirs is in float32
        exact = (1 - np.linspace(first**0.5, last**0.5, 1000) ** 2).cumprod() ** 0.5
        np.testing.assert_allclose(schedule(task).alpha(n).numpy(), exact, rtol=1e-11)
    assert float(schedule("class").alpha(1.0)) ** 2 == pytest.approx(1.4e-4, rel=0.03)
    assert float(schedule("inpainting").alpha(1.0)) ** 2 == pytest.approx(9.7e-5, rel=0.01)
    assert float(schedule("text").alpha(1.0)) ** 2 == pytest.approx(4.66e-3, rel=0.01)


def test_masks_say_what_they_mean(codec: Any) -> None:
    keep = torch.ones(COUNT, 1, SIDE, SIDE)
    keep[..., :4] = 0
    told = known(codec, X, keep=keep)
    assert told.shape == (COUNT, 3, 4, 4)
    assert torch.equal(told, known(codec, X, fill=1 - keep))
    assert told[:, 2].tolist() == [[[0, 0, 1, 1]] * 4] * COUNT
    changed = torch.where(keep == 1, X, -X)
    assert torch.equal(known(codec, changed, keep=keep), told)  # nothing of what is to be made is seen
    for options in ({}, {"keep": keep, "fill": keep}):
        with pytest.raises(TypeError, match=r"give keep= .* or fill= "):
            known(codec, X, **options)
    with pytest.raises(ValueError, match="values from 0 to 255; it must be 0 and 1"):
        known(codec, X, keep=keep * 255)
    with pytest.raises(ValueError, match=r"must be \(12, 1, 8, 8\)"):
        known(codec, X, keep=keep[:, :, :4])


def test_what_is_kept_is_exact_at_the_end_without_an_inpainting_model(codec: Any) -> None:
    from unstir.steer.operators import mask

    model, z = model_of("unconditional", codec), codec.encode(X, sample=False)
    keep = torch.zeros(1, 4, 4)
    keep[..., 2:] = 1
    operator = mask(keep)
    found = unstir.sample(steer.posterior(model, operator, operator.A(z), method="repaint"), "ddim", nfe=4, shape=COUNT)
    torch.testing.assert_close(found[..., 2:], z[..., 2:])
    assert not torch.allclose(found[..., :2], z[..., :2], atol=0.1)


def test_wrong_input_is_refused(codec: Any) -> None:
    for arguments, message in (
        (("magic", codec, 8), "task='magic' is unknown; one of unconditional, class"),
        (("class", codec, 8), "task='class' needs classes="),
        (("text", codec, 8), "task='text' needs words="),
        (("unconditional", codec, (12, 10)), r"multiples of f · 2\^\(levels − 1\) = 8: pad to \[16, 16\] or crop to \[8, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            build(*arguments)


def test_sampling_from_the_command_line_gives_pictures(codec: Any, tmp_path: Path, capsys: Any) -> None:
    from unstir.cli import main

    unstir.save(model_of("class", codec), tmp_path / "model")
    assert (
        main(["sample", str(tmp_path / "model"), "--n", "4", "--nfe", "2", "--label", "b", "--out", str(tmp_path / "s")]) == 0
    )
    drawn = np.load(tmp_path / "s" / "samples.npy")
    assert drawn.shape == (4, 3, SIDE, SIDE)
    model = unstir.load(tmp_path / "model")
    expected = model.codec.decode(unstir.sample(model, nfe=2, shape=4, class_labels=1))
    torch.testing.assert_close(torch.from_numpy(drawn), expected)
    assert (tmp_path / "s" / "samples.png").is_file()
    capsys.readouterr()


# -- the system -----------------------------------------------------------------------------------------------------
def test_crops_are_of_disjoint_parts_and_features_see_what_they_should() -> None:
    pytest.importorskip("skimage")
    learn, test = ldm.patches(14), ldm.patches(7, test=True)
    assert learn.shape == (14, 3, 32, 32)
    assert float(learn.abs().max()) <= 1
    assert not torch.equal(learn[:7], test)
    found = ldm.features(learn)
    assert found.shape == (14, 102)
    x = uniform(2, 3, 32, 32).double()
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    fine = slice(48 + 9, 48 + 18)  # the Haar details of the first scale
    assert bool((ldm.features(blurred)[:, fine] < 0.6 * ldm.features(x)[:, fine]).all())
    step = torch.arange(32) % 2 * 2.0 - 1  # stripes across: their neighbours there are opposite, the others equal
    striped = ldm.features(step.expand(1, 3, 32, 32))[0, 48:]
    assert striped[:9].tolist() == [1] * 3 + [-1] * 3 + [1] * 3
    assert ldm.distances(learn, learn, {"same": learn})["same"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_the_claims_hold(tmp_path: Path) -> None:
    result = reproduce("ldm", tmp_path)
    assert all(claim.held for claim in result.claims), [c for c in result.claims if not c.held]
    assert json.loads((tmp_path / "ldm" / "result.json").read_text())["held"]
