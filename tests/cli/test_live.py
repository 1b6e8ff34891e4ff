"""live.html: a function of the log; it reloads until the run ends, needs nothing else, and never stops a run."""

import json
import re
import xml.etree.ElementTree as tree
from itertools import pairwise

import pytest

from unstir import data
from unstir.cli.live import Live, page, read_log, speeds
from unstir.cli.live_charts import chart
from unstir.train import TrainConfig, build_model, fit

CONFIG = TrainConfig("<digits>", steps=100, batch=10)
ROWS = [
    {"images": 100, "step": 10, "loss": 0.5, "lr": 0.001, "seconds": 1.0, "skipped": 0},
    {"images": 200, "step": 20, "loss": 0.4, "lr": 0.002, "seconds": 2.0, "skipped": 1},
    {"images": 200, "validation": {"-2": 0.3, "0": 0.1, "2": 0.01}, "validation_loss": 0.45},
    {"images": 300, "step": 30, "loss": 0.3, "lr": 0.002, "seconds": 0.5, "skipped": 1},
    {"images": 400, "step": 40, "loss": 0.25, "lr": 0.001, "seconds": 1.0, "skipped": 1},
    {"images": 400, "validation": {"-2": 0.2, "0": 0.05, "2": 0.005}, "validation_loss": 0.35},
]


def tiles(text):
    return dict(re.findall(r"<div><span>([^<]*)</span><b>([^<]*)</b></div>", text))


def test_the_page_shows_what_the_log_says():
    text = page(CONFIG, ROWS, {"step": 41, "images": 410})
    found = tiles(text)
    assert found["step"] == "41 of 100"
    assert found["training loss"] == "0.25"
    assert found["validation loss"] == "0.35"
    assert found["skipped steps"] == "1"
    assert found["images/s"] == "200"
    assert found["left"] == "2 s"  # 590 images at 200 a second
    assert text.count("<svg") == 4
    assert all(f"λ = {lam}" in text for lam in ("-2", "0", "2"))
    assert '<meta http-equiv="refresh" content="5">' in text
    assert "<digits>" not in text


def test_the_last_page_does_not_reload():
    text = page(CONFIG, ROWS, {}, done=True)
    assert "http-equiv" not in text
    assert tiles(text)["left"] == "done"


def test_nothing_is_fetched_and_no_script_runs():
    text = page(CONFIG, ROWS, {}, picture=b"\x89PNG", note="5 < 6")
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "url(" not in text
    assert "5 &lt; 6" in text


def test_a_run_that_has_just_begun_has_a_page_too():
    assert tiles(page(CONFIG, [], {}))["training loss"] == "–"


def test_speed_is_that_between_lines_and_starts_anew_after_a_resume():
    assert speeds(ROWS) == [(200, 100.0), (400, 200.0)]


def test_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"images": 3')
    assert read_log(tmp_path / "log.jsonl") == ROWS[:1]


# -- charts -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0), (1, 1.0)],
        [(0, 1e-6), (1, 1e3)],
        [(0, -1.0), (5, 2.0)],
        [(k, k % 7 + 0.1) for k in range(5000)],
        [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)],
    ],
    ids=["constant", "decades", "negative", "many", "not finite"],
)
def test_every_chart_lies_within_its_frame(points):
    text = chart({"line": points}, "title & more")
    drawing = tree.fromstring(text[text.index("<svg") :])
    paths = [p.get("d") for p in drawing.iter("path") if p.get("class") is None]
    numbers = [tuple(map(float, q.split())) for q in paths[0][1:].split("L")]
    assert all(0 <= x <= 720 and 0 <= y <= 240 for x, y in numbers)
    assert 2 <= len(numbers) <= 402


def test_a_chart_needs_two_points():
    assert chart({"line": [(0, 1.0)]}, "title") == ""
    assert chart({}, "title") == ""


def test_labels_do_not_lie_on_each_other():
    text = chart({f"λ = {k}": [(0, 1.0), (1, 1.0 + k / 1e4)] for k in range(8)}, "title")
    heights = sorted(float(y) for y in re.findall(r'<text x="632" y="([\d.]+)"', text))
    assert len(heights) == 8
    assert all(b - a >= 12 for a, b in pairwise(heights))


# -- in a run -----------------------------------------------------------------------------------
def test_a_run_draws_samples_of_its_checkpoints_and_the_same_weights(tmp_path):
    """The page changes nothing: the run ends with the same loss as one without it."""
    pytest.importorskip("diffusers")
    pytest.importorskip("sklearn")
    digits, losses = data.load("digits").subset(range(40)), []
    for name, every in (("live", 0.0), ("plain", None)):
        config = TrainConfig("digits", out=tmp_path / name, steps=4, batch=4, checkpoint_every=2, log_every=1, device="cpu")
        model = build_model(digits, preset="tiny")
        live = None if every is None else Live(config, every).watch(model, digits)
        losses.append(fit(model, digits, config, progress=live).loss)
        if live is not None:
            assert "http-equiv" in (tmp_path / name / "live.html").read_text()
            live.close()
    text = (tmp_path / "live" / "live.html").read_text()
    assert 'src="data:image/png;base64,' in text
    assert "The average at image 16" in text
    assert "http-equiv" not in text
    assert losses[0] == losses[1]


def test_what_goes_wrong_is_said_on_the_page(tmp_path):
    digits = data.load("digits").subset(range(8))
    config = TrainConfig("digits", out=tmp_path, steps=4, batch=4)
    (tmp_path / "checkpoints" / "000000000016").mkdir(parents=True)  # without weights
    live = Live(config, 0.0).watch(build_model(digits, preset="tiny"), digits)
    live({"step": 1, "images": 4})
    assert "No samples: " in (tmp_path / "live.html").read_text()
    assert "ema.safetensors is missing" in (tmp_path / "live.html").read_text()
