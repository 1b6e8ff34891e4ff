"""Picture sheets pixel by pixel; plots by what their SVG contains."""

import io
import math
import sys
import xml.etree.ElementTree as xml
from itertools import pairwise

import numpy as np
import pytest
import torch

from unstir import evaluate

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
from PIL import Image


def pixels(image):
    return np.asarray(image)


def test_every_pixel_of_a_grid_is_where_it_belongs():
    x = torch.rand(5, 3, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = pixels(evaluate.grid(x, columns=3, scale=3))
    # 3 columns of 12 pixels and 2 rows of 6, with 2 pixels of white between and around.
    assert sheet.shape == (2 + 2 * 8, 2 + 3 * 14, 3)
    expected = np.full_like(sheet, 255)
    for i in range(5):
        for r in range(6):
            for c in range(12):
                value = x[i, :, r // 3, c // 3].double()
                expected[2 + i // 3 * 8 + r, 2 + i % 3 * 14 + c] = ((value + 1) * 127.5).round().numpy()
    assert (sheet == expected).all()


def test_grey_pictures_ranges_and_clipping():
    x = torch.tensor([-3.0, -1, 0, 1, 3]).reshape(5, 1, 1, 1)
    assert pixels(evaluate.grid(x, columns=5, scale=1))[2, 2::3].tolist() == [[v] * 3 for v in (0, 0, 128, 255, 255)]
    ranged = pixels(evaluate.grid(x, columns=5, scale=1, value_range=(-3, 3)))
    assert ranged[2, 2::3, 0].tolist() == [0, 85, 128, 170, 255]
    whole = torch.tensor([0, 7, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    assert pixels(evaluate.grid(whole, columns=3, scale=1))[2, 2::3, 0].tolist() == [0, 7, 255]


def test_small_pictures_are_enlarged_and_sheets_about_square():
    assert evaluate.grid(torch.zeros(9, 1, 8, 8)).size == (2 + 3 * 66, 2 + 3 * 66)
    assert evaluate.grid(torch.zeros(2, 1, 100, 100), columns=8).size == (2 + 2 * 102, 2 + 102)


def test_labelled_rows_put_pictures_right_of_their_labels():
    black, white = -torch.ones(3, 1, 8, 8), torch.ones(2, 1, 8, 8)
    sheet = pixels(evaluate.labelled_rows({"a rather long label": black, "b": white}, scale=2, header=["x", "y", "z"]))
    first = sheet[24:40]
    left = sheet.shape[1] - 3 * 18
    assert (first[:, left : left + 16] == 0).all()
    assert (first[:, left + 16 : left + 18] == 255).all()
    assert (sheet[42:58, left:] == 255).all()
    assert (first[:, :left] < 128).any(), "no label was drawn"
    assert (first[:, left - 4 : left] == 255).all(), "the label touches the pictures"
    assert (sheet[:24, left : left + 16] < 128).any(), "no header was drawn"
    narrow = pixels(evaluate.labelled_rows({"b": white}, scale=2))
    assert narrow.shape[1] < sheet.shape[1] - 80


def test_save_png_is_lossless_and_leaves_nothing_else(tmp_path):
    image = evaluate.grid(torch.rand(4, 3, 8, 8))
    evaluate.save_png(image, tmp_path / "new" / "a.png")
    assert (pixels(Image.open(tmp_path / "new" / "a.png")) == pixels(image)).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


SERIES = {"euler": [(10, 0.1), (5, 0.2), (20, 0.05)], "heun": [(5, 0.1), (10, 0.02), (20, 0.049)]}
TABLE = ([-math.inf, -2.0, 3.0], [[0.5, None], [0.25, -0.125], [0, 1e-5]], ["a", "b₁"])


def texts(svg):
    """The texts of an SVG; matplotlib writes each as a comment before its outlines."""
    return [part.split("-->")[0].strip() for part in svg.decode().split("<!--")[1:]]


def test_error_plot_shows_labels_axes_and_points():
    svg = evaluate.error_plot(SERIES, title="One title", ylabel="RMS")
    assert {"euler", "heun", "5", "10", "20", "RMS", "network evaluations (NFE)", "One title"} <= set(texts(svg))
    root = xml.fromstring(svg)
    uses = [u for u in root.iter("{http://www.w3.org/2000/svg}use") if "#0072b2" in u.get("style", "")]
    heights = [float(u.get("y", "nan")) for u in sorted(uses, key=lambda u: float(u.get("x", "nan")))]
    assert len(heights) == 3
    # Logarithmic: 0.2 → 0.1 → 0.05 are equal steps down.
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], rel=1e-3)
    assert heights[1] > heights[0]


def test_labels_of_lines_that_end_together_do_not_overlap(monkeypatch):
    from matplotlib.axes import Axes

    spots = []
    monkeypatch.setattr(Axes, "annotate", lambda self, text, xy, xytext, **_: spots.append((text, xy[1], xytext[1])))
    evaluate.error_plot({f"s{i}": [(5, 1.0), (10, 0.1 + 0.0001 * i)] for i in range(6)} | {"far": [(5, 1.0), (10, 0.001)]})
    heights = {text: height for text, _, height in spots}
    ordered = [heights[f"s{i}"] for i in range(6)]
    assert all(b - a > 0.04 for a, b in pairwise(ordered)), "touching, or not in the order of the lines"
    ends = [end for text, end, _ in spots if text != "far"]
    assert sum(ordered) / 6 == pytest.approx(sum(ends) / 6, abs=0.02), "not centred on the ends"
    far = next(end for text, end, _ in spots if text == "far")
    assert heights["far"] == pytest.approx(far, abs=1e-6), "a label with room was moved"


def test_texts_are_shown_as_typed_and_cut_where_there_is_no_room():
    # Read as mathematics the first label would be an error of matplotlib.
    found = texts(evaluate.error_plot({r"$\nope{$": [(5, 1)], "x" * 90: [(5, 2)]}, title="5$, not 6$"))
    assert {r"$\nope{$", "5$, not 6$", "x" * 35 + "…"} <= set(found)


def test_plan_plot_prints_the_numbers_of_the_table():
    svg = evaluate.plan_plot(*TABLE, title="Plan")
    found = texts(svg)
    assert {"0.5", "0.25", "-0.125", "1e-05", "a", "b₁", "half log-SNR λ", "Plan"} <= set(found)
    assert "nan" not in found


@pytest.mark.parametrize(
    "draw", [lambda f: evaluate.error_plot(SERIES, format=f), lambda f: evaluate.plan_plot(*TABLE, format=f)]
)
def test_plot_files_are_reproducible_and_adapt(draw):
    svg = draw("svg")
    assert svg == draw("svg")
    xml.fromstring(svg)
    assert b"prefers-color-scheme: dark" in svg
    assert b"matplotlib.org" not in svg
    image = Image.open(io.BytesIO(draw("png")))
    assert min(image.size) > 200


@pytest.mark.parametrize("module", ["PIL", "matplotlib"])
def test_missing_extra_says_what_to_install(monkeypatch, module):
    for name in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is needed .* pip install 'unstir\[cli\]'"):
        evaluate.grid(torch.zeros(1, 1, 8, 8)) if module == "PIL" else evaluate.error_plot(SERIES)


X = torch.zeros(2, 1, 8, 8)
BAD = {
    "channels": (lambda: evaluate.grid(X.expand(2, 2, 8, 8)), r"images has shape \(2, 2, 8, 8\)"),
    "axes": (lambda: evaluate.grid(X[0]), r"images has shape \(1, 8, 8\)"),
    "NaN": (lambda: evaluate.grid(X + math.nan), "images contains NaN"),
    "columns": (lambda: evaluate.grid(X, columns=0), "columns=0"),
    "scale": (lambda: evaluate.grid(X, scale=0), "scale=0"),
    "range": (lambda: evaluate.grid(X, value_range=(1, 1)), r"value_range=\(1, 1\)"),
    "no rows": (lambda: evaluate.labelled_rows({}), "rows is empty"),
    "row": (lambda: evaluate.labelled_rows({"ddim": X[0]}), r"rows\['ddim'\] has shape"),
    "header": (lambda: evaluate.labelled_rows({"ddim": X}, header=["a", "b", "c"]), "header has 3 entries for 2 columns"),
    "folder": (lambda: evaluate.save_png(evaluate.grid(X), "."), "path='.' is a folder"),
    "series": (lambda: evaluate.error_plot({}), "series is empty"),
    "points": (lambda: evaluate.error_plot({"ddim": []}), r"series\['ddim'\] has no points"),
    "zero": (lambda: evaluate.error_plot({"ddim": [(5, 0.0)]}), r"series\['ddim'\] has the point \(5, 0.0\)"),
    "infinite": (lambda: evaluate.error_plot({"ddim": [(5, math.inf)]}), r"series\['ddim'\] has the point \(5, inf\)"),
    "format": (lambda: evaluate.error_plot(SERIES, format="jpg"), "format='jpg'"),
    "table": (lambda: evaluate.plan_plot([1, 2], [[1.0]], ["a"]), "2 rows .* of 1 numbers"),
    "no plan": (lambda: evaluate.plan_plot([], [], ["a"]), "logsnr has 0 entries"),
    "NaN level": (lambda: evaluate.plan_plot([math.nan], [[1.0]], ["a"]), "logsnr must not contain NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
