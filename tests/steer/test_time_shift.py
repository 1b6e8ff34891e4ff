"""The time shift: no window is no change, levels are recovered, samples do not see each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unstir.denoiser import Gaussian
from unstir.plan import sample
from unstir.process import EDM, VP, from_betas
from unstir.solvers import plan
from unstir.steer import matched_time, time_shift

LINEAR = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
V0 = 0.5


def model(size: int = 256) -> Gaussian:
    return Gaussian(LINEAR, torch.zeros(size), std=V0**0.5)


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 200, "cutoff": 999}])
def test_no_window_or_no_active_level_is_the_base_sampler_bit_for_bit(options: dict[str, int]) -> None:
    base, table = model(), plan("ddim", LINEAR, 10)
    x = LINEAR.prior((4, 256), seed=1)
    assert torch.equal(sample(time_shift(base, x0_var=V0, **options), table, x=x), sample(base, table, x=x))


@pytest.mark.parametrize("level", [300, 500, 800])
def test_the_level_is_recovered_within_the_uncertainty_of_a_variance(level: int) -> None:
    d, t = 4096, (level + 1) / 1000
    g = torch.Generator().manual_seed(level)
    x0 = V0**0.5 * torch.randn(200, d, generator=g, dtype=torch.float64)
    x = LINEAR.stir(x0, t, torch.randn(200, d, generator=g, dtype=torch.float64))
    tau = matched_time(x, t, LINEAR, 2000, V0)
    expected = float(LINEAR.alpha(t)) ** 2 * V0 + float(LINEAR.sigma(t)) ** 2
    found = LINEAR.alpha(tau) ** 2 * V0 + LINEAR.sigma(tau) ** 2
    inside = ((found / expected - 1).abs() <= 1.96 * (2 / d) ** 0.5 + 2e-3).double().mean()
    assert float(inside) > 0.9


def test_the_window_and_the_ends_of_the_table_limit_the_match() -> None:
    x = torch.cat([torch.zeros(1, 256), 10 * torch.randn(1, 256, generator=torch.Generator().manual_seed(0))])
    tau = matched_time(x, 0.5, LINEAR, 100, V0)
    assert (1000 * tau - 1).round().tolist() == [449, 549]
    assert (1000 * matched_time(x, 0.5, LINEAR, 4000, V0) - 1).round().tolist() == [0, 999]


def test_a_perfect_model_in_many_dimensions_is_hardly_shifted() -> None:
    base, table = model(4096), plan("ddim", LINEAR, 100, "uniform")
    told: list[Tensor] = []

    class Watched(torch.nn.Module):
        process = LINEAR

        def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
            if isinstance(t, Tensor) and t.ndim:
                told.append(t)
            return base(x, t)

    sample(time_shift(Watched(), 200, 300, x0_var=V0), table, x=LINEAR.prior((8, 4096), seed=2))
    nominal = [row.t for row in table.rows if row.t * 1000 - 1 > 300][1:]
    assert len(told) == len(nominal)
    # Near t = 1 the variance hardly depends on t; below, its uncertainty of 2 % is less than 0.03 in time.
    off = [float((tau - t).mean()) for tau, t in zip(told, nominal, strict=True) if t < 0.7]
    assert max(abs(d) for d in off) < 0.03


def test_a_sample_does_not_depend_on_the_others() -> None:
    shifted, table = time_shift(model(), 200, x0_var=V0), plan("ddim", LINEAR, 5)
    x = LINEAR.prior((4, 256), seed=3)
    torch.testing.assert_close(sample(shifted, table, x=x)[1:2], sample(shifted, table, x=x[1:2]))


def test_noise_read_at_the_nominal_time() -> None:
    """read="noise" keeps ε̂: (x − α_t D')/σ_t is the network's noise at τ."""
    base, x = model(), LINEAR.prior((2, 256), seed=4) * 0.8
    t = 0.7
    tau = matched_time(x, t, LINEAR, 200, V0)
    data = time_shift(base, 200, x0_var=V0)(x, t)
    raw = base(x, tau)
    noise = (x - LINEAR.alpha(tau).float()[:, None] * raw) / LINEAR.sigma(tau).float()[:, None]
    torch.testing.assert_close((x - float(LINEAR.alpha(t)) * data) / float(LINEAR.sigma(t)), noise)
    torch.testing.assert_close(time_shift(base, 200, x0_var=V0, read="data")(x, t), raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3}, "window"),
        ({"window": -2}, "window"),
        ({"window": 20, "cutoff": 1000}, "cutoff"),
        ({"window": 20, "x0_var": None}, "estimate it"),
        ({"window": 20, "x0_var": 1.0}, "rescale"),
        ({"window": 20, "variance": "half"}, "variance"),
        ({"window": 20, "read": "score"}, "read"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_shift(model(), **{"x0_var": V0, **options})  # type: ignore[arg-type]


def test_few_values_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="16 values"):
        time_shift(model(16), 200, x0_var=V0)(torch.randn(2, 16), 0.7)


@pytest.mark.parametrize("process", [VP(), EDM()])
def test_continuous_processes_have_a_thousand_levels(process: VP | EDM) -> None:
    base = Gaussian(process, torch.zeros(64), std=V0**0.5)
    shifted = time_shift(base, 100, x0_var=V0)
    out = sample(shifted, plan("ddim", process, 5), shape=(2, 64))
    assert bool(torch.isfinite(out).all())
