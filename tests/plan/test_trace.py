"""The tracer as oracle: textbook loops, copied from their papers, against the hand-written compilers. And propagation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.denoiser import Gaussian
from unstir.plan import Plan, Row, trace
from unstir.solvers import SOLVERS

VP, EDM, FLOW = pr.VP(), pr.EDM(), pr.Flow()


def numbers(p: pr.Process, t: float) -> tuple[float, float]:
    return float(p.alpha(t)), float(p.sigma(t))


def ddim(net, x, p, times, eta=0.0):
    """DDIM, equations 12 and 16, in ε."""
    for t, s in itertools.pairwise(times):
        (a, sig), (a2, sig2) = numbers(p, t), numbers(p, s)
        data = net.denoise(x, t)
        eps = (x - a * data) / sig
        up = eta * math.sqrt(sig2**2 / sig**2 * (1 - a**2 / a2**2))
        x = a2 * data + math.sqrt(sig2**2 - up**2) * eps
        if up:
            x = x + up * net.noise()
    return x


def ddpm(net, x, p, times):
    """DDPM, equation 7: mean and variance β̃ of the posterior."""
    for t, s in itertools.pairwise(times):
        bar, bar2 = float(p.alpha(t)) ** 2, float(p.alpha(s)) ** 2
        alpha = bar / bar2
        beta = 1 - alpha
        data = net.denoise(x, t)
        x = math.sqrt(bar2) * beta / (1 - bar) * data + math.sqrt(alpha) * (1 - bar2) / (1 - bar) * x
        if s > 0:
            x = x + math.sqrt((1 - bar2) / (1 - bar) * beta) * net.noise()
    return x


def heun(net, x, p, times):
    """EDM, algorithm 1 (σ = σ_max t, no churn)."""
    for t, s in itertools.pairwise(times):
        sig, sig2 = p.sigma_max * t, p.sigma_max * s
        d = (x - net.denoise(x, t)) / sig
        end = x + (sig2 - sig) * d
        if sig2 != 0:
            d2 = (end - net.denoise(end, s)) / sig2
            end = x + (sig2 - sig) * (d / 2 + d2 / 2)
        x = end
    return x


def dpmpp_2m(net, x, p, times, eta=0.0):
    """k-diffusion's sample_dpmpp_2m and sample_dpmpp_2m_sde (midpoint), on a process with α = 1."""
    old = h_last = None
    for t, s in itertools.pairwise(times):
        sig, sig2 = p.sigma_max * t, p.sigma_max * s
        data = net.denoise(x, t)
        if sig2 == 0:
            x = data
        else:
            h = math.log(sig / sig2)
            eta_h = eta * h
            x = sig2 / sig * math.exp(-eta_h) * x + -math.expm1(-h - eta_h) * data
            if old is not None:
                r = h_last / h
                x = x + 0.5 * -math.expm1(-h - eta_h) * (1 / r) * (data - old)
            if eta:
                x = x + sig2 * math.sqrt(-math.expm1(-2 * eta_h)) * net.noise()
            h_last = h
        old = data
    return x


def euler_flow(net, x, p, times):
    """Flow matching: x ← x + (t' − t) v, v = z − x0 = (x − D)/t."""
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * ((x - net.denoise(x, t)) / t)
    return x


def same(one: Plan, two: Plan, tolerance: float = 1e-12) -> None:
    assert len(one.rows) == len(two.rows)
    for i, (r, q) in enumerate(zip(one.rows, two.rows, strict=True)):
        assert (r.t, r.to) == pytest.approx((q.t, q.to), abs=1e-15), i
        assert (r.p, r.q, r.s, r.e, r.evaluate) == (q.p, q.q, q.s, q.e, q.evaluate), i
        assert float(r.a) == pytest.approx(float(q.a), rel=tolerance, abs=tolerance), i
        assert float(r.c) == pytest.approx(float(q.c), rel=1e-7, abs=1e-9), i
        for lag in set(r.b) | set(q.b):
            assert float(r.b.get(lag, 0)) == pytest.approx(float(q.b.get(lag, 0)), rel=tolerance, abs=tolerance), (i, lag)


@pytest.mark.parametrize("end", [0.0, 0.02])
@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize(
    ("loop", "name", "process", "options"),
    [
        (ddim, "ddim", VP, {}),
        (ddim, "ddim", pr.Cosine(), {}),
        (ddim, "ancestral", VP, {"eta": 1.0}),
        (ddim, "ddim", VP, {"eta": 0.4}),
        (ddpm, "ddpm", VP, {}),
        (ddpm, "sde", VP, {}),  # the exponential step with η = 1 is DDPM
        (heun, "heun", EDM, {}),
        (dpmpp_2m, "dpmpp-2m", EDM, {}),
        (dpmpp_2m, "dpmpp-2m-sde", EDM, {"eta": 1.0}),
        (euler_flow, "euler", FLOW, {}),
    ],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", ""),
)
def test_textbook_loops_give_the_tables_of_the_compilers(loop, name: str, process, options, nfe: int, end: float) -> None:
    # FOUND: rounding left in the coefficient of an old noise (absolute threshold 1e-15) is taken for a use of it.
    nodes = unstir.plan("ddim", process, nfe=nfe, end=end, grid="uniform").times
    given = {} if name == "ancestral" else {k: v for k, v in options.items() if name == "ddim"}
    if isinstance(process, pr.Cosine):
        nodes[0] = 0.99  # textbook DDIM divides by α
    same(unstir.plan(name, process, grid=nodes, **given), trace(loop, process, nodes, **options))


def test_flow_euler_is_the_ddim_row_from_alpha_zero_to_sigma_zero() -> None:
    nodes = torch.linspace(1, 0, 11, dtype=torch.float64).tolist()
    plan, loop = unstir.plan("ddim", FLOW, grid=nodes), trace(euler_flow, FLOW, nodes)
    for r, q in zip(plan, loop, strict=True):
        assert abs(r.a - q.a) < 1e-14
        assert abs(r.b[0] - q.b[0]) < 1e-14
        assert r.c == q.c == 0


def test_a_loop_that_stirs_first_gets_a_row_without_a_call() -> None:
    def churned(net, x, p, times):
        x = x + 0.3 * net.noise()
        return net.denoise(x, times[0])

    plan = trace(churned, EDM, [0.5, 0.0])
    assert [row.evaluate for row in plan] == [False, True]
    assert (plan[0].a, plan[0].c) == (1.0, 0.3)
    assert len(plan) == 1
    x = unstir.sample(lambda x, t: x, plan, x=torch.zeros(4, 3), noise={0: torch.ones(4, 3)})
    torch.testing.assert_close(x, torch.full((4, 3), 0.3))


def test_several_noises_of_one_row_add_their_variances() -> None:
    def loop(net, x, p, times):
        return net.denoise(x, times[0]) + 3 * net.noise() + 4 * net.noise()

    assert trace(loop, EDM, [0.5, 0.0])[0].c == 5.0


def test_loops_that_are_no_tables_are_refused() -> None:
    def again(net, x, p, times):
        z = net.noise()
        x = net.denoise(x, times[0]) + z
        return net.denoise(x, times[0]) + 0.5 * x + z

    with pytest.raises(ValueError, match="noises"):
        trace(again, EDM, [0.5, 0.0])
    with pytest.raises(ValueError, match="no call"):
        trace(lambda net, x, p, times: x, EDM, [0.5, 0.0])

    def revenant(net, x, p, times):
        return net.denoise(net.denoise(x, times[0]), times[0]) + x

    with pytest.raises(ValueError, match="start state again"):
        trace(revenant, EDM, [0.5, 0.0])


# -- exact statistics ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SOLVERS)
def test_propagation_is_what_sampling_gives(name: str) -> None:
    """Mean and standard deviation of a run on Gaussian data, predicted from the rows and measured on 20000 samples."""
    m, s, n = 0.8, 0.5, 20000
    model, plan = Gaussian(VP, m, std=s), unstir.plan(name, VP, nfe=5)

    def gain(t: float) -> float:
        a, sig = numbers(VP, t)
        return a * s**2 / (a**2 * s**2 + sig**2)

    stats = plan.propagate(gain, lambda t: m * (1 - gain(t) * float(VP.alpha(t))))
    runs = list(unstir.steps(model, plan, shape=(n, 1), dtype=torch.float64, seed=2))
    assert len(stats) == len(runs)
    for (mean, std), step in zip(stats, runs, strict=True):
        assert float(step.x.mean()) == pytest.approx(mean, abs=4.5 * std / math.sqrt(n) + 1e-6)
        assert float(step.x.std()) == pytest.approx(std, rel=0.025)


def test_propagation_by_hand() -> None:
    """X1 = 2X + D + z, D = 3X + 1, from N(5, 4):  mean 26, variance 100 + 1; then s and e and history."""
    rows = [
        Row(t=1.0, to=0.5, a=2.0, b={0: 1.0}, c=1.0),
        Row(t=0.5, to=0.0, a=0.0, b={0: 1.0, 1: 2.0}, q=0.0, p=1.0, s=0.5, e=7.0),
    ]
    (m1, s1), (m2, s2) = Plan(rows, VP).propagate(3.0, 1.0, x_mean=5.0, x_std=2.0)
    assert (m1, s1**2) == pytest.approx((26, 101))
    # F0 = D0 = 3X0 + 1 (mean 16); F1 = X1 + F0/2; X2 = F1 + 2 F0 + 7 = X1 + 2.5 F0 + 7 = 5X0 + 1 + z + 7.5 X0 + 2.5 + 7
    assert m2 == pytest.approx(26 + 40 + 7)
    assert s2**2 == pytest.approx((12.5 * 2) ** 2 + 1)


@pytest.mark.parametrize("bad", ["a", "b"])
def test_the_invariants_see_a_wrong_number(bad: str) -> None:
    plan = unstir.plan("dpmpp-2m", VP, nfe=6)
    one, two = plan.invariants()
    assert max(one + two) < 1e-13
    import dataclasses

    change = {"a": lambda r: {"a": r.a * 1.001}, "b": lambda r: {"b": {0: r.b[0] * 1.001}}}[bad]
    broken = plan.map_rows(lambda i, r: dataclasses.replace(r, **change(r)) if i == 3 else r)
    one, two = broken.invariants()
    assert max(one + two) > 1e-6
    assert max(one[:3] + two[:3]) < 1e-13
