"""The denoiser that learns the state it is asked about: its loss and average by hand, every process, whole runs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir.denoiser import Chunked
from unstir.nets import low_rank
from unstir.process import EDM, VP, BrownianBridge, Flow
from unstir.steer import SelfTrained, operators, posterior

torch.set_num_threads(1)
F64 = torch.float64
PROCESSES = [VP(), EDM(), Flow()]
SHAPE = (4, 8, 8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tiny(seed: int = 0) -> Any:
    return low_rank(SHAPE, 2, width=4, scales=1, hidden=(8,), seed=seed).double()


class Line(nn.Module):
    """g(θ) = θ."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, *shape, dtype=F64))
        self.shape = shape

    def forward(self) -> Tensor:
        return self.theta * 1


def sgd(rate: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_call_is_a_step_on_the_formula_and_an_average(process) -> None:
    """θ ← θ − rate ∇ mean (α θ − x)²/(α² + σ²), and a of the outputs before their steps, by hand."""
    model = SelfTrained(Line(5), process, steps_per_row=2, ema=0.7, optimizer=sgd(0.3))
    theta, average = torch.zeros(1, 5, dtype=F64), None
    for k, t in enumerate((0.9, 0.6, 0.2)):
        x, (a, s) = randn(1, 5, seed=k), (float(process.alpha(t)), float(process.sigma(t)))
        found = model(x, t)
        for _ in range(2):
            average = theta if average is None else 0.7 * average + 0.3 * theta
            loss = float((a * theta - x).square().mean() / (a * a + s * s))
            theta = theta - 0.3 * 2 * a * (a * theta - x) / 5 / (a * a + s * s)
        torch.testing.assert_close(found, average)
        assert model.loss == pytest.approx(loss)
    torch.testing.assert_close(model.network.theta.data, theta)  # type: ignore[union-attr]
    assert model.updates == 6


def test_the_loss_is_the_published_one_on_vp_and_the_minimum_is_the_scaled_state() -> None:
    process, x = VP(), randn(1, 5)
    assert float(process.alpha(0.4) ** 2 + process.sigma(0.4) ** 2) == pytest.approx(1)
    model = SelfTrained(Line(5), process, steps_per_row=300, ema=0.0, optimizer=sgd(1.0))
    torch.testing.assert_close(model(x, 0.4), x / process.alpha(0.4))
    still = SelfTrained(Line(5), Flow(), optimizer=sgd(1.0))  # where α = 0 nothing is to be learned
    assert torch.equal(still(x, 1.0), torch.zeros(1, 5, dtype=F64))
    assert torch.equal(still.network.theta.data, torch.zeros(1, 5, dtype=F64))  # type: ignore[union-attr]


@pytest.mark.parametrize("plan", ["ancestral", "dpmpp-2m"])
@pytest.mark.parametrize("steer", [False, True], ids=["alone", "ddrm"])
def test_runs_on_the_same_levels_are_the_same_on_every_process(plan, steer) -> None:
    """Trained 20 times on the way; only the units of the state differ. The last row returns D itself."""
    lams, keep = torch.linspace(-2, 3, 20, dtype=F64), (randn(*SHAPE, seed=3) > 0).double()
    truth, z = tiny(seed=5)().detach(), randn(1, *SHAPE)
    ends, counts = [], []
    for process in PROCESSES:
        times = [*map(float, process.time(lams)), 0.0]
        model = SelfTrained(tiny(), process, rate=3e-3, ema=0.5)
        post = posterior(model, operators.mask(keep), keep * truth, "ddrm", 0.1, eta=0.9) if steer else model
        start = float(process.alpha(times[0])) * (truth + math.exp(2.0) * z)
        state = unstir.sample(post, unstir.plan(plan, process, grid=times), x=start, full=True)
        ends.append(state.x)
        counts.append((state.calls.forward, state.calls.backward, model.updates))
        if not steer:
            assert torch.equal(state.x, model.average)
    assert set(counts) == {(20, 20, 20)}
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-5)
    moved = (tiny()() - ends[0]).abs().max()
    assert float(moved.detach()) > 1e-3


class Basis(nn.Module):
    """g(θ) = B θ, B (n, k) orthonormal."""

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.basis, self.theta, self.shape = basis, nn.Parameter(basis.new_zeros(basis.shape[1])), (len(basis),)

    def forward(self) -> Tensor:
        return (self.basis @ self.theta)[None]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ddim", "dpmpp-2m"])
def test_trained_to_the_end_it_projects_on_what_the_generator_can_make(process, plan) -> None:
    """D = B Bᵀ x̂: what lies outside of the range of g decays, what lies inside stays, so a run ends at B Bᵀ x̂ of its start."""
    basis, hat, start = torch.linalg.qr(randn(16, 4)).Q, randn(1, 16, seed=1), float(process.time(-0.5))
    model = SelfTrained(Basis(basis), process, steps_per_row=70, ema=0.0, optimizer=sgd(8.0))
    end = unstir.sample(model, unstir.plan(plan, process, nfe=8, start=start), x=float(process.alpha(start)) * hat)
    torch.testing.assert_close(end, hat @ basis @ basis.T, rtol=1e-6, atol=1e-8)


def test_no_steps_leave_theta_alone() -> None:
    model = SelfTrained(tiny(), VP(), steps_per_row=0)
    first = copy.deepcopy(model.network.state_dict())
    end = unstir.sample(model, unstir.plan("ancestral", VP(), nfe=5), shape=1, dtype=F64)
    assert all(torch.equal(v, first[k]) for k, v in model.network.state_dict().items())
    assert model.updates == 0
    torch.testing.assert_close(end, model.network().detach())


@pytest.mark.parametrize("k", [1, 3])
def test_the_optimiser_lives_through_the_run(k) -> None:
    model = SelfTrained(tiny(), VP(), steps_per_row=k)
    unstir.sample(model, unstir.plan("ddim", VP(), nfe=6), shape=1, dtype=F64)
    steps = {int(state["step"]) for state in model.optimizer.state.values()}
    assert steps == {6 * k} == {model.updates}


def test_runs_repeat_and_pieces_of_a_run_go_on() -> None:
    model, plan = SelfTrained(tiny(), VP(), rate=1e-2), unstir.plan("ancestral", VP(), nfe=8)
    whole = unstir.sample(model, plan, shape=1, dtype=F64)
    assert torch.equal(unstir.sample(model, plan, shape=1, dtype=F64), whole)
    head, tail = plan.split(5)
    state = unstir.sample(model, head, shape=1, dtype=F64, full=True)
    assert model.updates == 5
    assert torch.equal(unstir.sample(model, tail, x=state), whole)
    assert model.updates == 8
    model(whole, 0.5)  # by hand
    assert model.updates == 9
    model.reset()
    fresh = SelfTrained(tiny(), VP(), rate=1e-2)
    assert torch.equal(model(whole, 0.5), fresh(whole, 0.5))
    assert torch.equal(model(whole, 0.4), fresh(whole, 0.4))


def test_it_learns_whatever_mode_the_caller_is_in() -> None:
    x, ends = randn(1, *SHAPE), []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = SelfTrained(tiny(), VP(), rate=1e-2).eval()
        with mode():
            for t in (0.8, 0.5, 0.3):
                data = model(x * 1, t)
        assert not data.requires_grad
        ends.append(data.clone())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_half_states_clip_and_penalty() -> None:
    model = SelfTrained(tiny().float(), VP(), clip=(-0.1, 0.1), rate=1e-2)
    x = randn(1, *SHAPE)
    assert model(x.half(), 0.5).dtype == torch.float16
    for _ in range(5):
        assert float(model(x, 0.5).abs().max()) <= 0.1 + 1e-6
    heavy = SelfTrained(Line(5), VP(), steps_per_row=100, ema=0, optimizer=sgd(1.0), penalty=lambda g: g.square().mean())
    y, a2 = randn(1, 5), float(VP().alpha(0.4) ** 2)
    torch.testing.assert_close(heavy(y, 0.4), y * a2**0.5 / (a2 + 1))


def test_other_methods_of_the_room() -> None:
    """Those that need no derivative of D take it as it is; the others say why not."""
    truth, process = 0.3 * randn(1, *SHAPE), VP()
    plan = unstir.plan("ddim", process, nfe=5)
    for method in ("diffpir", "ddnm"):
        post = posterior(SelfTrained(tiny(), process), operators.mask(torch.ones(SHAPE)), truth, method)
        assert torch.isfinite(unstir.sample(post, plan, shape=1, dtype=F64)).all()
    with pytest.raises(ValueError, match="has no graph"):
        unstir.sample(posterior(SelfTrained(tiny(), process), operators.mask(torch.ones(SHAPE)), truth, "pigdm"), plan, shape=1)


class Frozen(Line):
    def __init__(self) -> None:
        super().__init__(5)
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": Frozen()}, "parameters to train"),
        ({"network": lambda: torch.zeros(1, 5)}, "parameters to train"),
        ({"process": BrownianBridge()}, "is anchored"),
        ({"steps_per_row": -1}, "steps_per_row=-1"),
        ({"steps_per_row": True}, "steps_per_row=True"),
        ({"ema": 1.0}, r"ema=1\.0 must lie in"),
        ({"rate": 0.0}, r"rate=0\.0"),
        ({"clip": (1.0, -1.0)}, "clip="),
    ],
    ids=["frozen", "function", "anchored", "negative", "bool", "ema", "rate", "clip"],
)
def test_wrong_arguments_are_named(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        SelfTrained(**{"network": Line(5), "process": VP(), **change})


def test_a_model_that_two_samples_would_train_is_refused() -> None:
    model, plan = SelfTrained(Line(5), VP(), optimizer=sgd(1.0)), unstir.plan("ddim", VP(), nfe=3)
    with pytest.raises(ValueError, match="begun to learn another sample"):
        unstir.sample(Chunked(model, 1), plan, shape=(2, 5))
    one, two = (unstir.steps(model, plan, shape=1, seed=seed) for seed in (0, 1))
    next(one), next(two)
    with pytest.raises(ValueError, match="a model of its own"):
        next(one)


def test_wrong_states_are_named() -> None:
    model = SelfTrained(Line(5), VP(), optimizer=sgd(1.0))
    with pytest.raises(ValueError, match="batch of 2; one network learns one sample"):
        unstir.sample(model, unstir.plan("ddim", VP(), nfe=3), shape=2)
    with pytest.raises(ValueError, match=r"returned shape \(1, 5\) for a state of shape \(1, 4\)"):
        model(torch.zeros(1, 4), 0.5)
    with pytest.raises(ValueError, match="the loss became nan after 0 steps"):
        model(torch.full((1, 5), math.nan), 0.5)
    wild = SelfTrained(Line(5), VP(), optimizer=sgd(1e200))
    with pytest.raises(ValueError, match="smaller rate"):
        unstir.sample(wild, unstir.plan("ddim", VP(), nfe=9), shape=1)
