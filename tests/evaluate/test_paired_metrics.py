"""Metrics of pairs, masks, ensembles and graphs: known values, and other routes to the same number."""

import math

import numpy as np
import pytest
import torch

from unstir import evaluate
from unstir.evaluate.quality import psnr, si_sdr


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- paired pictures and sounds -----------------------------------------------------------------
def test_paired_means_with_errors_and_without_the_infinite():
    pytest.importorskip("torchmetrics")
    x = noise(4, 1, 16, 16).clamp(-1, 1)
    y = x + torch.tensor([0.0, 0.1, 0.2, 0.4])[:, None, None, None]
    scores = {s.name: s for s in evaluate.paired(y, x)}
    # PSNR(x, x) = ∞ is left out, and counted: the rest are 10 log₁₀(4/c²).
    each = [10 * math.log10(4 / c**2) for c in (0.1, 0.2, 0.4)]
    assert float(psnr(y, x)[0]) == math.inf
    assert scores["PSNR"].value == pytest.approx(np.mean(each))
    assert scores["PSNR"].error == pytest.approx(np.std(each, ddof=1) / math.sqrt(3))
    assert (scores["PSNR"].n_fake, scores["PSNR"].notes) == (3, ("undefined or infinite in 1 of 4 pairs",))
    assert evaluate.paired(x, x)[0].name == "SSIM"
    assert evaluate.paired(x, x)[0].value == pytest.approx(1)


def test_si_sdr_is_free_of_scale():
    s, x = noise(2, 500), noise(2, 500) + 0.3 * noise(2, 500, seed=1)
    assert si_sdr(7 * x, s).tolist() == pytest.approx(si_sdr(x, s).tolist())


# -- masks --------------------------------------------------------------------------------------
def cube(size, *corner, side=4):
    mask = np.zeros(size, bool)
    mask[tuple(slice(c, c + side) for c in corner)] = True
    return mask


def test_shifted_cubes():
    a, b = cube((16,) * 3, 4, 4, 4)[None], cube((16,) * 3, 4, 4, 6)[None]
    assert evaluate.dice(a, b).tolist() == [0.5]  # 2·32/(64 + 64)
    assert evaluate.hd95(a, b, 1.0, percentile=100).tolist() == [2]
    assert evaluate.hd95(a, b, (1, 1, 2.5), percentile=100).tolist() == [5]
    assert evaluate.hd95(a, b, 1.0).tolist() == [2]
    assert evaluate.hd95(a, a, 1.0).tolist() == [0]


def test_surface_distances_by_another_route():
    """scipy's erosion and distance transform: for every surface voxel the distance to the other surface."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rng, spacing = np.random.default_rng(0), (0.8, 1.3, 2.0)
    blobs = [ndimage.gaussian_filter(rng.normal(size=(2, 14, 12, 10)), (0, 2, 2, 2)) > 0.02 for _ in range(2)]
    expected = []
    for a, b in zip(*blobs, strict=True):
        edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]
        far = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
        expected.append(max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95)))
    assert evaluate.hd95(*blobs, spacing).tolist() == pytest.approx(expected, rel=1e-12)


def test_empty_masks_are_counted_and_not_averaged():
    full, empty = cube((8, 8), 2, 2), np.zeros((8, 8), bool)
    score = evaluate.segmentation(np.stack([full, empty, full]), np.stack([full, empty, empty]), 1.0)
    assert (score.undefined_dice, score.undefined_hd95, score.n) == (1, 2, 3)
    assert (score.dice, score.hd95) == (0.5, 0.0)
    assert score.aggregate == pytest.approx(2 * 16 / 48)
    assert "undefined in 1 and 2" in str(score)


# -- ensembles ----------------------------------------------------------------------------------
def test_crps_of_a_point_mass_is_the_absolute_error():
    y = noise(3, 4)
    assert torch.allclose(evaluate.crps((y + 2).expand(5, 3, 4), y), torch.full((3, 4), 2.0).double())


@pytest.mark.parametrize("fair", [True, False], ids=["fair", "empirical"])
def test_crps_by_its_double_sum(fair):
    x, y = noise(6, 7), noise(7, seed=1)
    pairs = sum((x[i] - x[j]).abs() for i in range(6) for j in range(i))
    expected = (x - y).abs().mean(0) - pairs / (30 if fair else 36)
    assert torch.allclose(evaluate.crps(x, y, fair=fair), expected)


def test_fair_crps_does_not_depend_on_the_size_of_the_ensemble():
    # For N(0, 1) forecasts of N(0, 1) truths the CRPS is 1/√π; the empirical form is 1/(m√π) larger.
    for m in (2, 8):
        x, y = noise(m, 40_000, seed=m), noise(40_000, seed=99)
        assert float(evaluate.crps(x, y).mean()) == pytest.approx(1 / math.sqrt(math.pi), rel=0.02)
        assert float(evaluate.crps(x, y, fair=False).mean()) == pytest.approx((1 + 1 / m) / math.sqrt(math.pi), rel=0.02)


def test_empirical_crps_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.regression")
    x, y = noise(5, 30), noise(30, seed=1)
    theirs = functional.continuous_ranked_probability_score(x.T.contiguous(), y)
    assert float(evaluate.crps(x, y, fair=False).mean()) == pytest.approx(float(theirs), rel=1e-6)


def test_quantile_loss_by_hand():
    # Median only, of members 0, 1, 2: x_q = 1; errors 2 and −1 → 2 (2·½ + 1·½) / (3 + 0).
    x, y = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), torch.tensor([3.0, 0.0])
    assert evaluate.quantile_loss(x, y, levels=1) == pytest.approx(1.0)


# -- graphs -------------------------------------------------------------------------------------
def random_graph(n, p, seed):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < p, 1)
    return (upper | upper.T).astype(int)


def community(seed, inside=0.7, between=0.03, n=16):
    rng = np.random.default_rng(seed)
    group = np.arange(n) < n // 2
    chance = np.where(group[:, None] == group[None], inside, between)
    upper = np.triu(rng.random((n, n)) < chance, 1)
    return (upper | upper.T).astype(int)


def test_orbits_of_a_random_graph():
    a = random_graph(12, 0.35, 0)
    found = evaluate.orbits(a)
    assert found[:, 0].tolist() == a.sum(1).tolist()
    assert found[:, 3].tolist() == (np.diagonal(a @ a @ a) // 2).tolist()
    total = found.sum(0)
    for sites in ([4, 5], [6, 7], [8], [9, 10, 11], [12, 13], [14]):
        assert total[sites].sum() % 4 == 0
    assert total[0] % 2 == total[3] % 3 == total[[1, 2]].sum() % 3 == 0
    assert total[1] == 2 * total[2]
    assert total[6] == 3 * total[7]
    assert total[9] == total[11]
    assert total[10] == 2 * total[11]


@pytest.mark.parametrize(
    ("edges", "places"),
    [
        ([(0, 1), (1, 2), (2, 3)], [4, 5, 5, 4]),
        ([(0, 1), (0, 2), (0, 3)], [7, 6, 6, 6]),
        ([(0, 1), (1, 2), (2, 3), (3, 0)], [8, 8, 8, 8]),
        ([(0, 1), (1, 2), (2, 0), (0, 3)], [11, 10, 10, 9]),
        ([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)], [13, 12, 13, 12]),
        ([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], [14, 14, 14, 14]),
    ],
    ids=["path", "star", "cycle", "paw", "diamond", "complete"],
)
def test_every_graph_of_four_nodes(edges, places):
    a = np.zeros((4, 4), int)
    for i, j in edges:
        a[i, j] = a[j, i] = 1
    found = evaluate.orbits(a)[:, 4:]
    assert found.sum() == 4
    assert [int(row.argmax()) + 4 for row in found] == places


def test_emd_of_histograms_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    p, q = (row / row.sum() for row in np.random.default_rng(0).random((2, 9)))
    ours = np.abs(np.cumsum(p) - np.cumsum(q)).sum()
    assert ours == pytest.approx(stats.wasserstein_distance(range(9), range(9), p, q))


@pytest.mark.parametrize("kernel", ["tv", "emd"])
@pytest.mark.parametrize("statistic", ["degree", "clustering", "spectrum", "orbits"])
def test_graph_mmd_tells_laws_apart_and_is_zero_for_one_set(statistic, kernel):
    real = [community(s) for s in range(16)]
    same = evaluate.graph_mmd(real, [community(s) for s in range(50, 66)], statistic, kernel=kernel)
    other = evaluate.graph_mmd(real, [random_graph(16, 0.6, s) for s in range(16)], statistic, kernel=kernel)
    assert evaluate.graph_mmd(real, real, statistic, kernel=kernel).value == pytest.approx(0, abs=1e-12)
    # Bins of the spectrum are 0.01 wide, so two graphs of one law hardly share any: most of that number is bias.
    assert other.value > (1.3 if statistic == "spectrum" else 3) * same.value >= 0
    assert f"[{statistic}]" in same.name
    assert same.floor is not None


def test_a_random_graph_network_needs_no_choice_of_statistics():
    real, fake = (torch.tensor(np.stack([community(s) for s in range(k, k + 16)])) for k in (0, 60))
    other = torch.tensor(np.stack([random_graph(16, 0.6, s) for s in range(16)]))
    means = [sum(evaluate.mmd(real, x, evaluate.random_gin(seed)).value for seed in range(5)) for x in (fake, other)]
    assert means[1] > 5 * abs(means[0])
    features = evaluate.random_gin(3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(features(real), features(real[:, order][:, :, order]))
    padded = torch.nn.functional.pad(real, (0, 2, 0, 2))
    assert torch.allclose(features(real), features(padded))


# -- bad input ----------------------------------------------------------------------------------
M = cube((8, 8), 2, 2)[None]
G = [random_graph(5, 0.5, s) for s in range(4)]
BAD = {
    "spacing none": (lambda: evaluate.hd95(M, M, None), "spacing=None must be 2 numbers"),
    "spacing length": (lambda: evaluate.hd95(M, M, (1, 1, 1)), "spacing=.*must be 2 numbers"),
    "spacing zero": (lambda: evaluate.hd95(M, M, (1, 0)), "above 0"),
    "percentile": (lambda: evaluate.hd95(M, M, 1, percentile=0), "percentile=0"),
    "no mask": (lambda: evaluate.dice(M * 2.5, M), "x must be a mask"),
    "mask shapes": (lambda: evaluate.dice(M, M[:, :4]), "must be equal"),
    "mask axes": (lambda: evaluate.dice(M[0], M[0]), r"x has shape \(8, 8\)"),
    "ensemble of one": (lambda: evaluate.crps(torch.zeros(1, 3), torch.zeros(3)), "ensemble has 1 member"),
    "ensemble shape": (lambda: evaluate.crps(torch.zeros(4, 3), torch.zeros(4, 3)), "members for a truth"),
    "ensemble NaN": (lambda: evaluate.crps(torch.full((2, 1), math.nan), torch.zeros(1)), "ensemble contains NaN"),
    "levels": (lambda: evaluate.quantile_loss(torch.ones(3, 1), torch.ones(1), levels=0), "levels=0"),
    "truth zero": (lambda: evaluate.quantile_loss(torch.ones(3, 1), torch.zeros(1)), "use crps"),
    "statistic": (lambda: evaluate.graph_mmd(G, G, "size"), "statistic='size'"),
    "graph kernel": (lambda: evaluate.graph_mmd(G, G, kernel="rbf"), "kernel='rbf'"),
    "not square": (lambda: evaluate.graph_mmd(G, [np.zeros((2, 3))]), r"fake\[0\] has shape \(2, 3\)"),
    "loops": (lambda: evaluate.orbits(np.eye(3)), r"graph\[0\] must be symmetric"),
    "pair shapes": (lambda: evaluate.paired(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4)), "must be equal"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
