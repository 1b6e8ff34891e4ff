"""Every command from end to end, with tiny budgets: exit code, files, and that what they hold is true."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import unstir as library
from unstir import interop


def test_the_overview_names_every_command_and_loads_none(unstir):
    code, out, err = unstir("--help")
    assert (code, err) == (0, "")
    for name in ("demo", "train", "sample", "plan", "eval", "systems", "reproduce"):
        assert f"  {name} " in out
    assert unstir("--version")[1].strip() == f"unstir {library.__version__}"


def test_no_command_at_all_shows_the_overview_and_is_wrong_usage(unstir):
    code, out, err = unstir("")
    assert (code, out) == (2, "")
    assert "usage: unstir COMMAND" in err


@pytest.mark.parametrize("name", ["demo", "train", "sample", "plan", "eval", "systems", "reproduce"])
def test_every_command_explains_itself_in_80_columns(unstir, name):
    code, out, err = unstir(f"{name} --help")
    assert (code, err) == (0, "")
    assert f"unstir {name}" in out
    assert max(map(len, out.splitlines())) <= 110  # tyro does not wrap the description
    assert max(len(line) for line in out.splitlines() if line[:1] in "│╭╰") <= 80


# -- plan --------------------------------------------------------------------------------------
def test_plan_without_a_name_lists_all_solvers(unstir):
    code, out, _ = unstir("plan")
    assert code == 0
    assert all(f" {name} " in out for name in library.solvers.SOLVERS)
    assert "DPM++ 2M" in out
    assert max(map(len, out.splitlines())) <= 80


def test_plan_prints_the_table_its_paper_and_its_other_names(unstir):
    code, out, _ = unstir("plan heun --nfe 5 --process edm")
    assert code == 0
    assert str(library.plan("heun", library.process.EDM(), nfe=5)) in out
    assert "HeunDiscreteScheduler" in out
    assert library.solvers.SOLVERS["heun"].paper in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_plan_saves_and_draws_what_it_printed(unstir):
    code, out, _ = unstir("plan ddim --nfe 4 --set eta=0.5 --grid karras:5 --save p.json --picture p.png")
    plan = library.plan("ddim", library.process.VP(), nfe=4, grid="karras", grid_options={"rho": 5}, eta=0.5)
    assert code == 0
    assert library.Plan.load("p.json") == plan
    assert plan.fingerprint() in out
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote p.json" in out
    assert "wrote p.png" in out


def test_plan_takes_the_nodes_themselves(unstir):
    assert unstir("plan dpmpp-2m --grid 1,0.6,0.2,0 --save p.json")[0] == 0
    assert library.Plan.load("p.json").times == [1.0, 0.6, 0.2, 0.0]


# -- sample --------------------------------------------------------------------------------------
def test_sample_writes_what_the_library_draws(unstir, model):
    code, out, _ = unstir("sample", model, "--nfe", 3, "--solver", "ddim", "--n", 6, "--seed", 7, "--labels", "--device", "cpu")
    assert code == 0
    record = json.loads(Path("out/sample/sample.json").read_text())
    network = interop.load_model(model)
    plan = library.plan("ddim", network.process, nfe=3)
    want = library.sample(network, plan, shape=6, seed=7, class_labels=torch.arange(6))
    assert np.array_equal(np.load("out/sample/samples.npy"), want.numpy())
    assert (record["fingerprint"], record["seed"], record["nfe"]) == (plan.fingerprint(), 7, 3)
    assert record["labels"] == [0, 1, 2, 3, 4, 5]
    for name in ("samples.npy", "samples.png", "sample.json", "report.html"):
        assert f"wrote out/sample/{name}" in out


def test_a_sample_does_not_depend_on_how_many_are_drawn(unstir, model):
    unstir("sample", model, "--nfe", 2, "--n", 3, "--label", 4, "--solver", "ancestral", "--out", "a")
    unstir("sample", model, "--nfe", 2, "--n", 1, "--label", 4, "--solver", "ancestral", "--out", "b")
    # The noise is the same to the bit; the network's convolutions round differently in batches of other sizes.
    assert np.abs(np.load("a/samples.npy")[:1] - np.load("b/samples.npy")).max() < 1e-4


def test_sample_runs_a_saved_plan_of_another_process(unstir, model):
    unstir("plan dpmpp-2m --nfe 4 --process flow --start 0.99 --save p.json")
    code, _, err = unstir("sample", model, "--plan", "p.json", "--n", 2)
    assert (code, err) == (0, "")
    assert np.isfinite(np.load("out/sample/samples.npy")).all()
    assert json.loads(Path("out/sample/sample.json").read_text())["fingerprint"] == library.Plan.load("p.json").fingerprint()


# -- eval ----------------------------------------------------------------------------------------
def test_eval_measures_and_names_floors(unstir, model):
    code, out, _ = unstir(
        "eval",
        model,
        "--nfe",
        2,
        4,
        "--solver",
        "ddim",
        "ddpm",
        "--n",
        40,
        "--exact-n",
        4,
        "--exact-nfe",
        12,
        "--device",
        "cpu",
    )
    assert code == 0
    rows = json.loads(Path("out/eval/eval.json").read_text())["rows"]
    assert [(r["plan"], r["calls"]) for r in rows] == [("ddim", 2), ("ddim", 4), ("ddpm", 2), ("ddpm", 4)]
    assert rows[0]["error"] > rows[1]["error"] > 0
    assert rows[2]["error"] is None  # noise is added: there is no trajectory to compare with
    assert all(r["frechet"]["floor"] > 0 and r["network_seconds"] < r["seconds"] for r in rows)
    assert "pixel-pca:24" in out
    assert "Floors" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("wrote")) <= 80
    assert "<svg" in Path("out/eval/report.html").read_text() or "data:image/svg" in Path("out/eval/report.html").read_text()


# -- train ---------------------------------------------------------------------------------------
def test_train_goes_on_where_it_was(unstir):
    few = "train digits --batch 4 --preset tiny --out run --warmup 1"
    assert unstir(f"{few} --steps 2")[0] == 0
    code, _, err = unstir(f"{few} --steps 2")
    assert code == 2
    assert "already holds a run" in err
    code, out, _ = unstir(f"{few} --steps 2 --resume")
    assert code == 0
    assert "wrote run/model" in out


def test_ctrl_c_ends_in_130_and_one_line(tmp_path):
    """The whole program, interrupted while it trains: a checkpoint is there, and no traceback."""
    command = [sys.executable, "-c", "import sys; from unstir.cli import main; sys.exit(main())"]
    command += ["train", "digits", "--steps", "100000", "--batch", "8", "--preset", "tiny", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    for _ in range(600):
        if (log.exists() and log.stat().st_size) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err + out
    assert "go on with --resume" in err
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -c 'import sys; from unstir.cli import main; sys.exit(main())' plan | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# -- demo ----------------------------------------------------------------------------------------
SMALL_DEMO = "demo --steps 2 --nfe 3 --n 60 --exact-n 4 --exact-nfe 8 --out d --device cpu"


def test_demo_measures_five_plans_and_keeps_its_network(unstir):
    code, out, _ = unstir(SMALL_DEMO)
    assert code == 0
    rows = json.loads(Path("d/demo.json").read_text())["rows"]
    assert [r["plan"] for r in rows] == ["ddim", "heun", "dpmpp-2m", "auto", "ancestral"]
    assert all(f" {r['plan']} " in out for r in rows)
    assert Path("d/samples.png").read_bytes().startswith(b"\x89PNG")
    assert max(len(line) for line in out.splitlines() if not line.startswith("wrote")) <= 80
    code, again, _ = unstir(SMALL_DEMO)
    assert code == 0
    assert "trained already" in again
    assert [r["error"] for r in json.loads(Path("d/demo.json").read_text())["rows"]] == [r["error"] for r in rows]


@pytest.mark.slow
def test_the_whole_demo_draws_digits(unstir):
    from sklearn.svm import SVC

    assert unstir("demo")[0] == 0
    rows = json.loads(Path("out/demo/demo.json").read_text())["rows"]
    best = min(r["frechet"]["value"] for r in rows)
    assert best <= 2 * rows[0]["frechet"]["floor"]
    assert next(r["error"] for r in rows if (r["plan"], r["calls"]) == ("auto", 20)) <= 0.02
    folder = next(Path("out/demo").glob("network-*"))
    digits = library.data.load("digits")
    judge = SVC(gamma=0.02, C=10).fit(digits.all().flatten(1), digits.labels)
    labels = torch.arange(100) % 10
    drawn = library.sample(interop.load_model(folder), nfe=10, shape=100, seed=3, class_labels=labels)
    assert (judge.predict(drawn.flatten(1)) == labels.numpy()).mean() >= 0.9
