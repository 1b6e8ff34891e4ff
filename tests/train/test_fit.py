"""The loop: resume is exact, whatever stops it; what it refuses; what it reports."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from training_parts import make_data, make_model

from unstir import process
from unstir._files import read_tensors
from unstir.train import Objective, TrainConfig, ema, fit, order
from unstir.train.checkpoint import checkpoints
from unstir.train.config import learning_rate


def options(tmp_path, **changes):
    base = {"data": "test", "out": tmp_path / "run", "steps": 20, "batch": 12, "checkpoint_every": 100, "cond_dropout": 0.3}
    return TrainConfig(**(base | changes))


def final(folder):
    """Every tensor of the last checkpoint: weights, average and moments."""
    last = checkpoints(Path(folder))[-1]
    return {
        f"{part}/{name}": tensor
        for part in ("model", "ema", "optimizer")
        for name, tensor in read_tensors(last / f"{part}.safetensors").items()
    }


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    assert any(name.endswith("|exp_avg_sq") for name in one)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def stopping_at(step):
    def listener(event):
        if event["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return listener


def test_ten_and_ten_steps_are_twenty_bit_for_bit(tmp_path):
    config = options(tmp_path)
    whole = fit(make_model(), make_data(), config, tmp_path / "whole")
    assert (whole.steps, whole.interrupted) == (20, False)
    # Images 120 … 240 of 50 rows: the stop lies in the middle of an epoch.
    half = fit(make_model(), make_data(), config, progress=stopping_at(10))
    assert (half.steps, half.interrupted) == (10, True)
    torch.rand(7)  # the resumed run must not depend on the global random state
    rest = fit(make_model(predicts="velocity"), make_data(), config, resume=True)
    assert (rest.steps, rest.interrupted) == (20, False)
    assert_same_bits(final(tmp_path / "whole"), final(config.out))
    assert rest.loss == whole.loss
    assert rest.validation == whole.validation


def test_other_seeds_and_other_data_train_otherwise(tmp_path):
    """The bits that the test above compares do depend on what they should."""
    one = fit(make_model(), make_data(), options(tmp_path, steps=2), tmp_path / "a")
    for folder, config, dataset in (
        ("b", options(tmp_path, steps=2, seed=1), make_data()),
        ("c", options(tmp_path, steps=2), make_data(49)),
        ("d", options(tmp_path, steps=2, cond_dropout=0.0), make_data()),
    ):
        other = fit(make_model(), dataset, config, tmp_path / folder)
        assert not torch.equal(one.model.network.layers[0].weight, other.model.network.layers[0].weight), folder


SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    sys.path.insert(0, {here!r})
    from training_parts import make_data, make_model
    from unstir.train import TrainConfig, fit
    config = TrainConfig("test", steps=60, batch=12, checkpoint_every=2, cond_dropout=0.3, resume=True)
    fit(make_model(), make_data(), config, {folder!r}, progress=lambda e: print(e["step"], flush=True))
"""


def run(folder):
    code = textwrap.dedent(SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder)))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_kill_minus_nine_loses_nothing_that_was_saved(tmp_path):
    config = TrainConfig("test", steps=60, batch=12, checkpoint_every=2, cond_dropout=0.3)
    fit(make_model(), make_data(), config, tmp_path / "whole")
    dice = random.Random(time.time_ns())  # every run of the test pulls the plug elsewhere
    for _ in range(3):
        child = run(tmp_path / "killed")
        assert child.stdout is not None
        for _ in range(dice.randint(3, 14)):
            child.stdout.readline()
        time.sleep(dice.random() * 0.02)
        child.kill()
        child.wait()
        child.stdout.close()
    last = run(tmp_path / "killed")
    steps = last.communicate()[0].split()
    assert last.returncode == 0
    assert int(steps[0]) > 1  # it did go on from a checkpoint
    assert_same_bits(final(tmp_path / "whole"), final(tmp_path / "killed"))
    assert not list((tmp_path / "killed").rglob("*.partial"))
    images = [json.loads(line)["images"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert images == sorted(images)


def test_a_half_written_checkpoint_is_never_taken(tmp_path, monkeypatch):
    config = options(tmp_path, steps=6, checkpoint_every=2)
    calls = []

    def failing(path, value):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        Path(path).write_text(json.dumps(value))

    monkeypatch.setattr("unstir.train.checkpoint.write_json", failing)
    with pytest.raises(OSError, match="disk full"):
        fit(make_model(), make_data(), config)
    monkeypatch.undo()
    assert [c.name for c in checkpoints(config.out)] == ["000000000024"]
    fit(make_model(), make_data(), config, resume=True)
    fit(make_model(), make_data(), config, tmp_path / "whole")
    assert_same_bits(final(tmp_path / "whole"), final(config.out))


def test_keep_last(tmp_path):
    config = options(tmp_path, steps=10, checkpoint_every=2, keep=3)
    fit(make_model(), make_data(), config)
    assert [int(c.name) for c in checkpoints(config.out)] == [72, 96, 120]


def test_training_learns(tmp_path):
    config = options(tmp_path, steps=150, batch=64, warmup=10, lr=5e-3)
    before = Objective()
    x0 = make_data().all()
    z, t = order.validation_noise(0, 50, (4,)), Objective().times(make_model(), (torch.arange(50) + 0.5) / 50)
    cond = {"class_labels": make_data().labels}
    start = float(before.loss(make_model().eval(), x0, z, t, cond)[0].detach())
    result = fit(make_model(), make_data(), config)
    end = float(before.loss(result.model, x0, z, t, cond)[0].detach())
    assert end < 0.4 * start
    log = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "step" in row] == list(range(10, 151, 10))
    assert set(result.validation) == {"-4", "-3", "-2", "-1", "0", "1", "2", "3", "4", "5"}


def test_nonfinite_steps_are_skipped_and_counted(tmp_path):
    model = make_model(dropout=0.0)
    clean = model.network.forward
    count = 0

    def sometimes(x, t, class_labels):
        nonlocal count
        count += model.network.training
        return clean(x, t, class_labels) * (float("nan") if model.network.training and count == 3 else 1.0)

    model.network.forward = sometimes
    result = fit(model, make_data(), options(tmp_path, steps=5))
    assert result.skipped == 1
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_a_run_that_never_recovers_gives_up(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.network.layers[0].weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="100 steps in a row"):
        fit(model, make_data(), options(tmp_path, steps=200))
    assert not checkpoints(tmp_path / "run")


def test_a_resume_does_not_renew_the_patience(tmp_path):
    broken = make_model()
    with torch.no_grad():
        broken.network.layers[0].weight.fill_(float("nan"))
    assert fit(broken, make_data(), options(tmp_path, steps=60)).skipped == 60
    with pytest.raises(RuntimeError, match="until image 1200"):  # 60 + 40 steps of 12
        fit(make_model(), make_data(), options(tmp_path, steps=200), resume=True, override=True)


def test_resume_with_other_options_shows_them_and_refuses(tmp_path):
    fit(make_model(), make_data(), options(tmp_path, steps=2))
    other = options(tmp_path, steps=4, lr=1e-4, device="cpu", keep=7)
    with pytest.raises(ValueError, match=r"steps 2 → 4, lr 0.002 → 0.0001; pass override") as caught:
        fit(make_model(), make_data(), other, resume=True)
    assert "keep" not in str(caught.value)
    with pytest.raises(ValueError, match=r"dataset .* → "):
        fit(make_model(), make_data(49), options(tmp_path, steps=2), resume=True)
    assert fit(make_model(), make_data(), other, resume=True, override=True).steps == 4


def test_a_run_is_not_overwritten(tmp_path):
    fit(make_model(), make_data(), options(tmp_path, steps=2))
    with pytest.raises(ValueError, match="already holds a run"):
        fit(make_model(), make_data(), options(tmp_path, steps=2))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: (c / "state.json").write_text("{"), "state.json is not valid JSON"),
        (lambda c: (c / "state.json").write_text('{"version": 9}'), "has version 9"),
        (lambda c: (c / "ema.safetensors").unlink(), "ema.safetensors is missing"),
        (lambda c: (c / "model.safetensors").write_bytes(b"12345678"), "not a valid safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage, words):
    config = options(tmp_path, steps=2)
    fit(make_model(), make_data(), config)
    damage(checkpoints(config.out)[-1])
    with pytest.raises(ValueError, match=words):
        fit(make_model(), make_data(), config, resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"weight": "magic"}, "weight='magic'"),
        ({"cond_dropout": 2.0}, "cond_dropout=2.0"),
    ],
)
def test_bad_options(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        fit(make_model(), make_data(), options(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit_the_model(tmp_path):
    from unstir import data

    with pytest.raises(ValueError, match=r"shape \(5,\); the model was made for \(4,\)"):
        fit(make_model(), data.load(torch.zeros(9, 5)), options(tmp_path))
    with pytest.raises(ValueError, match="2 classes; the model was made for 3"):
        fit(make_model(), data.load(torch.randn(4, 4), labels=[0, 1, 0, 1]), options(tmp_path))
    with pytest.raises(ValueError, match="device='tpu9'"):
        fit(make_model(), make_data(), options(tmp_path, device="tpu9"))
    assert not (tmp_path / "run").exists()


def test_every_epoch_sees_every_row_once_and_a_batch_may_straddle():
    seen = order.rows(7, 3, range(21))
    assert [sorted(seen[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert seen[:7] != seen[7:14]
    assert order.rows(7, 3, range(5, 9)) == seen[5:9]


def test_workers_can_make_their_part_of_a_batch_alone():
    whole = order.noise(1, range(40, 48), (2, 3))
    assert torch.equal(torch.cat([order.noise(1, range(40, 44), (2, 3)), order.noise(1, range(44, 48), (2, 3))]), whole)
    lost = order.dropped(1, range(4000), 0.2)
    assert torch.equal(torch.cat([order.dropped(1, range(1000), 0.2), order.dropped(1, range(1000, 4000), 0.2)]), lost)
    assert abs(int(lost.sum()) - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5
    assert order.dropped(1, range(9), 1.0).all()
    assert not order.dropped(1, range(9), 0.0).any()


def test_learning_rate_is_a_function_of_the_images(tmp_path):
    config = options(tmp_path, steps=100, batch=2, warmup=10, lr=1.0, schedule="cosine")
    rates = [learning_rate(config, 2 * step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[54] == pytest.approx(0.505)
    assert rates[99] == pytest.approx(0.01)
    assert learning_rate(options(tmp_path, schedule="constant", warmup=0), 0) == 2e-3
    assert learning_rate(options(tmp_path, steps=100, batch=2, warmup=0, lr=1.0, schedule="linear"), 98) == pytest.approx(0.505)


def test_averages():
    assert ema.fixed(0.999, 0) == 0.1
    assert ema.fixed(0.999, 10**6) == 0.999
    decay = ema.half_life(10**9, 10, 1000)
    assert decay ** (1000 / 10) == pytest.approx(0.5)
    assert ema.half_life(0, 10, 1000) == 0
    model, average = make_model(), make_model()
    for p in model.parameters():
        p.data += 1
    model.network.calls += 5
    before = average.network.layers[0].weight.clone()
    ema.update(average, model, 0.75)
    torch.testing.assert_close(average.network.layers[0].weight, before + 0.25)
    assert int(average.network.calls) == 5


@pytest.mark.parametrize("predicts", ["data", "noise", "velocity", "flow", "score", "edm"])
@pytest.mark.parametrize("p", [process.VP(), process.Cosine(), process.EDM(), process.Flow()], ids=lambda p: type(p).__name__)
def test_every_kind_trains(tmp_path, predicts, p):
    result = fit(make_model(predicts, p), make_data(), options(tmp_path, steps=2, weight="min-snr", levels="lognormal"))
    assert result.skipped == 0
    assert result.validation


def test_half_life_option_is_used(tmp_path):
    one = fit(make_model(), make_data(), options(tmp_path, steps=4), tmp_path / "a").model
    two = fit(make_model(), make_data(), options(tmp_path, steps=4, ema_half_life=10**6), tmp_path / "b").model
    assert not torch.equal(one.network.layers[0].weight, two.network.layers[0].weight)
