"""Every process against calculus and brute force; none of the oracles here uses the formula it checks."""

from __future__ import annotations

import math

import pytest
import torch

from unstir import process as pr
from unstir.process import Process

T = torch.cat([torch.logspace(-9, -1, 17, dtype=torch.float64), torch.linspace(0.105, 0.995, 90, dtype=torch.float64)])
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_time_inverts_logsnr(process: Process) -> None:
    # FOUND: Cosine.time loses 7 digits near t = 0 (atan2(…) − θ₀ cancels); see the report.
    torch.testing.assert_close(process.time(process.logsnr(T)), T, rtol=1e-12, atol=0)
    back = process.time(process.logsnr(ENDS))
    assert back[0] == 0
    assert abs(float(back[1]) - 1) < 1e-12


def test_logsnr_inverts_time(process: Process) -> None:
    high, low = (float(process.logsnr(t)) for t in process.span)
    lam = torch.linspace(low, high, 101, dtype=torch.float64)
    torch.testing.assert_close(process.logsnr(process.time(lam)), lam, rtol=1e-11, atol=1e-11)
    # Levels that the process never has give the nearer end.
    beyond = process.time(torch.tensor([1e3, -1e3], dtype=torch.float64))
    torch.testing.assert_close(beyond, ENDS, rtol=0, atol=1e-12)


def test_the_base_class_bisection_equals_the_closed_forms(process: Process) -> None:
    lam = process.logsnr(torch.linspace(0.02, 0.98, 49, dtype=torch.float64))
    torch.testing.assert_close(Process.time(process, lam), process.time(lam), rtol=0, atol=1e-13)
    assert Process.time(process, process.logsnr(ENDS)).tolist() == [0.0, 1.0]


def test_finite_and_monotone(process: Process) -> None:
    t = torch.cat([ENDS[:1], T, ENDS[1:]])
    for name in ("alpha", "sigma", "beta", "f", "g", "h", "dalpha", "dsigma", "dbeta"):
        assert torch.isfinite(getattr(process, name)(t)).all(), name
    assert (process.logsnr(t).diff() < 0).all()
    assert float(process.alpha(0.0)) == 1  # clean data, exactly: the last row of a plan relies on it
    assert float(process.sigma(0.0)) == 0
    assert process.logsnr(t).isinf().tolist() == [True, *[False] * len(T), float(process.alpha(1.0)) == 0]


def test_logsnr_is_log_alpha_over_sigma_and_path_is_the_same_curve(process: Process) -> None:
    a, s, lam = process.alpha(T), process.sigma(T), process.logsnr(T)
    torch.testing.assert_close(lam, a.log() - s.log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.noise_ratio(T), (-lam).exp(), rtol=1e-11, atol=0)
    for mine, theirs in zip(process.path(lam), (a, s), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=0)


def test_derivatives_and_sde_coefficients_by_finite_differences(process: Process) -> None:
    t = (torch.arange(5, 95, dtype=torch.float64) + 0.5) / 100  # inside the cells of the tables, which have kinks
    h = 1e-5

    def slope(f: object) -> torch.Tensor:
        return (f(t + h) - f(t - h)) / (2 * h)

    torch.testing.assert_close(process.dalpha(t), slope(process.alpha), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(process.dsigma(t), slope(process.sigma), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(process.f(t), slope(process.alpha) / process.alpha(t), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(process.g(t) ** 2, -2 * process.sigma(t) ** 2 * slope(process.logsnr), rtol=1e-6, atol=1e-8)


def test_the_sde_has_the_stated_moments(process: Process) -> None:
    """∫ f = log α and Var = α² ∫ g²/α² from a clean start: Gauss's rule on cells aligned with the tables."""
    nodes, weights = (
        torch.tensor(v) for v in zip((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9), strict=True)
    )
    cells, end = 4500, 0.9
    t = ((torch.arange(cells, dtype=torch.float64)[:, None] + 0.5 + nodes / 2) * (end / cells)).flatten()
    w = (weights / 2 * (end / cells)).repeat(cells)
    assert float((w * process.f(t)).sum()) == pytest.approx(float(process.alpha(end).log()), rel=1e-6, abs=1e-9)
    variance = float(process.alpha(end) ** 2 * (w * (process.g(t) / process.alpha(t)) ** 2).sum())
    assert variance == pytest.approx(float(process.sigma(end) ** 2), rel=1e-6)


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.7), (0.01, 0.99), (0.5, 0.5), (0.0, 0.4), (0.0, 1.0), (0.6, 1.0), (1e-4, 2e-4)])
def test_posterior_by_conditioning(process: Process, s: float, t: float) -> None:
    """x_t = r x_s + √v z given x_s = α_s x0 + σ_s z': condition the joint Gaussian of (x_s, x_t) on x_t."""
    alpha_s, sigma_s, alpha_t, sigma_t = (float(f(u)) for u in (s, t) for f in (process.alpha, process.sigma))
    r = alpha_t / alpha_s
    gain = r * sigma_s**2 / sigma_t**2  # Cov(x_s, x_t)/Var(x_t); Var(x_t) = r² σ_s² + v = σ_t²
    a, b, c = process.posterior(s, t)
    assert float(a) == pytest.approx(gain, rel=1e-11, abs=1e-15)
    assert float(b) == pytest.approx(alpha_s - gain * alpha_t, rel=1e-9, abs=1e-13)
    assert float(c) ** 2 == pytest.approx(sigma_s**2 - gain * r * sigma_s**2, rel=1e-6, abs=1e-13)


def test_posterior_wants_the_cleaner_time_first() -> None:
    with pytest.raises(ValueError, match="s cleaner than t"):
        pr.VP().posterior(0.7, 0.3)


def test_stir_and_prior(process: Process) -> None:
    x0, z = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    stirred = process.stir(x0, t, z)
    for i in range(3):
        torch.testing.assert_close(stirred[i], process.alpha(t[i]) * x0[i] + process.sigma(t[i]) * z[i], rtol=1e-14, atol=0)
    torch.testing.assert_close(process.stir(x0, 0.5, z)[1], stirred[1], rtol=0, atol=0)
    assert process.stir(x0.float(), t, z.float()).dtype == torch.float32
    prior = process.prior((4000, 2), seed=1, dtype=torch.float64)
    assert float(prior.std()) == pytest.approx(float(process.sigma(1.0)), rel=0.03)
    # Sample i has its own stream, whatever the batch.
    assert torch.equal(prior[:3], process.prior((3, 2), seed=1, dtype=torch.float64))


def test_spec_round_trip(process: Process) -> None:
    import json

    again = pr.from_spec(json.loads(json.dumps(process.spec())))
    assert again == process
    assert hash(again) == hash(process)
    assert again.span == process.span
    assert torch.equal(again.logsnr(T), process.logsnr(T))


def test_different_processes_are_unequal() -> None:
    assert pr.VP() != pr.VP(0.2)
    assert pr.VP() != pr.SubVP()
    assert pr.shifted(pr.VP(), 2) != pr.shifted(pr.VP(), 3)
    assert pr.VP() != "VP"


def test_a_process_made_of_alpha_and_sigma_alone() -> None:
    """The promise of the base class: two formulas, and everything else follows (here on Flow's)."""

    class Straight(Process):
        def alpha(self, t):
            return 1 - torch.as_tensor(t, dtype=torch.float64)

        def sigma(self, t):
            return torch.as_tensor(t, dtype=torch.float64)

    mine, flow = Straight(), pr.Flow()
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(mine.time(flow.logsnr(t)), t, rtol=1e-12, atol=0)
    for name in ("f", "g", "dalpha", "dsigma"):
        torch.testing.assert_close(getattr(mine, name)(t), getattr(flow, name)(t), rtol=1e-12, atol=1e-12)
    assert all(torch.isfinite(getattr(mine, name)(ENDS)).all() for name in ("f", "g", "h"))


# -- anchored ---------------------------------------------------------------------------------------
def test_centre_and_uncentre_are_inverse_and_stir_adds_the_anchor(anchored: Process) -> None:
    x0, y, z = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    x = anchored.stir(x0, t, z, y)
    a, b, s = (f(t)[:, None] for f in (anchored.alpha, anchored.beta, anchored.sigma))
    torch.testing.assert_close(x, a * x0 + b * y + s * z, rtol=1e-14, atol=1e-15)
    u = anchored.centre(x, t, y)
    torch.testing.assert_close(u, a * x0 + s * z, rtol=0, atol=1e-14)  # the centred state forgets the anchor
    torch.testing.assert_close(anchored.uncentre(u, t, y), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        anchored.prior((5, 2), seed=3, anchor=y, dtype=torch.float64),
        pr.VP().prior((5, 2), seed=3, dtype=torch.float64) + anchored.beta(1.0) * y,
    )


def test_the_anchored_mean_obeys_the_sde(anchored: Process) -> None:
    """m' = f m + h y from m(0) = x0 must give α x0 + β y: RK4."""
    x0, y, n = 0.7, -1.9, 400

    def drift(t: float, m: float) -> float:
        return float(anchored.f(t)) * m + float(anchored.h(t)) * y

    m, h = x0, 0.8 / n
    for i in range(n):
        t = i * h
        k1 = drift(t, m)
        k2 = drift(t + h / 2, m + h / 2 * k1)
        k3 = drift(t + h / 2, m + h / 2 * k2)
        m += h / 6 * (k1 + 2 * k2 + 2 * k3 + drift(t + h, m + h * k3))
    assert m == pytest.approx(float(anchored.alpha(0.8)) * x0 + float(anchored.beta(0.8)) * y, abs=1e-8)


def test_the_anchor_may_not_be_forgotten(anchored: Process) -> None:
    with pytest.raises(ValueError, match="pass anchor="):
        anchored.centre(torch.zeros(2, 3), 0.5)
    assert torch.equal(pr.VP().centre(torch.ones(2, 3), 0.5), torch.ones(2, 3))


# -- bad input ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pr.VP(beta_min=0), "beta_min=0"),
        (lambda: pr.VP(beta_min=3, beta_max=2), "beta_max=2"),
        (lambda: pr.VP(beta_max=math.nan), "beta_max=nan"),
        (lambda: pr.VP(beta_min="1"), "beta_min='1'"),
        (lambda: pr.Cosine(-1), "s=-1"),
        (lambda: pr.VE(1, 0.5), "sigma_max=0.5"),
        (lambda: pr.EDM(0), "sigma_min=0"),
        (lambda: pr.EDM(1, math.inf), "sigma_max=inf"),
        (lambda: pr.from_betas([0.1]), "at least 2"),
        (lambda: pr.from_betas([0.1, 0.0]), r"betas\[1\] is 0"),
        (lambda: pr.from_betas([0.1, math.nan]), r"betas\[1\] is nan"),
        (lambda: pr.from_betas([0.1, 1.5]), r"betas\[1\] is 1.5"),
        (lambda: pr.Table([0.5, 0.7]), "level 1"),
        (lambda: pr.Table([1.0, 0.7]), "below 1"),
        (lambda: pr.Table([0.5, 0.0, 0.0]), "strictly"),
        (lambda: pr.Table([0.9, math.nan]), "finite"),
        (lambda: pr.shifted(pr.VP(), 0), "shift=0"),
        (lambda: pr.shifted(pr.VP(), math.nan), "shift=nan"),
        (lambda: pr.resolution_shift(0, 5), "tokens=0"),
        (lambda: pr.from_spec({"kind": "Magic"}), "unknown process kind 'Magic'"),
        (lambda: pr.from_spec({}), "unknown process kind None"),
        (lambda: pr.from_spec({"kind": "VP", "speed": 3}), "speed"),
        (lambda: pr.VP().stir(torch.zeros(2, 3), 0.5, torch.zeros(2, 4)), r"noise has shape \(2, 4\)"),
        (lambda: pr.VP().prior((0, 3)), "at least 1"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_anchored_processes_cannot_be_shifted(anchored: Process) -> None:
    with pytest.raises(ValueError, match="without an anchor"):
        pr.shifted(anchored, 2.0)
