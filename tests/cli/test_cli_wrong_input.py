"""Wrong input: exit code 2, one line on stderr that names the cause, nothing written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import unstir as library

# (what is typed, a part of the answer); MODEL stands for a good model folder, BAD for the files made below.
WRONG = [
    ("plam", "did you mean plan?"),
    ("frobnicate", "one of demo, train"),
    ("plan nosuchsolver", "unknown solver"),
    ("plan dpmqq-2m", "or dpmpp-2m?"),
    ("plan ddim --nfe 0", "nfe=0"),
    ("plan ddim --nfe -3", "nfe=-3"),
    ("plan ddim --nfe ten", "--nfe"),
    ("plan ddim --process cauchy", "--process"),
    ("plan ddim --grid spiral", "unknown grid 'spiral'"),
    ("plan ddim --grid 1,b,0", "times separated by commas"),
    ("plan ddim --grid 0,0.5,1", "increasing log-SNR"),
    ("plan ddim --grid uniform:3", "a number after the colon"),
    ("plan ddim --grid karras:x", "a number after the colon"),
    ("plan ddim --start 0.1 --end 0.5", "start=0.1"),
    ("plan ddim --start nan", "start=nan"),
    ("plan ddim --set eta", "NAME=VALUE"),
    ("plan ddim --set eta=1 eta=2", "twice"),
    ("plan ddim --set colour=3", "no option 'colour'"),
    ("plan ddim --set eta=loud", "eta"),
    ("plan ddim --picture plan.doc", ".png or .svg"),
    ("plan ddim --save .", "."),
    ("plan ddim --nope", "--nope"),
    ("plan ddim heun", "heun"),
    ("sample", "MODEL"),
    ("sample nosuchmodel", "neither a folder nor a bundled name"),
    ("sample BAD/empty", "config.json is missing"),
    ("sample BAD/file.txt", "is a file"),
    ("sample BAD/pickled", "pickle"),
    ("sample BAD/truncated", "safetensors"),
    ("sample BAD/json", "not valid JSON"),
    ("sample MODEL --n 0", "--n 0"),
    ("sample MODEL --nfe 0", "nfe=0"),
    ("sample MODEL --solver best", "unknown solver"),
    ("sample MODEL --label eleven", "'eleven' is unknown"),
    ("sample MODEL --label 10", "'10' is unknown"),
    ("sample MODEL --label 1 --labels", "exclude each other"),
    ("sample MODEL --plan BAD/missing.json", "is missing"),
    ("sample MODEL --plan BAD/altered.json", "was altered"),
    ("sample MODEL --plan BAD/list.json", "object"),
    ("sample MODEL --plan BAD/good.json --nfe 5", "no effect"),
    ("sample MODEL --plan BAD/good.json --solver ddim", "no effect"),
    ("sample MODEL --device teapot", "device='teapot'"),
    ("eval MODEL --nfe", "nothing to measure"),
    ("eval MODEL --n 1", "--n 1"),
    ("eval MODEL --n 10 --exact-n 11", "--exact-n 11"),
    ("eval MODEL --reference BAD/missing", "neither an existing path"),
    ("eval MODEL --reference BAD/empty", "BAD/empty"),
    ("eval MODEL --reference BAD/wide.npy", "shape"),
    ("eval MODEL --n 20 --nfe 1 --exact-n 0", "n > d"),
    ("eval MODEL --features inception --n 40 --nfe 1 --exact-n 0", "never downloads"),
    ("train", "DATA"),
    ("train nosuchdata", "neither an existing path"),
    ("train BAD/empty", "BAD/empty"),
    ("train BAD/objects.npy", "Python objects"),
    ("train BAD/nan.npy", "NaN"),
    ("train BAD/cut.npy", "cannot be read"),
    ("train digits --steps 0", "steps=0"),
    ("train digits --lr -1", "lr=-1"),
    ("train digits --weight heavy", "weight='heavy'"),
    ("train digits --preset huge", "--preset"),
    ("train digits --resume=maybe", "maybe"),
    ("demo --nfe 0", "nfe=0"),
    ("demo --nfe", "--nfe is empty"),
    ("demo --n 5 --exact-n 10", "--exact-n 10"),
    ("systems --yaml", "--yaml"),
    ("reproduce", "ID"),
    ("reproduce nosuchsystem", "unknown system"),
]


@pytest.fixture(scope="session")
def bad(tmp_path_factory, model):
    """A folder of damaged things."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("hello")
    for name in ("pickled", "truncated", "json"):
        (folder / name).mkdir()
        for source in (Path(model) / "model").glob("*.*"):
            (folder / name / source.name).write_bytes(source.read_bytes())
    for weights in (folder / "pickled").glob("*.safetensors"):
        weights.write_bytes(pickle.dumps({"weight": 1}))
    for weights in (folder / "truncated").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "json" / "config.json").write_text("{")
    plan = library.plan("ddim", library.process.VP(), nfe=2).save(folder / "good.json")
    table = json.loads(Path(plan).read_text())
    table["rows"][0]["a"] = 7.0
    (folder / "altered.json").write_text(json.dumps(table))
    (folder / "list.json").write_text("[]")
    np.save(folder / "wide.npy", np.zeros((30, 1, 12, 12), np.float32))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((4, 8, 8), np.nan, np.float32))
    (folder / "cut.npy").write_bytes((folder / "wide.npy").read_bytes()[:200])
    return folder


@pytest.mark.parametrize(("line", "cause"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_is_answered_in_one_line(unstir, model, bad, tmp_path, line, cause):
    code, out, err = unstir(line.replace("MODEL", model).replace("BAD", str(bad)))
    assert code == 2
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert cause.replace("BAD", str(bad)) in err
    assert "Traceback" not in out + err
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_that_cannot_be_written_is_one_line_too(unstir, model, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should go")
    code, _, err = unstir("sample", model, "--nfe", 1, "--n", 1, "--out", "taken")
    assert code == 2
    assert err.count("\n") == 1
    assert "taken" in err


def test_the_traceback_is_there_for_those_who_ask(unstir, monkeypatch):
    monkeypatch.setenv("UNSTIR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown solver"):
        unstir("plan nosuchsolver")
