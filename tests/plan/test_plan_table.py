"""The table itself: immutable, countable, printable, and bitwise the same after a file."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch

import unstir
from unstir import process as pr
from unstir.plan import Plan, Row
from unstir.solvers import SOLVERS

VP = pr.VP()
ODD = torch.tensor([[1 / 3], [math.pi]], dtype=torch.float64)


def rich() -> Plan:
    """A plan that uses every field of a row."""
    rows = [
        Row(t=1.0, to=0.8, a=0.1 + 0.2, c=1e-17, evaluate=False),
        Row(t=0.8, to=0.6, a=1 / 3, b={0: 2 / 3}, p=0.7, q=-1 / 7, boundary=False, kwargs={"skip": [1, 2], "deep": True}),
        Row(t=0.6, to=0.5, a=ODD, b={0: 5e-324, 1: -ODD}, s=0.3, e=ODD),
        Row(t=0.5, to=0.0, a=-0.0, b={0: 1.0}),
    ]
    return Plan(rows, VP, name="rich", order=2, options={"why": "test"})


def test_a_plan_cannot_be_changed() -> None:
    plan = unstir.plan("ddim", VP, nfe=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan[0].a = 3.0
    with pytest.raises(TypeError):
        plan.rows[0] = plan[1]
    with pytest.raises(TypeError):
        plan.options["solver"] = "x"
    # FOUND: a row keeps the very dict it was given, so b and kwargs of an "immutable" plan can be changed in place.
    with pytest.raises(TypeError):
        plan[0].b[0] = 3.0
    with pytest.raises(TypeError):
        plan[0].kwargs["skip"] = 1


@pytest.mark.parametrize("nfe", [1, 2, 3, 7])
@pytest.mark.parametrize("name", SOLVERS)
def test_len_is_the_number_of_calls(name: str, nfe: int) -> None:
    """Also for two-call steps: a budget of n gives exactly n calls, counted while running."""
    plan = unstir.plan(name, VP, nfe=nfe)
    calls = 0

    def model(x, t):
        nonlocal calls
        calls += 1
        return 0.5 * x

    unstir.sample(model, plan, shape=(1, 2))
    assert len(plan) == plan.nfe == calls == nfe


def test_sequence_and_ends() -> None:
    plan = rich()
    assert (len(plan), len(plan.rows), plan.nfe) == (3, 4, 3)
    assert plan.times == [1.0, 0.8, 0.6, 0.5, 0.0]
    assert (plan.start, plan.end, plan.history, plan.stochastic) == (1.0, 0.0, 1, True)
    assert [row.t for row in plan] == plan.times[:-1]
    assert "rich" in repr(plan)


# -- files ------------------------------------------------------------------------------------------
def same_rows(one: Plan, two: Plan) -> None:
    """Bit for bit, tensors and signs of zero included."""
    assert len(one.rows) == len(two.rows)
    for a, b in zip(one.rows, two.rows, strict=True):
        for name in ("t", "to", "a", "c", "p", "q", "s", "e"):
            x, y = (torch.as_tensor(getattr(r, name), dtype=torch.float64) for r in (a, b))
            assert torch.equal(x, y), name
            assert torch.equal(x.signbit(), y.signbit()), name
        assert set(a.b) == set(b.b)
        for lag in a.b:
            assert torch.equal(torch.as_tensor(a.b[lag], dtype=torch.float64), torch.as_tensor(b.b[lag], dtype=torch.float64))
        assert (a.evaluate, a.boundary, dict(a.kwargs)) == (b.evaluate, b.boundary, dict(b.kwargs))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_saved_plan_comes_back_bitwise(tmp_path, name: str) -> None:
    number = list(SOLVERS).index(name)
    process = (VP, pr.EDM(), pr.Cosine(), pr.shifted(pr.from_betas(torch.linspace(1e-4, 0.02, 1000)), 2.0))[number % 4]
    plan = unstir.plan(name, process, nfe=5)
    again = Plan.load(plan.save(tmp_path / "plan.json"))
    same_rows(plan, again)
    assert again == plan
    assert again.process == process
    assert again.fingerprint() == plan.fingerprint()
    assert (again.name, again.order, again.offset, str(again)) == (plan.name, plan.order, plan.offset, str(plan))
    if name == "dpmpp-3m":  # the recipe came along
        assert again.tail(0.5) == plan.tail(0.5)


def test_every_field_survives_a_file(tmp_path) -> None:
    plan = rich()
    again = Plan.load(plan.save(tmp_path / "plan.json"))
    same_rows(plan, again)
    assert dict(again.options) == dict(plan.options)
    head, tail = plan.split(3)
    same_rows(tail, Plan.load(tail.save(tmp_path / "tail.json")))
    assert Plan.load(tmp_path / "tail.json").offset == 3
    assert Plan.load(head.save(tmp_path / "head.json")) == head


def test_the_fingerprint_sees_every_number() -> None:
    plan, prints = rich(), set()
    for i, row in enumerate(plan):
        for name in ("t", "to", "a", "c", "p", "q", "s", "e"):
            value = getattr(row, name)
            if name == "s" and not row.momentum:
                continue  # the row before makes no call, or there is none: s must stay 0
            changed = torch.nextafter(torch.as_tensor(value, dtype=torch.float64), torch.tensor(9.0, dtype=torch.float64))
            changed = changed if isinstance(value, torch.Tensor) else float(changed)
            prints.add(plan.map_rows(lambda j, r: dataclasses.replace(r, **{name: changed}) if j == i else r).fingerprint())  # noqa: B023
        for lag in row.b:
            b = {**row.b, lag: row.b[lag] * 2 + 1e-9}
            prints.add(plan.map_rows(lambda j, r: dataclasses.replace(r, b=b) if j == i else r).fingerprint())  # noqa: B023
        prints.add(plan.map_rows(lambda j, r: dataclasses.replace(r, kwargs={"n": 1}) if j == i else r).fingerprint())  # noqa: B023
        prints.add(plan.map_rows(lambda j, r: dataclasses.replace(r, boundary=not r.boundary) if j == i else r).fingerprint())  # noqa: B023
    assert len(prints) == (4 * 8 - 3) + 4 + 4 + 4
    assert plan.fingerprint() not in prints
    assert Plan(plan.rows, pr.VP(0.2)).fingerprint() != plan.fingerprint()
    assert Plan(plan.rows, VP, name="other").fingerprint() == plan.fingerprint()


def test_an_altered_file_is_refused(tmp_path) -> None:
    path = unstir.plan("dpmpp-2m", VP, nfe=4).save(tmp_path / "plan.json")
    good = json.loads(path.read_text())

    def rewrite(change) -> None:
        data = json.loads(json.dumps(good))
        change(data)
        path.write_text(json.dumps(data))

    for change in (
        lambda d: d["rows"][1].update(a=d["rows"][1]["a"] * (1 + 1e-15)),
        lambda d: d["rows"][2]["b"].update({"0": 0.5}),
        lambda d: d["process"].update(beta_max=19.0),
        lambda d: d.update(fingerprint="0" * 16),
        lambda d: d.pop("fingerprint"),
        lambda d: d["rows"].pop(),
    ):
        rewrite(change)
        with pytest.raises(ValueError, match="altered"):
            Plan.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(version=99), "format version 99"),
        (lambda d: d.update(format="other"), "is not a plan"),
        (lambda d: d.pop("rows"), "damaged"),
        (lambda d: d.update(rows=7), "damaged"),
        (lambda d: d["rows"][0].update(a=None), "damaged"),
        (lambda d: d["rows"][0].update(magic=1.0), "damaged"),
        (lambda d: d["rows"][0].update(b=[1]), "damaged"),
        (lambda d: d["rows"][0].update(a={"x": 1}), "damaged"),
        (lambda d: d["rows"][0].update(a=math.inf), "a is not finite"),
        (lambda d: d["rows"][0].update(a="fast"), "plan.json"),  # the file is named, whatever is wrong
        (lambda d: d["rows"][0].update(b={"one": 1.0}), "plan.json"),
        (lambda d: d.update(process={"kind": "Magic"}), "unknown process kind 'Magic'"),
        (lambda d: d.update(process=3), "damaged|process"),
        (lambda d: d.update(rows=[]), "at least one row"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, words: str) -> None:
    # FOUND: non-numeric entries ('a': "fast", a lag "one") escape without the file's name.
    path = unstir.plan("ddim", VP, nfe=2).save(tmp_path / "plan.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=words) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'"x"', pickle.dumps({"a": 1}), b"\xff\xfe\x00"])
def test_files_that_are_no_plans_are_refused_in_one_line(tmp_path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"plan\.json") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json is missing"):
        Plan.load(tmp_path / "nowhere.json")


def test_saving_is_atomic(tmp_path, monkeypatch) -> None:
    """A plan that cannot be written leaves the old file and no debris."""
    path = unstir.plan("ddim", VP, nfe=2).save(tmp_path / "plan.json")
    before = path.read_bytes()
    bad = Plan([Row(t=1.0, to=0.0, a=1.0, kwargs={"x": object()})], VP)
    with pytest.raises(TypeError):
        bad.save(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["plan.json"]


# -- text -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SOLVERS)
def test_the_printed_table_fits_80_columns(name: str) -> None:
    # FOUND: 85 columns as soon as p, q and two or more lags are shown (noise forms); the c column is 9 wide, not 8.
    """In every solver, also where the process is described by a thousand numbers."""
    for process in (VP, pr.EDM(), pr.Cosine(), pr.shifted(pr.from_betas(torch.linspace(1e-4, 0.02, 1000)), 2.0)):
        plan = unstir.plan(name, process, nfe=12)
        lines = str(plan).splitlines()
        assert max(map(len, lines)) <= 80
        assert name in lines[0]
        assert "12 calls" in lines[0]
        assert len(lines) == 4 + len(plan.rows)  # title, process, header, rows, end


def test_odd_tables_print_too() -> None:
    text = str(rich())
    assert max(map(len, text.splitlines())) <= 80
    assert "tensor" in text
    assert str(rich().split(3)[1]).splitlines()[3].split()[0] == "3"  # rows keep their numbers
    per_sample = Plan([Row(t=ODD / 4, to=ODD / 8, a=1.0, b={0: ODD})], VP)
    assert "tensor" in str(per_sample)
    assert "per sample" in repr(per_sample)


# -- pieces -----------------------------------------------------------------------------------------
def test_tail_is_the_solver_on_the_rest_of_the_grid() -> None:
    plan = unstir.plan("dpmpp-2m", VP, nfe=8, grid="uniform", lower_final=True)
    tail = plan.tail(0.5)
    assert tail.times == plan.times[4:]
    assert tail == unstir.plan("dpmpp-2m", VP, grid=plan.times[4:], lower_final=True)
    between = plan.tail(0.55)  # the given time becomes the first node
    assert between.times == [0.55, *plan.times[4:]]
    assert plan.tail(1.0) == plan
    assert tail.tail(0.25).times == plan.times[6:]
    for start in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="start="):
            plan.tail(start)
    with pytest.raises(ValueError, match=r"not made by unstir\.plan"):
        rich().tail(0.5)


def test_tail_of_a_two_call_method_keeps_its_options() -> None:
    plan = unstir.plan("heun", VP, nfe=9, grid="uniform")
    tail = plan.tail(plan.times[4])
    assert tail.end == 0.0
    assert tail.times[0] == plan.times[4]
    assert len(tail) == 5  # two full steps and the Euler step to 0


def test_split_finds_its_row() -> None:
    plan = unstir.plan("heun", VP, nfe=9)
    head, tail = plan.split(4)
    assert (head.rows, tail.rows, tail.offset) == (plan.rows[:4], plan.rows[4:], 4)
    assert tail.split(2)[1].offset == 6
    by_time, _ = plan.split(t=plan[4].t)
    assert len(by_time.rows) == 4
    with pytest.raises(ValueError, match="begins at an inner stage"):
        plan.split(3)
    for row in (0, 9, -1, 20):
        with pytest.raises(ValueError, match=f"row={row}"):
            plan.split(row)
    with pytest.raises(ValueError, match="exactly one"):
        plan.split()
    with pytest.raises(ValueError, match="exactly one"):
        plan.split(2, t=0.5)
    with pytest.raises(ValueError, match="no boundary"):
        plan.split(t=-1.0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one row"),
        ([Row(t=1.0, to=0.0, a=math.nan)], "row 0: a is not finite"),
        ([Row(t=1.0, to=0.0, a=1.0, b={0: math.inf})], "row 0: b is not finite"),
        ([Row(t=1.0, to=0.0, a=1.0, e=torch.tensor([math.nan]))], "row 0: e is not finite"),
        ([Row(t=1.0, to=0.0, a=1.0, b={1: 1.0})], "lag 1 reaches row -1"),
        ([Row(t=1.0, to=0.0, a=1.0, b={-1: 1.0})], "lag -1"),
        ([Row(t=1.0, to=0.0, a=1.0, b={0: 1.0}, evaluate=False)], "makes no call"),
        (
            [Row(t=1.0, to=0.5, a=1.0, evaluate=False), Row(t=0.5, to=0.0, a=1.0, b={1: 1.0})],
            "lag 1 reaches row 0, which makes",
        ),
    ],
)
def test_impossible_tables_are_refused(rows: list[Row], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Plan(rows, VP)


def test_a_first_row_with_s_is_refused_early() -> None:
    """s reads F of the row before, which row 0 (or a row after one without a call) does not have."""
    # FOUND: accepted when the plan is made; row 0 fails only when it runs.
    with pytest.raises(ValueError, match="row 0"):
        Plan([Row(t=1.0, to=0.0, a=1.0, b={0: 1.0}, s=0.5)], VP)


def test_integer_and_numpy_entries_are_numbers(tmp_path) -> None:
    """a=1 and np.float64(0) are what users write; they must run and travel like 1.0 and 0.0."""
    # FOUND: with s=0 or np.float64(0) row 0 "needs the F of the row before it"; a saved a=1 loads as "was altered"
    # (the fingerprint hashes 1, the file gives back 1.0).
    ints = Plan([Row(t=1, to=0, a=2, b={0: 1}, c=0, p=0, q=1, s=0, e=0)], VP)
    floats = Plan([Row(t=1.0, to=0.0, a=2.0, b={0: 1.0})], VP)
    numpy = Plan([Row(t=np.float64(1), to=np.float64(0), a=np.float64(2), b={0: np.float64(1)}, s=np.float64(0))], VP)
    x = torch.ones(1, 2)
    for plan in (ints, numpy):
        assert plan.fingerprint() == floats.fingerprint()
        assert Plan.load(plan.save(tmp_path / "plan.json")) == plan
        assert torch.equal(unstir.sample(lambda x, t: x, plan, x=x), 3 * x)


def test_keywords_that_json_cannot_give_back_are_refused(tmp_path) -> None:
    # FOUND: a tensor in a row's kwargs comes back as {"tensor": [...]}, without a word.
    mask = torch.ones(2, dtype=torch.float64)
    plan = Plan([Row(t=1.0, to=0.0, a=1.0, kwargs={"mask": mask})], VP)
    with pytest.raises((TypeError, ValueError), match="mask"):
        plan.save(tmp_path / "plan.json")


def test_statistics_of_a_tail_say_that_its_history_is_missing() -> None:
    # FOUND: KeyError(-1), from invariants() and from propagate().
    _, tail = unstir.plan("dpmpp-2m", VP, nfe=6).split(3)
    for ask in (tail.invariants, lambda: tail.propagate(0.5)):
        with pytest.raises(ValueError, match=r"history|split"):
            ask()
