"""Training on buckets of many shapes: batches, resume, processes, validation, refusals; the command, from folder to sample."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from bucket_parts import make_buckets, make_model
from torch import nn

from unstir import Denoiser, data, process
from unstir._files import read_tensors
from unstir.cli import main
from unstir.interop import load_model
from unstir.train import TrainConfig, build_model, fit, order, parallel, train, validate
from unstir.train.batch import drawer, paired
from unstir.train.checkpoint import checkpoints
from unstir.train.objective import Objective
from unstir.train.validate import check_shapes, objective_error

OPTIONS = {"steps": 12, "batch": 12, "checkpoint_every": 100, "cond_dropout": 0.3, "flip": True}


def files(folder):
    last = checkpoints(Path(folder))[-1]
    return {f"{f.name}/{k}": v for f in sorted(last.glob("*.safetensors")) for k, v in read_tensors(f).items()}


def test_a_batch_has_the_pictures_levels_and_noise_of_its_own_bucket():
    made, config = make_buckets(), TrainConfig("x", batch=12)
    draw = drawer(make_model(), made, config.objective(), config, parallel.World())
    seen = set()
    for k in range(8):
        batch = draw(12 * k)
        bucket, rows = made.rows(0, k, 12)
        part = made.parts[bucket]
        assert torch.equal(batch.x0, part.batch(rows)[0])
        assert batch.noise.shape == batch.x0.shape == (12, *part.shape)
        assert torch.equal(batch.noise, order.noise(0, range(12 * k, 12 * k + 12), part.shape))
        kept = batch.cond["class_labels"] != 2
        assert torch.equal(batch.cond["class_labels"][kept], part.labels[rows][kept])
        seen.add(bucket)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("pairing", ["none", "ot"])
def test_processes_draw_the_parts_of_one_batch(pairing):
    made, config = make_buckets(), TrainConfig("x", batch=12, flip=True, pairing=pairing)
    objective = config.objective()
    for n in (0, 12, 36):
        whole = drawer(make_model(), made, objective, config, parallel.World())(n)
        for rank in range(3):
            world = parallel.World(rank, 3)
            part, own = drawer(make_model(), made, objective, config, world)(n), world.part(range(12))
            for name in ("x0", "noise", "t"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[own]), name
    if pairing == "ot":
        plain = TrainConfig("x", batch=12)
        free, bound = (drawer(make_model(), made, objective, c, parallel.World())(0) for c in (plain, config))
        assert torch.equal(bound.noise, paired(free.x0, free.noise))


def test_resume_is_bitwise_and_workers_and_parts_change_nothing(tmp_path):
    import os
    import signal

    def stop(event):
        if event["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    config = TrainConfig("x", **OPTIONS)
    whole = fit(make_model(), make_buckets(), config, tmp_path / "whole")
    half = fit(make_model(), make_buckets(), config, tmp_path / "run", progress=stop)
    assert (half.steps, half.interrupted) == (5, True)
    rest = fit(make_model(), make_buckets(), TrainConfig("x", workers=0, **OPTIONS), tmp_path / "run", resume=True)
    one, two = files(tmp_path / "whole"), files(tmp_path / "run")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (rest.loss, rest.validation) == (whole.loss, whole.validation)
    fit(make_model(), make_buckets(), TrainConfig("x", accumulate=3, **OPTIONS), tmp_path / "parts")
    for name, tensor in files(tmp_path / "parts").items():
        torch.testing.assert_close(tensor, one[name], atol=1e-6, rtol=1e-6, msg=name)
    with pytest.raises(ValueError, match=r"dataset .* → "):
        fit(make_model(), make_buckets(counts=(12, 6, 10)), config, tmp_path / "run", resume=True)


SCRIPT = """
    import os, sys, torch
    torch.set_num_threads(1)
    sys.path.insert(0, {here!r})
    from bucket_parts import make_buckets, make_model
    from unstir.train import TrainConfig, fit
    fit(make_model(), make_buckets(), TrainConfig("x", **{options!r}), {folder!r})
    os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    options = OPTIONS | {"steps": 4, "pairing": "ot"}
    fit(make_model(), make_buckets(), TrainConfig("x", **options), tmp_path / "one")
    script = tmp_path / "two.py"
    here = str(Path(__file__).parent)
    script.write_text(textwrap.dedent(SCRIPT.format(here=here, options=options, folder=str(tmp_path / "two"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


def test_training_learns_every_bucket(tmp_path):
    made = make_buckets()
    start = [validate(make_model().eval(), part)["0"] for part in made.parts]
    result = fit(
        make_model(), made, TrainConfig("x", **(OPTIONS | {"steps": 80, "warmup": 5, "flip": False, "lr": 1e-2})), tmp_path
    )
    assert all(validate(result.model, part)["0"] < 0.5 * before for part, before in zip(made.parts, start, strict=True))


def test_validation_is_the_mean_over_the_pictures_of_all_buckets():
    """Each bucket's own error, with its share as weight; a data set of one shape in a bucket is that data set."""
    made, model = make_buckets(), make_model().eval()
    single = data.Buckets([made.parts[0]])
    assert validate(model, single) == validate(model, made.parts[0])
    assert objective_error(model, single, Objective()) == objective_error(model, made.parts[0], Objective())

    class Wrong(nn.Module):  # D = x, so e₀ at λ = 0 is about the mean square of (α − 1) x0 + σ z, of other size in every bucket
        def forward(self, x, t, class_labels=None):
            return x * x.shape[-1]

    off = Denoiser(Wrong(), process.VP(), "data", meta={"null": {"class_labels": 2}})
    off.register_parameter("p", nn.Parameter(torch.zeros(1)))
    each = [validate(off, part)["0"] for part in made.parts]
    want = sum(e * len(p) for e, p in zip(each, made.parts, strict=True)) / len(made)
    assert max(each) > 2 * min(each)
    assert validate(off, made)["0"] == pytest.approx(want, rel=0.05)  # other noise in all but the first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: fit(make_model(shape=(1, 5, 5)), make_buckets(), TrainConfig("x"), f), r"samples of shape \(1, 8, 8\)"),
        (lambda f: fit(halving(), make_buckets(), TrainConfig("x"), f), r"cannot take .*\(1, 10, 6\).*multiples of 4"),
        (lambda f: fit(make_model(), make_buckets(), TrainConfig("x", augment=0.1), f), "augment=0.1 needs a network"),
        (lambda f: fit(make_model(), make_buckets(), TrainConfig("x"), f, validation=colour()), r"validation .* \(3, 8, 8\)"),
        (lambda f: TrainConfig("x", buckets=-1).check(), "buckets=-1 must be a whole number"),
        (lambda f: TrainConfig("x", size=32, buckets=64).check(), "buckets=64 is more than a side of the square, size=32"),
        (lambda f: TrainConfig(pairs=("a", "b"), buckets=8).check(), "buckets=8 is for a folder"),
        (lambda f: train(TrainConfig("digits", buckets=8, out=f), show=False), "'digits' is none"),
    ],
    ids=["shape", "sides", "augment", "channels", "negative", "wide", "pairs", "no folder"],
)  # fmt: skip
def test_what_cannot_work_is_named(call, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        call(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def halving():
    """A UNet of three levels, which halves twice."""
    unet = pytest.importorskip("diffusers").UNet2DModel
    options = {
        "block_out_channels": (8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "in_channels": 1,
        "out_channels": 1,
    }
    kinds = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    return Denoiser(unet(**options, **kinds), process.VP(), "noise", shape=(1, 8, 8))


def colour():
    return data.load(torch.zeros(4, 3, 8, 8))


def test_statistics_and_split_are_those_of_all_pictures():
    made = make_buckets()
    values = torch.cat([part.all().flatten() for part in made.parts]).double()
    assert made.std() == pytest.approx(float(values.std()), rel=1e-9)
    assert made.shape == (1, 8, 8)
    assert made.range == (min(p.range[0] for p in made.parts), max(p.range[1] for p in made.parts))
    rest, test = made.split(5)
    assert (len(rest), len(test)) == (len(made) - 5, 5)
    assert [len(p) for p in made.split(5)[1].parts] == [len(p) for p in test.parts]
    for shape in made.shapes:
        rows = [p.all() for half in (rest, test) for p in half.parts if p.shape == shape]
        whole = next(p for p in made.parts if p.shape == shape).all()
        assert sorted(torch.cat(rows).sum((1, 2, 3)).tolist()) == sorted(whole.sum((1, 2, 3)).tolist())
    assert made.fingerprint() == make_buckets().fingerprint() != rest.fingerprint()
    with pytest.raises(ValueError, match="held_out=0"):
        made.split(0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("diffusers")
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i, (height, width) in enumerate([(20, 20), (30, 16), (16, 30), (22, 20), (17, 33), (20, 21), (40, 20), (24, 24)]):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def test_from_a_folder_to_samples_of_a_shape(photographs, tmp_path, capsys):
    out = tmp_path / "run"
    words = [photographs, "--size", 36, "--buckets", 4, "--preset", "tiny", "--steps", 3, "--batch", 4, "--split", "all"]
    assert main(["train", *map(str, words), "--no-live", "--device", "cpu", "--out", str(out)]) == 2
    assert "multiples of 8; load the data with size= (--buckets 8" in capsys.readouterr().err
    words[4] = 8
    words[2] = 24
    assert main(["train", *map(str, words), "--device", "cpu", "--out", str(out)]) == 0
    model = load_model(out)
    assert model.shape == (3, 24, 24)
    assert model.meta["shapes"][0] == [3, 24, 24]
    assert len(model.meta["shapes"]) >= 3
    assert "buckets" in model.meta["data"]
    sample = ["sample", str(out), "--n", "3", "--nfe", "2", "--device", "cpu", "--out", str(tmp_path / "s")]
    assert main(sample) == 0
    assert np.load(tmp_path / "s" / "samples.npy").shape == (3, 3, 24, 24)
    assert main([*sample, "--size", "16", "32", "--label", "a"]) == 0
    assert np.load(tmp_path / "s" / "samples.npy").shape == (3, 3, 16, 32)
    capsys.readouterr()
    assert main([*sample, "--size", "16", "30"]) == 2
    said = capsys.readouterr().err.strip()
    assert "(3, 16, 30)" in said
    assert "multiples of 4" in said
    assert "\n" not in said


def test_a_model_for_buckets_has_the_spread_of_all_and_the_classes(photographs):
    made = data.load_buckets(photographs, side=24, step=8)
    model = build_model(made, preset="dit-tiny")
    assert model.prediction.sigma_data == pytest.approx(made.std())
    assert model.meta["classes"] == ["a", "b"]
    check_shapes(model, made)  # a transformer whose patches divide all sides
    odd = data.Buckets([data.load(torch.rand(2, 3, *sides), labels=[0, 1]) for sides in ((8, 8), (6, 9))])
    with pytest.raises(ValueError, match=r"\(3, 6, 9\).*multiple of patch=2"):
        check_shapes(build_model(odd, preset="dit-tiny"), odd)
