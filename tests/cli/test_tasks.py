"""`unstir restore --task`: every task on the bundled digits, what it writes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unstir
from unstir.cli import main
from unstir.cli.measured import parse_task
from unstir.data.picture import Picture, read_picture, write_picture
from unstir.steer import operators

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A held-out digit, what was measured of it, and a mask."""
    folder = tmp_path_factory.mktemp("digit")
    x = unstir.data.load("digits", split="test").all()[0]

    def keep(name, pixels) -> None:
        write_picture(folder / name, pixels, Picture(pixels, "PNG"))

    keep("digit.png", x)
    keep("small.png", torch.nn.functional.avg_pool2d(x, 2))
    hole = -torch.ones(1, 8, 8)
    hole[:, 2:6, 2:6] = 1
    keep("mask.png", hole)
    keep("colour.png", x.expand(3, 8, 8) * torch.tensor([1.0, 0.5, -0.5])[:, None, None])
    (folder / "truth").mkdir()
    for name in ("digit.png", "small.png"):
        keep(f"truth/{name}", x)
    angles = torch.arange(4, dtype=torch.float64) * (torch.pi / 4)
    np.save(folder / "sinogram.npy", operators.radon(angles, (1, 8, 8)).A(x[None])[0, 0].numpy())
    return folder


def restore(files, out, name, *options) -> int:
    return main(["restore", "digits", str(files / name), "--nfe", "6", "--out", str(out), "--device", "cpu", *options])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digit.png", ["--task", "inpaint", "--mask", "MASK"]),
        ("small.png", ["--task", "sr2"]),
        ("digit.png", ["--task", "deblur:0.7", "--noise", "0.05"]),
        ("digit.png", ["--task", "denoise", "--noise", "0.3", "--method", "ddrm"]),
        ("digit.png", ["--task", "ct:4", "--noise", "0.05"]),
        ("sinogram.npy", ["--task", "ct", "--method", "diffpir"]),
        ("digit.png", ["--task", "mri:2", "--method", "red-diff"]),
        ("colour.png", ["--task", "inpaint", "--mask", "MASK", "--method", "ddnm"]),
    ],
    ids=["inpaint", "sr2", "deblur", "denoise", "ct", "sinogram", "mri", "colour"],
)
def test_every_task_restores(files, tmp_path, name, options) -> None:
    options = [str(files / "mask.png") if o == "MASK" else o for o in options]
    assert restore(files, tmp_path, name, *options) == 0
    record = json.loads((tmp_path / "restore.json").read_text())
    assert record["task"] == options[1]
    target = tmp_path / Path(name).with_suffix(".png").name
    assert read_picture(target).pixels.shape == (3 if name == "colour.png" else 1, 8, 8)
    assert record["results"][0]["residual"] < 0.5
    assert (tmp_path / "report.html").exists()


def test_draws_their_mean_and_spread_and_the_truth(files, tmp_path, capsys) -> None:
    options = ["--task", "inpaint", "--mask", str(files / "mask.png"), "--n", "3", "--reference", str(files / "truth")]
    assert restore(files, tmp_path, "digit.png", *options) == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    draws = [f"digit.sample-{k}.png" for k in (1, 2, 3)]
    assert names == ["digit.png", "digit.png.std.png", *draws, "report.html", "restore.json"]
    one, two, three = (read_picture(tmp_path / name).pixels for name in draws)
    mean, seen = read_picture(tmp_path / "digit.png").pixels, read_picture(files / "mask.png").pixels < 0
    # Pixels were clipped and rounded to 8 bits in the draws and in the mean.
    assert float(((one + two + three) / 3 - mean).abs()[seen].max()) < 0.02
    assert not torch.equal(one, two)
    spread = read_picture(tmp_path / "digit.png.std.png").pixels
    assert spread[~seen].mean() > spread[seen].mean()
    record = json.loads((tmp_path / "restore.json").read_text())
    assert record["metrics"]["PSNR"]["n"] == 1
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("wrote"))
    # A draw is a function of seed and name: the first alone is the same.
    assert restore(files, tmp_path / "alone", "digit.png", *options[:4]) == 0
    torch.testing.assert_close(read_picture(tmp_path / "alone" / "digit.png").pixels, one, rtol=0, atol=0.01)


def test_words_of_tasks() -> None:
    assert (parse_task("sr4").name, parse_task("sr4").number) == ("sr", 4.0)
    assert (parse_task("deblur").number, parse_task("deblur:1.5").number) == (None, 1.5)
    for wrong in ("sr", "sr0", "inpaint:2", "ct:2.5", "blur", "srx"):
        with pytest.raises(ValueError, match=f"--task {wrong}"):
            parse_task(wrong)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit.png", ["--task", "paint"], "--task paint is unknown; one of inpaint, sr2"),
        ("digit.png", ["--task", "inpaint"], "--mask is for --task inpaint, which needs it"),
        ("digit.png", ["--task", "inpaint", "--mask", "SMALL"], "--mask has 4×4 pixels"),
        ("digit.png", ["--task", "denoise"], "needs --noise"),
        ("digit.png", ["--task", "ct", "--method", "pdm"], "--method pdm is unknown; one of daps"),
        ("digit.png", ["--task", "ct", "--noise", "-1"], "--noise -1"),
        ("digit.png", ["--task", "ct", "--noise", "0.1", "--method", "ddnm"], "takes y for exact"),
        ("digit.png", ["--task", "sr2"], "it has 8×8 pixels; for --task sr this model needs 4×4"),
        ("digit.png", ["--task", "sr3"], "3 does not divide the model's size"),
        ("sinogram.npy", ["--task", "sr2"], ".npy files are for ct and mri"),
        ("sinogram.npy", ["--task", "ct:5"], "a sinogram for this model is (5, 8)"),
        ("sinogram.npy", ["--task", "mri"], "k-space for this model is (2, 8, 8)"),
    ],
    ids=["task", "mask", "size", "noise", "method", "negative", "exact", "large", "divide", "npy", "views", "k-space"],
)
def test_wrong_input_is_one_line(files, tmp_path, capsys, name, options, words) -> None:
    options = [str(files / "small.png") if o == "SMALL" else o for o in options]
    assert restore(files, tmp_path, name, *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())
