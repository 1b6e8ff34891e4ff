"""MR Sampler, ResShift, RDDM: what their plans and models are, without training."""

from __future__ import annotations

import math

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.systems import mrs, rddm, resshift

F64 = torch.float64


def given(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_strided_samplers_are_right_at_full_length_only() -> None:
    """With every level visited the reference is the ancestral step; with a tenth of them it does not reach the data's scale."""
    p = mrs.PROCESS
    full = mrs.strided(p, 100)
    nodes = [(n + 1) / 101 for n in range(100, -1, -1)]
    ours = unstir.plan("ddpm", p, grid=nodes)
    for a, b in zip(full, ours, strict=True):
        assert (a.a, a.b[0], a.c) == pytest.approx((b.a, b.b[0], b.c), rel=1e-9)
    one, _ = full.invariants()
    few, _ = mrs.strided(p, 10).invariants()
    assert max(one) < 1e-12
    assert few[-1] > 0.2
    assert mrs.strided(p, 10, "euler").frame == "residual"


@pytest.mark.parametrize(
    ("options", "words"), [({"kind": "pde"}, "kind='pde'"), ({"order": 3}, "order=3")], ids=["kind", "order"]
)
def test_wrong_options_of_mr_sampler_are_named(options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mrs.mean_reverting_plan(mrs.PROCESS, 5, **options)


def test_mr_sampler_can_end_at_clean_data() -> None:
    plan = mrs.mean_reverting_plan(mrs.PROCESS, 6, clean=True)
    assert (len(plan), plan.end, plan.rows[-1].a, plan.rows[-1].c) == (6, 0.0, 0.0, 0.0)
    assert mrs.mean_reverting_plan(mrs.PROCESS, 6).end == pytest.approx(1 / 101)


def test_resshift_with_a_perfect_network_returns_the_picture() -> None:
    x0, y = given(0, 3, 4), given(1, 3, 4)
    for process in (resshift.FOUR, resshift.FIFTEEN):
        plan = resshift.resshift_plan(process)
        assert len(plan) == process.levels
        model = unstir.Denoiser(lambda x, t: x0, process, "data")  # it does not see y, and need not
        torch.testing.assert_close(unstir.sample(model, plan, anchor=y, dtype=F64), x0, rtol=0, atol=1e-15)
        labels = process.label(resshift.at_levels(process).quantile(process, torch.linspace(0, 1, 200, dtype=F64)))
        assert sorted({round(v, 6) for v in labels.tolist()}) == list(range(process.levels))


def test_two_fields_that_agree_are_one_prediction() -> None:
    """R̂ = y − D and ẑ = (u − αD)/σ of one D: the published step with two fields is the plan's own."""
    p = pr.RDDM(scale=0.3)
    law = unstir.Denoiser(lambda x, t, anchor: torch.tanh(x) + 0.2 * anchor, p, "data", sees_anchor=True)
    both = rddm.TwoFields(
        p, lambda x, t, anchor: anchor - law(x, t, anchor=anchor), lambda x, t, anchor: rddm._noise(law, x, t, anchor)
    )
    x, y, noises = given(2, 3, 4), given(3, 3, 4), {i: given(5 + i, 3, 4) for i in range(5)}
    for eta in (0.0, 0.4, 1.0):
        plan = rddm.rddm_plan(p, 5, eta=eta, start=0.9)
        one = unstir.sample(law, plan, x=x, anchor=y, noise=noises)
        torch.testing.assert_close(unstir.sample(both, plan, x=x, anchor=y, noise=noises), one, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="reads its history"):
        unstir.sample(both, unstir.plan("ab-2", p, nfe=4, start=0.9), x=x, anchor=y)


def test_two_fields_that_disagree_take_the_published_step() -> None:
    """x' = x − (ᾱ−ᾱ')R̂ − (β̄−β̄')ẑ, and x̂0 = x − ᾱR̂ − β̄ẑ at the end."""
    p = pr.RDDM(scale=0.3)
    r, z = given(6, 2, 4), given(7, 2, 4)
    both = rddm.TwoFields(p, lambda x, t, anchor: r * float(t), lambda x, t, anchor: z + float(t))
    x, y = given(8, 2, 4), given(9, 2, 4)
    plan = rddm.rddm_plan(p, 4, start=0.9)
    v = x
    for row in plan:
        bar, bar2, noise, noise2 = (float(f(t)) for f in (p.beta, p.sigma) for t in (row.t, row.to))
        v = v - (bar - bar2) * r * row.t - (noise - noise2) * (z + row.t)
    torch.testing.assert_close(unstir.sample(both, plan, x=x, anchor=y), v, rtol=1e-12, atol=1e-12)


def test_generation_does_not_depend_on_the_path() -> None:
    pytest.importorskip("diffusers")
    assert max(rddm.path_independence(6).values()) < 1e-5


def test_rddm_is_ddim_where_its_coefficients_are() -> None:
    """ᾱ = 1 − √ā, β̄ = √(1 − ā), y = 0: x' = x − (ᾱ−ᾱ')R̂ − (β̄−β̄')ẑ with R̂ = (x − β̄ẑ)/(ᾱ − 1) is DDIM's step."""
    table = pr.from_betas(torch.linspace(1e-3, 0.2, 50, dtype=F64))
    x, z = given(10, 2, 5)
    row = unstir.plan("ddim", table, grid=[0.8, 0.5])[0]
    (a, a2), (s, s2) = ([float(f(t)) for t in (0.8, 0.5)] for f in (table.alpha, table.sigma))
    r = (x - s * z) / -a
    published = x - ((1 - a) - (1 - a2)) * r - (s - s2) * z
    torch.testing.assert_close(row.a * x + row.b[0] * (x - s * z) / a, published, rtol=1e-13, atol=1e-13)
    assert math.isclose(a**2 + s**2, 1)
