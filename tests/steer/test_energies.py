"""Steered diffusion and FlowChef with any energy: gradients, windows, counts, and one path on every process."""

import pytest
import torch

import unstir
from unstir.denoiser import Denoiser, Gaussian
from unstir.process import EDM, VP, Flow
from unstir.steer import Term, flowchef, repaint_plan, steered

torch.set_num_threads(1)
PROCESSES = [VP(), EDM(), Flow()]
N, STD = 3, 0.7
MEAN = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
GOAL = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(data):
    return 0.5 * (data - GOAL).square().sum(1)


def crooked(data):
    return torch.tanh(data).pow(3).sum(1) + near(data)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_steered_is_the_formula_by_finite_differences(process) -> None:
    """D' = D − λ σ̂ ∇_x̂ ℓ(D), with ∇_x̂ by central differences in x̂."""
    model, t, x, h = Gaussian(process, MEAN, STD**2), float(process.time(0.4)), randn(2, N), 1e-6
    alpha, ratio = float(process.alpha(t)), float(process.noise_ratio(t))
    slope = torch.zeros_like(x)
    for j in range(N):
        step = torch.zeros(N).double()
        step[j] = h * alpha
        slope[:, j] = (crooked(model(x + step, t)) - crooked(model(x - step, t))) / (2 * h)
    out = steered(model, Term(crooked, 0.3))(x, t)
    torch.testing.assert_close(out, model(x, t) - 0.3 * ratio * slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("plan", ["ancestral", "dpmpp-2m"])
@pytest.mark.parametrize("make", [steered, flowchef], ids=["steered", "flowchef"])
def test_any_process_and_plan_comes_nearer_to_the_goal(process, plan, make) -> None:
    model, table = Gaussian(process, MEAN, STD**2), unstir.plan(plan, process, nfe=12)
    free = unstir.sample(model, table, shape=(50, N), dtype=torch.float64)
    end = unstir.sample(make(model, Term(near, 0.1)), table, shape=(50, N), dtype=torch.float64)
    assert float(near(end).mean()) < 0.95 * float(near(free).mean())
    off = make(model, Term(near, 0.0))
    assert torch.equal(unstir.sample(off, table, shape=(50, N), dtype=torch.float64), free)


@pytest.mark.parametrize("make", [steered, lambda m, t: flowchef(m, t, carry="noise")], ids=["steered", "flowchef"])
def test_the_process_does_not_matter(make) -> None:
    """Equal σ̂ grids give equal paths after scaling; a gradient in x instead of x̂ would not."""
    ends = []
    for process in PROCESSES:
        nodes = [float(process.time(lam)) for lam in torch.linspace(-2, 3, 9).tolist()]
        x = 8 * randn(4, N) * process.alpha(nodes[0])
        table = unstir.plan("ddim", process, grid=nodes)
        ends.append(unstir.sample(make(Gaussian(process, MEAN, STD**2), Term(crooked)), table, x=x) / process.alpha(nodes[-1]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-7, atol=1e-8)


def test_terms_add_up_and_have_windows() -> None:
    model, x = Gaussian(VP(), MEAN, STD**2), randn(2, N)
    t = float(VP().time(0.0))  # σ̂ = 1
    both = steered(model, [Term(near, 0.2), Term(crooked, 0.5)])(x, t)
    one = steered(model, Term(lambda d: 0.2 * near(d) + 0.5 * crooked(d)))(x, t)
    torch.testing.assert_close(both, one)
    seen: list = []
    asked = Term(lambda d: (seen.append(1), near(d))[1], low=0.5, high=0.9)
    assert torch.equal(steered(model, asked)(x, t), model(x, t))
    assert seen == []
    assert not torch.equal(steered(model, Term(near, low=0.5, high=1.1))(x, t), model(x, t))


def test_calls_forward_and_backward_are_counted() -> None:
    """steered: one backward a row inside the window, none outside; flowchef: none; a level visited three times: three."""
    process = EDM()
    model = Denoiser(lambda x, t: torch.tanh(x), process, "data", shape=(N,))
    table = unstir.plan("ddim", process, nfe=6)
    levels = [float(process.noise_ratio(row.t)) for row in table.rows]
    half = Term(near, low=levels[3] * 0.999)
    goal = {"shape": 2, "full": True, "dtype": torch.float64}
    calls = unstir.sample(steered(model, half), table, **goal).calls
    assert (calls.forward, calls.backward) == (6, 4)
    calls = unstir.sample(flowchef(model, Term(near), 0.1, inner=5), table, **goal).calls
    assert (calls.forward, calls.backward) == (6, 0)
    calls = unstir.sample(steered(model, Term(near)), repaint_plan(table, 1, 3), **goal).calls
    assert (calls.forward, calls.backward) == (5 * 3 + 1, 5 * 3 + 1)


def test_the_last_row_of_steered_returns_the_steered_data_and_that_of_flowchef_is_free() -> None:
    model, x, t = Gaussian(VP(), MEAN, STD**2), randn(2, N), 0.3
    last = unstir.plan("ddim", VP(), grid=[t, 0.0])
    post = steered(model, Term(near))
    torch.testing.assert_close(unstir.sample(post, last, x=x), post(x, t))
    assert torch.equal(unstir.sample(flowchef(model, Term(near), 0.3), last, x=x), unstir.sample(model, last, x=x))


def test_flowchef_shifts_the_state_by_the_step() -> None:
    """X' moves by −s ∇ℓ(D), K times, whatever weight the row gives D."""
    flow = Flow()
    model, x = Gaussian(flow, MEAN, STD**2), randn(2, N)
    row = unstir.plan("euler", flow, grid=[0.6, 0.5])
    d = wanted = model(x, 0.6)
    for _ in range(3):
        wanted = wanted - 0.2 * (wanted - GOAL)
    moved = unstir.sample(flowchef(model, Term(near), 0.2, inner=3), row, x=x) - unstir.sample(model, row, x=x)
    torch.testing.assert_close(moved, wanted - d)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: Term(near, low=2.0, high=1.0), ValueError, "window of the term 'energy' is empty"),
        (lambda m: Term(near, float("nan")), ValueError, "weight=nan"),
        (lambda m: Term(3.0), TypeError, "must be a function"),
        (lambda m: steered(m, []), TypeError, "must be a steer.Term"),
        (lambda m: steered(lambda x, t: x, Term(near)), TypeError, "knows its process"),
        (lambda m: flowchef(m, Term(near), -1.0), ValueError, "step=-1.0"),
        (lambda m: flowchef(m, Term(near), 1.0, inner=0), ValueError, "inner=0"),
        (lambda m: steered(m, Term(lambda d: near(d).mean(), name="mean"))(randn(2, N), 0.5), ValueError, "'mean' returned"),
        (lambda m: steered(m, Term(lambda d: near(d.detach())))(randn(2, N), 0.5), ValueError, "not differentiable"),
        (lambda m: steered(m, Term(lambda d: near(d.round().detach())))(randn(2, N), 0.5), ValueError, "not differentiable"),
    ],
    ids=["window", "weight", "function", "none", "process", "step", "inner", "mean", "detached", "rounded"],
)
def test_wrong_arguments_are_named(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make(Gaussian(VP(), MEAN, STD**2))


def test_a_negative_weight_is_said_to_repel() -> None:
    with pytest.warns(UserWarning, match="'far' repels"):
        Term(near, -1.0, name="far")
    frozen = Denoiser(torch.no_grad()(lambda x, t: 0.5 * x), VP(), "data", shape=(N,))
    with pytest.raises(ValueError, match="no graph"):
        steered(frozen, Term(near))(randn(2, N), 0.5)
