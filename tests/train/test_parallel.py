"""Several processes, parts of a batch, averages of any width, and the other options of the loop."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from training_parts import make_data, make_model

from unstir import data, train
from unstir._files import read_tensors
from unstir.train import TrainConfig, fit, order, parallel
from unstir.train.batch import drawer, paired
from unstir.train.checkpoint import checkpoints

SCRIPT = """
    import os, sys, torch
    torch.set_num_threads(1)
    sys.path.insert(0, {here!r})
    from training_parts import make_data, make_model
    from unstir.train import TrainConfig, fit
    config = TrainConfig("test", steps={steps}, batch=12, checkpoint_every=4, cond_dropout=0.3, ema_std=(0.1,), snapshots=2,
        strategy={strategy!r}, resume=True, override={override})
    result = fit(make_model(dropout=0.0), make_data(), config, {folder!r})
    result.model(torch.zeros(2, 4), 0.5, class_labels=torch.tensor([0, 1]))  # runs in one process again
    print(result.steps, result.loss, flush=True)
    os._exit(0)  # threads of torch now and then abort while Python is taken down, after all is written
"""


def launch(folder, processes, strategy="ddp", steps=8, override=False):
    """The run in `folder`, started or continued by torchrun."""
    script = textwrap.dedent(
        SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder), strategy=strategy, steps=steps, override=override)
    )
    file = Path(folder).with_suffix(".py")
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def files(folder):
    last = checkpoints(Path(folder))[-1]
    return {f.name: read_tensors(f) for f in sorted(last.glob("*.safetensors"))}


def assert_close(one, two, tolerance=1e-6):
    assert one.keys() == two.keys() == {"model.safetensors", "ema.safetensors", "ema-0.1.safetensors", "optimizer.safetensors"}
    for name, tensors in one.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point():  # not the network's counter of calls: parts of a batch are calls of their own
                torch.testing.assert_close(two[name][key], tensor, atol=tolerance, rtol=tolerance, msg=f"{name}: {key}")


def alone(folder, steps=8, **options):
    config = TrainConfig(
        "test", steps=steps, batch=12, checkpoint_every=4, cond_dropout=0.3, ema_std=(0.1,), snapshots=2, **options
    )
    fit(make_model(dropout=0.0), make_data(), config, folder)
    return files(folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one(tmp_path, strategy):
    """Weights, moments and averages of 2 gloo processes equal those of one with the same batch, to 1e-6."""
    one = alone(tmp_path / "one")
    launch(tmp_path / "two", 2, strategy)
    assert_close(one, files(tmp_path / "two"))
    assert not list((tmp_path / "two").rglob("*.part*"))
    halves = [sorted(f.name for f in (tmp_path / run / "averages").iterdir()) for run in ("one", "two")]
    assert halves[0] == halves[1] == ["000000000048-0.1.safetensors", "000000000096-0.1.safetensors"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_another_strategy(tmp_path):
    whole = alone(tmp_path / "whole", steps=12)
    alone(tmp_path / "run", steps=4)
    launch(tmp_path / "run", 2, "fsdp", steps=8, override=True)
    launch(tmp_path / "run", 3, "ddp", steps=12, override=True)
    # The learning rate is a function of the length of the run, which the parts above disagree on after warm-up only.
    assert_close(whole, files(tmp_path / "run"))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch=10 must be a multiple of the 4 processes"):
        parallel.World(0, 4).part(range(10))
    with pytest.raises(ValueError, match="batch=12 must be a multiple of accumulate=5"):
        TrainConfig("x", batch=12, accumulate=5).check()
    with pytest.raises(ValueError, match="strategy='zero'"):
        parallel.share("zero", nn.Identity(), [], parallel.World(), torch.device("cpu"))


def test_parts_of_a_batch_give_its_gradient(tmp_path):
    assert_close(alone(tmp_path / "whole"), alone(tmp_path / "parts", accumulate=3))


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_change_no_bit(tmp_path, workers):
    one, other = alone(tmp_path / "one"), alone(tmp_path / "other", workers=workers)
    assert all(torch.equal(other[f][k], one[f][k]) for f in one for k in one[f])


def test_processes_draw_the_parts_of_one_batch():
    model, config = make_model(), TrainConfig("x", batch=12, flip=True, pairing="ot")
    objective = config.objective()
    whole = drawer(model, make_data(), objective, config, parallel.World())(24)
    for world in (parallel.World(1, 2), parallel.World(2, 3)):
        part = drawer(model, make_data(), objective, config, world)(24)
        rows = world.part(range(12))
        assert torch.equal(part.x0, whole.x0[rows])
        assert torch.equal(part.noise, whole.noise[rows])
        assert torch.equal(part.t, whole.t[rows])
        assert torch.equal(part.cond["class_labels"], whole.cond["class_labels"][rows])


def test_pairing_is_the_best_of_all_orders():
    from itertools import permutations

    generator = torch.Generator().manual_seed(0)
    x0, z = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    best = min((float((x0 - z[list(p)]).square().sum()), p) for p in permutations(range(5)))[1]
    assert torch.equal(paired(x0, z), z[list(best)])


def test_flips_are_a_function_of_the_image():
    whole = order.flipped(3, range(4000))
    assert torch.equal(whole[1000:], order.flipped(3, range(1000, 4000)))
    assert abs(int(whole.sum()) - 2000) < 4 * 1000**0.5


@pytest.mark.parametrize("std", [0.07, 0.1])
def test_posthoc_average_of_a_run(tmp_path, std):
    """An average that was not tracked, made of the snapshots of two others; against the same run that tracked it."""
    config = {"steps": 512, "batch": 4, "checkpoint_every": 512, "warmup": 0, "lr": 0.01, "schedule": "constant"}
    tracked = TrainConfig("test", ema_std=(0.05, 0.15, std), snapshots=32, workers=0, **config)
    run = fit(make_model(dropout=0.0), make_data(), tracked, tmp_path / "run")
    (goal,) = [f for f in (tmp_path / "run" / "averages").iterdir() if f.name.endswith(f"2048-{std:g}.safetensors")]
    goal = read_tensors(goal)
    for file in (tmp_path / "run" / "averages").glob(f"*-{std:g}.safetensors"):
        file.unlink()
    made = train.posthoc(run.model, tmp_path / "run", std).network.state_dict()
    now = run.model.network.state_dict()
    moved = max(float((now[k].float() - goal[k].float()).abs().max()) for k in goal if goal[k].is_floating_point())
    for name, tensor in goal.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(made[name], tensor.float(), atol=2e-3, rtol=1e-3)
    assert moved > 5e-3  # the averages do differ


def test_posthoc_needs_snapshots(tmp_path):
    with pytest.raises(ValueError, match="no snapshots"):
        train.posthoc(make_model(), tmp_path, 0.1)


def test_the_best_checkpoints_are_kept(tmp_path):
    config = TrainConfig("test", steps=40, batch=12, checkpoint_every=4, keep=1, keep_best=2, lr=0.05, warmup=0)
    fit(make_model(), make_data(), config, tmp_path)
    import json

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = {row["images"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    best = sorted(scores, key=scores.__getitem__)[:2]
    assert {int(c.name) for c in checkpoints(tmp_path)} == {480, *best}


def test_float16_scales_its_loss_and_recovers_from_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr("unstir.train.trainer.FIRST_SCALE", 2.0**30)  # the first scaled gradients overflow
    config = TrainConfig("test", steps=40, batch=12, precision="float16", checkpoint_every=100, warmup=0)
    result = fit(make_model(dropout=0.0), make_data(), config, tmp_path)
    assert 0 < result.skipped < 40
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_loggers_get_the_numbers(tmp_path, monkeypatch):
    rows = []

    class Writer:
        def __init__(self, folder):
            assert folder.endswith("tensorboard")

        def add_scalar(self, key, value, n):
            rows.append((key, value, n))

        def close(self):
            rows.append("closed")

    import types

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    config = TrainConfig("test", steps=10, batch=12, log_to=("tensorboard",))
    fit(make_model(), make_data(), config, tmp_path)
    assert rows[-1] == "closed"
    keys = {row[0] for row in rows[:-1]}
    assert {"loss", "lr", "grad_norm", "validation/0", "validation_loss"} <= keys


def test_missing_logger_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match="pip install wandb"):
        fit(make_model(), make_data(), TrainConfig("test", steps=1, batch=12, log_to=("wandb",)), tmp_path)


@pytest.mark.slow
def test_save_memory_changes_nothing(tmp_path):
    pictures = data.load("digits")
    results = {}
    for name, options in {"plain": {}, "save": {"save_memory": True}}.items():
        model = train.build_model(pictures, preset="tiny")
        config = TrainConfig("digits", steps=2, batch=4, **options)
        results[name] = fit(model, pictures, config, tmp_path / name).model.state_dict()
    for name, tensor in results["plain"].items():
        torch.testing.assert_close(results["save"][name], tensor, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="save_memory is for networks of diffusers"):
        fit(make_model(), make_data(), TrainConfig("x", save_memory=True), tmp_path / "none")
