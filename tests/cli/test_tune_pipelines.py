"""`unstir tune FOLDER`: a plan learned for a pipeline of diffusers, put beside it, and found there by everybody."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="pipelines that read text need transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

import tiny_pipelines as tiny  # noqa: E402

import unstir as library  # noqa: E402
from unstir.interop.diffusers import PlanScheduler, conditions_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = "--samples 8 --validation 8 --focus 8 --steps 1 --teacher 9 --device cpu"
MAKE = {
    "text": lambda: tiny.with_prompts()["SD"][0],
    "classes": lambda: tiny.dit()[0],
    "plain": lambda: tiny.ddpm()[0],
    "silent": lambda: tiny.text_to_image()[0],
    "control": lambda: tiny.controlnet()[0],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved pipeline of every kind."""
    home = tmp_path_factory.mktemp("pipelines")
    for name, make in MAKE.items():
        make().save_pretrained(home / name)
    (home / "prompts.txt").write_text("a cat\n\n  two dogs \n")
    (home / "empty.txt").write_text("\n \n")
    (home / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    return home


def test_a_text_pipeline_gets_a_plan_that_every_user_finds(folders, unstir):
    code, out, err = unstir(f"tune {folders}/text --nfe 2 3 --prompts {folders}/prompts.txt {FEW} --out o")
    assert code == 0, err
    assert max(len(line) for line in out.splitlines() if not line.startswith("wrote")) <= 80
    assert "guidance 7.5, 2 prompts" in " ".join(out.split())  # the pipeline's own
    plan = library.Plan.load(folders / "text" / "unstir_plan.json")
    record = plan.options["learned"]
    assert (len(plan), record["constant"]) == (2, False)
    assert record["validation_error"] <= record["base_error"]
    page = Path("o/report.html").read_text()
    assert "From the left: a cat; two dogs." in page
    assert Path("o/before.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads(Path("o/tune.json").read_text())["plans"]) == {"2", "3"}

    # The library, at the guidance of the pipeline's call.
    model = library.load(folders / "text")
    assert set(model.plans) == {2, 3}
    assert model.plans[2] == plan
    asked = conditions_of(model, ["two dogs"])
    ours = library.sample(asked.on(model), nfe=2, shape=1, condition=asked.numbers)
    # Any pipeline, with one line: the same picture, from the same first noise.
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders / "text")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PlanScheduler.from_plan(folders / "text" / "unstir_plan.json")
    first = model.process.prior((1, 4, 8, 8), seed=0)
    theirs = pipe("two dogs", num_inference_steps=2, latents=first, height=16, width=16, output_type="latent").images
    assert float((theirs - ours).abs().max() / ours.abs().max()) < 1e-4


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_other_prompts_begin_anew(folders, unstir, monkeypatch):
    line = f"tune {folders}/text --nfe 2 --prompts {folders}/prompts.txt {FEW} --out o"
    assert unstir(line)[0] == 0
    first, kept = Path("o/2.json").read_text(), sorted(Path("o/work").rglob("*.*"))
    assert kept
    assert unstir(line)[0] == 0
    assert json.loads(Path("o/2.json").read_text())["rows"] == json.loads(first)["rows"]
    assert sorted(Path("o/work").rglob("*.*")) == kept  # teacher and fit were found again
    assert unstir(line, "--guidance", 2)[0] == 0
    assert len(list(Path("o/work").iterdir())) == 2


@pytest.mark.slow
def test_classes_and_nothing_need_no_prompts(folders, unstir):
    code, out, err = unstir(f"tune {folders}/classes --nfe 2 {FEW} --batch 4 --out a")
    assert code == 0, err
    assert "guidance 4" in out
    code, out, err = unstir(f"tune {folders}/plain --nfe 3 {FEW} --out b")
    assert code == 0, err
    assert "no guidance" in out
    assert unstir(f"tune {folders}/plain --nfe 2 {FEW} --out b")[0] == 0
    found = sorted(path.name for path in (folders / "plain").glob("unstir_plan*"))
    assert found == ["unstir_plan.json", "unstir_plan_3.json"]  # the newest first, and the other is not lost
    assert set(library.load(folders / "plain").plans) == {2, 3}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders / "plain")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PlanScheduler.from_plan(folders / "plain" / "unstir_plan_3.json")
    assert pipe(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)


WRONG = [
    ("tune HOME/text", "give --prompts, a file with one a line"),
    ("tune HOME/text --prompts HOME/empty.txt", "holds no prompt"),
    ("tune HOME/text --prompts HOME/missing.txt", "is missing"),
    ("tune HOME/text --prompts HOME/binary.txt", "no text in UTF-8"),
    ("tune HOME/text --prompts HOME", "HOME"),
    ("tune HOME/text --prompts HOME/prompts.txt --guidance -1", "--guidance -1"),
    ("tune HOME/text --prompts HOME/prompts.txt --nfe 0", "--nfe 0"),
    ("tune HOME/text --prompts HOME/prompts.txt --samples 1", "samples=1"),
    ("tune HOME/text --prompts HOME/prompts.txt --save", "--save is for model folders"),
    ("tune HOME/silent --prompts HOME/prompts.txt", "without its text encoder"),
    ("tune HOME/control --prompts HOME/prompts.txt", "control picture"),
    ("tune HOME/plain --prompts HOME/prompts.txt", "reads no prompts"),
    ("tune HOME/plain --guidance 3", "has no guidance"),
    ("tune HOME/nowhere", "neither a folder nor a bundled name"),
    ("tune HOME", "config.json is missing"),
    ("tune digits --prompts HOME/prompts.txt", "are for pipelines of diffusers"),
]


@pytest.mark.parametrize(("line", "cause"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_is_answered_in_one_line(folders, unstir, tmp_path, line, cause):
    code, _, err = unstir(f"{line.replace('HOME', str(folders))} --device cpu")
    said = [text for text in err.splitlines() if text.startswith("unstir: ")]
    assert (code, len(said)) == (2, 1)
    assert cause.replace("HOME", str(folders)) in said[0]
    assert list(tmp_path.rglob("*.json")) == []
