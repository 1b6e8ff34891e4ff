"""What the documents show is run: the README's example, the solver of CONTRIBUTING, the commands, the figures' table."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import unstir as library
from unstir import process
from unstir.interop.folder import MODELS
from unstir.solvers import SOLVERS

ROOT = Path(__file__).parents[2]


def blocks(document, language):
    """The code blocks of a language in a document of the repository."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.mark.skipif(not (MODELS / "digits").exists(), reason="the bundled model is not there yet")
@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_first_example_runs(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(document, "python")
    assert len(example.strip().splitlines()) <= 10
    found = {}
    exec(example, found)
    assert found["x"].ndim == 4
    assert bool(torch.isfinite(found["x"]).all())
    if document == "README.md":
        assert capsys.readouterr().out == f"{found['plan']}\n"
        assert Path("threes.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def two_step():
    """The solver that CONTRIBUTING writes, registered for one test."""
    (example,) = blocks("CONTRIBUTING.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    exec(example, {})
    yield "two-step"
    del SOLVERS["two-step"]


@pytest.mark.parametrize(
    "path", [process.VP(), process.Flow(), process.EDM(), process.Cosine()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_the_solver_of_contributing_is_dpmpp_2m(two_step, path, nfe):
    mine, ours = library.plan(two_step, path, nfe=nfe), library.plan("dpmpp-2m", path, nfe=nfe)
    for row, want in zip(mine.rows, ours.rows, strict=True):
        assert row.a == pytest.approx(want.a, abs=1e-12)
        assert row.b == pytest.approx(dict(want.b), rel=1e-9, abs=1e-12)


def test_the_command_line_knows_the_solver_of_contributing(two_step, unstir):
    code, out, _ = unstir("plan two-step --nfe 3")
    assert code == 0
    assert out.startswith("two-step: 3 calls, order 2")


def test_every_command_in_the_readme_is_understood(unstir):
    """Each line is parsed by its command; only what it names (a folder, a model) may be missing."""
    lines = [
        line.partition("#")[0].split() for line in "".join(blocks("README.md", "")).splitlines() if line.startswith("unstir")
    ]
    assert {line[1] for line in lines} >= {"plan", "train", "sample", "eval", "systems", "reproduce", "tune", "restore"}
    for line in lines:
        code, _, err = unstir(" ".join(line[1:]))
        missing = re.search(r"neither an existing path|neither a folder|unknown system", err)
        assert code == 0 or missing, f"{' '.join(line)}: {err}"


def test_links_and_pictures_in_the_documents_exist():
    for document in ("README.md", "CONTRIBUTING.md", "docs/index.md", "docs/architecture.md"):
        file = ROOT / document
        for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", file.read_text()):
            target = "".join(target)
            assert (file.parent / target).exists(), f"{document} points to {target}"


def test_the_site_names_pages_that_exist():
    pages = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(pages) >= 10
    assert all((ROOT / "docs" / page).is_file() for page in pages)


def test_the_reference_pages_name_things_that_exist():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            done = _resolve(name)
            assert done is not None, f"{page.name} names {name}"


def _resolve(name):
    import importlib

    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


def test_make_has_two_targets_and_knows_them():
    text = (ROOT / "Makefile").read_text()
    assert re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE) == ["demo test"]
    for target in ("demo", "test"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
