"""GITS, OSS and fitted nodes on real digits with their exact denoiser; brute force on a small grid."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

import unstir
from unstir.process import VP
from unstir.solvers import make_grid
from unstir.systems._digits import exact, pca_digits
from unstir.tune import grid

PROCESS = VP()
END = 1e-3


@pytest.fixture(scope="module")
def bench():
    model = exact(pca_digits(400), PROCESS)
    x = PROCESS.prior((96, 20), seed=7, dtype=torch.float64)
    return model, x, unstir.sample(model, unstir.plan("ab-2", PROCESS, nfe=300, grid="logsnr", end=END), x=x)


def median(bench, nodes, solver="ddim"):
    model, x, goal = bench
    end = unstir.sample(model, unstir.plan(solver, PROCESS, grid=nodes), x=x)
    return float((end - goal).square().mean(1).sqrt().median())


def test_six_ddim_steps_on_digits_as_in_the_dossier(bench):
    """Uniform λ .28; GITS and OSS below half of it and below the quadratic grid, on noises they have not seen."""
    uniform = median(bench, make_grid("logsnr", PROCESS, 6, 1.0, END))
    quadratic = median(bench, make_grid("quadratic", PROCESS, 6, 1.0, END))
    for search in (grid.gits, grid.oss):
        found = median(bench, search(bench[0], 6, end=END, grid="logsnr"))
        assert found < 0.5 * uniform
        assert found < quadratic


def test_fitted_nodes_beat_the_default_grid(bench):
    model, x, goal = bench
    nodes = grid.fitted(model, 5, "auto", end=END, samples=128)

    def rms(nodes):
        return float((unstir.sample(model, unstir.plan("auto", PROCESS, grid=nodes), x=x) - goal).square().mean().sqrt())

    assert rms(nodes) < 0.8 * rms(make_grid("logistic", PROCESS, 5, 1.0, END))


def test_gits_is_the_least_of_all_paths(bench):
    """Against brute force over all choices of the inner nodes of a grid of eight steps."""
    model = bench[0]
    source, nodes, x, cond = grid._setting(model, 3, 16, 8, end=END)
    states = grid._teacher(source, nodes, x, cond)
    alpha, sigma = PROCESS.alpha(torch.tensor(nodes).double()), PROCESS.sigma(torch.tensor(nodes).double())

    def cost(j, k):
        r = sigma[k] / sigma[j]
        end = r * states[j] + (alpha[k] - r * alpha[j]) * model(states[j], nodes[j])
        return float((end - states[k]).norm(dim=1).mean())

    paths = [(0, *inner, 8) for inner in combinations(range(1, 8), 2)]
    best = min(paths, key=lambda path: sum(cost(j, k) for j, k in pairwise(path)))
    assert grid.gits(model, 3, samples=16, fine=8, end=END) == [nodes[j] for j in best]


def test_all_steps_of_the_fine_grid(bench):
    nodes = make_grid("auto", PROCESS, 4, 1.0, END)
    assert grid.gits(bench[0], 4, samples=8, fine=4, end=END) == nodes == grid.oss(bench[0], 4, samples=8, fine=4, end=END)


@pytest.mark.parametrize("nfe", [0, 9, True, 2.5])
def test_bad_budgets(bench, nfe):
    with pytest.raises(ValueError, match="nfe"):
        grid.gits(bench[0], nfe, fine=8)
