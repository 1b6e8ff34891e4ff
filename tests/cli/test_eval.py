"""`unstir eval`: folders of samples against folders of pictures; names, floors, error bars, classes, copies, the report."""

import json
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")


def write(folder, images, targets):
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        file = folder / str(target) / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """real/ and fake/, 150 digits each, of the same law."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(1797)
    x, y = bunch.images[order], bunch.target[order]
    root = tmp_path_factory.mktemp("eval")
    write(root / "real", x[:150], y[:150])
    write(root / "fake", x[150:300], y[150:300])
    return root


def test_samples_against_pictures(unstir, folders):
    words = f"eval {folders}/fake --reference {folders}/real --metrics fd prdc --features pixel-pca:8 randconv"
    code, out, err = unstir(f"{words} --per-class mmd --errors 4 --out o")
    assert code == 0, err
    found = json.loads(Path("o/eval.json").read_text())
    names = [score["name"] for score in found["scores"]["fake"]]
    assert names[:2] == ["FD[pixel-PCA8]", "Precision@5[pixel-PCA8]"]
    assert "Coverage@5[randconv-seed0]" in names
    assert names[-1] == "NearestTrainRatio[pixel]"
    for score in found["scores"]["fake"]:
        assert {"value", "name", "n_real", "n_fake", "floor", "seed", "error", "notes"} <= set(score)
        assert score["floor"] is not None or score["name"].startswith("FD[randconv")  # needs n > 64
    fd = found["scores"]["fake"][0]
    assert fd["value"] < 4 * fd["floor"]
    assert fd["error"] > 0
    assert set(found["classes"]["fake"]) == set("0123456789")
    assert "FD[pixel-PCA8]" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("wrote")) <= 80
    report = Path("o/report.html").read_text()
    assert "Copies?" in report
    assert report.count("data:image/png") == 2
    assert "Class by class" in report


def test_copies_are_an_alarm(unstir, folders):
    code, _, _ = unstir(f"eval {folders}/real --reference {folders}/real --metrics mmd --errors 0 --out o")
    assert code == 0
    ratio = json.loads(Path("o/eval.json").read_text())["scores"]["real"][-1]
    assert ratio["name"] == "NearestTrainRatio[pixel]"
    assert ratio["value"] == 0  # five sixths of it are the training part itself


def test_pairs_are_compared_row_by_row(unstir, folders):
    words = f"eval {folders}/fake --reference {folders}/real --metrics mmd --errors 0 --paired --out o"
    pytest.importorskip("torchmetrics")
    assert unstir(words)[0] == 0
    psnr = json.loads(Path("o/eval.json").read_text())["scores"]["fake"][-1]
    assert psnr["name"] == "PSNR"
    assert 5 < psnr["value"] < 20
    np.save("three.npy", np.zeros((3, 8, 8), np.uint8))
    code, _, err = unstir(f"eval three.npy --reference {folders}/real --metrics mmd --paired")
    assert code == 2
    assert "there are 3 and 150" in err


def test_a_classifier_is_trained_once_and_kept(unstir, folders, monkeypatch):
    from unstir.cli import eval_scores
    from unstir.evaluate import train_classifier

    monkeypatch.setattr(eval_scores, "train_classifier", lambda d: train_classifier(d, steps=5, width=8))
    words = f"eval {folders}/fake --reference {folders}/real --metrics mmd --errors 0 --out o"
    code, out, _ = unstir(f"{words} --features classifier")
    assert code == 0
    assert "right on held-out pictures" in out
    first = json.loads(Path("o/eval.json").read_text())["scores"]["fake"][0]
    assert first["name"].split("[")[1].startswith("cnn-")
    code, out, _ = unstir(f"{words} --features classifier:o/classifier.safetensors")
    assert "right on held-out" not in out
    assert json.loads(Path("o/eval.json").read_text())["scores"]["fake"][0] == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{0}/fake", "holds samples, not a model; give the real data with --reference"),
        ("{0}/fake --reference {0}/nowhere", "neither an existing path"),
        ("{0}/fake --reference {0}/real --metrics fid", "--metrics 'fid' is unknown; one of fd,"),
        ("{0}/fake --reference {0}/real --per-class x", "--metrics 'x' is unknown"),
        ("{0}/fake --reference {0}/real --features vgg", "features='vgg' is unknown"),
        ("{0}/fake --reference {0}/real --features inception", "never downloads"),
        ("{0}/fake --reference {0}/real --metrics fd-infinity --features pixel", "n ≥ 4d"),
        ("{0}/fake --reference {0}/real --errors 1", "errors=1"),
        ("{0}/fake/3 --reference {0}/real --metrics mmd --per-class mmd", "needs classes"),
        ("{0}/fake --reference {0}/real --train digits --features classifier:x", "x is missing"),
    ],
    ids=["no reference", "gone", "metric", "class metric", "features", "weights", "n < 4d", "errors", "classes", "file"],
)
def test_wrong_input_is_one_line_and_two(unstir, folders, words, message):
    code, _, err = unstir("eval " + words.format(folders))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_few_samples_need_no_further_option() -> None:
    from unstir.cli.eval import Options

    assert Options("digits", n=60).exact_n == 60
    assert Options("digits").exact_n == 64
    assert Options("digits", exact_n=0).exact_n == 0
    with pytest.raises(ValueError, match="--exact-n 70 must lie between 0 and --n 60"):
        Options("digits", n=60, exact_n=70)
