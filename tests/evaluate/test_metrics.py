"""Metrics against closed forms, brute force, and known damage to real digits."""

import math

import numpy as np
import pytest
import torch
from metric_parts import gaussian

from unstir import evaluate
from unstir.evaluate.samples import extractor


# -- Fréchet distance -----------------------------------------------------------------------
def test_frechet_moments_of_commuting_gaussians():
    # For diagonal covariances FD = ‖μ − ν‖² + Σ (√c − √s)².
    mu, nu = torch.tensor([1.0, 2, 3]).double(), torch.tensor([0.0, 2, 5]).double()
    c, s = torch.tensor([4.0, 9, 0]).double(), torch.tensor([1.0, 16, 0.25]).double()
    expected = 1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2 + 0.5**2
    assert evaluate.frechet_moments(mu, c.diag(), nu, s.diag()) == pytest.approx(expected, abs=1e-12)


def test_frechet_moments_of_gaussians_that_do_not_commute():
    # For 2 × 2 matrices tr (CS)^½ = √(tr CS + 2 √(det C det S)).
    c = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()
    s = torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    root = math.sqrt((c @ s).trace() + 2 * math.sqrt(torch.linalg.det(c) * torch.linalg.det(s)))
    zero = torch.zeros(2).double()
    assert evaluate.frechet_moments(zero, c, zero, s) == pytest.approx(float(c.trace() + s.trace()) - 2 * root, abs=1e-12)


def test_frechet_of_identical_sets_is_zero(digits):
    x = digits[0]
    total = float(torch.cov(x.double().flatten(1).T).trace())
    # In all 64 pixels the covariance is singular (some pixels never change): the hard case.
    assert abs(evaluate.frechet(x, x, "pixel").value) < 1e-8 * total
    assert abs(evaluate.frechet(x, x, "pixel-pca:24").value) < 1e-8 * total


def test_frechet_is_invariant_to_rotation_and_shift_but_not_to_scale():
    x, y = gaussian(300, 8, 1), gaussian(300, 8, 2) * 1.5 + 0.3
    turn = torch.linalg.qr(gaussian(8, 8, 3)).Q
    value = evaluate.frechet(x, y, "pixel").value
    assert evaluate.frechet(x @ turn + 4, y @ turn + 4, "pixel").value == pytest.approx(value, rel=1e-9)
    assert evaluate.frechet(2 * x, 2 * y, "pixel").value == pytest.approx(4 * value, rel=1e-9)


@pytest.mark.parametrize("n", [500, 2000])
def test_sample_size_bias_of_frechet(n):
    # Two samples of N(0, I_64): E FD · n = 2d + d(d + 1)/2 = 2208.
    value = evaluate.frechet(gaussian(n, 64, 1), gaussian(n, 64, 2), "pixel").value
    assert abs(value * n - 2208) / 2208 < 0.15


def test_full_pca_is_a_rotation():
    x, y = gaussian(200, 6, 1), gaussian(200, 6, 2) + 1
    full, pixel = evaluate.frechet(x, y, "pixel-pca:6"), evaluate.frechet(x, y, "pixel")
    assert full.value == pytest.approx(pixel.value, rel=1e-9)
    assert (full.name, pixel.name) == ("FD[pixel-PCA6]", "FD[pixel]")


def test_pca_keeps_the_largest_axes_of_the_real_set():
    x = gaussian(400, 5) * torch.tensor([1.0, 5, 0.1, 3, 0.2]).double()
    name, function = extractor("pixel-pca:2", x)
    kept = function(x)
    assert name == "pixel-PCA2"
    assert float(kept.var(0)[0]) > float(kept.var(0)[1])
    assert float(kept.var(0).sum()) == pytest.approx(float(torch.linalg.eigvalsh(torch.cov(x.T))[-2:].sum()), rel=1e-9)


# -- the score ------------------------------------------------------------------------------
def test_score_says_how_it_was_measured():
    real, fake = gaussian(400, 4, 1), gaussian(150, 4, 2)
    score = evaluate.frechet(real, fake, "pixel", seed=5)
    assert (score.n_real, score.n_fake, score.floor_n, score.seed) == (150, 150, 150, 5)
    assert score.notes == ("150 of 400 real samples drawn with seed 5",)
    assert score.floor is not None
    assert 0 < score.floor < 0.5
    assert f"{score.floor:.4g} at n = 150" in str(score)
    assert score == evaluate.frechet(real, fake, "pixel", seed=5)
    assert score != evaluate.frechet(real, fake, "pixel", seed=6)


def test_floor_is_the_metric_between_disjoint_halves():
    four = torch.tensor([[0.0], [1.0], [2.0], [3.0]]).double()
    scores = [evaluate.energy_distance(four, four, "pixel", seed=s) for s in range(30)]
    assert {score.floor_n for score in scores} == {2}
    values = {round(score.floor or 0.0, 9) for score in scores}
    # {01|23}: 2·2 − 1 − 1 = 2; {02|13}: 2·1.5 − 2 − 2 = −1; {03|12}: 2·1.5 − 3 − 1 = −1.
    assert values == {2.0, -1.0}


def test_floor_is_absent_where_a_half_is_too_small():
    score = evaluate.frechet(gaussian(12, 8, 1), gaussian(12, 8, 2), "pixel")
    assert score.floor is None
    assert "no floor" in str(score)


def test_callable_features_are_named_and_batched():
    sizes = []

    def halves(x):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return x[:, :2]

    score = evaluate.frechet(gaussian(300, 4, 1), gaussian(300, 4, 2), halves)
    assert score.name == "FD[halves]"
    assert max(sizes) == 256
    assert score.value == evaluate.frechet(gaussian(300, 4, 1)[:, :2], gaussian(300, 4, 2)[:, :2], "pixel").value


# -- kernel distances -----------------------------------------------------------------------
def brute(kernel, x, y):
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return float(xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m))


def test_kernel_distances_equal_their_definitions():
    x, y = gaussian(17, 3, 1), gaussian(17, 3, 2) * 2 + 0.5
    rbf = brute(lambda a, b: torch.exp(-(a - b).square().sum() / (2 * 1.3**2)), x, y)
    poly = brute(lambda a, b: (a @ b / 3 + 1) ** 3, x, y)
    energy = brute(lambda a, b: -(a - b).norm(), x, y)
    assert evaluate.mmd(x, y, "pixel", bandwidth=1.3).value == pytest.approx(rbf, abs=1e-12)
    assert evaluate.mmd(x, y, "pixel", kernel="polynomial").value == pytest.approx(poly, abs=1e-10)
    assert evaluate.mmd(y, x, "pixel", kernel="polynomial").value == pytest.approx(poly, abs=1e-10)
    assert evaluate.energy_distance(x, y, "pixel").value == pytest.approx(energy, abs=1e-12)


def test_kernel_sums_do_not_depend_on_the_chunks(monkeypatch):
    x, y = gaussian(150, 3, 1), gaussian(150, 3, 2)
    whole = evaluate.energy_distance(x, y, "pixel").value
    monkeypatch.setattr("unstir.evaluate.kernels.ROWS", 7)
    assert evaluate.energy_distance(x, y, "pixel").value == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    "metric",
    [
        lambda x, y: evaluate.mmd(x, y, "pixel", bandwidth=2.0),
        lambda x, y: evaluate.mmd(x, y, "pixel", kernel="polynomial"),
        lambda x, y: evaluate.energy_distance(x, y, "pixel"),
    ],
    ids=["rbf", "polynomial", "energy"],
)
def test_kernel_distances_are_unbiased(metric):
    # 300 pairs of 12 samples of one law: the mean is 0 within 4 standard errors (with the diagonal kept it is > 20 away).
    values = np.array([metric(gaussian(12, 4, 2 * s), gaussian(12, 4, 2 * s + 1)).value for s in range(300)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    assert (values < 0).mean() > 0.2
    assert metric(gaussian(200, 4, 1), gaussian(200, 4, 2) + 1).value > 0.05


def test_median_bandwidth_makes_mmd_free_of_scale():
    x, y = gaussian(80, 3, 1), gaussian(80, 3, 2) + 1
    small, large = evaluate.mmd(x, y, "pixel"), evaluate.mmd(50 * x, 50 * y, "pixel")
    assert large.value == pytest.approx(small.value, rel=1e-9)
    h = float(torch.pdist(x).median())
    assert small.name == f"MMD²-rbf({h:.3g})[pixel]"
    assert small.value == pytest.approx(evaluate.mmd(x, y, "pixel", bandwidth=h).value, rel=1e-9)


# -- neighbourhoods -------------------------------------------------------------------------
def test_precision_recall_by_hand():
    # k = 1. Real balls: 0 ± 1, 1 ± 1, 3 ± 2, 10 ± 7. Fake balls: 0.5 ± 1, 1.5 ± 1, 40 ± 38.5, 100 ± 60.
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    fake = torch.tensor([[0.5], [1.5], [40.0], [100.0]])
    found = evaluate.precision_recall(real, fake, "pixel", k=1)
    # 0.5 lies in 2 real balls, 1.5 in 2 (1 ± 1 and 3 ± 2), the others in none; balls of 0, 1 and 3 hold a fake.
    # 0, 1, 3 and 10 lie in fake balls: 0 and 1 in 0.5 ± 1, 3 and 10 in 40 ± 38.5.
    assert [score.value for score in found] == [0.5, 1.0, 1.0, 0.75]
    assert found.precision.name == "Precision@1[pixel]"


def test_precision_recall_is_free_of_scale():
    x, y = gaussian(120, 3, 1), gaussian(120, 3, 2) * 1.2
    for a, b in zip(evaluate.precision_recall(x, y, "pixel"), evaluate.precision_recall(8 * x, 8 * y, "pixel"), strict=True):
        assert a.value == b.value


# -- damage to real digits ------------------------------------------------------------------
def test_lost_modes_show_in_recall_and_coverage_not_in_precision(digits):
    train, test, _, label = digits
    whole, part = (evaluate.precision_recall(train, fake, n=400) for fake in (test, test[label < 5]))
    assert part.recall.value <= 0.65 < 0.9 < whole.recall.value
    assert part.coverage.value <= 0.65 < 0.9 < whole.coverage.value
    assert part.precision.value >= 0.9 * part.precision.floor
    assert evaluate.frechet(train, test[label < 5], n=400).value > 5 * evaluate.frechet(train, test, n=400).value


def test_duplicates_show_in_coverage_not_in_precision(digits):
    train, test, *_ = digits
    found = evaluate.precision_recall(train, test[:40].repeat(20, 1, 1, 1))
    assert found.coverage.value < 0.5 * found.coverage.floor
    assert found.recall.value < 0.5 * found.recall.floor
    assert found.precision.value >= 0.9 * found.precision.floor


def test_noise_shows_in_precision_and_density(digits):
    train, test, *_ = digits
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    levels = [evaluate.precision_recall(train, test + s * noise, "pixel") for s in (0, 0.3, 0.6)]
    for metric in ("precision", "density"):
        clean, some, more = (getattr(level, metric).value for level in levels)
        assert clean > some + 0.05 > more + 0.1
    distances = [evaluate.frechet(train, test + s * noise, "pixel").value for s in (0, 0.3, 0.6)]
    assert distances[0] < distances[1] < distances[2]


def test_copies_of_the_training_set_are_an_alarm(digits):
    train, test, *_ = digits
    fresh, held = test[:400], test[400:]
    assert evaluate.memorisation(train[:200], train, held).value == 0
    assert evaluate.memorisation(train[:200] + 0.01, train, held).value < 0.1
    honest = evaluate.memorisation(fresh, train, held)
    assert honest.value == pytest.approx(1, abs=0.1)
    assert honest.floor == pytest.approx(1, abs=0.1)
    # Half copies, half fresh lies between.
    mixed = evaluate.memorisation(torch.cat([fresh[:150], train[:140]]), train, held).value
    assert 0 < mixed < honest.value


def test_memorisation_by_hand():
    train, test = torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0], [12.0], [-3.0], [110.0]])
    # Nearest distances: fake 0, 1, 5 (to either), median 1; test 1, 2, 3, 100, median 2.5.
    score = evaluate.memorisation(torch.tensor([[10.0], [1.0], [5.0]]), train, test)
    assert score.value == pytest.approx(0.4)
    assert (score.name, score.n_real, score.n_fake, score.floor_n) == ("NearestTrainRatio[pixel]", 4, 3, 2)


# -- against a reference --------------------------------------------------------------------
def test_trajectory_error():
    reference = torch.zeros(3, 1, 2, 2)
    x = reference.clone()
    x[0, 0, 0, 0], x[1], x[2] = 2.0, 3.0, 8.0
    error = evaluate.trajectory_error(x, reference)
    assert error.per_sample.tolist() == [1.0, 3.0, 8.0]
    assert (error.mean, error.median, error.worst) == (4.0, 3.0, 8.0)
    assert float(error) == 4.0


# -- bad input ------------------------------------------------------------------------------
X = gaussian(40, 4)
HOLE = X.clone()
HOLE[3, 1] = math.nan
BAD = {
    "NaN": (lambda: evaluate.frechet(X, HOLE, "pixel"), ValueError, "fake contains NaN .* in 1 of 40 samples, first in 3"),
    "shapes": (lambda: evaluate.frechet(X, X[:, :3], "pixel"), ValueError, r"fake has sample shape \(3,\) and real \(4,\)"),
    "flat": (lambda: evaluate.mmd(X[:, 0], X, "pixel"), ValueError, r"real has shape \(40,\)"),
    "one": (lambda: evaluate.mmd(X[:1], X, "pixel"), ValueError, "real has 1 sample"),
    "text": (lambda: evaluate.mmd("digits", X, "pixel"), TypeError, "real is str"),
    "dtype": (lambda: evaluate.mmd(X, X.to(torch.uint8), "pixel"), TypeError, "fake is torch.uint8"),
    "n ≤ d": (lambda: evaluate.frechet(X[:4], X[:4], "pixel"), ValueError, "n = 4 .* d = 4 .* mmd"),
    "n": (lambda: evaluate.frechet(X, X, "pixel", n=41), ValueError, "n=41 must be an integer from 2 to 40"),
    "features": (lambda: evaluate.frechet(X, X, "vgg"), ValueError, "features='vgg' is unknown"),
    "weights": (lambda: evaluate.frechet(X, X, "inception"), ValueError, "never downloads"),
    "axes": (lambda: evaluate.frechet(X, X, "pixel-pca:5"), ValueError, "1 ≤ K ≤ 4"),
    "not axes": (lambda: evaluate.frechet(X, X, "pixel-pca:x"), ValueError, "pixel-pca:x"),
    "rows": (lambda: evaluate.frechet(X, X, lambda x: x[:1]), ValueError, "features returned 1 rows for 40"),
    "kernel": (lambda: evaluate.mmd(X, X, "pixel", kernel="linear"), ValueError, "kernel='linear'"),
    "bandwidth": (lambda: evaluate.mmd(X, X, "pixel", bandwidth=0), ValueError, "bandwidth=0"),
    "constant": (lambda: evaluate.mmd(0 * X, X, "pixel"), ValueError, "give bandwidth="),
    "k": (lambda: evaluate.precision_recall(X, X, "pixel", k=40), ValueError, "k=40 .* 1 to 39"),
    "train": (lambda: evaluate.memorisation(X, X, X), ValueError, "most of test is contained in train"),
    "reference": (lambda: evaluate.trajectory_error(X, X[:3]), ValueError, "reference"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
