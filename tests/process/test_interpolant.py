"""Interpolants: boundary values, derivatives, the regression targets, and which of them may be sampled given y."""

from __future__ import annotations

import math

import pytest
import torch

import unstir
from unstir import process as pr
from unstir.process import Interpolant, Marginal, Mirror, OneSided

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PAIRS = {
    **{f"{path}-{gamma}": (path, gamma, 0.8) for path in ("linear", "trigonometric") for gamma in pr.GAMMAS},
    "encode-decode-sine": ("encode-decode", "sine"),
}
ALL = [Interpolant(*pair) for pair in PAIRS.values()]


@pytest.mark.parametrize("process", ALL, ids=PAIRS)
def test_ends_are_exact_and_derivatives_are_those_of_the_path(process: Interpolant) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert process.alpha(ends).tolist() == [1.0, 0.0]
    assert process.beta(ends).tolist() == [0.0, 1.0]
    assert process.sigma(ends).tolist() == [0.0, 0.0]
    t, h = T[(T - 0.5).abs() > 1e-3], 1e-6  # the middle of encode-decode is where its pieces meet
    for value, slope in ((process.alpha, process.dalpha), (process.beta, process.dbeta), (process.sigma, process.dsigma)):
        torch.testing.assert_close(slope(t), (value(t + h) - value(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)


def test_published_formulas() -> None:
    s = torch.sigmoid
    tau = 1 - T
    torch.testing.assert_close(Interpolant(scale=2.0).sigma(T), 2 * (tau * (1 - tau)).sqrt())
    torch.testing.assert_close(Interpolant(gamma="quadratic").sigma(T), tau * (1 - tau))
    torch.testing.assert_close(Interpolant(gamma="sine").sigma(T), torch.sin(math.pi * tau) ** 2)
    published = s(10 * (tau - 0.5) + 1) - s(10 * (tau - 0.5) - 1) - s(T * 0 - 4) + s(T * 0 - 6)
    torch.testing.assert_close(Interpolant(gamma="sigmoid").sigma(T), published)
    for gamma in ("brownian", "sine"):
        p = Interpolant("trigonometric", gamma, 0.9)
        torch.testing.assert_close(p.alpha(T) ** 2 + p.beta(T) ** 2 + p.sigma(T) ** 2, torch.ones_like(T))
    middle = Interpolant("encode-decode")
    assert [float(f(0.5)) for f in (middle.alpha, middle.beta, middle.sigma)] == pytest.approx([0, 0, 1])


def test_the_brownian_interpolant_is_the_brownian_bridge() -> None:
    """g² = a, h = −f = 1/(1 − t), and σσ' = ½ a (1 − 2t) is finite where σ' is not."""
    p = Interpolant(scale=1.5)
    torch.testing.assert_close(p.g(T) ** 2, torch.full_like(T, 1.5**2), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.h(T), 1 / (1 - T), rtol=1e-9, atol=0)
    torch.testing.assert_close(p.f(T), -1 / (1 - T), rtol=1e-9, atol=0)
    near = torch.tensor([1e-6, 0.3, 1 - 1e-6], dtype=torch.float64)
    torch.testing.assert_close(p.sigma(near) * p.dsigma(near), 0.5 * 2.25 * (1 - 2 * near), rtol=1e-6, atol=1e-9)


def test_only_the_brownian_noise_lets_data_be_sampled_given_the_source() -> None:
    good = {name for name, pair in PAIRS.items() if Interpolant(*pair).conditional_ok}
    assert good == {"linear-brownian", "trigonometric-brownian"}
    assert float(Interpolant().logsnr(1.0)) == -math.inf
    # u/α tends to x0 + z, not to noise alone; the analytic limit is −log t.
    assert float(Interpolant(gamma="quadratic").logsnr(1.0)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="does not decrease"):
        Interpolant(gamma="sine").time(0.5)
    back = Interpolant().time(Interpolant().logsnr(T))
    torch.testing.assert_close(back, T, rtol=0, atol=1e-12)


def test_a_known_source_gives_the_exact_conditional_law() -> None:
    """x0 | y ~ N(0.6 y, 0.3²), a network that sees y, from the pinned start x(1) = y: mean and deviation at t = 0."""
    p, y = Interpolant(), torch.full((300, 1), 1.5, dtype=torch.float64)

    def network(x: torch.Tensor, t: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        a, b, s = (f(t)[:, None] for f in (p.alpha, p.beta, p.sigma))
        gain = a * 0.09 / (a**2 * 0.09 + s**2).clamp_min(1e-30)
        return 0.6 * anchor + gain * (x - b * anchor - a * 0.6 * anchor)

    model = unstir.Denoiser(network, p, "data", sees_anchor=True)
    plan = unstir.plan("dpmpp-2m", p, 40, "logsnr")
    x = unstir.sample(model, plan, shape=(300, 1), anchor=y, dtype=torch.float64)
    assert float(x.mean()) == pytest.approx(0.9, abs=4 * 0.3 / math.sqrt(300))
    assert float(x.std()) == pytest.approx(0.3, rel=0.15)
    for gamma in ("quadratic", "sine"):
        with pytest.raises(ValueError, match=f"gamma='{gamma}'"):
            Interpolant(gamma=gamma).prior((2, 1), t=0.9, anchor=y[:2])


def test_one_sided_paths_are_flow_and_a_quarter_circle() -> None:
    one, flow = OneSided(), pr.Flow()
    for name in ("alpha", "sigma", "logsnr"):
        assert torch.equal(getattr(one, name)(T), getattr(flow, name)(T))
    circle = OneSided("trigonometric")
    torch.testing.assert_close(circle.alpha(T) ** 2 + circle.sigma(T) ** 2, torch.ones_like(T))
    torch.testing.assert_close(circle.alpha(T), torch.cos(math.pi * T / 2))
    torch.testing.assert_close(circle.time(circle.logsnr(T)), T)


def test_specs_come_back() -> None:
    for process in [*ALL, Mirror("sine", 0.5), OneSided("trigonometric"), Marginal(Interpolant()), Marginal(pr.VP())]:
        again = pr.from_spec(process.spec())
        assert again == process
        assert torch.equal(again.sigma(T), process.sigma(T))


def test_a_marginal_forgets_the_anchor_and_needs_a_start() -> None:
    source = Marginal(Interpolant())
    assert not source.anchored
    x0, y, z = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.equal(source.stir(x0, 0.3, z, y), Interpolant().stir(x0, 0.3, z, y))
    for process in (source, Marginal(Mirror())):
        with pytest.raises(ValueError, match="pass x="):
            process.prior((2, 3))
        with pytest.raises(ValueError, match="log_prior="):
            process.log_prior(x0)
    assert torch.equal(Marginal(pr.VP()).prior((3, 2), seed=1), pr.VP().prior((3, 2), seed=1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Interpolant("straight"), "path='straight'"),
        (lambda: Interpolant(gamma="white"), "gamma='white'"),
        (lambda: Interpolant(scale=0), "scale=0"),
        (lambda: Interpolant("trigonometric", scale=2.5), "needs σ < 1"),
        (lambda: Interpolant("encode-decode", "brownian"), "has the noise gamma='sine'"),
        (lambda: Mirror(gamma="none"), "gamma='none'"),
        (lambda: OneSided("encode-decode"), "path='encode-decode'"),
        (lambda: pr.from_spec({"kind": "Interpolant", "path": "linear", "speed": 2}), "speed"),
    ],
)
def test_bad_input_is_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_marginal_of_a_marginal_is_refused() -> None:
    with pytest.raises(TypeError, match="not a Marginal"):
        Marginal(Marginal(pr.VP()))
