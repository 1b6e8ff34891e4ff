"""Objectives: identities between targets, weights and densities."""

import math

import pytest
import torch

from unstir import Denoiser, process
from unstir.denoiser import PREDICTIONS
from unstir.train import LEVELS, WEIGHTS, Objective, data_error
from unstir.train.levels import LIMIT, density, levels, stratified, times
from unstir.train.objective import drop, residual, target
from unstir.train.weights import weight

PROCESSES = [process.VP(), process.Cosine(), process.SubVP(), process.VE(), process.EDM(), process.Flow()]


def named(kind):
    return type(kind).__name__


def states(dtype=torch.float64, batch=64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, 5, generator=generator, dtype=dtype) for _ in range(2))


def wanting(p, predicts, guess):
    """A denoiser whose data prediction is guess(x, t), whatever it outputs."""
    model = Denoiser(lambda x, t: x, p, predicts)

    def network(x, t):
        raw_p, raw_q = model.prediction.encode(p.alpha(t), p.sigma(t))
        scale = model.prediction.input_scale(p.alpha(t), p.sigma(t))
        state = x if scale is None else x / scale[:, None]
        return raw_p[:, None] * state + raw_q[:, None] * guess(state, t)

    model.network = network
    return model


@pytest.mark.parametrize("p", PROCESSES, ids=named)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_all_predictions_of_one_denoiser_have_the_same_loss(p, predicts):
    x0, z = states()
    t = p.time(torch.linspace(-3, 4, 64, dtype=torch.float64))
    model = wanting(p, predicts, lambda x, t: torch.tanh(x) * 0.7)
    direct = ((torch.tanh(p.stir(x0, t, z)) * 0.7 - x0) ** 2).mean(1)
    # float32 squares: the raw residual is small against the target where raw says little of x0.
    torch.testing.assert_close(data_error(model, x0, z, t), direct, rtol=2e-4, atol=1e-7)
    loss, details = Objective("min-snr", "uniform").loss(model, x0, z, t)
    expected = torch.exp(2 * p.logsnr(t)).clamp_max(5) * direct
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-4)
    torch.testing.assert_close(details["data_error"], direct, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("predicts", "p", "name"),
    [
        ("data", process.VP(), "data"),
        ("noise", process.VP(), "noise"),
        ("noise", process.Flow(), "noise"),
        ("velocity", process.VP(), "velocity"),
        ("velocity", process.Cosine(), "velocity"),
        ("flow", process.Flow(), "flow"),
        ("edm", process.EDM(), "edm"),
        ("edm", process.VP(), "edm"),
    ],
)
def test_published_losses_are_weights_in_x0_units(predicts, p, name):
    """‖ε̂ − z‖² = SNR e₀, ‖v̂ − v‖² = (SNR + 1) e₀, ‖û − u‖² = e₀/t², EDM's raw loss = (σ̂² + σ_d²)/(σ̂ σ_d)² e₀."""
    t = p.time(torch.linspace(-4, 6, 50, dtype=torch.float64))
    model = Denoiser(lambda x, t: x, p, predicts)
    torch.testing.assert_close(weight(name)(p.logsnr(t)) * model.decoder(t).n ** 2, torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("p", PROCESSES, ids=named)
def test_what_an_edm_network_shall_say_has_unit_variance(p):
    """Var(c x0 + d z) = c² σ_d² + d² = 1 for data of standard deviation σ_d, at every level; no other prediction has that."""
    t = p.time(torch.linspace(-5, 5, 41, dtype=torch.float64))
    for spread in (0.5, 1.7):
        c, d = target(Denoiser(lambda x, t: x, p, "edm", sigma_data=spread), t)
        torch.testing.assert_close(c**2 * spread**2 + d**2, torch.ones(41, dtype=torch.float64), rtol=1e-9, atol=0)
    c, d = target(Denoiser(lambda x, t: x, p, "velocity", sigma_data=0.5), t)
    assert float((c**2 * 0.25 + d**2 - 1).abs().max()) > 0.1


def test_targets_are_the_textbook_ones():
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    p = process.Flow()
    a, s, one, zero = p.alpha(t), p.sigma(t), torch.ones(9), torch.zeros(9)
    s2 = (s**2 + a**2 / 4).sqrt()
    table = {
        "data": (one, zero),
        "noise": (zero, one),
        "velocity": (-(s**2) / s, a),
        "flow": (-one, one),
        "score": (zero, -1 / s),
        "edm": (s / (s2 * 0.5), -a * 0.5 / s2),
    }
    for kind, (c, d) in table.items():
        got = target(Denoiser(lambda x, t: x, p, kind), t)
        torch.testing.assert_close(torch.stack(got), torch.stack([c, d]).double(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("data", lambda s: 1.0),
        ("simple", lambda s: s),
        ("velocity", lambda s: s + 1),
        ("flow", lambda s: (1 + math.sqrt(s)) ** 2),
        ("min-snr", lambda s: min(s, 5)),
        ("min-snr:2", lambda s: min(s, 2)),
        ("soft-min-snr:3", lambda s: 3 * s / (s + 3)),
        ("max-snr", lambda s: max(s, 1)),
        ("p2:2,0.5", lambda s: s / (2 + s) ** 0.5),
        ("edm:0.7", lambda s: s + 1 / 0.49),
        ("sigmoid:1", lambda s: s / (1 + math.exp(-1 + math.log(s)))),
        ("debiased", math.sqrt),
        ("sigma-sqrt", lambda s: (1 + math.sqrt(s)) ** 4),
        ("cosmap", lambda s: 2 * (1 + math.sqrt(s)) ** 4 / (math.pi * (1 + s))),
    ],
)
def test_weights_by_hand(text, formula):
    for s in (0.01, 0.5, 1.0, 4.0, 90.0):
        lam = torch.tensor(0.5 * math.log(s), dtype=torch.float64)
        assert float(weight(text)(lam)) == pytest.approx(formula(s), rel=1e-12)


def test_every_weight_is_covered_and_finite():
    lam = torch.linspace(-LIMIT, LIMIT, 101, dtype=torch.float64)
    for name in WEIGHTS:
        w = weight(name)(lam)
        assert bool(torch.isfinite(w).all() and (w > 0).all()), name


@pytest.mark.parametrize("p", PROCESSES, ids=named)
@pytest.mark.parametrize("name", LEVELS)
def test_level_densities(name, p):
    level = levels(name)
    u = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    t = level.quantile(p, u)
    assert bool((t.diff() >= 0).all())
    inside = (t > 1e-6) & (t < 1 - 1e-6)  # outside, the process does not reach the level
    torch.testing.assert_close(level.cdf(p, t)[inside], u[inside], rtol=1e-6, atol=1e-6)
    if name in ("lognormal",) and isinstance(p, process.Flow):
        lam = p.logsnr(t)
        expected = torch.exp(-0.5 * ((-lam + 1.2) / 1.2) ** 2) / (1.2 * math.sqrt(2 * math.pi))
        torch.testing.assert_close(density(level, p, t), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("p", PROCESSES, ids=named)
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", LEVELS)
def test_loss_is_finite_at_the_ends(p, predicts, name):
    x0, z = states(torch.float32, 4)
    model = Denoiser(torch.nn.Tanh(), p, predicts)
    model.call = lambda x, time, scale, cond: (torch.tanh(x), ())  # type: ignore[method-assign]
    t = times(levels(name), p, torch.tensor([0.0, 1e-12, 1 - 1e-12, 1.0]))
    for w in ("raw", *WEIGHTS):
        loss, _ = Objective(w, name).loss(model, x0, z, t)
        assert bool(torch.isfinite(loss)), w


def test_only_the_product_of_weight_and_density_matters():
    """E_p1[w e₀] = E_p2[w p1/p2 e₀]: the same gradient in expectation, from other levels."""
    p = process.Flow()
    model = wanting(p, "flow", lambda x, t: torch.tanh(x) * 0.5)
    generator = torch.Generator().manual_seed(1)
    batch = 40_000
    x0 = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    one, two = levels("logitnormal:0.3,0.8"), levels("logitnormal:-0.2,1.1")
    u = stratified(batch, 0.5)
    first, second = times(one, p, u), times(two, p, u)

    def reweighted(lam):
        t = p.time(lam)
        return weight("min-snr")(lam) * density(one, p, t) / density(two, p, t)

    a = float(Objective("min-snr", one).loss(model, x0, z, first)[0])
    b = float(Objective(reweighted, two).loss(model, x0, z, second)[0])
    c = float(Objective("min-snr", two).loss(model, x0, z, second)[0])
    assert a == pytest.approx(b, rel=1e-2)
    assert abs(a - c) > 5e-2 * a  # without the ratio they differ: the test can fail


def test_stratified_levels_have_lower_variance():
    p = process.VP()
    model = wanting(p, "velocity", lambda x, t: p.alpha(t)[:, None] * x)  # with x0 = z = 1 the loss is (α − σ)²
    objective = Objective()
    generator = torch.Generator().manual_seed(2)
    x0, z = torch.ones(16, 1), torch.ones(16, 1)
    plain, even = [], []
    for _ in range(300):
        u = torch.rand(17, generator=generator, dtype=torch.float64)
        plain.append(float(objective.loss(model, x0, z, objective.times(model, u[:16]))[0]))
        even.append(float(objective.loss(model, x0, z, objective.times(model, stratified(16, float(u[16]))))[0]))
    plain, even = torch.tensor(plain), torch.tensor(even)
    assert float(even.var()) < 0.05 * float(plain.var())
    assert float(even.mean()) == pytest.approx(float(plain.mean()), abs=4 * float(plain.std()) / math.sqrt(300))


def test_residual_times_n_is_the_data_error():
    x0, z = states()
    p = process.Cosine()
    model = wanting(p, "noise", lambda x, t: 0.2 * x)
    t = p.time(torch.full((64,), 0.5, dtype=torch.float64))
    square, n = residual(model, x0, z, t)
    torch.testing.assert_close((n**2 * square), ((0.2 * p.stir(x0, t, z) - x0) ** 2).mean(1), rtol=1e-5, atol=0)


def test_drop_replaces_whole_conditions():
    cond = {"class_labels": torch.tensor([1, 2, 3]), "text": torch.ones(3, 2)}
    got = drop(cond, {"class_labels": 9, "text": torch.zeros(2)}, torch.tensor([False, True, False]))
    assert got["class_labels"].tolist() == [1, 9, 3]
    assert got["text"].tolist() == [[1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": "snr"}, "weight='snr' is unknown; one of data"),
        ({"weight": "min-snr:x"}, "must be numbers"),
        ({"weight": "min-snr:1,2"}, "takes 1"),
        ({"levels": "normal"}, "levels='normal' is unknown"),
        ({"levels": "lognormal:0,-1"}, "std > 0"),
        ({"cond_dropout": 1.5}, "cond_dropout=1.5"),
    ],
)
def test_bad_objectives(options, words):
    with pytest.raises(ValueError, match=words):
        Objective(**options)
