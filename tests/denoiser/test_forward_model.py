"""Denoisers through a forward model: the identity is an ordinary denoiser, a Gaussian signal has the exact law, and the signal
of a run comes out of it whatever is wrapped around the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unstir import solvers, steer
from unstir.denoiser import Denoiser, ForwardModelDenoiser, chunked
from unstir.plan import sample, steps
from unstir.process import EDM, VP, BrownianBridge, Flow, Process

F64 = torch.float64
ROUTES = {"VP": VP(), "EDM": EDM(), "Flow": Flow()}
every_process = pytest.mark.parametrize("process", ROUTES.values(), ids=ROUTES)


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def project(signal: Tensor, phi: Tensor) -> Tensor:
    """A_φ S, for φ = A (B, m, n)."""
    return (phi @ signal[..., None])[..., 0]


# -- a Gaussian signal of which everything is known -------------------------------------------------------------------
class Gauss:
    """S ~ N(0, Σ) in 5 dimensions, context O^c = A_c S + 0.1 r in 2, target O = A_t S in 3."""

    root, a_c, a_t = given(5, 5), given(2, 5, seed=1), given(3, 5, seed=2)
    cov, noise = root @ root.T, 0.01 * torch.eye(2, dtype=F64)

    def gain(self, a: Tensor, r: Tensor) -> Tensor:
        """K of E[S | y] = K y for y = a S + N(0, r)."""
        return torch.linalg.solve(a @ self.cov @ a.T + r, a @ self.cov).T

    def network(self, process: Process) -> Callable[..., Tensor]:
        """E[S | O^c, x_t], the best signal network."""

        def net(x: Tensor, time: Tensor, phi: Tensor, context: Tensor) -> Tensor:
            alpha, sigma = process.alpha(time[0]), process.sigma(time[0])
            r = torch.block_diag(self.noise, sigma**2 * torch.eye(3, dtype=F64))
            return torch.cat([context, x], 1) @ self.gain(torch.cat([self.a_c, alpha * phi[0]]), r).T

        return net

    def given_context(self) -> tuple[Tensor, Tensor, Tensor]:
        """(c, E[S | c], Cov[S | c])."""
        c, k = given(1, 2, seed=3), self.gain(self.a_c, self.noise)
        return c, c @ k.T, self.cov - k @ self.a_c @ self.cov


def law_errors(process: Process, solver: str, nfe: int) -> tuple[float, float]:
    """Largest relative errors of means and of covariances of what a run draws, observation and signal.

    A run is affine in its start and its noises, so both are known without sampling. The exact laws: O ~ p(A_t S | c), and
    of the last Ŝ = E[S | c, O], E Ŝ = E[S | c] and Cov Ŝ = Cov[S | c] − Cov[S | c, O].
    """
    g, m = Gauss(), 3
    c, mean, cov = g.given_context()
    model = ForwardModelDenoiser(g.network(process), project, process).bind(context=c, phi=g.a_t[None])
    run = solvers.plan(solver, process, nfe, grid="logsnr", start=0.98)
    noisy = [n for n, row in enumerate(run.rows) if row.noisy]
    batch = 1 + m * (1 + len(noisy))  # zeros, then the unit vectors of the start, then of every noise
    start = torch.zeros(batch, m, dtype=F64)
    start[1 : 1 + m] = torch.eye(m)
    noise = {n: torch.zeros(batch, m, dtype=F64) for n in noisy}
    for place, z in enumerate(noise.values(), 1):
        z[1 + m * place : 1 + m * (place + 1)] = torch.eye(m)
    state = sample(model, run, x=start, noise=noise or None, full=True)

    alpha, sigma = process.alpha(run.start), process.sigma(run.start)
    seen = g.a_t @ cov @ g.a_t.T
    at_start = torch.linalg.cholesky(alpha**2 * seen + sigma**2 * torch.eye(m, dtype=F64))
    k = torch.linalg.solve(seen, g.a_t @ cov).T  # E[S | c, O] is E[S | c] + k (O − A_t E[S | c])
    means, covs = [], []
    for out, a, right in ((state.x, g.a_t, seen), (state.aux["signal"], torch.eye(5, dtype=F64), k @ g.a_t @ cov)):
        columns = (out[1:] - out[0]).reshape(-1, m, out.shape[1]).mT
        middle = out[0] + columns[0] @ (alpha * g.a_t @ mean[0])
        columns[0] = columns[0] @ at_start
        means.append(float((middle - a @ mean[0]).norm() / mean.norm()))
        covs.append(float(((columns @ columns.mT).sum(0) - right).norm() / right.norm()))
    return max(means), max(covs)


@every_process
def test_the_best_signal_network_draws_the_exact_law(process: Process) -> None:
    mean, cov = law_errors(process, "dpmpp-3m", 60)
    assert mean < 1e-12
    assert cov < 1e-3
    means, covs = zip(*(law_errors(process, "ddpm", nfe) for nfe in (50, 100, 200)), strict=True)
    assert max(means) < 1e-12
    assert covs[-1] < 0.06
    assert all(1.7 < coarse / fine < 2.4 for coarse, fine in pairwise(covs))  # of first order


# -- an ordinary denoiser, if nothing is lost -------------------------------------------------------------------------
class Net(nn.Module):
    """A signal (B, out) of everything that is told."""

    def __init__(self, size: int = 4, out: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2 * size + 1, 16), nn.SiLU(), nn.Linear(16, out)).double()

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.layers(torch.cat([x, context, time[:, None]], 1))


def identity(signal: Tensor, phi: Tensor) -> Tensor:
    return signal


def half(signal: Tensor, phi: Tensor) -> Tensor:
    """Two of four entries of the signal, from place φ (B, 1) on, around the corner."""
    return signal.gather(1, (phi.long() + torch.arange(2)) % 4)


@every_process
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
def test_the_identity_is_the_ordinary_conditional_denoiser(process: Process, solver: str) -> None:
    net, c, x = Net(), given(3, 4), process.prior((3, 4), dtype=F64)
    run = solvers.plan(solver, process, 6)
    plain = sample(Denoiser(net, process, "data"), run, x=x, context=c)
    state = sample(ForwardModelDenoiser(net, identity, process), run, x=x, context=c, phi=c, full=True)
    assert torch.equal(state.x, plain)
    assert torch.equal(state.aux["signal"], plain)


def made(process: Process | None = None, **more: Any) -> ForwardModelDenoiser:
    return ForwardModelDenoiser(Net(2), half, process or VP(), shape=(2,), **more)


SHOWN: dict[str, Any] = {"context": given(3, 2, seed=4), "phi": torch.tensor([[0.0], [1.0], [3.0]], dtype=F64)}


@every_process
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ancestral"])
def test_the_signal_of_the_last_row_explains_the_observation(process: Process, solver: str) -> None:
    model = made(process, sigma_data=1.0).bind(**SHOWN)
    state = sample(model, solvers.plan(solver, process, 5), shape=3, dtype=F64, full=True)
    assert state.aux["signal"].shape == (3, 4)
    assert torch.equal(half(state.aux["signal"], SHOWN["phi"]), state.x)


def test_every_step_has_its_own_signal_and_runs_do_not_mix() -> None:
    """Two runs of one model, row by row in turn."""
    model, run = made(), solvers.plan("ddim", VP(), 4)
    shown = [SHOWN, {**SHOWN, "context": -SHOWN["context"]}]
    turns = zip(*(steps(model, run, shape=3, dtype=F64, **one) for one in shown), strict=True)
    mixed = [list(pair) for pair in turns]
    for place, one in enumerate(shown):
        for pair, alone in zip(mixed, list(steps(model, run, shape=3, dtype=F64, **one)), strict=True):
            step = pair[place]
            assert torch.equal(step.aux["signal"], alone.aux["signal"])
            assert torch.equal(half(step.aux["signal"], SHOWN["phi"]), step.data)
    assert not torch.equal(mixed[-1][0].aux["signal"], mixed[-1][1].aux["signal"])


def test_the_input_has_unit_variance_on_every_process() -> None:
    """With sigma_data the network sees the same of a state and its twin on another process: `on` changes nothing."""
    net = Net(2)
    models = [ForwardModelDenoiser(net, half, p, time="logsnr", sigma_data=0.7).bind(**SHOWN) for p in (VP(), EDM())]
    x = given(3, 2, seed=5)
    torch.testing.assert_close(models[0].on(EDM())(x, 0.4), models[1](x, 0.4))
    seen: list[Tensor] = []

    def spy(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x)
        return x

    process = Flow()
    noisy = process.stir(0.5 * given(4000, 2), 0.6, given(4000, 2, seed=1))
    ForwardModelDenoiser(spy, identity, process, sigma_data=0.5)(noisy, 0.6, phi=noisy)
    assert float(seen[0].var()) == pytest.approx(1.0, abs=0.05)


# -- what is around the model -----------------------------------------------------------------------------------------
GUIDES: dict[str, Callable[[Any], Any]] = {"cfg": lambda m: steer.cfg(m, 2.0), "apg": lambda m: steer.apg(m, 2.0)}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_a_guided_run_hands_out_the_conditional_signal(guide: Callable[[Any], Any]) -> None:
    """And D' = D_u + w (D_c − D_u) with the null context of zeros."""
    model, run = made().bind(**SHOWN), solvers.plan("ddim", VP(), 1)
    x = given(3, 2)
    state = sample(guide(model), run, x=x, full=True)
    sharp, blunt = model(x, 1.0), model(x, 1.0, context=torch.zeros(3, 2, dtype=F64))
    assert torch.equal(half(state.aux["signal"], SHOWN["phi"]), sharp)
    if guide is GUIDES["cfg"]:
        torch.testing.assert_close(state.x, blunt + 2 * (sharp - blunt))


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_the_dynamic_threshold_bounds_the_observation(limit: float) -> None:
    """|D| ≤ limit after it, and the identity where |D| was already."""
    model = ForwardModelDenoiser(lambda x, time: 3 * x, identity, VP()).bind(phi=given(1, 1))
    x = given(3, 40)
    kept, plain = steer.threshold(model, 0.95, limit)(x, 0.5), model(x, 0.5)
    assert bool((plain.abs() > 1).any())
    assert float(kept.abs().max()) <= limit + 1e-12
    assert torch.equal(kept, plain) == (limit == 100.0)


def test_pieces_of_a_batch_are_joined() -> None:
    model, run = made(), solvers.plan("ddim", VP(), 3)
    whole = sample(model, run, shape=3, dtype=F64, full=True, **SHOWN)
    parts = sample(chunked(model, 2), run, shape=3, dtype=F64, full=True, **SHOWN)
    torch.testing.assert_close(parts.aux["signal"], whole.aux["signal"])


def test_signals_follow_their_particles() -> None:
    perm = torch.tensor([2, 0, 0])
    model, run = made().bind(**SHOWN), solvers.plan("ddim", VP(), 1)

    def resample(ctx: Any, x: Tensor) -> Tensor:
        ctx.permute(perm)
        return x[perm]

    plain = sample(model, run, shape=3, dtype=F64, full=True)
    moved = sample(model, run, shape=3, dtype=F64, full=True, hooks=resample)
    assert torch.equal(moved.aux["signal"], plain.aux["signal"][perm])


def test_an_anchor_is_an_observation() -> None:
    """The network sees it, and at the end of a bridge the signal explains the state."""

    def net(x: Tensor, time: Tensor, anchor: Tensor) -> Tensor:
        return torch.cat([x + anchor, anchor], 1)

    process = BrownianBridge()
    model = ForwardModelDenoiser(net, half, process, sees_anchor=True).bind(phi=SHOWN["phi"])
    state = sample(model, solvers.plan("ddim", process, 4), anchor=given(3, 2), dtype=F64, full=True)
    assert torch.isfinite(state.aux["signal"]).all()
    with pytest.raises(TypeError, match="anchor"):
        ForwardModelDenoiser(Net(2), half, process, sees_anchor=True)


def test_one_condition_serves_the_whole_batch() -> None:
    one = {"context": SHOWN["context"][:1], "phi": SHOWN["phi"][:1]}
    three = {name: value.repeat(3, 1) for name, value in one.items()}
    x = given(3, 2)
    assert torch.equal(made()(x, 0.5, **one), made()(x, 0.5, **three))


def test_binding_shares_the_weights_and_gives_way_to_a_call() -> None:
    model = made(meta={"name": "halves"})
    bound = model.bind(**SHOWN).bind(phi=SHOWN["phi"] + 1)
    assert bound.network.signal_net is model.network.signal_net
    assert (bound.meta["name"], model.meta, model.bound) == ("halves", {"name": "halves"}, {})
    x = given(3, 2)
    assert torch.equal(bound(x, 0.5, phi=SHOWN["phi"]), model(x, 0.5, **SHOWN))
    assert not torch.equal(bound(x, 0.5), model(x, 0.5, **SHOWN))


# -- wrong input ------------------------------------------------------------------------------------------------------
def listed(x: Tensor, time: Tensor) -> Any:
    return [x]


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no phi": (ValueError, "phi", lambda: made()(given(3, 2), 0.5, context=SHOWN["context"])),
    "phi of another batch": (ValueError, "phi is for 2", lambda: made()(given(3, 2), 0.5, **{**SHOWN, "phi": given(2, 1)})),
    "another shape": (
        ValueError,
        r"forward returned \(3, 4\)",
        lambda: ForwardModelDenoiser(Net(2), identity, VP())(given(3, 2), 0.5, **SHOWN),
    ),
    "not a tensor": (
        TypeError,
        "signal_net returned list",
        lambda: ForwardModelDenoiser(listed, identity, VP())(given(3, 2), 0.5, phi=given(1, 1)),
    ),
    "no graph": (
        ValueError,
        "not differentiable",
        lambda: ForwardModelDenoiser(Net(2), lambda s, phi: half(s, phi).round().detach(), VP())(given(3, 2), 0.5, **SHOWN),
    ),
    "no network": (TypeError, "signal_net is int", lambda: ForwardModelDenoiser(3, half, VP())),  # type: ignore[arg-type]
    "no forward": (TypeError, "forward is NoneType", lambda: ForwardModelDenoiser(Net(2), None, VP())),  # type: ignore[arg-type]
    "no process": (TypeError, "process", lambda: ForwardModelDenoiser(Net(2), half, "vp")),  # type: ignore[arg-type]
    "sigma_data": (ValueError, "sigma_data=0", lambda: made(sigma_data=0)),
}


@pytest.mark.parametrize(("kind", "text", "act"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(kind: type[Exception], text: str, act: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=text):
        act()
