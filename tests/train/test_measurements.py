"""Learning from measurements: the best signal network is where the loss is flat, no term sees what no φ sees, and the parts of
a visit are what they are said to be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unstir.denoiser import Denoiser, ForwardModelDenoiser
from unstir.process import EDM, VP, BrownianBridge, Flow, Process
from unstir.train import MeasurementLoss, Objective, Scenes, fit_measurements
from unstir.train.scenes import distinct

F64 = torch.float64
ROUTES = {"VP": VP(), "EDM": EDM(), "Flow": Flow()}
every_process = pytest.mark.parametrize("process", ROUTES.values(), ids=ROUTES)


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def project(signal: Tensor, phi: Tensor) -> Tensor:
    """A_φ S, for φ = A (B, m, n)."""
    return (phi @ signal[..., None])[..., 0]


class Linear(nn.Module):
    """Ŝ = W [O^c, x]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor, time: Tensor, context: Tensor, phi_context: Tensor | None = None) -> Tensor:
        return torch.cat([context.flatten(1), x], 1) @ self.weight.T


# -- the loss ---------------------------------------------------------------------------------------------------------
class Toy:
    """32 signals of 5 entries and their noises with exactly the moments of N(0, Σ) and N(0, I): means are expectations."""

    root, a_c, a_t, a_n = given(5, 5), given(2, 5, seed=1), given(3, 5, seed=2), given(3, 5, seed=3)

    def __init__(self, process: Process, t: float = 0.6) -> None:
        self.process, self.t = process, torch.full((32,), t, dtype=F64)
        white = 32**0.5 * torch.linalg.qr(given(32, 10, seed=4)).Q
        self.signal, r, self.noise = white[:, :5] @ self.root.T, white[:, 5:7], white[:, 7:]
        self.context = self.signal @ self.a_c.T + 0.1 * r
        cov, alpha, sigma = self.root @ self.root.T, process.alpha(t), process.sigma(t)
        seen = torch.cat([self.a_c, alpha * self.a_t])
        both = seen @ cov @ seen.T + torch.block_diag(0.01 * torch.eye(2, dtype=F64), sigma**2 * torch.eye(3, dtype=F64))
        self.best = torch.linalg.solve(both, seen @ cov).T  # of E[S | O^c, x_t]

    def slope(self, weight: Tensor, loss: MeasurementLoss) -> tuple[float, Tensor]:
        """The loss of Ŝ = W [O^c, x] and its gradient."""
        model = ForwardModelDenoiser(Linear(weight), project, self.process)
        cond = {"context": self.context, "phi": self.a_t.expand(32, 3, 5)}
        cond |= {"novel": (self.signal @ self.a_n.T)[:, None], "phi_novel": self.a_n.expand(32, 1, 3, 5)}
        value, details = loss.loss(model, self.signal @ self.a_t.T, self.noise, self.t, cond)
        assert float(details["loss"].mean()) == pytest.approx(float(value.detach()))
        return float(value.detach()), torch.autograd.grad(value, model.network.signal_net.weight)[0]  # type: ignore[union-attr]


@every_process
def test_the_loss_is_flat_at_the_best_signal_network_alone(process: Process) -> None:
    toy = Toy(process)
    for loss in (MeasurementLoss(), MeasurementLoss(weight="velocity", novel=0.5), MeasurementLoss(novel=0.0)):
        least, flat = toy.slope(toy.best, loss)
        assert float(flat.abs().max()) < 1e-12 * max(1.0, least)
        worse, steep = toy.slope(toy.best + 0.1 * given(5, 5, seed=6), loss)
        assert worse > least
        assert float(steep.abs().max()) > 1e-3 * least


def test_what_the_target_does_not_see_is_left_to_the_novel_term() -> None:
    """Moving Ŝ where A_t is blind changes nothing without novel observations, and costs with them."""
    toy = Toy(VP())
    blind = torch.linalg.svd(toy.a_t).Vh[3:].T @ given(2, 5, seed=6)
    for novel, costs in ((0.0, False), (1.0, True)):
        loss = MeasurementLoss(novel=novel)
        least, moved = toy.slope(toy.best, loss)[0], toy.slope(toy.best + blind, loss)[0]
        assert (moved > 1.1 * least) == costs
        assert costs or moved == pytest.approx(least, rel=1e-12)


@every_process
@pytest.mark.parametrize("weight", ["raw", "noise", "min-snr:5"])
def test_the_identity_without_novel_is_the_ordinary_objective(process: Process, weight: str) -> None:
    net = Linear(given(4, 8)).float()
    x0, z, c = (given(6, 4, seed=k).float() for k in (1, 2, 3))
    t = Objective(weight).times(Denoiser(net, process, "data"), torch.linspace(0.1, 0.9, 6, dtype=F64))
    plain, details = Objective(weight).loss(Denoiser(net, process, "data"), x0, z, t, {"context": c})
    model = ForwardModelDenoiser(net, lambda signal, phi: signal, process)
    ours, same = MeasurementLoss(weight=weight, novel=0.0).loss(model, x0, z, t, {"context": c, "phi": c})
    assert torch.equal(ours, plain)
    assert torch.equal(same["data_error"], details["data_error"])


# -- gradients --------------------------------------------------------------------------------------------------------
def mask(signal: Tensor, phi: Tensor) -> Tensor:
    return signal * phi


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(25, 16), nn.SiLU(), nn.Linear(16, 6))
        self.signal: Any = None

    def forward(self, x: Tensor, time: Tensor, phi: Tensor, context: Tensor, phi_context: Tensor) -> Tensor:
        told = [x, phi, context.flatten(1), phi_context.flatten(1), time[:, None]]
        self.signal = self.layers(torch.cat(told, 1))
        if self.signal.requires_grad:
            self.signal.retain_grad()
        return self.signal


SEEN = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])  # the windows φ of a scene


def scene(seed: int) -> list[tuple[Tensor, Tensor]]:
    signal = given(1, seed=seed).float().expand(6)  # every observation tells all of it
    return [(signal * phi, phi) for phi in SEEN]


@pytest.mark.parametrize("novel", [0.0, 1.0])
def test_gradients_reach_what_is_seen_and_nothing_else(novel: float) -> None:
    net = Small()
    model = ForwardModelDenoiser(net, mask, VP())
    x0, z = given(4, 6).float() * SEEN[1], given(4, 6, seed=1).float()
    cond = {"phi": SEEN[1:2].repeat(4, 1), "context": z[:, None], "phi_context": SEEN[:1].repeat(4, 1, 1)}
    cond |= {"novel": z[:, None] * SEEN[2], "phi_novel": SEEN[2:].repeat(4, 1, 1)}
    MeasurementLoss(novel=novel).loss(model, x0, z, torch.full((4,), 0.5), cond)[0].backward()
    reached = (net.signal.grad != 0).all(0)
    assert torch.equal(reached, (SEEN[1] + novel * SEEN[2]).bool())
    assert torch.equal(reached, (net.signal.grad != 0).any(0))
    weights = dict(net.named_parameters())
    last = weights.pop("layers.2.weight").grad, weights.pop("layers.2.bias").grad
    assert all(bool((w.grad != 0).any()) for w in weights.values())
    for grad in last:
        assert grad is not None
        assert torch.equal((grad.reshape(6, -1) != 0).any(1), reached)


# -- visits -----------------------------------------------------------------------------------------------------------
def test_a_visit_has_different_observations_of_one_scene() -> None:
    """Observation k of scene n is 10 n + k, and φ is −k; contexts are among the first two."""
    scenes = [[(torch.tensor([10.0 * n + k]), torch.tensor([-float(k)])) for k in range(5 + n)] for n in range(3)]
    rows, keys = [0, 1, 2] * 40, list(range(120))
    views = Scenes(scenes, context=1, novel=2, first=2).views(rows, keys)
    shapes = [tuple(v.shape) for v in views]
    assert shapes == [(120, 1), (120, 1), (120, 1, 1), (120, 1, 1), (120, 2, 1), (120, 2, 1)]
    place = torch.cat([views.context[:, :, 0], views.target, views.novel[:, :, 0]], 1)
    phi = torch.cat([views.phi_context[:, :, 0], views.phi, views.phi_novel[:, :, 0]], 1)
    number = place % 10
    assert torch.equal(number, -phi)
    assert torch.equal((place // 10).long(), torch.tensor(rows)[:, None].expand(-1, 4))
    assert all(len(set(row)) == 4 for row in number.tolist())
    assert set(number[:, 0].tolist()) == {0.0, 1.0}
    assert {k for row, n in zip(number.tolist(), rows, strict=True) if n == 2 for k in row[1:]} == {2.0, 3.0, 4.0, 5.0, 6.0}
    again = Scenes(scenes, context=1, novel=2, first=2).views(rows[::-1], keys[::-1])
    assert torch.equal(again.target.flip(0), views.target)


def test_every_choice_is_as_likely_as_any_other() -> None:
    """Of 3 out of 4 places in order there are 24, each drawn n/24 times up to 5 standard deviations."""
    n = 24_000
    picks = distinct(range(n), np.full(n, 4), 3)
    counts = np.unique(picks @ np.array([16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - n / 24).max() < 5 * (n / 24) ** 0.5


# -- training ---------------------------------------------------------------------------------------------------------
def learn(seed: int = 0, steps: int = 40, **more: Any) -> tuple[ForwardModelDenoiser, list[float]]:
    losses: list[float] = []
    found = fit_measurements(
        ForwardModelDenoiser(Small(), mask, VP()), Scenes(map(scene, range(8))), MeasurementLoss(cond_dropout=0.1),
        steps=steps, batch=16, lr=1e-2, seed=seed, progress=lambda event: losses.append(event["loss"]), **more,
    )  # fmt: skip
    return found, losses


def test_training_is_a_function_of_its_seed_and_explains_the_measurements() -> None:
    one, losses = learn()
    two, again = learn()
    assert losses == again != learn(seed=1)[1]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert not any(p.requires_grad for p in one.parameters())


# -- warnings and wrong input -----------------------------------------------------------------------------------------
def test_signals_that_are_not_determined_are_warned_of() -> None:
    model = ForwardModelDenoiser(Small(), mask, VP())
    whole = Scenes(map(scene, range(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_measurements(model, whole, steps=1, batch=4)
    with pytest.warns(UserWarning, match="67% of a signal's entries"):
        fit_measurements(model, whole, MeasurementLoss(novel=0.0), steps=1, batch=4)
    blind = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]])
    with pytest.warns(UserWarning, match="33% of the signal's entries are seen by none"):
        fit_measurements(model, Scenes([(s * p, p) for p in blind] for s in given(8, 6).float()), steps=1, batch=4)
    copies = Scenes([(s, torch.ones(6))] * 3 for s in given(8, 6).float())
    with pytest.warns(UserWarning, match="contains its target"):
        fit_measurements(model, copies, steps=1, batch=4)


def loss_of(model: Any, **more: Any) -> Any:
    x0 = torch.zeros(2, 6)
    return MeasurementLoss(**more).loss(model, x0, x0, torch.full((2,), 0.5), {})


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "too few": (ValueError, "scene 1 has 2 observations", lambda: Scenes([scene(0), scene(1)[:2]])),
    "too few after the first": (ValueError, "scene 0 has 3", lambda: Scenes([scene(0)], first=2)),
    "shapes": (ValueError, "scene 1: its observation", lambda: Scenes([scene(0), [(torch.zeros(5), SEEN[0])] * 3])),
    "φ of another shape": (ValueError, "scene 1: its φ", lambda: Scenes([scene(0), [(SEEN[0], SEEN)] * 3])),
    "no tensor": (TypeError, "scene 0: its φ is int", lambda: Scenes([[(SEEN[0], 3)] * 3])),  # type: ignore[list-item]
    "no scene": (ValueError, "scenes is empty", lambda: Scenes([])),
    "context": (ValueError, "context=0", lambda: Scenes([scene(0)], context=0)),
    "first": (ValueError, "first=1", lambda: Scenes([scene(0)], context=2, first=1)),
    "no target": (ValueError, "target=0", lambda: MeasurementLoss(target=0.0)),
    "a weight below 0": (ValueError, "novel=-1", lambda: MeasurementLoss(novel=-1.0)),
    "a name": (ValueError, "weight", lambda: MeasurementLoss(weight="none")),
    "another denoiser": (TypeError, "ForwardModelDenoiser", lambda: loss_of(Denoiser(Small(), VP(), "data"))),
    "no novel": (ValueError, "novel=1", lambda: loss_of(ForwardModelDenoiser(Small(), mask, VP()))),
    "no novel views": (
        ValueError,
        "loss.novel=1",
        lambda: fit_measurements(ForwardModelDenoiser(Small(), mask, VP()), Scenes([scene(0)], novel=0), steps=1),
    ),
    "no graph": (
        ValueError,
        "not differentiable",
        lambda: fit_measurements(ForwardModelDenoiser(Small(), lambda s, phi: (s * phi).detach(), VP()), Scenes([scene(0)])),
    ),
    "anchored": (
        ValueError,
        "anchor",
        lambda: fit_measurements(ForwardModelDenoiser(Small(), mask, BrownianBridge()), Scenes([scene(0)])),
    ),
    "steps": (ValueError, "steps=0", lambda: learn(steps=0)),
}


@pytest.mark.parametrize(("kind", "text", "act"), WRONG.values(), ids=range(len(WRONG)))
def test_wrong_input_is_named(kind: type[Exception], text: str, act: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=text):
        act()


def test_an_anchored_process_stirs_observations() -> None:
    process = BrownianBridge()

    def net(x: Tensor, time: Tensor, anchor: Tensor) -> Tensor:
        return 2 * x - anchor

    x0, z, y = (given(4, 3, seed=k) for k in range(3))
    t = torch.full((4,), 0.3, dtype=F64)
    model = ForwardModelDenoiser(net, mask, process, sees_anchor=True)
    phi = torch.ones(4, 3, dtype=F64)
    found, _ = MeasurementLoss(novel=0.0).loss(model, x0, z, t, {"phi": phi, "anchor": y})
    x = process.stir(x0, t, z, y)
    assert float(found) == pytest.approx(float((2 * x - y - x0).square().mean()))
