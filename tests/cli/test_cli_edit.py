"""`unstir edit` from end to end: files, what they hold, and one line for everything that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unstir import data


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    three = data.load("digits").all()[3]
    pixels = ((three[0] + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(folder / "three.png")
    np.save(folder / "three.npy", three[None].numpy())
    np.save(folder / "bytes.npy", pixels[None])
    np.save(folder / "wide.npy", np.zeros((2, 1, 12, 12), np.float32))
    np.save(folder / "loud.npy", np.full((2, 1, 8, 8), 9.0, np.float32))
    lower = np.zeros((8, 8), np.uint8)
    lower[4:] = 255
    Image.fromarray(lower).save(folder / "lower.png")
    Image.fromarray(0 * lower).save(folder / "black.png")
    Image.fromarray(0 * lower + 255).save(folder / "white.png")
    (folder / "broken.png").write_bytes((folder / "three.png").read_bytes()[:60])
    (folder / "words.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("method", ["sdedit", "ddim", "bdia", "obelm", "edict", "cyclediffusion"])
def test_digits_by_number(unstir, method):
    code, out, err = unstir(f"edit digits --index 3 13 --to-class 8 --nfe 6 --method {method}")
    assert (code, err) == (0, "")
    assert "round trip to the own class" in out
    assert max(map(len, out.splitlines())) <= 80
    folder = Path("out/edit")
    assert {p.name for p in folder.iterdir()} == {"edited.npy", "edited.png", "before-after.png", "edit.json", "report.html"}
    edited, record = np.load(folder / "edited.npy"), json.loads((folder / "edit.json").read_text())
    assert edited.shape == (2, 1, 8, 8)
    before = data.load("digits").all()[[3, 13]].numpy()
    assert record["moved, RMS"] == pytest.approx(float(np.sqrt(np.square(edited - before).mean())), rel=1e-3)
    exact = method in ("bdia", "obelm", "edict")
    assert (record["round trip, largest"] < 1e-9) == exact
    assert Image.open(folder / "edited.png").size == (22, 12)  # two pictures of 8 × 8 and white between and around


def test_files_are_edited_like_what_they_hold(unstir, inputs):
    found = {}
    for name in ("three.npy", "bytes.npy", "three.png"):
        code, _, err = unstir("edit", "digits", inputs / name, "--from-class", 3, "--to-class", 8, "--nfe", 4, "--out", name)
        assert (code, err) == (0, "")
        found[name] = np.load(Path(name) / "edited.npy")
    np.testing.assert_allclose(found["bytes.npy"], found["three.npy"], atol=0.05)
    assert np.abs(found["three.png"] - found["three.npy"]).mean() < 0.15  # it was enlarged and shrunk
    unstir("edit digits --index 3 --to-class 8 --nfe 4")
    np.testing.assert_allclose(np.load("out/edit/edited.npy"), found["three.npy"], atol=1e-5)


def test_several_edits_of_a_picture_with_guidance_and_options(unstir):
    code, out, _ = unstir("edit digits --index 3 --to-class 8 --n 3 --nfe 5 --guidance 2 --set eta=0.7 trajectory=independent")
    assert code == 0
    edited = torch.from_numpy(np.load("out/edit/edited.npy"))
    assert edited.shape == (3, 1, 8, 8)
    assert float(edited.std(0).mean()) > 0.05
    assert "5 calls up and 10 down" in " ".join(out.split())


def test_translation_into_another_model(unstir, model):
    code, _, err = unstir("edit", model, "--index", 1, "--into", model, "--to-class", 2, "--nfe", 3)
    assert (code, err) == (0, "")


def test_a_region_stays_and_the_rest_is_drawn_anew(unstir, inputs):
    line = f"edit digits --index 5 7 --to-class 8 --method cow --mask {inputs}/lower.png --set cycles=2"
    code, out, err = unstir(f"{line} --nfe 10 --n 2")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "12 calls up and 9 down" in " ".join(out.split())  # 7 + 5 levels; 2 cycles of 2, and 5
    folder = Path("out/edit")
    assert {p.name for p in folder.iterdir()} == {"edited.npy", "edited.png", "before-after.png", "edit.json", "report.html"}
    edited, record = torch.from_numpy(np.load(folder / "edited.npy")), json.loads((folder / "edit.json").read_text())
    before = data.load("digits").all()[[5, 5, 7, 7]]
    assert (record["strength"], record["nfe"], record["calls up"]) == (0.7, 10, 12)
    off = (edited - before).square().mean(1).sqrt()
    assert record["kept region, RMS error"] == pytest.approx(float(off[:, :4].square().mean().sqrt()), rel=1e-3)
    assert record["drawn anew, RMS change"] == pytest.approx(float(off[:, 4:].square().mean().sqrt()), rel=1e-3)
    assert record["kept region, RMS error"] < 0.6 * record["drawn anew, RMS change"]
    assert float((edited[0] - edited[1]).abs().max()) > 0.05  # two draws


def test_a_large_mask_is_scaled_as_a_picture_is(unstir, inputs, tmp_path):
    Image.open(inputs / "lower.png").resize((40, 40), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    found = []
    for mask in (inputs / "lower.png", tmp_path / "large.png"):
        line = "edit digits --index 5 --to-class 8 --method cow --nfe 10 --guidance 2 --set cycles=1 fill=-1 --mask"
        code, _, err = unstir(line, mask, "--out", mask.stem)
        assert (code, err) == (0, "")
        found.append(np.load(Path(mask.stem) / "edited.npy"))
    np.testing.assert_array_equal(*found)


COW = "edit digits --index 3 --to-class 8 --method cow"
WRONG = [
    (COW, "cow needs --mask"),
    ("edit digits --index 3 --to-class 8 --mask IN/lower.png", "is for --method cow"),
    (f"{COW} --mask IN/nothing.png", "nothing.png' is missing or no picture"),
    (f"{COW} --mask IN/words.txt", "words.txt' is missing or no picture"),
    (f"{COW} --mask IN/broken.png", "broken.png' cannot be read"),
    (f"{COW} --mask IN/black.png", "nothing is drawn anew"),
    (f"{COW} --mask IN/white.png", "nothing stays"),
    (f"{COW} --mask IN/lower.png --into digits", "cow keeps to one model"),
    (f"{COW} --mask IN/lower.png --strength 1.2", "strength=1.2 must lie in"),
    (f"{COW} --mask IN/lower.png --strength 0.06", "leaves none to cycle between"),
    (f"{COW} --mask IN/lower.png --set eta=1", "cow has no option 'eta'; it has cycles, solver, fill"),
    (f"{COW} --mask IN/lower.png --set cycles=-1", "cycles=-1"),
    (f"{COW} --mask IN/lower.png --set fill=grey", "fill=grey must be a number"),
    (f"{COW} --mask IN/lower.png --set solver=unipc", "no option 'eta'"),
    ("edit digits --index 3 --method cow --mask IN/lower.png", "give --to-class, one of 0"),
    ("edit", "MODEL"),
    ("edit digits", "give either IMAGE"),
    ("edit digits IN/three.png --index 3 --to-class 8", "give either IMAGE"),
    ("edit digits --index 3", "say what the pictures are to become"),
    ("edit digits --index 1797 --to-class 8", "--index 1797 must lie in 0 … 1796"),
    ("edit digits --index three --to-class 8", "--index"),
    ("edit digits IN/three.png --to-class 8", "give --from-class, one of 0, 1"),
    ("edit digits IN/three.png --from-class 3 --to-class eleven", "--to-class 'eleven' is unknown"),
    ("edit digits IN/three.png --from-class 11 --to-class 8", "--from-class '11' is unknown"),
    ("edit digits IN/missing.png --from-class 3 --to-class 8", "is missing"),
    ("edit digits IN --from-class 3 --to-class 8", "is missing or no file"),
    ("edit digits IN/broken.png --from-class 3 --to-class 8", "broken.png' cannot be read"),
    ("edit digits IN/words.txt --from-class 3 --to-class 8", "unknown kind"),
    ("edit digits IN/wide.npy --from-class 3 --to-class 8", "samples of shape (1, 12, 12)"),
    ("edit digits IN/loud.npy --from-class 3 --to-class 8", "has values from 9 to 9"),
    ("edit digits --index 3 --to-class 8 --method magic", "--method 'magic' is unknown; one of sdedit"),
    ("edit digits --index 3 --to-class 8 --strength 0", "strength=0.0 must lie in"),
    ("edit digits --index 3 --to-class 8 --nfe 1", "nfe=1"),
    ("edit digits --index 3 --to-class 8 --n 0", "--n 0"),
    ("edit digits --index 3 --to-class 8 --n 2 --method obelm", "draws no noise"),
    ("edit digits --index 3 --to-class 8 --set colour=3", "no option 'colour'"),
    ("edit digits --index 3 --to-class 8 --set eta=0", "adds no noise"),
    ("edit nosuchmodel --index 3 --to-class 8", "neither a folder nor a bundled name"),
]


@pytest.mark.parametrize(("line", "cause"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_is_answered_in_one_line(unstir, inputs, tmp_path, line, cause):
    code, out, err = unstir(line.replace("IN/", f"{inputs}/").replace("IN ", f"{inputs} "))
    assert code == 2
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert cause in err
    assert "Traceback" not in out + err
    assert list(tmp_path.rglob("*")) == []
