"""First-order steps are one number; the published formulas of each name; and all solvers on all processes and grids."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.solvers import GRIDS, SOLVERS

VP, EDM, FLOW = pr.VP(), pr.EDM(), pr.Flow()
REGULAR = [g for g in GRIDS if not g.startswith("ays") and (g != "beta" or find_spec("scipy"))]  # see test_grids
# Published with a variance that leaves the marginals, see its docstring.
OVERSHOOTS = {"ddpm-large"}
# FOUND: these three leave the bar of 1e-12 on uneven grids at N = 4 … 8: constant-step weights amplify rounding there.
LOOSE = {"plms": 1e-9, "pndm": 1e-7, "bdia": 1e-9}


def bounded(x: torch.Tensor, t) -> torch.Tensor:
    return torch.tanh(x)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_process_grid_and_budget_is_finite_and_invariant(process: pr.Process, name: str) -> None:
    """N = 1 … 8, the grids in turn: every (solver, process, N) occurs, with eight of the grids each."""
    shift = list(SOLVERS).index(name)
    for nfe in range(1, 9):
        grid = REGULAR[(nfe + 8 * shift + shift // 3) % len(REGULAR)]
        plan = unstir.plan(name, process, nfe=nfe, grid=grid)
        assert len(plan) == nfe
        assert plan.end == 0
        x = unstir.sample(bounded, plan, shape=(1, 2), dtype=torch.float64)
        assert torch.isfinite(x).all(), (nfe, grid)
        one, two = plan.invariants()
        assert max(one) < LOOSE.get(name, 1e-12), (nfe, grid)
        assert max(two) < LOOSE.get(name, 1e-12) or name in OVERSHOOTS, (nfe, grid)


def pairs(process: pr.Process) -> list[tuple[float, float]]:
    return [(0.9, 0.6), (0.5, 0.49), (0.99, 0.02)]


def hat(p: pr.Process, t: float) -> tuple[float, float]:
    a = float(p.alpha(t))
    return a, float(p.sigma(t)) / a


def rule(name: str, s: float, s2: float, eta: float) -> float:
    """r of method D in the dossier, in the scaled state: x̂' = r x̂ + (1 − r) D + √(σ̂'² − r² σ̂²) z."""
    up = min(s2, eta * math.sqrt(s2**2 * (s**2 - s2**2) / s**2))
    return {
        "ddim": math.sqrt(s2**2 - up**2) / s,  # also k-diffusion's ancestral step
        "ddpm": s2**2 / s**2,
        "sde": (s2 / s) ** (1 + eta),
        "renoise": 0.0,
    }[name]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "sde", "renoise"])
def test_the_one_number_family(process: pr.Process, name: str, eta: float) -> None:
    for t, to in pairs(process):
        (a, s), (a2, s2) = hat(process, t), hat(process, to)
        r = rule(name, s, s2, eta)
        (row,) = unstir.plan(name, process, grid=[t, to], **({"eta": eta} if name in ("ddim", "sde") else {}))
        assert row.a == pytest.approx(a2 / a * r, rel=1e-9, abs=1e-12)
        assert row.b[0] == pytest.approx(a2 * (1 - r), rel=1e-9, abs=1e-12)
        assert row.c**2 == pytest.approx(a2**2 * (s2**2 - r**2 * s**2), rel=1e-7, abs=1e-13)


@pytest.mark.parametrize("eta", [0.25, 1.0, 1.7])
def test_ancestral_is_k_diffusions_formula(eta: float) -> None:
    """get_ancestral_step and sample_euler_ancestral, written out; η > 1 saturates at σ_up = σ'."""
    for t, to in pairs(EDM):
        s, s2 = 80 * t, 80 * to
        up = min(s2, eta * (s2**2 * (s**2 - s2**2) / s**2) ** 0.5)
        down = (s2**2 - up**2) ** 0.5
        (row,) = unstir.plan("ancestral", EDM, grid=[t, to], eta=eta)
        # x' = x + (x − D)/σ (σ_down − σ) + σ_up z
        assert row.a == pytest.approx(1 + (down - s) / s, rel=1e-9, abs=1e-12)
        assert row.b[0] == pytest.approx(-(down - s) / s, rel=1e-9, abs=1e-12)
        assert row.c == pytest.approx(up, rel=1e-9)


def test_ddpm_is_the_published_posterior_with_both_variances() -> None:
    for t, to in pairs(VP):
        bar, bar2 = float(VP.alpha(t)) ** 2, float(VP.alpha(to)) ** 2
        alpha, beta = bar / bar2, 1 - bar / bar2
        small, large = (unstir.plan(name, VP, grid=[t, to])[0] for name in ("ddpm", "ddpm-large"))
        assert small.a == large.a == pytest.approx(math.sqrt(alpha) * (1 - bar2) / (1 - bar), rel=1e-10)
        assert small.b[0] == large.b[0] == pytest.approx(math.sqrt(bar2) * beta / (1 - bar), rel=1e-10)
        assert small.c**2 == pytest.approx((1 - bar2) / (1 - bar) * beta, rel=1e-10)
        assert large.c**2 == pytest.approx(beta, rel=1e-10)
        assert (small.a, small.b[0], small.c) == pytest.approx(tuple(map(float, VP.posterior(to, t))), rel=1e-10)


def test_large_variance_adds_nothing_in_the_last_step() -> None:
    plan = unstir.plan("ddpm-large", VP, nfe=4)
    assert plan[-1].c == 0
    assert all(row.c > 0 for row in plan.rows[:-1])


def test_flow_euler_is_ddim_from_pure_noise_to_data() -> None:
    """x + (t' − t)(x − D)/t at every step, from α = 0 to σ = 0."""
    nodes = torch.linspace(1, 0, 17, dtype=torch.float64).tolist()
    for row, t, to in zip(unstir.plan("euler", FLOW, grid=nodes), nodes, nodes[1:], strict=False):
        assert abs(row.a - (1 + (to - t) / t)) < 1e-14
        assert abs(row.b[0] - (t - to) / t) < 1e-14


def test_the_same_logsnr_grid_gives_the_same_scaled_states(mixture) -> None:
    """Path independence: VP, SubVP, EDM and Flow are one process in x/α against λ."""
    lam = torch.linspace(-3, 4, 9, dtype=torch.float64)
    for name in ("ddim", "heun", "dpmpp-3m", "dpm-3m"):
        ends = []
        for p in (VP, pr.SubVP(), EDM, FLOW, pr.shifted(pr.Cosine(), 2.0)):
            x = mixture.start * float(p.alpha(p.time(-3.0))) * 20
            out = unstir.sample(mixture.model(p), unstir.plan(name, p, grid=p.time(lam).tolist()), x=x)
            ends.append(out / float(p.alpha(p.time(4.0))))
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


def test_limits_of_eta_and_their_identities() -> None:
    nodes = [1.0, 0.7, 0.3, 0.0]

    def rows(name: str, process: pr.Process, **options) -> list[tuple]:
        return [(r.a, r.b[0], r.c) for r in unstir.plan(name, process, grid=nodes, **options)]

    for p in (VP, EDM, FLOW):
        assert rows("sde", p, eta=0.0) == rows("ddim", p)
        assert rows("ancestral", p, eta=0.0) == rows("ddim", p)
        for a, b in zip(rows("sde", p, eta=1.0), rows("ddpm", p), strict=True):
            assert a == pytest.approx(b, rel=1e-12, abs=1e-14)
        for a, b in zip(rows("ddim", p, eta=1.0), rows("ddpm", p), strict=True):
            assert a == pytest.approx(b, rel=1e-7, abs=1e-8)


def test_heun_is_the_trapezoid_of_edm() -> None:
    """Algorithm 1 of EDM by hand: D linear, so that each number can be followed."""
    x, s, s2 = 3.0, 8.0, 2.0

    def d(x: float, sigma: float) -> float:
        return (x - 0.5 * x) / sigma  # with D = x/2

    euler = x + (s2 - s) * d(x, s)
    expected = x + (s2 - s) * 0.5 * (d(x, s) + d(euler, s2))
    plan = unstir.plan("heun", EDM, grid=[s / 80, s2 / 80])
    assert [row.boundary for row in plan] == [False, True]
    out = unstir.sample(lambda x, t: x / 2, plan, x=torch.tensor([[x]], dtype=torch.float64))
    assert float(out) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("nfe", range(1, 10))
@pytest.mark.parametrize("end", [0.0, 0.01])
def test_heun_spends_its_budget(nfe: int, end: float) -> None:
    """Two calls a step, one for the step to σ = 0; an odd call becomes an Euler step at the start."""
    plan = unstir.plan("heun", VP, nfe=nfe, end=end)
    assert len(plan) == nfe
    inner = [not row.boundary for row in plan]
    pairs, odd = divmod(nfe - (end == 0), 2)
    assert inner == [False] * odd + [True, False] * pairs + [False] * (end == 0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ddim", {"eta": -0.1}, "eta=-0.1"),
        ("ddim", {"eta": math.nan}, "eta=nan"),
        ("sde", {"eta": -1.0}, "eta=-1.0"),
        ("ddpm", {"variance": "huge"}, "variance='huge'"),
        ("renoise", {"eta": 1.0}, "renoise has no option 'eta'"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unstir.plan(name, VP, nfe=4, **options)
