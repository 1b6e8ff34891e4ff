"""Estimators beyond the plain distances: extrapolation, subsets, diversity, error bars, feature spaces, classes."""

import math

import pytest
import torch
from metric_parts import gaussian

from unstir import data, evaluate
from unstir.evaluate.features import space
from unstir.evaluate.samples import Pair


# -- Fréchet distance without its bias ----------------------------------------------------------
def test_the_extrapolated_frechet_distance_has_lost_its_bias():
    # One law, d = 16, n = 1200: E FD = (2d + d(d + 1)/2)/n = 0.14; the intercept of FD against 1/n is 0.
    plain = [evaluate.frechet(gaussian(1200, 16, s), gaussian(1200, 16, s + 50), "pixel").value for s in range(4)]
    free = [evaluate.frechet_infinity(gaussian(1200, 16, s), gaussian(1200, 16, s + 50), "pixel").value for s in range(4)]
    assert sum(plain) / 4 == pytest.approx(168 / 1200, rel=0.1)
    assert abs(sum(free)) / 4 < 0.02


def test_the_extrapolated_frechet_distance_of_two_laws_is_the_closed_form():
    shift = 0.5 * torch.ones(8).double()
    x, y = gaussian(2000, 8, 1), gaussian(2000, 8, 2) * 1.3 + shift
    exact = float(shift.square().sum()) + 8 * 0.3**2
    assert evaluate.frechet_infinity(x, y, "pixel").value == pytest.approx(exact, rel=0.07)
    assert evaluate.frechet_infinity(x, y, "pixel").name == "FD∞[pixel]"


# -- kernels ------------------------------------------------------------------------------------
def test_kid_of_one_law_is_zero_within_its_error():
    score = evaluate.kid(gaussian(500, 64, 1), gaussian(500, 64, 2), "pixel", subsets=20, size=200)
    assert score.error is not None
    assert abs(score.value) < 3 * score.error
    assert "20 subsets of 200" in score.notes
    assert score.name == "MMD²-poly3[pixel]"


def test_kid_is_symmetric_and_the_whole_set_is_one_subset():
    x, y = gaussian(120, 6, 1), gaussian(120, 6, 2) + 0.4
    there = evaluate.kid(x, y, "pixel", subsets=5, size=40)
    assert evaluate.kid(y, x, "pixel", subsets=5, size=40).value == pytest.approx(there.value, rel=1e-12)
    whole = evaluate.kid(x, y, "pixel")
    assert whole.error is None
    assert whole.value == pytest.approx(evaluate.mmd(x, y, "pixel", kernel="polynomial").value, rel=1e-12)


def test_cmmd_by_hand():
    # Unit vectors e₁ and −e₁ are 2 apart: 1000 (1 + 1 − 2 exp(−4/200)).
    x = torch.tensor([[3.0, 0.0]] * 2).double()
    assert evaluate.cmmd(x, -x, "pixel").value == pytest.approx(2000 * (1 - math.exp(-0.02)), rel=1e-12)
    assert evaluate.cmmd(x, 5 * x, "pixel").value == pytest.approx(0, abs=1e-9)


# -- diversity ----------------------------------------------------------------------------------
def test_vendi_counts_distinct_samples():
    # k orthogonal directions, equally often: k. Copies of one: 1.
    x = torch.eye(8).double().repeat(5, 1)
    assert evaluate.vendi(x, x, "pixel").value == pytest.approx(8)
    assert evaluate.vendi(x, x[:1].repeat(40, 1), "pixel").value == pytest.approx(1)


def test_lost_modes_lower_vendi(digits):
    train, test, _, labels = digits
    half = test[labels < 5]
    whole = evaluate.vendi(train, test, n=len(half))
    assert evaluate.vendi(train, half).value < 0.9 * whole.value
    assert whole.value == pytest.approx(whole.floor, rel=0.1)


def test_neighbours_find_the_copies(digits):
    train, test, *_ = digits
    copies = train[[5, 17, 3]]
    found = evaluate.neighbours(torch.cat([copies, test[:2]]), train, k=2)
    assert found.rows[:3, 0].tolist() == [5, 17, 3]
    assert found.distances[:3, 0].tolist() == [0, 0, 0]
    by_hand = (test[1].double() - train.double()).flatten(1).norm(dim=1)
    assert found.distances[4].tolist() == pytest.approx(by_hand.sort().values[:2].tolist())


def test_neighbours_are_exact_in_any_portions(monkeypatch):
    # Far from the origin ‖x‖² + ‖y‖² − 2xᵀy has lost distances below 1e-4; the candidates are measured again.
    train = gaussian(60, 5, 1) + 1e4
    fake = torch.cat([train[[50, 3]] + 1e-5, gaussian(8, 5, 2) + 1e4])
    every = torch.cdist(fake, train, compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    for portion in (4096, 7):
        monkeypatch.setattr("unstir.evaluate.metrics.PORTION", portion)
        found = evaluate.neighbours(fake, train, k=3)
        assert torch.equal(found.rows, every.indices[:, :3])
        assert torch.allclose(found.distances, every.values[:, :3], rtol=1e-9)


# -- error bars ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["energy", "mmd", "prdc"])
def test_error_bars_are_the_spread_over_fresh_samples(name):
    def scores(seed, errors=0):
        x, y = gaussian(200, 3, 2 * seed), gaussian(200, 3, 2 * seed + 1) + 0.7
        return evaluate.compare(x, y, [name], "pixel", errors=errors)

    values = torch.tensor([[s.value for s in scores(seed)] for seed in range(40)])
    told = torch.tensor([[s.error for s in scores(seed, 20)] for seed in range(4)]).mean(0)
    ratio = told / values.std(0)
    assert bool((ratio > 0.6).all()), ratio
    assert bool((ratio < 1.7).all()), ratio


def test_half_sampling_is_exact_for_a_mean():
    x = gaussian(400, 1)
    pair = Pair.of(x, x, "pixel", None, 0, 400)
    error = pair.score("mean", lambda a, b: float(a.mean())).error
    assert error == pytest.approx(float(x.std()) / 20, rel=0.1)


# -- several at once ----------------------------------------------------------------------------
def test_compare_is_the_single_metrics_in_order(digits):
    train, test, *_ = digits
    found = evaluate.compare(train, test, ["fd", "prdc"], ["pixel-pca:8", "randconv"], errors=0, n=300)
    single = [
        evaluate.frechet(train, test, "pixel-pca:8", n=300),
        *evaluate.precision_recall(train, test, "pixel-pca:8", n=300),
    ]
    assert found[:5] == single
    assert [s.name for s in found[5:7]] == ["FD[randconv-seed0]", "Precision@5[randconv-seed0]"]


@pytest.mark.parametrize(("features", "lost"), [("pixel-pca:24", 0.65), ("randconv", 0.75)])
def test_damage_to_digits_moves_every_metric_as_documented(digits, features, lost):
    """lost: what recall and coverage may keep of a set without half of its modes; untrained features part classes less well."""
    train, test, _, labels = digits
    names = ["fd", "prdc"]

    def measure(fake):
        fd, precision, recall, density, coverage = evaluate.compare(train, fake, names, features, n=400, errors=0)
        return {"fd": fd.value, "p": precision.value, "r": recall.value, "d": density.value, "c": coverage.value}

    good = measure(test)
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(1))
    noisy, doubled, dropped = measure(test + 0.8 * noise), measure(test[:40].repeat(23, 1, 1, 1)), measure(test[labels < 5])
    assert noisy["fd"] > 3 * good["fd"]
    assert noisy["p"] < 0.8 * good["p"]
    assert noisy["d"] < 0.8 * good["d"]
    assert doubled["fd"] > 2 * good["fd"]
    assert doubled["p"] > 0.9 * good["p"]
    assert doubled["c"] < 0.5 * good["c"]
    assert dropped["fd"] > 2 * good["fd"]
    assert dropped["p"] > 0.9 * good["p"]
    assert max(dropped["r"], dropped["c"]) <= lost
    assert min(good["r"], good["c"]) > 0.9
    assert evaluate.memorisation(train[:100], train, test).value == 0


def test_per_class_finds_the_class_that_is_wrong(digits):
    train, test, before, after = digits
    fake = test.clone()
    fake[after == 3] = fake[after == 3].flip(3)
    classes = [str(i) for i in range(10)]
    found = evaluate.per_class(train, fake, before, after, classes, features="pixel-pca:16")
    values = {name: score.value for name, score in found.items() if not isinstance(score, str)}
    assert len(values) == 10
    assert max(values, key=values.get) == "3"
    assert found["0"].name == "FD[pixel-PCA16]"
    few = evaluate.per_class(train, fake[:60], before, after[:60], classes, features="pixel-pca:16")
    assert all(isinstance(score, str) for score in few.values())
    assert any("n > d" in str(score) for score in few.values())


# -- feature spaces -----------------------------------------------------------------------------
def test_random_features_are_a_function_of_the_seed_and_see_pictures_only():
    x = torch.rand(6, 3, 9, 7)
    name, features, _ = space("randconv:4", x)
    assert name == "randconv-seed4"
    assert features(x).shape == (6, 64)
    assert torch.equal(features(x), evaluate.random_conv(3, 4)(x))
    assert not torch.allclose(features(x), evaluate.random_conv(3, 5)(x))


def test_a_folder_of_dinov2_is_named_by_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**size)).save_pretrained(tmp_path / "tiny-vit")
    x = torch.rand(20, 1, 8, 8) * 2 - 1
    found = evaluate.mmd(x, x.flip(0), f"dinov2:{tmp_path / 'tiny-vit'}")
    assert found.name.endswith("[tiny-vit]")
    assert "grey pictures repeated in 3 channels" in found.notes


def test_fd_dinov2_is_the_name_of_those_weights_only(monkeypatch):
    from unstir.evaluate.features import label

    assert label("FD", "dinov2") == "FD-DINOv2"
    assert label("FD", "tiny-vit") == "FD[tiny-vit]"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    x = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"not on this machine, and nothing is downloaded; use 'randconv'"):
        evaluate.mmd(x, x, "dinov2")


def test_a_classifier_of_our_own_is_a_feature_space(digits, tmp_path):
    train, test, before, _ = digits
    dataset = data.load(train[:400].numpy(), labels=before[:400].numpy())
    made = evaluate.train_classifier(dataset, steps=40, width=16)
    again = evaluate.train_classifier(dataset, steps=40, width=16)
    assert made.name == again.name
    assert made.accuracy > 0.3  # a tenth by chance
    made.save(tmp_path / "c.safetensors")
    loaded = evaluate.load_classifier(tmp_path / "c.safetensors")
    assert (loaded.name, loaded.accuracy) == (made.name, made.accuracy)
    score = evaluate.frechet(train, test, loaded)
    assert score.name == f"FD[{made.name}]"
    assert evaluate.frechet(train, test + 0.5, loaded).value > 2 * score.value


# -- bad input ----------------------------------------------------------------------------------
X = gaussian(40, 4)
P = torch.rand(20, 1, 4, 4) * 2 - 1


def reserved(x):
    return x


reserved.name = "Inception"

BAD = {
    "no metric": (lambda: evaluate.compare(X, X, []), ValueError, "must be names among fd"),
    "unknown metric": (lambda: evaluate.compare(X, X, ["fid"]), ValueError, "which=.*must be names among"),
    "one half-sample": (lambda: evaluate.compare(X, X, ["mmd"], "pixel", errors=1), ValueError, "errors=1"),
    "too few to extrapolate": (lambda: evaluate.frechet_infinity(X[:15], X[:15], "pixel"), ValueError, "n ≥ 4d = 16"),
    "kid subsets": (lambda: evaluate.kid(X, X, "pixel", subsets=0), ValueError, "subsets=0"),
    "kid size": (lambda: evaluate.kid(X, X, "pixel", size=1), ValueError, "size=1"),
    "random features of rows": (lambda: evaluate.mmd(X, X, "randconv"), ValueError, "is for pictures"),
    "random features' seed": (lambda: evaluate.mmd(P, P, "randconv:x"), ValueError, "whole number"),
    "a reserved name": (lambda: evaluate.mmd(X, X, reserved), ValueError, "reserved"),
    "clip": (lambda: evaluate.cmmd(P, P, "clip"), ValueError, "never downloads"),
    "neighbours": (lambda: evaluate.neighbours(X, X, k=41), ValueError, "k=41 must be a whole number from 1 to 40"),
    "labels": (lambda: evaluate.per_class(X, X, [0] * 40, [2] * 40, ["a"]), ValueError, "fake_labels must be 40 whole"),
    "class metric": (lambda: evaluate.per_class(X, X, [0] * 40, [0] * 40, ["a"], "x"), ValueError, "metric='x'"),
    "classifier without labels": (lambda: evaluate.train_classifier(data.load(P.numpy())), ValueError, "no labels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_other_value_ranges_are_pointed_out():
    score = evaluate.mmd(P, (P + 1) / 2, "pixel")
    assert "real values look like [−1, 1], fake ones like [0, 1]: bring both to one range" in score.notes
    assert evaluate.mmd(P, P * 0.9, "pixel").notes == ()
    assert any("[0, 255]" in note for note in evaluate.mmd(P, (P + 1) * 127.5, "pixel").notes)


def test_a_classifier_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no classifier of unstir"):
        evaluate.load_classifier(tmp_path / "x.safetensors")
