"""`Denoiser`: what the network is told, what may come back, conversion to other processes, counting."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import unstir
from unstir import process as pr
from unstir.denoiser import Denoiser, count_calls

X = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
VP = pr.VP()


class Spy(nn.Module):
    """Returns its input and remembers what it was told."""

    def __init__(self, result=lambda x: x) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        self.x, self.t, self.cond = x, t, cond
        return self.result(x)


class Net(nn.Module):
    """A small trainable network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


# -- the time ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("unit", lambda p, t: t),
        ("label", lambda p, t: 1000 * t - 1),
        ("thousand", lambda p, t: 1000 * t),
        ("logsnr", lambda p, t: (p.alpha(t) / p.sigma(t)).log()),
        ("sigma", lambda p, t: p.sigma(t) / p.alpha(t)),
        ("c_noise", lambda p, t: (p.sigma(t) / p.alpha(t)).log() / 4),
        (lambda p, t: 7 * t, lambda p, t: 7 * t),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_the_network_is_told(time, expected, batched: bool) -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) if batched else 0.4
    spy = Spy()
    Denoiser(spy, VP, "data", time=time)(X, t)
    assert spy.t.shape == (3,)
    assert spy.t.dtype == X.dtype
    goal = expected(VP, torch.as_tensor(t, dtype=torch.float64)).expand(3).float()
    torch.testing.assert_close(spy.t, goal, rtol=1e-6, atol=0)


def test_labels_of_a_table_are_its_own() -> None:
    table, spy = pr.from_betas(torch.linspace(0.001, 0.2, 50)), Spy()
    model = Denoiser(spy, table, "data", time="label")
    for n in (0, 17, 49):
        model(X.double(), float(table.time_of_label(n)))
        torch.testing.assert_close(spy.t, torch.full((3,), n).double(), rtol=0, atol=1e-9)
    model(X, 0.0)
    assert (spy.t == 0).all()  # never below the first label


def test_labels_of_a_shifted_table_are_those_of_its_label_grids() -> None:
    """The label grids space T = 50 labels on a shifted table; the network must be told the same ones."""
    # FOUND: time="label" falls back to T = 1000 (999 at t = 1 where the table has 50 levels).
    shifted, spy = pr.shifted(pr.from_betas(torch.linspace(0.001, 0.2, 50)), 2.0), Spy()
    model = Denoiser(spy, shifted, "data", time="label")
    for t, label in zip(unstir.solvers.make_grid("trailing", shifted, 5, 1.0, 0.0)[:-1], (49, 39, 29, 19, 9), strict=True):
        model(X.double(), t)
        torch.testing.assert_close(spy.t, torch.full((3,), label).double(), rtol=0, atol=1e-9)


def test_per_sample_times_equal_separate_calls(process: pr.Process) -> None:
    model = Denoiser(lambda x, t: torch.tanh(x) * t[:, None, None], process, "velocity")
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = model(X.double(), t)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model(X[i : i + 1].double(), float(t[i])), rtol=1e-13, atol=1e-13)


def test_the_dtype_is_the_states(process: pr.Process) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert Denoiser(lambda x, t: x, process, "velocity")(X.to(dtype), 0.5).dtype == dtype


# -- the output --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrap", "extras"),
    [
        (lambda x: x, 0),
        (lambda x: (x, "variance", 3), 2),
        (lambda x: [x, "variance"], 1),
        (lambda x: SimpleNamespace(sample=x), 0),
        (lambda x: {"sample": x, "mask": 1}, 1),
    ],
)
def test_whatever_networks_return(wrap, extras: int) -> None:
    data, more = Denoiser(Spy(wrap), VP, "data").outputs(X, 0.5)
    assert torch.equal(data, X)
    assert len(more) == extras


@pytest.mark.parametrize(
    ("wrap", "error", "words"),
    [
        (lambda x: x[:, :1], ValueError, r"returned shape \(3, 1, 4\) for a state of shape \(3, 2, 4\)"),
        (lambda x: x[0], ValueError, "returned shape"),
        (lambda x: None, TypeError, "returned NoneType"),
    ],
)
def test_wrong_outputs_are_named(wrap, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        Denoiser(Spy(wrap), VP, "data")(X, 0.5)


def test_conditions_reach_the_network_and_clip_clips() -> None:
    spy = Spy()
    y = torch.arange(3)
    out = Denoiser(spy, VP, "data", clip=(-0.5, 0.25))(X, 0.5, y=y)
    assert spy.cond == {"y": y}
    assert torch.equal(out, X.clamp(-0.5, 0.25))
    assert torch.equal(Denoiser(spy, VP, "data")(100 * X, 0.5), 100 * X)  # never unless asked


def test_parameters_move_with_the_module() -> None:
    model = Denoiser(Net(), VP)
    assert {name for name, _ in model.named_parameters()} == {"network.layer.weight", "network.layer.bias"}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Denoiser(3, VP), TypeError, "network is int"),
        (lambda: Denoiser(Spy(), "VP"), TypeError, "process is str"),
        (lambda: Denoiser(Spy(), VP, "eps"), ValueError, "predicts='eps' is unknown"),
        (lambda: Denoiser(Spy(), VP, time="step"), ValueError, "time='step' is unknown"),
        (lambda: Denoiser(Spy(), VP, clip=(1, -1)), ValueError, r"clip=\(1, -1\)"),
        (lambda: Denoiser(Spy(), VP, "edm", sigma_data=-1), ValueError, "sigma_data=-1"),
    ],
)
def test_bad_arguments_are_named(make, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


# -- other processes ---------------------------------------------------------------------------------
@pytest.mark.parametrize("source", [pr.VP(), pr.EDM(), pr.Flow(), pr.Cosine()], ids=lambda p: type(p).__name__)
def test_conversion_to_another_process_is_exact(source: pr.Process, process: pr.Process, mixture) -> None:
    """The converted denoiser of the same data law is the law's exact denoiser on the other process."""
    from unstir.denoiser.denoiser import ConvertedDenoiser

    converted, exact = ConvertedDenoiser(mixture.model(source), process), mixture.model(process)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for t in (0.0, 0.05, 0.4, 0.8):
        if process.logsnr(t) > source.logsnr(1.0):
            torch.testing.assert_close(converted(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
    t = torch.linspace(0.05, 0.6, 9, dtype=torch.float64)
    torch.testing.assert_close(converted(x, t), exact(x, t), rtol=1e-8, atol=1e-8)


def test_conversion_through_on_and_its_limit() -> None:
    model = Denoiser(lambda x, t: torch.tanh(x), VP, "data")
    x = X.double()
    torch.testing.assert_close(model.on(pr.VP())(x, 0.3), model(x, 0.3), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="noisier than the model's process reaches"):
        model.on(pr.Flow())(x, 1.0)


def test_anchored_processes_are_not_exchanged(anchored: pr.Process) -> None:
    with pytest.raises(ValueError, match="without an anchor"):
        Denoiser(lambda x, t: x, anchored, "data").on(VP)


# -- counting ----------------------------------------------------------------------------------------
def test_calls_are_counted_forward_and_backward_apart() -> None:
    model = Denoiser(Net(), VP, "data")
    with count_calls() as calls:
        model(X, 0.5)
        model(X, 0.5).sum().backward()
        with torch.no_grad():
            model(X, 0.5)
    assert (calls.forward, calls.backward) == (3, 1)
    model(X, 0.5)
    assert calls.forward == 3  # the block is over


def test_exact_denoisers_count_too(mixture) -> None:
    with count_calls() as calls:
        mixture.model(VP)(mixture.start, 0.5)
    assert calls.forward == 1


def test_a_run_counts_rows_nested_and_backward_calls() -> None:
    """Guidance-like: two calls and one backward call in every row."""
    base = Denoiser(Net(), VP, "data")

    def guided(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(base(x, t).square().sum(), x)
        return (base(x, t) - 0.01 * g).detach()

    state = unstir.sample(guided, unstir.plan("dpmpp-2m", VP, nfe=5), shape=(2, 4), full=True)
    assert (state.calls.rows, state.calls.forward, state.calls.backward, state.calls.nested) == (5, 10, 5, 5)
