"""Model statistics: l, s, b against closed forms, the exact flow and least squares; three ways to differentiate."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir import process as pr
from unstir.data import load
from unstir.denoiser import Denoiser, Gaussian
from unstir.solvers import make_grid
from unstir.solvers.ems import ems_multistep
from unstir.tune import model_statistics
from unstir.tune import statistics as st

VP = pr.VP()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- l --------------------------------------------------------------------------------------------------------
def test_l_of_a_linear_denoiser_is_exact_on_every_process(process):
    """Independent Gaussians: ∂D/∂x̂ = c/(c + σ̂²), so l = σ̂²/(c + σ̂²) from any number of samples, and f has no variance."""
    variance = tensor(0.3, 1.0, 2.0)
    model = Gaussian(process, tensor(0.1, -0.2, 0.5), variance)
    found = model_statistics(model, model.sample(32), knots=40, samples=8, smooth=0.0)
    noise = (-2 * found.logsnr[:, None]).exp()
    assert torch.allclose(found.l, noise / (variance + noise), rtol=0, atol=1e-9)
    assert float(found.s.abs().max()) < 1e-2
    assert bool(torch.isfinite(found.b).all())


def test_l_of_a_linear_noise_network_is_its_diagonal():
    """ε̂ = W x: l = E[v ⊙ σ W v] = σ diag W, exactly for a diagonal W, else up to the noise of v."""
    weight = tensor(0.2, 0.7, 1.1)
    model = Denoiser(lambda x, t: x * weight, VP, "noise")
    data = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = model_statistics(model, data, knots=20, samples=16, smooth=0.0)
    sigma = VP.sigma(VP.time(found.logsnr))[:, None]
    assert torch.allclose(found.l, sigma * weight, rtol=0, atol=1e-10)

    full = torch.diag(weight) + 0.05
    model = Denoiser(lambda x, t: x @ full.T, VP, "noise")
    found = model_statistics(model, data, knots=5, samples=4096, batch=1024, smooth=0.0)
    sigma = VP.sigma(VP.time(found.logsnr))[:, None]
    assert torch.allclose(found.l, sigma * full.diag(), rtol=0, atol=5 * 0.05 * 2**0.5 / 64)


# -- f', s, b ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("process", [VP, pr.Cosine(), pr.EDM(), pr.Flow()], ids=lambda p: type(p).__name__)
def test_the_total_derivative_follows_the_exact_flow(mixture, process):
    """D' = dD/dλ along a trajectory, by central differences on the quantile map."""
    model, h = mixture.model(process), 1e-4
    for lam in (-2.0, 0.0, 1.5):
        t = process.time(lam)
        scaled = tensor(0.4)[:, None]  # one sample: sums are values
        sums = st._sums(st._prediction(model, process, {}), process, st.forward_mode, scaled, t[None], torch.ones_like(scaled))
        x = process.alpha(t) * scaled
        near = [float(process.time(lam + h)), float(process.time(lam - h))]
        data = [float(model(mixture.flow(process, x, float(t), u), u)) for u in near]
        assert float(sums[1]) == pytest.approx(0.4)
        assert float(sums[2]) == pytest.approx(float(model(x, t)))
        assert float(sums[3]) == pytest.approx((data[0] - data[1]) / (2 * h), abs=2e-6)


def test_s_and_b_are_the_regression_of_f1_on_f(monkeypatch):
    """Moments of made-up (x̂, D, D') and a straight l: the same numbers as least squares on the samples, but for ε."""
    monkeypatch.setattr(st, "RIDGE", 0.0)
    generator = torch.Generator().manual_seed(1)
    lam = torch.linspace(-2, 2, 9, dtype=torch.float64)
    w = torch.randn(3, 200, 9, 2, dtype=torch.float64, generator=generator) + tensor(0.5, 1.0, -0.3).reshape(3, 1, 1, 1)
    w[2] += 0.8 * w[1]
    l = (0.5 - 0.2 * lam)[:, None].expand(9, 2)  # noqa: E741
    products = [(w[i] * w[j]).mean(0) for i in range(3) for j in range(i, 3)]
    found_l, s, b = st.curves(lam, torch.stack([1 - l, *w.mean(1), *products]))
    assert torch.allclose(found_l, l)
    x, data, change = w
    f = (1 - l) * x - data
    f1 = (1 - l) * (data - x) + 0.2 * x - change
    for k in range(9):
        for d in range(2):
            slope, offset = np.polyfit(f[:, k, d], f1[:, k, d], 1)
            assert float(s[k, d]) == pytest.approx(slope, abs=1e-9)
            assert float(b[k, d]) == pytest.approx(offset, abs=1e-9)


def test_no_variance_gives_no_slope_in_float32():
    """Isotropic Gaussian data: f is a function of λ only, s = 0/0 without its ε, and order 1 is then nearly exact."""
    model = Gaussian(VP, tensor(0.3, -0.1), 0.5)
    found = model_statistics(model, model.sample(64).float(), knots=120, samples=32, smooth=0.0)
    assert float(found.s.abs().max()) < 0.05
    x = VP.prior((16, 2), dtype=torch.float64)

    def std(t: float) -> float:
        return float((0.5 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2).sqrt())

    exact = VP.alpha(1e-3) * model.means + (x - VP.alpha(1.0) * model.means) * std(1e-3) / std(1.0)
    nodes = make_grid("logsnr", VP, 5, 1.0, 1e-3)
    ours, ddim = ems_multistep(VP, nodes, stats=found, order=1), unstir.plan("ddim", VP, grid=nodes)
    ours, ddim = (float((unstir.sample(model, plan, x=x) - exact).abs().max()) for plan in (ours, ddim))
    assert ours < 0.02
    assert ours < 0.1 * ddim


def test_measured_statistics_beat_ddim_and_unipc_on_a_mixture(mixture):
    """The dossier's 1-D check: at 8 calls DDIM .246, UniPC .123, ours .019."""
    model = mixture.model(VP)
    found = model_statistics(model, model.sample(4096), knots=160, samples=4096, batch=4096, start=1.0, end=1e-3)
    x = VP.prior((64, 1), dtype=torch.float64)
    exact = mixture.flow(VP, x, 1.0, 1e-3)

    def error(plan) -> float:
        return float((unstir.sample(model, plan, x=x) - exact).square().mean().sqrt())

    ours = error(ems_multistep(VP, make_grid("logsnr", VP, 8, 1.0, 1e-3), stats=found))
    ddim, unipc = (error(unstir.plan(name, VP, 8, "logsnr", end=1e-3)) for name in ("ddim", "unipc"))
    assert ours < 0.4 * min(ddim, unipc)


def test_smoothing_keeps_straight_lines_and_damps_noise():
    lam = torch.linspace(-3, 3, 61, dtype=torch.float64)
    line = 0.3 - 0.7 * lam[:, None]
    assert torch.allclose(st.smoothed(line, lam, 0.3), line)
    noise = torch.randn(61, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(st.smoothed(noise, lam, 0.3)[20:40].var()) == pytest.approx(0.1 / (2 * np.pi**0.5 * 0.3), rel=0.1)
    assert torch.equal(st.smoothed(noise, lam, 0.0), noise)
    assert torch.equal(st.smoothed(noise, lam, 1e-9), noise)


# -- options ----------------------------------------------------------------------------------------------------
def test_averages_pool_the_moments():
    """(C, H, W) data: one curve per value, per channel, or one; the pooled l is the mean of the l."""
    model = Gaussian(
        VP, torch.zeros(2, 3, 3, dtype=torch.float64), torch.linspace(0.2, 2, 18, dtype=torch.float64).reshape(2, 3, 3)
    )
    data = model.sample(64)
    each, channel, scalar = (
        model_statistics(model, data, knots=8, samples=32, average=a, smooth=0.0) for a in ("dimension", "channel", "scalar")
    )
    assert (each.shape, channel.shape, scalar.shape) == ((2, 3, 3), (2, 1, 1), ())
    assert torch.allclose(channel.l, each.l.mean((2, 3), keepdim=True))
    assert torch.allclose(scalar.l, each.l.mean((1, 2, 3)))
    assert scalar.note["average"] == "scalar"


def test_seeds_conditions_progress_and_mode():
    """Dropout is off while measuring; conditions reach the network; the same seed gives the same curves."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.layer, self.seen = nn.Dropout(0.5), nn.Linear(64, 64), []

        def forward(self, x: Tensor, t: Tensor, strength: float = 1.0) -> Tensor:
            self.seen.append(strength)
            return strength * self.layer(self.drop(x.flatten(1))).reshape(x.shape) + t.reshape(-1, 1, 1, 1) * x

    net, events = Net(), []
    model = Denoiser(net, VP, "noise")
    options = {"knots": 4, "samples": 12, "batch": 5, "strength": 2.0}
    one = model_statistics(model, load("digits"), progress=events.append, seed=3, **options)
    two, other = (model_statistics(model, load("digits"), seed=s, **options) for s in (3, 4))
    assert torch.equal(one.b, two.b)
    assert not torch.equal(one.l, other.l)
    assert model.training
    assert set(net.seen) == {2.0}
    assert [(e["step"], e["steps"]) for e in events] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert one.note["conditions"] == "strength"
    assert one.shape == (1, 8, 8)


# -- derivatives ------------------------------------------------------------------------------------------------
class Backward(torch.autograd.Function):
    """tanh with a backward that can be differentiated again, but no forward mode."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


def opaque(x: Tensor) -> Tensor:
    """tanh that no derivative passes through."""

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return torch.from_numpy(np.tanh(x.detach().numpy()))

    return Opaque.apply(x)


@pytest.mark.parametrize(
    ("tanh", "messages", "tolerance"),
    [
        (torch.tanh, [], 0.0),
        (Backward.apply, ["no forward mode derivative .* using double backward"], 1e-9),
        (opaque, ["no forward mode", "no double backward derivative .* using central differences"], 1e-4),
    ],
    ids=["forward", "double backward", "differences"],
)
def test_three_ways_to_differentiate(tanh, messages, tolerance):
    data = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"knots": 6, "samples": 32, "smooth": 0.0, "end": 0.05}

    def model(function) -> Denoiser:
        return Denoiser(lambda x, t: function(x * (1 + t[:, None])), VP, "noise")

    reference = model_statistics(model(torch.tanh), data, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model_statistics(model(tanh), data, **options)
    texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert len(texts) == len(messages)
    for text, message in zip(texts, messages, strict=True):
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(text)
    assert torch.allclose(found.l, reference.l, rtol=0, atol=tolerance)
    assert torch.allclose(found.b, reference.b, rtol=0, atol=100 * tolerance)


def test_an_error_of_the_network_is_its_own():
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("out of tea")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="out of tea"):
            model_statistics(Denoiser(broken, VP), torch.randn(8, 2), knots=4, samples=4)


# -- bad input --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples=1"),
        ({"knots": 2}, "knots=2"),
        ({"batch": 0}, "batch=0"),
        ({"average": "pixel"}, "average='pixel'"),
        ({"smooth": -1.0}, "smooth=-1"),
        ({"end": 0.0}, "λ must be finite"),
        ({"start": 0.2, "end": 0.5}, "λ must be finite and increase"),
        ({"data": torch.randn(1, 3)}, "at least 2 samples"),
        ({"data": torch.full((8, 3), torch.nan)}, "NaN"),
        ({"data": torch.ones(8, 3, dtype=torch.int64)}, "floating-point"),
        ({"model": lambda x, t: x}, "give process="),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input(change, message):
    arguments = {"model": Gaussian(VP, tensor(0.0, 0.0, 0.0), 1.0), "data": torch.randn(8, 3), "knots": 4, "samples": 4}
    arguments |= change
    with pytest.raises((ValueError, TypeError), match=message):
        model_statistics(arguments.pop("model"), arguments.pop("data"), **arguments)


def test_a_plain_function_needs_its_process(anchored):
    found = model_statistics(lambda x, t: 0.5 * x, torch.randn(8, 3), knots=4, samples=4, process=VP)
    assert found.process == VP
    with pytest.raises(TypeError, match="without an anchor"):
        model_statistics(lambda x, t: x, torch.randn(8, 3), process=anchored)
