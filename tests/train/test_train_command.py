"""`unstir train` and `python -m unstir.train`, one command: from a name to a model folder, options from files, resuming."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from unstir.cli import COMMANDS, main
from unstir.interop import load_model
from unstir.train import TrainConfig, run_file, train
from unstir.train.__main__ import main as module_main

pytest.importorskip("diffusers")
pytest.importorskip("tyro")
pytest.importorskip("yaml")


def command(*words):
    return main(["train", *map(str, words)])


def pictures(folder, name="x.npy"):
    np.save(folder / name, np.random.default_rng(0).integers(0, 255, (24, 8, 8), np.uint8))
    return folder / name


TINY = ("--batch", 8, "--preset", "tiny", "--device", "cpu", "--warmup", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 4 steps with snapshots of averages, by `python -m unstir.train` and a file; its words."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "c.yaml").write_text(
        "data: digits\nsteps: 9\nbatch: 8\npreset: tiny\nwarmup: 1\nema-std: [0.05, 0.1]\ndevice: cpu\n"
    )
    words = ["unstir.train", "--config", str(folder / "c.yaml"), "--steps", "4", "--checkpoint-every", "2", "--log-every", "1"]
    before, sys.argv = sys.argv, [*words, "--out", str(folder / "run")]
    try:
        assert module_main() == 0
    finally:
        sys.argv = before
    return folder / "run"


def test_from_a_file_to_a_model(finished):
    model = load_model(finished)  # the run's folder leads to its model/
    assert model.meta["training"]["images"] == 32
    assert model.meta["training"]["options"]["preset"] == "tiny"
    with torch.no_grad():
        assert model(torch.randn(2, 1, 8, 8), 0.5).shape == (2, 1, 8, 8)


def test_the_command_line_goes_before_the_file_and_both_into_the_folder(finished):
    kept = run_file.read(finished / "run.yaml")
    assert (kept["steps"], kept["batch"], kept["ema_std"], kept["lr"]) == (4, 8, (0.05, 0.1), 0.002)
    assert set(kept) == set(run_file.documented()) - {"resume", "override"}


def test_resume_alone_goes_on_with_the_options_of_the_run(finished, capsys):
    assert command("--resume", "--out", finished) == 0
    assert "4 steps, 32 images" in capsys.readouterr().out


def test_resume_with_other_options_shows_them_and_asks(finished, capsys):
    before = (finished / "run.yaml").read_text()
    assert command("--resume", "--out", finished, "--lr", "1e-3", "--steps", 6) == 2
    said = capsys.readouterr()
    assert re.search(r"lr +0\.002 +0\.001", said.out)
    assert re.search(r"steps +4 +6", said.out)
    assert "started with other options (steps, lr); --override" in said.err
    assert "\n" not in said.err.strip()
    assert (finished / "run.yaml").read_text() == before
    assert command("--resume", "--out", finished, "--lr", "1e-3", "--steps", 6, "--override", "--ema-std") == 0
    assert "6 steps, 48 images" in capsys.readouterr().out
    assert run_file.read(finished / "run.yaml")["lr"] == 0.001


def test_switches_of_a_file_can_be_turned_back(tmp_path):
    (tmp_path / "c.yaml").write_text(f"data: {pictures(tmp_path)}\nflip: true\nconditional: false\n")
    words = ("--config", tmp_path / "c.yaml", "--no-flip", "--conditional", "--steps", 1, *TINY, "--out", tmp_path / "run")
    assert command(*words, "--no-live") == 0
    kept = run_file.read(tmp_path / "run" / "run.yaml")
    assert (kept["flip"], kept["conditional"]) == (False, True)
    assert not (tmp_path / "run" / "live.html").exists()


def test_every_option_is_in_the_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert command("--help") == 0
    text = capsys.readouterr().out
    for name in run_file.documented():
        assert name == "data" or f"--{name.replace('_', '-')}" in text
    assert max(map(len, text.splitlines())) <= 120


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
        (("digits", "--config", "no.yaml"), "config='no.yaml' is missing"),
        ((), "give either DATA"),
    ],
    ids=["data", "steps", "weight", "size", "device", "config", "nothing"],
)
def test_wrong_input_is_one_line_and_two(words, message, capsys, tmp_path):
    assert command(*words, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_the_terminal_stays_within_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = (pictures(tmp_path, "a-file-with-a-rather-long-name.npy"), "--steps", 3, "--log-every", 1, "--no-live", *TINY)
    assert command(*words, "--out", tmp_path / "run") == 0
    said = capsys.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if not line.startswith("wrote")]
    assert any("3/3" in line and "loss" in line and "/s" in line for line in lines)
    assert max(map(len, lines)) <= 80


# -- unstir ema -----------------------------------------------------------------------------------
def test_an_average_of_another_length_after_the_run(finished, tmp_path, capsys):
    assert "ema" in COMMANDS
    assert main(["ema", str(finished), "--std", "0.05", "0.1", "--out", str(tmp_path / "n"), "--device", "cpu"]) == 0
    assert "mean error" in capsys.readouterr().out
    config = json.loads((tmp_path / "n" / "config.json").read_text())
    assert config["meta"]["ema_std"] in (0.05, 0.1)


def test_no_snapshots_no_average(tmp_path, capsys):
    assert command(pictures(tmp_path), "--steps", 1, *TINY, "--out", tmp_path / "run", "--no-live") == 0
    capsys.readouterr()
    assert main(["ema", str(tmp_path / "run"), "--std", "0.1"]) == 2
    assert "holds no snapshots of averages" in capsys.readouterr().err
