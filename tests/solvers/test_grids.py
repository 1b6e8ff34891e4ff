"""Grids: exact ends, monotone, and the published formulas by hand."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import unstir
from unstir import process as pr
from unstir.solvers import GRIDS, make_grid
from unstir.solvers.levels import Levels

VP, EDM, FLOW = pr.VP(), pr.EDM(), pr.Flow()
TABLE = pr.from_betas(np.linspace(1e-4, 0.02, 1000))
LABELS = ("leading", "trailing", "linspace")
# The published tables hold the levels of one model each and are tested apart; "beta" needs scipy.
REGULAR = [g for g in GRIDS if not g.startswith("ays") and (g != "beta" or find_spec("scipy"))]


@pytest.mark.parametrize("grid", REGULAR)
def test_ends_are_exact_and_the_logsnr_increases(process: pr.Process, grid: str) -> None:
    # FOUND: "quadratic" misses a start or end other than 0 and 1 by a rounding: (√0.7)² = 0.7000000000000001.
    spans = ((1.0, 0.0), (0.7, 0.0), (1.0, 0.05), (0.6, 0.2))
    for n, (start, end) in itertools.product((1, 2, 3, 10), spans[:2] if grid in LABELS else spans):
        nodes = make_grid(grid, process, n, start, end)
        assert len(nodes) == n + 1
        assert nodes[-1] == end
        assert nodes[0] == start or grid in LABELS
        assert all(a > b for a, b in itertools.pairwise(nodes)), (n, start, end, nodes)
        Levels(process, nodes)  # refuses unless λ increases strictly


@pytest.mark.parametrize("grid", ["logsnr", "karras"])
def test_nodes_just_above_the_end_of_the_span(process: pr.Process, grid: str) -> None:
    """Starts and ends near the borders of `span`, where the rule for open ends changes."""
    low, high = process.span
    for start, end in (
        (1.0, low),
        (high, low),
        (1.0, low * 0.999),
        (low * 1.001, 0.0),
        (low, 0.0),
        (low / 2, 0.0),
        (1.0, low / 2),
    ):
        for n in (1, 2, 3, 8):
            nodes = make_grid(grid, process, n, start, end)
            assert (nodes[0], nodes[-1]) == (start, end)
            assert all(a > b for a, b in itertools.pairwise(nodes)), (n, start, end, nodes)


def test_uniform_and_power_grids_by_hand() -> None:
    assert make_grid("uniform", VP, 4, 1.0, 0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert make_grid("time", VP, 4, 1.0, 0.2) == make_grid("uniform", VP, 4, 1.0, 0.2)
    assert make_grid("quadratic", VP, 4, 1.0, 0.0) == pytest.approx([1.0, 9 / 16, 1 / 4, 1 / 16, 0.0])
    # DEIS: t_i = (t_T^{1/κ} + (i/N)(t_0^{1/κ} − t_T^{1/κ}))^κ
    for kappa in (1.0, 2.0, 3.5):
        expected = [(1 + i / 5 * (0.01 ** (1 / kappa) - 1)) ** kappa for i in range(6)]
        assert make_grid("quadratic", VP, 5, 1.0, 0.01, kappa=kappa) == pytest.approx(expected, rel=1e-12)


def test_logsnr_is_uniform_in_the_logsnr(process: pr.Process) -> None:
    start, end = process.span[1], process.span[0]
    lam = process.logsnr(torch.tensor(make_grid("logsnr", process, 9, start, end), dtype=torch.float64))
    torch.testing.assert_close(lam.diff(), (lam[-1] - lam[0]).expand(9) / 9, rtol=1e-9, atol=0)
    # With end = 0, n nodes are uniform down to the span and σ = 0 is appended.
    full = make_grid("logsnr", process, 9, start, 0.0)
    assert full[:-1] == pytest.approx(make_grid("logsnr", process, 8, start, end), rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 18])
def test_karras_is_the_formula_of_edm(n: int) -> None:
    """σ_i = (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ for i < N, and σ_N = 0; ρ = 7."""
    for rho in (7.0, 3.0):
        high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
        sigma = [(high + i / (n - 1) * (low - high)) ** rho for i in range(n)] + [0.0]
        assert [80 * t for t in make_grid("karras", EDM, n, 1.0, 0.0, rho=rho)] == pytest.approx(sigma, rel=1e-9)
    # On any process it is the same rule for σ̂ = σ/α.
    nodes = torch.tensor(make_grid("karras", VP, n, 1.0, 0.01), dtype=torch.float64)
    ramp = VP.noise_ratio(nodes) ** (1 / 7)
    torch.testing.assert_close(ramp.diff(), (ramp[-1] - ramp[0]).expand(n) / n, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("grid", "n", "labels"),
    [
        # diffusers' DDIMScheduler(timestep_spacing=…).set_timesteps(n), T = 1000, steps_offset 0
        ("leading", 4, [750, 500, 250, 0]),
        ("leading", 3, [666, 333, 0]),
        ("trailing", 4, [999, 749, 499, 249]),
        ("trailing", 3, [999, 666, 332]),
        ("trailing", 7, [999, 856, 713, 570, 428, 285, 142]),
        # DPMSolverMultistepScheduler(timestep_spacing="linspace"): n + 1 points, the last dropped
        ("linspace", 4, [999, 749, 500, 250]),
        ("linspace", 5, [999, 799, 599, 400, 200]),
        ("linspace", 1, [999]),
    ],
)
def test_label_grids(grid: str, n: int, labels: list[int]) -> None:
    nodes = make_grid(grid, TABLE, n, 1.0, 0.0)
    assert [1000 * t - 1 for t in nodes[:-1]] == pytest.approx(labels, abs=1e-9)
    assert TABLE.label(torch.tensor(nodes[:-1], dtype=torch.float64)).tolist() == pytest.approx(labels, abs=1e-9)
    if grid == "leading":
        shifted = make_grid(grid, TABLE, n, 1.0, 0.0, offset=1)
        assert [1000 * t - 1 for t in shifted[:-1]] == pytest.approx([label + 1 for label in labels])


def test_labels_of_an_unusual_table() -> None:
    table = pr.from_betas(np.linspace(0.001, 0.3, 40))
    assert [40 * t - 1 for t in make_grid("trailing", table, 4, 1.0, 0.0)[:-1]] == pytest.approx([39, 29, 19, 9])
    with pytest.raises(ValueError, match="use fewer steps"):
        make_grid("trailing", table, 41, 1.0, 0.0)


def test_a_shifted_table_has_the_labels_of_its_table() -> None:
    table = pr.from_betas(np.linspace(0.001, 0.3, 40))
    # FOUND: `Shifted` hides the table, T = 1000 is assumed: labels 39, 25.68, 12.32.
    nodes = make_grid("trailing", pr.shifted(table, 2.0), 3, 1.0, 0.0)
    assert [40 * t - 1 for t in nodes[:-1]] == pytest.approx([39, 26, 12])


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.startswith("ays")])
def test_published_tables(grid: str) -> None:
    """Ten steps: the published σ̂ (the first node is the start whatever its σ̂) and 0; other N are interpolated."""
    published = {
        "ays-sd": [6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0],
        "ays-sdxl": [6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0],
        "ays-svd": [54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.0],
    }[grid]
    for process in (pr.EDM(sigma_max=700.0), VP, pr.Flow()):
        nodes = make_grid(grid, process, 10, 1.0, 0.0)
        assert process.noise_ratio(torch.tensor(nodes[1:], dtype=torch.float64)).tolist() == pytest.approx(published, rel=1e-9)
        assert nodes[0] == 1.0
    for n in (1, 2, 5, 23):
        nodes = (
            make_grid(grid, EDM, n, 1.0, 0.0) if grid != "ays-svd" else make_grid(grid, pr.EDM(sigma_max=701.0), n, 1.0, 0.0)
        )
        assert len(nodes) == n + 1
        assert all(a > b for a, b in itertools.pairwise(nodes))
    with pytest.raises(ValueError, match=r"only \d nodes between"):  # the process has no such levels
        make_grid(grid, EDM, 5, 0.0005, 0.0004)


def test_explicit_nodes_and_functions() -> None:
    nodes = [1.0, 0.6, 0.2, 0.0]
    plan = unstir.plan("ddim", VP, grid=nodes)
    assert plan.times == nodes
    assert unstir.plan("ddim", VP, nfe=3, grid=nodes) == plan
    assert unstir.plan("ddim", VP, nfe=3, grid=torch.tensor(nodes, dtype=torch.float64)).times == nodes
    assert unstir.plan("ddim", VP, grid=np.array(nodes)).times == nodes

    def halves(process: pr.Process, n: int, start: float, end: float, base: float = 2.0) -> list[float]:
        return [start * base**-i for i in range(n)] + [end]

    assert unstir.plan("ddim", VP, nfe=3, grid=halves).times == [1.0, 0.5, 0.25, 0.0]
    assert unstir.plan("ddim", VP, nfe=3, grid=halves, grid_options={"base": 4.0}).times == [1.0, 0.25, 0.0625, 0.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_grid("magic", VP, 4, 1.0, 0.0), "unknown grid 'magic'; known: .*uniform"),
        (lambda: make_grid("uniform", VP, 0, 1.0, 0.0), "at least 1 step"),
        (lambda: make_grid("uniform", VP, 4, 0.2, 0.5), "start=0.2, end=0.5"),
        (lambda: make_grid("uniform", VP, 4, 0.5, 0.5), "start=0.5, end=0.5"),
        (lambda: make_grid("uniform", VP, 4, 1.5, 0.0), "start=1.5"),
        (lambda: make_grid("uniform", VP, 4, 1.0, -0.1), "end=-0.1"),
        (lambda: make_grid("uniform", VP, 4, math.nan, 0.0), "start=nan"),
        (lambda: make_grid("uniform", VP, 4, 1.0, math.nan), "end=nan"),
        (lambda: make_grid("karras", VP, 4, 1.0, 0.0, rho=0), "rho=0"),
        (lambda: make_grid("quadratic", VP, 4, 1.0, 0.0, kappa=-1), "kappa=-1"),
        (lambda: make_grid([1.0, 0.5], VP, 4, 1.0, 0.0), "2 nodes; 4 steps need 5"),
        (lambda: make_grid(lambda p, n, s, e: [1.0], VP, 4, 1.0, 0.0), "1 nodes; 4 steps need 5"),
        (lambda: unstir.plan("ddim", VP, nfe=1001, grid="trailing"), "use fewer steps"),
        (lambda: unstir.plan("ddim", VP, grid=[1.0]), "at least a start and an end"),
        (lambda: unstir.plan("ddim", VP, grid=[1.0, 0.5, 0.5]), "step 1 goes from t = 0.5"),
        (lambda: unstir.plan("ddim", VP, grid=[0.5, 0.9]), "strictly increasing log-SNR; step 0"),
        (lambda: unstir.plan("ddim", VP, grid=[1.2, 0.9]), r"times must lie in \[0, 1\]; got \[1.2\]"),
        (lambda: unstir.plan("ddim", VP, grid=[1.0, math.nan]), r"times must lie in \[0, 1\]"),
        # FOUND: an option that the grid does not have is a TypeError from inside ("unexpected keyword argument").
        (lambda: unstir.plan("ddim", VP, nfe=4, grid="karras", grid_options={"kappa": 3}), "no option 'kappa'; it has rho"),
    ],
)
def test_bad_grids_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
