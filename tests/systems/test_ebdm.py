"""Exemplar-guided bridges: the sampler against its published form and exact laws, the triples, the claims (slow)."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unstir
from unstir.denoiser import Denoiser
from unstir.nets import ExemplarUNet
from unstir.plan import sample
from unstir.plan.frames import blind
from unstir.process import BrownianBridge
from unstir.systems import ebdm, reproduce
from unstir.train import Objective

F64 = torch.float64
torch.set_num_threads(1)


def given(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- the sampler ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("s", [0.25, 1.0])
def test_the_plan_is_the_published_step_and_begins_at_the_map(s: float) -> None:
    """x' = (1−m')D + m'y + √((δ'−s̃²)/δ)(x − (1−m)D − m y) + s̃ z,  s̃² = (δ − δ'(1−m)²/(1−m')²) δ'/δ."""
    run = ebdm.ebdm_plan(BrownianBridge(s), 10)
    assert len(run) == 10
    assert run.times == pytest.approx(torch.linspace(1, 0, 11).tolist(), abs=1e-6)
    assert blind(run)
    x, y, found = given(3)
    first = run[0]
    assert (first.t, first.b[0]) == (1.0, pytest.approx(1 - first.to))  # beside X_1 = x_1 − y = 0
    assert first.c == pytest.approx(math.sqrt(2 * s * first.to * (1 - first.to)))
    for row in run.rows[1:-1]:
        m, m2 = row.t, row.to
        delta, delta2 = 2 * s * (m - m * m), 2 * s * (m2 - m2 * m2)
        variance = (delta - delta2 * (1 - m) ** 2 / (1 - m2) ** 2) * delta2 / delta
        published = (1 - m2) * found + m2 * y + math.sqrt((delta2 - variance) / delta) * (x - (1 - m) * found - m * y)
        assert float(row.a * (x - m * y) + row.b[0] * found + m2 * y) == pytest.approx(float(published), abs=1e-12)
        assert float(m2 / m * x + (1 - m2 / m) * found) == pytest.approx(float(published), abs=1e-12)  # and y cancels
        assert row.c == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert (run[-1].a, dict(run[-1].b), run[-1].c) == (0, {0: 1}, 0)


def test_an_exact_prediction_ends_at_the_photograph() -> None:
    x0, y = given(2, 3, 4, 4), given(2, 3, 4, 4, seed=1)
    model = Denoiser(lambda x, t, exemplar: x - exemplar, ebdm.PROCESS, "shift")  # x_t − x0, the exemplar being x0
    torch.testing.assert_close(sample(model, ebdm.ebdm_plan(nfe=7), anchor=y, exemplar=x0, dtype=F64), x0)


def spread(times: list[float], s2: float) -> float:
    """Standard deviation around e of what bridge steps end at, for x0 | e ~ N(e, s2) and y ~ N(0, 1) not seen:

    v' = (r + (1 − r) g)² v + 2 m' (1 − r),  v_1 = 1,  g = (1 − m) s2/((1 − m)² s2 + m² + 2 m (1 − m)).
    """
    v = 1.0
    for m, m2 in pairwise(times):
        r, g = m2 / m, (1 - m) * s2 / ((1 - m) ** 2 * s2 + m**2 + 2 * m * (1 - m))
        v = (r + (1 - r) * g) ** 2 * v + 2 * m2 * (1 - r)
    return math.sqrt(v)


def test_a_network_that_sees_no_map_draws_the_right_law_of_photographs() -> None:
    """x0 | e ~ N(e, 0.3²), y ~ N(0, 1) independent of it: mean and spread that 40 steps draw, and their limit, whatever y."""
    e, y, s2 = 0.5 * given(8, 2500), given(8, 2500, seed=1), 0.09

    def shift(x: Tensor, t: Tensor, exemplar: Tensor) -> Tensor:
        t = t[:, None]
        a, rest = 1 - t, t**2 + 2 * t * (1 - t)  # variance of t y + σ z
        return x - (exemplar + a * s2 / (a**2 * s2 + rest) * (x - a * exemplar))

    process = BrownianBridge(1.0)
    model = Denoiser(shift, process, "shift")
    for grid in ("uniform", "logsnr"):
        run = ebdm.ebdm_plan(process, 40, grid)
        left = sample(model, run, anchor=y, exemplar=e, dtype=F64) - e
        assert float(left.mean()) == pytest.approx(0, abs=0.01)
        assert float(left.std()) == pytest.approx(spread(run.times, s2), rel=0.02)
    drawn = {(grid, n): spread(ebdm.ebdm_plan(process, n, grid).times, s2) for grid in ("uniform", "logsnr") for n in (20, 200)}
    assert [round(v, 2) for v in drawn.values()] == [0.19, 0.27, 0.25, 0.29]  # as `ebdm_plan` says
    assert spread(torch.linspace(1, 0, 20001, dtype=F64).tolist(), s2) == pytest.approx(0.3, rel=0.005)
    with pytest.raises(ValueError, match="does not see the anchor"):  # it would give other marginals
        sample(model, unstir.plan("ddim", process, nfe=5), anchor=y, exemplar=e)


def test_the_published_target_has_no_loss() -> None:
    """Objective "grad": m (y − x0) + √δ z is what "shift" asks for."""
    x0, y, z, t = given(4, 3), given(4, 3, seed=1), given(4, 3, seed=2), torch.tensor([0.1, 0.4, 0.7, 0.999], dtype=F64)
    m = t[:, None]
    goal = m * (y - x0) + (2 * (m - m * m)).sqrt() * z

    def loss(off: float) -> Tensor:
        return Objective().loss(Denoiser(lambda x, t: goal + off, BrownianBridge(1.0), "shift"), x0, z, t, {"anchor": y})[0]

    assert float(loss(0.0)) < 1e-12
    assert float(loss(0.5)) == pytest.approx(0.25, rel=1e-5)  # in units of x0: the weight is 1


# -- translate ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model() -> Denoiser:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = ExemplarUNet(3, (8, 8), patch=2, tokens=2, width=8, heads=2, encoder_width=16)
    return Denoiser(net, ebdm.PROCESS, "shift", time="thousand").eval().requires_grad_(False)


def test_the_exemplar_is_read_once_for_all_steps(model: Denoiser) -> None:
    y, e = given(3, 3, 8, 8, dtype=torch.float32), given(1, 3, 8, 8, seed=1, dtype=torch.float32)
    network: Any = model.network
    calls: list[str] = []
    handles = [
        getattr(network, name).conv_in.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in ("reader", "unet")
    ]
    x = ebdm.translate(model, y, e, nfe=6)
    for handle in handles:
        handle.remove()
    assert calls == ["reader", *["unet"] * 6]
    every = sample(model, ebdm.ebdm_plan(nfe=6), anchor=y, exemplar=e.expand(3, -1, -1, -1))  # read anew in every step
    torch.testing.assert_close(x, every, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ebdm.translate(model, y[1:], e, nfe=6, index=[1, 2]), x[1:], rtol=1e-4, atol=1e-4)
    assert float((ebdm.translate(model, y, -e, nfe=6) - x).abs().max()) > 1e-3


def test_without_an_exemplar_it_is_the_plain_bridge(model: Denoiser) -> None:
    y = given(2, 3, 8, 8, dtype=torch.float32)
    plain = Denoiser(lambda x, t: model.network(x, t), ebdm.PROCESS, "shift", time="thousand")
    torch.testing.assert_close(ebdm.translate(model, y, nfe=4), sample(plain, ebdm.ebdm_plan(nfe=4), anchor=y))


def test_wrong_input_is_named(model: Denoiser) -> None:
    y = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="exemplar is a batch of 3 for 2 controls"):
        ebdm.translate(model, y, torch.zeros(3, 3, 8, 8))
    with pytest.raises(ValueError, match="exemplar has shape"):
        ebdm.translate(model, y, torch.zeros(2, 1, 8, 8))
    with pytest.raises(TypeError, match="ExemplarUNet"):
        ebdm.translate(Denoiser(lambda x, t: x, ebdm.PROCESS, "shift"), y)
    with pytest.raises(ValueError, match="max_var"):
        BrownianBridge(0.0)


# -- data -----------------------------------------------------------------------------------------------------------
def test_edges_of_a_ramp() -> None:
    ramp = (0.1 * torch.arange(8.0)).expand(1, 3, 8, 8)
    for x in (ramp, ramp.mT):
        torch.testing.assert_close(ebdm.edges(x)[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 8 * 0.1 - 1))
    torch.testing.assert_close(ebdm.edges(torch.full((1, 3, 8, 8), 0.7)), -torch.ones(1, 3, 8, 8))
    assert float(ebdm.edges(10 * ramp).max()) == 1.0
    assert ebdm.structure(ramp.square(), ebdm.edges(ramp.square())) == pytest.approx(1.0, abs=1e-5)
    assert ebdm.colour_error(ramp, ramp + 0.2) == pytest.approx(0.2, abs=1e-6)


def test_triples_are_disjoint_crops_of_one_photograph_each_on_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """On pictures whose pixels say where they are: (photograph, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(160.0), indexing="ij")
    monkeypatch.setattr(ebdm, "photographs", lambda: [torch.stack([torch.full_like(rows, n), rows, columns]) for n in range(8)])
    for test in (False, True):
        x, y, e = ebdm.triples(40, test)
        assert torch.equal(x, ebdm.triples(40, test).x)
        assert x.shape == y.shape == e.shape == (40, 3, 32, 32)
        for crop in (x, e):
            assert crop[:, 0, 0, 0].tolist() == [n % 8 for n in range(40)]
            assert bool(((crop[:, 2] >= 112) == test).all())  # 0.7 · 160
        apart = (x[:, 1:, 0, 0] - e[:, 1:, 0, 0]).abs().amax(1)
        assert float(apart.min()) >= 32


def test_the_photographs() -> None:
    pytest.importorskip("skimage")
    found = ebdm.photographs()
    assert [tuple(p.shape) for p in found[:2]] == [(3, 256, 256), (3, 200, 300)]
    assert len(found) == 8
    assert all(-1 <= float(p.min()) < float(p.max()) <= 1 and p.shape[0] == 3 for p in found)
    assert all(int(0.3 * p.shape[2]) >= 2 * ebdm.SIDE or p.shape[1] >= 3 * ebdm.SIDE for p in found)  # room for two crops


def test_numbered_exemplars_are_their_pictures(model: Denoiser) -> None:
    pictures = given(5, 3, 8, 8, dtype=torch.float32)
    x, t, numbers = pictures[:2], torch.tensor([5.0, 500.0]), torch.tensor([4, 2])
    net: Any = model.network
    numbered = ebdm._Numbered(net, pictures)
    torch.testing.assert_close(numbered(x, t, numbers), net(x, t, pictures[[4, 2]]))
    torch.testing.assert_close(numbered(x, t), net(x, t))
    assert "pictures" not in numbered.state_dict()


@pytest.mark.slow
def test_training_is_kept_and_read_again(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    for guided in (True, False):
        first, again = (ebdm.network(tmp_path, 2, guided).state_dict() for _ in range(2))
        fresh = ebdm.untrained().state_dict()
        assert all(torch.equal(first[k], again[k]) for k in first)
        changed = {k.split(".")[1] for k in first if not torch.equal(first[k], fresh[k])}
        assert changed == ({"unet", "reader", "encoder", "project"} if guided else {"unet"})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_the_claims_hold(runs: Path) -> None:
    pytest.importorskip("skimage")
    result = reproduce("ebdm", runs)
    assert result.held, [f"{c.text}: {c.measured:.4g} {c.sense} {c.threshold:.4g}" for c in result.claims if not c.held]
