"""Training on pairs: targets in every frame, exact resume, and a folder that comes back anchored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import unstir
from unstir import process as pr
from unstir.data import Dataset, Pairs
from unstir.denoiser import PREDICTIONS, Prediction
from unstir.train import TrainConfig, build_model, fit
from unstir.train.objective import residual

F64 = torch.float64
PROCESSES = [pr.MeanReverting(), pr.ResShift(), pr.RDDM(), pr.BrownianBridge(), pr.OUVE()]


def given(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frame", pr.FRAMES)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_perfect_network_has_no_loss_and_returns_the_data(predicts: str, frame: str) -> None:
    """raw = (P state + Q data)/R at the true data, in the frame of the network."""
    x0, y, z = given(0, 3, 6, 4)
    t = torch.linspace(0.1, 0.95, 6, dtype=F64)
    for p in PROCESSES:
        x = p.stir(x0, t, z, y)
        state = {"centred": x - p.beta(t)[:, None] * y, "residual": x - y, "raw": x}[frame]
        data = x0 - y if frame == "residual" else x0
        big_p, big_q, big_r = (v[:, None] for v in Prediction(predicts, 0.5).line(p.alpha(t), p.sigma(t)))
        raw = (big_p * state + big_q * data) / big_r
        seen = []

        def network(s, time, anchor, raw=raw, seen=seen):
            seen.append((s, anchor))
            return raw

        if frame == "raw" and predicts in ("noise", "score"):
            with pytest.raises(ValueError, match="frame='centred' or 'residual'"):
                unstir.Denoiser(network, p, predicts, sees_anchor=True, frame=frame)
            continue
        model = unstir.Denoiser(network, p, predicts, sees_anchor=True, frame=frame)
        square, n = residual(model, x0, z, t, anchor=y)
        assert float(square.max()) < 1e-9
        assert float((model(x, t, anchor=y) - x0).abs().max()) < 1e-9
        scale = Prediction(predicts, 0.5).input_scale(p.alpha(t), p.sigma(t))
        torch.testing.assert_close(seen[0][0], state if scale is None else scale[:, None] * state)
        assert seen[0][1] is y
        assert n.shape == (6,)


def test_the_anchor_is_a_keyword_or_further_channels() -> None:
    """A network that has no `anchor` in its signature gets it behind the state, unscaled."""
    p, x, y = pr.ResShift(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    widths = []

    def plain(s, t):
        widths.append(s.shape[1])
        return s[:, 3:]

    model = unstir.Denoiser(plain, p, "data", sees_anchor=True)
    assert torch.equal(model(x, 0.5, anchor=y), y)
    assert widths == [6]
    with pytest.raises(ValueError, match="pass anchor="):
        model(x, 0.5)
    assert torch.equal(unstir.Denoiser(lambda s, t, **cond: cond["anchor"], p, "data", sees_anchor=True)(x, 0.5, anchor=y), y)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net: unstir.Denoiser(net, pr.VP(), frame="residual"), "frame='residual'"),
        (lambda net: unstir.Denoiser(net, pr.OUVE(), "noise"), "predicts='noise' on an anchored process"),
        (lambda net: unstir.Denoiser(net, pr.OUVE(), "data", sees_anchor=True, frame="own"), "frame='own'"),
    ],
    ids=["no anchor", "does not see it", "unknown"],
)
def test_frames_that_cannot_be_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(lambda x, t: x)


# -- the loop ---------------------------------------------------------------------------------------------------
class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 4))

    def forward(self, x, time, anchor):
        return self.layers(torch.cat([x, anchor, time[:, None] / 1000], 1))


def numbers(n: int = 64) -> Pairs:
    """x0 = ½ y + 0.1 z: a restorer can know a lot."""
    y = given(1, n, 4).float()
    x = 0.5 * y + 0.1 * given(2, n, 4).float()
    return Pairs(lambda rows: x[list(rows)], lambda rows: y[list(rows)], n, (4,), name="numbers")


def restorer(process: pr.Process | None = None) -> unstir.Denoiser:
    return build_model(numbers(), process=process or pr.RDDM(), network=Small())


def config(out: Path, **changes) -> TrainConfig:
    options = {"data": "numbers", "out": out, "split": "all", "steps": 40, "batch": 16, "checkpoint_every": 10, "device": "cpu"}
    return TrainConfig(**{**options, "ema": 0.9, "warmup": 0, "lr": 2e-2, **changes})


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_it_learns_on_every_process(tmp_path: Path, process: pr.Process) -> None:
    data = numbers()
    model = restorer(process)
    assert (model.frame, model.sees_anchor) == ("residual", True)
    assert model.prediction.sigma_data == pytest.approx(
        float((data.all() - data.anchors(range(64))).square().mean().sqrt()), rel=1e-4
    )
    result = fit(model, data, config(tmp_path / "run", steps=400, checkpoint_every=400))
    x, y = data.all(), data.anchors(range(64))
    found = unstir.sample(result.model, nfe=10, anchor=y, seed=0)
    assert float((found - x).square().mean()) < 0.25 * float((y - x).square().mean())


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = fit(restorer(), numbers(), config(tmp_path / "whole"))
    fit(restorer(), numbers(), config(tmp_path / "parts", steps=20, schedule="constant"))
    again = [fit(restorer(), numbers(), config(tmp_path / f"run{i}", steps=40, schedule="constant")) for i in (0, 1)]
    first, second = (list(r.model.parameters()) for r in again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    resumed = fit(restorer(), numbers(), config(tmp_path / "parts", schedule="constant"), resume=True, override=True)
    assert all(torch.equal(a, b) for a, b in zip(first, resumed.model.parameters(), strict=True))
    assert whole.images == resumed.images == 640


def test_data_and_process_must_fit(tmp_path: Path) -> None:
    plain = Dataset(lambda rows: torch.zeros(len(rows), 4), 8, (4,))
    with pytest.raises(ValueError, match="learns from pairs"):
        build_model(plain, process="resshift", network=Small())
    with pytest.raises(ValueError, match="pairs need an anchored process"):
        build_model(numbers(), process="vp", network=Small())
    with pytest.raises(ValueError, match="learns from pairs"):
        fit(restorer(), plain, config(tmp_path))
    for changes, words in (
        ({"pairs": ("a", "b")}, "either DATA"),
        ({"data": ""}, "either DATA"),
        ({"data": "", "pairs": ("a", "b"), "pairing": "ot"}, "pairing='ot'"),
    ):
        with pytest.raises(ValueError, match=words):
            config(tmp_path, **changes).check()


def test_a_model_folder_comes_back_anchored(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    x = given(3, 12, 1, 8, 8).float()
    data = Pairs(lambda rows: x[list(rows)], lambda rows: x[list(rows)] + 0.3, 12, (1, 8, 8), name="pictures")
    model = build_model(data, process="bridge", preset="tiny")
    assert model.network.config.in_channels == 2
    result = fit(model, data, config(tmp_path / "run", steps=1, batch=4, checkpoint_every=1))
    unstir.save(result.model, tmp_path / "model")
    again = unstir.load(tmp_path / "model")
    assert (again.frame, again.sees_anchor, again.process) == ("residual", True, pr.BrownianBridge())
    y = data.anchors(range(3))
    plan = unstir.plan("dpmpp-2m", again, nfe=3)
    assert torch.equal(unstir.sample(again, plan, anchor=y), unstir.sample(result.model.eval(), plan, anchor=y))


def test_the_command_trains_on_folders(tmp_path: Path, capsys) -> None:
    """`unstir train --pairs LQ GT --process …`: the folder it writes restores, and what was skipped is said."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("diffusers")
    from unstir.cli import main

    for n in range(5):
        for side, shift in (("gt", 0), ("lq", 20)):
            (tmp_path / side).mkdir(exist_ok=True)
            image.new("L", (8, 8), 40 * n + shift).save(tmp_path / side / f"{n}.png")
    (tmp_path / "lq" / "4.png").unlink()
    base = ["train", "--pairs", str(tmp_path / "lq"), str(tmp_path / "gt"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*base, "--process", "mean-reverting", "--steps", "2", "--batch", "2", "--preset", "tiny"]) == 0
    assert "1 skipped" in capsys.readouterr().out
    model = unstir.load(tmp_path / "run")
    assert unstir.sample(model, nfe=2, anchor=torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    assert main([*base[:-4], "--out", str(tmp_path / "other")]) == 2
    assert "pairs need an anchored process" in capsys.readouterr().err
