"""Anchored processes: their curves against brute force, calculus, published tables, and each other."""

from __future__ import annotations

import json
import math

import pytest
import torch

from unstir import process as pr
from unstir.process import Process
from unstir.process.frames import enter, leave

F64 = torch.float64
PROCESSES = {
    "mean-reverting": pr.MeanReverting(),
    "mean-reverting-keep": pr.MeanReverting(sigma_inf=50 / 255, first="keep"),
    "mean-reverting-linear": pr.MeanReverting("linear", 0.5, 40),
    "mean-reverting-own": pr.MeanReverting([0.1, 0.5, 1.0, 0.7]),
    "resshift-15": pr.ResShift(),
    "resshift-4": pr.ResShift(levels=4, min_noise=0.2),
    "rddm": pr.RDDM(),
    "rddm-other-powers": pr.RDDM("increasing", "decreasing", 0.0, 2.0, 1.0),
    "rddm-generation": pr.RDDM(scale=1.0, anchored=False),
    "bridge": pr.BrownianBridge(0.5),
    "ouve": pr.OUVE(),
}
T = torch.cat([torch.logspace(-9, -1, 17, dtype=F64), torch.linspace(0.105, 0.995, 90, dtype=F64)])
ENDS = torch.tensor([0.0, 1.0], dtype=F64)


@pytest.fixture(params=list(PROCESSES))
def process(request: pytest.FixtureRequest) -> Process:
    return PROCESSES[request.param]


def test_time_inverts_logsnr_and_back(process: Process) -> None:
    torch.testing.assert_close(process.time(process.logsnr(T)), T, rtol=1e-11, atol=0)
    torch.testing.assert_close(process.time(process.logsnr(ENDS)), ENDS, rtol=0, atol=1e-12)
    lam = process.logsnr(torch.linspace(0.02, 0.98, 49, dtype=F64))
    torch.testing.assert_close(Process.time(process, lam), process.time(lam), rtol=0, atol=1e-13)  # bisection
    torch.testing.assert_close(process.time(torch.tensor([1e3, -1e3], dtype=F64)), ENDS, rtol=0, atol=1e-12)


def test_everything_is_finite_at_both_ends_and_data_are_clean(process: Process) -> None:
    t = torch.cat([ENDS[:1], T, ENDS[1:]])
    for name in ("alpha", "sigma", "beta", "f", "g", "h"):
        assert torch.isfinite(getattr(process, name)(t)).all(), name
    assert (process.logsnr(t).diff() < 0).all()
    assert (float(process.alpha(0.0)), float(process.sigma(0.0)), float(process.beta(0.0))) == (1, 0, 0)


def test_the_residual_is_what_fades(process: Process) -> None:
    """β = 1 − α, without cancellation at small t; h = −f; λ and the path are the same curve."""
    if not process.anchored:
        assert not process.beta(T).any()
        assert not process.h(T).any()
    else:
        torch.testing.assert_close(process.alpha(T) + process.beta(T), torch.ones_like(T), rtol=1e-14, atol=0)
        small = torch.tensor([1e-9, 2e-9], dtype=F64)
        assert (process.beta(small) > 0).all()  # 1 − α is rounding there
        torch.testing.assert_close(process.h(T), -process.f(T), rtol=1e-12, atol=1e-12)
    a, s, lam = process.alpha(T), process.sigma(T), process.logsnr(T)
    torch.testing.assert_close(lam, a.log() - s.log(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(process.noise_ratio(T), (-lam).exp(), rtol=1e-10, atol=0)
    for mine, theirs in zip(process.path(lam), (a, s), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)


def test_f_and_g_by_finite_differences(process: Process) -> None:
    t = torch.tensor([0.1234, 0.3456, 0.5013, 0.7071, 0.9123], dtype=F64)  # away from the levels, where tables have kinks
    h = 1e-6

    def slope(f: object) -> torch.Tensor:
        return (f(t + h) - f(t - h)) / (2 * h)

    torch.testing.assert_close(process.f(t), slope(lambda u: process.alpha(u).log()), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(process.g(t) ** 2, -2 * process.sigma(t) ** 2 * slope(process.logsnr), rtol=1e-6, atol=1e-8)


def test_spec_round_trip(process: Process) -> None:
    again = pr.from_spec(json.loads(json.dumps(process.spec())))
    assert again == process
    assert (again.span, again.anchored) == (process.span, process.anchored)
    assert torch.equal(again.logsnr(T), process.logsnr(T))


def test_the_start_is_y_and_noise(process: Process) -> None:
    """N(y, σ(t)²) at any t: y stands in for x0. One sample, one stream."""
    if not process.anchored:
        assert torch.equal(process.prior((3, 2), seed=1), float(process.sigma(1.0)) * pr.VE().noise(_keys(3), (2,), 0))
        return
    y = torch.full((4000, 2), 0.7, dtype=F64)
    for t in (1.0, 0.6):
        x = process.prior((4000, 2), seed=1, t=t, anchor=y, dtype=F64)
        assert float(x.mean()) == pytest.approx(0.7, abs=0.05 * float(process.sigma(t)) + 1e-12)
        assert float(x.std()) == pytest.approx(float(process.sigma(t)), rel=0.03, abs=1e-12)
    assert torch.equal(x[:3], process.prior((3, 2), seed=1, t=0.6, anchor=y[:3], dtype=F64))
    with pytest.raises(ValueError, match="pass anchor="):
        process.prior((3, 2))


def _keys(n: int) -> list[int]:
    from unstir._random import sample_keys

    return sample_keys(n, 1)


@pytest.mark.parametrize("frame", pr.FRAMES)
def test_frames_are_left_as_they_are_entered(process: Process, frame: str) -> None:
    x, y = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    state = enter(process, frame, x, 0.3, y)
    torch.testing.assert_close(leave(process, frame, state, 0.3, y), x, rtol=0, atol=1e-14)


# -- published tables -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("first", ["skip", "keep"])
@pytest.mark.parametrize("theta", ["cosine", "linear", "constant"])
def test_mean_reverting_tables_by_their_sums(theta: str, first: str) -> None:
    """α_i = exp(−Δ Σ θ), over θ_1 … θ_i or θ_0 … θ_i, with Δ from α_T = 0.005."""
    count, end, s = 20, 0.005, 0.3
    steps = count + 2
    bar = [math.cos((j / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for j in range(steps + 1)]
    speeds = {
        "cosine": [1 - bar[k + 1] / bar[0] for k in range(count + 1)],
        "linear": [1e-4 + (0.02 - 1e-4) * k / count for k in range(count + 1)],
        "constant": [1.0] * (count + 1),
    }[theta]
    process = pr.MeanReverting(theta, s, count, end, first)
    begin = 1 if first == "skip" else 0
    delta = -math.log(end) / sum(speeds[begin:])
    for i in range(count + 1):
        t = i / count if first == "skip" else (i + 1) / (count + 1)
        alpha = math.exp(-delta * sum(speeds[begin : i + 1]))
        assert float(process.alpha(t)) == pytest.approx(alpha, rel=1e-12)
        assert float(process.sigma(t)) == pytest.approx(s * math.sqrt(1 - alpha**2), rel=1e-9, abs=1e-15)
        assert float(process.label(t)) == pytest.approx(i, abs=1e-12)
    own = pr.MeanReverting(speeds, s, end=end, first=first)
    torch.testing.assert_close(own.alpha(T), process.alpha(T), rtol=1e-12, atol=0)


def test_published_numbers() -> None:
    keep = PROCESSES["mean-reverting-keep"]
    found = [float(v) for v in (keep.alpha(1 / 101), keep.sigma(1 / 101), keep.logsnr(1 / 101), keep.logsnr(1.0))]
    assert found == pytest.approx([0.99994, 0.0022, 6.11, -3.67], rel=0.01)
    fifteen = [0.02, 0.1172, 0.1763, 0.2336, 0.2916, 0.351, 0.4124, 0.4759, 0.5417, 0.6099, 0.6807, 0.754, 0.83, 0.9086, 0.99]
    for process, table in ((pr.ResShift(), fifteen), (pr.ResShift(levels=4, min_noise=0.2), [0.1, 0.5201, 0.7614, 0.99])):
        labels = torch.arange(len(table), dtype=F64)
        times = process.time_of_label(labels)
        assert process.nodes == [*reversed(times.tolist()), 0.0]
        assert process.sqrt_eta(times).tolist() == pytest.approx(table, abs=5e-5)
        torch.testing.assert_close(process.label(times), labels, rtol=0, atol=1e-11)
    ouve = pr.OUVE()
    found = [float(v) for v in (ouve.sigma(1.0), ouve.alpha(1.0), ouve.logsnr(1.0), ouve.sigma(0.03), ouve.logsnr(0.03))]
    assert found == pytest.approx([0.3890, 0.2231, -0.556, 0.0188, 3.93], abs=5e-4, rel=2e-3)
    mismatch = {name: p.mismatch for name, p in PROCESSES.items() if isinstance(p, pr.Anchored)}
    assert mismatch["ouve"] == pytest.approx(0.574, abs=1e-3)
    assert mismatch["resshift-15"] == pytest.approx(0.0199 / 1.98, rel=1e-3)
    assert mismatch["rddm"] == mismatch["bridge"] == 0


def test_the_variance_of_speech_obeys_its_equation() -> None:
    """dσ²/dt = g² − 2θσ² from σ = 0: Runge–Kutta."""
    p, v, n = pr.OUVE(), 0.0, 2000

    def slope(t: float, v: float) -> float:
        return float(p.g(t)) ** 2 - 2 * p.theta * v

    for i in range(n):
        t, h = i / n, 1 / n
        k1 = slope(t, v)
        k2 = slope(t + h / 2, v + h / 2 * k1)
        k3 = slope(t + h / 2, v + h / 2 * k2)
        v += h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(t + h, v + h * k3))
    assert v == pytest.approx(float(p.sigma(1.0)) ** 2, rel=1e-10)


def test_rddm_by_its_sums_and_its_quadratic() -> None:
    """Shares of T equal steps tend to the power laws; for the default pair λ(t) is a quadratic equation in t."""
    steps, p = 20000, pr.RDDM(scale=0.04)
    u = (torch.arange(steps, dtype=F64) + 0.5) / steps
    fall, rise = (1 - u).cumsum(0) / (1 - u).sum(), u.cumsum(0) / u.sum()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    at = (t * steps).long() - 1
    torch.testing.assert_close(p.beta(t), fall[at], rtol=1e-4, atol=0)
    torch.testing.assert_close(p.sigma(t), 0.2 * rise[at].sqrt(), rtol=1e-4, atol=0)
    lam = torch.linspace(-9, 9, 37, dtype=F64)
    k = 0.2 * lam.exp()  # (1 − t)² = k t
    torch.testing.assert_close(p.time(lam), 2 / (2 + k + (k * (k + 4)).sqrt()), rtol=1e-12, atol=0)


def test_the_bridge_is_an_interpolant_and_mean_reversion_a_scaled_vp() -> None:
    bridge, same = pr.BrownianBridge(0.7), pr.Interpolant("linear", "brownian", math.sqrt(1.4))
    for name in ("alpha", "beta", "sigma", "logsnr"):
        torch.testing.assert_close(getattr(bridge, name)(T), getattr(same, name)(T), rtol=1e-12, atol=1e-15)
    assert float(bridge.logsnr(1.0)) == -math.inf
    p = pr.MeanReverting(sigma_inf=0.3)
    torch.testing.assert_close(p.alpha(T) ** 2 + (p.sigma(T) / 0.3) ** 2, torch.ones_like(T), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pr.MeanReverting("fast"), "theta='fast'"),
        (lambda: pr.MeanReverting(sigma_inf=0), "sigma_inf=0"),
        (lambda: pr.MeanReverting(levels=1), "levels=1"),
        (lambda: pr.MeanReverting(end=1.0), "end=1.0"),
        (lambda: pr.MeanReverting(first="last"), "first='last'"),
        (lambda: pr.MeanReverting([1.0, 0.0, 1.0]), "positive"),
        (lambda: pr.ResShift(sqrt_eta_end=1.2), "sqrt_eta_end=1.2"),
        (lambda: pr.ResShift(kappa=0.5, min_noise=1.5), "min_noise=1.5"),
        (lambda: pr.ResShift(levels=1), "levels=1"),
        (lambda: pr.RDDM("average"), "residual='average'"),
        (lambda: pr.RDDM(noise_power=-1), "noise_power=-1"),
        (lambda: pr.RDDM(scale=0), "scale=0"),
        (lambda: pr.BrownianBridge(0), "max_var=0"),
        (lambda: pr.OUVE(sigma_max=0.01), "sigma_max=0.01"),
        (lambda: pr.OUVE(theta=-1), "theta=-1"),
        (lambda: pr.from_spec({"kind": "OUVE", "speed": 1}), "speed"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
