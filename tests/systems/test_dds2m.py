"""DDS2M: its rows against the published ones, its exact limits, `restore` on cubes of any size, the claims (slow)."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unstir
from unstir._random import draw
from unstir.denoiser import Denoiser, Gaussian
from unstir.nets import low_rank
from unstir.steer import SelfTrained, operators, posterior, replace
from unstir.systems import dds2m, reproduce

torch.set_num_threads(1)
F64 = torch.float64
QUICK: dict[str, Any] = {"rows": 30, "start": 10, "width": 4, "scales": 1, "rank": 2}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def smooth(high: int = 8, wide: int = 10, bands: int = 4) -> np.ndarray:
    """A cube of rank 1 in [0, 1], (H, W, S)."""
    y, x = np.mgrid[:high, :wide] / max(high, wide)
    return (0.5 + 0.4 * np.sin(4 * x) * np.cos(3 * y))[..., None] * np.linspace(0.5, 1, bands)


# -- the chain --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("task", "levels"), [("completion", 3000), ("denoise", 2000), ("sr2", 1000)])
def test_the_chain_has_the_published_noise_in_any_number_of_rows(task, levels) -> None:
    published = torch.linspace(1e-4, 5e-3, levels, dtype=F64)
    full = dds2m.chain(task, levels, levels // 2)
    bars = torch.cumprod(1 - published, 0)
    level = ((1 - bars) / bars).sqrt()
    torch.testing.assert_close(full.process.noise_ratio(torch.tensor(full.times[:-1])), level[: levels // 2].flip(0))
    assert full.times[-1] == 0
    assert len(full) == levels // 2
    short = dds2m.chain(task, 300, 150)
    assert len(short) == 150
    assert float(short.process.noise_ratio(short.start)) == pytest.approx(float(full.process.noise_ratio(full.start)), rel=0.05)
    assert len(dds2m.chain(task)) == 1000


@pytest.mark.parametrize("task", ["completion", "sr2"])
def test_every_row_is_the_published_one(task) -> None:
    """All rows of a chain from a given state, with the hook's own noise, in the singular basis, coordinate by coordinate."""
    plan, noise, eta = dds2m.chain(task, 40, 20), 0.2, 0.95
    process, shape = plan.process, (2, 8, 6)
    operator = operators.mask((randn(*shape, seed=4) > 0).double()) if task == "completion" else dds2m.halve(8, 6)
    y = operator.A(0.5 * randn(1, *shape)) + noise * operator.A(randn(1, *shape, seed=1))
    model = Denoiser(lambda x, t: 0.3 * x.tanh(), process, "data", shape=shape)
    x = float(process.noise_ratio(plan.start)) * randn(1, *shape, seed=2)
    s = operator.s.expand(operator.V_adjoint(x)[0].shape)
    kinds = set()
    for step in unstir.steps(posterior(model, operator, y, "ddrm", noise, eta=eta), plan, x):
        level, to = (float(process.noise_ratio(t)) for t in (step.t, step.to))
        hat, d = x / process.alpha(step.t), model(x, step.t)
        z = draw(step.state.keys, shape, (1 << 33) + step.index, F64)
        free = d + math.sqrt(1 - eta**2) * to * (hat - d) / level + eta * to * z
        bars, d_bar, z_bar = (operator.V_adjoint(v) for v in (free, d, z))
        y_bar = operator.U_adjoint(y) / s.clamp_min(1e-9)
        for place in (s > 0).nonzero().tolist():
            i, si = (0, *place), float(s[tuple(place)])
            late = to < noise / si
            kinds.add(late)
            if late:
                bars[i] = d_bar[i] + math.sqrt(1 - eta**2) * to * (y_bar[i] - d_bar[i]) / (noise / si) + eta * to * z_bar[i]
            else:
                bars[i] = y_bar[i] + math.sqrt(to**2 - (noise / si) ** 2) * z_bar[i]
        null = free - operator.V(operator.V_adjoint(free) * (s > 0))
        wanted = process.alpha(step.to) * (null + operator.V(bars * (s > 0)))
        torch.testing.assert_close(step.x, wanted)
        x = step.x
    assert kinds == {True, False}


@pytest.mark.parametrize("eta", [0.95, 0.0])
def test_what_is_not_seen_has_the_spread_that_the_rows_give_a_gaussian(eta) -> None:
    """With the exact D of N(0, σ_d²): v' = (g + k (1 − g))² v + (η σ̂')², g = σ_d²/(σ_d² + σ̂²), k = √(1 − η²) σ̂'/σ̂.

    A fixed share of noise in every row narrows what is not seen. η = 0 and rule "ancestral" keep its spread, 0.5 (within
    3 %, the discretisation): there a factor √2 in the noise, known from another library, would be seen.
    """
    plan, size, std = dds2m.chain("completion", 150, 50), 6000, 0.5
    keep = torch.zeros(size)
    keep[:100] = 1
    model, y = Gaussian(plan.process, torch.zeros(size), std**2), torch.full((1, size), 0.2, dtype=F64) * keep
    x = (
        float(plan.process.alpha(plan.start))
        * torch.hypot(torch.tensor(std), plan.process.noise_ratio(plan.start))
        * randn(1, size)
    )
    v = float(std**2 + plan.process.noise_ratio(plan.start) ** 2)
    for row in plan.rows:
        level, to = (float(plan.process.noise_ratio(t)) for t in (row.t, row.to))
        g, k = std**2 / (std**2 + level**2), math.sqrt(1 - eta**2) * to / level
        v = (g + k * (1 - g)) ** 2 * v + (eta * to) ** 2
    end = unstir.sample(posterior(model, operators.mask(keep), y, "ddrm", 0.2, eta=eta), plan, x=x)[0, 100:]
    assert float(end.std()) == pytest.approx(math.sqrt(v), rel=0.025)
    kept = unstir.sample(posterior(model, operators.mask(keep), y, "ddrm", 0.2, eta=eta, rule="ancestral"), plan, x=x)[0, 100:]
    assert float(kept.std()) == pytest.approx(std, rel=0.03)


def test_bands_in_another_order_are_restored_in_that_order(monkeypatch) -> None:
    """The observation part knows no order of bands: one row of permuted data and noise is the permuted row."""
    shape, order = (4, 5, 6), torch.tensor([2, 0, 3, 1])
    plan, keep, x, y = (
        dds2m.chain("completion", 40, 20),
        (randn(*shape) > 0).double(),
        randn(1, *shape),
        randn(1, *shape, seed=1),
    )
    model = Denoiser(lambda x, t: 0.3 * x.tanh(), plan.process, "data", shape=shape)
    ends = []
    for index in (torch.arange(4), order):
        monkeypatch.setattr(replace, "_noise", lambda ctx, like, i=index: randn(1, *shape, seed=ctx.index)[:, i])
        post = posterior(model, operators.mask(keep[index]), (keep * y)[:, index], "ddrm", 0.2, eta=0.95)
        ends.append(unstir.sample(post, plan, x=x[:, index]))
    torch.testing.assert_close(ends[0][:, order], ends[1])


def test_the_generator_is_trained_once_a_row() -> None:
    net, plan = low_rank((4, 8, 8), 2, width=4, scales=1), dds2m.chain("completion", 30, 12)
    seen: list[int] = []
    y, first = torch.zeros(1, 4, 8, 8), net().detach()
    end = dds2m.descend(net, operators.mask(torch.ones(4, 8, 8)), y, 0.2, plan, 0.95, on_step=lambda i, d: seen.append(i))
    assert seen == list(range(1, 19))
    assert not torch.allclose(net().detach(), first)
    assert end.shape == (1, 4, 8, 8)
    assert float(end.abs().max()) <= 1


# -- restore ----------------------------------------------------------------------------------------------------------
def test_without_noise_what_was_measured_is_kept_exactly() -> None:
    cube = smooth().astype(np.float32)
    seen = np.random.default_rng(0).random(cube.shape) < 0.5
    out = dds2m.restore(np.where(seen, cube, np.nan), mask=seen, noise=0.0, **QUICK)
    assert out.shape == cube.shape
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[seen], cube[seen], atol=2e-7)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("shape", "task"), [((9, 5, 3), "completion"), ((6, 11, 1), "denoise"), ((4, 7, 5), "sr2")], ids=str)
def test_any_size_and_every_task(shape, task) -> None:
    cube = smooth(*shape) + 0.05 * np.random.default_rng(0).standard_normal(shape)
    mask = np.random.default_rng(1).random(shape[:2]) < 0.6 if task == "completion" else None
    settings = {**QUICK, "rank": 1}
    out = dds2m.restore(cube, mask=mask, noise=0.05, task=task if task == "sr2" else None, **settings)
    assert out.shape == ((8, 14, 5) if task == "sr2" else shape)
    assert np.isfinite(out).all()
    again = dds2m.restore(torch.as_tensor(cube), mask=mask, noise=0.05, task=task, **settings)
    assert np.array_equal(out, again)  # tensors too; and a run repeats
    assert not np.array_equal(out, dds2m.restore(cube, mask=mask, noise=0.05, task=task, seed=1, **settings))


def test_halving_is_bicubic_interpolation_and_its_parts_fit() -> None:
    x = randn(1, 3, 8, 12)
    half = torch.nn.functional.interpolate(x, (4, 6), mode="bicubic", antialias=True)
    operator = dds2m.halve(8, 12)
    torch.testing.assert_close(operator.A(x), half)
    assert unstir.steer.check_operator(operator, x)["norm"] == pytest.approx(float(operator.s.max()), rel=1e-3)
    low = dds2m.restore(smooth(8, 12), noise=0.0, task="sr2", **QUICK)
    seen = dds2m.halve(16, 24).A(torch.as_tensor(low, dtype=F64).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(seen.numpy(), smooth(8, 12), atol=1e-5)  # σ_y = 0: the result has the measured half


def test_the_example_of_the_docstring_runs(tmp_path: Path, monkeypatch) -> None:
    raw = 1000 + 3000 * smooth()
    raw[np.random.default_rng(0).random(raw.shape) < 0.4] = np.nan
    raw[0, 0, :] = 60000.0
    np.save(tmp_path / "scene.npy", raw)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(dds2m.restore.__kwdefaults__, "rows", 30)
    monkeypatch.setitem(dds2m.restore.__kwdefaults__, "start", 10)
    text = inspect.getdoc(dds2m.restore) or ""
    code = "\n".join(
        line.strip() for line in text.splitlines() if line.startswith("    ") and ("= " in line or "np.save" in line)
    )
    code = "\n".join(line for line in code.splitlines() if line.startswith(("raw", "seen", "scaling", "clean", "np.save")))
    raw[0, 0, :] = np.nan  # the outlier, masked as the error message asks
    np.save("scene.npy", raw)
    exec(code, {"np": np, "dds2m": dds2m})
    clean = np.load("clean.npy")
    assert clean.shape == raw.shape
    assert np.nanmin(raw) - 1e-2 <= clean.min() <= clean.max() <= np.nanmax(raw) + 1e-2


def test_quantile_scaling() -> None:
    cube = 5 + np.random.default_rng(0).random((40, 40, 3)) * (1, 10, 100)
    scaling = dds2m.quantile_scaling(cube)
    np.testing.assert_allclose(scaling.back(scaling.unit(cube)), cube)
    np.testing.assert_allclose(scaling.low, np.quantile(cube, 0.001, (0, 1)))
    seen = np.ones(cube.shape, dtype=bool)
    cube[3, 4] = np.nan
    cube[5, 6] = -9999
    seen[3, 4] = seen[5, 6] = False
    assert scaling.unit(cube)[seen].min() == pytest.approx(0, abs=0.01)
    assert np.isfinite(dds2m.quantile_scaling(cube, seen).low).all()
    with pytest.raises(ValueError, match="everywhere in band 1"):
        dds2m.quantile_scaling(np.stack([cube[..., 0], np.ones((40, 40))], -1), seen[..., :2])
    with pytest.raises(ValueError, match=r"low=0\.9 and high=0\.1"):
        dds2m.quantile_scaling(cube, seen, 0.9, 0.1)


def given(**changes: Any) -> dict[str, Any]:
    return {"cube": smooth(), "noise": 0.1, **QUICK, **changes}


HOLE, DEAD, FAR = smooth(), np.ones((8, 10, 4)), smooth()
HOLE[0, 0, 0] = np.nan
DEAD[..., (1, 3)] = 0
FAR[2, 2] = -9999.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (given(mask=DEAD), "no measured entry in band 1, 3"),
        (given(cube=HOLE), r"cube has 1 NaN .* mask=np\.isfinite"),
        (given(cube=FAR), "values from -9999 .* quantile_scaling"),
        (given(cube=3000 * smooth()), "quantile_scaling"),
        (given(rank=5), "rank=5 must be an integer from 1 to 4"),
        (given(start=30), r"start=30 must lie in \[0, rows=30\)"),
        (given(rows=10, start=0), "rows=10 must be at least 13"),
        (given(rows=0), "rows=0"),
        (given(task="blur"), "task='blur' is unknown; one of completion, denoise, sr2"),
        (given(task="sr2", mask=DEAD > 2), "takes no mask"),
        (given(noise=-1.0), r"noise=-1\.0"),
        (given(noise=math.nan), "noise=nan"),
        (given(noise=0.0), "nothing to do"),
        (given(cube=np.zeros((8, 10))), r"cube has shape \(8, 10\); it must be \(H, W, S\)"),
        (given(mask=np.ones((10, 8))), r"mask has shape \(10, 8\)"),
        (given(mask=0.5 * np.ones((8, 10))), "values other than 0 and 1"),
        (given(cube=smooth(3, 3)), "at least 4 × 4"),
        (given(eta=1.5), r"eta=1\.5"),
        (given(rate=0.0), r"rate=0\.0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        dds2m.restore(**settings)


def test_an_operator_without_its_decomposition_is_refused_with_what_works() -> None:
    model = SelfTrained(low_rank((2, 4, 4), 1, width=4), dds2m.chain("denoise", 30, 10).process)
    with pytest.raises(ValueError, match=r"singular value decomposition .* 'diffpir'"):
        posterior(model, operators.Linear(lambda x: x, (2, 4, 4)), torch.zeros(1, 2, 4, 4), "ddrm", 0.1)


# -- the baseline and the scene -----------------------------------------------------------------------------------------
def test_the_deep_image_prior_fits_what_was_measured() -> None:
    keep, values = (randn(4, 8, 8) > 0).float(), []
    y = keep * torch.as_tensor(smooth(8, 8)).float().permute(2, 0, 1)[None]
    operator, net = operators.mask(keep), low_rank((4, 8, 8), 2, width=4, scales=1)
    start = float((operator.A(net().detach()) - y).square().mean())
    end = dds2m.deep_image_prior(
        net, operator, y, 60, 5e-3, lambda i, made: values.append(float((operator.A(made) - y).square().mean()))
    )
    assert len(values) == 60
    assert values[0] == pytest.approx(start)
    assert float((operator.A(end) - y).square().mean()) < 0.3 * start


@pytest.mark.slow
def test_a_cube_of_rank_one_is_recovered() -> None:
    """Half of the entries, without noise: more than 40 dB where nothing was measured."""
    cube = smooth(16, 16, 6)
    seen = np.random.default_rng(0).random(cube.shape) < 0.5
    out = dds2m.restore(cube, mask=seen, noise=0.0, rank=1, rows=3000, start=1000, ema=0.95)
    assert 10 * math.log10(1 / np.square(out - cube)[~seen].mean()) > 40


def test_the_scene_is_real_and_of_low_rank() -> None:
    pytest.importorskip("tensorly")
    cube = dds2m.scene()
    assert cube.shape == (48, 48, 16)
    assert (cube.min(), cube.max()) == (0, 1)
    s = np.linalg.svd(cube.reshape(-1, 16), compute_uv=False)
    assert (s[:5] ** 2).sum() / (s**2).sum() > 0.995


def test_both_methods_start_alike_and_the_claims_are_their_differences(tmp_path: Path, monkeypatch) -> None:
    """`compare` with 18 updates of a small cube; `reproduce` with scores that are known."""
    x, seen = torch.as_tensor(2 * smooth(12, 12, 6) - 1).float().permute(2, 0, 1)[None], torch.ones(6, 12, 12)
    found = dds2m.compare(x, "denoise", seen, 2, dds2m.chain("denoise", 30, 12), (5, 18))
    (i, ours), (_, theirs) = (found.curves[name][-1] for name in (dds2m.OURS, dds2m.THEIRS))
    assert i == 18
    assert -20 * math.log10(ours) == pytest.approx(found.scores["DDS2M"], abs=1e-4)
    assert -20 * math.log10(theirs) == pytest.approx(found.scores["deep image prior, 18 updates"], abs=1e-4)
    assert found.scores["measured, gaps at the mean of the band"] == pytest.approx(20, abs=1)
    assert found.scores["singular value decomposition"] > 22
    for cube in found.cubes.values():
        assert cube.shape == x.shape

    def known(x: Tensor, task: str, keep: Tensor, rank: int, plan: Any, updates: Any) -> dds2m.Compared:
        assert (len(plan), rank, updates) == (1000, 5, (1000, 3000))
        assert float(keep.mean()) == pytest.approx(0.3 if task == "completion" else 1, abs=0.01)
        scores = {"1000 updates": 20.0, "3000 updates": 19.0, "at its best": 21.0}
        scores = {f"deep image prior, {name}": value for name, value in scores.items()} | {"DDS2M": 20.9}
        return dds2m.Compared(scores, found.curves, {"measured": x, "DDS2M": x})

    monkeypatch.setattr(dds2m, "compare", known)
    monkeypatch.setattr(dds2m, "scene", lambda *_: smooth(48, 48, 16))
    result = dds2m.reproduce(tmp_path)
    assert [claim.measured for claim in result.claims] == pytest.approx([0.9, 1.9, -0.1])
    assert result.held
    assert {file.name for file in tmp_path.iterdir()} == {
        "completion.png", "denoise.png", "psnr-completion.svg", "psnr-denoise.svg", "report.html"
    }  # fmt: skip


@pytest.mark.slow
def test_claims(runs: Path) -> None:
    pytest.importorskip("tensorly")
    result = reproduce("dds2m", runs)
    assert result.held, [claim for claim in result.claims if not claim.held]
