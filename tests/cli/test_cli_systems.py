"""The protocol of systems, on a stand-in that is registered for the test."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unstir import systems
from unstir.systems import Claim, Result, at_least, at_most
from unstir.systems.index import SYSTEMS, System


@pytest.fixture
def register(monkeypatch):
    """register(function) puts a system "stand-in" into the table whose `reproduce` is the function."""

    def put(function):
        system = System("stand-in", "A stand-in", "No paper, 2026", "does nothing")
        module = ModuleType(system.module)
        module.reproduce = function  # type: ignore[attr-defined]
        monkeypatch.setitem(SYSTEMS, system.id, system)
        monkeypatch.setitem(sys.modules, system.module, module)

    return put


def test_every_row_of_the_table_has_its_file_and_every_file_its_row():
    folder = Path(systems.__file__).parent
    files = {f.stem for f in folder.glob("[!_]*.py")} - {"index", "protocol"}  # _digits.py and its like are shared parts
    assert files == {s.module.rpartition(".")[2] for s in SYSTEMS.values()}


@pytest.mark.parametrize(
    ("claim", "held"),
    [
        (at_most("error", 1, 1), True),
        (at_most("error", 1.1, 1), False),
        (at_least("share", 1, 1), True),
        (at_least("share", 0.9, 1), False),
        (at_most("error", float("nan"), 1), False),
        (at_least("share", float("nan"), 0), False),
    ],
)
def test_a_claim_holds_only_when_measured(claim, held):
    assert claim.held is held


def test_a_result_holds_when_all_claims_do():
    good, bad = Claim("a", 1, "<=", 2), Claim("b", 3, "<=", 2)
    assert Result([good]).held
    assert not Result([good, bad]).held
    with pytest.raises(ValueError, match="claims is empty"):
        Result([])


def test_reproduce_writes_the_result_and_returns_0(register, unstir):
    def run(out, device, large):
        (out / "picture.png").write_bytes(b"\x89PNG")
        return Result([at_most("error below the baseline", 0.5, 0.8)], {"baseline": 0.8, "trace": [1.0, float("inf")]})

    register(run)
    code, out, _ = unstir("reproduce stand-in")
    assert code == 0
    written = json.loads(Path("out/stand-in/result.json").read_text())
    assert written["held"] is True
    assert written["claims"] == [
        {"text": "error below the baseline", "measured": 0.5, "sense": "<=", "threshold": 0.8, "held": True}
    ]
    assert written["figures"] == {"baseline": 0.8, "trace": [1.0, "inf"]}
    assert "wrote out/stand-in/picture.png" in out
    assert "wrote out/stand-in/result.json" in out
    assert "the claims held" in out


def test_reproduce_returns_1_when_a_claim_does_not_hold(register, unstir):
    register(lambda out, device, large: Result([at_most("error", 2, 1)]))
    code, out, _ = unstir("reproduce stand-in")
    assert code == 1
    assert "not all claims held" in out
    assert json.loads(Path("out/stand-in/result.json").read_text())["held"] is False


def test_device_and_large_reach_the_system(register, unstir):
    seen = []

    def run(out, device, large):
        seen.append((device, large))
        return Result([at_most("error", 0, 1)])

    register(run)
    assert unstir("reproduce STAND_IN --large --out elsewhere")[0] == 0
    assert seen == [("cpu", True)]
    assert Path("elsewhere/stand-in/result.json").is_file()


def test_a_run_that_fails_leaves_no_result_behind(register, unstir):
    register(lambda out, device, large: Result([at_most("error", 0, 1)]))
    unstir("reproduce stand-in")

    def fail(out, device, large):
        raise ValueError("no\ngood")

    register(fail)
    code, _, err = unstir("reproduce stand-in")
    assert (code, err) == (2, "unstir: no good\n")
    assert not Path("out/stand-in/result.json").exists()


def test_systems_lists_the_table(register, unstir):
    register(None)
    assert "stand-in" in unstir("systems")[1]
    rows = json.loads(unstir("systems --json")[1])
    assert {"id": "stand-in", "title": "A stand-in", "paper": "No paper, 2026", "summary": "does nothing"}.items() <= rows[
        -1
    ].items()
    assert rows[-1]["module"] == "unstir.systems.stand_in"


def test_the_table_of_results_is_written_from_what_was_measured(unstir, tmp_path) -> None:
    """One system that held, one that did not, the rest not run: the table says each, with its figures."""
    from unstir._files import write_json
    from unstir.systems import SYSTEMS

    for name, held in (("deis", True), ("dmcmc", False)):
        claim = {"text": f"claim of {name}", "measured": 0.5, "sense": "<=", "threshold": 0.25 + held, "held": held}
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "result.json", {"held": held, "claims": [claim], "seconds": 3.2})
    code, out, _ = unstir("systems --write table.md --results .")
    assert code == 0
    assert "wrote" in out
    text = (tmp_path / "table.md").read_text()
    assert "claim of deis: 0.5 ≤ 1.25" in text
    assert "✗ claim of dmcmc: 0.5 ≤ 0.25" in text
    assert text.count("not run") == len(SYSTEMS) - 2
