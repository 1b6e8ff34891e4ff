"""Names: what they compile, how they are found, and how wrong calls are answered."""

from __future__ import annotations

import inspect

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.denoiser import Gaussian
from unstir.plan import Plan, Row
from unstir.solvers import SOLVERS, compiler, find, register

VP = pr.VP()


@pytest.mark.parametrize("name", SOLVERS)
def test_every_entry_is_complete(name: str) -> None:
    entry = SOLVERS[name]
    assert entry.name == name == name.lower()
    assert entry.paper
    assert entry.paper.rstrip()[-4:].isdigit()  # a title and its year
    assert inspect.getdoc(entry.compile)
    plan = unstir.plan(name, VP, nfe=6)
    assert isinstance(plan, Plan)
    assert (plan.name, plan.order) == (name, entry.order)
    assert dict(plan.options)["solver"] == name
    # The options that the name fixes are options of the function.
    assert set(entry.options) <= set(inspect.signature(entry.compile).parameters)


@pytest.mark.parametrize("name", SOLVERS)
def test_budgets_are_spent_exactly(name: str) -> None:
    for nfe in range(1, 13):
        for start, end in ((1.0, 0.0), (1.0, 0.02), (0.6, 0.0)):
            for process in (VP, pr.Flow()):
                plan = unstir.plan(name, process, nfe=nfe, start=start, end=end)
                assert (len(plan), plan.start, plan.end) == (nfe, start, end)


def test_names_are_found_whatever_their_spelling() -> None:
    assert find("DPMPP_2M") is find("dpmpp-2m") is SOLVERS["dpmpp-2m"]
    assert unstir.plan("Heun", VP, nfe=3) == unstir.plan("heun", VP, nfe=3)
    assert unstir.plan("AUTO", VP, nfe=3).name == unstir.plan("auto", VP, nfe=3).name


def test_same_methods_under_two_names() -> None:
    def numbers(name: str, **options) -> list[Row]:
        return unstir.plan(name, VP, nfe=5, **options)

    assert numbers("euler") == numbers("ddim")
    assert numbers("ancestral") == numbers("ddim", eta=1.0)
    assert numbers("dpmpp-3m") == numbers("ab-2", order=3)
    assert numbers("ddpm-large") == numbers("ddpm", variance="large")
    assert numbers("ddim") != numbers("ddim", eta=0.1)


def test_a_denoiser_lends_its_process() -> None:
    assert unstir.plan("ddim", Gaussian(VP, 0.0, std=1.0), nfe=4) == unstir.plan("ddim", VP, nfe=4)


def test_the_recipe_is_kept() -> None:
    plan = unstir.plan("ddim", VP, nfe=4, eta=0.5)
    options = dict(plan.options)
    assert (options["solver"], options["nodes"], options["solver_options"]) == ("ddim", plan.times, {"eta": 0.5})


def test_a_solver_of_your_own_in_a_few_lines() -> None:
    """What CONTRIBUTING promises: a generator of rows becomes a named solver, printable and savable."""

    @compiler
    def nearest(levels, pull: float = 1.0):
        """Go to the prediction, `pull` of the way."""
        for i in range(levels.n):
            yield Row(t=levels.times[i], to=levels.times[i + 1], a=1 - pull, b={0: pull})

    register("test-nearest", nearest, order=0, paper="None, 2025", options={"pull": 0.5})
    try:
        plan = unstir.plan("test-nearest", VP, nfe=3, exact_end=False)
        x = torch.full((1, 1), 8.0)
        assert float(unstir.sample(lambda x, t: 0 * x, plan, x=x)) == 1.0
        assert float(unstir.sample(lambda x, t: 0 * x, unstir.plan("test-nearest", VP, nfe=3, pull=1.0), x=x)) == 0.0
        with pytest.raises(ValueError, match="already a solver named 'test-nearest'"):
            register("test-nearest", nearest, order=0, paper="")
        with pytest.raises(ValueError, match="nearest has no option 'eta'; it has pull"):
            unstir.plan("test-nearest", VP, nfe=3, eta=1)
    finally:
        del SOLVERS["test-nearest"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: unstir.plan("ddim", VP, nfe=0), ValueError, "nfe=0"),
        (lambda: unstir.plan("ddim", VP, nfe=-1), ValueError, "nfe=-1"),
        (lambda: unstir.plan("ddim", VP, nfe=2.5), ValueError, "nfe=2.5"),
        (lambda: unstir.plan("ddim", VP, nfe=True), ValueError, "nfe=True"),
        (lambda: unstir.plan("ddim", VP, nfe="8"), ValueError, "nfe='8'"),
        (lambda: unstir.plan("ddim", VP), ValueError, "give nfe="),
        (lambda: unstir.plan("dpmpp-3", VP, nfe=4), ValueError, "unknown solver 'dpmpp-3'; did you mean .*dpmpp-3m"),
        (lambda: unstir.plan("huen", VP, nfe=4), ValueError, "did you mean .*heun"),
        (lambda: unstir.plan("zzzzzz", VP, nfe=4), ValueError, "unknown solver 'zzzzzz'; known: .*ddim"),
        (lambda: unstir.plan("", VP, nfe=4), ValueError, "unknown solver ''"),
        (lambda: unstir.plan(7, VP, nfe=4), TypeError, "solver name is int"),
        (lambda: unstir.plan("ddim", "VP", nfe=4), TypeError, "process is str"),
        (lambda: unstir.plan("ddim", nfe=4), TypeError, "process is NoneType"),
        (lambda: unstir.plan("ddim", VP, nfe=4, order=2), ValueError, "ddim has no option 'order'; it has eta"),
        (lambda: unstir.plan("ddim", VP, nfe=4, grid="magic"), ValueError, "unknown grid 'magic'"),
        (lambda: unstir.plan("ddim", VP, nfe=4, start=0.2, end=0.5), ValueError, "start=0.2, end=0.5"),
        (lambda: unstir.plan("ddim", VP, nfe=4, start=0.0), ValueError, "start=0.0"),
        (lambda: unstir.plan("ddim", VP, nfe=4, start=2.0), ValueError, "start=2.0"),
        (lambda: unstir.plan("ddim", VP, nfe=4, end=-0.5), ValueError, "end=-0.5"),
        (lambda: unstir.plan("ddim", VP, nfe=4, start=float("nan")), ValueError, "start=nan"),
        # FOUND: IndexError "list index out of range".
        (lambda: unstir.plan("heun", VP, grid=[1.0, 0.5, 0.0], stages=[2]), ValueError, "stages"),
        # FOUND: a string is taken for the very options of ddim: TypeError "'>=' not supported between …", from inside.
        (lambda: unstir.plan("ddim", VP, nfe=4, eta="1"), (ValueError, TypeError), "eta='1'"),
    ],
)
def test_bad_calls_are_named_in_one_line(call, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_explicit_nodes_and_nfe_agree_for_two_call_methods() -> None:
    """nfe beside explicit nodes is a budget: three nodes are two Heun steps, 3 calls with an end at σ = 0."""
    plan = unstir.plan("heun", VP, nfe=3, grid=[1.0, 0.5, 0.0])
    assert len(plan) == 3
    with pytest.raises(ValueError, match="3 nodes"):
        unstir.plan("heun", VP, nfe=6, grid=[1.0, 0.5, 0.0])


def test_a_name_may_carry_its_grid() -> None:
    """AUTOMATIC1111 says "DPM++ 2M Karras"; an explicit grid wins."""
    karras = unstir.plan("dpmpp-2m", VP, nfe=5, grid="karras")
    assert unstir.plan("DPM++ 2M Karras", VP, nfe=5) == unstir.plan("dpmpp_2m_karras", VP, nfe=5) == karras
    assert unstir.plan("DPM++ 2M SDE Exponential", VP, nfe=5) == unstir.plan("dpmpp-2m-sde", VP, nfe=5, grid="logsnr")
    assert unstir.plan("DPM++ 2M Karras", VP, nfe=5, grid="uniform") == unstir.plan("dpmpp-2m", VP, nfe=5, grid="uniform")
