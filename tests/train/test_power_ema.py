"""Power-function averages: against their own profile, and reconstructed against tracked ones."""

import numpy as np
import pytest
from scipy.integrate import quad

from unstir.train.power_ema import WIDEST, Profile, combination, decay, exponent, inner, width


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56)])
def test_published_widths(std, gamma):
    assert exponent(std) == pytest.approx(gamma, abs=5e-3)
    assert width(exponent(std)) == pytest.approx(std, rel=1e-12)


def test_the_widest_is_the_plain_mean():
    assert exponent(WIDEST) == pytest.approx(0, abs=1e-9)
    values, mean = np.random.default_rng(0).normal(size=50), 0.0
    for i, value in enumerate(values):
        mean = value + decay(8 * (i + 1), 8, WIDEST) * (mean - value)
    assert mean == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize("std", [0.0, 0.3, -1.0, float("nan")])
def test_impossible_widths_are_refused(std):
    with pytest.raises(ValueError, match="std="):
        exponent(std)


@pytest.mark.parametrize(("a", "b"), [((1.0, 0.05), (1.0, 0.1)), ((0.5, 0.05), (1.0, 0.1)), ((1.0, 0.15), (0.3, 0.07))])
def test_inner_product_is_the_integral(a, b):
    def density(t, profile):
        g = exponent(profile[1])
        return (g + 1) * t**g / profile[0] ** (g + 1) if t <= profile[0] else 0.0

    expected = quad(lambda t: density(t, a) * density(t, b), 0, min(a[0], b[0]))[0]
    assert inner(Profile(*a), Profile(*b)) == pytest.approx(expected, rel=1e-8)


def run(steps: int, batch: int, stds: tuple[float, ...], every: int):
    """A random walk of four weights, its tracked averages, and snapshots of them."""
    rng, weights = np.random.default_rng(1), np.zeros(4)
    averages, stored = {s: np.zeros(4) for s in stds}, []
    for i in range(1, steps + 1):
        weights = weights + rng.normal(size=4)
        for std in stds:
            averages[std] = weights + decay(i * batch, batch, std) * (averages[std] - weights)
        if i % every == 0:
            stored += [(Profile(i * batch, s), averages[s]) for s in stds]
    return averages, stored


@pytest.mark.parametrize(("std", "tolerance"), [(0.07, 1e-3), (0.15, 2e-3)])
def test_a_width_that_was_not_tracked_is_reconstructed(std, tolerance):
    averages, stored = run(3200, 4, (0.05, 0.10, std), 200)
    kept = [(p, a) for p, a in stored if p.std != std]
    x = combination([p for p, _ in kept], Profile(3200 * 4, std))
    made = sum(c * a for c, (_, a) in zip(x, kept, strict=True))
    assert x.sum() == pytest.approx(1)
    assert np.abs(made - averages[std]).max() < tolerance * np.abs(averages[std]).max()


def test_an_earlier_moment_can_be_asked_for_and_a_later_first_snapshot_is_refused():
    averages, stored = run(1000, 1, (0.05, 0.10), 50)
    at = next(a for p, a in stored if p == Profile(500, 0.05))
    x = combination([p for p, _ in stored], Profile(500, 0.05))
    np.testing.assert_allclose(sum(c * a for c, (_, a) in zip(x, stored, strict=True)), at, rtol=1e-4)
    assert not np.allclose(at, averages[0.05], rtol=1e-2)
    with pytest.raises(ValueError, match="first snapshot"):
        combination([Profile(100, 0.1)], Profile(50, 0.1))
    with pytest.raises(ValueError, match="no snapshots"):
        combination([], Profile(50, 0.1))
