"""A tiny model trained by the command itself, once for all command-line tests."""

import pytest

from unstir.cli import main

for _module in ("diffusers", "tyro", "rich", "sklearn", "PIL", "matplotlib"):
    pytest.importorskip(_module)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", "--steps", "4", "--batch", "8", "--preset", "tiny", "--out", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def unstir(capsys, monkeypatch, tmp_path):
    """unstir("plan heun") -> (exit code, stdout, stderr), in an empty folder and at 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(line, *more):
        capsys.readouterr()
        code = main([*line.split(), *map(str, more)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
